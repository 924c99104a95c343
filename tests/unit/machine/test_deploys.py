"""What a deploy does to a run in the middle: whatever doesn't fit parks it, and the next one that fits resumes it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from streamflow.events import (
    AskReceived,
    ChildStarted,
    RunFailed,
    RunStuck,
    SignalReceived,
    StepRetrying,
    StepScheduled,
)
from streamflow.machine import run as running
from streamflow.machine.transition import Due
from streamflow.model.codec import DECLINED
from streamflow.workflow import api as sf
from streamflow.workflow.app import App
from streamflow.workflow.reducer import Decision
from streamflow.workflow.retry import NO_RETRY, Retry
from tests.support.machine_driver import Run, kinds, plain, raw, result_of

Body = Callable[[App], Any]


def app_of(body: Body, *steps: Callable[..., Any], **options: Any) -> App:
    """An app with the workflow that `body` makes. The steps are its functions, under their own names."""
    app = App()
    for step in steps:
        app.step(name=step.__name__, **options)(step)
    app.workflow(name="flow")(body(app))
    return app


def stuck_reason(run: Run, app: App) -> str:
    """Why the run doesn't continue with the code of `app`; empty when it does."""
    return run.reload(app).reason


# --- parameters -------------------------------------------------------------------------------------------------------


def move(source: str, target: str) -> str:
    return f"from {source} to {target}"


def reordered() -> Callable[..., Any]:
    def move(target: str, source: str, speed: int = 1) -> str:
        return f"from {source} to {target}"

    return move


def by_keyword(app: App) -> Any:
    async def flow() -> Any:
        return await app.steps["move"](source="A", target="B")

    return flow


def by_position(app: App) -> Any:
    async def flow() -> Any:
        return await app.steps["move"]("A", "B")

    return flow


def by_other_position(app: App) -> Any:
    async def flow() -> Any:
        return await app.steps["move"]("B", "A")

    return flow


def test_arguments_by_keyword_follow_parameters_that_a_deploy_moves() -> None:
    run = Run(app_of(by_keyword, move), "flow")
    run.failed(1)
    assert not stuck_reason(run, app_of(by_keyword, reordered()))
    (job,) = run.advance(Due(), after=60_000).jobs
    args, kwargs = job.step.parameters.decode(job.args)
    assert job.step.function(*args, **kwargs) == "from A to B"


def test_arguments_recorded_by_position_replay_for_a_call_by_keyword() -> None:
    """Histories from before calls by keyword were recorded by name."""
    run = Run(app_of(by_position, move), "flow")
    assert plain(run.history[1].args) == ["A", "B"]  # type: ignore[union-attr]
    assert not stuck_reason(run, app_of(by_keyword, move))


def test_arguments_by_position_are_never_swapped() -> None:
    run = Run(app_of(by_position, move), "flow")
    run.failed(1)
    reason = stuck_reason(run, app_of(by_other_position, reordered()))
    assert 'the history has StepScheduled(1, move) with ["A","B"]' in reason
    assert kinds(run.advance(Due(), after=10**6)) == ["RunStuck"]
    assert run.last.jobs == [], "the attempt that is due waits"
    assert run.machine.next_due is None
    assert not stuck_reason(run, app_of(by_position, move))
    assert kinds(run.advance(Due())) == ["RunResumed"]
    assert [job.attempt for job in run.last.jobs] == [2]


def test_a_stuck_run_starts_nothing_until_it_resumes() -> None:
    run = Run(app_of(by_position, move), "flow")
    assert [job.seq for job in run.reload().running_jobs()] == [1]
    machine = run.reload(app_of(by_other_position, move))
    assert machine.running_jobs() == []
    assert not machine.in_flight
    run.advance()
    assert [job.attempt for job in run.reload(app_of(by_position, move)).running_jobs()] == [1]
    assert kinds(run.done(1, "x")) == ["RunResumed", "StepCompleted", "RunCompleted"]


