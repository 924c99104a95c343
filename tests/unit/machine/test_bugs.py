"""A bug in a run's code parks the run: nothing of that transition counts, and mended code goes on from before it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Any, cast

import msgspec
import pytest

import streamflow as sf
from streamflow.errors import Failure
from streamflow.events import AskReceived, CancelRequested, RunContinued, RunResumed, RunStuck, SignalReceived
from streamflow.machine.factory import new_machine, parked_for, rehydrate
from streamflow.machine.transition import CompletedChild, Due, Effects, Outcome
from streamflow.model.record import Header, Status
from streamflow.workflow.app import App
from streamflow.workflow.awaitable import Bug
from tests.support.machine_driver import Run, failure_in, kinds, make_app, plain, raw, result_of, with_steps_of

app = make_app()
app.parks = sf.BUGS
act = app.steps["act"]

Flow = Callable[[], Any]


def app_of(flow: Any, name: str = "flow") -> App:
    other = with_steps_of(app)
    other.workflow(name=name)(flow)
    return other


def started(flow: Any) -> Run:
    """Its first step is open."""
    return Run(app_of(flow), "flow")


def parks(run: Run, *inputs: Any, code: str = "one") -> Failure:
    """What its owner does: it records what came, and runs no code."""
    before = len(run.elements)
    with pytest.raises(Bug) as raised:
        run.advance(*inputs, after=1)
    run.machine.close()
    failure, reason = raised.value.failure, str(raised.value)
    header = Header(run.machine.status, 1, "c", 1000, 0, run.workflow, run.tenant, run.parent)
    run.machine = rehydrate(run.app, run.partition, run.run_id, header, run.state, run.transitions(), reason)
    run.machine.bug = failure, code
    assert len(run.elements) == before
    effects = run.advance(*inputs)
    assert effects.status is Status.STUCK
    assert (effects.jobs, list(effects.besides.outbox), effects.ended) == ([], [], False)
    return failure


def goes_on(run: Run, flow: Any) -> Effects:
    """A daemon with this code has loaded it."""
    machine = run.reload(app_of(flow))
    assert machine.resumable, machine.reason
    return run.advance()


def done(seq: int, result: object) -> Outcome:
    return Outcome(seq, 1, 0.5, raw(result))


async def buggy() -> Any:
    got = await act({"a": 1})
    await act(got["b"])
    return "done"


async def mended() -> Any:
    got = await act({"a": 1})
    await act(got["a"])
    return "done"


def test_a_bug_parks_the_run_and_mended_code_goes_on() -> None:
    run = started(buggy)
    failure = parks(run, done(1, {"a": 1}))
    assert (failure.kind, failure.message) == ("KeyError", "'b'")
    assert "in buggy" in failure.traceback
    assert run.names == ["RunStarted", "StepScheduled", "RunStuck", "StepCompleted"]
    stuck = run.history[2]
    assert isinstance(stuck, RunStuck)
    assert (stuck.failure, stuck.code) == (failure, "one")
    effects = goes_on(run, mended)
    assert kinds(effects) == ["RunResumed", "StepScheduled"]
    resumed = effects.events[0]
    assert isinstance(resumed, RunResumed)
    assert resumed.since == run.transitions()[1].at
    assert resumed.failure is not None
    assert resumed.failure.kind == "KeyError"
    assert result_of(run.done(2)) == "done"
    assert not run.reload().diverged, "a replay goes the same way"


def test_facts_that_come_meanwhile_are_kept_and_delivered_in_order() -> None:
    async def waits(fixed: bool) -> Any:
        first = await act("a")
        if not fixed:
            return first["x"]
        return [first, await sf.signal("go"), await sf.signal("go"), await act("b")]

    async def broken() -> Any:
        return await waits(False)

    async def fixed() -> Any:
        return await waits(True)

    run = started(broken)
    parks(run, done(1, "A"), SignalReceived("go", raw(1)))
    run.advance(SignalReceived("go", raw(2)), after=1)
    effects = goes_on(run, fixed)
    assert kinds(effects) == ["RunResumed", "StepScheduled"]
    assert result_of(run.done(2, "B")) == ["A", 1, 2, "B"]


def test_nothing_that_was_decided_with_the_bug_counts() -> None:
    async def decides(fixed: bool) -> Any:
        await act(1)
        sf.publish("state", "half")
        sf.set_attributes(stage="half")
        await sf.send_signal("other", "go")
        first = act(2)
        if not fixed:
            {}["b"]
        return await first

    async def broken() -> Any:
        return await decides(False)

    async def fixed() -> Any:
        return await decides(True)

    run = started(broken)
    parks(run, done(1, 1))
    assert run.names[2:] == ["RunStuck", "StepCompleted"]
    effects = goes_on(run, fixed)
    assert [message.kind for message in effects.besides.outbox] == ["signal"]
    assert effects.besides.published is not None
    assert effects.besides.attributes == {"stage": "half"}


def test_the_same_code_is_not_tried_again() -> None:
    run = started(buggy)
    parks(run, done(1, {"a": 1}), code="one")
    history = run.transitions()
    assert parked_for(history, "one") == "KeyError: 'b'"
    assert parked_for(history, "two") == ""
    header = Header(Status.STUCK, 1, "c", 1000, 0, "flow", "", "")
    machine = rehydrate(run.app, run.partition, "r", header, b"", history, parked_for(history, "one"))
    assert not machine.resumable
    assert machine.advance([Due()], run.at + 1).events == [], "it is recorded already"


def test_history_without_a_code_is_tried() -> None:
    run = started(buggy)
    parks(run, done(1, {"a": 1}), code="")
    assert parked_for(run.transitions(), "") == ""


def test_other_code_with_a_bug_is_recorded_and_the_third_goes_on() -> None:
    async def other_bug() -> Any:
        got = await act({"a": 1})
        await act(got.b)
        return "done"

    run = started(buggy)
    parks(run, done(1, {"a": 1}))
    run.reload(app_of(other_bug))
    failure = parks(run, code="two")
    assert failure.kind == "AttributeError"
    assert run.names[4:] == ["RunResumed", "RunStuck"]
    resumed = run.history[4]
    assert isinstance(resumed, RunResumed)
    assert resumed.failure is not None
    assert resumed.failure.kind == "KeyError"
    assert parked_for(run.transitions(), "two")
    assert not parked_for(run.transitions(), "one"), "that code may be deployed again"
    run.advance(SignalReceived("go", raw(1)))
    assert kinds(goes_on(run, mended)) == ["RunResumed", "StepScheduled"]
    assert result_of(run.done(2)) == "done"
    assert not run.reload().diverged


def test_mended_code_that_does_not_fit_says_so_once() -> None:
    async def other_way() -> Any:
        await act.options(queue="gpu")({"a": 2})

    run = started(buggy)
    parks(run, done(1, {"a": 1}))
    for _ in range(2):
        run.reload(app_of(other_way))
        run.advance(Due())
    assert run.names[4:] == ["RunResumed", "RunStuck"]
    stuck = run.history[-1]
    assert isinstance(stuck, RunStuck)
    assert "diverged at event 2" in stuck.reason
    assert (stuck.failure, stuck.code) == (None, "")
    assert kinds(goes_on(run, mended)) == ["RunResumed", "StepScheduled"]


def test_the_same_reason_is_recorded_once_whatever_is_in_it() -> None:
    async def flow() -> None:
        await act(1)
        {"a": 1}["half an emoji: \ud83d" + "x" * 5000]

    run = started(flow)
    parks(run, done(1, 1))
    for number in range(3):
        run.advance(SignalReceived("go", raw(number)))
    assert run.names.count("RunStuck") == 1


def test_a_replay_of_a_run_that_failed_of_it_is_unchanged() -> None:
    async def flow() -> None:
        await act(1)
        {}["b"]

    failing = with_steps_of(app)
    failing.parks = ()
    failing.workflow(flow)
    run = Run(failing, "flow")
    assert failure_in(run.done(1)).kind == "KeyError"
    machine = run.reload(app_of(flow))
    assert machine.status is Status.FAILED
    replayed = rehydrate(app_of(flow), run.partition, "r", Header(Status.RUNNING, 2, "c", 1, 0, "flow", "", ""), b"",
                         run.transitions())  # fmt: skip
    assert (replayed.ended, replayed.reason) == (True, "")


async def saga() -> None:
    async with sf.saga() as undo:
        undo.compensate(act, "undo")
        await act("do")
        {}["b"]


async def with_finally() -> None:
    await act("do")
    try:
        {}["b"]
    finally:
        await act("clean up")


async def with_except() -> None:
    await act("do")
    try:
        {}["b"]
    except KeyError:
        await act("note it")
        raise


async def with_except_star() -> None:
    await act("do")
    try:
        {}["b"]
    except* KeyError:
        await act("note it")
        raise


@contextlib.asynccontextmanager
async def cleaning() -> AsyncGenerator[None]:
    try:
        yield
    finally:
        await act("clean up")


async def with_block() -> None:
    await act("do")
    async with cleaning():
        {}["b"]


async def in_nested_call() -> None:
    async def inner() -> None:
        await act("note it")

    await act("do")
    try:
        {}["b"]
    finally:
        await inner()


async def kept_by_a_helper() -> None:
    async def helper() -> None:
        {}["b"]

    await act("do")
    [error] = await sf.gather(helper(), return_exceptions=True)
    await act("note it")
    try:
        raise error  # type: ignore[misc]
    finally:
        pass


@pytest.mark.parametrize(
    "flow",
    [saga, with_finally, with_except, with_except_star, with_block, in_nested_call, kept_by_a_helper],
)
def test_code_that_has_awaited_since_the_error_was_born_fails(flow: Flow) -> None:
    run = started(flow)
    effects = run.done(1)
    assert kinds(effects) == ["StepCompleted", "StepScheduled"], "what undoes it"
    effects = run.done(2)
    assert kinds(effects) == ["StepCompleted", "RunFailed"]
    assert "KeyError" in str(failure_in(effects))
    assert not run.reload().diverged


def test_a_group_whose_sibling_cleans_up_fails_and_one_without_parks() -> None:
    async def cleans() -> None:
        try:
            await act("other")
        finally:
            await sf.sleep(1)

    async def breaks() -> None:
        await act("one")
        {}["b"]

    async def two() -> None:
        async with sf.task_group() as group:
            group.start_soon(breaks)
            group.start_soon(cleans)

    async def one() -> None:
        async with sf.task_group() as group:
            group.start_soon(breaks)
            group.start_soon(act, "other")

    run = started(two)
    assert "TimerSet" in kinds(run.done(1))
    effects = run.advance(Due(), after=1500)
    assert failure_in(effects).members[0].kind == "KeyError"
    run = started(one)
    failure = parks(run, done(2, 1))
    assert failure.members[0].kind == "KeyError"
    assert run.names[-2:] == ["RunStuck", "StepCompleted"], "the other step is still open"
    assert kinds(run.done(1)) == ["StepCompleted"]


def test_a_bug_in_a_helper_parks_also_if_the_helper_has_waited() -> None:
    async def flow() -> None:
        async def helper() -> None:
            await act("one")
            {}["b"]

        await sf.gather(helper(), act("two"))

    run = started(flow)
    run.done(1)
    parks(run, done(2, 1))
    assert run.names[-2:] == ["RunStuck", "StepCompleted"]


def test_a_bug_in_the_second_generation_keeps_the_first() -> None:
    async def flow(n: int = 0) -> None:
        await act(n)
        if n:
            {}["b"]
        raise sf.ContinueAs(n + 1)

    async def fixed(n: int = 0) -> int:
        await act(n)
        if n:
            return n
        raise sf.ContinueAs(n + 1)

    run = started(flow)
    run.done(1)
    assert run.machine.generation == 1
    parks(run, done(2, 1))
    assert kinds(goes_on(run, fixed)) == ["RunResumed", "RunCompleted"]

    async def at_once(n: int = 0) -> None:
        await act(n) if not n else {}["b"]
        raise sf.ContinueAs(n + 1)

    run = started(at_once)
    parks(run, done(1, 1))
    assert run.names == ["RunStarted", "StepScheduled", "RunStuck", "StepCompleted"], "it has not continued either"


def test_a_bug_that_a_replay_finds_parks_instead_of_failing_at_the_end() -> None:
    """The code had ended, which is recorded when the child has, for which the run waits."""

    def release(*, has_bug: bool) -> App:
        async def flow() -> str:
            await sf.start(child, "c", on_parent_end="wait")
            await act(1)
            return {}["b"] if has_bug else "ok"

        other = app_of(flow)
        other.workflows["child"] = child
        return other

    child: Any = app.workflows["child"]
    run = Run(release(has_bug=False), "flow")
    run.done(2)
    assert run.last.status is Status.RUNNING
    run.reload(release(has_bug=True))
    assert not run.machine.reason
    parks(run, CompletedChild(1, "child", raw("c"), run.created))
    assert run.names[-2:] == ["RunStuck", "ChildCompleted"]
    run.reload(release(has_bug=False))
    assert kinds(run.advance()) == ["RunResumed", "RunCompleted"]
    assert result_of(run.last) == "ok"


def test_messages_that_came_meanwhile_are_carried_into_a_new_generation() -> None:
    """The record of that begins with it: what it doesn't carry over is lost with the first owner."""

    async def flow(n: int = 0) -> Any:
        await act(n)
        if not n:
            {}["b"]
        return None

    async def fixed(n: int = 0) -> Any:
        await act(n)
        if not n:
            raise sf.ContinueAs(n + 1)
        return [await sf.signal("tip", int), await sf.signal("tip", int), (await sf.question("how", str)).value]

    run = started(flow)
    run.advance(tip := SignalReceived("tip", raw(1)))
    parks(run, done(1, 1))
    run.advance(later := SignalReceived("tip", raw(2)), asked := AskReceived("f" * 32, "how", raw("so")))
    effects = goes_on(run, fixed)
    assert kinds(effects) == ["RunResumed", "RunContinued", "StepScheduled"]
    assert cast("RunContinued", effects.events[1]).carried == [tip, later, asked]
    run.reload()
    run.done(2)
    assert result_of(run.last) == [1, 2, "so"]


