"""Compensation: `sf.saga` undoes what was done, `sf.shield` protects a clean-up. (That they survive the death of the
owner is in `system/test_crashes.py`.)"""

from __future__ import annotations

from typing import Any

import pytest

import streamflow as sf
from streamflow import events
from streamflow.events import StepCompleted, TimerSet
from tests.guide.conftest import Serve
from tests.support.waiting import happened

pytestmark = pytest.mark.anyio

app = sf.App()

done: list[str] = []


@app.step(retry=sf.Retry(attempts=2, initial=0.01))
async def act(what: str) -> str:
    done.append(what)
    if what.startswith("fail"):
        raise ValueError(what)
    return what


@app.workflow
async def cancel_hotel(name: str) -> None:
    await act(f"cancel {name}")


@app.workflow
async def trip(payment: str) -> str:
    async with sf.saga() as saga:
        saga.compensate(act, "cancel flight")
        await act("book flight")
        saga.compensate(cancel_hotel, "hotel")
        await act("book hotel")
        if payment == "wait":
            await sf.sleep(3600)
        await act(payment)
    return "booked"


@app.workflow
async def stubborn() -> str:
    async with sf.saga() as saga:
        saga.compensate(act, "undo first")
        saga.compensate(act, "fail to undo")
        await act("fail")
    return ""


@app.workflow
async def two_levels() -> str:
    async with sf.saga() as outer:
        outer.compensate(act, "undo outer")
        try:
            async with sf.saga() as inner:
                inner.compensate(act, "undo inner")
                await act("fail")
        except sf.StepFailed:
            return "the outer one stands"
    return ""


async def test_a_saga_that_ends_well_undoes_nothing(serve: Serve) -> None:
    done.clear()
    async with serve(app) as client:
        assert await (await client.start(trip, "pay")).result(10) == "booked"
    assert done == ["book flight", "book hotel", "pay"]


async def test_a_failure_is_compensated_in_reverse_by_steps_and_child_runs(serve: Serve) -> None:
    done.clear()
    async with serve(app) as client:
        run = await client.start(trip, "fail to pay")
        with pytest.raises(sf.RunFailed, match="fail to pay"):
            await run.result(10)
    assert done == ["book flight", "book hotel", "fail to pay", "fail to pay", "cancel hotel", "cancel flight"]


async def test_a_cancel_is_compensated_too_and_the_run_is_cancelled(serve: Serve) -> None:
    done.clear()
    async with serve(app) as client:
        run = await client.start(trip, "wait")
        await happened(run, TimerSet)
        await run.cancel("the customer left")
        with pytest.raises(sf.RunCancelled, match="the customer left"):
            await run.result(10)
    assert done == ["book flight", "book hotel", "cancel hotel", "cancel flight"]


async def test_a_terminated_run_compensates_nothing(serve: Serve) -> None:
    done.clear()
    async with serve(app) as client:
        run = await client.start(trip, "wait")
        await happened(run, TimerSet)
        await run.terminate("the house burns")
        with pytest.raises(sf.RunCancelled, match="the house burns"):
            await run.result(10)
    assert done == ["book flight", "book hotel"]


async def test_a_compensation_that_fails_fails_the_run_and_the_others_still_run(serve: Serve) -> None:
    done.clear()
    async with serve(app) as client:
        run = await client.start(stubborn)
        with pytest.raises(sf.RunFailed, match="CompensationFailed: 1 compensation failed: StepFailed"):
            await run.result(10)
    assert done[-1] == "undo first"


async def test_sagas_nest(serve: Serve) -> None:
    done.clear()
    async with serve(app) as client:
        assert await (await client.start(two_levels)).result(10) == "the outer one stands"
    assert done == ["fail", "fail", "undo inner"]


async def test_a_shielded_block_is_not_interrupted(serve: Serve) -> None:
    local = sf.App()
    local.steps["act"] = act

    @local.workflow
    async def flow() -> Any:
        with sf.shield():
            await sf.signal("go")
            await act("finish what was begun")
        await act("never")

    done.clear()
    async with serve(local) as client:
        run = await client.start(flow)
        await run.cancel("stop")
        await run.signal("go")
        with pytest.raises(sf.RunCancelled, match="stop"):
            await run.result(10)
        assert await happened(run, StepCompleted)
    assert done == ["finish what was begun"]


async def test_what_failed_is_in_the_history_beside_what_was_undone(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(trip, "fail to pay")
        with pytest.raises(sf.RunFailed):
            await run.result(10)
        assert (await happened(run, events.StepFailed)).failure.message == "fail to pay"
