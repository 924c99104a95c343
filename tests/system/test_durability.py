"""Writes count when they are as safe as the namespace asks for: nothing is acknowledged, begun or reported before."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from click.testing import CliRunner

import streamflow as sf
from streamflow.cli import cli
from streamflow.daemon.daemon import Daemon
from streamflow.embedded.server import EmbeddedServer
from streamflow.errors import StoreMisconfigured
from streamflow.http import catalog, pages
from streamflow.store.connection import Call
from streamflow.store.durability import Durability
from streamflow.store.kernel import Kernel, Put
from streamflow.store.keys import NamespaceKeys
from streamflow.store.node import Node
from streamflow.store.roles import Role, rights
from tests.support.lines import Line, line_to, port_of
from tests.support.serving import FAST, running_daemon
from tests.support.waiting import DEADLINE
from tests.system.test_failover import tell
from tests.system.test_http import scrape, value

pytestmark = pytest.mark.anyio

NAMESPACE = "safe"
QUICK = ("--repl-diskless-sync-delay", "0")
SLOW_BEAT = {"dead_after": 4.0}
app = sf.App()
executed: list[str] = []
go_on: dict[str, anyio.Event] = {}


@app.step
async def effect(name: str) -> str:
    executed.append(name)
    return name


@app.step
async def held(name: str) -> str:
    executed.append(name)
    await go_on[name].wait()
    return name


@app.workflow
async def two_effects(name: str) -> str:
    await effect(name)
    return await effect(f"{name}-last")


@app.workflow
async def holding(name: str) -> str:
    return await held(name)


@app.workflow
async def answering(name: str) -> str:
    return f"{name} {await sf.signal('go', str)}"


@pytest.fixture(autouse=True)
def fresh() -> None:
    executed.clear()
    go_on.clear()


def hasty(server: EmbeddedServer | Line) -> sf.Client:
    """For what isn't confirmed: it gives up soon."""
    return sf.Client(Node(server.url, patience=1.5), NAMESPACE)


async def happens(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(DEADLINE):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.005)


async def is_there(client: sf.Client, run_id: str) -> bool:
    try:
        await client.run(run_id).describe()
    except sf.RunNotFound:
        return False
    return True


async def ended(run: sf.Run[str]) -> str:
    while True:
        try:
            return await run.result(DEADLINE)
        except (sf.StoreUnavailable, sf.Unconfirmed):  # until the new primary has a replica, or it needs none
            await anyio.sleep(0.05)


@contextlib.contextmanager
def frozen(stream: Line) -> Generator[None]:
    stream.frozen = True
    yield
    stream.frozen = False


@contextlib.asynccontextmanager
async def with_a_replica() -> AsyncGenerator[tuple[EmbeddedServer, EmbeddedServer, Line]]:
    """Both, and the line between them."""
    async with (
        EmbeddedServer(memory=True, extra=QUICK) as primary,
        EmbeddedServer(memory=True, extra=QUICK) as replica,
        line_to(primary.url) as stream,
    ):
        await tell(replica.url, "REPLICAOF", "127.0.0.1", port_of(stream.url))
        with anyio.fail_after(DEADLINE):
            while await tell(primary.url, "WAIT", 1, 100) < 1:
                pass
        yield primary, replica, stream


async def test_what_no_replica_has_is_neither_acknowledged_nor_begun() -> None:
    async with (
        with_a_replica() as (primary, _, stream),
        sf.connect(primary.url, namespace=NAMESPACE) as client,
        hasty(primary) as impatient,
        running_daemon(app, primary, NAMESPACE, crash=False, durability="replicas:1", **SLOW_BEAT),
    ):
        assert await (await client.start(two_effects, "before")).result(DEADLINE) == "before-last"
        with frozen(stream):
            with pytest.raises(sf.Unconfirmed, match=r"within \d\.\d s no replica has confirmed it"):
                await impatient.start(two_effects, "late", id="late")
            assert (await client.run("late").describe()).status in ("pending", "running")
            assert "late" not in executed
        again = await client.start(two_effects, "late", id="late")
        assert not again.created
        assert await again.result(DEADLINE) == "late-last"
    assert executed == ["before", "before-last", "late", "late-last"]


