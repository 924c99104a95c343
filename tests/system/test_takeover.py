"""When a daemon dies, leaves or is joined by another, runs go on elsewhere: same result, each recorded step once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import streamflow as sf
from streamflow.events import (
    ChildCompleted,
    ChildStarted,
    HistoryEvent,
    RunStarted,
    SignalReceived,
    StepCompleted,
    StepRetrying,
    StepScheduled,
    TimerFired,
    TimerSet,
)
from streamflow.store.connection import Call
from tests.support.waiting import events_of, happened, until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

MANY = 64
"""Shards where each of two daemons must have some: with 8, one of them would win all in a test of 128."""

app = sf.App()


@app.step
async def add(n: int) -> int:
    return n + 1


@app.step
def in_thread(n: int) -> int:
    return n + 1


@app.step(retry=sf.Retry(attempts=3, initial=0.05, jitter=0))
async def stumble(n: int) -> int:
    if sf.step_info().attempt < 3:
        raise ConnectionError
    return n + 1


@app.workflow
async def leaf(n: int) -> int:
    return await in_thread(n)


@app.workflow
async def everything() -> dict[str, Any]:
    """A bit of each; the values at the end depend on nothing but the history."""
    n = await add(0)
    n = await stumble(n)
    await sf.sleep(0.05)
    fanned = await sf.gather(*(add(number) for number in range(5)))
    children = await sf.gather(leaf(1), leaf(2))
    extra = await sf.signal("extra", int)
    return {"n": n + extra, "fanned": fanned, "children": children, "id": str(sf.uuid4())}


EXPECTED = {"n": 12, "fanned": [1, 2, 3, 4, 5], "children": [2, 3]}

MOMENTS = [
    (RunStarted, 1),
    (StepScheduled, 1),
    (StepCompleted, 1),
    (StepRetrying, 1),
    (StepRetrying, 2),
    (TimerSet, 1),
    (TimerFired, 1),
    (StepCompleted, 4),
    (ChildStarted, 2),
    (ChildCompleted, 1),
    (SignalReceived, 1),
]


@pytest.mark.parametrize(("kind", "count"), MOMENTS, ids=[f"{kind.__name__}-{count}" for kind, count in MOMENTS])
async def test_a_run_whose_daemon_dies_at_any_moment_ends_the_same(
    serve: Serve, kind: type[HistoryEvent], count: int
) -> None:
    async with serve(app, crash=True) as (client, _):
        run = await client.start(everything, id="e")
        if kind is SignalReceived:
            await run.signal("extra", 10)
        await happened(run, kind, count)
    async with serve(app):
        if kind is not SignalReceived:
            await run.signal("extra", 10)
        result = await run.result(10)
    assert result.pop("id")
    assert result == EXPECTED
    events = await events_of(run)
    recorded = Counter(type(event).__name__ for event in events)
    assert (recorded["StepCompleted"], recorded["ChildCompleted"]) == (7, 2)
    retries = Counter(event.failure.kind for event in events if isinstance(event, StepRetrying))
    assert retries["WorkerLost"] <= 5, "those that were in flight"
    assert retries.total() - retries["WorkerLost"] in (1, 2), "the step counts its attempts, lost ones included"


async def test_many_runs_on_many_shards_survive_two_deaths(serve: Serve) -> None:
    async with serve(app, crash=True) as (client, _):
        runs = [await client.start(everything) for _ in range(30)]
        await happened(runs[-1], StepCompleted)
    async with serve(app, crash=True):
        await happened(runs[0], TimerFired)
    async with serve(app):
        for run in runs:
            await run.signal("extra", 10)
        results = [await run.result(10) for run in runs]
    assert len({result.pop("id") for result in results}) == 30
    assert all(result == EXPECTED for result in results)


async def test_other_daemons_take_over_the_shards_of_a_dead_one(serve: Serve) -> None:
    async with serve(app, shards=MANY) as (client, survivor):
        async with serve(app, shards=MANY, crash=True) as (_, victim):
            await until(lambda: _shared(survivor, victim))
            runs = [await client.start(everything) for _ in range(20)]
            for run in runs:
                await run.signal("extra", 10)
        for run in runs:
            assert (await run.result(10))["n"] == 12
        await until(lambda: _owns(survivor, MANY))


async def _shared(one: Any, other: Any) -> bool:
    await anyio.lowlevel.checkpoint()
    mine, theirs = set(one.owner.shards), set(other.owner.shards)
    return bool(mine and theirs) and len(mine | theirs) == MANY and not mine & theirs


async def _owns(daemon: Any, shards: int) -> bool:
    await anyio.lowlevel.checkpoint()
    return len(daemon.owner.shards) == shards


async def test_a_daemon_that_leaves_hands_over_at_once(serve: Serve) -> None:
    async with serve(app, shards=MANY, dead_after=3600) as (client, stayer):
        async with serve(app, shards=MANY, dead_after=3600) as (_, leaver):
            await until(lambda: _shared(stayer, leaver))
            runs = [await client.start(everything) for _ in range(20)]
        assert not leaver.owner.shards
        for run in runs:
            await run.signal("extra", 10)
            assert (await run.result(10))["n"] == 12
        await until(lambda: _owns(stayer, MANY))
        assert stayer.membership.alive == [stayer.member]


async def test_a_leaving_daemon_lets_its_steps_finish(serve: Serve) -> None:
    app = sf.App()
    running, finish = anyio.Event(), anyio.Event()
    executions: list[int] = []

    @app.step
    async def slow() -> str:
        executions.append(1)
        running.set()
        await finish.wait()
        return "in peace"

    @app.workflow
    async def flow() -> str:
        return await slow()

    async with serve(app, grace=10) as (client, daemon):
        run = await client.start(flow)
        await running.wait()
        daemon.stop()

        async def draining() -> bool:
            return all(shard.draining for shard in daemon.owner.shards.values())

        await until(draining)
        finish.set()
    assert await _of_step(run) == "in peace"
    assert executions == [1]


async def _of_step(run: sf.Run[Any]) -> str:
    [event] = [event for event in await events_of(run) if isinstance(event, StepCompleted)]
    return str(bytes(event.result)[1:], "utf-8")


async def test_after_the_last_daemon_left_no_member_is_listed(serve: Serve) -> None:

    for _ in range(3):
        async with serve(app) as (client, _):
            pass
        assert await client.store.one(Call.plain("HLEN", client.keys.members)) == 0


async def test_a_newcomer_gets_its_share_and_runs_go_on(serve: Serve) -> None:
    async with serve(app, shards=MANY) as (client, first):
        runs = [await client.start(everything) for _ in range(20)]
        async with serve(app, shards=MANY) as (_, second):
            await until(lambda: _shared(first, second))
            for run in runs:
                await run.signal("extra", 10)
                assert (await run.result(10))["n"] == 12
