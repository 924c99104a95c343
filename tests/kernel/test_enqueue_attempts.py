"""enqueue_attempts: attempts and revocations from a shard's outbox, each accepted once, one entry an attempt."""

from __future__ import annotations

import pytest

from streamflow.errors import StoreError
from streamflow.store.kernel import WORKERS, Offer
from tests.kernel.queue import QueuePartition
from tests.kernel.support import Shard

pytestmark = pytest.mark.anyio


async def test_an_attempt_becomes_an_entry_that_a_worker_reads(shard: Shard) -> None:
    queue = QueuePartition(shard)
    assert await queue.enqueue(queue.step(details=b"told", body=b"\x00body")) == "5-1"
    assert await shard.groups(queue.keys.stream) == [WORKERS]
    assert await queue.entries() == [
        {"run": b"r1", "created": b"7", "seq": b"1", "attempt": b"1", "details": b"told", "body": b"\x00body"}
    ]
    [entry] = await queue.read()
    assert await queue.places() == {"r1/1": f"{entry} 7 1 wanted"}


async def test_an_attempt_that_is_enqueued_twice_changes_nothing(shard: Shard) -> None:
    queue = QueuePartition(shard)
    call = shard.kernel.enqueue_attempts("gpu", 0, 3, [queue.step(), queue.step(seq=2), queue.revoke(seq=2)])
    assert await shard.do(call) == "5-3"
    assert await shard.assert_changes_nothing(call) == "5-3"
    assert len(await queue.entries()) == 1


async def test_an_attempt_that_has_finished_is_not_enqueued_again(shard: Shard) -> None:
    queue = QueuePartition(shard)
    one = queue.step()
    [claim] = await queue.taken(one)
    await queue.ack(claim)
    await queue.enqueue(one)
    assert await queue.is_empty()


async def test_each_source_has_its_own_last_number_and_a_higher_epoch_is_newer(shard: Shard) -> None:
    queue = QueuePartition(shard)
    await queue.enqueue(Offer("5-9", "step", "a", 7, 1, 1, b"", b""), source=3)
    assert await queue.enqueue(Offer("5-1", "step", "b", 7, 1, 1, b"", b""), source=4) == "5-1"
    assert await queue.enqueue(Offer("6-1", "step", "c", 7, 1, 1, b"", b""), source=3) == "6-1"
    assert await queue.enqueue(Offer("5-10", "step", "d", 7, 1, 1, b"", b""), source=3) == "6-1"
    assert [entry["run"] for entry in await queue.entries()] == [b"a", b"b", b"c"]


async def test_an_owner_that_got_the_epoch_of_a_lost_one_is_heard(shard: Shard) -> None:
    queue = QueuePartition(shard)
    lost, new = (Offer(f"9-{(owner << 32) + 1}", "step", "r", 7, owner, 1, b"", b"") for owner in (5, 2))
    await queue.enqueue(lost, new)
    await queue.enqueue(new, lost)
    assert [entry["seq"] for entry in await queue.entries()] == [b"5", b"2"]


async def test_nothing_behind_an_attempt_that_was_lost_here_is_accepted(shard: Shard) -> None:
    queue = QueuePartition(shard)
    one, two, three = (queue.step(seq=seq) for seq in (1, 2, 3))
    await queue.enqueue(one)
    call = shard.kernel.enqueue_attempts("gpu", 0, 3, [three], two.number)
    assert await shard.assert_changes_nothing(call) == "GAP"
    assert await shard.do(shard.kernel.enqueue_attempts("gpu", 0, 3, [two], one.number)) == two.number
    assert await shard.do(call) == three.number


async def test_a_newer_attempt_replaces_one_that_waits(shard: Shard) -> None:
    queue = QueuePartition(shard)
    await queue.enqueue(queue.step(attempt=1), queue.step(attempt=2))
    assert [entry["attempt"] for entry in await queue.entries()] == [b"2"]


