"""Properties: a run that was reloaded anywhere makes, byte for byte, the decisions of one that never left memory."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamflow import errors, events
from streamflow import errors as sf_errors
from streamflow.errors import Failure
from streamflow.events import AskReceived, CancelRequested, ChildCompleted, SignalReceived, encode_transition
from streamflow.machine import coroutines as driving
from streamflow.machine import run as running
from streamflow.machine.coroutines import close_abandoned
from streamflow.machine.factory import rehydrate
from streamflow.machine.fork_point import CannotFork
from streamflow.machine.retry_point import CannotRetry
from streamflow.machine.run import RunMachine
from streamflow.machine.transition import Due, Effects, Outcome
from streamflow.model.record import Header, Status
from streamflow.workflow import api as sf
from streamflow.workflow.actions import ON_PARENT_END
from streamflow.workflow.app import App
from streamflow.workflow.recording import record
from streamflow.workflow.reducer import Complete, Decision, Event, Fail, Signal, Started
from streamflow.workflow.retry import Retry
from tests.support.examples import examples
from tests.support.machine_driver import Run, raw

Program = Any

# --- random workflows -----------------------------------------------------------------------------------------------

_leaf: st.SearchStrategy[Program] = st.one_of(
    st.tuples(st.just("step"), st.integers(0, 9)),
    st.tuples(st.just("sleep"), st.sampled_from([0, 0.5, 1, 30])),
    st.tuples(st.just("signal"), st.sampled_from("ab"), st.sampled_from([None, 0, 2, 60])),
    st.tuples(st.just("child"), st.integers(0, 9)),
    st.tuples(st.just("send"), st.integers(0, 9)),
    st.tuples(st.just("random")),
    st.tuples(st.just("raise")),
    st.tuples(st.just("question"), st.sampled_from("ab"), st.sampled_from([None, 2])),
    st.tuples(st.just("start"), st.integers(0, 9), st.sampled_from(ON_PARENT_END)),
    st.tuples(st.just("patched"), st.sampled_from("ab")),
    st.tuples(st.just("again")),
    st.tuples(st.just("continue")),
    st.tuples(st.just("tell"), st.integers(0, 9)),
    st.tuples(st.just("handle"), st.integers(0, 9), st.sampled_from([0, 1, 60]), st.sampled_from(ON_PARENT_END)),
    st.tuples(st.just("loop"), st.sampled_from("ab"), st.integers(1, 3)),
)


def _compose(inner: st.SearchStrategy[Program]) -> st.SearchStrategy[Program]:
    several = st.lists(inner, min_size=1, max_size=4)
    return st.one_of(
        st.tuples(st.just("seq"), several),
        st.tuples(st.just("gather"), several, st.booleans()),
        st.tuples(st.just("try"), inner, inner),
        st.tuples(st.just("race"), several),
        st.tuples(st.just("map"), several, st.integers(1, 3), st.booleans()),
        st.tuples(st.just("group"), several, inner),
        st.tuples(st.just("timeout"), st.sampled_from([0, 1, 5, 60]), inner),
        st.tuples(st.just("shield"), inner),
        st.tuples(st.just("saga"), several, inner),
        st.tuples(st.just("finally"), inner, inner),
        st.tuples(st.just("swallow"), inner),
        st.tuples(st.just("nested"), several, inner),
        st.tuples(st.just("abort"), several, inner),
        st.tuples(st.just("shared"), inner, several),
        st.tuples(st.just("keep"), st.sampled_from("ab"), inner),
    )


programs = st.recursive(_leaf, _compose, max_leaves=12).map(
    lambda program: ("seq", [("step", 1), program, ("step", 2)])
)

app = App()
acted: list[int] = []
"""Steps that were run as plain functions: none, ever."""


@app.step(retry=Retry(attempts=3))
async def act(x: int) -> int:
    acted.append(x)
    return x


@app.workflow
async def child(x: int) -> int:
    return x


@app.workflow
async def flow(program: Program, generation: int = 0) -> Any:
    try:
        return await _interpret(program)
    except (_Again, sf_errors.HistoryTooLong):
        if generation < 3:
            raise sf_errors.ContinueAs(program, generation + 1) from None
        return "enough generations"


class _Again(Exception):
    """The program continues as new."""


async def _interpret(program: Program) -> Any:
    match program:
        case ["step", x]:
            return await act(x)
        case ["sleep", seconds]:
            return await sf.sleep(seconds)
        case ["signal", name, timeout]:
            return await sf.signal(name, int, timeout)
        case ["child", x]:
            return await child(x)
        case ["send", x]:
            return await sf.send_signal("other", "ping", [x, sf.random()])
        case ["random"]:
            return [str(sf.uuid4()), sf.now().timestamp()]
        case ["raise"]:
            raise ValueError("as the program says")
        case ["question", name, timeout]:
            question = await sf.question(name, int, timeout)
            question.refuse("odd") if question.value % 2 else question.answer(question.value)
            return question.value
        case ["start", x, on_parent_end]:
            started = await sf.start(child, x, on_parent_end=on_parent_end)
            if x % 3 == 0:
                await started.cancel("started in vain")
            return await started.result() if x % 2 else started.id
        case ["patched", name]:
            return await act(1) if sf.patched(name) else None
        case ["again"]:
            raise _Again
        case ["continue"]:
            if sf.info().generation < 3:
                raise sf_errors.ContinueAs(["seq", [["step", 3], ["signal", "a", None], ["random"]]])
            return await act(4)
        case ["tell", x]:
            sf.publish("x", [x, sf.random()])
            record("x", x, of="tell")
            sf.set_attributes(x=x, events=sf.info().events)
            return x
        case ["handle", x, seconds, on_parent_end]:
            handle = await sf.start(child, x, on_parent_end=on_parent_end)
            try:
                with sf.timeout(seconds):
                    return await sf.race(handle.result(), sf.signal("b", int))
            except TimeoutError:
                await handle.cancel("too slow")
                return await handle.result()
        case ["loop", name, count]:
            return [await (act(8) if sf.patched(name) else sf.sleep(1)) for _ in range(count)]
        case ["race", parts]:
            return await sf.race(*(_interpret(part) for part in parts))
        case ["map", parts, concurrency, keep]:
            mapped = await sf.map(_interpret, parts, concurrency=concurrency, return_exceptions=keep)
            return [str(result) for result in mapped]
        case ["group", parts, body]:
            async with sf.task_group() as group:
                members = [group.start_soon(_interpret, part) for part in parts]
                await _interpret(body)
            return [await member for member in members]
        case ["nested", parts, body]:
            async with sf.task_group() as group:

                async def member(rest: Any) -> Any:
                    if len(rest) > 1:
                        group.start_soon(member, rest[1:])
                    return await _interpret(rest[0])

                group.start_soon(member, parts)
                return await _interpret(body)
        case ["abort", parts, body]:
            async with sf.task_group() as group:
                for part in parts:
                    group.start_soon(_interpret, part)
                await _interpret(body)
                group.cancel("enough")
                await _interpret(body)
            return await act(6)
        case ["shared", part, others]:

            async def waits(other: Any) -> Any:
                return await sf.race(one, _interpret(other))

            async with sf.task_group() as group:
                one = group.start_soon(_interpret, part)
                shared = await sf.gather(*(waits(other) for other in others), one, return_exceptions=True)
                return [str(result) for result in shared]
        case ["keep", name, part]:
            question = await sf.question(name, int, 60)
            result = await _interpret(part)
            question.answer(question.value)
            return result
        case ["timeout", seconds, part]:
            with sf.timeout(seconds):
                return await _interpret(part)
        case ["shield", part]:
            with sf.shield():
                return await _interpret(part)
        case ["saga", undo, part]:
            async with sf.saga() as saga:
                for one in undo:
                    saga.compensate(_interpret, one)
                return await _interpret(part)
        case ["finally", part, clean_up]:
            try:
                return await _interpret(part)
            finally:
                await _interpret(clean_up)
        case ["swallow", part]:
            try:
                return await _interpret(part)
            except sf_errors.Cancelled:
                return await act(5)
        case ["seq", parts]:
            return [await _interpret(part) for part in parts]
        case ["gather", parts, keep]:
            results = await sf.gather(*(_interpret(part) for part in parts), return_exceptions=keep)
            return [str(result) for result in results]
        case ["try", part, handler]:
            try:
                return await _interpret(part)
            except (errors.StepFailed, errors.ChildFailed, TimeoutError, ValueError, ExceptionGroup) as error:
                return [str(error), await _interpret(handler)]
        case _:
            raise AssertionError(program)


@app.reducer
def agent(state: list[Any], event: Event) -> Decision:
    if isinstance(event, Signal) and event.value == 7:
        return Decision(state, [Complete(state)])
    if isinstance(event, Signal) and event.value == "seven":
        return Decision(state, [Fail("seven")])
    if len(state) > 12:
        return Decision(state, [Complete(state)])
    state = [*state, [type(event).__name__, getattr(event, "tag", ""), sf.random()]]
    commands = [
        act.options(tag=f"s{len(state)}", retry=Retry(attempts=2, never=("KeyError",)))(len(state)),
        sf.sleep(len(state), tag=f"t{len(state)}"),
        child.options(tag=f"c{len(state)}")(len(state)),
        sf.send_signal("other", "ping", len(state)),
    ]
    first = 0 if isinstance(event, Started) else len(state) % 4
    return Decision(state, commands[first : first + 2])


# --- random worlds --------------------------------------------------------------------------------------------------

moves = st.lists(
    st.lists(st.tuples(st.sampled_from("ssssssrrccdddabqqxt"), st.integers(0, 99)), min_size=1, max_size=3),
    min_size=1,
    max_size=25,
)


def _inputs(machine: RunMachine, turn: list[tuple[str, int]]) -> tuple[list[Any], int]:
    """Turn a random move into inputs that fit what is open; also how many ms pass."""
    inputs: list[Any] = []
    after = 0
    for kind, number in turn:
        jobs = sorted(machine.running_jobs(), key=lambda job: job.seq)
        children = sorted(machine.children.values(), key=lambda call: call.seq)
        if kind in "sr" and jobs:
            job = jobs[number % len(jobs)]
            if kind == "s":
                result = "no number" if number == 13 else number
                inputs.append(Outcome(job.seq, job.attempt, 0.5, raw(result)))
            else:
                failure = Failure("KeyError" if number % 3 else "ValueError", str(number))
                inputs.append(Outcome(job.seq, job.attempt, 0.5, None, failure, number % 10 == 0))
        elif kind == "c" and children:
            call = children[number % len(children)]
            failed = number % 3 == 0
            failure = Failure("E", str(number))
            completed = ChildCompleted(call.seq, "child", raw(number))
            inputs.append(events.ChildFailed(call.seq, "child", failure) if failed else completed)
        elif kind == "d":
            after += number * number
            inputs.append(Due())
        elif kind in "ab":
            inputs.append(SignalReceived(kind, raw("seven" if number == 77 else number % 10)))
        elif kind == "q":
            value = raw("no number" if number == 77 else number)
            inputs.append(AskReceived(f"{number:032x}", "ab"[number % 2], value))
        elif kind == "x" and number % 4 == 0:
            inputs.append(CancelRequested(str(number)))
        elif kind == "t" and number % 16 == 0:
            inputs.append(CancelRequested(str(number), terminate=True))
    return inputs, after


def _seen(effects: Effects, machine: RunMachine) -> Any:
    """All that the world sees of one advance."""
    return (
        encode_transition(machine.at, effects.events),
        [(job.seq, job.attempt, job.step.name, bytes(job.args), job.timeout) for job in effects.jobs],
        [(message.target, message.kind, message.body) for message in effects.besides.outbox],
        sorted(effects.besides.cancelled),
        [encode_transition(0, [answer]) for answer in effects.besides.answers],
        effects.besides.published,
        effects.besides.attributes,
        effects.besides.fresh,
        effects.ended,
        machine.status,
        machine.in_flight,
        machine.next_due,
        machine.events_count,
        sorted((job.seq, job.attempt) for job in machine.running_jobs()),
    )


def _restart_overdue_retries(machine: RunMachine, live: RunMachine) -> None:
    """The start of a retry is not an event: a reloaded run starts it again with the next `Due`. Here it has already."""
    for seq, call in machine.steps.items():
        if call.due is not None and live.steps[seq].due is None:
            assert call.due <= machine.at or call.due <= live.at
            call.due = None
            machine.in_steps += 1


def _retried(*runs: Run) -> bool:
    """Whether these runs, which have ended alike, go on."""
    for run in runs:
        try:
            run.retry(anyway=True)
        except CannotRetry:
            continue
    first, *others = [_seen(run.last, run.machine) for run in runs]
    assert all(other == first for other in others)
    return not runs[0].last.ended


def _replays(run: Run) -> None:
    """Its whole history, also if it has ended."""
    header = Header(Status.RUNNING, 1, "c", 1000, 0, run.workflow, "", "")
    machine = rehydrate(run.app, run.partition, run.run_id, header, run.state, run.transitions())
    assert machine.diverged is None
    machine.close()


def _same_when_reloaded(workflow: str, argument: Any, turns: list[list[tuple[str, int]]]) -> None:
    live, reloaded = Run(app, workflow, argument), Run(app, workflow, argument)
    assert _seen(live.last, live.machine) == _seen(reloaded.last, reloaded.machine)
    for turn in turns:
        inputs, after = _inputs(live.machine, turn)
        reloaded.reload()
        assert reloaded.machine.diverged is None
        _restart_overdue_retries(reloaded.machine, live.machine)
        live.advance(*inputs, after=after)
        reloaded.advance(*inputs, after=after)
        assert _seen(live.last, live.machine) == _seen(reloaded.last, reloaded.machine)
        assert live.state == reloaded.state
        if live.last.ended:
            break
    assert live.elements == reloaded.elements


@settings(max_examples=examples(150), deadline=None)
@given(programs, moves)
def test_a_workflow_replayed_before_every_transition_decides_the_same(program: Program, turns: Any) -> None:
    _same_when_reloaded("flow", program, turns)


@settings(max_examples=examples(150), deadline=None)
@example(("raise",), [[("s", 0)]] * 3)
@given(programs, moves)
def test_a_run_that_is_retried_whenever_it_fails_replays_the_same(program: Program, turns: Any) -> None:
    live, reloaded = Run(app, "flow", program), Run(app, "flow", program)
    numbers: set[tuple[int, int]] = set()
    for turn in turns:
        if live.last.ended and not _retried(live, reloaded):
            break
        for job in live.last.jobs:
            assert (job.seq, job.attempt) not in numbers, "an attempt has its number alone"
            numbers.add((job.seq, job.attempt))
        inputs, after = _inputs(live.machine, turn)
        reloaded.reload()
        assert reloaded.machine.diverged is None
        _restart_overdue_retries(reloaded.machine, live.machine)
        live.advance(*inputs, after=after)
        reloaded.advance(*inputs, after=after)
        assert _seen(live.last, live.machine) == _seen(reloaded.last, reloaded.machine)
    assert live.elements == reloaded.elements
    _replays(live)


@settings(max_examples=examples(150), deadline=None)
@given(programs, moves, moves, st.lists(st.integers(0, 1000), min_size=3, max_size=3), st.integers(0, 2**12))
def test_forks_of_forks_from_any_event_go_on_and_replay_the_same(
    program: Program, turns: Any, later: Any, places: Any, deploys: int
) -> None:
    """Also of runs that were retried, and of those that were stuck after every deploy without their workflow."""
    without = App()
    without.steps["act"] = act
    without.workflows["child"] = child
    run = Run(app, "flow", program)
    for number, turn in enumerate(turns):
        if run.last.ended and not _retried(run):
            break
        if deploys:
            run.reload(without if deploys >> number % 12 & 1 else app)
        inputs, after = _inputs(run.machine, turn)
        run.advance(*inputs, after=after)
    run.app = app
    for number, place in enumerate(places):
        at = place % (len(run.history) + 2)
        try:
            live = run.fork(at or None, f"fork-{number}", 5_000 + number)
        except CannotFork:
            continue
        reloaded = run.fork(at or None, f"fork-{number}", 5_000 + number)
        for turn in later:
            assert _seen(live.last, live.machine) == _seen(reloaded.last, reloaded.machine)
            if live.last.ended and not _retried(live, reloaded):
                break
            inputs, after = _inputs(live.machine, turn)
            reloaded.reload()
            assert reloaded.machine.diverged is None
            _restart_overdue_retries(reloaded.machine, live.machine)
            live.advance(*inputs, after=after)
            reloaded.advance(*inputs, after=after)
        assert live.elements == reloaded.elements
        assert live.machine.created == 5_000 + number
        _replays(live)
        run = live


@settings(max_examples=examples(100), deadline=None)
@given(programs, moves)
def test_a_run_near_the_limits_of_its_history_replays_the_same(program: Program, turns: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "EVENTS_WARN", 6)
        patch.setattr(driving, "EVENTS_CONTINUE", 12)
        patch.setattr(driving, "EVENTS_FAIL", 20)
        _same_when_reloaded("flow", program, turns)


@settings(max_examples=examples(80), deadline=None)
@given(moves)
def test_a_reducer_restored_before_every_transition_decides_the_same(turns: Any) -> None:
    _same_when_reloaded("agent", None, turns)


_TIMED_OUT_WHILE_STUCK = ("seq", [("step", 1), ("timeout", 0, ("step", 0)), ("step", 2)])
_REFUSED_IN_A_GROUP: Any = (
    "seq",
    [("step", 1), ("group", [("step", 0)], ("finally", ("step", 0), ("loop", "a", 1))), ("step", 2)],
)
"""Its `finally` block waits for a signal while the machine is closed: that error is kept in the group's frames."""
_SHIELDED_FROM_A_CANCEL = ("seq", [("step", 1), ("race", [("step", 0), ("shield", ("step", 0))]), ("step", 2)])


