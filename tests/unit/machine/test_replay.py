"""Replay: the same decisions again, what happens when the code has changed, and going on after a good deploy."""

from __future__ import annotations

import contextlib
import gc
from typing import Any

import msgspec

from streamflow.events import CancelRequested, ChildCompleted, RunResumed, RunStuck, SignalReceived
from streamflow.machine.coroutines import close_abandoned
from streamflow.machine.factory import rehydrate, rehydrating
from streamflow.machine.replay import PIECE
from streamflow.machine.transition import Due
from streamflow.model.record import Header
from streamflow.model.sharding import Partition
from streamflow.views.shard_views import ShardViews
from streamflow.workflow import api as sf
from streamflow.workflow.app import App
from streamflow.workflow.awaitable import active
from tests.support.machine_driver import Run, kinds, make_app, raw, result_of


def _app(body: Any = None, *steps: str, name: str = "flow") -> App:
    app = App()
    for step in steps or ("a", "b"):

        def act(x: int) -> int:
            return x

        app.step(name=step)(act)
    if body is not None:
        app.workflow(name=name)(body(app))
    return app


def _two_steps(app: App) -> Any:
    async def flow() -> Any:
        first = await app.steps["a"](1)
        return [first, await app.steps["b"](2)]

    return flow


def _swapped(app: App) -> Any:
    async def flow() -> Any:
        return [await app.steps["b"](2), await app.steps["a"](1)]

    return flow


def _one_step(app: App) -> Any:
    async def flow() -> Any:
        return await app.steps["a"](1)

    return flow


def _raises_later(app: App) -> Any:
    async def flow() -> Any:
        await app.steps["a"](1)
        raise ValueError("new code")

    return flow


def _a_step_more(app: App) -> Any:
    async def flow() -> Any:
        return list(await sf.gather(app.steps["a"](1), app.steps["b"](2)))

    return flow


def _waits(app: App) -> Any:
    async def flow() -> Any:
        await app.steps["a"](1)
        try:
            return await sf.signal("go", int, timeout=5)
        except TimeoutError:
            return "late"

    return flow


def _after_first_step() -> Run:
    run = Run(_app(_two_steps), "flow")
    run.done(1, 1)
    return run


def test_a_reloaded_run_goes_on_where_it_was() -> None:
    run = _after_first_step()
    machine = run.reload()
    assert machine.events_count == 4
    assert machine.diverged is None
    assert machine.started == 1000
    assert result_of(run.done(2, 2)) == [1, 2]


def test_other_code_makes_the_run_stuck_and_names_the_event() -> None:
    run = _after_first_step()
    machine = run.reload(_app(_swapped))
    assert machine.diverged is not None
    assert (machine.diverged.run_id, machine.diverged.number) == ("r", 2)
    assert (machine.diverged.expected, machine.diverged.found) == ("StepScheduled(1, a)", "StepScheduled(1, b)")
    effects = run.advance()
    assert kinds(effects) == ["RunStuck"]
    assert effects.status == "stuck"
    assert "diverged at event 2" in effects.events[0].reason  # type: ignore[union-attr]


def test_code_that_decides_more_less_or_ends_is_a_divergence() -> None:
    run = _after_first_step()
    for body, number, expected, found in (
        (_a_step_more, 3, "no further decision", "StepScheduled(2, b)"),
        (_one_step, 4, "StepScheduled(2, b)", "RunCompleted"),
        (_raises_later, 4, "StepScheduled(2, b)", "RunFailed: ValueError: new code"),
        (_waits, 4, "StepScheduled(2, b)", "TimerSet(2, go)"),
    ):
        diverged = run.reload(_app(body)).diverged
        assert diverged is not None
        assert (diverged.number, diverged.expected, diverged.found) == (number, expected, found), body.__name__


def test_a_decision_that_the_code_no_longer_makes_is_a_divergence() -> None:
    def nothing(app: App) -> Any:
        async def flow() -> Any:
            await sf.signal("go")

        return flow

    diverged = _after_first_step().reload(_app(nothing)).diverged
    assert diverged is not None
    assert (diverged.number, diverged.found) == (2, "not make this decision")