async def test_an_attempt_that_is_decided_again_replaces_the_one_that_is_there(shard: Shard) -> None:
    queue = QueuePartition(shard)
    await queue.enqueue(queue.step(body=b"lost"), queue.revoke(), queue.step(seq=2, body=b"lost"))
    await queue.enqueue(queue.step(body=b"new"), queue.step(seq=2, body=b"new"))
    assert [entry["body"] for entry in await queue.entries()] == [b"new", b"new"]
    assert [place.split()[1:] for place in (await queue.places()).values()] == [["7", "1", "wanted"]] * 2


async def test_a_newer_attempt_replaces_one_that_a_worker_has(shard: Shard) -> None:
    queue = QueuePartition(shard)
    [old] = await queue.taken(queue.step(attempt=1))
    await queue.extend(type(old)(old.entry, old.step, b"told"))
    await queue.enqueue(queue.step(attempt=2))
    assert (await queue.pending(), await queue.details()) == ([], {})
    assert await queue.extend(old) == "l"
    assert len(await queue.read("two")) == 1


async def test_an_older_attempt_does_not_replace_a_newer_one(shard: Shard) -> None:
    queue = QueuePartition(shard)
    await queue.enqueue(queue.step(attempt=2), queue.step(attempt=1))
    assert [entry["attempt"] for entry in await queue.entries()] == [b"2"]


async def test_a_step_of_a_run_started_again_replaces_that_of_the_earlier_run(shard: Shard) -> None:
    queue = QueuePartition(shard)
    [old] = await queue.taken(queue.step(attempt=3, created=7))
    await queue.enqueue(queue.revoke(attempt=3, created=7))
    await queue.enqueue(queue.step(attempt=1, created=8))
    assert await queue.extend(old) == "l"
    [entry] = await queue.read("two")
    assert await queue.places() == {"r1/1": f"{entry} 8 1 wanted"}
    before = (await queue.places(), await queue.entries())
    await queue.enqueue(queue.step(attempt=4, created=7), queue.revoke(attempt=4, created=7))
    await queue.ack(old)
    assert (await queue.places(), await queue.entries()) == before


async def test_a_revocation_deletes_what_no_worker_has(shard: Shard) -> None:
    queue = QueuePartition(shard)
    await queue.enqueue(queue.step(), queue.step(seq=2), queue.revoke())
    assert list(await queue.places()) == ["r1/2"]
    assert [entry["seq"] for entry in await queue.entries()] == [b"2"]


async def test_a_revocation_marks_what_a_worker_has(shard: Shard) -> None:
    queue = QueuePartition(shard)
    [claim] = await queue.taken(queue.step())
    await queue.enqueue(queue.revoke())
    assert await queue.places() == {"r1/1": f"{claim.entry} 7 1 revoked"}
    assert await queue.extend(claim) == "r"


async def test_a_revocation_of_an_older_attempt_or_of_nothing_changes_nothing(shard: Shard) -> None:
    queue = QueuePartition(shard)
    await queue.enqueue(queue.step(attempt=2))
    before = (await queue.places(), await queue.entries())
    await queue.enqueue(queue.revoke(attempt=1), queue.revoke(run="other"))
    assert (await queue.places(), await queue.entries()) == before


async def test_a_malformed_number_is_refused_before_anything_is_written(shard: Shard) -> None:
    queue = QueuePartition(shard)
    call = shard.kernel.enqueue_attempts("gpu", 0, 3, [queue.step(), Offer("nonsense", "step", "r", 7, 1, 1, b"", b"")])
    answer = await shard.assert_changes_nothing(call)
    assert isinstance(answer, StoreError)
    assert "nonsense" in str(answer)


async def test_wrong_key_types_leave_nothing_half_written(shard: Shard) -> None:
    queue = QueuePartition(shard)
    await queue.enqueue(queue.step())
    call = shard.kernel.enqueue_attempts("gpu", 0, 3, [queue.step(seq=2), queue.revoke()])
    await shard.assert_wrong_types_leave_nothing_half_written(call)
