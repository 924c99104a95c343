"""settle_attempts: outcomes go into the inbox, each once and only while wanted, and nothing of their entries stays."""

from __future__ import annotations

import pytest

from streamflow.store.kernel import ClaimRef, Settlement
from tests.kernel.queue import QueuePartition
from tests.kernel.support import Shard

pytestmark = pytest.mark.anyio


async def outcomes(shard: Shard) -> list[tuple[bytes, bytes]]:
    return [(message["run"], message["body"]) for message in await shard.inbox() if message["kind"] == b"outcome"]


async def test_an_outcome_is_in_the_inbox_and_its_entry_is_gone(shard: Shard) -> None:
    queue = QueuePartition(shard)
    one, two = await queue.taken(queue.step(run="a/b"), queue.step(seq=2))
    await queue.extend(ClaimRef(one.entry, one.step, b"told"))
    assert await queue.settle(one, body=b"\x00outcome") == "a"
    assert await outcomes(shard) == [(b"a/b", b"\x00outcome")]
    assert await queue.details() == {}
    assert list(await queue.places()) == ["r1/2"]
    assert await queue.pending() == [(two.entry, "one")]
    assert len(await queue.entries()) == 1


async def test_many_are_settled_at_once(shard: Shard) -> None:
    queue = QueuePartition(shard)
    claims = await queue.taken(*(queue.step(run=f"r{n}") for n in range(1, 6)))
    assert await queue.settle(*claims, body=b"x") == "aaaaa"
    assert await outcomes(shard) == [(f"r{n}".encode(), b"x") for n in range(1, 6)]
    assert await queue.is_empty()


async def test_an_outcome_that_is_reported_twice_is_one_message(shard: Shard) -> None:
    queue = QueuePartition(shard)
    [claim] = await queue.taken(queue.step())
    assert await queue.settle(claim, body=b"first") == "a"
    before = await shard.dump()
    assert await queue.settle(claim, body=b"again") == "l"
    assert await shard.dump() == before


async def test_without_an_outcome_only_the_entry_goes(shard: Shard) -> None:
    queue = QueuePartition(shard)
    [claim] = await queue.taken(queue.step())
    assert await queue.settle(claim) == "r"
    assert await queue.is_empty()
    assert await outcomes(shard) == []


async def test_the_outcome_of_a_revoked_attempt_reaches_nobody(shard: Shard) -> None:
    queue = QueuePartition(shard)
    [claim] = await queue.taken(queue.step())
    await queue.enqueue(queue.revoke())
    assert await queue.settle(claim, body=b"late") == "r"
    assert await queue.is_empty()
    assert await outcomes(shard) == []


async def test_a_newer_attempt_keeps_its_place(shard: Shard) -> None:
    queue = QueuePartition(shard)
    [old] = await queue.taken(queue.step())
    await queue.enqueue(queue.step(attempt=2))
    assert await queue.settle(old, body=b"late") == "l"
    [entry] = await queue.read()
    assert await queue.places() == {"r1/1": f"{entry} 7 2 wanted"}
    assert await outcomes(shard) == []


async def test_an_attempt_that_another_worker_has_given_up_reaches_nobody(shard: Shard) -> None:
    """The first to report has decided what became of it."""
    queue = QueuePartition(shard)
    [claim] = await queue.taken(queue.step())
    assert await queue.settle(claim, body=b"its worker died") == "a"
    assert await queue.settle(claim, body=b"done after all") == "l"
    assert await outcomes(shard) == [(b"r1", b"its worker died")]


async def test_wrong_key_types_leave_nothing_half_written(shard: Shard) -> None:
    queue = QueuePartition(shard)
    [claim] = await queue.taken(queue.step())
    call = shard.kernel.settle_attempts("gpu", 0, [Settlement(claim.entry, claim.step, b"outcome")])
    await shard.assert_wrong_types_leave_nothing_half_written(call)