def test_a_step_that_is_not_registered_any_more_is_named() -> None:
    run = _after_first_step()

    def other(app: App) -> Any:
        async def flow() -> Any:
            return await app.steps["c"](1)

        return flow

    diverged = run.reload(_app(other, "b", "c")).diverged
    assert diverged is not None
    assert diverged.expected == "StepScheduled(1, a), a step that is not registered any more"


def test_a_result_that_no_longer_fits_is_a_divergence() -> None:
    run = _after_first_step()
    app = App()

    @app.step
    def a(x: int) -> str:
        return str(x)

    @app.step
    def b(x: int) -> int:
        return x

    app.workflow(name="flow")(_two_steps(app))
    diverged = run.reload(app).diverged
    assert diverged is not None
    assert diverged.number == 3
    assert "not a str" in diverged.found


def test_a_stuck_run_keeps_facts_and_resumes_with_good_code() -> None:
    run = _after_first_step()
    machine = run.reload(_app(_swapped))
    assert machine.running_jobs() == [], "nothing of it is started"
    assert kinds(run.done(2, 2)) == ["RunStuck", "StepCompleted"], "what runs reports its outcome"
    assert run.last.status == "stuck"
    assert not run.machine.in_flight

    assert run.reload(_app(_swapped)).resumable is False
    assert not run.advance().events, "the history says already that it is stuck"

    machine = run.reload(_app(_two_steps))
    assert machine.resumable
    assert machine.status == "stuck"
    assert machine.running_jobs() == []
    assert kinds(run.advance()) == ["RunResumed", "RunCompleted"]
    assert result_of(run.last) == [1, 2]


def test_what_resumes_says_for_what_it_was_stuck_and_since_when() -> None:
    """Whoever resumes it, and however it ends: the views take it from what they have counted then."""
    for reloads in (False, True):
        run = _after_first_step()
        run.reload(_app(_swapped))
        run.done(2, 2)
        stuck = next(event for event in run.history if isinstance(event, RunStuck))
        since = run.machine.at
        run.advance(SignalReceived("go", raw(1)), after=500)
        if reloads:
            run.reload(_app(_two_steps))
        run.advance(*([] if reloads else [CancelRequested("hopeless")]), after=500)
        resumed = run.last.events[0]
        assert isinstance(resumed, RunResumed)
        assert stuck.reason.startswith(resumed.reason)
        assert len(resumed.reason) == min(200, len(stuck.reason)) > 0
        assert resumed.since == since
        causes = ShardViews()
        for transition in run.transitions():
            causes.fold(run.run_id, transition)
        assert causes.render(run.at)["causes"]["causes"] == []


def test_a_history_of_a_run_that_was_stuck_replays_strictly_afterwards() -> None:
    run = Run(_app(_waits), "flow")
    run.reload(_app(_swapped))
    run.advance()
    run.done(1, 1)
    run.advance(SignalReceived("go", raw("no number")))
    run.advance(SignalReceived("go", raw(7)))
    run.reload(_app(_waits))
    assert kinds(run.advance()) == ["RunResumed", "TimerSet", "SignalSkipped", "RunCompleted"]
    assert result_of(run.last) == 7

    run = Run(_app(_waits), "flow")
    run.reload(_app(_swapped))
    run.advance()
    run.done(1, 1)
    run.reload(_app(_waits))
    assert kinds(run.advance()) == ["RunResumed", "TimerSet"]
    machine = run.reload()
    assert machine.diverged is None
    assert not machine.stuck
    assert machine.next_due == run.at + 5000, "the timer runs from the moment of the resumption"
    diverged = run.reload(_app(_two_steps)).diverged
    assert diverged is not None
    assert diverged.number == 6
    assert diverged.expected == "TimerSet(2, go)"


def test_a_timer_that_fires_while_stuck_counts_unless_a_signal_came_first() -> None:
    for inputs, expected in (((Due(),), "late"), ((SignalReceived("go", raw(7)), Due()), 7)):
        run = Run(_app(_waits), "flow")
        run.done(1, 1)
        run.reload(_app(_swapped))
        run.advance(*inputs, after=5000)
        assert kinds(run.last)[-1] == "TimerFired"
        run.reload(_app(_waits))
        assert result_of(run.advance()) == expected


