"""Reducers: events in, decisions out, and a snapshot that is all they need."""

from __future__ import annotations

from typing import Any

import msgspec

from streamflow import events
from streamflow.errors import Failure
from streamflow.events import CancelRequested, ChildCompleted, SignalReceived
from streamflow.machine.transition import Due
from streamflow.workflow import api as sf
from streamflow.workflow.app import App
from streamflow.workflow.reducer import (
    CancelRequest,
    ChildFailure,
    Complete,
    Decision,
    Event,
    Fail,
    Signal,
    Started,
    StepDone,
    StepFailure,
    TimerDone,
)
from streamflow.workflow.retry import NO_RETRY, Retry
from tests.support.machine_driver import Run, failure_in, kinds, raw, result_of


class Seen(msgspec.Struct):
    events: list[str] = msgspec.field(default_factory=list[str])


class Strict(msgspec.Struct):
    events: list[int] = msgspec.field(default_factory=list[int])


app = App(parks=())


@app.step(retry=NO_RETRY)
async def act(x: int) -> int:
    return x


@app.workflow
async def child() -> int:
    return 1


@app.reducer
def agent(state: Seen, event: Event) -> Decision:
    state.events.append(type(event).__name__)
    match event:
        case Started(kind):
            return Decision(state, [act.options(tag=str(kind), timeout=9)(1), sf.sleep(60, tag="late")])
        case StepDone(tag=tag, result=result):
            return Decision(state, [child.options(tag=f"{tag}{result}")()])
        case StepFailure(failure=failure):
            return Decision(state, [Fail(str(failure))])
        case ChildFailure(tag=tag, run_id=run_id, failure=failure):
            return Decision(state, [Complete([tag, run_id, failure.message, state.events])])
        case Signal("stop", value):
            return Decision(state, [Complete(value)])
        case Signal("boom"):
            raise ValueError("boom")
        case Signal("nonsense"):
            return Decision(state, [sf.signal("x")])
        case TimerDone(tag=tag):
            return Decision(state, [sf.send_signal("other", tag)])
        case CancelRequest("politely"):
            return Decision(state, [Complete("cleaned up")])
        case _:
            return Decision(state)


def test_a_reducer_gets_events_and_its_commands_are_decisions() -> None:
    run = Run(app, "agent", "in")
    assert kinds(run.last) == ["RunStarted", "StepScheduled", "TimerSet"]
    assert run.last.jobs[0].timeout == 9
    assert run.machine.next_due == 61_000
    assert kinds(run.done(1, 5)) == ["StepCompleted", "ChildStarted"]
    assert kinds(run.advance(Due(), after=60_000)) == ["TimerFired", "SignalSent"]
    assert [(m.kind, m.target) for m in run.last.besides.outbox] == [("signal", "other")]
    run.advance(events.ChildFailed(3, "child", Failure("E", "broke")))
    assert result_of(run.last) == ["in5", "r.3", "broke", ["Started", "StepDone", "TimerDone", "ChildFailure"]]


def test_a_reducer_goes_on_from_its_snapshot_alone() -> None:
    run = Run(app, "agent", "in")
    run.elements.clear()
    machine = run.reload()
    assert [(job.seq, job.timeout) for job in machine.running_jobs()] == [(1, 9)]
    assert machine.in_flight
    assert machine.next_due == 61_000
    assert machine.events_count == 3
    run.done(1, 5)
    run.reload()
    assert kinds(run.advance(Due(), after=60_000)) == ["TimerFired", "SignalSent"]
    run.reload()
    run.advance(events.ChildFailed(3, "child", Failure("E", "broke")))
    assert result_of(run.last)[:2] == ["in5", "r.3"]


def test_a_reducer_completes_fails_and_is_cancelled() -> None:
    run = Run(app, "agent")
    assert result_of(run.advance(SignalReceived("stop", raw({"a": [1]})))) == {"a": [1]}
    run = Run(app, "agent")
    assert failure_in(run.failed(1)) == Failure("Fail", "ValueError: no")
    run = Run(app, "agent")
    assert kinds(run.advance(CancelRequested("now"))) == ["CancelRequested", "RunCancelled"]
    run = Run(app, "agent")
    assert result_of(run.advance(CancelRequested("politely"))) == "cleaned up"


