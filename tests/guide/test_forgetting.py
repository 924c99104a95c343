"""Ended runs can be forgotten."""

from __future__ import annotations

import anyio
import pytest

import streamflow as sf
from streamflow.events import TimerSet
from tests.guide.conftest import Serve
from tests.support.waiting import happened

pytestmark = pytest.mark.anyio


app = sf.App()


@app.workflow
async def quick() -> int:
    return 1


@app.step
async def in_a_task() -> str:
    return sf.step_info().key


@app.step
def in_a_thread() -> str:
    return sf.step_info().key


@app.workflow
async def keys() -> list[str]:
    return [await in_a_task(), await in_a_thread()]


@app.workflow
async def slow() -> None:
    await sf.sleep(3600)


async def test_a_single_run_can_be_forgotten_once_it_has_ended(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(slow)
        await happened(run, TimerSet)
        with pytest.raises(sf.RunError, match="only ended runs can be forgotten: cancel it"):
            await client.forget(run.id)
        await run.cancel()
        with pytest.raises(sf.RunCancelled):
            await run.result(10)
        assert await client.forget(run.id)
        assert not await client.forget(run.id)


async def test_waiting_for_a_forgotten_run_raises_run_not_found(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(quick)
        await run.result(10)
        await client.forget(run.id)
        with pytest.raises(sf.RunNotFound), anyio.fail_after(10):
            await run.result()


async def test_a_run_under_the_id_of_a_forgotten_one_has_other_idempotency_keys(serve: Serve) -> None:
    """Else a receiver that knows the former's keys would drop the effects of this one."""
    async with serve(app) as client:
        seen: list[str] = []
        for _ in range(2):
            run = await client.start(keys, id="bill")
            seen += await run.result(10)
            await client.forget(run.id)
        assert len(set(seen)) == 4, seen
