"""report_step: the outcome of a step that a former owner has run goes to its run."""

from __future__ import annotations

import pytest

from streamflow.model.reports import stored_details
from streamflow.store.kernel import LentStep
from tests.kernel.support import NOW, Shard

pytestmark = pytest.mark.anyio


HOST = LentStep("r1/1", "host", NOW, 2)


async def lent(shard: Shard, *steps: LentStep) -> None:
    await shard.acquire("host")
    await shard.start("r1")
    await shard.do(shard.kernel.release_shard(0, shard.token, steps or [HOST]))


async def report(shard: Shard, kind: str = "outcome", step: LentStep = HOST) -> str:
    return await shard.do(shard.kernel.report_step(0, "r1", kind, step, b"\x00x"))


@pytest.mark.parametrize("kind", ["outcome", "returned"])
async def test_the_run_gets_a_message_once_and_the_record_says_so(shard: Shard, kind: str) -> None:
    await lent(shard)
    assert await report(shard, kind) == "a"
    assert (await shard.inbox())[-1] == {"kind": kind.encode(), "run": b"r1", "body": b"\x00x"}
    assert await shard.plain("HGET", shard.keys.steps, "r1/1") == f"host {NOW} 2 reported".encode()
    call = shard.kernel.report_step(0, "r1", kind, HOST, b"\x00x")
    assert await shard.assert_changes_nothing(call) == "a"


async def test_an_outcome_without_a_record_is_only_a_message(shard: Shard) -> None:
    await shard.start("r1")
    assert await report(shard) == "a"
    assert len(await shard.inbox()) == 2
    assert not await shard.plain("EXISTS", shard.keys.steps)


async def test_an_attempt_without_its_record_is_not_returned(shard: Shard) -> None:
    """Its owner runs it itself: a second one must not begin beside it."""
    await shard.start("r1")
    assert await shard.assert_changes_nothing(shard.kernel.report_step(0, "r1", "returned", HOST, b"x")) == "a"


@pytest.mark.parametrize(
    "other",
    [LentStep("r1/1", "next", NOW, 3), LentStep("r1/1", "next", NOW, 2), LentStep("r1/1", "host", NOW, 3)],
    ids=["both", "host", "attempt"],
)
async def test_a_late_outcome_does_not_mark_the_record_of_another_attempt(shard: Shard, other: LentStep) -> None:
    """The host was considered dead, and comes back. Marked, the other attempt could never be lost: its run would wait
    for it forever when its host dies."""
    await lent(shard, other)
    assert await report(shard) == "a"
    record = f"{other.host} {NOW} {other.attempt} wanted".encode()
    assert await shard.plain("HGET", shard.keys.steps, "r1/1") == record


async def test_a_run_that_was_started_again_under_the_id_refuses_it(shard: Shard) -> None:
    await lent(shard)
    later = LentStep("r1/1", "host", NOW + 1, 2)
    assert await shard.assert_changes_nothing(shard.kernel.report_step(0, "r1", "outcome", later, b"x")) == "m"


async def test_a_run_that_does_not_exist_refuses_it(shard: Shard) -> None:
    assert await shard.assert_changes_nothing(shard.kernel.report_step(0, "r1", "outcome", HOST, b"x")) == "m"


async def test_a_run_that_has_ended_refuses_it(shard: Shard) -> None:
    await shard.acquire()
    await shard.start("r1")
    await shard.advance("r1", "completed")
    assert await shard.assert_changes_nothing(shard.kernel.report_step(0, "r1", "outcome", HOST, b"x")) == "e"


@pytest.mark.parametrize("has_time", [False, True], ids=["of its host", "of the owner before"])
@pytest.mark.parametrize(("created", "letter"), [(NOW, "e"), (NOW - 1, "m")])
async def test_a_record_that_an_ended_run_has_left_is_deleted(
    shard: Shard, created: int, letter: str, has_time: bool
) -> None:
    """Its end was committed while the shard was being released."""
    left = LentStep("r1/1", "host", created, 2)
    await shard.acquire("host")
    await shard.start("r1")
    await shard.advance("r1", "completed")
    await shard.do(shard.kernel.release_shard(0, shard.token, [left]))
    if has_time:
        await shard.plain("HSET", shard.keys.details, left.step, stored_details(created, b"half", NOW))
    else:
        await shard.do(shard.kernel.extend_steps(0, [LentStep(left.step, left.host, created, 2, b"half")]))
    assert await report(shard, step=left) == letter
    assert not await shard.plain("EXISTS", shard.keys.steps, shard.keys.details)


async def test_wrong_key_types_leave_nothing_half_written(shard: Shard) -> None:
    await lent(shard)
    call = shard.kernel.report_step(0, "r1", "outcome", HOST, b"x")
    await shard.assert_wrong_types_leave_nothing_half_written(call)
