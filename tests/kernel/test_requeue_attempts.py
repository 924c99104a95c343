"""requeue_attempts: what a leaving worker returns waits for another one, under the same attempt."""

from __future__ import annotations

import pytest

from streamflow.store.kernel import ClaimRef
from tests.kernel.queue import QueuePartition
from tests.kernel.support import Shard

pytestmark = pytest.mark.anyio


async def test_another_worker_reads_the_same_attempt_with_the_newest_details(shard: Shard) -> None:
    queue = QueuePartition(shard)
    one, two = await queue.taken(queue.step(attempt=3, details=b"old"), queue.step(seq=2, details=b"old"))
    await queue.extend(ClaimRef(two.entry, two.step, b"kept"))
    assert await queue.requeue(ClaimRef(one.entry, one.step, b"new"), two) == 2
    assert await queue.pending() == []
    assert [(entry["step"], entry["attempt"], entry["details"]) for entry in await queue.entries()] == [
        (b"r1/1", b"7 3", b"new"),
        (b"r1/2", b"7 1", b"kept"),
    ]
    first, second = await queue.read("two")
    assert await queue.places() == {"r1/1": f"{first} 7 3 wanted", "r1/2": f"{second} 7 1 wanted"}
    assert await queue.extend(ClaimRef(first, "r1/1"), consumer="two") == "k"


async def test_an_attempt_that_is_requeued_twice_is_one_entry(shard: Shard) -> None:
    queue = QueuePartition(shard)
    [claim] = await queue.taken(queue.step())
    call = shard.kernel.requeue_attempts("gpu", 0, "one", [claim])
    assert await shard.do(call) == 1
    assert await shard.assert_changes_nothing(call) == 0


async def test_a_revoked_entry_is_taken_off_instead(shard: Shard) -> None:
    queue = QueuePartition(shard)
    [claim] = await queue.taken(queue.step())
    await queue.enqueue(queue.revoke())
    assert await queue.requeue(claim) == 0
    assert await queue.is_empty()


async def test_an_entry_of_another_worker_is_not_requeued(shard: Shard) -> None:
    queue = QueuePartition(shard)
    [claim] = await queue.taken(queue.step(), consumer="other")
    assert await shard.assert_changes_nothing(shard.kernel.requeue_attempts("gpu", 0, "one", [claim])) == 0


async def test_wrong_key_types_leave_nothing_half_written(shard: Shard) -> None:
    queue = QueuePartition(shard)
    [claim] = await queue.taken(queue.step())
    await shard.assert_wrong_types_leave_nothing_half_written(shard.kernel.requeue_attempts("gpu", 0, "one", [claim]))