async def test_reads_do_not_wait_for_starts_that_wait_for_a_replica() -> None:
    async def start(client: sf.Client, name: str) -> None:
        await client.start(two_effects, name, id=name)
        acknowledged.append(name)

    acknowledged: list[str] = []
    async with (
        with_a_replica() as (primary, _, stream),
        sf.Client(Node(primary.url, patience=2 * DEADLINE), NAMESPACE) as client,
        running_daemon(app, primary, NAMESPACE, crash=False, durability="replicas:1", **SLOW_BEAT),
    ):
        before = await client.start(two_effects, "before")
        await before.result(DEADLINE)
        async with anyio.create_task_group() as starts:
            with frozen(stream), anyio.fail_after(DEADLINE):
                for number in range(8):
                    starts.start_soon(start, client, f"late-{number}")
                    await anyio.sleep(0.01)  # so that each has a pipeline of its own, as long as there are some
                assert (await before.describe()).status == "completed"
                while not await is_there(client, "late-0"):  # noqa: ASYNC110
                    await anyio.sleep(0.01)
                assert (await client.run("late-0").describe()).status in ("pending", "running")
                assert acknowledged == []
        assert len(acknowledged) == 8


async def test_a_daemon_says_for_how_long_nothing_was_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "KEPT", 0.0)

    async def waited(daemon: Daemon) -> float:
        return value(await scrape(daemon), catalog.UNCONFIRMED)

    async with (
        with_a_replica() as (primary, _, stream),
        hasty(primary) as client,
        running_daemon(
            app, primary, NAMESPACE, crash=False, durability="replicas:1", http="127.0.0.1:0", **SLOW_BEAT
        ) as daemon,
    ):
        assert await waited(daemon) == 0
        with frozen(stream):
            with pytest.raises(sf.Unconfirmed):
                await client.start(two_effects, "late", id="late")
            with anyio.fail_after(DEADLINE):
                while await waited(daemon) < 0.5:  # noqa: ASYNC110
                    await anyio.sleep(0.05)
        assert await client.run("late", str).result(DEADLINE) == "late-last"
        with anyio.fail_after(DEADLINE):
            while await waited(daemon) > 0:  # noqa: ASYNC110
                await anyio.sleep(0.05)


async def test_a_wait_counts_what_is_written_after_scripts_were_loaded() -> None:
    async with with_a_replica() as (primary, _, stream):
        store = Node(primary.url, connections=1)
        fence = Kernel(NamespaceKeys(NAMESPACE)).store_records([Put("k", "", b"")])
        for _ in range(2):
            assert await store.send([fence, Call.plain("WAIT", 1, 5000)]) == [b"OK", 1]
        await tell(primary.url, "SCRIPT", "FLUSH")
        with frozen(stream):
            assert await store.send([fence, Call.plain("WAIT", 1, 200)]) == [b"OK", 0], "not what was written before"
        await store.close()


async def test_signals_and_results_wait_too() -> None:
    async with (
        with_a_replica() as (primary, _, stream),
        sf.connect(primary.url, namespace=NAMESPACE) as client,
        hasty(primary) as impatient,
        running_daemon(app, primary, NAMESPACE, crash=False, durability="replicas:1", **SLOW_BEAT),
    ):
        go_on["a"] = anyio.Event()
        run = await client.start(holding, "a")
        other = await client.start(answering, "b", id="b")
        await happens(lambda: "a" in executed)
        with frozen(stream):
            with pytest.raises(sf.Unconfirmed):
                await impatient.run(other.id).signal("go", "on")
            go_on["a"].set()
            with pytest.raises((sf.Unconfirmed, TimeoutError)):
                await run.result(timeout=1.0)
        assert await run.result(DEADLINE) == "a"
        assert await other.result(DEADLINE) == "b on"
    assert executed == ["a"]


