"""A server that is full, or that has lost its data: what runs goes on or is said to be lost, and nobody has to act."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

import streamflow as sf
from streamflow.client import client as client_module
from streamflow.daemon.daemon import Daemon
from streamflow.embedded.server import EmbeddedServer
from streamflow.errors import StoreFull
from streamflow.settings import Settings
from streamflow.store.connection import Call
from streamflow.worker.worker import Worker
from tests.support.serving import FAST, running_daemon, view
from tests.support.waiting import DEADLINE, reduced, until

pytestmark = pytest.mark.anyio

NAMESPACE = "hostile"

app = sf.App()


@app.step(queue="gpu")
async def queued() -> str:
    return "queued"


@app.workflow
async def child() -> str:
    return "child"


@app.workflow
async def waits(kind: str) -> str:
    await sf.signal("go", int)
    return await (queued() if kind == "queue" else child())


@app.workflow
async def naps(kind: str) -> str:
    await sf.sleep(1.0)
    return await (queued() if kind == "queue" else child())


@pytest.fixture
async def server() -> AsyncIterator[EmbeddedServer]:
    """In memory only: a restart loses all data."""
    async with EmbeddedServer(memory=True) as server:
        yield server


@asynccontextmanager
async def worker(server: EmbeddedServer) -> AsyncGenerator[Worker]:
    settings: dict[str, Any] = FAST | {"concurrency": 4, "worker_timeout": 0.6}
    made = Worker(app, Settings(redis=server.url, namespace=NAMESPACE, **settings), ("gpu",))
    async with anyio.create_task_group() as workers:
        workers.start_soon(made.run)
        with anyio.fail_after(DEADLINE):
            await made.ready.wait()
        yield made
        made.stop()


async def owning(daemon: Daemon, shards: int) -> None:
    async def reached() -> bool:
        return len(daemon.owner.shards) == shards

    await until(reached)


async def fill(client: sf.Client) -> None:
    await client.store.one(Call.plain("CONFIG", "SET", "maxmemory", "1mb"))
    with pytest.raises(StoreFull):
        await client.store.one(Call.plain("SET", "x", "y"))


async def test_what_runs_on_a_full_server_ends_and_what_is_new_is_refused(server: EmbeddedServer) -> None:
    async with (
        running_daemon(app, server, NAMESPACE, crash=False),
        sf.connect(server.url, namespace=NAMESPACE) as client,
    ):
        runs = await client.start_many(naps, [("queue",)] + [("child",)] * 3)
        unwanted = await client.start(waits, "child")
        await reduced(client, unwanted.id)
        await fill(client)
        with pytest.raises(StoreFull, match="out of memory"):
            await client.start(naps, "child")
        with pytest.raises(StoreFull):
            await unwanted.signal("go", 1)
        await unwanted.cancel("no memory")
        with pytest.raises(sf.RunCancelled):
            await unwanted.result(DEADLINE)
        for run in runs[1:]:
            assert await run.result(DEADLINE) == "child"
        async with worker(server):  # the queue has been used for the first time when the server was full
            assert await runs[0].result(DEADLINE) == "queued"


async def test_processes_that_start_at_a_full_server_go_on_draining(server: EmbeddedServer) -> None:
    async with sf.connect(server.url, namespace=NAMESPACE) as client:
        async with running_daemon(app, server, NAMESPACE, crash=True):
            runs = await client.start_many(naps, [("queue",), ("child",)])
            for run in runs:
                await reduced(client, run.id)
        await fill(client)
        async with running_daemon(app, server, NAMESPACE, crash=False), worker(server):
            assert [await run.result(DEADLINE) for run in runs] == ["queued", "child"]
            assert await client.forget(runs[1].id)


@pytest.mark.parametrize("how", ["FLUSHALL", "a restart without data"])
async def test_a_namespace_whose_data_are_gone_begins_again(
    server: EmbeddedServer, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        running_daemon(app, server, NAMESPACE, crash=False) as daemon,
        worker(server),
        sf.connect(server.url, namespace=NAMESPACE) as client,
    ):
        assert await (await client.start(naps, "queue")).result(DEADLINE) == "queued"
        async with sf.connect(server.url, namespace=NAMESPACE) as other:  # one that lives would start its run again
            await reduced(other, (await other.start(waits, "child", id="lost")).id)
        identity = await client.store.one(Call.plain("HGET", client.keys.meta, "identity"))
        if how == "FLUSHALL":
            await client.store.one(Call.plain("FLUSHALL"))
        else:
            await server.restart()

        async def is_there_again() -> bool:
            found = await client.store.one(Call.plain("HGET", client.keys.meta, "identity"))
            return found not in (None, identity)

        await until(is_there_again)

        async def is_said() -> bool:
            return "the data of namespace hostile were deleted" in caplog.text

        await until(is_said)
        await owning(daemon, FAST["shards"])
        assert set(await client.workflows()) == {"child", "naps", "waits"}
        again = await client.start(naps, "queue", id="lost")
        assert await again.result(DEADLINE) == "queued"

        async def queues_are_listed_again() -> bool:
            return await client.store.one(Call.plain("HKEYS", client.keys.queues)) == [b"gpu"]

        await until(queues_are_listed_again)
        found = await client.store.one(Call.plain("HGET", client.keys.meta, "identity"))
        assert daemon.owner._namespace.identity == found.decode(), "notifications prove that they are of these data"

        async def counted() -> bool:
            runs = await view(client, "runs")
            return runs is not None and runs["status"]["completed"] == 1 and runs["status"]["running"] == 0

        await until(counted)


async def test_a_client_follows_a_namespace_that_was_deleted_and_created_again(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it has another number of shards then: a start in the wrong one would never be found."""
    monkeypatch.setattr(client_module, "READ_AGAIN_SECONDS", 0.05)
    async with sf.connect(server.url, namespace=NAMESPACE) as client:
        async with running_daemon(app, server, NAMESPACE, crash=False, shards=4):
            before = await client.read_namespace()
            lost = await client.start(waits, "child", id="lost")
            await reduced(client, lost.id)
        await client.store.one(Call.plain("FLUSHALL"))
        async with running_daemon(app, server, NAMESPACE, crash=False, shards=8):

            async def is_known() -> bool:
                try:
                    return (await client.read_namespace()).identity != before.identity
                except sf.NamespaceMissing:
                    return False

            await until(is_known)
            runs = [await client.start(waits, "child", id=f"r{n}") for n in range(8)]
            for run in runs:
                await run.signal("go", 1)
                assert await run.result(DEADLINE) == "child"
            with pytest.raises(sf.RunNotFound):
                await lost.result(DEADLINE)
            assert client._waiter.identity == (await client.read_namespace()).identity


async def test_a_namespace_that_comes_back_with_other_settings_ends_the_daemon(
    server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with sf.connect(server.url, namespace=NAMESPACE) as client:
        async with running_daemon(app, server, NAMESPACE, crash=False) as daemon:
            await client.store.one(
                Call.plain("HSET", client.keys.meta, "identity", "another", "shards", FAST["shards"] * 2)
            )
            await owning(daemon, 0)
        assert "namespace hostile was deleted and created again with other settings" in caplog.text
