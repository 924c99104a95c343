"""A run that has failed goes on: from where, with which results and attempts, and the same in each replay."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest

import streamflow as sf
from streamflow import events
from streamflow.errors import Failure
from streamflow.events import (
    AskReceived,
    CancelRequested,
    ChildCompleted,
    RunRetried,
    RunStarted,
    SignalReceived,
    Transition,
    encode_transition,
)
from streamflow.machine.retry_point import CannotRetry, RetryPoint, again_point, retry_point, with_gaps
from streamflow.machine.transition import AgainRequest, Due, Effects, FailedChild, Outcome, Oversize, RetryRequest
from streamflow.model.record import Header, Status
from tests.support.machine_driver import Run, make_app, plain, raw


@pytest.fixture(params=[False, True], ids=["live", "replayed"])
def crash(request: pytest.FixtureRequest) -> bool:
    """Whether the machine is thrown away before each transition, and made again from the record."""
    return request.param


def answered(effects: Effects) -> Any:
    """What the owner answers: the result, or the kind of the failure."""
    [answer] = effects.besides.answers
    return plain(answer.result) if answer.failure is None else answer.failure.kind


def retried(run: Run) -> RunRetried:
    return [event for event in run.history if isinstance(event, RunRetried)][-1]


def two_steps(app: sf.App) -> Any:
    act = app.steps["act"]

    @app.workflow
    async def flow() -> list[Any]:
        first = await act("a")
        return [first, await act("b")]

    return flow


def test_the_failed_step_is_tried_again_and_results_are_kept(crash: bool) -> None:
    app = make_app()
    two_steps(app)
    run = Run(app, "flow", crash=crash)
    run.done(1, "A")
    run.failed(2)
    assert run.machine.status == Status.FAILED
    effects = run.retry()
    assert answered(effects) == {"kept": 1, "steps": [{"name": "act", "seq": 2, "attempt": 2}]}
    assert [(job.seq, job.attempt) for job in effects.jobs] == [(2, 2)]
    assert (retried(run).kept, retried(run).seq, retried(run).attempts) == (4, 2, [(2, 2)])
    assert (retried(run).by, retried(run).reason) == ("kim", "again")
    assert run.machine.status == Status.RUNNING
    assert run.machine.in_flight
    run.done(2, "late", attempt=1)
    assert run.last.events == []
    run.done(2, "B", attempt=2)
    assert plain(run.last.events[-1].result) == ["A", "B"]  # type: ignore[union-attr]


def test_the_budget_of_attempts_begins_anew_and_their_numbers_go_on(crash: bool) -> None:
    app = make_app()

    @app.step(retry=sf.Retry(attempts=2, initial=1.0))
    async def often() -> str:
        return ""

    @app.workflow
    async def flow() -> str:
        return await often()

    run = Run(app, "flow", crash=crash)
    for first in (1, 3, 5):
        run.failed(1, attempt=first)
        assert run.names[-1] == "StepRetrying"
        run.advance(Due(), after=5000)
        run.failed(1, attempt=first + 1)
        assert run.names[-2:] == ["StepFailed", "RunFailed"]
        run.retry()
        assert retried(run).attempts == [(1, first + 2)]
    run.done(1, "well", attempt=7)
    assert run.machine.status == Status.COMPLETED


def test_mended_code_gets_again_what_the_broken_code_had_got(crash: bool) -> None:
    app, mended = make_app(), make_app()

    def register(app: sf.App, is_broken: bool) -> None:
        @app.workflow
        async def flow() -> Any:
            got = await app.steps["act"]("a")
            if is_broken:
                raise ValueError("broken")
            return await app.steps["act"](got * 2)

    register(app, is_broken=True)
    register(mended, is_broken=False)
    run = Run(app, "flow", crash=crash)
    run.done(1, "A")
    assert run.names[-1] == "RunFailed"
    effects = run.retry()
    assert answered(effects) == {"kept": 1, "steps": []}
    assert run.names[-2:] == ["RunRetried", "RunFailed"]
    run.retry(mended)
    assert run.names[-2:] == ["RunRetried", "StepScheduled"]
    assert plain(run.last.jobs[0].args) == ["AA"]
    run.done(2, "end")
    assert plain(run.last.events[-1].result) == "end"  # type: ignore[union-attr]
    run.reload()
    assert run.machine.status == Status.COMPLETED


def test_code_that_failed_at_once_begins_anew(crash: bool) -> None:
    app, mended = make_app(), make_app()

    @app.workflow
    async def flow() -> None:
        raise ValueError("broken")

    two_steps(mended)
    run = Run(app, "flow", crash=crash)
    run.retry(mended)
    assert run.names == ["RunStarted", "RunFailed", "RunRetried", "StepScheduled"]
    run.done(1)
    run.done(2)
    assert run.machine.status == Status.COMPLETED


def test_code_of_the_version_that_the_run_had_goes_on(crash: bool) -> None:
    app, mended = make_app(), make_app()

    @app.workflow(version=2)
    async def flow() -> None:
        raise ValueError("broken")

    @mended.workflow(name="flow", version=2)
    async def right() -> Any:
        return await mended.steps["act"]("right")

    @mended.workflow(name="flow", version=3)
    async def newer() -> None: ...

    run = Run(app, "flow", crash=crash)
    run.retry(mended)
    run.done(1, "right")
    assert plain(run.last.events[-1].result) == "right"  # type: ignore[union-attr]


def gathering(app: sf.App, count: int) -> None:
    @app.workflow
    async def flow() -> list[Any]:
        return await sf.gather(*(app.steps["act"](n) for n in range(count)))


def test_outcomes_before_the_failure_count_and_stopped_steps_run_again(crash: bool) -> None:
    app = make_app()
    gathering(app, 5)
    run = Run(app, "flow", crash=crash)
    run.done(4, "d")
    run.failed(2)
    assert run.machine.status == Status.FAILED
    effects = run.retry(first=[Outcome(5, 1, 0.5, raw("late"))])
    assert answered(effects)["kept"] == 1
    assert retried(run).attempts == [(1, 2), (2, 2), (3, 2), (5, 2)]
    assert [job.seq for job in effects.jobs] == [1, 2, 3, 5]
    run.advance(Outcome(1, 1, 0.5, raw("late")))
    assert run.last.events == []
    for seq, name in ((1, "a"), (2, "b"), (3, "c"), (5, "e")):
        run.done(seq, name, attempt=2)
    assert plain(run.last.events[-1].result) == ["a", "b", "c", "d", "e"]  # type: ignore[union-attr]


def test_what_came_between_the_failed_step_and_the_end_counts(crash: bool) -> None:
    """The code went on for a while after the step had failed, and gave up then."""
    app = make_app()

    async def failing() -> None:
        try:
            await app.steps["act"]("fails")
        except sf.StepFailed:
            await sf.signal("stop", type(None))
            raise

    @app.workflow
    async def flow() -> list[Any]:
        got = await sf.gather(app.steps["act"]("slow"), sf.sleep(60), failing())
        return [got[0], await sf.signal("word", str)]

    run = Run(app, "flow", crash=crash)
    run.failed(3)
    run.done(1, "slow")
    run.advance(SignalReceived("word", raw("hello")), after=1)
    run.advance(Due(), after=60_000)
    run.advance(SignalReceived("stop", raw(None)))
    assert run.names[-1] == "RunFailed"
    effects = run.retry()
    assert answered(effects) == {"kept": 1, "steps": [{"name": "act", "seq": 3, "attempt": 2}]}
    run.done(3, attempt=2)
    assert plain(run.last.events[-1].result) == ["slow", "hello"]  # type: ignore[union-attr]


def test_a_timer_that_was_open_fires_when_its_time_has_come(crash: bool) -> None:
    app = make_app()

    @app.workflow
    async def flow() -> str:
        await sf.gather(sf.sleep(60), app.steps["act"]("fails"))
        return "well"

    run = Run(app, "flow", crash=crash)
    run.failed(2)
    run.retry(after=3_600_000)
    assert run.machine.next_due is not None
    assert run.machine.next_due <= run.at
    run.advance(Due())
    run.done(2, attempt=2)
    assert run.machine.status == Status.COMPLETED


def test_a_step_that_waited_for_its_next_attempt_begins_at_once(crash: bool) -> None:
    app = make_app()

    @app.step(retry=sf.Retry(attempts=9, initial=1000.0))
    async def patient() -> str:
        return ""

    @app.workflow
    async def flow() -> Any:
        return await sf.gather(patient(), app.steps["act"]("fails"))

    run = Run(app, "flow", crash=crash)
    run.failed(1)
    run.failed(2)
    effects = run.retry()
    assert [(job.seq, job.attempt) for job in effects.jobs] == [(1, 3), (2, 2)]
    run.advance(Due(), after=10_000_000)
    assert run.last.jobs == []
    run.done(1, "well", attempt=3)
    run.done(2, attempt=2)
    assert run.machine.status == Status.COMPLETED


def saga(app: sf.App) -> None:
    act = app.steps["act"]

    @app.workflow
    async def flow() -> Any:
        async with sf.saga() as saga:
            saga.compensate(act, "undo")
            await act("book")
            return await act("pay")


def test_a_run_that_has_undone_things_is_retried_only_if_one_insists(crash: bool) -> None:
    app = make_app()
    saga(app)
    run = Run(app, "flow", crash=crash)
    run.done(1, "booked")
    run.failed(2)
    run.done(3, "undone")
    assert run.names[-1] == "RunFailed"
    before = run.elements[:]
    effects = run.retry()
    assert answered(effects) == "StepsUndone"
    assert "step act (number 3)" in str(effects.besides.answers[0].failure)
    assert effects.ended
    assert effects.status == Status.FAILED
    assert run.elements == before
    effects = run.retry(anyway=True)
    assert answered(effects)["kept"] == 1
    run.done(3, "late")
    assert run.last.events == []
    run.failed(2, attempt=2)
    assert [job.seq for job in run.last.jobs] == [4], "numbers go on behind those that were given"
    run.done(4)
    assert run.names[-1] == "RunFailed"


def test_what_was_begun_and_not_ended_may_have_been_done_too() -> None:
    app = make_app()

    @app.workflow
    async def flow() -> Any:
        try:
            return await app.steps["act"]("a")
        except sf.StepFailed as error:
            with sf.timeout(10):
                await app.steps["act"]("half done")
            raise ValueError from error

    run = Run(app, "flow")
    run.failed(1)
    run.advance(Due(), after=20_000)
    assert run.names[-1] == "RunFailed"
    assert answered(run.retry()) == "StepsUndone"


def test_signals_and_answers_that_were_sent_are_named() -> None:
    app = make_app()

    @app.workflow
    async def flow() -> Any:
        try:
            return await app.steps["act"]("a")
        except sf.StepFailed:
            await sf.send_signal("other", "help", 1)
            question = await sf.question("why")
            question.answer("because")
            raise

    run = Run(app, "flow")
    run.failed(1)
    run.advance(AskReceived("a" * 32, "why", raw(None)))
    assert run.names[-1] == "RunFailed"
    [answer] = run.retry().besides.answers
    assert "signal help to run other" in str(answer.failure)
    assert "the answer to question why" in str(answer.failure)


@pytest.mark.parametrize("how", ["from", "in", "group", "nested"])
def test_the_place_is_found_through_chains_and_groups(how: str, crash: bool) -> None:
    app = make_app()

    @app.workflow
    async def flow() -> Any:
        try:
            return await app.steps["act"]("a")
        except sf.StepFailed as error:
            if how == "from":
                raise ValueError from error
            if how == "in":
                raise ValueError  # noqa: B904
            if how == "group":
                raise ExceptionGroup("several", [ValueError(), error])  # noqa: B904
            try:
                raise KeyError from error
            except KeyError as again:
                raise RuntimeError from again

    run = Run(app, "flow", crash=crash)
    run.failed(1)
    run.retry()
    assert retried(run).kept == 2
    run.done(1, "well", attempt=2)
    assert run.machine.status == Status.COMPLETED


def test_of_two_in_a_group_both_are_tried_again(crash: bool) -> None:
    app = make_app()

    async def calls() -> list[BaseException]:
        errors: list[BaseException] = []
        for what in ("a", "b"):
            try:
                await app.steps["act"](what)
            except sf.StepFailed as error:
                errors.append(error)
        return errors

    @app.workflow
    async def flow() -> str:
        first, second = await sf.gather(calls(), calls())
        if first or second:
            raise BaseExceptionGroup("several", first + second)
        return "well"

    run = Run(app, "flow", crash=crash)
    for seq in (1, 2, 3, 4):
        run.failed(seq)
    assert run.names[-1] == "RunFailed"
    assert answered(run.retry()) == "StepsUndone", "the second calls were made because the first ones had failed"
    run.retry(anyway=True)
    assert retried(run).attempts == [(1, 2), (2, 2)]


def test_a_failure_that_was_caught_is_not_gone_back_to(crash: bool) -> None:
    app = make_app()

    @app.workflow
    async def flow() -> Any:
        with contextlib.suppress(sf.StepFailed):
            await app.steps["act"]("caught")
        await app.steps["act"]("between")
        return await app.steps["act"]("fails")

    run = Run(app, "flow", crash=crash)
    run.failed(1)
    run.done(2)
    run.failed(3)
    assert answered(run.retry())["kept"] == 1
    assert retried(run).attempts == [(3, 2)]
    run.done(3, "end", attempt=2)
    assert run.machine.status == Status.COMPLETED


def test_a_run_is_retried_again_and_again(crash: bool) -> None:
    """Each time it fails at another place, the last time behind something that came from the code alone."""
    app = make_app()
    two_steps(app)
    run = Run(app, "flow", crash=crash)
    run.failed(1)
    run.retry()
    run.failed(1, attempt=2)
    run.retry()
    run.done(1, "A", attempt=3)
    run.failed(2)
    run.retry()
    assert retried(run).attempts == [(2, 2)]
    run.failed(2, attempt=2)
    run.retry()
    run.done(2, "B", attempt=3)
    assert plain(run.last.events[-1].result) == ["A", "B"]  # type: ignore[union-attr]
    assert [event.kept for event in run.history if isinstance(event, RunRetried)] == [2, 5, 10, 13]


def test_a_retry_inside_what_a_later_one_makes_void(crash: bool) -> None:
    """The second failure names a step that had failed before the first retry: its error was kept."""
    app = make_app()

    @app.workflow
    async def flow() -> Any:
        act = app.steps["act"]
        try:
            first = await act("kept error")
        except sf.StepFailed as error:
            await sf.signal("go")
            await act("fallback")
            raise ValueError from error
        return first

    run = Run(app, "flow", crash=crash)
    run.failed(1)
    run.advance(SignalReceived("go", raw(None)))
    run.failed(2)
    assert run.names[-1] == "RunFailed"
    run.retry()
    assert retried(run).attempts == [(2, 2)]
    run.done(2, attempt=2)
    assert run.names[-1] == "RunFailed"
    assert answered(run.retry()) == "StepsUndone"
    assert answered(run.retry(anyway=True))["steps"] == [{"name": "act", "seq": 1, "attempt": 2}]
    run.done(1, "well", attempt=2)
    assert plain(run.last.events[-1].result) == "well"  # type: ignore[union-attr]
    assert run.machine.status == Status.COMPLETED


def test_code_that_does_not_fit_the_history_is_refused_and_nothing_changes() -> None:
    app, other = make_app(), make_app()
    two_steps(app)

    @other.workflow
    async def flow() -> Any:
        await sf.sleep(1)

    run = Run(app, "flow")
    run.failed(1)
    before = run.elements[:]
    assert answered(run.retry(other)) == "Diverged"
    assert answered(run.retry(make_app())) == "Diverged", "an unknown workflow"
    assert run.elements == before
    run.retry(app)
    assert run.machine.status == Status.RUNNING


def test_code_that_fits_only_what_is_kept_is_enough(crash: bool) -> None:
    app, mended = make_app(), make_app()
    saga(app)

    @mended.workflow
    async def flow() -> Any:
        act = mended.steps["act"]
        await act("book")
        try:
            return await act("pay")
        except sf.StepFailed:
            return "paid by hand"

    run = Run(app, "flow", crash=crash)
    run.done(1)
    run.failed(2)
    run.done(3)
    run.retry(mended, anyway=True)
    run.failed(2, attempt=2)
    assert plain(run.last.events[-1].result) == "paid by hand"  # type: ignore[union-attr]


def test_a_cancel_behind_the_point_is_void_and_one_before_it_counts() -> None:
    app = make_app()

    @app.workflow
    async def flow() -> Any:
        try:
            await sf.signal("never")
        finally:
            await app.steps["act"]("clean up")

    run = Run(app, "flow")
    run.advance(CancelRequested("enough"))
    run.failed(1)
    assert run.names[-1] == "RunFailed"
    run.retry()
    run.done(1, attempt=2)
    assert run.machine.status == Status.CANCELLED

    app = make_app()

    @app.workflow
    async def other() -> Any:
        try:
            return await sf.signal("word", str)
        except sf.Cancelled:
            raise ValueError("can't") from None

    run = Run(app, "other")
    run.advance(CancelRequested("enough"))
    assert run.names[-1] == "RunFailed"
    run.retry()
    run.advance(SignalReceived("word", raw("well")))
    assert run.machine.status == Status.COMPLETED


def sent_again(effects: Effects) -> list[tuple[str, AgainRequest]]:
    sent = [(one.target, one.body) for one in effects.besides.outbox if one.kind == "again"]
    return [(target, msgspec.msgpack.decode(body, type=AgainRequest)) for target, body in sent]


def test_a_run_has_the_children_go_on_that_it_waited_for(crash: bool) -> None:
    app = make_app()

    @app.workflow
    async def flow() -> Any:
        await sf.gather(app.workflows["child"].options(id="kid")("x"), app.steps["act"]("fails"))

    run = Run(app, "flow", created=900, crash=crash)
    run.failed(2)
    effects = run.retry()
    assert answered(effects)["children"] == ["kid"]
    [(target, again)] = sent_again(effects)
    assert target == "kid"
    assert again == AgainRequest("f" * 32, "r#1@900", "child", "kim", "again", False, True)
    assert retried(run).children == [1]

    # It ends for the cancel that is void: it is asked again, and its end doesn't count.
    before = effects.besides.outbox[0].identity
    run.done(2, "A", attempt=2)
    late = FailedChild(1, "child", Failure("RunCancelled", "the parent run r ended"), True, 900, "kid")
    effects = run.advance(late)
    assert effects.events == []
    assert [target for target, _ in sent_again(effects)] == ["kid"]
    assert effects.besides.outbox[0].identity not in ("", before)
    run.advance(msgspec.structs.replace(late, again="f" * 32))
    assert run.names[-2:] == ["ChildFailed", "RunFailed"]


def test_a_child_that_the_code_cancels_again_is_not_asked_again(crash: bool) -> None:
    app = make_app()

    @app.workflow
    async def flow() -> Any:
        child = await sf.start(app.workflows["child"], "x", id="kid")
        await app.steps["act"]("fails")
        await child.cancel("enough")
        return await child.result()

    run = Run(app, "flow", created=900, crash=crash)
    run.failed(2)
    run.retry()
    run.done(2, attempt=2)
    assert run.names[-1] == "ChildCancelled"
    run.advance(FailedChild(1, "child", Failure("RunCancelled", "enough"), True, 900, "kid"))
    assert run.names[-2:] == ["ChildFailed", "RunFailed"]


def test_of_a_child_only_what_its_parent_did_is_void() -> None:
    app = make_app()

    @app.workflow
    async def flow() -> Any:
        return await sf.signal("word", str)

    run = Run(app, "flow", parent="p#1@900")
    run.advance(CancelRequested("the parent run p ended"))
    assert run.names == ["RunStarted", "CancelRequested", "RunCancelled"]
    header = Header(Status.CANCELLED, 2, "c", 0, 1, "flow", "", "p#1@900")
    asked = AgainRequest("f" * 32, "p#1@900", "flow", cancelled=True)

    def point(again: AgainRequest) -> Any:
        return again_point("r", header, run.transitions(), again, is_reducer=False)

    assert (point(asked).kept, point(asked).cancelled) == (1, True)
    stays = point(msgspec.structs.replace(asked, cancelled=False))
    assert str(stays.failure) == "NotRetried: NotFailed: run r was cancelled"
    assert stays.failure.cause == Failure("RunCancelled", "the parent run p ended")
    reducer = again_point("r", header, run.transitions(), asked, is_reducer=True)
    assert isinstance(reducer, FailedChild)
    assert "Reducer: run r is a reducer" in str(reducer.failure)
    run.elements[-1:] = [encode_transition(1, [CancelRequested("", True), events.RunCancelled("flow", "", 1, "")])]
    assert isinstance(point(asked), FailedChild)


def test_a_cancelled_child_goes_on_from_before_what_came_of_the_cancel() -> None:
    app = make_app()

    @app.workflow
    async def flow() -> Any:
        try:
            return await sf.signal("word", str)
        finally:
            await app.steps["act"]("clean up")

    asked = AgainRequest("f" * 32, "p#1@900", "flow", cancelled=True)

    def goes_on_from(run: Run, status: Status) -> str:
        header = Header(status, 2, "c", 0, 1, "flow", "", "p#1@900")
        point = again_point("r", header, run.transitions(), asked, is_reducer=False)
        assert isinstance(point, RetryPoint)
        return run.names[point.kept]

    run = Run(app, "flow", parent="p#1@900")
    run.advance(CancelRequested("the parent run p ended"))
    run.failed(1)
    assert run.names[-2:] == ["StepFailed", "RunFailed"]
    assert goes_on_from(run, Status.FAILED) == "CancelRequested"

    run = Run(app, "flow", parent="p#1@900")
    run.reload(sf.App())
    run.advance(SignalReceived("other", raw(1)))
    run.advance(CancelRequested("the parent run p ended"))
    assert run.names[-4:] == ["SignalReceived", "RunResumed", "CancelRequested", "RunCancelled"]
    assert goes_on_from(run, Status.CANCELLED) == "RunResumed"  # its code may not fit what is before that


def test_a_fork_of_a_retried_run_has_children_of_its_own() -> None:
    app = make_app()

    @app.workflow
    async def flow() -> Any:
        await sf.gather(app.workflows["child"]("x"), app.steps["act"]("fails"))

    run = Run(app, "flow", created=900)
    run.failed(2)
    run.retry()
    assert run.machine.again is not None
    fork = run.fork(None, "other")
    [child] = fork.machine.children.values()
    fork.advance(FailedChild(1, "child", Failure("ValueError", "no"), False, fork.created, child.run_id))
    assert fork.names[-1] == "RunFailed"


def test_a_child_goes_on_once_for_each_retry_of_its_parent(crash: bool) -> None:
    app = make_app()
    two_steps(app)
    run = Run(app, "flow", parent="p#1@900", crash=crash)
    run.done(1, "A")
    run.failed(2)
    header = Header(Status.FAILED, 3, "c", 0, 1, "flow", "", "p#1@900")
    asked = AgainRequest("f" * 32, "p#1@900", "flow")
    again = again_point("r", header, run.transitions(), asked, is_reducer=False)
    assert isinstance(again, RetryPoint)
    run.retry()
    run.failed(2, attempt=2)
    same = again_point("r", header, run.transitions(), asked, is_reducer=False)
    assert isinstance(same, FailedChild)
    assert (str(same.failure), same.again) == ("StepFailed: step act failed after 2 attempts: ValueError: no", "f" * 32)
    continued = run.transitions()
    continued[0].events.insert(0, events.RunContinued("flow", "", raw([]), 0, 1, 0, 1, []))
    late = msgspec.structs.replace(asked, id="e" * 32, late=True)
    assert isinstance(again_point("r", header, continued, late, is_reducer=False), FailedChild)
    other = msgspec.structs.replace(asked, id="e" * 32)
    assert isinstance(again_point("r", header, run.transitions(), other, is_reducer=False), RetryPoint)


def test_a_child_that_has_completed_since_is_kept(crash: bool) -> None:
    app = make_app()

    @app.workflow
    async def flow() -> Any:
        child = await sf.start(app.workflows["child"], "x", id="kid", on_parent_end="wait")
        await app.steps["act"]("fails")
        return await child.result()

    run = Run(app, "flow", crash=crash)
    run.failed(2)
    assert run.machine.status == Status.RUNNING, "it waits for its child"
    run.advance(ChildCompleted(1, "child", raw("X")))
    assert run.names[-1] == "RunFailed"
    assert answered(run.retry())["kept"] == 1
    run.done(2, attempt=2)
    assert plain(run.last.events[-1].result) == "X"  # type: ignore[union-attr]


def test_code_that_had_ended_before_its_children_is_refused() -> None:
    app = make_app()

    @app.workflow
    async def flow() -> Any:
        await sf.start(app.workflows["child"], "x", id="kid", on_parent_end="wait")
        await app.steps["act"]("a")
        raise ValueError("broken")

    run = Run(app, "flow")
    run.done(2)
    run.advance(ChildCompleted(1, "child", raw("X")))
    assert run.names[-1] == "RunFailed"
    assert answered(run.retry()) == "EndedBefore"


def test_a_later_generation_goes_on_from_its_own_history(crash: bool) -> None:
    app = make_app()

    @app.workflow
    async def flow(round: int = 0) -> Any:
        got = await app.steps["act"](round)
        if round == 0:
            raise sf.ContinueAs(1)
        return got

    run = Run(app, "flow", 0, crash=crash)
    run.done(1)
    run.failed(2)
    run.retry()
    assert (retried(run).kept, retried(run).attempts) == (2, [(2, 2)])
    run.done(2, "end", attempt=2)
    assert run.machine.status == Status.COMPLETED


def test_a_generation_in_which_nothing_has_happened_is_refused() -> None:
    app = make_app()

    @app.workflow
    async def flow(round: int = 0) -> Any:
        if round:
            raise ValueError("broken")
        await app.steps["act"](round)
        raise sf.ContinueAs(1)

    run = Run(app, "flow", 0)
    run.done(1)
    with pytest.raises(CannotRetry, match="start a new run") as refused:
        run.retry()
    assert refused.value.kind == "NothingKept"


@pytest.mark.parametrize("ending", ["completed", "cancelled"])
def test_only_a_failed_run_is_retried(ending: str) -> None:
    app = make_app()
    two_steps(app)
    run = Run(app, "flow")
    if ending == "completed":
        run.done(1)
        run.done(2)
    else:
        run.advance(CancelRequested(""))
    with pytest.raises(CannotRetry, match=f"was {ending}|has {ending}") as refused:
        run.retry()
    assert refused.value.failure.kind == "NotFailed"


def test_a_stuck_run_that_failed_gets_what_it_had_not_got(crash: bool) -> None:
    """A transition that is too large fails the run: none of its code was run for it."""
    app = make_app()
    two_steps(app)
    run = Run(app, "flow", crash=crash)
    run.done(1, "A")
    run.advance(Oversize("too much"), Outcome(2, 1, 0.5, raw("lost")))
    assert run.names[-1] == "RunFailed"
    assert answered(run.retry())["steps"] == [{"name": "act", "seq": 2, "attempt": 2}]
    run.done(2, "B", attempt=2)
    assert plain(run.last.events[-1].result) == ["A", "B"]  # type: ignore[union-attr]


def test_open_work_is_known_without_the_code() -> None:
    app = make_app()
    gathering(app, 3)
    run = Run(app, "flow")
    run.done(1)
    run.failed(2)
    run.retry()
    machine = run.reload(sf.App())
    assert {seq: call.attempt for seq, call in machine.steps.items()} == {2: 2, 3: 2}
    run.advance()
    assert run.machine.status == Status.STUCK
    run.done(2, "b", attempt=2)
    run.reload(app)
    run.advance()
    run.done(3, "c", attempt=2)
    assert run.machine.status == Status.COMPLETED


def give_up(seq: int, attempt: int, id: str = "f" * 32) -> RetryRequest:
    return RetryRequest(id, 0, 9, "kim", "it hangs", seq=seq, attempt=attempt)


@pytest.mark.parametrize("queue", [None, "far"])
def test_an_attempt_is_given_up_and_the_next_one_begins(queue: str | None, crash: bool) -> None:
    app = make_app()

    @app.workflow
    async def flow() -> Any:
        return await app.steps["act"].options(queue=queue)("hangs")

    run = Run(app, "flow", crash=crash)
    effects = run.advance(give_up(1, 1))
    assert answered(effects) == {"kept": 0, "steps": [{"name": "act", "seq": 1, "attempt": 2}]}
    assert list(effects.besides.cancelled) == ([] if queue else [1])
    assert [(job.seq, job.attempt) for job in effects.besides.revoked] == ([(1, 1)] if queue else [])
    assert effects.jobs == []
    assert str(effects.events[0].failure) == "GivenUp: given up by kim: it hangs"  # type: ignore[union-attr]
    assert run.machine.next_due == run.at + 1
    run.advance(Due(), after=1)
    assert [(job.seq, job.attempt) for job in run.last.jobs] == [(1, 2)]
    run.done(1, "late")
    assert run.last.events == []
    run.failed(1, attempt=2)
    assert run.names[-1] == "RunFailed", "its policy has one attempt, which this was"


def test_a_step_that_waits_begins_at_once_when_its_wait_is_given_up(crash: bool) -> None:
    app = make_app()

    @app.step(retry=sf.Retry(attempts=2, initial=1000.0))
    async def patient() -> str:
        return ""

    @app.workflow
    async def flow() -> str:
        return await patient()

    run = Run(app, "flow", crash=crash)
    run.failed(1)
    run.advance(give_up(1, 2))
    assert list(run.last.besides.cancelled) == [1]
    run.advance(Due(), after=1)
    assert [(job.seq, job.attempt) for job in run.last.jobs] == [(1, 3)]
    if not crash:  # no event says that an attempt has begun, so a new owner begins it again
        run.advance(Due(), after=10_000_000)
        assert run.last.jobs == []
    run.done(1, "well", attempt=3)
    assert run.machine.status == Status.COMPLETED


def test_an_attempt_that_is_over_is_not_given_up_nor_is_one_of_a_stuck_run() -> None:
    app = make_app()
    two_steps(app)
    run = Run(app, "flow")
    run.advance(give_up(1, 1))
    for seq, attempt in ((1, 1), (1, 3), (2, 1)):
        effects = run.advance(give_up(seq, attempt))
        assert answered(effects) == "NotOpen"
        assert effects.events == []
    run.advance(Due(), after=1)
    run.done(1, attempt=2)
    run.reload(sf.App())
    run.advance()
    assert answered(run.advance(give_up(2, 1))) == "Stuck"
    run.advance(Outcome(2, 1, 0.5, raw("end")))
    run.reload(app)
    effects = run.advance(give_up(2, 1))  # it resumes in this transition
    assert effects.ended
    assert answered(effects) == "NotOpen", "the run has ended before it got the request"


def test_a_history_without_retries_is_replayed_as_it_is() -> None:
    history = [Transition(1, [RunStarted("flow", "", raw([]))])]
    assert with_gaps(history) is history


def test_a_history_that_is_almost_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_app()
    two_steps(app)
    run = Run(app, "flow")
    run.failed(1)
    monkeypatch.setattr("streamflow.machine.retry_point.MOST_EVENTS", 4)
    with pytest.raises(CannotRetry, match="start a new run") as refused:
        retry_point("r", run.transitions())
    assert refused.value.kind == "HistoryTooLong"


def test_a_hostile_chain_of_failures_ends() -> None:
    app = make_app()
    two_steps(app)
    run = Run(app, "flow")
    run.failed(1)
    history = run.transitions()
    failure = Failure("StepFailed", "", fields={"step": 7, "attempt": [1]})
    for _ in range(50):
        failure = Failure("StepFailed", "", fields={"step": "act"}, cause=failure)
    ending = history[-1].events[-1]
    history[-1].events[-1] = type(ending)(ending.workflow, "", 1, failure)  # type: ignore[union-attr]
    assert retry_point("r", history).kept == 2
