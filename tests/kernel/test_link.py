"""Slow and silent lines, and servers that can't serve any more while their connections stay open."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from streamflow.embedded.server import EmbeddedServer
from streamflow.errors import StoreError, StoreUnavailable
from streamflow.store import link, node
from streamflow.store.connection import Call
from streamflow.store.node import Node
from streamflow.store.subscription import NodeSubscription
from tests.kernel.support import until
from tests.support.lines import Line, line_to, port_of, refusing

pytestmark = pytest.mark.anyio

QUICK = ("--repl-diskless-sync-delay", "0")


@pytest.fixture
async def server() -> AsyncIterator[EmbeddedServer]:
    async with EmbeddedServer(memory=True, extra=QUICK) as server:
        yield server


@pytest.fixture
async def successor() -> AsyncIterator[EmbeddedServer]:
    async with EmbeddedServer(memory=True, extra=QUICK) as server:
        yield server


@pytest.fixture
async def line(server: EmbeddedServer) -> AsyncIterator[Line]:
    async with line_to(server.url) as line:
        yield line


@contextlib.asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncGenerator[Node]:
    store = Node(url, **options)
    try:
        yield store
    finally:
        await store.close()


async def plain(url: str, *words: Any) -> Any:
    async with opened(url) as store:
        return await store.one(Call.plain(*words))


async def fail_over(line: Line, server: EmbeddedServer, successor: EmbeddedServer) -> None:
    """As many operators do: the former primary becomes a replica, connections to it stay open."""
    line.target = port_of(successor.url)
    await plain(server.url, "REPLICAOF", "127.0.0.1", port_of(successor.url))


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of a second of silence is much, three quarters are too much on a line where others move."""
    monkeypatch.setattr(link, "TICK", 0.05)


# --- a server that can't serve any more -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply",
    [
        "READONLY You can't write against a read only replica.",
        "LOADING Redis is loading the dataset in memory",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "CLUSTERDOWN The cluster is down",
        "NOREPLICAS Not enough good replicas to write.",
        "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
    ],
    ids=lambda reply: reply.partition(" ")[0].lower(),
)
async def test_what_cannot_serve_is_left_for_what_the_name_leads_to(server: EmbeddedServer, reply: str) -> None:
    async with refusing(reply) as refuser, line_to(refuser) as line, opened(line.url, patience=5) as store:
        with pytest.raises(StoreUnavailable):
            await store.send([Call.plain("SET", "key", "1")], patience=0)
        line.target = port_of(server.url)
        with anyio.fail_after(5):
            assert await store.one(Call.plain("SET", "key", "2")) is True
            stream: dict[str, Any] = await store.read_logs({"no-such-stream": "0"}, block_ms=1)
        assert (await plain(server.url, "GET", "key"), stream) == (b"2", {})


async def test_blocked_reads_leave_a_demoted_server(
    server: EmbeddedServer, successor: EmbeddedServer, line: Line
) -> None:
    for url in (server.url, successor.url):
        await plain(url, "XGROUP", "CREATE", "stream", "group", "0", "MKSTREAM")
    messages: list[bytes] = []
    found: list[str] = []
    lost = anyio.Event()
    async with opened(line.url) as store, anyio.create_task_group() as tasks:
        subscription = NodeSubscription(store, lambda _, data: messages.append(data), lost.set)

        async def read_inbox() -> None:
            while not found:
                with contextlib.suppress(StoreError):
                    entries = await store.read_logs({"stream": "0-0"}, 10_000)
                    found.extend(entry for some in entries.values() for entry, _ in some)
                await anyio.sleep(0.01)

        async def at_the_successor() -> bool:
            clients = await plain(successor.url, "CLIENT", "LIST")
            return b"cmd=xread " in clients and b"cmd=ssubscribe" in clients

        tasks.start_soon(subscription.run)
        await subscription.add("channel")
        await fail_over(line, server, successor)
        tasks.start_soon(read_inbox)
        await store.one(Call.plain("SET", "key", "1"))
        with anyio.fail_after(5):
            await until(at_the_successor, "all connections lead to the successor")
            await plain(successor.url, "XADD", "stream", "1-0", "field", "value")
            while not found:  # noqa: ASYNC110
                await anyio.sleep(0.01)
            await lost.wait()
        tasks.cancel_scope.cancel()
    assert found == ["1-0"]


