"""peek_queues: what waits and what is claimed in a shard's partitions of queues."""

from __future__ import annotations

import pytest

from streamflow.store.kernel import QueuePeek
from tests.kernel.queue import QueuePartition
from tests.kernel.support import Shard

pytestmark = pytest.mark.anyio


async def test_what_waits_and_what_is_claimed_is_counted(shard: Shard) -> None:
    queue = QueuePartition(shard)
    assert await queue.peek() == QueuePeek(0, 0, "")
    await queue.enqueue(queue.step(), queue.step(seq=2), queue.step(seq=3))
    entries = [entry for entry, _ in await shard.stream(queue.keys.stream)]
    assert await queue.peek() == QueuePeek(3, 0, entries[0])
    await queue.read(count=1)
    assert await queue.peek() == QueuePeek(2, 1, entries[1])
    await queue.read()
    assert await queue.peek() == QueuePeek(0, 3, "")


async def test_several_queues_are_answered_in_order(shard: Shard) -> None:
    gpu, cpu = QueuePartition(shard), QueuePartition(shard, "cpu")
    await gpu.enqueue(gpu.step(), cpu.step(), cpu.step(seq=2))
    call = shard.kernel.peek_queues(0, ["cpu", "none", "gpu"])
    assert [found.waiting for found in await shard.assert_changes_nothing(call)] == [2, 0, 1]


async def test_a_partition_without_its_group_has_everything_waiting(shard: Shard) -> None:
    queue = QueuePartition(shard)
    await queue.taken(queue.step(), queue.step(seq=2))
    await shard.plain("XGROUP", "DESTROY", queue.keys.stream, "workers")
    assert (await queue.peek()).waiting == 2


async def test_a_key_of_another_type_is_told_apart(shard: Shard) -> None:
    queue = QueuePartition(shard)
    await shard.plain("SET", queue.keys.stream, "x")
    shard.planted.add(queue.keys.stream)
    assert await queue.peek() == QueuePeek(-1, 0, "")


async def test_an_entry_has_a_place_or_a_worker(shard: Shard) -> None:
    queue = QueuePartition(shard)
    await queue.enqueue(queue.step(), queue.step(seq=2), queue.step(seq=3))
    entries = [entry for entry, _ in await shard.stream(queue.keys.stream)]

    async def found(entry: str) -> QueuePeek:
        [peek] = await shard.assert_changes_nothing(shard.kernel.peek_queues(0, [queue.at[0]], [entry]))
        return peek

    assert [(await found(entry)).before for entry in entries] == [0, 1, 2]
    await queue.read(count=1)
    claimed = await found(entries[0])
    assert (claimed.before, claimed.consumer) == (-1, "one")
    assert claimed.idle >= 0
    assert [(await found(entry)).before for entry in entries[1:]] == [0, 1]
    assert (await found(entries[2])).consumer == ""


async def test_no_more_than_a_thousand_entries_or_a_megabyte_are_counted(shard: Shard) -> None:
    small, large = QueuePartition(shard), QueuePartition(shard, "large")
    for first in range(1, 1201, 100):
        await small.enqueue(*(small.step(seq=seq) for seq in range(first, first + 100)))
    await large.enqueue(*(large.step(seq=seq, body=b"x" * 100_000) for seq in range(1, 31)))

    async def before(queue: QueuePartition, position: int) -> int:
        entries = [entry for entry, _ in await shard.stream(queue.keys.stream)]
        [peek] = await shard.do(shard.kernel.peek_queues(0, [queue.at[0]], [entries[position]]))
        return peek.before

    assert [await before(small, position) for position in (0, 3, 4, 5, 777, 1000)] == [0, 3, 4, 5, 777, 1000]
    assert [await before(small, position) for position in (1001, 1199)] == [-1, -1]
    assert [await before(large, position) for position in (3, 29)] == [3, -1]
