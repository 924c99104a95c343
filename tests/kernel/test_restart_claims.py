"""restart_claims: every claim begins a new idle time, whichever worker has it."""

from __future__ import annotations

import pytest

from streamflow.store.kernel import WORKERS
from tests.kernel.queue import QueuePartition
from tests.kernel.support import Shard

pytestmark = pytest.mark.anyio

MINUTE = 60_000


async def make_old(queue: QueuePartition) -> None:
    """Let all claims be an hour old."""
    for claim in await queue.expired():
        words = (claim.consumer, 0, claim.entry, "IDLE", 60 * MINUTE)
        await queue.shard.plain("XCLAIM", queue.keys.stream, WORKERS, *words)


async def test_old_claims_begin_a_new_idle_time_and_stay_with_their_workers(real_shard: Shard) -> None:
    queue = QueuePartition(real_shard)
    await queue.taken(queue.step(seq=1), queue.step(seq=2))
    await queue.taken(queue.step(seq=3), consumer="two")
    await make_old(queue)
    assert len(await queue.expired(idle_ms=MINUTE)) == 3
    assert await real_shard.do(queue.kernel.restart_claims(*queue.at, 10)) == ""
    assert await queue.expired(idle_ms=MINUTE) == []
    assert [claim.consumer for claim in await queue.expired()] == ["one", "one", "two"]


async def test_they_are_restarted_in_portions(real_shard: Shard) -> None:
    queue = QueuePartition(real_shard)
    claims = await queue.taken(*(queue.step(seq=number) for number in range(1, 6)))
    await make_old(queue)
    last = await real_shard.do(queue.kernel.restart_claims(*queue.at, 2))
    assert last == claims[1].entry
    assert [dead.seq for dead in await queue.expired(idle_ms=MINUTE)] == [3, 4, 5]
    last = await real_shard.do(queue.kernel.restart_claims(*queue.at, 10, last))
    assert last == ""
    assert await queue.expired(idle_ms=MINUTE) == []


async def test_entries_that_wait_for_a_worker_stay_as_they_are(real_shard: Shard) -> None:
    queue = QueuePartition(real_shard)
    await queue.enqueue(queue.step())
    assert await real_shard.assert_changes_nothing(queue.kernel.restart_claims(*queue.at, 10)) == ""
    assert len(await queue.read()) == 1


async def test_without_group_or_stream_nothing_happens(real_shard: Shard) -> None:
    queue = QueuePartition(real_shard)
    assert await real_shard.do(queue.kernel.restart_claims(*queue.at, 10)) == ""
    assert await real_shard.key_names() == []


async def test_wrong_key_types_leave_nothing_half_written(real_shard: Shard) -> None:
    queue = QueuePartition(real_shard)
    await queue.taken(queue.step())
    await real_shard.assert_wrong_types_leave_nothing_half_written(queue.kernel.restart_claims(*queue.at, 10))
