"""Runs that were evicted from a daemon's memory go on from their records."""

from __future__ import annotations

import pytest

import streamflow as sf
from streamflow.events import StepCompleted
from tests.support.waiting import happened, until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio


app = sf.App()


seen: dict[str, list[str]] = {}


@app.step
async def note(run_id: str, what: list[str]) -> None:
    seen.setdefault(run_id, []).extend(what)


def _draw() -> list[str]:
    return [sf.now().isoformat(), str(sf.uuid4()), repr(sf.random())]


@app.workflow
async def drawing() -> list[str]:
    drawn = _draw()
    await note(sf.info().run_id, drawn)
    await sf.signal("go")
    return drawn + _draw()


@app.workflow
async def busy() -> None:
    await sf.signal("never")


async def test_an_evicted_run_sees_the_same_time_ids_and_numbers(serve: Serve) -> None:
    async with serve(app, cache=1, shards=1) as (client, daemon):
        run = await client.start(drawing)
        await happened(run, StepCompleted)
        await client.start(busy)

        async def evicted() -> bool:
            return (await client.run(run.id).describe()).version > 0 and run.id not in daemon.owner.shards[0].live

        await until(evicted)
        await run.signal("go")
        assert (await run.result(10))[:3] == seen[run.id]
