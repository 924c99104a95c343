"""Several things at once in one run: `sf.race`, `sf.map`, `sf.task_group`, `sf.timeout`. (`sf.gather` has a file of its
own; that all of them survive the death of the owner is in `system/test_crashes.py`.)"""

from __future__ import annotations

from typing import Any

import anyio
import pytest

import streamflow as sf
from streamflow.events import StepScheduled
from tests.guide.conftest import Serve
from tests.support.waiting import happened, names_of, until

pytestmark = pytest.mark.anyio

app = sf.App()

stopped: list[str] = []


@app.step
async def hang(name: str) -> str:
    try:
        await anyio.sleep(3600)
    finally:
        stopped.append(name)
    return name


@app.step
async def echo(value: Any) -> Any:
    return value


@app.step(retry=sf.NO_RETRY)
async def refuse(why: str) -> str:
    raise ValueError(why)


@app.workflow
async def race() -> str:
    return await sf.race(hang("slow"), echo("fast"), sf.signal("never", str))


@app.workflow
async def timed() -> str:
    try:
        with sf.timeout(0.05):
            return await hang("late")
    except TimeoutError as error:
        return str(error)


@app.workflow
async def grouped() -> list[str]:
    failures: list[str] = []
    try:
        async with sf.task_group() as group:
            group.start_soon(hang, "member")
            group.start_soon(refuse, "no")
            await hang("block")
    except* sf.StepFailed as errors:
        failures += [str(error) for error in errors.exceptions]
    return failures


async def all_stopped(*names: str) -> None:
    """A client may know a run's result a moment before the daemon that has committed it."""

    async def have() -> bool:
        return len(stopped) >= len(names)

    await until(have)
    assert sorted(stopped) == sorted(names)


async def test_a_race_gives_the_first_result_and_stops_the_losers_where_they_run(serve: Serve) -> None:
    stopped.clear()
    async with serve(app) as client:
        run = await client.start(race)
        assert await run.result(10) == "fast"
        await all_stopped("slow")
        assert (await names_of(run))[-3:] == ["StepCompleted", "StepCancelled", "RunCompleted"]


async def test_a_block_that_takes_too_long_is_cancelled_and_raises_timeout_error(serve: Serve) -> None:
    stopped.clear()
    async with serve(app) as client:
        run = await client.start(timed)
        assert await run.result(10) == "the block took longer than 0.05 s"
        await all_stopped("late")


async def test_the_first_failure_in_a_group_cancels_the_others_and_its_block(serve: Serve) -> None:
    stopped.clear()
    async with serve(app) as client:
        run = await client.start(grouped)
        assert await run.result(10) == ["step refuse failed after 1 attempt: ValueError: no"]
        await all_stopped("block", "member")


async def test_a_map_runs_a_bounded_number_at_a_time_and_keeps_the_order(serve: Serve) -> None:
    local = sf.App()
    at_once = 0
    most = 0

    @local.step
    async def work(n: int) -> int:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await anyio.lowlevel.checkpoint()
        at_once -= 1
        return n * n

    @local.workflow
    async def flow(count: int) -> list[int]:
        return await sf.map(work, range(count), concurrency=7)

    async with serve(local) as client:
        assert await (await client.start(flow, 100)).result(10) == [n * n for n in range(100)]
    assert most <= 7


async def test_a_map_takes_ten_thousand_items(serve: Serve) -> None:
    local = sf.App()
    local.steps["echo"] = echo

    @local.workflow
    async def flow(count: int) -> int:
        return sum(await sf.map(echo, range(count), concurrency=100))

    async with serve(local) as client:
        assert await (await client.start(flow, 10_000)).result(30) == sum(range(10_000))


async def test_signals_can_cancel_parts_of_a_run(serve: Serve) -> None:
    """A supervisor: agents run until a person stops one of them, or all."""
    local = sf.App()
    local.steps["hang"] = hang

    @local.workflow
    async def supervisor(names: list[str]) -> list[str]:
        ended: list[str] = []

        async def agent(name: str) -> None:
            await sf.race(hang(name), sf.signal(f"stop-{name}"))
            ended.append(name)

        async with sf.task_group() as group:
            for name in names:
                group.start_soon(agent, name)
            await sf.signal("stop-all")
            group.cancel()
        return ended

    async with serve(local, crash=True) as client:
        run = await client.start(supervisor, ["a", "b", "c"])
        await happened(run, StepScheduled, 3)
        await run.signal("stop-b")
        await run.signal("stop-a")
    async with serve(local):
        await run.signal("stop-all")
        assert await run.result(10) == ["b", "a"]
