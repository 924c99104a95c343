"""report_outcome: the outcome of a queued step goes to the run that waits for it."""

from __future__ import annotations

import pytest

from tests.kernel.support import NOW, Shard

pytestmark = pytest.mark.anyio


async def test_an_open_run_accepts_the_outcome_in_its_inbox(shard: Shard) -> None:
    await shard.start("r1")
    assert await shard.do(shard.kernel.report_outcome(0, "r1", NOW, b"\x00outcome")) == "a"
    assert (await shard.inbox())[-1] == {"kind": b"outcome", "run": b"r1", "body": b"\x00outcome"}


@pytest.mark.parametrize("status", ["running", "stuck"])
async def test_runs_that_are_not_pending_any_more_accept_it_too(shard: Shard, status: str) -> None:
    await shard.acquire()
    await shard.start("r1")
    await shard.advance("r1", status)
    assert await shard.do(shard.kernel.report_outcome(0, "r1", NOW, b"x")) == "a"


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
async def test_a_run_that_has_ended_refuses_it(shard: Shard, status: str) -> None:
    await shard.acquire()
    await shard.start("r1")
    await shard.advance("r1", status)
    assert await shard.assert_changes_nothing(shard.kernel.report_outcome(0, "r1", NOW, b"x")) == "e"


async def test_a_run_that_does_not_exist_refuses_it(shard: Shard) -> None:
    assert await shard.assert_changes_nothing(shard.kernel.report_outcome(0, "r1", NOW, b"x")) == "m"


@pytest.mark.parametrize("created", [NOW - 1, NOW + 1, 0])
async def test_a_run_that_was_started_again_under_the_id_refuses_it(shard: Shard, created: int) -> None:
    await shard.start("r1")
    assert await shard.assert_changes_nothing(shard.kernel.report_outcome(0, "r1", created, b"x")) == "m"


async def test_an_outcome_that_is_sent_again_is_one_more_message(shard: Shard) -> None:
    """Harmless: the attempt number inside it drops it later."""
    await shard.start("r1")
    complete = shard.kernel.report_outcome(0, "r1", NOW, b"attempt 1")
    assert [await shard.do(complete), await shard.do(complete)] == ["a", "a"]
    assert [m["body"] for m in await shard.inbox() if m["kind"] == b"outcome"] == [b"attempt 1", b"attempt 1"]


async def test_wrong_key_types_leave_nothing_half_written(shard: Shard) -> None:
    await shard.start("r1")
    await shard.assert_wrong_types_leave_nothing_half_written(shard.kernel.report_outcome(0, "r1", NOW, b"x"))
