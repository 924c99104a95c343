"""Which steps the leading daemon finds silent: those that daemons and workers that live say."""

from __future__ import annotations

import pytest

from streamflow.daemon.fleet import Fleet
from streamflow.daemon.silent_steps import MAX_NAMED, SilentSteps
from streamflow.model.reports import StepBeat
from streamflow.settings import Settings
from streamflow.store.workers import WorkerHeartbeat
from streamflow.views.attention import Silent
from streamflow.wire import Heartbeat

CLOCK = 1_700_000_000_000
SILENT = StepBeat("r", 1, 2, "crawl", 700.0, True)
SLOW = StepBeat("q", 1, 1, "crawl", 900.0)


def daemon(*beats: StepBeat, age: int = 0, ahead: int = 0) -> Heartbeat:
    return Heartbeat(name="d", clock=CLOCK + ahead - age, ahead=ahead, silent=list(beats), silent_steps=len(beats))


def fleet(*beats: StepBeat) -> Fleet:
    return Fleet([], [WorkerHeartbeat(name="w", timeout=5.0, sent=CLOCK, beats=list(beats))], CLOCK)


@pytest.mark.parametrize(
    ("daemons", "workers", "found"),
    [
        ([daemon(SILENT)], fleet(), [Silent("crawl", "r", 2, CLOCK - 700_000, "daemon d")]),
        ([daemon(SILENT, ahead=3_600_000)], fleet(), [Silent("crawl", "r", 2, CLOCK + 2_900_000, "daemon d")]),
        ([daemon(SILENT, age=60_000)], fleet(), []),
        ([daemon(), Heartbeat()], fleet(SILENT, SLOW), [Silent("crawl", "r", 2, CLOCK - 700_000, "worker w")]),
        ([], fleet(SLOW), []),
    ],
)
def test_steps_of_processes_that_live_are_found(daemons: list[Heartbeat], workers: Fleet, found: list[Silent]) -> None:
    it = SilentSteps(Settings())
    assert it.look(workers, daemons) is bool(found)
    assert it.found == found
    assert it.look(workers, daemons) is False, "nothing has changed"


def test_those_that_have_been_silent_longest_are_named() -> None:
    beats = [StepBeat(f"r{n}", 1, 1, "crawl", 100.0 + n, True) for n in range(MAX_NAMED + 5)]
    it = SilentSteps(Settings())
    it.look(fleet(), [daemon(*beats)])
    assert [one.run_id for one in it.found] == [f"r{n}" for n in reversed(range(5, MAX_NAMED + 5))]


def test_a_daemon_that_leads_no_more_knows_of_none() -> None:
    it = SilentSteps(Settings())
    it.look(fleet(SILENT), [])
    it.forget()
    assert it.found == []