def test_an_exception_or_a_wrong_command_fails_the_run() -> None:
    run = Run(app, "agent")
    assert failure_in(run.advance(SignalReceived("boom", raw(1)))).kind == "ValueError"
    run = Run(app, "agent")
    failure = failure_in(run.advance(SignalReceived("nonsense", raw(1))))
    assert failure.kind == "UsageError"
    assert "signals are received as events" in failure.message


def test_a_reducer_that_returns_no_decision_or_a_wrong_state_fails_the_run() -> None:
    local = App(parks=())

    @local.reducer(name="none")
    def nothing(state: int, event: Event) -> Any:
        return None

    @local.reducer
    def odd(state: int, event: Event) -> Decision:
        return Decision(object())

    assert "sf.Decision" in failure_in(Run(local, "none").last).message
    assert failure_in(Run(local, "odd").last).kind == "PayloadInvalid"


def test_a_state_that_its_own_type_cannot_read_is_never_committed(crash: bool) -> None:
    local = App()

    @local.reducer
    def total(state: Strict, event: Event) -> Decision:
        if isinstance(event, Signal):
            state.events.append(event.value)
        return Decision(state)

    run = Run(local, "total", None, crash=crash)
    run.advance(SignalReceived("add", raw(1)))
    failure = failure_in(run.advance(SignalReceived("add", raw(1.5))))
    assert failure.kind == "PayloadInvalid"
    assert "the state of reducer total is not a Strict: Expected `int`, got `float`" in failure.message
    assert run.last.ended


def test_a_state_in_memory_is_as_it_would_be_read_from_the_record(crash: bool) -> None:
    """Also a large one, which isn't kept decoded."""
    local = App()

    @local.reducer
    def collect(state: dict[str, Any], event: Event) -> Decision:
        match event:
            case Signal("end"):
                return Decision(state, [Complete([type(value).__name__ for value in state.values()])])
            case Signal(name, value):
                return Decision({**state, name: (value,)})
            case _:
                return Decision(state)

    for value in ("x", "x" * 5000):
        run = Run(local, "collect", None, crash=crash)
        run.advance(SignalReceived("one", raw(value)))
        run.advance(SignalReceived("two", raw(value)), SignalReceived("end", raw(None)))
        assert result_of(run.last) == ["list", "tuple"]


def test_a_retry_and_its_overrides_survive_in_the_snapshot() -> None:
    local = App()

    @local.step
    def work() -> int:
        return 1

    @local.reducer
    def flow(state: int, event: Event) -> Decision:
        if isinstance(event, Started):
            return Decision(state, [work.options(retry=Retry(attempts=2, jitter=0, never=(KeyError,)))()])
        return Decision(state, [Complete(type(event).__name__)])

    run = Run(local, "flow")
    run.failed(1)
    machine = run.reload()
    assert machine.next_due == run.at + 1000
    assert not machine.in_flight
    assert [job.attempt for job in run.advance(Due(), after=1000).jobs] == [2]
    run.reload()
    run.advance(Due(), after=1000)
    assert result_of(run.failed(1, attempt=2)) == "StepFailure"


def test_a_state_that_the_code_cannot_read_makes_the_run_stuck() -> None:
    run = Run(app, "agent", "in")
    other = App()
    other.steps["act"] = act

    @other.reducer(name="agent")
    def changed(state: Strict, event: Event) -> Decision:
        return Decision(state)

    machine = run.reload(other)
    assert "state of reducer agent" in machine.reason
    assert kinds(run.done(1, 5)) == ["RunStuck", "StepCompleted"]
    run.reload(other)
    assert kinds(run.advance(Due(), after=60_000)) == ["TimerFired"]
    assert run.reload(app).resumable
    assert kinds(run.advance()) == ["RunResumed", "ChildStarted", "SignalSent"]
    assert run.last.besides.outbox[0].target == "r.3"
    run.reload()
    run.advance(events.ChildFailed(3, "child", Failure("E", "broke")))
    assert result_of(run.last)[0] == "in5"


