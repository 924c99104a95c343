"""mark_suspects: the note that a process leaves for its successor."""

from __future__ import annotations

import pytest

from tests.kernel.support import Shard

pytestmark = pytest.mark.anyio


async def test_each_process_has_a_note_which_it_replaces(shard: Shard) -> None:
    for member, body in (("one", b"a"), ("two", b"b"), ("one", b"c")):
        await shard.do(shard.kernel.mark_suspects(member, 60, body))
    notes = [await shard.plain("GET", shard.namespace.suspects(member)) for member in ("one", "two")]
    assert notes == [b"c", b"b"]
    assert 0 < await shard.plain("TTL", shard.namespace.suspects("one")) <= 60


async def test_an_empty_note_is_deleted(shard: Shard) -> None:
    for body in (b"a", b"", b""):
        await shard.do(shard.kernel.mark_suspects("one", 60, body))
    assert await shard.key_names() == []


async def test_wrong_key_types_leave_nothing_half_written(shard: Shard) -> None:
    key = shard.namespace.suspects("one")
    shard.planted.add(key)
    await shard.plain("HSET", key, "a", "b")
    assert "WRONGTYPE" in str(await shard.assert_changes_nothing(shard.kernel.mark_suspects("one", 60, b"x")))
    await shard.plain("DEL", key)