async def test_no_acknowledged_start_is_lost_when_a_replica_is_promoted() -> None:
    acknowledged: list[str] = []
    unconfirmed: list[str] = []
    async with (
        with_a_replica() as (primary, replica, stream),
        line_to(primary.url) as line,
        hasty(line) as client,
        running_daemon(app, line, NAMESPACE, crash=False, durability="replicas:1", **SLOW_BEAT) as daemon,  # type: ignore[arg-type]
        anyio.create_task_group() as starts,
    ):

        async def load(worker: int) -> None:
            for number in range(10_000):
                run_id = f"run-{worker}-{number}"
                try:
                    await client.start(two_effects, run_id, id=run_id)
                except sf.StoreError:
                    if stream.frozen:
                        unconfirmed.append(run_id)
                        return
                else:
                    acknowledged.append(run_id)

        for worker in range(8):
            starts.start_soon(load, worker)
        await happens(lambda: len(acknowledged) > 100)
        stream.frozen = True
        await happens(lambda: len(unconfirmed) == 8)
        with pytest.raises(sf.Unconfirmed):
            await client.start(two_effects, "missing", id="missing")
        await primary.kill()
        await tell(replica.url, "REPLICAOF", "NO", "ONE")
        async with EmbeddedServer(memory=True, extra=QUICK) as next_replica:
            await tell(next_replica.url, "REPLICAOF", "127.0.0.1", port_of(replica.url))
            line.target = port_of(replica.url)
            with anyio.fail_after(2 * DEADLINE):
                for run_id in acknowledged:
                    assert await ended(client.run(run_id)) == f"{run_id}-last"
        assert daemon.owner.recent_commits.runs > 0, "writes were missing at the replica, and this daemon had some"
        starts.cancel_scope.cancel()


async def test_what_is_not_on_the_disk_is_not_acknowledged(tmp_path: object) -> None:
    async with (
        EmbeddedServer(tmp_path, appendfsync="always") as server,  # type: ignore[arg-type]
        sf.connect(server.url, namespace=NAMESPACE) as client,
        hasty(server) as impatient,
        running_daemon(app, server, NAMESPACE, crash=False, durability="disk", **SLOW_BEAT),
    ):
        assert await (await client.start(two_effects, "before")).result(DEADLINE) == "before-last"
        await tell(server.url, "CONFIG", "SET", "appendfsync", "no")
        with pytest.raises(sf.Unconfirmed, match="it is not on the server's disk"):
            await impatient.start(two_effects, "late", id="late")
        await tell(server.url, "CONFIG", "SET", "appendfsync", "always")
        assert await (await client.start(two_effects, "late", id="late")).result(DEADLINE) == "late-last"
    assert executed == ["before", "before-last", "late", "late-last"]


async def test_a_server_that_can_not_confirm_is_refused(embedded_server: EmbeddedServer, namespace: str) -> None:
    with pytest.raises((StoreMisconfigured, ExceptionGroup)) as raised:
        async with running_daemon(app, embedded_server, namespace, crash=False, durability="disk"):
            pass
    error = raised.value
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, StoreMisconfigured)
    assert "appendonly" in str(error)
    assert not await tell(embedded_server.url, "EXISTS", f"sf:{{{namespace}}}:meta"), "nothing was changed before"


# --- `streamflow check` ---------------------------------------------------------------------------------------------


async def check(server: EmbeddedServer, *words: str, url: str = "") -> tuple[bool, list[tuple[str, str]]]:
    """Whether durability was tried, and what was found: its level and its message."""
    command = ("check", "--redis", url or server.url, "--namespace", NAMESPACE, "--json", *words)
    result = await anyio.to_thread.run_sync(lambda: CliRunner().invoke(cli, command))
    report = json.loads(result.stdout)
    found = [(one["level"], one["message"]) for one in report["findings"] if one["about"] == "durability"]
    assert (result.exit_code == 1) >= any(level == "error" for level, _ in found)
    return "durability" in report["checked"], found


async def test_check_asks_replicas_to_confirm_and_leaves_nothing() -> None:
    async with with_a_replica() as (primary, _, stream):
        assert await check(primary) == (False, [])
        assert await check(primary, "--durability", "replicas:1") == (True, [])
        [(level, message)] = (await check(primary, "--durability", "replicas:2"))[1]
        assert (level, message[:56]) == ("error", "replicas:2: within 1 s 1 of 2 replicas confirmed what wa")
        with frozen(stream):  # it is connected, and doesn't confirm
            [(level, message)] = (await check(primary, "--durability", "replicas:1"))[1]
        assert "within 1 s 0 of 1 replicas confirmed" in message
        assert await tell(primary.url, "KEYS", "*") == []


