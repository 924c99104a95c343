"""read_hash: fields of a hash in replies of bounded size."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from streamflow.store.kernel import FIRST_FIELD
from tests.kernel.support import Shard

pytestmark = pytest.mark.anyio

OVERHEAD = 150
"""Bytes of a field besides its value, at most."""


async def plant(shard: Shard, *sizes: int) -> dict[bytes, bytes]:
    """Steps that have reported values of these sizes."""
    values = {f"r{n}/1".encode(): bytes([97 + n % 26]) * size for n, size in enumerate(sizes)}
    await shard.plain("HSET", shard.keys.details, *(word for pair in values.items() for word in pair))
    return values


async def pages(shard: Shard, limit: int) -> list[list[tuple[bytes, bytes]]]:
    found: list[list[tuple[bytes, bytes]]] = []
    position: Sequence[bytes] = FIRST_FIELD
    while position:
        position, page = await shard.do(shard.kernel.read_hash(shard.keys.details, position, limit))
        found.append(page)
    return found


@pytest.mark.parametrize("count", [3, 1_000])
async def test_fields_that_fit_are_returned_at_once(shard: Shard, count: int) -> None:
    """A small hash is a list inside the server, a large one a table."""
    planted = await plant(shard, *range(count))
    call = shard.kernel.read_hash(shard.keys.details, FIRST_FIELD, 10_000_000)
    position, fields = await shard.assert_changes_nothing(call)
    assert (position, dict(fields)) == ([], planted)


@pytest.mark.parametrize("limit", [1, 900, 3_000, 20_000, 100_000])
async def test_a_large_hash_comes_in_pages_and_nothing_is_missing(shard: Shard, limit: int) -> None:
    planted = await plant(shard, 1, 0, *[50] * 300, *[5_000] * 5, *[20] * 50, 30_000, 3)
    found = await pages(shard, limit)
    assert {field: value for page in found for field, value in page} == planted
    for page in found:
        size = sum(len(field) + len(value) for field, value in page)
        assert size <= limit or len(page) == 1, "only a field that is larger than the limit exceeds it"
    assert len(found) > 1 or limit == 100_000


async def test_a_small_hash_is_divided_too(shard: Shard) -> None:
    """Redis and Valkey return all of it at once, whatever number was asked for."""
    planted = await plant(shard, *[50] * 20)
    found = await pages(shard, 3 * (50 + OVERHEAD))
    assert {field: value for page in found for field, value in page} == planted
    assert max(map(len, found)) <= 4


async def test_large_values_behind_small_ones_are_not_read_together(shard: Shard) -> None:
    planted = await plant(shard, *[10] * 200, *[100_000] * 40)
    found = await pages(shard, 250_000)
    assert {field: value for page in found for field, value in page} == planted
    assert max(sum(len(value) for _, value in page) for page in found) <= 250_000
    assert len(found) < 40, "and not one by one"


async def test_fields_that_were_left_come_as_they_are_now(shard: Shard) -> None:
    """Those that were deleted meanwhile don't, and what the cursor hasn't reached comes behind them."""
    planted = await plant(shard, *[50] * 20)
    await shard.plain("HDEL", shard.keys.details, "r3/1")
    await shard.plain("HSET", shard.keys.details, "r4/1", b"more")
    left = [b"r3/1", b"r4/1", b"r5/1"]
    first = shard.kernel.read_hash(shard.keys.details, [*FIRST_FIELD, *left], 1)
    assert await shard.do(first) == ([*FIRST_FIELD, b"r5/1"], [(b"r4/1", b"more")])
    rest = shard.kernel.read_hash(shard.keys.details, [*FIRST_FIELD, b"r5/1"], 1_000_000)
    position, fields = await shard.do(rest)
    assert position == []
    assert fields[0] == (b"r5/1", planted[b"r5/1"])
    del planted[b"r3/1"]
    assert dict(fields) == planted | {b"r4/1": b"more"}


async def test_a_hash_that_is_not_there_is_empty(shard: Shard) -> None:
    assert await shard.assert_changes_nothing(shard.kernel.read_hash(shard.keys.steps, FIRST_FIELD, 100)) == ([], [])


async def test_a_key_of_another_type_is_refused(shard: Shard) -> None:
    await plant(shard, 1)
    call = shard.kernel.read_hash(shard.keys.details, FIRST_FIELD, 100)
    await shard.assert_wrong_types_leave_nothing_half_written(call)


async def test_only_the_first_bytes_of_each_value_may_be_wanted(shard: Shard) -> None:
    planted = await plant(shard, 3, 70_000, *[50] * 100, 70_000)
    found: list[tuple[bytes, bytes]] = []
    position: Sequence[bytes] = FIRST_FIELD
    count = 0
    while position:
        position, page = await shard.do(shard.kernel.read_hash(shard.keys.details, position, 40_000, 5))
        found += page
        count += 1
    assert dict(found) == {field: value[:5] for field, value in planted.items()}
    assert count >= 3, "the server's work is divided as for whole values"
