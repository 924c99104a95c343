"""A paused run: facts are recorded and held, no code is run; wherever the pause begins and ends, a replay agrees."""

from __future__ import annotations

from typing import Any

import pytest

import streamflow as sf
from streamflow.errors import Failure
from streamflow.events import (
    AskReceived,
    CancelRequested,
    PauseEnded,
    RunPaused,
    RunStuck,
    SignalReceived,
    StepRetrying,
)
from streamflow.machine.factory import new_machine, pause_of, rehydrate, was_cancelled
from streamflow.machine.run import RunMachine
from streamflow.machine.transition import Due, Effects, Outcome
from streamflow.model.record import Header, Status
from streamflow.workflow.app import App
from tests.support.machine_driver import Run, kinds, make_app, raw, result_of, with_steps_of

app = make_app()
act = app.steps["act"]
again = act.options(retry=sf.Retry(attempts=5, initial=1, factor=1, jitter=0))

PAUSE = RunPaused("flow", "", "run", "kim", "why", 7)
WHOLE = RunPaused("flow", "", "workflow", "lee", "429", 8)


def app_of(flow: Any) -> App:
    other = with_steps_of(app)
    other.workflow(name="flow")(flow)
    return other


def header_of(run: Run) -> Header:
    return Header(run.machine.status, 1, "c", 1000, 0, run.workflow, run.tenant, run.parent)


def loaded(run: Run, pause: RunPaused | None, other: App | None = None) -> RunMachine:
    """What its owner does when the run is paused or resumed: it reads it again."""
    run.machine.close()
    run.app = other or run.app
    run.machine = rehydrate(
        run.app, run.partition, run.run_id, header_of(run), run.state, run.transitions(), pause=pause
    )
    return run.machine


def done(seq: int, result: object = None, attempt: int = 1) -> Outcome:
    return Outcome(seq, attempt, 0.5, raw(result))


def pauses(run: Run, *inputs: Any, pause: RunPaused = PAUSE) -> Effects:
    loaded(run, pause)
    effects = run.advance(*inputs, after=1)
    assert effects.status is Status.PAUSED
    assert (effects.jobs, list(effects.besides.outbox), effects.ended) == ([], [], False)
    assert pause_of(header_of(run), run.state, run.transitions()) == pause
    return effects


def resumes(run: Run, *inputs: Any) -> Effects:
    assert loaded(run, None).resumable, run.machine.reason
    return run.advance(*inputs, after=1)


async def flow() -> Any:
    first = await act("a")
    got = [await sf.signal("go"), await sf.signal("go")]
    await sf.sleep(5)
    async with sf.timeout(100):
        both = await sf.gather(act("b"), act("c"))
    return [first, *got, *both]


INPUTS: list[list[Any]] = [
    [done(1, "A")],
    [SignalReceived("go", raw(1))],
    [SignalReceived("go", raw(2))],
    [Due()],
    [done(4, "B")],
    [done(5, "C")],
]
WANTED = ["A", 1, 2, "B", "C"]


@pytest.mark.parametrize("ends", range(len(INPUTS) + 1))
@pytest.mark.parametrize("begins", range(len(INPUTS) + 1))
@pytest.mark.parametrize("killed", [False, True])
def test_wherever_a_pause_begins_and_ends_nothing_is_lost(begins: int, ends: int, killed: bool) -> None:
    """Also if its owner dies between any two transitions: the next one goes on from the record."""
    if ends < begins:
        return
    run = Run(app_of(flow), "flow", crash=False)
    waiting: list[list[Any]] = list(INPUTS)
    results: dict[int, str] = {1: "A", 4: "B", 5: "C"}
    pause: RunPaused | None = None
    for turn in range(40):
        if turn == begins and not run.machine.ended:
            pause = PAUSE
            loaded(run, pause)
        if turn == ends and pause is not None:
            pause = None
            assert loaded(run, None).resumable or not run.machine.stuck
            run.advance(after=1)
        if run.machine.ended:
            break
        if killed:
            loaded(run, pause)
        inputs = _next(run, waiting, results)
        run.advance(*inputs, after=6000)
        if pause is not None:
            assert run.machine.status is Status.PAUSED
    assert run.machine.ended
    assert result_of(run.last) == WANTED
    paused = [event for event in run.history if isinstance(event, RunPaused | PauseEnded)]
    assert [type(event) for event in paused] in ([], [RunPaused, PauseEnded])
    replayed = rehydrate(
        run.app, run.partition, run.run_id, Header("running", 1, "c", 1000, 0, "flow", "", ""), b"", run.transitions()
    )
    assert not replayed.diverged, "a replay by any other owner goes the same way"