def test_a_bug_while_a_cancel_is_under_way_fails_the_run() -> None:
    async def flow() -> None:
        try:
            await act(1)
        except sf.Cancelled:
            {}["b"]

    run = started(flow)
    effects = run.advance(CancelRequested("enough"))
    assert failure_in(effects).kind == "KeyError"


def test_a_run_that_is_cancelled_while_it_is_parked_ends() -> None:
    run = started(buggy)
    parks(run, done(1, {"a": 1}))
    effects = run.advance(CancelRequested("enough"))
    assert kinds(effects) == ["RunResumed", "CancelRequested", "RunCancelled"]
    assert not run.reload(app_of(mended)).diverged


def test_a_bug_after_the_history_got_too_long_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamflow.machine.run.EVENTS_WARN", 2)
    monkeypatch.setattr("streamflow.machine.coroutines.EVENTS_CONTINUE", 2)

    async def flow() -> None:
        try:
            await act(1)
        except sf.HistoryTooLong:
            {}["b"]

    run = started(flow)
    effects = run.advance(Due(), after=1)
    assert failure_in(effects).kind == "KeyError"


def test_steps_that_fail_while_it_is_parked_wait_for_mended_code() -> None:
    async def helper(*, fixed: bool) -> Any:
        await act("one")
        return "fine" if fixed else {}["b"]

    async def flow() -> Any:
        await sf.gather(act("other"), helper(fixed=False))

    async def fixed() -> Any:
        try:
            await sf.gather(act("other"), helper(fixed=True))
        except sf.StepFailed:
            return "failed"

    run = started(flow)
    parks(run, done(2, 1))
    run.failed(1)
    assert run.names[-1] == "StepRetrying"
    assert result_of(goes_on(run, fixed)) == "failed"


