"""Outcomes that a server loses after it has acknowledged them, and the workers that still have them."""

from __future__ import annotations

import anyio
import pytest
from msgspec import Raw

from streamflow.machine.transition import Outcome
from streamflow.store.connection import Call
from streamflow.worker import recent_outcomes
from streamflow.worker.claims import Claim
from tests.unit.worker.test_worker import CREATED, Bench

pytestmark = pytest.mark.anyio


@pytest.fixture
def it() -> Bench:
    return Bench()


async def report(it: Bench, seq: int) -> None:
    claim = Claim(("gpu", 0), f"{seq}-0", "r", CREATED, seq, 1)
    it.claims.add(claim)
    it.claims.report(claim, Outcome(seq, 1, 0.0, Raw(b"\xc0")))
    await it.claims.report_once()


def reported(it: Bench) -> list[int]:
    return [outcome["seq"] for outcome in it.completed()]


async def test_outcomes_that_a_server_has_lost_are_reported_again_once(it: Bench) -> None:
    recent = it.claims._recent
    for seq in (1, 2):
        await report(it, seq)
    assert not recent.is_needed
    it.store.history_lost("")
    assert recent.is_needed
    await recent.send_again()
    assert reported(it) == [1, 2, 1, 2]
    assert not recent.is_needed
    it.store.history_lost("")
    await recent.send_again()
    assert reported(it) == [1, 2, 1, 2, 1, 2]


async def test_an_outcome_that_is_lost_before_its_reply_comes_is_sent_again(it: Bench) -> None:
    def lose(call: Call[object]) -> str:
        it.store.history_lost("")
        return "a"

    it.store.answers["settle_attempts"] = lose
    await report(it, 1)
    assert it.claims._recent.is_needed
    await it.claims._recent.send_again()
    assert reported(it) == [1, 1]


async def test_the_loop_reports_again_when_a_server_has_another_history(it: Bench) -> None:
    await report(it, 1)
    sent = anyio.Event()
    it.store.answers["report_outcome"] = lambda _: sent.set() or "a"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(it.claims.run_reports)
        await anyio.wait_all_tasks_blocked()
        it.store.history_lost("")
        it.claims.history_changed()
        with anyio.fail_after(5):
            await sent.wait()
        tasks.cancel_scope.cancel()
    assert reported(it) == [1, 1]


async def test_little_is_kept_and_not_for_long(it: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_outcomes, "KEEP_BYTES", 1_000)
    for seq in range(1, 6):
        await report(it, seq)
    it.store.history_lost("")
    await it.claims._recent.send_again()
    assert reported(it)[5:] == [4, 5]
    monkeypatch.setattr(recent_outcomes, "KEEP_SECONDS", 0.0)
    it.store.history_lost("")
    sent = len(reported(it))
    await it.claims._recent.send_again()
    assert len(reported(it)) == sent
