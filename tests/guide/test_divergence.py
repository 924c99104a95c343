"""Code that makes other decisions than the history: the run is stuck, and goes on when the code fits again."""

from __future__ import annotations

from typing import Any

import pytest

import streamflow as sf
from streamflow.events import RunResumed, RunStuck, SignalReceived, StepCompleted, TimerSet
from tests.guide.conftest import Serve
from tests.support.waiting import happened, status_of

pytestmark = pytest.mark.anyio


def app_with(order: list[str], *, name: str = "flow", hurry: bool = False) -> sf.App:
    """A workflow that takes these steps, then waits for two signals, then takes a last step."""
    app = sf.App()

    async def act() -> str:
        return sf.step_info().step

    steps = {step: app.step(name=step)(act) for step in ("pack", "weigh", "send", "bill")}

    @app.workflow(name=name)
    async def flow() -> list[str]:
        if hurry:
            return ["in a hurry"]
        done = [await steps[step]() for step in order]
        done += [await sf.signal("go", str), await sf.signal("go", str)]
        return [*done, await steps["bill"]()]

    return app


async def test_a_run_whose_code_changed_is_stuck_and_the_reason_names_the_event(serve: Serve) -> None:
    async with serve(app_with(["pack", "weigh"])) as client:
        run: sf.Run[Any] = await client.start("flow", id="order-7")
        await happened(run, StepCompleted, 2)
    async with serve(app_with(["pack", "send"])):
        await run.signal("go", "first")
        stuck = await happened(run, RunStuck)
        what, _, line = stuck.reason.partition(" at /")
        assert what == (
            "run order-7 diverged at event 4: the history has StepScheduled(2, weigh), the code did "
            "StepScheduled(2, send)"
        )
        assert "test_divergence.py:" in line
        assert line.endswith(". Deploy code that makes the recorded decisions, and the run continues.")
        assert (await run.describe()).status is sf.Status.STUCK


async def test_after_a_good_deploy_a_stuck_run_goes_on(serve: Serve) -> None:
    """With all the signals that came meanwhile."""
    async with serve(app_with(["pack", "weigh"])) as client:
        run: sf.Run[Any] = await client.start("flow")
        await happened(run, StepCompleted, 2)
    async with serve(app_with(["weigh", "pack"])):
        await run.signal("go", "first")
        await happened(run, RunStuck)
        await run.signal("go", "second")
        await happened(run, SignalReceived, 2)
        assert (await run.describe()).status is sf.Status.STUCK
    async with serve(app_with(["pack", "weigh"])):
        assert await run.result(10) == ["pack", "weigh", "first", "second", "bill"]
        await happened(run, RunResumed)


async def test_a_stuck_run_resumes_by_itself_after_a_good_deploy(serve: Serve) -> None:
    async with serve(app_with(["pack"])) as client:
        run: sf.Run[Any] = await client.start("flow")
        await happened(run, StepCompleted)
    async with serve(app_with(["pack"], hurry=True)):
        await run.signal("go", "first")
        await run.signal("go", "second")
        await happened(run, RunStuck)
        await happened(run, SignalReceived, 2)
    async with serve(app_with(["pack"])):
        assert await run.result(10) == ["pack", "first", "second", "bill"]


async def test_a_stuck_run_can_be_cancelled(serve: Serve) -> None:
    async with serve(app_with(["pack"])) as client:
        run: sf.Run[Any] = await client.start("flow")
        await happened(run, StepCompleted)
    async with serve(app_with(["weigh"])):
        await run.signal("go", "first")
        await happened(run, RunStuck)
        await run.cancel("give up")
        with pytest.raises(sf.RunCancelled, match="give up"):
            await run.result(10)


async def test_a_run_of_an_unregistered_workflow_is_stuck_until_it_is_registered(serve: Serve) -> None:
    async with serve(app_with([], name="other")) as client:
        run: sf.Run[Any] = await client.start("flow")
        stuck = await happened(run, RunStuck)
        assert stuck.reason == "workflow flow is not registered; known workflows: other"
        await run.signal("go", "first")
        await run.signal("go", "second")
        await happened(run, SignalReceived, 2)
    async with serve(app_with([])):
        assert await run.result(10) == ["first", "second", "bill"]


async def test_timers_of_a_stuck_run_fire_and_take_effect_when_it_resumes(serve: Serve) -> None:
    def napping(seconds: float, *, weigh: bool = False) -> sf.App:
        app = sf.App()

        @app.step
        async def weigh_it() -> None: ...

        @app.workflow
        async def nap() -> str:
            if weigh:
                await weigh_it()
            await sf.sleep(seconds)
            return "slept"

        return app

    async with serve(napping(0.3)) as client:
        run: sf.Run[Any] = await client.start("nap")
        await happened(run, TimerSet)
    async with serve(napping(0.3, weigh=True)):
        await status_of(run, sf.Status.STUCK)
    async with serve(napping(0.3)):
        assert await run.result(10) == "slept"
