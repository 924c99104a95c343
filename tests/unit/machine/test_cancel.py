"""Cancelling in machines: exceptions at the current await, shields, timeouts, sagas. Each test runs twice: with one
machine, and with a machine that is built again from the record before every transition."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import streamflow as sf
from streamflow.events import CancelRequested, SignalReceived
from streamflow.machine.transition import Due
from tests.support.machine_driver import Run, failure_in, kinds, make_app, plain, raw, result_of


def open_steps(run: Run) -> list[int]:
    return sorted(run.machine.steps)


def test_the_functions_are_refused_outside_a_workflow() -> None:
    for call in (lambda: sf.race(), lambda: sf.question("x"), lambda: sf.patched("x")):
        with pytest.raises(sf.UsageError, match="was called outside a workflow"):
            call()


def test_a_cancel_is_an_exception_at_the_current_await(crash: bool) -> None:
    """The code may clean up."""
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow() -> None:
        try:
            await act("work")
        except sf.Cancelled as cancelled:
            await act(f"undo: {cancelled.reason}")
            raise

    run = Run(app, "flow", crash=crash)
    run.advance(CancelRequested("enough"))
    assert kinds(run.last) == ["CancelRequested", "StepCancelled", "StepScheduled"]
    assert run.last.besides.cancelled == [1]
    assert open_steps(run) == [2]
    run.done(1, "too late")
    assert not run.last.events
    run.done(2, "undone")
    assert kinds(run.last) == ["StepCompleted", "RunCancelled"]
    assert run.last.events[-1].reason == "enough"  # type: ignore[union-attr]


def test_a_workflow_may_refuse_to_be_cancelled(crash: bool) -> None:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow() -> str:
        try:
            return await act("work")
        except asyncio.CancelledError:
            return await act("rest")

    run = Run(app, "flow", crash=crash)
    run.advance(CancelRequested("enough"))
    run.done(2, "all the same")
    assert kinds(run.last) == ["StepCompleted", "RunCompleted"]
    assert result_of(run.last) == "all the same"


def test_cancelling_reaches_everything_that_the_workflow_waits_for(crash: bool) -> None:
    app = make_app()
    act, child = app.steps["act"], app.workflows["child"]
    cleaned: list[str] = []

    @app.workflow
    async def flow() -> None:
        async def helper() -> None:
            try:
                await sf.sleep(100)
            finally:
                await act("clean")
                cleaned.append("helper")

        await sf.gather(helper(), act("a"), child("b"), sf.signal("s", timeout=50), sf.gather(act("c")))

    run = Run(app, "flow", crash=crash)
    assert len(open_steps(run)) == 2
    run.advance(CancelRequested("x"))
    assert kinds(run.last)[0] == "CancelRequested"
    assert sorted(kinds(run.last)[1:]) == ["ChildCancelled", "StepCancelled", "StepCancelled", "StepScheduled"]
    assert not run.machine.timers
    assert not run.machine.children
    (seq,) = open_steps(run)
    cleaned.clear()
    run.done(seq)
    assert kinds(run.last) == ["StepCompleted", "RunCancelled"]
    assert cleaned == ["helper"]


def test_what_somebody_else_waits_for_is_not_cancelled(crash: bool) -> None:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow() -> list[Any]:
        shared = act("shared")

        async def impatient() -> str:
            try:
                with sf.timeout(1):
                    return await shared
            except TimeoutError:
                return "gave up"

        async def patient() -> str:
            return await shared

        return list(await sf.gather(patient(), impatient()))

    run = Run(app, "flow", crash=crash)
    run.advance(Due(), after=1000)
    assert kinds(run.last) == ["TimerFired"]
    run.done(1, "value")
    assert result_of(run.last) == ["value", "gave up"]


def test_a_shield_holds_a_cancel_back_until_the_block_has_ended(crash: bool) -> None:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow() -> None:
        with sf.shield():
            await act("first")
            await act("second")
        await act("never")

    run = Run(app, "flow", crash=crash)
    run.advance(CancelRequested("stop"))
    assert kinds(run.last) == ["CancelRequested"]
    run.done(1)
    assert kinds(run.last) == ["StepCompleted", "StepScheduled"]
    run.done(2)
    assert kinds(run.last) == ["StepCompleted", "RunCancelled"]


def test_a_timeout_inside_a_shield_works(crash: bool) -> None:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow() -> str:
        with sf.shield():
            try:
                with sf.timeout(1):
                    await act("slow")
            except TimeoutError:
                return "timed out"
        return ""

    run = Run(app, "flow", crash=crash)
    run.advance(CancelRequested("stop"))
    run.advance(Due(), after=1000)
    assert kinds(run.last) == ["TimerFired", "StepCancelled", "RunCompleted"]


def test_a_second_cancel_interrupts_the_clean_up(crash: bool) -> None:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow() -> None:
        try:
            await act("work")
        finally:
            await act("slow clean-up")

    run = Run(app, "flow", crash=crash)
    run.advance(CancelRequested("one"))
    run.advance(CancelRequested("two"))
    assert kinds(run.last) == ["CancelRequested", "StepCancelled", "RunCancelled"]


# --- timeouts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["with", "async with"])
def test_a_block_with_a_timeout_raises_the_builtin_timeout_error(form: str, crash: bool) -> None:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow(form: str) -> str:
        try:
            if form == "with":
                with sf.timeout(5):
                    await act("slow")
            else:
                async with sf.timeout(5):
                    await act("slow")
        except TimeoutError as error:
            return str(error)
        return "in time"

    run = Run(app, "flow", form, crash=crash)
    run.advance(Due(), after=4999)
    assert not run.last.events
    run.advance(Due(), after=1)
    assert kinds(run.last) == ["TimerFired", "StepCancelled", "RunCompleted"]
    assert result_of(run.last) == "the block took longer than 5 s"

    run = Run(app, "flow", form, crash=crash)
    run.done(1 if open_steps(run) == [1] else 2, "x")
    assert result_of(run.last) == "in time"
    assert not run.machine.timers


def test_the_outer_of_two_timeouts_wins_at_its_own_block(crash: bool) -> None:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow() -> str:
        try:
            with sf.timeout(1):
                try:
                    with sf.timeout(1):
                        await act("slow")
                except TimeoutError:
                    return "inner"
        except TimeoutError:
            return "outer"
        return ""

    run = Run(app, "flow", crash=crash)
    run.advance(Due(), after=1000)
    assert result_of(run.last) == "outer"


def test_a_cancel_of_the_run_is_not_a_timeout(crash: bool) -> None:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow() -> str:
        try:
            with sf.timeout(5):
                await act("slow")
        except TimeoutError:
            return "timed out"
        return "in time"

    run = Run(app, "flow", crash=crash)
    run.advance(CancelRequested("x"))
    assert kinds(run.last) == ["CancelRequested", "StepCancelled", "RunCancelled"]


def test_a_timeout_during_a_shield_does_not_reach_beyond_its_block(crash: bool) -> None:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow() -> str:
        with sf.timeout(1), sf.shield():
            await act("must")
        return await act("after")

    run = Run(app, "flow", crash=crash)
    run.advance(Due(), after=1000)
    step = open_steps(run)[0]
    run.done(step)
    run.done(open_steps(run)[0], "done")
    assert result_of(run.last) == "done"


def test_a_helper_that_times_out_cleans_up_before_its_parent_goes_on(crash: bool) -> None:
    app = make_app()
    act = app.steps["act"]
    order: list[str] = []

    @app.workflow
    async def flow() -> None:
        async def helper() -> None:
            try:
                await act("slow")
            finally:
                await act("clean")
                order.append("helper")

        try:
            with sf.timeout(1):
                await sf.gather(helper())
        except TimeoutError:
            order.append("parent")

    run = Run(app, "flow", crash=crash)
    run.advance(Due(), after=1000)
    order.clear()
    run.done(open_steps(run)[0])
    assert order == ["helper", "parent"]
    assert kinds(run.last)[-1] == "RunCompleted"


# --- sagas ------------------------------------------------------------------------------------------------------------


def saga_app() -> sf.App:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def trip() -> str:
        async with sf.saga() as saga:
            saga.compensate(act, "cancel flight")
            await act("book flight")
            saga.compensate(act, "cancel hotel")
            await act("book hotel")
            await act("pay")
        return "booked"

    return app


def names_of_open(run: Run) -> list[str]:
    return [plain(call.payload)[0] for call in run.machine.steps.values()]


def test_a_saga_that_succeeds_compensates_nothing(crash: bool) -> None:
    run = Run(saga_app(), "trip", crash=crash)
    for seq in (1, 2, 3):
        run.done(seq)
    assert result_of(run.last) == "booked"


def test_a_saga_that_fails_is_undone_in_reverse_and_raises_what_ended_it(crash: bool) -> None:
    run = Run(saga_app(), "trip", crash=crash)
    run.done(1)
    run.done(2)
    run.failed(3)
    assert names_of_open(run) == ["cancel hotel"]
    run.done(4)
    assert names_of_open(run) == ["cancel flight"]
    run.done(5)
    assert kinds(run.last)[-1] == "RunFailed"
    assert failure_in(run.last).kind == "StepFailed"


def test_a_saga_is_undone_on_cancel_and_a_second_cancel_does_not_stop_that(crash: bool) -> None:
    run = Run(saga_app(), "trip", crash=crash)
    run.done(1)
    run.advance(CancelRequested("no"))
    assert names_of_open(run) == ["cancel hotel"]
    run.advance(CancelRequested("now!"))
    assert names_of_open(run) == ["cancel hotel"]
    run.done(3)
    assert names_of_open(run) == ["cancel flight"]
    run.done(4)
    assert kinds(run.last)[-1] == "RunCancelled"


def test_a_failing_compensation_does_not_stop_the_others_and_fails_the_run(crash: bool) -> None:
    run = Run(saga_app(), "trip", crash=crash)
    run.done(1)
    run.advance(CancelRequested("no"))
    run.failed(3)
    assert names_of_open(run) == ["cancel flight"]
    run.done(4)
    assert kinds(run.last)[-1] == "RunFailed"
    assert failure_in(run.last).kind == "CompensationFailed"
    assert "ValueError" in failure_in(run.last).message


def test_a_compensation_awaiting_something_cancelled_does_not_stop_others(crash: bool) -> None:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow() -> None:
        async with sf.task_group() as group:
            given_up = group.start_soon(act, "member")
            group.cancel()

        async def undo() -> None:
            await given_up

        async with sf.saga() as saga:
            saga.compensate(act, "undo first")
            saga.compensate(undo)
            raise ValueError("as it goes")

    run = Run(app, "flow", crash=crash)
    (first,) = open_steps(run)
    run.done(first)
    assert failure_in(run.last).kind == "CompensationFailed"


# --- terminate --------------------------------------------------------------------------------------------------------


def test_terminate_ends_a_run_at_once_and_its_code_starts_nothing_more(crash: bool) -> None:
    run = Run(saga_app(), "trip", crash=crash)
    run.done(1)
    run.advance(CancelRequested("now", terminate=True))
    assert kinds(run.last) == ["CancelRequested", "RunCancelled"]
    assert run.last.ended


def test_a_finally_block_of_an_evicted_run_can_not_start_anything() -> None:
    app = make_app()
    act = app.steps["act"]
    errors: list[str] = []

    @app.workflow
    async def flow() -> None:
        try:
            await act("x")
        finally:
            assert sf.info().run_id == "r"
            try:
                sf.patched("too-late")
            except sf.UsageError as error:
                errors.append(str(error))
            with sf.timeout(5):
                await act("y")

    run = Run(app, "flow")
    run.machine.close()
    assert len(errors) == 1
    assert "its finally blocks can't start steps or timers" in errors[0]
    run.reload()
    run.done(1)
    assert kinds(run.last) == ["StepCompleted", "Patched", "TimerSet", "StepScheduled"]


def test_a_signal_after_a_cancelled_wait_goes_to_the_next_wait(crash: bool) -> None:
    app = make_app()

    @app.workflow
    async def flow() -> str:
        try:
            with sf.timeout(1):
                return await sf.signal("s", str)
        except TimeoutError:
            return "late: " + await sf.signal("s", str)

    run = Run(app, "flow", crash=crash)
    run.advance(Due(), after=1000)
    run.advance(SignalReceived("s", raw("hello")))
    assert result_of(run.last) == "late: hello"
