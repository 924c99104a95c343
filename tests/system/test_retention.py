"""Ended runs are kept for a while, then forgotten. What was counted of them stays."""

from __future__ import annotations

import contextlib

import pytest

import streamflow as sf
from streamflow.events import TimerSet
from tests.support.serving import view
from tests.support.waiting import happened, until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()


@app.workflow
async def quick(n: int) -> int:
    if n % 3 == 2:
        raise ValueError(n)
    return n


@app.workflow
async def slow() -> None:
    await sf.sleep(3600)


async def end_all(client: sf.Client, count: int) -> list[sf.Run[int]]:
    runs = await client.start_many(quick, [(n,) for n in range(count)], tenant="acme")
    for run in runs:
        with contextlib.suppress(sf.RunFailed):
            await run.result(10)
    return runs


async def test_a_sweep_forgets_what_ended_long_enough_ago(serve: Serve) -> None:
    async with serve(app, retention=0.001) as (client, daemon):
        runs = await end_all(client, 20)

        async def all_gone() -> bool:
            await daemon.retention.forget_once()
            return not await client.runs(tenant="acme") and not await client.runs(workflow="quick")

        await until(all_gone)
        with pytest.raises(sf.RunNotFound):
            await runs[0].describe()


async def test_open_runs_are_never_forgotten(serve: Serve) -> None:
    async with serve(app, retention=0.001) as (client, daemon):
        run = await client.start(slow)
        await happened(run, TimerSet)
        await end_all(client, 5)

        async def only_the_open_one() -> bool:
            await daemon.retention.forget_once()
            return [left.id for left in await client.runs()] == [run.id]

        await until(only_the_open_one)


async def test_recent_runs_stay(serve: Serve) -> None:
    async with serve(app, retention=3600) as (client, daemon):
        await end_all(client, 5)
        assert not await daemon.retention.forget_once()
        assert len(await client.runs()) == 5


async def test_views_still_count_what_is_forgotten(serve: Serve) -> None:
    async with serve(app, retention=0.001) as (client, daemon):
        await end_all(client, 6)

        async def counted_and_gone() -> bool:
            await daemon.retention.forget_once()
            runs = await view(client, "runs")
            if not runs or await client.runs():
                return False
            return (runs["status"]["completed"], runs["status"]["failed"]) == (4, 2)

        await until(counted_and_gone)
