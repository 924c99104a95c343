"""extend_claims: a worker extends the claims on its entries, and learns which have ended."""

from __future__ import annotations

import pytest

from streamflow.store.kernel import ClaimRef
from tests.kernel.queue import QueuePartition
from tests.kernel.support import Shard, until

pytestmark = pytest.mark.anyio


async def test_extending_a_claim_restarts_its_idle_time(real_shard: Shard) -> None:
    queue = QueuePartition(real_shard)
    [claim] = await queue.taken(queue.step())

    async def idle() -> bool:
        return bool(await queue.expired(idle_ms=30))

    await until(idle, "the entry is idle")
    assert await queue.extend(claim) == "k"
    assert not await queue.expired(idle_ms=30)


async def test_each_claim_has_its_letter_in_order(shard: Shard) -> None:
    queue = QueuePartition(shard)
    one, two, three = await queue.taken(queue.step(), queue.step(seq=2), queue.step(seq=3))
    await queue.enqueue(queue.revoke(seq=2))
    await queue.settle(three)
    assert await queue.extend(one, two, three) == "krl"


async def test_the_last_heartbeat_details_are_kept_until_there_are_newer_ones(shard: Shard) -> None:
    queue = QueuePartition(shard)
    [claim] = await queue.taken(queue.step())
    await queue.extend(ClaimRef(claim.entry, claim.step, b"half"))
    await queue.extend(claim)
    assert await queue.details() == {claim.entry: b"half"}


async def test_an_entry_of_another_worker_is_lost_and_stays_as_it_is(shard: Shard) -> None:
    queue = QueuePartition(shard)
    [claim] = await queue.taken(queue.step(), consumer="other")
    call = shard.kernel.extend_claims("gpu", 0, "one", [ClaimRef(claim.entry, claim.step, b"told")])
    assert await shard.assert_changes_nothing(call) == "l"
    assert await queue.pending() == [(claim.entry, "other")]


async def test_without_group_or_stream_everything_is_lost(shard: Shard) -> None:
    queue = QueuePartition(shard)
    assert await queue.extend(ClaimRef("1-1", "r1/1", b"told")) == "l"
    assert await shard.key_names() == []


async def test_wrong_key_types_leave_nothing_half_written(shard: Shard) -> None:
    queue = QueuePartition(shard)
    [claim] = await queue.taken(queue.step())
    call = shard.kernel.extend_claims("gpu", 0, "one", [ClaimRef(claim.entry, claim.step, b"told")])
    await shard.assert_wrong_types_leave_nothing_half_written(call)