async def test_who_only_reads_leaves_a_demoted_server_too(
    monkeypatch: pytest.MonkeyPatch, server: EmbeddedServer, successor: EmbeddedServer, line: Line
) -> None:
    monkeypatch.setattr(node, "LOOK_EVERY", 0.1)
    await plain(server.url, "SET", "whose", "former")
    await plain(successor.url, "SET", "whose", "new")
    async with opened(line.url) as store:
        assert await store.one(Call.plain("GET", "whose")) == b"former"
        # Without the replication itself, which would bring the new value to the former one.
        line.target = port_of(successor.url)
        await plain(server.url, "REPLICAOF", "127.0.0.1", "1")

        async def is_new() -> bool:
            return await store.one(Call.plain("GET", "whose")) == b"new"

        await until(is_new, "the new server answers")
    assert store.server_generation == 1


async def test_a_server_that_is_promoted_again_is_another_generation(
    monkeypatch: pytest.MonkeyPatch, server: EmbeddedServer, successor: EmbeddedServer
) -> None:
    monkeypatch.setattr(node, "LOOK_EVERY", 0.05)
    async with opened(server.url) as store:
        await store.one(Call.plain("PING"))
        await plain(server.url, "REPLICAOF", "127.0.0.1", port_of(successor.url))
        await plain(server.url, "REPLICAOF", "NO", "ONE")

        async def noticed() -> bool:
            await store.one(Call.plain("PING"))
            return store.server_generation > 0

        await until(noticed, "the generation has grown")


async def test_a_replica_that_is_attached_changes_no_generation(
    monkeypatch: pytest.MonkeyPatch, server: EmbeddedServer, successor: EmbeddedServer
) -> None:
    monkeypatch.setattr(node, "LOOK_EVERY", 0.0)
    async with opened(server.url) as store:
        before = await store.one(Call.plain("INFO", "replication"))
        await plain(successor.url, "REPLICAOF", "127.0.0.1", port_of(server.url))

        async def attached() -> bool:
            return (await store.one(Call.plain("INFO", "replication")))["connected_slaves"] == 1

        await until(attached, "the replica is attached")
        after = await store.one(Call.plain("INFO", "replication"))
        assert before["master_replid"] != after["master_replid"], "it changes with the first replica"
        assert store.server_generation == 0


async def test_a_refusal_of_one_call_keeps_all_connections(server: EmbeddedServer) -> None:
    async with opened(server.url, connections=1) as store:
        number = await store.one(Call.plain("CLIENT", "ID"))
        await store.one(Call.plain("SET", "text", "x"))
        await plain(server.url, "ACL", "SETUSER", "default", "-flushall")
        refused = await store.send([Call.plain("LPUSH", "text", "1"), Call.plain("FLUSHALL")])
        await plain(server.url, "CONFIG", "SET", "maxmemory", "1")
        refused += await store.send([Call.plain("SET", "text", "y")])
        assert [type(reply).__name__ for reply in refused] == ["StoreError", "StoreMisconfigured", "StoreFull"]
        assert await store.one(Call.plain("CLIENT", "ID")) == number


async def test_a_script_that_takes_long_is_not_sent_again(server: EmbeddedServer) -> None:
    await plain(server.url, "CONFIG", "SET", "busy-reply-threshold", "1")
    script = (
        "redis.call('INCR', KEYS[1]) local function now() local t = redis.call('TIME') "
        "return t[1] * 1000 + t[2] / 1000 end local over = now() + 400 while now() < over do end return 'done'"
    )
    answers: list[Any] = []
    async with opened(server.url) as store:
        await store.one(Call.plain("PING"))

        async def run_script() -> None:
            answers.append(await store.one(Call.plain("EVAL", script, 1, "count")))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_script)
            await anyio.sleep(0.1)  # the script runs now
            answers.append(await store.one(Call.plain("GET", "count")))
    assert sorted(answers) == [b"1", b"done"]


