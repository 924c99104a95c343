"""read_runs: records of runs in replies of bounded size."""

from __future__ import annotations

import pytest

from streamflow.errors import StoreError
from tests.kernel.support import Shard

pytestmark = pytest.mark.anyio


async def record(shard: Shard, run_id: str, *sizes: int) -> list[bytes]:
    """Plant a record with elements of these sizes."""
    key = shard.keys.run(run_id)
    shard.planted.add(key)
    elements = [bytes([97 + n % 26]) * size for n, size in enumerate(sizes)]
    await shard.plain("RPUSH", key, *elements)
    return elements


async def test_records_that_fit_are_returned_whole_in_the_order_of_the_ids(shard: Shard) -> None:
    one, two = await record(shard, "one", 5, 0, 7), await record(shard, "two", *[10] * 500)
    call = shard.kernel.read_runs(0, [("two", 0), ("none", 0), ("one", 0)], 1_000_000)
    assert await shard.assert_changes_nothing(call) == [(None, two), (None, []), (None, one)]
    assert await shard.do(shard.kernel.read_runs(0, [], 100)) == []


@pytest.mark.parametrize("limit", [1, 900, 3_000, 20_000, 100_000])
async def test_a_large_record_comes_in_pages_and_nothing_is_missing(shard: Shard, limit: int) -> None:
    sizes = [1, 0, *[50] * 300, *[5_000] * 5, *[20] * 50, 30_000, 3]
    elements = await record(shard, "r", *sizes)
    read: list[bytes] = []
    position: int | None = 0
    calls = 0
    while position is not None:
        assert position == len(read)
        [answer] = await shard.assert_changes_nothing(shard.kernel.read_runs(0, [("r", position)], limit))
        assert not isinstance(answer, StoreError)
        position, page = answer
        assert sum(map(len, page[:-1])) < limit, "no page goes on when it has reached the limit"
        read += page
        calls += 1
    assert read == elements
    assert calls > 1 or limit == 100_000


async def test_runs_behind_the_limit_are_for_the_next_call(shard: Shard) -> None:
    small, large = await record(shard, "small", 10, 0), await record(shard, "large", *[2_000] * 20)
    behind = await record(shard, "behind", 10, 0)
    call = shard.kernel.read_runs(0, [("small", 0), ("large", 0), ("behind", 0)], 9_000)
    [first, second, last] = await shard.do(call)
    assert not isinstance(second, StoreError)
    following, page = second
    assert following is not None
    assert (first, last) == ((None, small), (0, []))
    assert page == large[:following]
    assert 1 < len(page) < 6
    call = shard.kernel.read_runs(0, [("large", following), ("behind", 0)], 1_000_000)
    assert await shard.do(call) == [(None, large[following:]), (None, behind)]


async def test_a_key_of_another_type_is_an_error_of_that_run_only(shard: Shard) -> None:
    good = await record(shard, "good", 5, 0)
    shard.planted.add(shard.keys.run("bad"))
    await shard.plain("SET", shard.keys.run("bad"), "a string")
    answer = await shard.assert_changes_nothing(shard.kernel.read_runs(0, [("bad", 0), ("good", 0)], 1000))
    assert isinstance(answer[0], StoreError)
    assert shard.keys.run("bad") in str(answer[0])
    assert answer[1] == (None, good)
