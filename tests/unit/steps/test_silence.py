"""When a running step that has sent heartbeats is silent."""

from __future__ import annotations

import contextvars

import pytest

import streamflow as sf
from streamflow.events import NOTHING
from streamflow.model.reports import StepBeat
from streamflow.steps import context as step_context
from streamflow.steps.context import Running, current
from streamflow.steps.silence import PAUSES, beats_of, count_silent
from streamflow.workflow.actions import StepJob

app = sf.App()


@app.step
async def crawl() -> None: ...


def running(run_id: str = "r", *, started: float = 100.0) -> Running:
    return Running(0, run_id, StepJob(1, 1, app.steps["crawl"], NOTHING), started=started)


def beat(record: Running, monkeypatch: pytest.MonkeyPatch, *times: float) -> Running:
    def call() -> None:
        current.set(record)
        for at in times:
            monkeypatch.setattr(step_context.time, "perf_counter", lambda at=at: at)
            sf.heartbeat()

    contextvars.copy_context().run(call)
    return record


def test_a_step_that_never_sends_one_is_not_silent() -> None:
    assert beats_of([running()], 600.0, 1e6) == []


def test_it_is_silent_after_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [beat(running(), monkeypatch, 110.0, 120.0)]
    assert beats_of(steps, 600.0, 720.0) == [StepBeat("r", 1, 1, "crawl", 600.0, False)]
    assert beats_of(steps, 600.0, 720.1) == [StepBeat("r", 1, 1, "crawl", 600.1, True)]
    assert not beats_of(steps, 0.0, 1e6)[0].silent, "0: never"


def test_one_that_has_made_long_pauses_has_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the longest was the one before its first heartbeat."""
    for times in ((400.0,), (101.0, 401.0, 402.0)):
        steps = [beat(running(), monkeypatch, *times)]
        assert not beats_of(steps, 600.0, times[-1] + PAUSES * 300.0)[0].silent
        assert beats_of(steps, 600.0, times[-1] + PAUSES * 300.0 + 0.1)[0].silent


def test_one_that_goes_on_is_not_silent_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    step = beat(running(), monkeypatch, 101.0)
    assert count_silent(beats_of([step], 600.0, 5000.0)) == 1
    assert count_silent(beats_of([beat(step, monkeypatch, 5001.0)], 600.0, 5002.0)) == 0


def test_silent_ones_are_first_and_those_that_are_over_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = beat(running("slow", started=1.0), monkeypatch, 4000.0)
    hung = beat(running("hung"), monkeypatch, 4300.0, 4301.0)
    hung.pause = 1.0
    over = beat(running("over"), monkeypatch, 101.0)
    over.over = True
    fresh = beat(running("fresh"), monkeypatch, 4999.0)
    found = beats_of([fresh, over, slow, hung], 600.0, 5000.0)
    assert [(step.run_id, step.silent) for step in found] == [("hung", True), ("slow", False), ("fresh", False)]
