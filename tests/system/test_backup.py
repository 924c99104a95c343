"""A backup of a server, restored into a new one: what it has goes on, and nothing that it has confirmed runs again.

The commands of docs/operations.md for this are run word for word by `tests/process/test_operations.py`.
"""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

import streamflow as sf
from streamflow.embedded.server import EmbeddedServer
from streamflow.events import StepCompleted
from streamflow.settings import Settings
from streamflow.worker.worker import Worker
from tests.support.serving import FAST, running_daemon
from tests.support.waiting import DEADLINE, happened, until
from tests.system.test_failover import tell
from tests.system.test_lost_writes import check_all_complete, check_views, status_of_all

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

NAMESPACE = "backed-up"
app = sf.App()
executed: Counter[str] = Counter()
keys: defaultdict[str, set[str]] = defaultdict(set)
"""Idempotency keys of the executions of a step."""


@app.step
async def act(name: str) -> str:
    executed[name] += 1
    keys[name].add(sf.step_info().key)
    return name


@app.step(queue="gpu")
async def act_in_queue(name: str) -> str:
    executed[name] += 1
    return name


@app.workflow
async def chain(name: str) -> str:
    for number in range(3):
        await act(f"{name}-{number}")
    return name


@app.workflow
async def approval(name: str) -> str:
    await act(f"{name}-first")
    value = await sf.signal("go", str)
    return value + await act(f"{name}-last")


@app.workflow
async def everything(name: str) -> tuple[None, str, str, str]:
    """What can be open: a timer, a signal, a step in a queue, a child."""
    await act(f"{name}-first")
    child = approval.options(id=f"{name}-child")(f"{name}-child")
    return await sf.gather(sf.sleep(0.5), sf.signal("go", str), act_in_queue(f"{name}-queued"), child)


async def copy_of_the_log(server: EmbeddedServer, to: Path) -> None:
    """As operations.md says: a rewrite in the middle of the copy would leave half of each."""
    await tell(server.url, "CONFIG", "SET", "auto-aof-rewrite-percentage", 0)
    await no_rewrite(server.url)
    await anyio.to_thread.run_sync(lambda: shutil.copytree(server.directory / "appendonly", to / "appendonly"))


async def snapshot(server: EmbeddedServer, to: Path) -> None:
    await tell(server.url, "SAVE")
    to.mkdir()
    shutil.copy(server.directory / "dump.rdb", to)


async def no_rewrite(url: str) -> None:
    async def is_over() -> bool:
        info = await tell(url, "INFO", "persistence")
        return not info["aof_rewrite_in_progress"] and not info.get("aof_rewrite_scheduled")

    await until(is_over)


async def begin_with_a_snapshot(to: Path) -> None:
    """A server that has an append-only file doesn't read a snapshot: begin without one, and switch it on."""
    async with EmbeddedServer(to, memory=True) as server:
        await tell(server.url, "CONFIG", "SET", "appendonly", "yes")
        await no_rewrite(server.url)


async def begin_with_the_log(_: Path) -> None:
    pass


Take = Callable[[EmbeddedServer, Path], Awaitable[None]]
Begin = Callable[[Path], Awaitable[None]]


@pytest.mark.parametrize(
    ("take", "begin"),
    [
        pytest.param(copy_of_the_log, begin_with_the_log, id="append-only file"),
        pytest.param(snapshot, begin_with_a_snapshot, id="snapshot"),
    ],
)
async def test_runs_go_on_at_a_server_that_was_restored(tmp_path: Path, take: Take, begin: Begin) -> None:
    executed.clear()
    keys.clear()
    acknowledged: list[str] = []
    before: list[str] = []
    async with (
        EmbeddedServer(tmp_path / "former") as former,
        sf.connect(former.url, namespace=NAMESPACE) as client,
        running_daemon(app, former, NAMESPACE, crash=True),
    ):
        done = await client.start(chain, "done", id="done")
        assert await done.result(DEADLINE) == "done"
        waiting = await client.start(everything, "waiting", id="waiting")
        signalled = await client.start(approval, "signalled", id="signalled")
        advanced = await client.start(approval, "advanced", id="advanced")
        for run in (waiting, signalled, advanced):
            await happened(run, StepCompleted)
        child = client.run("waiting-child")
        await until(lambda: exists(child))
        await happened(child, StepCompleted)

        async def start_more() -> None:
            while True:
                name = f"load-{len(acknowledged)}"
                await client.start(chain, name, id=name)
                acknowledged.append(name)

        async with anyio.create_task_group() as starts:
            starts.start_soon(start_more)
            while len(acknowledged) < 50:  # noqa: ASYNC110
                await anyio.sleep(0.001)
            await signalled.signal("go", "yes ")
            before = list(acknowledged)
            await take(former, tmp_path / "restored")
            starts.cancel_scope.cancel()
        await advanced.signal("go", "yes ")
        assert await advanced.result(DEADLINE) == "yes advanced-last"
        await client.start(chain, "late", id="late")

    await begin(tmp_path / "restored")
    settings: dict[str, Any] = {**FAST, "dead_after": 2.0}
    async with (
        EmbeddedServer(tmp_path / "restored") as restored,
        sf.connect(restored.url, namespace=NAMESPACE) as client,
        running_daemon(app, restored, NAMESPACE, crash=False, **settings),
        anyio.create_task_group() as workers,
    ):
        worker = Worker(app, Settings(redis=restored.url, namespace=NAMESPACE, **settings), ["gpu"])
        workers.start_soon(worker.run)
        assert await client.run("done").result(DEADLINE) == "done"
        assert await client.run("signalled").result(DEADLINE) == "yes signalled-last", "a signal that was confirmed"
        advanced = client.run("advanced")
        await advanced.signal("go", "yes ")
        assert await advanced.result(DEADLINE) == "yes advanced-last", "set back, the signal is sent again"
        await client.run("waiting").signal("go", "on")
        await client.run("waiting-child").signal("go", "yes ")
        assert await client.run("waiting").result(DEADLINE) == [None, "on", "waiting-queued", "yes waiting-child-last"]
        with pytest.raises(sf.RunNotFound):
            await client.run("late").describe()
        late = await client.start(chain, "late", id="late")
        assert late.created
        assert await late.result(DEADLINE) == "late"
        await check_all_complete(client, before)
        assert set(await status_of_all(client, before)) == set(before), "every start that was acknowledged before"
        await check_views(client)
        worker.stop()
    confirmed = [
        "waiting-first",
        "waiting-child-first",
        "signalled-first",
        "advanced-first",
        *(f"done-{number}" for number in range(3)),
    ]
    assert [executed[name] for name in confirmed] == [1] * len(confirmed), "what was recorded doesn't run again"
    assert executed["signalled-last"] <= 2
    assert executed["advanced-last"] == 2, "what was recorded after the backup does,"
    assert len(keys["advanced-last"]) == 1, "with the same idempotency key"


async def exists(run: sf.Run[object]) -> bool:
    try:
        return (await run.describe()).version > 0
    except sf.RunNotFound:
        return False