def charge(cents: int) -> str:
    return f"{cents}"


def in_text() -> Callable[..., Any]:
    def charge(cents: str) -> str:
        return cents

    return charge


def charges(app: App) -> Any:
    async def flow() -> Any:
        return await app.steps["charge"](5)

    return flow


def test_a_step_whose_parameters_do_not_fit_any_more_parks_its_run() -> None:
    run = Run(app_of(charges, charge), "flow")
    run.failed(1)
    reason = stuck_reason(run, app_of(charges, in_text()))
    assert reason.startswith("step charge (number 1) was called before a deploy, and doesn't fit now: the input of")
    assert "Expected `str`, got `int`" in reason
    assert kinds(run.advance(Due(), after=60_000)) == ["RunStuck"]
    assert run.last.jobs == []
    assert stuck_reason(run, app_of(charges, in_text())), "the next one doesn't fit either: it doesn't resume"
    assert not stuck_reason(run, app_of(charges, charge))
    assert [job.attempt for job in run.advance(Due()).jobs] == [2]
    assert result_of(run.done(1, "5", attempt=2)) == "5"


def test_arguments_that_this_very_code_gets_wrong_fail_the_step() -> None:
    run = Run(app_of(charges, in_text()), "flow")
    effects = run.failed(1, "UnfitArguments", bases=("PayloadInvalid", DECLINED))
    assert kinds(effects) == ["StepFailed", "RunFailed"]
    assert effects.events[0].failure.kind == "PayloadInvalid"  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["UnfitArguments", "UnknownStep"])
def test_an_attempt_that_a_worker_declines_counts_for_nothing(kind: str, crash: bool) -> None:
    run = Run(app_of(charges, charge, retry=NO_RETRY, queue="q"), "flow", crash=crash)
    for attempt in range(1, 30):
        assert kinds(run.failed(1, kind, attempt, bases=(DECLINED,))) == ["StepRetrying"]
        assert run.history[-1].declined  # type: ignore[union-attr]
        delay = run.machine.next_due or 0
        assert delay - run.at <= 66_000
        assert [job.attempt for job in run.advance(Due(), after=70_000).jobs] == [attempt + 1]
    assert kinds(run.failed(1, attempt=30)) == ["StepFailed", "RunFailed"], "a failure does count"


def test_a_reducer_whose_open_step_does_not_fit_is_parked_and_resumes() -> None:
    def app_with(step: Callable[..., Any], retry: Retry) -> App:
        app = App()
        app.step(name="charge", retry=retry)(step)

        @app.reducer
        def flow(state: int, event: Any) -> Decision:
            return Decision(state + 1, [app.steps["charge"](5)] if not state else [])

        return app

    run = Run(app_with(charge, Retry(attempts=2)), "flow", None)
    assert "doesn't fit now" in stuck_reason(run, app_with(in_text(), Retry(attempts=2)))
    assert run.machine.running_jobs() == []
    assert kinds(run.failed(1)) == ["RunStuck", "StepRetrying"]
    assert run.machine.next_due is None
    assert not stuck_reason(run, app_with(charge, Retry(attempts=2)))
    assert [job.attempt for job in run.advance(Due(), after=10_000).jobs] == [2]
    assert kinds(run.last) == ["RunResumed"]


# --- options of calls, known from the code alone ----------------------------------------------------------------------


def patient(retry: Retry) -> Body:
    def body(app: App) -> Any:
        async def flow() -> Any:
            return await app.steps["charge"].options(retry=retry)(5)

        return flow

    return body