def test_a_workflow_says_itself_what_parks_it() -> None:
    class Invariant(Exception):
        pass

    local = with_steps_of(app)

    @local.workflow(parks=(*sf.BUGS, Invariant))
    async def own() -> None:
        await act(1)
        raise Invariant("a refund is larger than what was paid")

    @local.workflow(parks=())
    async def never() -> None:
        await act(1)
        {}["b"]

    run = Run(local, "own")
    assert parks(run, done(1, 1)).kind == "Invariant"
    assert failure_in(Run(local, "never").done(1)).kind == "KeyError"


def test_a_run_whose_first_line_has_a_bug_is_parked_with_its_start() -> None:
    async def flow(n: int) -> None:
        {}["b"]

    with pytest.raises(Bug):
        Run(app_of(flow), "flow", 3)

    async def fixed(n: int) -> int:
        return n

    run = Run(app_of(fixed), "flow", 3)  # it has a record of its own: that of a parked one follows
    run.elements.clear()
    run.machine = new_machine(app_of(flow), run.partition, "r", "flow", "KeyError: 'b'")
    run.machine.bug = Failure("KeyError", "'b'"), "one"
    run.advance(msgspec.structs.replace(run.last.events[0], version=0))
    assert run.names == ["RunStarted", "RunStuck"]
    assert result_of(goes_on(run, fixed)) == 3


