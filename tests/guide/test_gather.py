"""`sf.gather`: several things at once."""

from __future__ import annotations

import anyio
import pytest

import streamflow as sf
from streamflow.events import StepCompleted, StepScheduled
from tests.guide.conftest import Serve
from tests.support.waiting import events_of, happened

pytestmark = pytest.mark.anyio

app = sf.App()


@app.step
async def double(n: int) -> int:
    return 2 * n


@app.step(retry=sf.NO_RETRY)
async def fail(message: str) -> int:
    raise ValueError(message)


@app.workflow
async def child(n: int) -> int:
    return await double(n) + 1


@app.workflow
async def hundred() -> list[int]:
    return await sf.gather(*(double(n) for n in range(100)))


async def test_results_come_in_the_order_of_the_calls(serve: Serve) -> None:
    app = sf.App()
    second_done = anyio.Event()

    @app.step
    async def first() -> str:
        await second_done.wait()
        return "first"

    @app.step
    async def second() -> str:
        return "second"

    @app.workflow
    async def flow() -> tuple[str, str]:
        return await sf.gather(first(), second())

    async with serve(app) as client:
        run = await client.start(flow)
        assert (await happened(run, StepCompleted)).name == "second"
        second_done.set()
        assert await run.result(10) == ("first", "second")


async def test_all_steps_are_scheduled_before_the_first_one_runs(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(hundred)
        assert await run.result(10) == [2 * n for n in range(100)]
        kinds = [type(event) for event in await events_of(run)]
        assert kinds[1:101] == [StepScheduled] * 100


async def test_steps_children_timers_signals_and_helpers_can_be_mixed(serve: Serve) -> None:
    app = sf.App()
    app.workflows["child"], app.steps["double"] = child, double

    async def helper(n: int) -> int:
        return await double(n) + await double(n)

    @app.workflow
    async def flow() -> list[int | None]:
        return list(await sf.gather(double(1), child(2), sf.sleep(0.01), sf.signal("three", int), helper(4)))

    async with serve(app) as client:
        run = await client.start(flow)
        await run.signal("three", 3)
        assert await run.result(10) == [2, 5, None, 3, 16]


async def test_the_first_failure_is_raised_at_once_and_the_others_go_on(serve: Serve) -> None:
    app = sf.App()
    app.steps["fail"] = fail
    let_go = anyio.Event()

    @app.step
    async def slow() -> str:
        await let_go.wait()
        return "slow"

    @app.workflow
    async def flow() -> str:
        try:
            await sf.gather(slow(), fail("no"))
        except sf.StepFailed as error:
            await sf.signal("onward")
            return error.failure.message
        return ""

    async with serve(app) as client:
        run = await client.start(flow)
        await run.signal("onward")
        assert await run.result(10) == "no"
        let_go.set()


async def test_failures_can_be_results(serve: Serve) -> None:
    @(app := sf.App()).workflow
    async def flow() -> list[str]:
        results = await sf.gather(double(1), fail("no"), return_exceptions=True)
        return [type(result).__name__ for result in results]

    app.steps |= {"double": double, "fail": fail}
    async with serve(app) as client:
        assert await (await client.start(flow)).result(10) == ["int", "StepFailed"]


async def test_gathering_nothing_gives_an_empty_list(serve: Serve) -> None:
    @(app := sf.App()).workflow
    async def flow() -> list[int]:
        return await sf.gather(*(double(n) for n in range(0)))

    async with serve(app) as client:
        assert await (await client.start(flow)).result(10) == []