@pytest.mark.parametrize(
    ("retry", "resumed"),
    [
        (Retry(attempts=3), ["StepRetrying"]),
        (NO_RETRY, ["StepFailed", "RunFailed"]),
        (Retry(attempts=3, never="LookupError"), ["StepFailed", "RunFailed"]),
        (Retry(within=60), ["StepRetrying"]),
    ],
)
def test_the_policy_of_a_call_decides_when_its_run_resumes(retry: Retry, resumed: list[str]) -> None:
    """Neither a failure for good that the call's own policy would have retried, nor a retry that it forbids."""
    run = Run(app_of(patient(retry), charge), "flow")
    run.reload(app_of(by_position, move))
    assert kinds(run.failed(1, "KeyError", bases=("LookupError",))) == ["RunStuck", "StepRetrying"]
    assert not run.failed(1, "KeyError").events, "the same attempt fails once"
    run.reload(app_of(by_position, move))
    assert not stuck_reason(run, app_of(patient(retry), charge))
    assert run.machine.running_jobs() == []
    assert kinds(run.advance(after=10**7)) == ["RunResumed", *resumed], "the time that it was stuck doesn't count"
    if not run.last.ended:
        assert not run.reload().reason
        (job,) = run.advance(Due()).jobs
        assert job.attempt == 2
        assert result_of(run.done(1, "5", attempt=2)) == "5"


def test_lost_workers_are_counted_while_a_run_is_stuck() -> None:
    run = Run(app_of(patient(NO_RETRY), charge), "flow")
    run.reload(app_of(by_position, move))
    assert kinds(run.failed(1, "WorkerLost")) == ["RunStuck", "StepRetrying"]
    assert not stuck_reason(run, app_of(patient(NO_RETRY), charge))
    assert [job.attempt for job in run.advance(Due()).jobs] == [2]


# --- timers -----------------------------------------------------------------------------------------------------------


def sleeps(seconds: float) -> Body:
    def body(_: App) -> Any:
        async def flow() -> str:
            await sf.sleep(seconds)
            return "slept"

        return flow

    return body


def waits(name: str, seconds: float) -> Body:
    def body(_: App) -> Any:
        async def flow() -> str:
            try:
                return await sf.signal(name, str, timeout=seconds)
            except TimeoutError:
                return "late"

        return flow

    return body


def limits(seconds: float) -> Body:
    def body(_: App) -> Any:
        async def flow() -> str:
            try:
                async with sf.timeout(seconds):
                    return await sf.signal("go", str)
            except TimeoutError:
                return "late"

        return flow

    return body


@pytest.mark.parametrize(
    ("before", "after", "result"),
    [
        (sleeps(5), sleeps(7), "slept"),
        (sleeps(7), sleeps(5), "slept"),
        (waits("go", 5), waits("go", 500), "late"),
        (limits(5), limits(500), "late"),
    ],
)
def test_a_deploy_may_change_a_duration_and_set_timers_keep_theirs(before: Body, after: Body, result: str) -> None:
    run = Run(app_of(before), "flow")
    due = run.machine.next_due or math.inf
    assert not stuck_reason(run, app_of(after))
    assert run.machine.next_due == due
    assert not run.advance(Due(), after=int(due) - run.at - 1).events
    assert result_of(run.advance(Due(), after=1)) == result


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        (sleeps(5), waits("go", 5), "TimerSet(1, go)"),
        (waits("go", 5), waits("stop", 5), "TimerSet(1, stop)"),
        (limits(5), sleeps(5), "TimerSet(1)"),
    ],
)
def test_a_timer_for_something_else_is_a_divergence(before: Body, after: Body, found: str) -> None:
    assert f"the code did {found}" in stuck_reason(Run(app_of(before), "flow"), app_of(after))


# --- signals, questions, children -------------------------------------------------------------------------------------


def receives(type_: Any, count: int = 2) -> Body:
    def body(_: App) -> Any:
        async def flow() -> list[Any]:
            return [await sf.signal("n", type_) for _ in range(count)]

        return flow

    return body


