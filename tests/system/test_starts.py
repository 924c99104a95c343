"""Delayed starts and time-outs of runs, at daemons that come and go."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import streamflow as sf
from streamflow.events import SignalReceived, StartDelayed, StartDue, TimeoutReached, TimeoutSet
from streamflow.model.record import decode_header
from streamflow.store.connection import Call
from tests.support.serving import view
from tests.support.waiting import events_of, happened, names_of, until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

QUICK: dict[str, Any] = {"beat": 0.02, "dead_after": 0.1}

app = sf.App()
cleaned: list[str] = []


@app.step
async def act(what: str) -> str:
    cleaned.append(what)
    return what


@app.workflow
async def late(text: str) -> str:
    return await act(text) + await sf.signal("more", str)


@app.workflow(timeout=3600)
async def limited(text: str) -> str:
    await act(text)
    try:
        return await sf.signal("more", str)
    finally:
        await act("clean")


async def header_of(client: sf.Client, run_id: str) -> Any:
    shard = (await client.read_namespace()).shard_of(run_id)
    return decode_header(await client.store.one(Call.plain("LINDEX", client.keys.shard(shard).run(run_id), 0)))


async def test_a_delayed_start_is_taken_over_with_its_signals(serve: Serve) -> None:
    async with serve(app, crash=True, **QUICK) as (client, _):
        run = await client.start(late, "a", id="late", delay=0.5)
        await happened(run, StartDelayed)
        await run.signal("more", "b")
        await happened(run, SignalReceived)
        due = (await run.describe()).begins
    async with serve(app, **QUICK):
        assert await run.result(10) == "ab"
    assert due is not None
    [begun] = [transition.at for transition in await run.history() if isinstance(transition.events[0], StartDue)]
    assert begun >= due.timestamp() * 1000 - 1
    assert (await header_of(client, "late")).start == f"b{round(due.timestamp() * 1000)}"


async def test_it_is_durable_and_seen_to_wait_before_a_daemon_runs(serve: Serve) -> None:
    async with serve(app) as (client, _):
        pass
    run = await client.start(late, "a", id="late", at=datetime(2200, 1, 1, tzinfo=UTC))
    found = await run.describe()
    assert (found.status, found.begins) == ("pending", datetime(2200, 1, 1, tzinfo=UTC))
    [wait] = found.waits_for
    assert (wait.kind, wait.until) == ("start", found.begins)
    await run.cancel("no")
    async with serve(app):
        with pytest.raises(sf.RunCancelled, match="no"):
            await run.result(10)
    assert await names_of(run) == ["RunStarted", "StartDelayed", "CancelRequested", "RunCancelled"]
    assert await client.store.one(Call.plain("EXISTS", client.keys.shard(0).agenda)) == 0


async def test_a_large_start_that_waits_for_its_turn_is_delayed_all_the_same(serve: Serve) -> None:
    async with serve(app) as (client, _):
        run = await client.start(late, "x" * 10_000, delay=3600)
        await happened(run, StartDelayed)
        assert (await run.describe()).status == "pending"
        await run.terminate()
        with pytest.raises(sf.RunCancelled):
            await run.result(10)


async def test_many_delayed_starts_begin_and_are_counted_once(serve: Serve) -> None:
    async with serve(app) as (client, _):
        runs = await client.start_many(late, [(str(i),) for i in range(5)])
        delayed = [await client.start(late, str(i), delay=0.1) for i in range(50)]
        for run in [*runs, *delayed]:
            await run.signal("more", "!")
        assert [await run.result(10) for run in delayed] == [f"{i}!" for i in range(50)]
        assert [await run.result(10) for run in runs] == [f"{i}!" for i in range(5)]

        async def counted() -> bool:
            found = await view(client, "runs")
            return found is not None and found["status"]["completed"] == 55 and not found["status"]["running"]

        await until(counted)


async def test_a_run_is_timed_out_once_whichever_owner_it_has(serve: Serve) -> None:
    cleaned.clear()
    async with serve(app, crash=True, **QUICK) as (client, _):
        run = await client.start(limited, "a", timeout=timedelta(seconds=0.5))
        await happened(run, TimeoutSet)
    async with serve(app, crash=True, **QUICK):
        await happened(run, TimeoutReached)
    async with serve(app, **QUICK):
        with pytest.raises(sf.RunTimedOut, match="500 ms"):
            await run.result(10)
    found = [type(event).__name__ for event in await events_of(run)]
    assert (found.count("TimeoutReached"), found.count("RunFailed"), found[-1]) == (1, 1, "RunFailed")
    assert cleaned[-1] == "clean"


async def test_a_start_of_a_workflow_that_is_deployed_later_is_listed_and_begins(serve: Serve) -> None:
    async with serve(sf.App()) as (client, _):
        run = await client.start("late", "a", id="late", delay=3600)
        soon = await client.start("late", "b", id="soon", delay=0.01)

        async def are_stuck() -> bool:
            return len(await client.runs(status="stuck", workflow="late")) == 2

        await until(are_stuck)
    async with serve(app):
        await soon.signal("more", "!")
        assert await soon.result(10) == "b!"

        async def is_pending() -> bool:
            return [one.id for one in await client.runs(status="pending", workflow="late")] == ["late"]

        await until(is_pending)
        assert await client.runs(status="stuck", workflow="late") == []
        await run.terminate()
        with pytest.raises(sf.RunCancelled):
            await run.result(10)
        assert [one.id for one in await client.runs(status="cancelled", workflow="late")] == ["late"]
