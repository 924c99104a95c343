"""read_chunks: what a run's steps have emitted, from an entry on, with the run's header of the same moment."""

from __future__ import annotations

import pytest

from streamflow.client.streams import StreamPosition, taken
from tests.kernel.support import Shard
from tests.kernel.test_append_chunks import append, batch, prepared

pytestmark = pytest.mark.anyio


async def test_a_run_that_is_not_there_or_has_emitted_nothing_has_no_entries(shard: Shard) -> None:
    call = shard.kernel.read_chunks(0, "r1", "", 1, 1000)
    assert (await shard.do(call)).header == b""
    await prepared(shard)
    found = await shard.assert_changes_nothing(call)
    assert found.header == await shard.header("r1")
    assert (found.made, found.first, found.next, found.entries) == ("", 1, 1, [])


async def test_one_reply_has_about_so_many_bytes_and_the_next_goes_on(shard: Shard) -> None:
    await prepared(shard)
    for number in range(1, 6):
        await shard.do(append(shard, batch(number, "x" * 100)))
    made, entry, seen = "", 1, list[int]()
    for count in (2, 2, 1, 0):
        found = await shard.do(shard.kernel.read_chunks(0, "r1", made, entry, 200))
        assert len(found.entries) == count
        seen += [number for number, _ in found.entries]
        made, entry = found.made, entry + count
    assert seen == [1, 2, 3, 4, 5]


async def test_who_knows_other_chunks_gets_the_first_ones(shard: Shard) -> None:
    await prepared(shard)
    await shard.do(append(shard, batch(1, "a")))
    found = await shard.do(shard.kernel.read_chunks(0, "r1", "5", 9, 1000))
    assert [number for number, _ in found.entries] == [1]


async def test_a_reader_goes_on_within_an_entry_and_is_told_what_is_gone(shard: Shard) -> None:
    await prepared(shard)
    await shard.do(append(shard, batch(1, "a", "b", "c")))
    await shard.do(append(shard, batch(2, "d", missed=2)))
    found = await shard.do(shard.kernel.read_chunks(0, "r1", "", 1, 1000))
    chunks = taken(found, StreamPosition(found.made, 1, 2))
    assert [(chunk.number, chunk.missed) for chunk in chunks] == [(3, 0), (6, 2)]
    assert chunks[-1].offset == f"{found.made}-2-6"
    lost = StreamPosition(found.made, 9, 40)  # the server has lost what that reader has seen
    await shard.do(append(shard, batch(3, "e")))
    found = await shard.do(shard.kernel.read_chunks(0, "r1", found.made, lost.entry, 1000))
    assert taken(found, lost) == []
    assert (lost.entry, lost.number) == (4, 7)


async def test_another_type_of_key_is_an_error(shard: Shard) -> None:
    await shard.assert_wrong_types_leave_nothing_half_written(shard.kernel.read_chunks(0, "r1", "", 1, 1000))
