"""Durable timers, and the time that a workflow sees."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

import streamflow as sf
from streamflow.events import TimerFired, TimerSet
from tests.guide.conftest import Serve
from tests.support.waiting import events_of, happened

pytestmark = pytest.mark.anyio

app = sf.App()


@app.workflow
async def nap(seconds: float) -> list[datetime]:
    before = sf.now()
    await sf.sleep(seconds)
    return [before, sf.now()]


@app.workflow
async def race_of_naps() -> list[int]:
    order: list[int] = []

    async def after(ms: int) -> None:
        await sf.sleep(timedelta(milliseconds=ms))
        order.append(ms)

    await sf.gather(after(60), after(20), after(40))
    return order


@app.workflow
async def clock() -> list[datetime]:
    return [sf.now(), sf.now()]


async def test_a_sleep_never_ends_early(serve: Serve) -> None:
    async with serve(app) as client:
        runs = await client.start_many(nap, [(ms / 1000,) for ms in range(0, 60, 3)])
        for ms, run in zip(range(0, 60, 3), runs, strict=True):
            before, after = await run.result(10)
            assert after - before >= timedelta(milliseconds=ms)


async def test_sleeps_end_in_the_order_of_their_times(serve: Serve) -> None:
    async with serve(app) as client:
        assert await (await client.start(race_of_naps)).result(10) == [20, 40, 60]


async def test_a_timer_outlives_the_daemon_that_set_it(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(nap, 0.1)
        await happened(run, TimerSet)
    async with serve(app):
        before, after = await run.result(10)
        assert after - before >= timedelta(seconds=0.1)
        assert len([event for event in await events_of(run) if isinstance(event, TimerFired)]) == 1


async def test_a_sleep_can_take_a_month(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(nap, 30 * 86400)
        due = (await happened(run, TimerSet)).due
        created = (await run.describe()).created
        elapsed = datetime.fromtimestamp(due / 1000, UTC) - created  # by two clocks, which differ by a ms or so
        assert timedelta(days=30, seconds=-1) < elapsed < timedelta(days=30, minutes=1)


async def test_now_is_the_servers_time_and_stands_still_between_two_awaits(serve: Serve) -> None:
    async with serve(app) as client:
        first, second = await (await client.start(clock)).result(10)
        assert first == second
        assert first.tzinfo is not None
        assert abs(first - datetime.now(UTC)) < timedelta(minutes=1)
