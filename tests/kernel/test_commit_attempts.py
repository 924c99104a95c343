"""commit: attempts and revocations are in their queue with the decision, each once, one entry an attempt."""

from __future__ import annotations

import pytest

from streamflow.errors import StoreError
from streamflow.store.kernel import WORKERS, Batch, Reply
from tests.kernel.queue import QueuePartition
from tests.kernel.support import Shard

pytestmark = pytest.mark.anyio


async def test_an_attempt_becomes_an_entry_that_a_worker_reads(shard: Shard) -> None:
    queue = QueuePartition(shard)
    await queue.enqueue(queue.step(details=b"told", body=b"\x00body"), queue.step(seq=2))
    assert await shard.groups(queue.keys.stream) == [WORKERS]
    assert await queue.entries() == [
        {"step": b"r1/1", "attempt": b"7 1", "body": b"\x00body", "details": b"told"},
        {"step": b"r1/2", "attempt": b"7 1", "body": b"body"},
    ]
    first, second = await queue.read()
    assert await queue.places() == {"r1/1": f"{first} 7 1 wanted", "r1/2": f"{second} 7 1 wanted"}


async def test_each_queue_has_its_own_partition(shard: Shard) -> None:
    gpu, cpu = QueuePartition(shard), QueuePartition(shard, "cpu")
    await gpu.enqueue(gpu.step(), cpu.step(seq=2), gpu.step(seq=3))
    assert [entry["step"] for entry in await gpu.entries()] == [b"r1/1", b"r1/3"]
    assert [entry["step"] for entry in await cpu.entries()] == [b"r1/2"]


async def test_a_commit_that_is_sent_again_adds_no_attempt(shard: Shard) -> None:
    """Also when it was settled meanwhile."""
    queue = QueuePartition(shard)
    await shard.acquire()
    call = shard.commit(Batch("c.1", attempts=[queue.step(), queue.step(seq=2), queue.revoke(seq=2)]))
    assert (await shard.do(call)).code is Reply.OK
    assert (await shard.assert_changes_nothing(call)).code is Reply.DUP
    [entry] = await queue.read()
    assert len(await queue.entries()) == 1
    await queue.settle(type((await queue.taken(queue.step(seq=3)))[0])(entry, "r1/1"))
    assert "r1/1" not in await queue.places()


async def test_a_former_owner_and_a_refused_batch_add_no_attempt(shard: Shard) -> None:
    queue = QueuePartition(shard)
    await shard.acquire("old")
    fenced = shard.commit(Batch("c.1", attempts=[queue.step()]))
    await shard.acquire("new")
    assert (await shard.assert_changes_nothing(fenced)).code is Reply.FENCED
    await shard.start("r1")
    write = await shard.write_of("r1")
    write.expected = b"another header"
    refused = shard.commit(Batch(shard.commit_id(), runs=[write], attempts=[queue.step()]))
    assert (await shard.assert_changes_nothing(refused)).code is Reply.CONFLICT


async def test_an_attempt_is_beside_all_else_that_a_commit_does(shard: Shard) -> None:
    """What follows the attempts among the arguments, and what is before them, arrives where it belongs."""
    queue = QueuePartition(shard)
    await shard.acquire()
    await shard.start("r1", "r2")
    states = [await shard.write_of("r1", state=b"state"), await shard.write_of("r2")]
    batch = Batch("c1", runs=states, attempts=[queue.step(details=b"told"), queue.step(run="r2")], plans=[("r1", 5)])
    batch.cuts = [(1, b"logged")]
    assert (await shard.do(shard.commit(batch))).code is Reply.OK
    assert (await shard.record("r1"))[1] == b"state"
    [(_, logged)] = await shard.stream(shard.keys.log)
    assert logged["r2"] == b"logged"
    assert [entry.get("details") for entry in await queue.entries()] == [b"told", None]


async def test_a_newer_attempt_replaces_one_that_waits(shard: Shard) -> None:
    queue = QueuePartition(shard)
    await queue.enqueue(queue.step(attempt=1), queue.step(attempt=2))
    assert [entry["attempt"] for entry in await queue.entries()] == [b"7 2"]


async def test_an_attempt_that_is_decided_again_stays_with_its_worker(shard: Shard) -> None:
    """An owner that takes over decides again about a retry that is due."""
    queue = QueuePartition(shard)
    [claim] = await queue.taken(queue.step())
    await queue.enqueue(queue.step())
    assert await queue.pending() == [(claim.entry, "one")]
    assert await queue.extend(claim) == "k"


async def test_another_call_under_the_same_number_replaces_the_one_that_is_there(shard: Shard) -> None:
    queue = QueuePartition(shard)
    [claim] = await queue.taken(queue.step(body=b"lost"))
    await queue.enqueue(queue.step(body=b"new"))
    assert [entry["body"] for entry in await queue.entries()] == [b"new"]
    assert await queue.extend(claim) == "l"


async def test_an_attempt_that_was_revoked_and_is_decided_again_is_a_new_entry(shard: Shard) -> None:
    queue = QueuePartition(shard)
    [claim] = await queue.taken(queue.step())
    await queue.enqueue(queue.revoke())
    await queue.enqueue(queue.step())
    assert await queue.extend(claim) == "l"
    assert len(await queue.read("two")) == 1


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
    assert [entry["attempt"] for entry in await queue.entries()] == [b"7 2"]


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
    assert await queue.settle(old, body=b"late") == "l"
    assert (await queue.places(), await queue.entries()) == before


async def test_a_revocation_deletes_what_no_worker_has(shard: Shard) -> None:
    queue = QueuePartition(shard)
    await queue.enqueue(queue.step(), queue.step(seq=2), queue.revoke())
    assert list(await queue.places()) == ["r1/2"]
    assert [entry["step"] for entry in await queue.entries()] == [b"r1/2"]


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


async def test_a_revocation_in_a_queue_that_was_never_used_leaves_no_key(shard: Shard) -> None:
    queue = QueuePartition(shard)
    await queue.enqueue(queue.revoke())
    assert queue.keys.stream not in await shard.key_names()


@pytest.mark.parametrize("name", ["stream", "steps", "details"])
async def test_a_key_of_another_type_leaves_nothing_half_written(shard: Shard, name: str) -> None:
    queue = QueuePartition(shard)
    await shard.acquire()
    await shard.start("r1")
    key = getattr(queue.keys, name)
    await shard.plain("SET", key, "x")
    shard.planted.add(key)
    batch = Batch(shard.commit_id(), runs=[await shard.write_of("r1")], attempts=[queue.step(), queue.revoke(seq=2)])
    answer = await shard.assert_changes_nothing(shard.commit(batch))
    assert isinstance(answer, StoreError)
    assert f"WRONGTYPE {key}" in str(answer)
