"""A workflow sees the same whenever its code runs again: time, random numbers, ids, and the order of things."""

from __future__ import annotations

from typing import Any

import pytest

import streamflow as sf
from streamflow.events import StepCompleted
from tests.guide.conftest import Serve
from tests.support.waiting import happened

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


async def test_another_daemon_sees_the_same_time_ids_and_numbers(serve: Serve) -> None:
    async with serve(app, crash=True) as client:
        run = await client.start(drawing)
        await happened(run, StepCompleted)
    async with serve(app):
        await run.signal("go")
        result = await run.result(10)
        assert result[:3] == seen[run.id]
        assert not set(result[:3]) & set(result[3:])


async def test_runs_differ_from_each_other(serve: Serve) -> None:
    async with serve(app) as client:
        runs: list[sf.Run[Any]] = [await client.start(drawing) for _ in range(2)]
        for run in runs:
            await run.signal("go")
        one, other = [await run.result(10) for run in runs]
        assert not set(one[1:3]) & set(other[1:3])


async def test_these_functions_are_refused_outside_a_workflow() -> None:
    for function in (sf.now, sf.uuid4, sf.random, sf.info):
        with pytest.raises(sf.UsageError, match="was called outside a workflow"):
            function()