def test_a_signal_that_was_taken_is_not_lost_when_its_type_changes() -> None:
    run = Run(app_of(receives(int)), "flow")
    run.advance(SignalReceived("n", raw(1)))
    reason = stuck_reason(run, app_of(receives(str)))
    assert "the history has a signal n that the code took, the code did not accept it: the value of signal n" in reason
    run.advance(SignalReceived("n", raw("x")))
    run.advance(SignalReceived("n", raw(2)))
    assert not stuck_reason(run, app_of(receives(int)))
    assert result_of(run.advance()) == [1, 2]
    assert kinds(run.last) == ["RunResumed", "SignalSkipped", "RunCompleted"]


def test_a_signal_that_was_dropped_stays_dropped_whatever_its_type_is_now() -> None:
    run = Run(app_of(receives(int, 3)), "flow")
    run.advance(SignalReceived("n", raw("x")), SignalReceived("n", raw(1)))
    assert not stuck_reason(run, app_of(receives(Any, 3)))
    run.advance(SignalReceived("n", raw("y")))
    run.reload()
    assert result_of(run.advance(SignalReceived("n", raw(2)))) == [1, "y", 2]


def test_a_dropped_signal_is_found_behind_a_patch_without_a_question() -> None:
    def patched(_: App) -> Any:
        async def flow() -> Any:
            await sf.signal("begin")
            sf.patched("strict")
            return await sf.signal("n", int)

        return flow

    def cleaned(type_: Any) -> Body:
        def body(_: App) -> Any:
            async def flow() -> Any:
                await sf.signal("begin")
                return await sf.signal("n", type_)

            return flow

        return body

    run = Run(app_of(patched), "flow")
    run.advance(SignalReceived("n", raw("x")), SignalReceived("begin", raw(None)))
    assert kinds(run.last)[-2:] == ["Patched", "SignalSkipped"]
    for type_ in (int, Any):
        assert not stuck_reason(run, app_of(cleaned(type_)))
    assert result_of(run.advance(SignalReceived("n", raw(2)))) == 2


def answers(type_: Any, value: Any, *, refuses: bool = False) -> Body:
    def body(_: App) -> Any:
        async def flow() -> None:
            while True:
                question = await sf.question("what", type_)
                if refuses:
                    question.refuse("no")
                else:
                    question.answer(value)

        return flow

    return body


def asked(value: object = None) -> AskReceived:
    return AskReceived("a" * 32, "what", raw(value))


def test_another_answer_is_a_divergence_that_shows_both() -> None:
    run = Run(app_of(answers(Any, {"n": 1})), "flow")
    run.advance(asked())
    assert not stuck_reason(run, app_of(answers(Any, {"n": 1})))
    reason = stuck_reason(run, app_of(answers(Any, {"n": 2})))
    assert 'with {"n":1}, the code did AskAnswered(what) of question aaaa' in reason
    assert 'with {"n":2}' in reason
    assert "with a refusal, Refused: no" in stuck_reason(run, app_of(answers(Any, 0, refuses=True)))
    assert "with a refusal, PayloadInvalid" in stuck_reason(run, app_of(answers(int, {"n": 1})))


def test_a_question_that_was_refused_stays_refused() -> None:
    run = Run(app_of(answers(int, 1)), "flow")
    run.advance(asked("x"))
    assert not stuck_reason(run, app_of(answers(Any, 1)))
    assert kinds(run.advance(asked("y"))) == ["AskReceived", "AskAnswered"]
    assert not run.reload().reason


def sends(value: Callable[[], Any]) -> Body:
    def body(_: App) -> Any:
        async def flow() -> None:
            await sf.send_signal("other", "hello", value())
            await sf.signal("go")

        return flow

    return body


class Order(msgspec.Struct):
    number: int


def with_note() -> type[Any]:
    return msgspec.defstruct("Order", [("number", int), ("note", str, "")])


def test_another_value_of_a_signal_is_a_divergence_that_shows_both() -> None:
    run = Run(app_of(sends(lambda: Order(1))), "flow")
    assert not stuck_reason(run, app_of(sends(lambda: Order(1))))
    reason = stuck_reason(run, app_of(sends(lambda: Order(2))))
    assert 'SignalSent(1, hello) to other with {"number":1}' in reason
    assert 'SignalSent(1, hello) to other with {"number":2}' in reason


