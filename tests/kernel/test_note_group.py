"""note_group: the notes on groups of subscribers."""

from __future__ import annotations

import pytest

from tests.kernel.support import Shard

pytestmark = pytest.mark.anyio


async def test_a_note_counts_only_if_the_caller_has_seen_the_one_before(shard: Shard) -> None:
    steps = [(b"", b"one"), (b"", b"two"), (b"one", b"three"), (b"one", b""), (b"three", b""), (b"three", b"")]
    answers = [await shard.do(shard.kernel.note_group("billing", *step)) for step in steps]
    assert answers == [b"one", b"one", b"three", b"three", b"", b""]
    assert await shard.plain("HGETALL", shard.namespace.groups) == {}


async def test_who_repeats_a_call_finds_its_own_note(shard: Shard) -> None:
    assert [await shard.do(shard.kernel.note_group("billing", b"", b"one")) for _ in range(2)] == [b"one"] * 2


async def test_a_key_of_another_type_is_left_alone(shard: Shard) -> None:
    key = shard.namespace.groups
    shard.planted.add(key)
    await shard.plain("SET", key, "x")
    assert "WRONGTYPE" in str(await shard.assert_changes_nothing(shard.kernel.note_group("billing", b"", b"x")))
    await shard.plain("DEL", key)