def _next(run: Run, waiting: list[list[Any]], results: dict[int, str]) -> list[Any]:
    """What happens next: signals come whenever they are sent, steps end that have begun, time passes."""
    for seq in list(results):
        if seq in run.machine.steps:
            return [done(seq, results.pop(seq))]
    for given in waiting:
        if isinstance(given[0], SignalReceived):
            waiting.remove(given)
            return given
    return [Due()]


def test_what_comes_meanwhile_is_recorded_and_delivered_in_order() -> None:
    run = Run(app_of(flow), "flow")
    effects = pauses(run, SignalReceived("go", raw(1)), done(1, "A"), SignalReceived("go", raw(2)))
    assert kinds(effects) == ["RunPaused", "SignalReceived", "StepCompleted", "SignalReceived"]
    assert run.advance(AskReceived("0" * 32, "state", raw(None)), after=1).besides.answers == ()
    effects = resumes(run)
    assert kinds(effects) == ["PauseEnded", "TimerSet"]
    assert effects.status is Status.RUNNING


def test_timers_fire_while_it_is_paused_and_the_code_gets_them_later() -> None:
    async def sleeps() -> str:
        await sf.sleep(5)
        await act("up")
        return "done"

    run = Run(app_of(sleeps), "flow")
    pauses(run)
    assert run.machine.next_due is not None
    assert kinds(run.advance(Due(), after=6000)) == ["TimerFired"]
    assert run.machine.next_due is None
    effects = resumes(run)
    assert kinds(effects) == ["PauseEnded", "StepScheduled"]
    assert len(effects.jobs) == 1


def test_a_failed_attempt_is_decided_about_when_it_goes_on() -> None:
    async def tries() -> Any:
        return await again("x")

    run = Run(app_of(tries), "flow")
    pauses(run)
    effects = run.advance(Outcome(1, 1, 0.5, None, Failure("ValueError", "x")), after=1)
    assert kinds(effects) == ["StepRetrying"]
    assert (effects.jobs, run.machine.next_due) == ([], None)
    effects = resumes(run)
    assert kinds(effects) == ["PauseEnded", "StepRetrying"]
    retrying = effects.events[1]
    assert isinstance(retrying, StepRetrying)
    assert run.machine.next_due == retrying.due
    assert len(run.advance(Due(), after=2000).jobs) == 1


def test_a_retry_that_is_due_does_not_begin() -> None:
    async def tries() -> Any:
        return await again("x")

    run = Run(app_of(tries), "flow")
    run.advance(Outcome(1, 1, 0.5, None, Failure("ValueError", "x")), after=1)
    assert run.machine.next_due is not None
    pauses(run, Due(), pause=WHOLE)
    assert run.machine.next_due is None
    assert run.advance(Due(), after=60_000).jobs == []
    effects = resumes(run, Due())
    assert kinds(effects) == ["PauseEnded"]
    assert [job.attempt for job in effects.jobs] == [2]


def test_a_new_run_of_a_paused_workflow_is_recorded_and_begins_later() -> None:
    @app.workflow(version=3)
    async def versioned() -> Any:
        return await act("a")

    run = Run(app_of(flow), "flow")
    run.app = app
    run.elements.clear()
    run.workflow = "versioned"
    pause = RunPaused("versioned", "", "workflow")
    run.machine = new_machine(app, run.partition, "r", "versioned", pause=pause)
    effects = run.advance(sf.events.RunStarted("versioned", "", raw([])))
    assert kinds(effects) == ["RunStarted", "RunPaused"]
    assert effects.events[0].version == 3, "the code that the run keeps is that of its start"  # type: ignore[union-attr]
    assert kinds(resumes(run)) == ["PauseEnded", "StepScheduled"]