# --- reducers ---------------------------------------------------------------------------------------------------------


def reducer_app(*, fixed: bool) -> App:
    local = App()

    @local.reducer(name="bank")
    def bank(state: list[int], event: sf.Event) -> sf.Decision:
        if isinstance(event, sf.Started) and event.input == "at once" and not fixed:
            {}["b"]
        if isinstance(event, sf.Signal):
            state.append(event.value)
            if event.value == 2 and not fixed:
                {}["b"]
            if event.value == 9:
                return sf.Decision(state, [sf.Complete(state)])
        if isinstance(event, sf.CancelRequest):
            {}["b"]
        return sf.Decision(state)

    return local


def signal(value: int) -> SignalReceived:
    return SignalReceived("pay", raw(value))


def test_a_bug_in_a_reducer_changes_no_half_of_its_state() -> None:
    run = Run(reducer_app(fixed=False), "bank", "x")
    run.advance(signal(1))
    parks(run, signal(7), signal(2))
    run.advance(signal(3))
    assert run.names[-4:] == ["RunStuck", "SignalReceived", "SignalReceived", "SignalReceived"]
    machine = run.reload(reducer_app(fixed=True))
    assert machine.resumable
    assert kinds(run.advance()) == ["RunResumed"]
    assert result_of(run.advance(signal(9))) == [1, 7, 2, 3, 9]