async def test_check_takes_the_level_of_the_namespace() -> None:
    async with with_a_replica() as (primary, _, stream):
        async with running_daemon(app, primary, NAMESPACE, crash=False, durability="replicas:1"):
            assert await check(primary, "--shards", "8") == (True, [])
        with frozen(stream):
            assert [level for level, _ in (await check(primary))[1]] == ["error"]
            for role in ("client", "worker"):
                assert [level for level, _ in (await check(primary, "--role", role))[1]] == ["error"]
        assert await check(primary, "--role", "viewer") == (False, []), "viewers wait for nothing"
        [(level, message)] = (await check(primary, "--durability", "server"))[1]
        assert (level, message) == (
            "warning",
            "the namespace has replicas:1, and a daemon with these settings changes it to server for all",
        )


async def test_check_finds_out_whether_the_disk_has_it(tmp_path: Path, embedded_server: EmbeddedServer) -> None:
    [(_, message)] = (await check(embedded_server, "--durability", "disk"))[1]
    assert "disk: the server can't confirm it: WAITAOF: WAITAOF cannot be used when numlocal" in message
    async with EmbeddedServer(tmp_path, appendfsync="always") as server:
        assert await check(server, "--durability", "disk") == (True, [])
        await tell(server.url, "CONFIG", "SET", "appendfsync", "no")
        [(level, message)] = (await check(server, "--durability", "disk"))[1]
        assert level == "error"
        assert "within 1 s the server's append-only file was not on the disk" in message


async def test_check_names_what_a_user_may_not_do_for_it() -> None:
    async with with_a_replica() as (primary, _, _):
        granted = [rule for rule in rights(Role.CLIENT, NAMESPACE, Durability(1)).rules if "fence" not in rule]
        await tell(primary.url, "ACL", "SETUSER", "u", "reset", "on", ">s3cret", *granted, "-wait")
        url = primary.url.replace("://", "://u:s3cret@")
        command = ("check", "--redis", url, "--namespace", NAMESPACE, "--role", "client", "--durability", "replicas:1")
        async with running_daemon(app, primary, NAMESPACE, crash=False, durability="replicas:1"):
            result = await anyio.to_thread.run_sync(lambda: CliRunner().invoke(cli, [*command, "--shards", "8"]))
    assert result.exit_code == 1
    assert "durability: replicas:1: the user may not use WAIT: allow +wait" in result.output
    assert f"allow ~sf:{{{NAMESPACE}}}:fence" in result.output


async def test_a_running_daemon_follows_a_level_that_another_has_changed() -> None:
    fast = {"dead_after": 4.0, "partition": "tenant"}  # a prefix chooses the shard
    async with (
        with_a_replica() as (primary, _, stream),
        sf.connect(primary.url, namespace=NAMESPACE) as client,
        running_daemon(app, primary, NAMESPACE, crash=False, **fast) as first,
    ):
        store = first.owner._store  # pyright: ignore[reportPrivateUsage]
        assert store.confirmation is None
        async with running_daemon(app, primary, NAMESPACE, crash=False, durability="replicas:1", **fast):
            await happens(lambda: store.confirmation is not None)
        assert store.confirmation is not None
        assert str(store.confirmation.durability) == "replicas:1"
        go_on["a"] = anyio.Event()
        run = await client.start(holding, "a")
        await happens(lambda: "a" in executed)
        with frozen(stream):
            go_on["a"].set()
            with pytest.raises((sf.Unconfirmed, TimeoutError)):
                await run.result(timeout=1.0)
            waits = store.confirmation
            await happens(lambda: waits.overdue > 0)
            async with running_daemon(app, primary, NAMESPACE, crash=False, durability="server", **fast):
                with anyio.fail_after(DEADLINE):
                    assert await ended(run) == "a", "what waited for a replica waits no more"
                await happens(lambda: store.confirmation is None)


async def test_a_daemon_changes_the_level_and_others_keep_it(tmp_path: object) -> None:
    async with (
        EmbeddedServer(tmp_path) as server,  # type: ignore[arg-type]
        sf.connect(server.url, namespace=NAMESPACE) as client,
    ):
        for level, stored in (("", "server"), ("disk", "disk"), ("", "disk"), ("server", "server")):
            async with running_daemon(app, server, NAMESPACE, crash=False, durability=level) as daemon:
                assert (await client.read_namespace()).shards == FAST["shards"]
                assert await tell(server.url, "HGET", client.keys.meta, "durability") == stored.encode()
                assert (daemon.owner._store.confirmation is None) == (stored == "server")  # pyright: ignore[reportPrivateUsage]