def test_a_cancel_gives_the_code_what_came_and_then_the_cancel() -> None:
    async def cleans() -> None:
        try:
            await sf.signal("go")
            await act("next")
        finally:
            await act("undo")

    run = Run(app_of(cleans), "flow")
    pauses(run, SignalReceived("go", raw(1)))
    effects = resumes(run, CancelRequested("enough"))
    names = ["PauseEnded", "StepScheduled", "CancelRequested", "StepCancelled", "StepScheduled"]
    assert kinds(effects) == names
    assert [job.seq for job in effects.jobs] == [2], "what the signal was for doesn't begin"
    assert was_cancelled(run.transitions())
    assert run.machine.is_cancelling
    loaded(run, PAUSE)
    assert kinds(run.advance(done(2), after=1)) == ["RunPaused", "StepCompleted"], "a pause of its own holds even that"
    assert kinds(resumes(run)) == ["PauseEnded", "RunCancelled"]


def test_a_generation_behind_a_cancel_is_paused_with_its_workflow() -> None:
    async def begins_again(generation: int) -> None:
        try:
            await sf.signal("go")
        except sf.Cancelled:
            raise sf.ContinueAs(generation + 1) from None

    run = Run(app_of(begins_again), "flow", 0)
    run.advance(CancelRequested("once more"))
    assert run.names == ["CancelRequested", "RunContinued"]
    assert not was_cancelled(run.transitions())
    assert not run.machine.is_cancelling


def test_a_terminate_ends_a_paused_run_at_once() -> None:
    run = Run(app_of(flow), "flow")
    pauses(run)
    effects = run.advance(CancelRequested("now", terminate=True), after=1)
    assert kinds(effects) == ["PauseEnded", "CancelRequested", "RunCancelled"]
    assert effects.ended


def test_the_pause_of_the_run_takes_the_place_of_that_of_its_workflow() -> None:
    run = Run(app_of(flow), "flow")
    pauses(run, pause=WHOLE)
    assert run.advance(after=1).events == [], "once is enough"
    assert kinds(pauses(run, pause=PAUSE)) == ["PauseEnded", "RunPaused"]
    assert kinds(resumes(run)) == ["PauseEnded"]


def test_code_that_does_not_fit_any_more_is_stuck_when_the_pause_ends() -> None:
    async def other() -> Any:
        return await sf.sleep(1)

    run = Run(app_of(flow), "flow")
    pauses(run, done(1, "A"))
    machine = loaded(run, None, app_of(other))
    assert machine.diverged is not None
    effects = run.advance(after=1)
    assert kinds(effects) == ["PauseEnded", "RunStuck"]
    assert effects.status is Status.STUCK
    assert kinds(pauses(run)) == ["RunResumed", "RunPaused"], "and a stuck run may be paused"
    machine = loaded(run, None, app_of(flow))
    assert kinds(run.advance(after=1)) == ["PauseEnded"]
    assert not [event for event in run.history[-1:] if isinstance(event, RunStuck)]


def test_a_reducer_keeps_its_pause_in_its_snapshot() -> None:
    other = App()

    @other.reducer(name="flow")
    def tally(state: list[int], event: sf.Event) -> sf.Decision:
        return sf.Decision([*state, event.value] if isinstance(event, sf.Signal) else state)

    run = Run(other, "flow", [])
    run.advance(SignalReceived("add", raw(1)), after=1)
    state = run.state
    pauses(run, SignalReceived("add", raw(2)))
    run.elements.clear()  # only the newest transitions of a reducer are kept
    assert pause_of(header_of(run), run.state, []) == PAUSE
    loaded(run, PAUSE)
    assert kinds(run.advance(SignalReceived("add", raw(3)), after=1)) == ["SignalReceived"]
    assert kinds(resumes(run)) == ["PauseEnded"]
    assert len(run.state) == len(state) + 2, "a run that isn't paused has no byte more for it"