def test_a_reducer_that_is_parked_with_its_start_gets_it_later() -> None:
    run = Run(reducer_app(fixed=True), "bank", "at once")
    start = run.last.events[0]
    run.elements.clear()
    run.state = b""
    run.machine = new_machine(reducer_app(fixed=False), run.partition, "r", "bank", "KeyError: 'b'")
    run.machine.bug = Failure("KeyError", "'b'"), "one"
    run.advance(start)
    assert run.names == ["RunStarted", "RunStuck"]
    machine = run.reload(reducer_app(fixed=True))
    assert machine.resumable
    run.advance(signal(4))
    assert result_of(run.advance(signal(9))) == [4, 9]


def test_a_bug_in_what_a_reducer_does_about_a_cancel_fails_it() -> None:
    run = Run(reducer_app(fixed=True), "bank", "x")
    assert failure_in(run.advance(CancelRequested("enough"))).kind == "KeyError"


# --- what code may do to it -------------------------------------------------------------------------------------------


class Rude(KeyError):
    def __str__(self) -> str:
        raise SystemExit("shown")

    def __reduce__(self) -> Any:
        raise SystemExit("copied")


class Own(dict[str, Any]):
    def __missing__(self, name: str) -> Any:
        raise Rude(name)


def test_hostile_exceptions_park_their_run_or_fail_it() -> None:
    async def foreign() -> None:
        await act(1)
        await asyncio.sleep(1)

    async def rude() -> None:
        await act(1)
        Own()["b"]

    async def shared() -> None:
        await act(1)
        raise SHARED

    assert parks(started(foreign), done(1, 1)).kind == "ForeignAwait"
    assert failure_in(started(rude).done(1)).kind == "Rude", "the user's own `raise`"
    for _ in range(2):
        assert failure_in(started(shared).done(1)).kind == "KeyError"


SHARED = KeyError("the same object for each run")


def test_the_reason_is_plain_text_in_the_record() -> None:
    run = started(buggy)
    parks(run, done(1, {"a": 1}))
    event = plain(run.elements[-1])[1][0]
    assert event[0] == "stuck"
    assert event[3] == "KeyError: 'b'"
