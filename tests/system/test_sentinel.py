"""A namespace whose URL names Sentinels: they tell which server is the primary, also after it was lost."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest
from redis import exceptions as redis_errors
from redis.asyncio import Redis

import streamflow as sf
from streamflow.cli.connection import check_server
from streamflow.daemon.daemon import Daemon
from streamflow.embedded.server import EmbeddedServer
from streamflow.errors import StoreUnavailable
from streamflow.server_url import sentinels_of
from streamflow.settings import Settings
from streamflow.store import heartbeat_child
from streamflow.store.connection import Call, Store
from streamflow.store.inspection import inspect
from streamflow.store.keys import NamespaceKeys
from streamflow.store.node import Node
from streamflow.worker.worker import Worker
from tests.cluster import mending
from tests.support.lines import port_of
from tests.support.secure import Certificates, free_port, tls_options, tls_server
from tests.support.sentinels import PASSWORD, SERVICE, command_sentinels, sentinels, start_sentinel
from tests.support.serving import FAST
from tests.support.waiting import DEADLINE

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

app = sf.App()


@app.step(queue="gpu")
async def double(number: int) -> int:
    return 2 * number


@app.workflow
async def doubles(number: int) -> int:
    return await double(number)


class Pair(NamedTuple):
    primary: EmbeddedServer
    replica: EmbeddedServer
    url: str


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    quick = ("--repl-diskless-sync-delay", "0")
    async with (
        EmbeddedServer(tmp_path / "a", extra=quick) as primary,
        EmbeddedServer(tmp_path / "b", extra=quick) as replica,
        Redis.from_url(replica.url) as redis,
    ):
        await redis.execute_command("REPLICAOF", "127.0.0.1", port_of(primary.url))
        while (await redis.info("replication"))["master_link_status"] != "up":  # noqa: ASYNC110
            await anyio.sleep(0.02)
        async with sentinels(tmp_path, primary, password=PASSWORD) as url:
            yield Pair(primary, replica, url)


async def becomes(server: EmbeddedServer, role: str, seconds: float = DEADLINE) -> None:
    """Each time over a connection of its own: Sentinels close all when they change a server's role."""
    with anyio.fail_after(seconds):
        while True:
            with contextlib.suppress(redis_errors.ConnectionError):
                async with Redis.from_url(server.url) as redis:
                    if (await redis.info("replication"))["role"] == role:
                        return
            await anyio.sleep(0.05)


async def own_clients(server: EmbeddedServer) -> int:
    """Connections of daemons, workers and clients, by what they have sent last."""
    clients: Any = []
    with contextlib.suppress(redis_errors.ConnectionError):
        async with Redis.from_url(server.url) as redis:
            clients = await redis.execute_command("CLIENT LIST")
    return len([one for one in clients if one["cmd"].startswith(("evalsha", "xread", "ssubscribe"))])


@pytest.mark.parametrize("loss", ["killed", "frozen"])
async def test_work_goes_on_at_the_primary_that_is_promoted(pair: Pair, loss: str) -> None:
    """The former primary then comes back and still thinks that it is one: nobody stays with it.

    The Sentinels might promote it again, as it is, if the other one is slow: that is ruled out here.
    """
    chosen: dict[str, Any] = FAST | {"beat": 0.2, "dead_after": 3.0}
    settings = Settings(redis=pair.url, **chosen)
    daemon, worker = Daemon(app, settings), Worker(app, settings, ("gpu",))
    started: dict[int, sf.Run[int]] = {}
    under_load = anyio.Event()
    enough = False

    async def load(client: sf.Client) -> None:
        number = 0
        while not enough:
            try:
                started[number] = await client.start(doubles, number, id=f"run-{number}")
            except StoreUnavailable:
                continue  # the same start again
            number += 1
            if number == 50:
                under_load.set()
            await anyio.sleep(0.01)

    async def check(client: sf.Client, number: int) -> None:
        """The newest starts may not have reached the replica: they are repeated."""
        run = await client.start(doubles, number, id=f"run-{number}")
        assert await run.result() == 2 * number

    async with sf.connect(pair.url) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(daemon.run)
        tasks.start_soon(worker.run)
        with anyio.fail_after(DEADLINE):
            await daemon.ready.wait()
            await worker.ready.wait()
        tasks.start_soon(load, client)
        await under_load.wait()
        os.kill(pair.primary.pid, signal.SIGKILL if loss == "killed" else signal.SIGSTOP)
        try:
            with anyio.fail_after(60):
                await becomes(pair.replica, "master")
                await command_sentinels(pair.url, "SENTINEL", "SET", SERVICE, "down-after-milliseconds", "600000")
                before = len(started)
                while len(started) < before + 50:  # noqa: ASYNC110
                    await anyio.sleep(0.05)
        finally:
            if loss == "frozen":
                os.kill(pair.primary.pid, signal.SIGCONT)
        if loss == "killed":
            await pair.primary.kill()
            await pair.primary.start()
        before = len(started)
        with anyio.fail_after(60):
            while len(started) < before + 50:  # noqa: ASYNC110
                await anyio.sleep(0.05)
            while await own_clients(pair.primary):  # noqa: ASYNC110
                await anyio.sleep(0.05)
            enough = True
            async with anyio.create_task_group() as checks:
                for number in started:
                    checks.start_soon(check, client, number)
            await becomes(pair.primary, "slave", 60)
        daemon.stop()
        worker.stop()


