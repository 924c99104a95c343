"""ack_attempts: entries whose outcomes are reported leave the queue, and nothing of them stays."""

from __future__ import annotations

import pytest

from streamflow.store.kernel import ClaimRef
from tests.kernel.queue import QueuePartition
from tests.kernel.support import Shard

pytestmark = pytest.mark.anyio


async def test_nothing_of_a_finished_entry_stays_and_the_others_do(shard: Shard) -> None:
    queue = QueuePartition(shard)
    one, two = await queue.taken(queue.step(), queue.step(seq=2))
    await queue.extend(ClaimRef(one.entry, one.step, b"told"))
    await queue.ack(one)
    assert await queue.details() == {}
    assert list(await queue.places()) == ["r1/2"]
    assert await queue.pending() == [(two.entry, "one")]
    assert len(await queue.entries()) == 1


async def test_a_newer_attempt_keeps_its_place(shard: Shard) -> None:
    queue = QueuePartition(shard)
    [old] = await queue.taken(queue.step())
    await queue.enqueue(queue.step(attempt=2))
    await queue.ack(old)
    [entry] = await queue.read()
    assert await queue.places() == {"r1/1": f"{entry} 7 2 wanted"}


async def test_finished_twice_is_finished(shard: Shard) -> None:
    queue = QueuePartition(shard)
    [claim] = await queue.taken(queue.step())
    await queue.ack(claim)
    await shard.assert_changes_nothing(shard.kernel.ack_attempts("gpu", 0, [claim]))
    assert await queue.is_empty()


async def test_wrong_key_types_leave_nothing_half_written(shard: Shard) -> None:
    queue = QueuePartition(shard)
    [claim] = await queue.taken(queue.step())
    await shard.assert_wrong_types_leave_nothing_half_written(shard.kernel.ack_attempts("gpu", 0, [claim]))
