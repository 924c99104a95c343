"""Cancelling a run: it ends where it stands."""

from __future__ import annotations

from datetime import timedelta

import anyio
import pytest

import streamflow as sf
from streamflow.events import StepScheduled, TimerSet
from tests.guide.conftest import Serve
from tests.support.waiting import happened, names_of, reduced

pytestmark = pytest.mark.anyio

app = sf.App()


@app.workflow
async def sleeper() -> None:
    await sf.sleep(timedelta(days=365))


@app.workflow
async def quick() -> int:
    return 1


async def test_a_cancelled_run_ends_at_once_with_the_reason(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(sleeper)
        await happened(run, TimerSet)
        await run.cancel("changed my mind")
        with pytest.raises(sf.RunCancelled, match="changed my mind"):
            await run.result(10)
        described = await run.describe()
        assert (described.status, described.reason) == (sf.Status.CANCELLED, "changed my mind")
        assert await names_of(run) == ["RunStarted", "TimerSet", "CancelRequested", "RunCancelled"]


async def test_a_run_can_be_cancelled_before_it_began(serve: Serve) -> None:
    async with serve(app) as client:
        pass
    run = await client.start(sleeper)
    await run.cancel()
    async with serve(app):
        with pytest.raises(sf.RunCancelled):
            await run.result(10)


async def test_terminate_ends_a_run_that_does_not_let_itself_be_cancelled(serve: Serve) -> None:
    app = sf.App()

    @app.workflow
    async def stubborn() -> None:
        while True:
            try:
                await sf.sleep(timedelta(days=365))
            except sf.Cancelled:
                sf.publish("said", "not now")

    async with serve(app) as client:
        run = await client.start(stubborn)
        await happened(run, TimerSet)
        await run.cancel()
        await happened(run, TimerSet, 2)
        assert await run.read("said") == "not now"
        await run.terminate("enough is enough")
        with pytest.raises(sf.RunCancelled, match="enough is enough"):
            await run.result(10)
        assert (await names_of(run)).count("TimerSet") == 2, "its code wasn't asked"
        with pytest.raises(sf.RunEnded):
            await run.terminate()
        with pytest.raises(sf.RunNotFound):
            await client.run("nothing").terminate()


async def test_the_steps_of_a_cancelled_run_are_cancelled(serve: Serve) -> None:
    app = sf.App()
    running, cleaned_up = anyio.Event(), anyio.Event()

    @app.step
    async def hang() -> None:
        running.set()
        try:
            await anyio.sleep_forever()
        finally:
            cleaned_up.set()

    @app.workflow
    async def flow() -> None:
        await hang()

    async with serve(app) as client:
        run = await client.start(flow)
        await running.wait()
        await run.cancel()
        with pytest.raises(sf.RunCancelled):
            await run.result(10)
        with anyio.fail_after(10):
            await cleaned_up.wait()


async def test_steps_that_have_not_begun_never_run(serve: Serve) -> None:
    app = sf.App()
    begun: list[int] = []
    first_runs = anyio.Event()

    @app.step
    async def work(number: int) -> None:
        begun.append(number)
        first_runs.set()
        await anyio.sleep_forever()

    @app.workflow
    async def flow() -> None:
        await sf.gather(*(work(number) for number in range(3)))

    async with serve(app, concurrency=1) as client:
        run = await client.start(flow)
        await happened(run, StepScheduled, 3)
        await first_runs.wait()
        await run.cancel()
        with pytest.raises(sf.RunCancelled):
            await run.result(10)
        assert await (await client.start("quick")).describe()  # the daemon goes on
        assert begun == [0]


async def test_a_cancelled_workflow_may_clean_up_with_steps(serve: Serve) -> None:
    app = sf.App()
    notes: list[str] = []

    @app.step
    async def note(text: str) -> None:
        notes.append(f"step: {text}")

    @app.workflow
    async def flow() -> None:
        try:
            await sf.sleep(3600)
        finally:
            await note("cleaned up")

    async with serve(app) as client:
        run = await client.start(flow)
        await happened(run, TimerSet)
        await run.cancel()
        with pytest.raises(sf.RunCancelled):
            await run.result(10)
        assert notes == ["step: cleaned up"]
        assert (await names_of(run))[-4:] == ["CancelRequested", "StepScheduled", "StepCompleted", "RunCancelled"]


async def test_a_run_that_has_ended_cannot_be_cancelled(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(quick)
        await run.result(10)
        with pytest.raises(sf.RunEnded):
            await run.cancel()


async def test_cancelling_a_run_that_does_not_exist_is_an_error(serve: Serve) -> None:
    async with serve(app) as client:
        with pytest.raises(sf.RunNotFound):
            await client.run("nobody").cancel()


async def test_cancelling_twice_cancels_once(serve: Serve) -> None:
    async with serve(app) as client:
        pass
    run = await client.start(sleeper)
    await run.cancel("first")
    await run.cancel("second")
    async with serve(app):
        with pytest.raises(sf.RunCancelled, match="first"):
            await run.result(10)
        await reduced(client, run.id)
        assert (await names_of(run)).count("RunCancelled") == 1
