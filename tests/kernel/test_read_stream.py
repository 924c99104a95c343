"""read_stream: entries of a log or outbox in replies of bounded size."""

from __future__ import annotations

import pytest

from streamflow.store.kernel import StreamEntry
from tests.kernel.support import Shard

pytestmark = pytest.mark.anyio


async def entries(shard: Shard, *sizes: int) -> list[StreamEntry]:
    """Plant entries in the log, each with a value of this size."""
    planted: list[StreamEntry] = []
    for n, size in enumerate(sizes):
        run, value = f"r{n}", bytes([97 + n % 26]) * size
        entry: bytes = await shard.plain("XADD", shard.keys.log, "*", run, value, "s", b"")
        planted.append((entry, {run.encode(): value, b"s": b""}))
    return planted


async def test_entries_that_fit_are_returned_at_once(shard: Shard) -> None:
    planted = await entries(shard, 0, 10, 1000)
    call = shard.kernel.read_stream(shard.keys.log, "0-0", 1_000_000)
    assert await shard.assert_changes_nothing(call) == (False, planted)
    behind = shard.kernel.read_stream(shard.keys.log, planted[0][0].decode(), 1_000_000)
    assert await shard.do(behind) == (False, planted[1:])


@pytest.mark.parametrize("limit", [1, 900, 3_000, 20_000, 100_000])
async def test_a_large_stream_comes_in_pages_and_nothing_is_missing(shard: Shard, limit: int) -> None:
    planted = await entries(shard, 1, 0, *[50] * 300, *[5_000] * 5, *[20] * 50, 30_000, 3)
    read: list[StreamEntry] = []
    more, pages = True, 0
    while more:
        after = read[-1][0].decode() if read else "0-0"
        more, page = await shard.do(shard.kernel.read_stream(shard.keys.log, after, limit))
        size = sum(len(value) for _, fields in page[:-1] for value in fields.values())
        assert size < limit, "no page goes on when it has reached the limit"
        read += page
        pages += 1
    assert read == planted
    assert pages > 1 or limit == 100_000


async def test_a_stream_that_is_not_there_is_empty(shard: Shard) -> None:
    assert await shard.assert_changes_nothing(shard.kernel.read_stream(shard.keys.log, "0-0", 100)) == (False, [])


async def test_a_key_of_another_type_is_refused(shard: Shard) -> None:
    await entries(shard, 1)
    await shard.assert_wrong_types_leave_nothing_half_written(shard.kernel.read_stream(shard.keys.log, "0-0", 100))