# --- lines ------------------------------------------------------------------------------------------------------------


async def test_what_takes_long_on_a_thin_line_is_sent_once(soon: None, line: Line) -> None:
    size = 1_000_000
    async with opened(line.url) as store:
        await store.one(Call.plain("PING"))
        line.rate = 1_500_000
        before, started = list(line.moved), time.monotonic()
        assert await store.one(Call.plain("SET", "large", b"x" * size)) is True
        assert len(await store.one(Call.plain("GET", "large"))) == size
        assert time.monotonic() - started > 1.2, "the limit of a quarter of a second was exceeded by both"
        up, down = (now - then for now, then in zip(line.moved, before, strict=True))
        assert size < up < 1.05 * size
        assert size < down < 1.05 * size


async def test_bulk_on_a_thin_line_delays_no_heartbeat(soon: None, line: Line) -> None:
    size = 300_000
    async with opened(line.url, connections=4) as store:
        await store.send([Call.plain("SET", f"large-{n}", b"x" * size) for n in range(4)])
        line.rate = 1_000_000
        before = line.moved[1]
        beats: list[float] = []
        async with anyio.create_task_group() as tasks:
            for n in range(4):
                tasks.start_soon(store.one, Call.plain("GET", f"large-{n}"))
            await anyio.sleep(0.1)
            while line.moved[1] - before < 3 * size:
                started = time.monotonic()
                await store.one(Call.plain("PING"), urgent=True)
                beats.append(time.monotonic() - started)
                await anyio.sleep(0.05)
        assert line.moved[1] - before < 4 * size * 1.05
        assert len(beats) >= 3
        assert sorted(beats)[len(beats) // 2] < 0.6, "all of the bulk takes 1.2 s"


async def test_an_urgent_call_has_a_connection_of_its_own(server: EmbeddedServer) -> None:
    async with opened(server.url, connections=1) as store, anyio.create_task_group() as tasks:
        tasks.start_soon(store.one, Call.plain("BLPOP", "list", 10))
        await store.one(Call.plain("PING"), urgent=True)
        with anyio.fail_after(5):
            assert await store.one(Call.plain("LPUSH", "list", "end"), urgent=True) == 1


async def test_who_gives_up_an_urgent_call_leaves_its_connection_open(server: EmbeddedServer) -> None:
    async with opened(server.url) as store:

        async def waiting() -> int:
            clients: bytes = await plain(server.url, "CLIENT", "LIST")
            return clients.count(b"cmd=blpop")

        for number in (1, 2):

            async def is_waiting(number: int = number) -> bool:
                return await waiting() == number

            async with anyio.create_task_group() as callers:
                callers.start_soon(partial(store.one, Call.plain("BLPOP", "list", 60), urgent=True))
                await until(is_waiting, "it is asked for")
                callers.cancel_scope.cancel()
        assert await store.one(Call.plain("PING"), urgent=True) is True
        assert await waiting() == 2, "the replies may still come"


async def test_urgent_connections_notice_another_server_too(server: EmbeddedServer) -> None:
    async with opened(server.url) as store:
        for generation in (0, 1):
            assert await store.one(Call.plain("PING"), urgent=True) is True
            assert store.server_generation == generation
            await server.restart()


async def test_a_silent_server_costs_all_connections_within_the_limit(soon: None, line: Line) -> None:
    lost = anyio.Event()
    async with opened(line.url, patience=30) as store, anyio.create_task_group() as tasks:
        subscription = NodeSubscription(store, lambda *_: None, lost.set)
        tasks.start_soon(subscription.run)
        await subscription.add("channel")
        await store.one(Call.plain("PING"))
        line.frozen = True
        with pytest.raises(StoreUnavailable, match="no byte came or went"):
            await store.send([Call.plain("PING")], patience=0)
        line.frozen = False
        with anyio.fail_after(5):
            await lost.wait()
            await store.one(Call.plain("PING"))
        tasks.cancel_scope.cancel()


async def test_a_subscription_without_an_answer_to_its_ping_begins_anew(
    line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    """Its connection alone is dead, as behind a firewall that has forgotten it: nothing else has to be sent."""
    lost = anyio.Event()
    async with opened(line.url, patience=30) as store, anyio.create_task_group() as tasks:
        subscription = NodeSubscription(store, lambda *_: None, lost.set, silence=0.1)
        tasks.start_soon(subscription.run)
        await subscription.add("channel")
        line.frozen = True
        with anyio.fail_after(5):
            while "no answer to PING" not in caplog.text:
                await anyio.lowlevel.checkpoint()
        line.frozen = False
        with anyio.fail_after(5):
            await lost.wait()
        assert subscription.is_confirmed("channel")
        tasks.cancel_scope.cancel()


async def test_a_lost_subscription_is_said_once_for_an_outage(
    server: EmbeddedServer, line: Line, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[float] = []
    losses: list[float] = []
    connect = NodeSubscription._connect

    async def counted(self: NodeSubscription) -> None:
        tries.append(time.monotonic())
        await connect(self)

    async def tried() -> bool:
        return len(tries) >= 5 * outage

    async def is_back() -> bool:
        return len(losses) == outage

    monkeypatch.setattr(NodeSubscription, "_connect", counted)
    async with opened(line.url, patience=30) as store, anyio.create_task_group() as tasks:
        subscription = NodeSubscription(store, lambda *_: None, lambda: losses.append(time.monotonic()))
        tasks.start_soon(subscription.run)
        await subscription.add("channel")
        for outage in (1, 2):
            line.target = 1  # nothing listens there
            await plain(server.url, "CLIENT", "KILL", "TYPE", "pubsub")
            await until(tried, "several tries")
            line.target = port_of(server.url)
            await until(is_back, "subscribed again")
            assert caplog.text.count("lost the subscription") == outage
        tasks.cancel_scope.cancel()


async def test_a_blocking_read_is_not_looked_at_while_it_may_wait(
    soon: None, monkeypatch: pytest.MonkeyPatch, server: EmbeddedServer
) -> None:
    looks: list[link.Link] = []
    progress = link.Link.progress

    def looked_at(self: link.Link) -> link.Progress:
        looks.append(self)
        return progress(self)

    monkeypatch.setattr(link.Link, "progress", looked_at)
    async with opened(server.url) as store:
        assert await store.read_logs({"no-such-stream": "0"}, block_ms=800) == {}
    assert len(looks) < 8, "it answers up to a tenth of a second late; without that there is none"


async def test_a_blocking_read_on_a_silent_line_ends_after_its_wait(soon: None, line: Line) -> None:
    async with opened(line.url) as store:
        await store.read_logs({"no-such-stream": "0"}, block_ms=1)
        line.frozen = True
        started = time.monotonic()
        with anyio.fail_after(5), pytest.raises(StoreUnavailable, match="no byte came or went"):
            await store.read_logs({"no-such-stream": "0"}, block_ms=300, patience=-1)
        assert time.monotonic() - started > 0.5, "the wait, and a quarter of a second of silence"


async def test_a_blocked_event_loop_is_no_silence(soon: None, server: EmbeddedServer) -> None:
    async with opened(server.url, connections=1) as store:
        number = await store.one(Call.plain("CLIENT", "ID"))
        asyncio.get_running_loop().call_later(0.02, time.sleep, 0.6)
        await store.send([Call.plain("BLPOP", "no-such-list", 0.1), Call.plain("PING")])
        assert await store.one(Call.plain("CLIENT", "ID")) == number


async def test_a_server_of_which_nothing_arrives_while_it_reads_is_silent(soon: None, line: Line) -> None:
    """A request larger than what the way takes: nothing is ever read, and the write never ends."""
    async with opened(line.url) as store:
        await store.one(Call.plain("PING"))
        line.frozen = True
        with anyio.fail_after(5), pytest.raises(StoreUnavailable, match="no byte came or went"):
            await store.send([Call.plain("SET", "large", b"x" * 20_000_000)], patience=0)
