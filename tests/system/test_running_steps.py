"""What a daemon's executor holds: as many steps as may run at once, and none that nobody waits for any more."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest

import streamflow as sf
from streamflow.events import TimerSet
from tests.support.waiting import happened, until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio


class Blocked:
    """An app whose steps run until `go_on` is set, and which of them have begun."""

    def __init__(self) -> None:
        self.app = app = sf.App()
        self.begun: list[int] = []
        self.go_on = anyio.Event()

        @app.step
        async def work(number: int) -> int:
            self.begun.append(number)
            await self.go_on.wait()
            return number

        @app.step
        async def echo(text: str) -> str:
            return text

        @app.workflow
        async def gathers(count: int) -> list[int]:
            return await sf.gather(*(work(number) for number in range(count)))

        @app.workflow
        async def races() -> int | str | None:
            return await sf.race(work(0), echo("fast"), sf.signal("never", str))

        @app.workflow
        async def sleeps() -> None:
            await sf.sleep(30 * 86400)

        self.gathers, self.races, self.sleeps = gathers, races, sleeps


async def executor_holds(daemon: Any, running: int, waiting: int) -> None:
    async def holds() -> bool:
        await anyio.lowlevel.checkpoint()
        return (daemon.executor.running, daemon.executor.waiting) == (running, waiting)

    await until(holds)


async def test_steps_beyond_the_concurrency_wait(serve: Serve) -> None:
    blocked = Blocked()
    async with serve(blocked.app, concurrency=2) as (client, daemon):
        run = await client.start(blocked.gathers, 6)
        await executor_holds(daemon, running=2, waiting=4)
        blocked.go_on.set()
        assert await run.result(10) == list(range(6))
        await executor_holds(daemon, running=0, waiting=0)


async def test_a_cancelled_run_leaves_nothing_in_the_executor(serve: Serve) -> None:
    blocked = Blocked()
    async with serve(blocked.app, concurrency=1) as (client, daemon):
        run = await client.start(blocked.gathers, 3)
        await executor_holds(daemon, running=1, waiting=2)
        await run.cancel()
        with pytest.raises(sf.RunCancelled):
            await run.result(10)
        await executor_holds(daemon, running=0, waiting=0)
        assert blocked.begun == [0]


async def test_a_race_leaves_nothing_in_the_executor(serve: Serve) -> None:
    blocked = Blocked()
    async with serve(blocked.app) as (client, daemon):
        assert await (await client.start(blocked.races)).result(10) == "fast"
        await executor_holds(daemon, running=0, waiting=0)


async def test_a_sleeping_run_holds_nothing_in_the_executor(serve: Serve) -> None:
    blocked = Blocked()
    async with serve(blocked.app) as (client, daemon):
        await happened(await client.start(blocked.sleeps), TimerSet)
        assert (daemon.executor.running, daemon.executor.waiting) == (0, 0)
