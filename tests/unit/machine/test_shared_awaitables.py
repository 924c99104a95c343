"""What a run has begun is its own: code that keeps an awaitable or a block beyond its run gets an error in the run that
uses it, and the run that it belongs to goes on alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from streamflow.errors import UsageError
from streamflow.machine.transition import IDLE, Outcome
from streamflow.workflow import api as sf
from streamflow.workflow.app import App
from tests.support.machine_driver import Run, failure_in, make_app, raw, result_of, with_steps_of

app = make_app()
act = app.steps["act"]
Use = Callable[[Any], Awaitable[Any]]


async def helper(what: Any) -> Any:
    return await act(what)


MADE: dict[str, Callable[[], Any]] = {
    "step": lambda: act(1),
    "child": lambda: app.workflows["child"]("a"),
    "sleep": lambda: sf.sleep(5),
    "signal": lambda: sf.signal("go"),
    "gather": lambda: sf.gather(act(1), act(2)),
    "race": lambda: sf.race(act(1), act(2)),
    "map": lambda: sf.map(helper, [1, 2], concurrency=2),
}


async def join(shared: Any) -> Any:
    return await shared


USES: dict[str, Use] = {
    "await": join,
    "gather": lambda shared: sf.gather(act("mine"), shared),
    "race": lambda shared: sf.race(act("mine"), shared),
    "map": lambda shared: sf.map(lambda _: shared, [1], concurrency=1),
    "helper": lambda shared: sf.gather(join(shared)),
}


def app_of(kept: dict[str, Any], make: Callable[[], Any], use: Use) -> App:
    other = with_steps_of(app)
    other.workflow(app.workflows["child"].function)

    @other.workflow
    async def first() -> Any:
        kept["it"] = make()
        return [sf.info().run_id, await kept["it"], sf.info().run_id]

    @other.workflow
    async def second() -> Any:
        mine = sf.info().run_id
        await use(kept["it"])
        return [mine, sf.info().run_id]

    return other


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("made", MADE)
def test_what_another_run_waits_for_is_an_error_in_this_one(made: str, use: str) -> None:
    kept: dict[str, Any] = {}
    both = app_of(kept, MADE[made], USES[use])
    first = Run(both, "first", run_id="first")
    before = len(first.history)
    second = Run(both, "second", run_id="second")
    failure = failure_in(second.last)
    assert failure.kind == "UsageError"
    assert "was begun by another run" in failure.message
    assert "test_shared_awaitables.py" in failure.traceback
    assert kept["it"].waiter is first.machine._root  # type: ignore[attr-defined]
    assert len(first.history) == before
    assert first.machine.ready == []


def test_the_run_that_began_it_goes_on_alone() -> None:
    kept: dict[str, Any] = {}
    both = app_of(kept, MADE["step"], USES["await"])
    first = Run(both, "first", run_id="first")
    Run(both, "second", run_id="second")
    first.done(1, 7)
    assert result_of(first.last) == ["first", 7, "first"]
    assert first.names == ["RunStarted", "StepScheduled", "StepCompleted", "RunCompleted"]


@pytest.mark.parametrize("use", USES)
def test_a_result_of_another_run_is_an_error_as_no_history_has_it(use: str) -> None:
    kept: dict[str, Any] = {}
    both = app_of(kept, MADE["step"], USES[use])
    first = Run(both, "first", run_id="first")
    first.done(1, 7)
    second = Run(both, "second", run_id="second")
    assert "was begun by another run" in failure_in(second.last).message


def test_a_run_loaded_again_does_not_wait_for_what_its_old_code_began() -> None:
    kept: dict[str, Any] = {}
    other = with_steps_of(app)

    @other.workflow
    async def caches() -> Any:
        if "it" not in kept:
            kept["it"] = act(1)
        return await kept["it"]

    run = Run(other, "caches")
    run.machine.close()
    assert "was begun by another run, or before this one was loaded again" in run.reload().reason


def test_what_the_same_run_has_begun_may_be_awaited_again(crash: bool) -> None:
    other = with_steps_of(app)

    @other.workflow
    async def again() -> Any:
        call = act(1)
        group = sf.gather(call, helper(2))
        return [await call, await group, await call, await group, await sf.race(call, act(9))]

    run = Run(other, "again", crash=crash)
    run.done(1, 1)
    run.done(2, 2)
    assert result_of(run.last) == [1, [1, 2], 1, [1, 2], 1]


@pytest.mark.parametrize("method", ["result", "cancel", "signal"])
def test_the_handle_of_another_runs_child_is_refused(method: str) -> None:
    kept: dict[str, Any] = {}
    other = with_steps_of(app)
    child = other.workflow(app.workflows["child"].function)

    @other.workflow
    async def first() -> None:
        kept["child"] = await sf.start(child, "a")
        await kept["child"].result()

    @other.workflow
    async def second() -> None:
        await getattr(kept["child"], method)(*(["go"] if method == "signal" else []))

    Run(other, "first", run_id="first")
    run = Run(other, "second", run_id="second")
    assert "was begun by another run" in failure_in(run.last).message
    assert run.names == ["RunStarted", "RunFailed"]


@pytest.mark.parametrize("act_on", ["start", "cancel", "enter", "timeout"])
def test_a_block_of_another_run_is_refused(act_on: str) -> None:
    kept: dict[str, Any] = {}
    other = with_steps_of(app)

    @other.workflow
    async def first() -> str:
        async with sf.task_group() as kept["group"]:
            with sf.timeout(60) as kept["timeout"]:
                await act(1)
        return sf.info().run_id

    @other.workflow
    async def second() -> None:
        if act_on == "start":
            kept["group"].start_soon(helper, 1)
        elif act_on == "cancel":
            kept["group"].cancel()
        else:
            async with kept["group" if act_on == "enter" else act_on]:
                await act(2)

    one = Run(other, "first", run_id="first")
    two = Run(other, "second", run_id="second")
    assert failure_in(two.last).kind == "UsageError"
    assert "another run" in failure_in(two.last).message
    one.done(2, 1)
    assert result_of(one.last) == "first"


def test_a_block_may_be_used_again_after_its_end(crash: bool) -> None:
    other = with_steps_of(app)

    @other.workflow
    async def twice() -> int:
        limit = sf.timeout(60)
        for value in range(2):
            with limit:
                await act(value)
        return 2

    run = Run(other, "twice", crash=crash)
    run.done(2, 0)
    run.done(4, 1)
    assert result_of(run.last) == 2


def test_nothing_is_decided_for_a_run_whose_code_was_left() -> None:
    other = with_steps_of(app)

    @other.workflow
    async def waits() -> None:
        await act(1)

    run = Run(other, "waits")
    with pytest.raises(UsageError, match="can be decided for it now"):
        run.machine.patched("new")
    assert IDLE.events == []
    run.advance(Outcome(1, 1, 0.5, raw(None)))
    assert run.names[-1] == "RunCompleted"
