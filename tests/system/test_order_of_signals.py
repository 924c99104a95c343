"""Signals of one client are taken in order, each once, however often daemons die and however commits are divided."""

from __future__ import annotations

import os
import random
from typing import Any

import anyio
import pytest

import streamflow as sf
from streamflow.daemon import batch
from tests.system.conftest import Serve

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

ROUNDS = int(os.environ.get("STREAMFLOW_CHAOS") or 3)
FIRST = int(os.environ.get("STREAMFLOW_CHAOS_SEED") or 0)
SIGNALS = 600
TOGETHER = 60
"""Signals that are sent at the same time."""

app = sf.App()


@app.reducer
def collecting(state: list[int], event: sf.Event) -> sf.Decision:
    state = state or []
    match event:
        case sf.Signal(name="add", value=number):
            return sf.Decision([*state, number])
        case sf.Signal():
            return sf.Decision(state, [sf.Complete(state)])
        case _:
            return sf.Decision(state)


@app.step
async def echo(number: int) -> int:
    return number


@app.workflow
async def collecting_by_steps(count: int) -> list[int]:
    numbers = [await sf.signal("add", int) for _ in range(count // 2)]
    return numbers + [await echo(await sf.signal("add", int)) for _ in range(count // 2)]


async def send(run: sf.Run[Any]) -> None:
    for first in range(0, SIGNALS, TOGETHER):
        async with anyio.create_task_group() as sending:
            for number in range(first, first + TOGETHER):
                sending.start_soon(run.signal, "add", number)
    await run.signal("end")


@pytest.mark.parametrize("seed", range(FIRST, FIRST + ROUNDS))
async def test_signals_stay_in_order_whatever_dies(serve: Serve, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(batch, "RUN_INPUTS", chance.choice([3, 7, 50, 2000]))
    monkeypatch.setattr(batch, "INPUTS", chance.choice([10, 100, 4000]))
    monkeypatch.setattr(batch, "RUNS", chance.choice([1, 2, 500]))
    monkeypatch.setattr(batch, "BYTES", chance.choice([300, 2000, 2 * 1024 * 1024]))
    crashes = 0
    runs: list[sf.Run[Any]] = []
    async with anyio.create_task_group() as sending:
        async with serve(app, shards=2) as (client, _):
            runs += [await client.start(collecting) for _ in range(3)]
            runs += [await client.start(collecting_by_steps, SIGNALS) for _ in range(3)]
        for run in runs:
            sending.start_soon(send, run)
        while crashes < 2:
            crash = chance.random() < 0.6
            async with serve(app, crash=crash, shards=2):
                await anyio.sleep(chance.random() * 0.2)
            crashes += crash
    async with serve(app, shards=2):
        for run in runs:
            assert await run.result(60) == list(range(SIGNALS))
