"""Naming the line in which a workflow blocks its daemon."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from traceback import FrameSummary

import pytest

import streamflow as sf
from streamflow.daemon import watchdog
from streamflow.daemon.watchdog import BlockedRun, Watchdog, user_line
from tests.support.machine_driver import Run

PACKAGE = Path(watchdog.__file__).parents[1]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watchdog, "time", clock)
    return clock


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level("WARNING", "streamflow.watchdog")
    return caplog


def test_a_run_that_takes_too_long_is_named_once(clock: Clock, warnings: pytest.LogCaptureFixture) -> None:
    dog = Watchdog(BlockedRun("slow", 100.0), threshold=0.125)
    for _ in range(10):
        clock.now += 0.0625
        dog.look()
    [record] = warnings.records
    assert record.getMessage().startswith("run slow has blocked its daemon for 125 ms at ")


def test_runs_that_take_turns_are_not_reported(clock: Clock, warnings: pytest.LogCaptureFixture) -> None:
    watch = BlockedRun()
    dog = Watchdog(watch, threshold=0.1)
    for number in range(20):
        watch.since, watch.run_id = clock.now, f"r{number}"
        clock.now += 0.09
        dog.look()
    assert not warnings.records


def test_between_batches_no_run_is_reported(clock: Clock, warnings: pytest.LogCaptureFixture) -> None:
    dog = Watchdog(BlockedRun("", 0.0), threshold=0.1)
    for _ in range(5):
        clock.now += 1
        dog.look()
    assert not warnings.records


def test_a_process_that_got_no_processor_time_is_not_blamed_on_a_run(
    clock: Clock, warnings: pytest.LogCaptureFixture
) -> None:
    watch = BlockedRun("r", 100.0)
    dog = Watchdog(watch, threshold=0.1)
    clock.now += 60  # the first look at this run comes late, as everything did
    dog.look()
    assert not warnings.records
    watch.since = 0.0
    clock.now += 0.1
    dog.look()
    assert not warnings.records


def test_the_line_is_the_one_in_the_workflow() -> None:
    stack = [
        FrameSummary("/site/asyncio/runners.py", 1, "run", line="…"),
        FrameSummary(str(PACKAGE / "daemon" / "batch.py"), 2, "reduce", line="…"),
        FrameSummary(str(PACKAGE / "machine" / "coroutines.py"), 3, "_resume", line="…"),
        FrameSummary("/home/me/flows.py", 4, "flow", line="page = requests.get(url)"),
        FrameSummary("/site/requests/api.py", 5, "get", line="…"),
    ]
    assert user_line(stack) == "/home/me/flows.py:4 (page = requests.get(url))"


def test_without_a_workflow_on_the_stack_the_line_is_unknown() -> None:
    assert user_line([FrameSummary("/home/me/main.py", 4, "main", line="run()")]) == "an unknown line"


def test_a_look_from_another_thread_finds_the_line_of_a_real_run(warnings: pytest.LogCaptureFixture) -> None:
    app, begun, go_on = sf.App(), threading.Event(), threading.Event()

    @app.workflow
    async def flow() -> bool:
        begun.set()
        return go_on.wait(10)

    watch = BlockedRun("r", time.monotonic() - 5)
    dog = Watchdog(watch, threshold=3600)
    dog._threshold = 0.0

    def looking() -> None:
        assert begun.wait(10)
        dog.look()
        dog.look()
        go_on.set()

    other = threading.Thread(target=looking)
    other.start()
    dog._loop_thread = threading.get_ident()
    Run(app, "flow")
    other.join()
    [record] = warnings.records
    line = flow.function.__code__.co_firstlineno + 3
    assert f"{__file__}:{line} (return go_on.wait(10))" in record.getMessage()
