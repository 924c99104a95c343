"""read_quarantine: what a shard has quarantined, newest first, without bodies."""

from __future__ import annotations

import pytest

from streamflow.store.kernel import Batch, Poison
from tests.kernel.support import Shard

pytestmark = pytest.mark.anyio


async def test_it_returns_the_newest_first_with_the_sizes_of_their_bodies(shard: Shard) -> None:
    await shard.acquire()
    poisons = [Poison("1-1", f"r{n}", "why", b"e", b"x" * n, "signal", b"", b"m:c.1.1") for n in range(20)]
    await shard.do(shard.commit(Batch("c1", poisons=poisons)))
    page = await shard.assert_changes_nothing(shard.kernel.read_quarantine(0, "", 12))
    assert [(entry.fields[b"run"], entry.size) for entry in page] == [(b"r%d" % n, n) for n in range(19, 7, -1)]
    assert page[0].fields == {
        b"run": b"r19",
        b"reason": b"why",
        b"message": b"1-1",
        b"kind": b"signal",
        b"header": b"",
        b"from": b"m:c.1.1",
    }
    rest = await shard.do(shard.kernel.read_quarantine(0, page[-1].entry, 12))
    assert [entry.fields[b"run"] for entry in rest] == [b"r%d" % n for n in range(7, -1, -1)]
    assert [entry for entry, _ in await shard.stream(shard.keys.poison)] == [e.entry for e in reversed(page + rest)]


async def test_nothing_is_there_and_a_wrong_type_is_an_error(shard: Shard) -> None:
    assert await shard.do(shard.kernel.read_quarantine(0, "", 10)) == []
    await shard.assert_wrong_types_leave_nothing_half_written(shard.kernel.read_quarantine(0, "", 10))
