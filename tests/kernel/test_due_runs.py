"""due_runs: which runs are due now, and when the next one is."""

from __future__ import annotations

import pytest

from streamflow.store.kernel import Batch, Reply
from tests.kernel.support import FUTURE, NOW, Shard

pytestmark = pytest.mark.anyio


async def plan(shard: Shard, **due: int) -> None:
    answer = await shard.do(shard.commit(Batch(shard.commit_id(), plans=list(due.items()))))
    assert answer.code is Reply.OK


async def test_an_empty_agenda_has_nothing_due_and_nothing_next(shard: Shard) -> None:
    await shard.acquire()
    fired = await shard.do(shard.kernel.due_runs(0, shard.token, 10, NOW))
    assert (fired.code, fired.due, fired.next) == (Reply.OK, [], None)


async def test_runs_are_due_at_their_time_and_not_before(shard: Shard) -> None:
    await shard.acquire()
    await plan(shard, late=NOW + 50, early=NOW + 10, soon=NOW + 20)
    steps = [(5, [], 10), (9, [], 10), (10, ["early"], 20), (20, ["early", "soon"], 50)]
    for step, due, upcoming in steps:
        fired = await shard.do(shard.kernel.due_runs(0, shard.token, 10, NOW + step))
        assert (fired.due, fired.next) == (due, NOW + upcoming)
    fired = await shard.do(shard.kernel.due_runs(0, shard.token, 10, NOW + 60))
    assert (fired.due, fired.next) == (["early", "soon", "late"], None)


async def test_what_is_due_stays_on_the_agenda_until_a_commit_takes_it_off(shard: Shard) -> None:
    await shard.acquire()
    await plan(shard, r1=NOW)
    fire = shard.kernel.due_runs(0, shard.token, 10, NOW)
    assert (await shard.do(fire)).due == ["r1"]
    assert (await shard.assert_changes_nothing(fire)).due == ["r1"]
    await shard.do(shard.commit(Batch("done", plans=[("r1", None)])))
    assert (await shard.do(fire)).due == []


async def test_runs_whose_steps_are_in_flight_do_not_fire(shard: Shard) -> None:
    await shard.acquire()
    await plan(shard, flying=-1, due=NOW)
    fired = await shard.do(shard.kernel.due_runs(0, shard.token, 10, FUTURE))
    assert (fired.due, fired.next) == (["due"], None)


async def test_the_limit_bounds_the_answer_and_the_earliest_come_first(shard: Shard) -> None:
    await shard.acquire()
    await plan(shard, c=NOW + 3, a=NOW + 1, b=NOW + 2, later=NOW + 100)
    fired = await shard.do(shard.kernel.due_runs(0, shard.token, 2, NOW + 10))
    assert (fired.due, fired.next) == (["a", "b"], NOW + 100)


@pytest.mark.parametrize("stored", [NOW - 3_600_000, FUTURE])
async def test_only_the_owners_time_decides_what_is_due(shard: Shard, stored: int) -> None:
    """Not what a former owner's clock was, nor the server's, which is between `NOW` and `FUTURE`."""
    await shard.acquire(now=stored)
    await plan(shard, r1=NOW, r2=NOW + 1)
    fired = await shard.assert_changes_nothing(shard.kernel.due_runs(0, shard.token, 10, NOW))
    assert (fired.due, fired.next) == (["r1"], NOW + 1)


async def test_a_stale_owner_is_fenced(shard: Shard) -> None:
    old = await shard.acquire("one")
    await plan(shard, r1=NOW)
    await shard.acquire("two")
    fired = await shard.assert_changes_nothing(shard.kernel.due_runs(0, old.token, 10, FUTURE))
    assert (fired.code, fired.due) == (Reply.FENCED, [])


async def test_a_shard_without_an_owner_fences_everybody(shard: Shard) -> None:
    fired = await shard.assert_changes_nothing(shard.kernel.due_runs(0, "1:nobody", 10, NOW))
    assert fired.code is Reply.FENCED


async def test_wrong_key_types_leave_nothing_half_written(shard: Shard) -> None:
    await shard.acquire()
    await plan(shard, r1=NOW)
    await shard.assert_wrong_types_leave_nothing_half_written(shard.kernel.due_runs(0, shard.token, 10, FUTURE))