def test_an_unregistered_reducer_waits_with_its_facts() -> None:
    run = Run(app, "agent", "in")
    empty = App()
    run.reload(empty)
    assert kinds(run.done(1, 5)) == ["RunStuck", "StepCompleted"]
    run.reload(app)
    assert kinds(run.advance()) == ["RunResumed", "ChildStarted"]

    run = Run(empty, "agent", "in")
    assert kinds(run.last) == ["RunStarted", "RunStuck"]
    run.advance(SignalReceived("stop", raw(4)))
    run.reload(app)
    assert kinds(run.advance()) == ["RunResumed", "StepScheduled", "TimerSet", "RunCompleted"]
    assert result_of(run.last) == 4


def test_random_values_of_a_reducer_do_not_depend_on_where_it_ran() -> None:
    local = App()

    @local.reducer
    def flow(state: list[float], event: Event) -> Decision:
        return Decision([*state, sf.random()], [Complete(state)] if isinstance(event, Signal) and event.value else [])

    results: list[Any] = []
    for reload in (False, True):
        run = Run(local, "flow")
        for last in (0, 0, 1):
            if reload:
                run.reload()
            run.advance(SignalReceived("s", raw(last)), after=1)
        results.append(result_of(run.last))
    assert results[0] == results[1]
    assert len(set(results[0])) == 3


class Stock(msgspec.Struct):
    seen: list[float] = msgspec.field(default_factory=list[float])


def _stock(queue: str | None = None) -> App:
    other = App()

    @other.step(name="pack", queue=queue, retry=NO_RETRY)
    async def pack(x: int) -> int:
        return x

    @other.workflow(name="audit")
    async def audit() -> int:
        return 1

    @other.reducer
    def stock(state: Stock, event: Event) -> Decision:
        match event:
            case Started():
                return Decision(state, [pack(1), audit.options(on_parent_end="wait")()])
            case Signal("end"):
                return Decision(state, [Complete(state.seen)])
            case Signal("order"):
                return Decision(state, [pack(2)])
            case _:
                state.seen.append(sf.random())
                return Decision(state)

    return other


def _signal(name: str) -> SignalReceived:
    return SignalReceived(name, raw(None))


def test_a_deploy_that_names_another_queue_leaves_an_attempt_where_it_is() -> None:
    run = Run(_stock(), "stock", None)
    run.reload(_stock(queue="gpu"))
    assert [job.seq for job in run.machine.running_jobs()] == [1]
    run = Run(_stock(queue="gpu"), "stock", None)
    run.reload(_stock())
    assert run.machine.running_jobs() == []


def test_an_ended_reducer_gets_no_event_that_came_while_it_was_stuck() -> None:
    run = Run(_stock(), "stock", None)
    run.reload(App())
    run.advance(_signal("end"), _signal("order"))
    run.reload(_stock())
    run.advance(_signal("order"))
    assert kinds(run.last) == ["RunResumed", "StepCancelled", "SignalReceived"]
    run.advance(ChildCompleted(2, "audit", raw(1)))
    assert result_of(run.last) == []


def test_a_stuck_reducer_that_only_waits_for_a_child_ends() -> None:
    """Then it is not counted as stuck."""
    run = Run(_stock(), "stock", None)
    run.advance(_signal("end"))
    run.reload(App())
    run.advance(ChildCompleted(2, "audit", raw(1)))
    assert kinds(run.last) == ["RunStuck", "ChildCompleted", "RunResumed", "RunCompleted"]


def test_a_reducer_that_resumes_draws_no_random_value_twice() -> None:
    run = Run(_stock(), "stock", None)
    run.reload(App())
    run.advance(_signal("held"))
    run.reload(_stock())
    run.advance(_signal("new"), _signal("end"))
    run.advance(ChildCompleted(2, "audit", raw(1)))
    values = result_of(run.last)
    assert len(values) == len(set(values)) == 2
