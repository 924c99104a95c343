"""Owners hear from messages whatever happens to the connection on which they listen (`daemon/inbox.py`)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import anyio
import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

import streamflow as sf
from streamflow.daemon import inbox
from streamflow.daemon.daemon import Daemon
from streamflow.embedded.server import EmbeddedServer
from streamflow.settings import Settings
from streamflow.store.roles import Role, rights
from tests.support.serving import FAST, running_daemon
from tests.support.waiting import DEADLINE, until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()

CUTS = 30
FLOOD = "local n = 0 for _ = 1, 2000 do n = math.max(n, redis.call('SPUBLISH', KEYS[1], KEYS[1])) end return n"
"""Messages of about 200 KB: the server writes none of them before the script has ended. Returns who listens."""
SLOW = 600.0
"""Seconds between two rounds, so that none of them finds anything."""


@app.workflow
async def echo(number: int) -> int:
    return number


@pytest.fixture
def admin(embedded_server: EmbeddedServer, namespace: str) -> Iterator[Redis]:
    with Redis.from_url(embedded_server.url, decode_responses=True) as redis:
        yield redis
        redis.acl_deluser(f"u{namespace}")


def user(admin: Redis, server: EmbeddedServer, namespace: str, role: Role, *rules: str) -> str:
    """The URL of a user with the rights of a role, changed by these rules."""
    granted = rights(role, namespace).rules
    admin.execute_command("ACL", "SETUSER", f"u{namespace}", "reset", "on", ">s3cret", *granted, *rules)
    return server.url.replace("://", f"://u{namespace}:s3cret@")


async def becomes_true(condition: Callable[[], bool]) -> None:
    async def asked() -> bool:
        return condition()

    await until(asked)


async def test_no_message_waits_for_the_round_while_connections_are_cut(
    serve: Serve, embedded_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "ROUND_EVERY", SLOW)
    results: list[int] = []

    async def one_after_the_other(client: sf.Client, first: int) -> None:
        while not done.is_set():
            run = await client.start(echo, first + len(results))
            results.append(await run.result(DEADLINE))

    done = anyio.Event()
    async with (
        serve(app) as (client, _),
        AsyncRedis.from_url(embedded_server.url) as redis,
        anyio.create_task_group() as tasks,
    ):
        for first in range(0, 4000, 1000):
            tasks.start_soon(one_after_the_other, client, first)
        cuts = 0
        while cuts < CUTS:
            seen = len(results)
            cuts += await redis.client_kill_filter(_type="pubsub")
            await becomes_true(lambda seen=seen: len(results) > seen)
        done.set()
    assert len(results) >= CUTS / 2  # a cut may have hit the daemon's connection and that of the client


async def test_no_message_waits_while_the_server_cuts_those_who_read_slowly(
    namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its limit for what a subscriber has not read: a flood of rings reaches it when a daemon is paused."""
    monkeypatch.setattr(inbox, "ROUND_EVERY", SLOW)
    results: list[int] = []
    limit = ("--client-output-buffer-limit", "pubsub", "65536", "0", "0")

    async def one_after_the_other(client: sf.Client, first: int) -> None:
        while not done.is_set():
            run = await client.start(echo, first + len(results))
            results.append(await run.result(DEADLINE))

    async def cut() -> int:
        return int((await redis.info("stats"))["client_output_buffer_limit_disconnections"])

    done = anyio.Event()
    async with (
        EmbeddedServer(memory=True, extra=limit) as server,
        sf.connect(server.url, namespace=namespace) as client,
        running_daemon(app, server, namespace, crash=False),
        AsyncRedis.from_url(server.url) as redis,
        anyio.create_task_group() as tasks,
    ):
        for first in range(0, 4000, 1000):
            tasks.start_soon(one_after_the_other, client, first)
        await becomes_true(lambda: len(results) > 0)
        channels = [client.keys.shard(0).inbox, client.keys.shard(0).done]
        before, listened = await cut(), [0, 0]
        while min(listened) < CUTS:
            seen = len(results)
            for which, channel in enumerate(channels):
                listened[which] += await redis.eval(FLOOD, 1, channel)
            await becomes_true(lambda seen=seen: len(results) > seen)
        assert await cut() - before == sum(listened), "each listener that a flood has reached was cut"
        done.set()
    assert len(results) >= CUTS


async def test_messages_of_a_user_who_may_not_ring_are_found_and_reported(
    serve: Serve,
    admin: Redis,
    embedded_server: EmbeddedServer,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(inbox, "ROUND_EVERY", 0.01)
    async with serve(app):
        url = user(admin, embedded_server, namespace, Role.CLIENT, "resetchannels", f"&sf:{{{namespace}/*}}:done")
        async with sf.connect(url, namespace=namespace) as client:
            with caplog.at_level(logging.WARNING, "streamflow.inbox"), anyio.fail_after(DEADLINE):
                while "were found late, because no ring has announced them" not in caplog.text:
                    assert await (await client.start(echo, 1)).result() == 1


async def test_after_the_right_to_listen_is_back_the_owner_listens(
    client: sf.Client,
    admin: Redis,
    embedded_server: EmbeddedServer,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Until then the round finds what comes."""
    monkeypatch.setattr(inbox, "ROUND_EVERY", 0.01)
    url = user(admin, embedded_server, namespace, Role.DAEMON)
    daemon = Daemon(app, Settings(redis=url, namespace=namespace, **FAST))
    async with anyio.create_task_group() as daemons:
        daemons.start_soon(daemon.run)
        with anyio.fail_after(DEADLINE):
            await daemon.ready.wait()
        assert await (await client.start(echo, 1)).result(DEADLINE) == 1
        user(admin, embedded_server, namespace, Role.DAEMON, "resetchannels", f"&sf:{{{namespace}/*}}:done")
        assert await (await client.start(echo, 2)).result(DEADLINE) == 2
        bell = daemon.reader._bell
        channels = [client.keys.shard(number).inbox for number in range(8)]
        await becomes_true(lambda: not any(bell.is_confirmed(channel) for channel in channels))
        monkeypatch.setattr(inbox, "ROUND_EVERY", SLOW)
        user(admin, embedded_server, namespace, Role.DAEMON)
        await becomes_true(lambda: all(bell.is_confirmed(channel) for channel in channels))
        assert await (await client.start(echo, 3)).result(DEADLINE) == 3
        daemon.stop()