@pytest.mark.parametrize("nested", [lambda order: order, lambda order: [order], lambda order: {"order": (order,)}])
def test_a_field_with_a_default_may_be_added_to_what_is_sent(nested: Callable[[Any], Any]) -> None:
    run = Run(app_of(sends(lambda: nested(Order(1)))), "flow")
    assert not stuck_reason(run, app_of(sends(lambda: nested(with_note()(1)))))
    assert stuck_reason(run, app_of(sends(lambda: nested(with_note()(1, "new")))))
    assert stuck_reason(run, app_of(sends(lambda: nested(with_note()(2)))))


def starts(id: Callable[[], str], *, by_name: bool = False) -> Body:
    def body(app: App) -> Any:
        async def child(source: str, target: str) -> None: ...

        async def flow() -> None:
            call: Any = app.workflows["child"].options(id=id())
            await (call(source="A", target="B") if by_name else call("A", "B"))

        app.workflow(name="child")(child)
        return flow

    return body


def test_another_id_of_a_child_is_a_divergence() -> None:
    """Else a `sf.uuid4()` more before it would give its code the id of a run that doesn't exist."""

    def shifted() -> str:
        sf.uuid4()
        return str(sf.uuid4())

    run = Run(app_of(starts(lambda: str(sf.uuid4()))), "flow")
    assert not stuck_reason(run, app_of(starts(lambda: str(sf.uuid4()))))
    started = next(event for event in run.history if isinstance(event, ChildStarted))
    assert f"ChildStarted(1, child) as run {started.run_id} with" in stuck_reason(run, app_of(starts(shifted)))


def test_a_child_that_is_started_by_keyword_gets_its_input_by_name() -> None:
    run = Run(app_of(starts(lambda: "c", by_name=True)), "flow")
    assert plain(run.last.besides.outbox[0].body)[3] == {"source": "A", "target": "B"}
    assert not stuck_reason(run, app_of(starts(lambda: "c")))


def test_events_of_an_older_release_are_read() -> None:
    """They are shorter: fields were only added at the end."""
    decode = msgspec.msgpack.Decoder(StepScheduled | StepRetrying | RunStuck).decode
    failure = ["ValueError", "no"]
    event: Any = decode(msgspec.msgpack.encode(["step-retry", 1, "a", 1, 0.5, failure, 1000, None]))
    assert (event.declined, event.kinds) == (False, ())


# --- what comes for a stuck run has a limit ---------------------------------------------------------------------------


def counting(app: App) -> App:
    @app.reducer(name="flow")
    def counts(state: int, event: Any) -> Decision:
        return Decision(state + 1)

    return app


def waiting(app: App) -> App:
    @app.workflow(name="flow")
    async def flow() -> Any:
        return await sf.signal("never")

    return app


@pytest.mark.parametrize("made", [waiting, counting])
def test_a_run_that_gets_too_much_while_it_is_stuck_fails(
    made: Callable[[App], App], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "EVENTS_FAIL", 30)
    run = Run(made(App()), "flow", *([1] if made is counting else []), parent="p#3")
    names: list[str] = []
    while not run.last.ended:
        assert stuck_reason(run, App())
        names += kinds(run.advance(SignalReceived("other", raw(1))))
        assert len(names) < 40
    assert names[0] == "RunStuck"
    assert names[-2:] == ["RunResumed", "RunFailed"], "the views count stuck runs"
    failed = run.last.events[-1]
    assert isinstance(failed, RunFailed)
    assert failed.failure.kind == "HistoryTooLong"
    assert "deploy code that fits earlier" in failed.failure.message
    assert [(message.target, message.kind) for message in run.last.besides.outbox] == [("p", "child")]
