"""extend_steps: a former owner asks whether the steps that it still runs are needed."""

from __future__ import annotations

import pytest

from streamflow.store.kernel import Batch, LentStep, Put
from tests.kernel.support import NOW, Shard

pytestmark = pytest.mark.anyio

ONE = LentStep("r1/1", "host", NOW, 2)
TWO = LentStep("r2/1", "host", NOW, 1)


async def released(shard: Shard, *lent: LentStep) -> None:
    await shard.acquire("host")
    await shard.do(shard.kernel.release_shard(0, shard.token, lent))


async def test_steps_are_kept_as_long_as_the_record_names_the_host(shard: Shard) -> None:
    await released(shard, ONE, TWO)
    assert await shard.do(shard.kernel.extend_steps(0, [ONE, TWO])) == "kk"
    await shard.acquire("next")
    await shard.do(shard.commit(Batch("c1", puts=[Put(shard.keys.steps, "r1/1", b"")])))
    assert await shard.do(shard.kernel.extend_steps(0, [ONE, TWO])) == "lk"


@pytest.mark.parametrize(
    "other",
    [LentStep("r1/1", "another", NOW, 2), LentStep("r1/1", "host", NOW + 1, 2), LentStep("r1/1", "host", NOW, 1)],
    ids=["host", "run", "attempt"],
)
async def test_another_attempt_is_lost_and_stores_nothing(shard: Shard, other: LentStep) -> None:
    await released(shard, ONE)
    reported = LentStep(other.step, other.host, other.created, other.attempt, b"half")
    assert await shard.assert_changes_nothing(shard.kernel.extend_steps(0, [reported])) == "l"


async def test_details_are_stored_for_the_next_attempt(shard: Shard) -> None:
    await released(shard, ONE)
    await shard.do(shard.kernel.extend_steps(0, [LentStep("r1/1", "host", NOW, 2, b"half")]))
    await shard.do(shard.kernel.extend_steps(0, [ONE]))
    assert await shard.plain("HGETALL", shard.keys.details) == {b"r1/1": b"%d half" % NOW}


async def test_wrong_key_types_leave_nothing_half_written(shard: Shard) -> None:
    await released(shard, ONE)
    await shard.assert_wrong_types_leave_nothing_half_written(shard.kernel.extend_steps(0, [ONE]))
