"""What a daemon's executor holds: as many steps as may run at once, and none that nobody waits for any more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import streamflow as sf
from streamflow.daemon import step_records
from streamflow.events import StepScheduled, TimerSet
from streamflow.store.connection import Call
from tests.support.waiting import happened, until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio


class Blocked:
    """An app whose steps run until `go_on` is set, and which of them have begun."""

    def __init__(self) -> None:
        self.app = app = sf.App()
        self.begun: list[int] = []
        self.go_on = anyio.Event()

        @app.step
        async def work(number: int) -> int:
            self.begun.append(number)
            await self.go_on.wait()
            return number

        @app.step
        async def echo(text: str) -> str:
            return text

        @app.workflow
        async def gathers(count: int) -> list[int]:
            return await sf.gather(*(work(number) for number in range(count)))

        @app.workflow
        async def races() -> int | str | None:
            return await sf.race(work(0), echo("fast"), sf.signal("never", str))

        @app.workflow
        async def sleeps() -> None:
            await sf.sleep(30 * 86400)

        self.gathers, self.races, self.sleeps = gathers, races, sleeps


async def executor_holds(daemon: Any, running: int, waiting: int) -> None:
    async def holds() -> bool:
        await anyio.lowlevel.checkpoint()
        return (daemon.executor.running, daemon.executor.waiting) == (running, waiting)

    await until(holds)


async def test_steps_beyond_the_concurrency_wait(serve: Serve) -> None:
    blocked = Blocked()
    async with serve(blocked.app, concurrency=2) as (client, daemon):
        run = await client.start(blocked.gathers, 6)
        await executor_holds(daemon, running=2, waiting=4)
        blocked.go_on.set()
        assert await run.result(10) == list(range(6))
        await executor_holds(daemon, running=0, waiting=0)


async def test_a_cancelled_run_leaves_nothing_in_the_executor(serve: Serve) -> None:
    blocked = Blocked()
    async with serve(blocked.app, concurrency=1) as (client, daemon):
        run = await client.start(blocked.gathers, 3)
        await executor_holds(daemon, running=1, waiting=2)
        await run.cancel()
        with pytest.raises(sf.RunCancelled):
            await run.result(10)
        await executor_holds(daemon, running=0, waiting=0)
        assert blocked.begun == [0]


async def test_a_race_leaves_nothing_in_the_executor(serve: Serve) -> None:
    blocked = Blocked()
    async with serve(blocked.app) as (client, daemon):
        assert await (await client.start(blocked.races)).result(10) == "fast"
        await executor_holds(daemon, running=0, waiting=0)


async def test_a_sleeping_run_holds_nothing_in_the_executor(serve: Serve) -> None:
    blocked = Blocked()
    async with serve(blocked.app) as (client, daemon):
        await happened(await client.start(blocked.sleeps), TimerSet)
        assert (daemon.executor.running, daemon.executor.waiting) == (0, 0)


async def test_what_calls_left_behind_a_runs_end_goes_with_the_next_takeover(serve: Serve) -> None:
    """Details and records of lent steps that arrived behind the commits that delete them."""
    blocked = Blocked()
    async with serve(blocked.app, crash=True) as (client, _):
        ended, waits = await client.start(blocked.gathers, 0), await client.start(blocked.gathers, 1)
        await ended.result(10)
        await happened(waits, StepScheduled)
        sleeps = await client.start(blocked.sleeps)
        await happened(sleeps, TimerSet)
        shard_of = (await client.read_namespace()).shard_of
    fields: dict[str, list[str]] = {}
    for run_id in (ended.id, sleeps.id, waits.id, "nobody"):
        keys = client.keys.shard(shard_of(run_id))
        for key, value in ((keys.details, b"900 \7"), (keys.steps, b"gone 900 1 wanted")):
            await client.store.one(Call.plain("HSET", key, f"{run_id}/9", value))
            fields.setdefault(run_id, []).append(key)

    async def only_deleted() -> bool:
        lost = [Call.plain("HEXISTS", key, f"{run_id}/9") for run_id, keys in fields.items() for key in keys]
        return not any(await client.store.send(lost))

    async with serve(blocked.app) as (client, _):
        await until(only_deleted)
        blocked.go_on.set()
        assert await waits.result(10) == [0]


async def test_a_lent_step_whose_outcome_the_server_has_lost_runs_again(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unnoticed by its host: the server has acknowledged the report, and has the record as it was before it."""
    monkeypatch.setattr(step_records, "LOOK_AGAIN", 0.5)
    blocked = Blocked()
    async with serve(blocked.app, shards=8) as (client, first):
        runs = await client.start_many(blocked.gathers, [(1,) for _ in range(20)])
        await executor_holds(first, running=20, waiting=0)
        async with serve(blocked.app, shards=8):

            async def lends() -> bool:
                return first.records.running > 0 and not first.records._releasing

            await until(lends)
            send, lost = first.records._store.send, list[str]()

            async def forgetful(calls: list[Call[Any]], **how: Any) -> list[Any]:
                """The first reports only seem to have arrived."""
                if calls[0].script != "report_step" or "outcome" not in calls[0].args or lost:
                    return await send(calls, **how)
                lost.extend(call.args[3] for call in calls)
                return ["a"] * len(calls)

            monkeypatch.setattr(first.records, "_store", SimpleNamespace(send=forgetful))
            before = len(blocked.begun)
            blocked.go_on.set()
            assert [await run.result(30) for run in runs] == [[0]] * 20
            assert lost
            assert len(blocked.begun) == before + len(lost), "these, and no others"