async def test_what_the_promoted_server_lacks_is_stored_again(pair: Pair) -> None:
    """By the daemon that had decided it, and the client that had sent it."""
    chosen: dict[str, Any] = FAST | {"beat": 0.2, "dead_after": 6.0}
    daemon = Daemon(mending.app, Settings(redis=pair.url, **chosen))
    mending.executed.clear()
    async with sf.connect(pair.url) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(daemon.run)
        with anyio.fail_after(DEADLINE):
            await daemon.ready.wait()
        load, lacks = mending.Load(client, "run"), 0
        async with anyio.create_task_group() as loads:
            loads.start_soon(load.run)
            await mending.happens(lambda: len(load.acknowledged) > 5)
            async with Redis.from_url(pair.replica.url) as replica, Redis.from_url(pair.primary.url) as primary:
                await replica.config_set("masterauth", "a password that nobody has")
                await primary.execute_command("CLIENT", "KILL", "TYPE", "replica")
                await mending.decided()
                written, received = await primary.info("replication"), await replica.info("replication")
                lacks = written["master_repl_offset"] - received["slave_repl_offset"]
            await pair.primary.kill()
            await becomes(pair.replica, "master", 60)
            await anyio.sleep(0.5)
            load.stopped = True
        assert lacks > 0, "writes are missing"
        assert daemon.owner.recent_commits.transitions > 0
        assert load.ended == dict.fromkeys(load.acknowledged, mending.EXPECTED)
        assert not daemon.owner.lost_writes.total
        daemon.stop()


async def port_of_server(store: Store) -> int:
    info: dict[str, Any] = await store.one(Call.plain("INFO", "server"))
    return int(info["tcp_port"])


async def test_a_primary_that_was_replaced_in_good_health_is_left(pair: Pair) -> None:
    """Cut off from its Sentinels, it would go on as a primary: only they tell that it isn't one any more."""
    store = Node(pair.url)
    try:
        await store.one(Call.plain("SET", "mark", "1"))
        await command_sentinels(pair.url, "SENTINEL", "FAILOVER", SERVICE, how_many=1)
        with anyio.fail_after(DEADLINE):
            while await port_of_server(store) != port_of(pair.replica.url):  # noqa: ASYNC110
                await anyio.sleep(0.05)
        await store.one(Call.plain("SET", "mark", "2"))
    finally:
        await store.close()


