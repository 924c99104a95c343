"""A defect in any loop of a daemon or worker: the loop runs again, the others go on, and the status says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import anyio
import pytest

import streamflow as sf
from streamflow import loops
from streamflow.daemon import retention
from streamflow.daemon.inbox import InboxReader
from streamflow.daemon.membership import Membership
from streamflow.daemon.owner import Owner
from streamflow.daemon.relay import Relay
from streamflow.daemon.retention import Retention
from streamflow.daemon.rollup import Rollup
from streamflow.store.connection import Call
from streamflow.wire import decode_heartbeat
from streamflow.worker.claims import Claims
from streamflow.worker.reader import QueueReader
from tests.support.waiting import DEADLINE, until
from tests.system.conftest import Serve, Work

pytestmark = pytest.mark.anyio

app = sf.App()


@app.step
async def here(number: int) -> int:
    return number + 1


@app.step(queue="gpu")
async def there(number: int) -> int:
    return number + 1


@app.workflow
async def child(number: int) -> int:
    return await here(number)


@app.workflow
async def all_ways(number: int) -> int:
    """Through every loop: steps at the owner and at a worker, a timer, a child in another shard."""
    await sf.sleep(0.01)
    return await child(await there(await here(number)))


class Defect:
    """Makes a method raise at the next `left` calls, and counts how often it did."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        self.left = self.raised = 0
        real: Callable[..., Any] = getattr(owner, name)

        def call(*args: Any) -> Any:
            if self.left:
                self.left -= 1
                self.raised += 1
                raise ZeroDivisionError(name)
            return real(*args)

        monkeypatch.setattr(owner, name, call)


DAEMON: list[tuple[str, type, str]] = [
    ("owner", Owner, "run_once"),
    ("owner", Owner, "_take_batches"),
    ("owner", Owner, "_take_due_runs"),
    ("inbox", InboxReader, "run_once"),
    ("inbox", InboxReader, "_buffer"),
    ("inbox subscriptions", InboxReader, "subscribe_once"),
    ("relay", Relay, "run_once"),
    ("heartbeats", Membership, "_heartbeat"),
    ("rebalancing", Membership, "_hand_over"),
    ("rollup", Rollup, "run_once"),
    ("retention", Retention, "run_once"),
]
WORKER: list[tuple[str, type, str]] = [
    ("reader", QueueReader, "run_once"),
    ("reader", QueueReader, "_claim"),
    ("reports", Claims, "_report_once"),
    ("heartbeats", Claims, "extend_once"),
    ("expired claims", Claims, "expire_once"),
]


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "SWEEP_EVERY", 0.05)
    monkeypatch.setattr(loops, "FIRST_PAUSE", 0.01)


async def completes(client: sf.Client) -> None:
    runs = [await client.start(all_ways, number) for number in range(3)]
    assert [await run.result(timeout=DEADLINE) for run in runs] == [3, 4, 5]


async def _is(condition: bool) -> bool:
    return condition


@pytest.mark.parametrize(("loop", "owner", "name"), DAEMON, ids=lambda value: getattr(value, "__name__", value))
async def test_a_defect_in_a_loop_of_a_daemon_ends_nothing(
    serve: Serve, work: Work, monkeypatch: pytest.MonkeyPatch, loop: str, owner: type, name: str
) -> None:
    defect = Defect(monkeypatch, owner, name)
    async with serve(app) as (client, daemon), work(app):
        await completes(client)
        defect.left = 2
        await completes(client)
        await until(lambda: _is(defect.raised == 2))

        async def reported() -> bool:
            members = await client.store.one(Call.plain("HGETALL", client.keys.members))
            return any(
                failing.startswith(loop) and error == f"ZeroDivisionError: {name}"
                for raw in members.values()
                for failing, error in decode_heartbeat(raw).failing.items()
            )

        await until(reported)
        assert daemon.loops.errors == 2


@pytest.mark.parametrize(("loop", "owner", "name"), WORKER, ids=lambda value: getattr(value, "__name__", value))
async def test_a_defect_in_a_loop_of_a_worker_ends_nothing(
    serve: Serve, work: Work, monkeypatch: pytest.MonkeyPatch, loop: str, owner: type, name: str
) -> None:
    defect = Defect(monkeypatch, owner, name)
    async with serve(app) as (client, _), work(app) as worker:
        await completes(client)
        defect.left = 2
        await completes(client)
        await until(lambda: _is(defect.raised == 2))
        await until(lambda: _is(worker.loops.errors == 2))
        assert worker.loops.failing == {loop: f"ZeroDivisionError: {name}"}


async def test_a_step_that_cancels_every_task_ends_no_loop(serve: Serve) -> None:
    local = sf.App()

    @local.step(retry=sf.NO_RETRY)
    async def cancels(name: str) -> int:
        tasks = [task for task in asyncio.all_tasks() if name in task.get_name()]
        for task in tasks:
            task.cancel()
        return len(tasks)

    @local.workflow
    async def harms() -> int:
        return await cancels("Supervisor.run")

    async with serve(local) as (client, daemon):
        with anyio.fail_after(DEADLINE):
            run = await client.start(harms)
            assert await run.result() >= 10
            assert await (await client.start(harms)).result() >= 10
        assert daemon.loops.errors >= 20
