"""The outcome of a queued attempt names what ran: a failover may have lost the decision that made the attempt."""

from __future__ import annotations

from typing import Any

import pytest

import streamflow as sf
from streamflow.machine.transition import Outcome
from tests.support.machine_driver import Run, kinds, raw, result_of


def app_with(later: bool = False) -> sf.App:
    """`later`: after a deploy that has added a parameter with a default."""
    app = sf.App()

    async def act(what: int) -> int:
        return what

    async def act_later(what: int, how: str = "well") -> int:
        return what

    step = app.step(name="act", queue="gpu")(act_later if later else act)

    @app.workflow
    async def flow(what: int) -> Any:
        return await step(what)

    @app.reducer
    def reducing(state: list[Any], event: sf.Event) -> sf.Decision:
        match event:
            case sf.Started(input=what):
                return sf.Decision(state, [step(what)])
            case sf.StepDone(result=result):
                return sf.Decision(state, [sf.Complete(result)])
        return sf.Decision(state)

    return app


def outcome(mark: bytes, result: int) -> Outcome:
    return Outcome(1, 1, 0.5, raw(result), mark=mark)


@pytest.mark.parametrize("workflow", ["flow", "reducing"])
@pytest.mark.parametrize("crash", [False, True])
def test_the_outcome_of_an_attempt_that_was_lost_is_dropped(workflow: str, crash: bool) -> None:
    lost, mine = (Run(app_with(), workflow, what, crash=crash) for what in (3, 4))
    marks = [run.last.jobs[0].mark for run in (lost, mine)]
    assert len({*marks}) == 2
    assert kinds(mine.advance(outcome(marks[0], 9))) == []
    assert not mine.last.ended
    mine.advance(outcome(marks[1], 16))
    assert result_of(mine.last) == 16


@pytest.mark.parametrize("workflow", ["flow", "reducing"])
def test_an_attempt_from_before_a_deploy_is_known_by_what_was_recorded(workflow: str) -> None:
    run = Run(app_with(), workflow, 4)
    mark = run.last.jobs[0].mark
    run.reload(app_with(later=True))
    run.advance(outcome(mark, 16))
    assert result_of(run.last) == 16


def test_an_outcome_without_a_mark_is_of_an_earlier_release() -> None:
    run = Run(app_with(), "flow", 4)
    run.advance(outcome(b"", 16))
    assert result_of(run.last) == 16
