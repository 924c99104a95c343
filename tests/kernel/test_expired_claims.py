"""expired_claims: entries whose workers sent no heartbeat for too long, with what the next attempt needs to know."""

from __future__ import annotations

from typing import Any

import pytest

from streamflow.store.kernel import WORKERS, ClaimRef, ExpiredClaim
from tests.kernel.queue import QueuePartition
from tests.kernel.support import FUTURE, Shard

pytestmark = pytest.mark.anyio


async def test_an_idle_entry_is_reported_with_its_worker_and_the_newest_details(real_shard: Shard) -> None:
    queue = QueuePartition(real_shard)
    one, two = await queue.taken(queue.step(run="a/b", attempt=2, details=b"old"), queue.step(seq=7, details=b"old"))
    await queue.extend(ClaimRef(one.entry, one.step, b"new"))
    assert await queue.expired() == [
        ExpiredClaim(one.entry, "one", "a/b", 7, 1, 2, b"new"),
        ExpiredClaim(two.entry, "one", "r1", 7, 7, 1, b"old"),
    ]


async def test_an_entry_that_was_read_just_now_has_not_expired(real_shard: Shard) -> None:
    queue = QueuePartition(real_shard)
    await queue.taken(queue.step())
    assert await queue.expired(idle_ms=60_000) == []


async def test_an_expired_entry_is_reported_until_it_is_acknowledged(real_shard: Shard) -> None:
    queue = QueuePartition(real_shard)
    [claim] = await queue.taken(queue.step())
    assert await queue.expired() == await queue.expired() != []
    await queue.settle(claim)
    assert await queue.expired() == []


async def test_an_entry_with_garbage_keeps_no_other_from_being_reported(real_shard: Shard) -> None:
    queue = QueuePartition(real_shard)
    [claim] = await queue.taken(queue.step())
    fields = ("step", b"\xff/2", "attempt", b"soon \xb2", "body", "x")
    entry: bytes = await real_shard.plain("XADD", queue.keys.stream, "*", *fields)
    await real_shard.plain("HSET", queue.keys.steps, b"\xff/2", f"{entry.decode()} 7 1 wanted")
    await queue.read()
    found = await queue.expired()
    assert [(dead.run_id, dead.created, dead.seq, dead.attempt) for dead in found] == [
        ("r1", 7, 1, 1),
        ("\ufffd", 0, 2, 0),
    ]
    await queue.settle(claim, ClaimRef(entry.decode(), "\ufffd/2"))
    await real_shard.plain("HDEL", queue.keys.steps, b"\xff/2")


async def test_at_most_limit_entries_are_reported(real_shard: Shard) -> None:
    queue = QueuePartition(real_shard)
    await queue.taken(*[queue.step(seq=n) for n in range(1, 6)])
    assert [dead.seq for dead in await queue.expired(limit=2)] == [1, 2]
    assert [dead.seq for dead in await queue.expired(limit=2, after=queue.last)] == [3, 4]
    assert [dead.seq for dead in await queue.expired(limit=2, after=queue.last)] == [5]
    assert queue.last == ""


async def test_large_entries_are_looked_at_in_portions(real_shard: Shard) -> None:
    """What the step had got counts as well as what it reported: the server reads both."""
    queue = QueuePartition(real_shard)
    small, large = b"x" * 1000, b"x" * 600_000
    bodies = [(large, small), (small, large), (small, small), (large, large), (small, small)]
    await queue.taken(*[queue.step(seq=n, details=one, body=two) for n, (one, two) in enumerate(bodies)])
    portions: list[list[int]] = []
    while not portions or queue.last:
        portions.append([dead.seq for dead in await queue.expired(after=queue.last)])
    assert portions == [[0], [1, 2, 3], [4]]


async def test_while_there_are_claims_the_clock_of_the_last_look_is_kept(real_shard: Shard) -> None:
    queue = QueuePartition(real_shard)
    [claim] = await queue.taken(queue.step())
    first, second = [await queue.look(idle_ms=60_000) for _ in range(2)]
    assert (first.before, second.before) == (0, first.clock)
    await queue.settle(claim)
    await queue.look(idle_ms=60_000)
    assert await queue.is_empty()


async def test_a_clock_set_back_is_noticed_until_claims_are_restarted(real_shard: Shard) -> None:
    """Also by a worker that has not got the reply of its first look."""
    queue = QueuePartition(real_shard)
    await queue.taken(queue.step(seq=1), queue.step(seq=2))
    await real_shard.plain("HSET", queue.keys.details, "clock", str(FUTURE))
    assert [(await queue.look(idle_ms=60_000)).before for _ in range(2)] == [FUTURE, FUTURE]
    last = await real_shard.do(queue.kernel.restart_claims(*queue.at, 1))
    assert (await queue.look(idle_ms=60_000)).before == FUTURE
    assert await real_shard.do(queue.kernel.restart_claims(*queue.at, 10, last)) == ""
    assert (await queue.look(idle_ms=60_000)).before == 0


async def test_an_entry_that_waits_for_a_worker_has_not_expired(real_shard: Shard) -> None:
    queue = QueuePartition(real_shard)
    await queue.enqueue(queue.step())
    assert await queue.expired() == []


async def test_an_entry_without_a_step_is_cleaned_up(real_shard: Shard) -> None:
    queue = QueuePartition(real_shard)
    [claim] = await queue.taken(queue.step())
    await real_shard.plain("HDEL", queue.keys.steps, claim.step)
    assert await queue.expired() == []
    assert await queue.is_empty()


async def test_an_idle_consumer_is_deleted_only_if_it_has_no_entries(real_shard: Shard) -> None:
    queue = QueuePartition(real_shard)
    [claim] = await queue.taken(queue.step(), consumer="gone")
    await queue.taken(queue.step(seq=2), consumer="busy")
    await queue.settle(claim)
    await queue.expired(idle_ms=60_000, quiet_ms=-1)
    consumers: Any = await real_shard.plain("XINFO", "CONSUMERS", queue.keys.stream, WORKERS)
    assert [one[one.index(b"name") + 1] for one in consumers] == [b"busy"]


async def test_without_group_or_stream_nothing_has_expired(real_shard: Shard) -> None:
    assert await QueuePartition(real_shard).expired() == []
    assert await real_shard.key_names() == []


async def test_wrong_key_types_leave_nothing_half_written(real_shard: Shard) -> None:
    queue = QueuePartition(real_shard)
    await queue.taken(queue.step())
    await real_shard.assert_wrong_types_leave_nothing_half_written(
        real_shard.kernel.expired_claims("gpu", 0, 0, 1000, 10, "")
    )
