"""Daemons come and go: a run goes on at another one, and a step that was running runs again."""

from __future__ import annotations

import anyio
import pytest

import streamflow as sf
from streamflow.events import StepCompleted
from tests.guide.conftest import Serve
from tests.support.waiting import events_of, happened

pytestmark = pytest.mark.anyio


async def test_a_run_goes_on_at_the_next_daemon_when_its_own_dies(serve: Serve) -> None:
    app = sf.App()
    executions: list[int] = []

    @app.step
    async def double(n: int) -> int:
        executions.append(n)
        return 2 * n

    @app.workflow
    async def flow() -> int:
        first = await double(1)
        await sf.signal("go")
        return first + await double(10)

    async with serve(app, crash=True) as client:
        run = await client.start(flow)
        await happened(run, StepCompleted)
    async with serve(app):
        await run.signal("go")
        assert await run.result(10) == 22
    assert executions == [1, 10], "a step whose result is recorded does not run again"


async def test_a_step_that_was_running_runs_again_with_the_same_key(serve: Serve) -> None:
    app = sf.App()
    keys: list[str] = []
    running = anyio.Event()

    @app.step
    async def once() -> str:
        keys.append(sf.step_info().key)
        if len(keys) == 1:
            running.set()
            await anyio.sleep_forever()
        return "done"

    @app.workflow
    async def flow() -> str:
        return await once()

    async with serve(app, crash=True) as client:
        run = await client.start(flow)
        await running.wait()
    async with serve(app):
        assert await run.result(10) == "done"
        assert len(keys) == 2
        assert keys[0] == keys[1]
        assert [type(event).__name__ for event in await events_of(run)].count("StepCompleted") == 1


async def test_a_leaving_daemon_hands_back_steps_that_take_longer_than_the_grace(serve: Serve) -> None:
    app = sf.App()
    begun: list[int] = []
    running = anyio.Event()

    @app.step
    async def slow() -> int:
        begun.append(1)
        running.set()
        if len(begun) == 1:
            await anyio.sleep_forever()
        return len(begun)

    @app.workflow
    async def flow() -> int:
        return await slow()

    async with serve(app, grace=0.1) as client:
        run = await client.start(flow)
        await running.wait()
    async with serve(app):
        assert await run.result(10) == 2