@settings(max_examples=examples(120), deadline=None)
@example(_TIMED_OUT_WHILE_STUCK, [[("s", 0)], [("d", 0), ("s", 0)]], [1, 0])
@example(_SHIELDED_FROM_A_CANCEL, [[("s", 0)], [("s", 0)], [("x", 0)]], [1, 0, 1])
@given(programs, moves, st.lists(st.integers(0, 3), min_size=25, max_size=25))
def test_a_run_that_is_stuck_at_times_resumes_and_its_history_replays(
    program: Program, turns: Any, deploys: Any
) -> None:
    """A deploy without the workflow parks the run; one with it must resume it and accept all that is recorded."""
    for workflow in ("flow", "agent"):
        without = App()
        without.steps["act"] = act
        without.workflows["child"] = child
        run = Run(without if deploys[0] == 0 else app, workflow, program)
        for turn, deploy in zip(turns, deploys, strict=False):
            run.reload(without if deploy == 0 else app)
            assert run.machine.diverged is None
            inputs, after = _inputs(run.machine, turn)
            run.advance(*inputs, after=after)
            if run.last.ended:
                break
            assert run.last.status == ("stuck" if deploy == 0 else "running")
        if run.machine.status in ("running", "stuck"):
            run.reload(app)
            assert run.machine.diverged is None
            run.advance()
            assert run.machine.status != "stuck"
            assert run.ever.count("RunStuck") == run.ever.count("RunResumed")


@settings(max_examples=examples(100), deadline=None)
@given(programs, moves)
@example(_REFUSED_IN_A_GROUP, [[("s", 0)]])
def test_a_dropped_machine_is_freed_at_once_and_its_code_stops(program: Program, turns: Any) -> None:
    """No cycle holds it: else the garbage collector would close its coroutines in any order, with no machine active,
    and their `finally` blocks would run steps as plain functions. Such an error would be an unraisable one here."""
    run = Run(app, "flow", program)
    for turn in turns:
        inputs, after = _inputs(run.machine, turn)
        run.advance(*inputs, after=after)
    acted.clear()
    machine = weakref.ref(run.machine)
    gc.disable()
    try:
        del run
        close_abandoned()
        assert machine() is None
    finally:
        gc.enable()
    assert not acted