def test_a_stuck_run_can_be_cancelled() -> None:
    run = _after_first_step()
    run.reload(_app(_swapped))
    run.advance()
    effects = run.advance(CancelRequested("hopeless"))
    assert kinds(effects) == ["RunResumed", "CancelRequested", "RunCancelled"]
    assert effects.besides.cancelled == [2]
    assert effects.status == "cancelled"


def test_the_history_of_a_run_that_was_cancelled_while_stuck_replays() -> None:
    run = _after_first_step()
    run.reload(_app(_swapped))
    run.done(2, 2)
    run.advance(CancelRequested("hopeless"))
    header = Header("running", 1, "c", 1000, 0, "flow", "", "")
    machine = rehydrate(_app(_two_steps), Partition.RUN, "r", header, b"", run.transitions())
    assert machine.diverged is None
    assert machine.status == "cancelled"


def test_an_unknown_workflow_is_stuck_until_a_deploy_registers_it() -> None:
    run = Run(_app(_two_steps, name="other"), "flow")
    assert kinds(run.last) == ["RunStarted", "RunStuck"]
    assert run.last.status == "stuck"
    reason = next(event.reason for event in run.history if isinstance(event, RunStuck))
    assert "flow is not registered" in reason
    assert "other" in reason
    assert kinds(run.advance(SignalReceived("go", raw(1)))) == ["SignalReceived"]
    assert run.reload().reason == reason
    machine = run.reload(_app(_two_steps))
    assert machine.resumable
    effects = run.advance(after=100)
    assert kinds(effects) == ["RunResumed", "StepScheduled"]
    assert effects.jobs[0].seq == 1
    assert run.reload().diverged is None
    run.done(1, 1)
    assert run.reload().diverged is None
    assert result_of(run.done(2, 2)) == [1, 2]


def test_a_machine_without_its_workflow_still_knows_what_is_open() -> None:
    run = Run(_app(_waits), "flow")
    run.done(1, 1)
    machine = run.reload(_app(None, "b"))
    assert machine.next_due == run.at + 5000
    assert "not registered" in machine.reason
    assert kinds(run.advance(Due(), after=5000)) == ["RunStuck", "TimerFired"]


def test_an_ended_run_is_not_replayed() -> None:
    run = Run(_app(_one_step), "flow")
    run.done(1, 1)
    machine = run.reload(_app(_swapped))
    assert machine.ended
    assert machine.diverged is None
    assert not run.done(2, 2).events
    assert run.last.ended


# --- arguments ------------------------------------------------------------------------------------------------------


def _calls(*arguments: Any) -> Any:
    """A workflow that calls step `a` with each argument in turn, and then waits."""

    def body(app: App) -> Any:
        async def flow() -> None:
            for argument in arguments:
                await app.steps["a"](argument() if callable(argument) else argument)
            await sf.signal("go")

        return flow

    return body


def _replayed(run: Run, app: App) -> str:
    """Why the run's history doesn't replay with the code of `app`; empty when it does."""
    run.app = app
    return run.reload().reason


def test_other_arguments_are_a_divergence_that_shows_both() -> None:
    run = Run(_app(_calls(1, 2)), "flow")
    run.done(1, 1)
    reason = _replayed(run, _app(_calls(1, 3)))
    assert "the history has StepScheduled(2, a) with [2]" in reason
    assert "the code did StepScheduled(2, a) with [3]" in reason


def test_a_random_value_that_shifts_is_noticed() -> None:
    """One `sf.uuid4()` more before it, and a step would be called with another id than the recorded one."""

    def draws_first(app: App) -> Any:
        async def flow() -> None:
            sf.random()
            await app.steps["a"](int(sf.random() * 1e6))
            await sf.signal("go")

        return flow

    run = Run(_app(_calls(lambda: int(sf.random() * 1e6))), "flow")
    assert not _replayed(run, _app(_calls(lambda: int(sf.random() * 1e6))))
    assert "StepScheduled(1, a) with" in _replayed(run, _app(draws_first))


def test_a_parameter_with_a_default_may_be_added() -> None:
    run = Run(_app(_calls(1)), "flow")
    app = App()

    @app.step(name="a")
    def act(x: int, unit: str = "EUR") -> int:
        return x

    app.workflow(name="flow")(_calls(1)(app))
    assert not _replayed(run, app)
    other = App()
    other.step(name="a")(act.function)
    other.workflow(name="flow")(_calls(2)(other))
    assert 'with [2,"EUR"]' in _replayed(run, other)


