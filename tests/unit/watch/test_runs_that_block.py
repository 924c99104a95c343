"""Naming the line in which a workflow blocks its daemon, and giving up on code that can't be interrupted."""

from __future__ import annotations

import sys
import threading
import time

import pytest

import streamflow as sf
from streamflow.settings import Settings
from streamflow.watch.blocker import RunNote, workflow_line
from streamflow.watch.watch import Culprit, Watch, _Block
from tests.support.machine_driver import Run


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level("WARNING", "streamflow.watch")
    return caplog


def watching(note: RunNote, *, blocking: float = 0.1, interrupt: float = 0.0, **options: object) -> Watch:
    return Watch("daemon", Settings(blocking=blocking, interrupt=interrupt), note=note, **options)  # pyright: ignore[reportArgumentType]


def test_a_run_that_takes_too_long_is_named_once(warnings: pytest.LogCaptureFixture) -> None:
    watch = watching(RunNote("slow", 100.0), blocking=0.125)
    for look in range(1, 11):
        watch._look_at_run(100.0 + look * 0.0625, 0.0)
    [record] = warnings.records
    assert record.getMessage().startswith("run slow has blocked its daemon for 125 ms at ")
    [line] = watch.blocked.newest()
    assert (line.of, line.count, line.run_id) == ("a workflow", 1, "slow")
    assert line.ms == 625, "until the last look"


def test_runs_that_take_turns_are_not_reported(warnings: pytest.LogCaptureFixture) -> None:
    note, now = RunNote(), 100.0
    watch = watching(note)
    for number in range(20):
        note.since, note.run_id = now, f"r{number}"
        now += 0.09
        watch._look_at_run(now, 0.0)
    assert not warnings.records


def test_between_batches_no_run_is_reported(warnings: pytest.LogCaptureFixture) -> None:
    watch = watching(RunNote("", 0.0))
    for look in range(5):
        watch._look_at_run(100.0 + look, 0.0)
    assert not warnings.records


def test_a_process_that_got_no_processor_time_is_not_blamed_on_a_run(warnings: pytest.LogCaptureFixture) -> None:
    note = RunNote("r", 100.0)
    watch = watching(note)
    watch._look_at_run(160.0, 60.0)  # the first look at this run comes late, as everything did
    note.since = 0.0
    watch._look_at_run(160.1, 0.0)
    note.since = 200.0
    watch._look_at_run(200.05, 0.0)
    watch._look_at_run(260.0, 59.92)  # stopped while the run had its turn
    assert not warnings.records
    watch._look_at_run(320.0, 59.9)  # code that holds on to the interpreter makes looks late, too
    assert len(warnings.records) == 1


def test_a_run_that_can_not_be_interrupted_ends_the_process_once(warnings: pytest.LogCaptureFixture) -> None:
    culprits: list[Culprit] = []
    codes: list[int] = []
    watch = watching(
        RunNote("bad", 100.0), interrupt=5.0, give_up=culprits.append, own_process=True, end_process=codes.append
    )
    for tenths in range(1, 70):
        watch._look_at_run(100.0 + tenths / 10, 0.0)
    assert codes == [], "the loop answers: the note is an old one"
    watch._run = None
    watch._late = _Block(100.0, looks=2)
    for tenths in range(1, 59):
        watch._look_at_run(100.0 + tenths / 10, 0.0)
    assert codes == []
    for tenths in range(60, 70):
        watch._look_at_run(100.0 + tenths / 10, 0.0)
    assert codes == [75]
    [culprit] = culprits
    assert (culprit.run_id, culprit.seq) == ("bad", 0)
    assert "can't be interrupted" in culprit.reason
    assert "run bad: its code has blocked its daemon for 6.0 s" in warnings.text


def test_a_process_that_others_share_goes_silent_instead(warnings: pytest.LogCaptureFixture) -> None:
    culprits: list[Culprit] = []
    codes: list[int] = []
    watch = watching(RunNote("bad", 100.0), interrupt=5.0, give_up=culprits.append, end_process=codes.append)
    watch._late = _Block(100.0, looks=2)
    for tenths in range(1, 70):
        watch._look_at_run(100.0 + tenths / 10, 0.0)
    assert (culprits, codes) == ([], [])
    assert sum("goes silent" in line for line in warnings.messages) == 1


def test_without_a_limit_nothing_is_interrupted_or_ended() -> None:
    codes: list[int] = []
    watch = watching(RunNote("bad", 100.0), interrupt=0.0, own_process=True, end_process=codes.append)
    watch._late = _Block(100.0, looks=2)
    for look in range(1, 100):
        watch._look_at_run(100.0 + look, 0.0)
    assert codes == []


def test_the_owner_wakes_a_watch_that_looks_rarely() -> None:
    note = RunNote()
    watch = watching(note, every=3600.0)
    watch._asked = time.monotonic()  # of the loop, which this test doesn't have
    note.wake = watch._wake
    assert watch.look() == 3600.0
    assert note.asleep
    note.since = time.monotonic()
    note.wake()
    assert (note.asleep, watch._woken.is_set()) == (False, True)
    assert watch.look() == 0.05
    assert not note.asleep
    note.since = 0.0
    assert watch.look() == 0.05, "more may come soon"


def test_the_line_is_the_one_in_the_workflow() -> None:
    app, lines = sf.App(), []

    def library() -> None:
        lines.append(workflow_line(sys._getframe()))

    @app.workflow
    async def flow() -> None:
        library()

    Run(app, "flow")
    line = flow.function.__code__.co_firstlineno + 2
    assert lines == [f"{__file__}:{line} (library())"]


def test_without_a_workflow_on_the_stack_the_line_is_unknown() -> None:
    assert workflow_line(sys._getframe()) == "an unknown line"


def test_a_look_from_another_thread_finds_the_line_of_a_real_run(warnings: pytest.LogCaptureFixture) -> None:
    app, begun, go_on = sf.App(), threading.Event(), threading.Event()

    @app.workflow
    async def flow() -> bool:
        begun.set()
        return go_on.wait(10)

    since = time.monotonic() - 5
    watch = watching(RunNote("r", since))

    def looking() -> None:
        assert begun.wait(10)
        watch._look_at_run(since + 5, 0.0)
        watch._look_at_run(since + 5, 0.0)
        go_on.set()

    other = threading.Thread(target=looking)
    other.start()
    watch._loop_thread = threading.get_ident()
    Run(app, "flow")
    other.join()
    [record] = warnings.records
    line = flow.function.__code__.co_firstlineno + 3
    assert f"{__file__}:{line} (return go_on.wait(10))" in record.getMessage()