async def test_a_command_waits_for_a_failover(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    """Also for one that takes longer than a server may take for its first answer."""
    await command_sentinels(pair.url, "SENTINEL", "SET", SERVICE, "down-after-milliseconds", "4000")
    store = Node(pair.url, connections=1)
    os.kill(pair.primary.pid, signal.SIGSTOP)
    try:
        with anyio.fail_after(2 * DEADLINE):
            await check_server(store)
        assert await port_of_server(store) == port_of(pair.replica.url)
        assert "doesn't answer, waiting up to 8 s for a failover" in caplog.text
    finally:
        os.kill(pair.primary.pid, signal.SIGCONT)
        await store.close()


async def test_a_command_does_not_wait_for_sentinels(caplog: pytest.LogCaptureFixture) -> None:
    store = Node(f"redis+sentinel://127.0.0.1:{free_port()}/{SERVICE}", connections=1)
    try:
        with pytest.raises(StoreUnavailable, match="no Sentinel of"):
            await check_server(store)
        assert "waiting" not in caplog.text
    finally:
        await store.close()


async def test_sentinels_that_are_down_are_passed_over(pair: Pair) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{unused.getsockname()[1]}"
        store = Node(pair.url.replace("redis+sentinel://", f"redis+sentinel://{dead},"))
        try:
            assert await store.one(Call.plain("PING")) in (True, b"PONG")
        finally:
            await store.close()


async def test_a_replica_that_is_gone_is_missed_by_check(pair: Pair) -> None:
    """The Sentinels go on counting it, as something that may come back."""
    store = Node(pair.url)
    try:
        assert [found.message for found in await inspect(store, NamespaceKeys("jobs"))] == []
        os.kill(pair.replica.pid, signal.SIGKILL)
        async with Redis.from_url(pair.primary.url) as redis:
            with anyio.fail_after(DEADLINE):
                while (await redis.info("replication"))["connected_slaves"]:  # noqa: ASYNC110
                    await anyio.sleep(0.05)
        (found,) = await inspect(store, NamespaceKeys("jobs"))
        assert (found.is_error, found.about) == (False, "server")
        assert found.message.startswith("no replica is connected to the primary: ")
    finally:
        await store.close()


async def test_a_sentinel_in_the_place_of_a_server_is_recognised(pair: Pair) -> None:
    found = sentinels_of(pair.url)
    assert found is not None
    host, port = found.addresses[0]
    store = Node(f"redis://:{PASSWORD}@{host}:{port}", patience=0.3)
    try:
        with pytest.raises(StoreUnavailable, match=r"is a Sentinel.* Use redis\+sentinel://HOST:PORT/SERVICE"):
            await store.one(Call.plain("PING"))
    finally:
        await store.close()


@pytest.mark.parametrize(
    ("change", "reason"),
    [((f"/{SERVICE}", "/others"), "No such master"), ((PASSWORD, "wrong"), "(?i)password|auth")],
)
async def test_the_error_says_what_the_sentinels_answer(pair: Pair, change: tuple[str, str], reason: str) -> None:
    store = Node(pair.url.replace(*change), patience=0.5)
    try:
        with pytest.raises(StoreUnavailable, match=reason) as caught:
            await store.one(Call.plain("PING"))
        assert PASSWORD not in str(caught.value)
        assert "names a primary of" in str(caught.value)
    finally:
        await store.close()


async def port_of_heartbeats(url: str) -> int:
    """Of the server to which the process beside a daemon connects."""
    asked = sentinels_of(url)
    assert asked is not None
    client = heartbeat_child.client_for({"url": asked.server, "sentinels": asked._asdict(), "every": 1.0})
    try:
        return int(await anyio.to_thread.run_sync(lambda: client.info("server")["tcp_port"]))
    finally:
        client.close()


async def test_the_heartbeat_process_finds_the_primary(pair: Pair) -> None:
    assert await port_of_heartbeats(pair.url) == port_of(pair.primary.url)


async def test_sentinels_and_their_server_may_demand_tls(certificates: Certificates, tmp_path: Path) -> None:
    async with tls_server(certificates) as (server, port):
        sentinel_port = free_port()
        options = " ".join(tls_options(certificates, sentinel_port)).split(" --")
        lines = [
            *(option.removeprefix("--") for option in options),
            "port 0",
            "tls-replication yes",
            f"sentinel monitor {SERVICE} 127.0.0.1 {port} 1",
        ]
        binary = shutil.which(Path(f"/proc/{server.pid}/comm").read_text().strip())  # it has TLS
        assert binary is not None
        process = start_sentinel(tmp_path / "sentinel", lines, Path(binary))
        url = f"rediss+sentinel://127.0.0.1:{sentinel_port}/{SERVICE}?ssl_ca_certs={certificates.path('ca.pem')}"
        store = Node(url)
        try:
            assert await port_of_server(store) == port_of(server.url)
            assert await port_of_heartbeats(url) == port_of(server.url)
            untrusting = Node(url.partition("?")[0], patience=0.3)
            with pytest.raises(StoreUnavailable, match="add ssl_ca_certs=FILE"):
                await untrusting.one(Call.plain("PING"))
            await untrusting.close()
            plain = Node(f"redis+sentinel://127.0.0.1:{sentinel_port}/{SERVICE}", patience=0.3)
            with pytest.raises(StoreUnavailable, match=r"use rediss\+sentinel://"):
                await plain.one(Call.plain("PING"))
            await plain.close()
        finally:
            await store.close()
            process.kill()
            process.wait()