def test_a_field_with_a_default_may_be_added_to_an_argument() -> None:
    def app_with(fields: list[Any]) -> App:
        app = App()
        order = msgspec.defstruct("Order", fields)

        def act(x: Any) -> None: ...

        act.__annotations__["x"] = order
        app.step(name="a")(act)
        app.workflow(name="flow")(_calls(order(1))(app))
        return app

    run = Run(app_with([("id", int)]), "flow")
    assert not _replayed(run, app_with([("id", int), ("note", str, "")]))


def test_code_cannot_swallow_a_divergence() -> None:
    def swallows(argument: int) -> Any:
        def body(app: App) -> Any:
            async def flow() -> None:
                async with sf.task_group() as group:
                    with contextlib.suppress(BaseException):
                        group.start_soon(app.steps["a"], argument)
                    await sf.signal("go")

            return flow

        return body

    run = Run(_app(swallows(1)), "flow")
    assert not _replayed(run, _app(swallows(1)))
    assert "with [2]" in _replayed(run, _app(swallows(2)))


def test_a_signal_to_another_run_is_a_divergence() -> None:
    def sends(target: str) -> Any:
        def body(app: App) -> Any:
            async def flow() -> None:
                await sf.send_signal(target, "hello")
                await sf.signal("go")

            return flow

        return body

    run = Run(_app(sends("one")), "flow")
    assert "SignalSent(1, hello) to two" in _replayed(run, _app(sends("two")))


def test_a_long_replay_has_pauses_and_comes_to_the_same() -> None:
    app = _app(_two_steps)

    @app.workflow(name="adds")
    async def adds(count: int) -> int:
        total = 0
        for _ in range(count):
            total += await sf.signal("add", int)
        return total

    run = Run(app, "adds", 1000)
    for number in range(10):  # many facts in one transition, and one in each of many
        run.advance(*[SignalReceived("add", raw(number))] * 50)
    for number in range(400):
        run.advance(SignalReceived("add", raw(number)))
    header = Header("running", 1, "c", 1000, 0, "adds", "", "")
    pieces = rehydrating(app, Partition.RUN, "r", header, b"", run.transitions())
    pauses = 0
    while True:
        try:
            next(pieces)
        except StopIteration as done:
            machine = done.value
            break
        pauses += 1
        assert active.get() is None, "what runs in a pause is not this run's code"
    assert pauses == 901 // PIECE
    assert not machine.reason
    assert machine.seq == run.machine.seq
    run.machine = machine
    assert kinds(run.advance(*[SignalReceived("add", raw(1))] * 100))[-1] == "RunCompleted"


def test_a_replay_that_is_given_up_in_a_pause_leaves_nothing_behind() -> None:
    app = _app(_two_steps)
    ended: list[str] = []

    @app.workflow(name="waits")
    async def waits() -> None:
        try:
            while True:
                await sf.signal("go")
        finally:
            ended.append("closed")

    run = Run(app, "waits")
    for number in range(100):
        run.advance(SignalReceived("go", raw(number)))
    header = Header("running", 1, "c", 1000, 0, "waits", "", "")
    pieces = rehydrating(app, Partition.RUN, "r", header, b"", run.transitions())
    next(pieces)
    next(pieces)
    pieces.close()
    del pieces
    gc.collect()
    close_abandoned()
    assert ended == ["closed"]
    assert active.get() is None


def test_a_fork_whose_code_ends_too_early_since_a_deploy_is_stuck() -> None:
    """Its code has come to its end before it diverged, and there is no child any more that it waits for."""
    old, new = make_app(), make_app()

    @old.workflow(name="flow")
    async def waits() -> Any:
        await sf.start(old.workflows["child"].options(on_parent_end="wait"), "kid")
        return await sf.signal("go")

    @new.workflow(name="flow")
    async def ends() -> None:
        await sf.start(new.workflows["child"].options(on_parent_end="wait"), "kid")

    run = Run(old, "flow")
    run.advance(ChildCompleted(1, "child", raw("kid")), after=1)
    fork = run.fork(None, "fork")
    machine = fork.reload(new)
    assert "RunCompleted" in machine.reason
    assert (machine.diverged is not None, machine.children) == (True, {})
