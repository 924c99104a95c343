"""The users that `streamflow acl` prints: a whole flow runs as them, over TLS, and they are allowed nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.to_thread
import pytest
from click.testing import CliRunner
from redis import Redis
from redis.exceptions import ResponseError

import streamflow as sf
from streamflow import sinks
from streamflow.cli import cli
from streamflow.daemon import namespace_figures
from streamflow.daemon.daemon import Daemon
from streamflow.embedded.cluster import EmbeddedCluster
from streamflow.embedded.server import EmbeddedServer
from streamflow.events import PauseEnded, RunCompleted, RunPaused
from streamflow.http import pages
from streamflow.settings import Settings
from streamflow.store.connection import Call
from streamflow.store.inspection import NO_SUCH_SCRIPT, missing_permissions
from streamflow.store.node import Node
from streamflow.store.roles import ACCESS, Rights, Role, commands_of, rights
from streamflow.store.scripts import load_scripts
from streamflow.triggers.serving import serve_pulled
from streamflow.worker import claims
from streamflow.worker.worker import Worker
from tests.conftest import REDIS_SERVER, SERVERS
from tests.support.secure import Certificates, Doors, Monitor, tls_server
from tests.support.serving import FAST, running_daemon
from tests.support.waiting import DEADLINE, happened, until

pytestmark = pytest.mark.anyio

PASSWORD = "s3cret"
SHOWN = (b"streamflow_shards_owned", b"streamflow_namespace_queue_steps_waiting")
PATIENT: dict[str, Any] = FAST | {"beat": 0.1, "dead_after": 5.0}
"""All daemons and workers are in this process, with commands beside them."""
VERBS = {script.sha: name for name, script in load_scripts().items()}


class Flows:
    """An app with something of everything. `begun`: executions of its long steps, which wait for `go`."""

    def __init__(self) -> None:
        self.app = app = sf.App()
        self.begun: dict[str, int] = {"here": 0, "queued": 0}
        self.go = anyio.Event()

        @app.step
        async def double(n: int) -> int:
            sf.emit(n)
            return 2 * n

        @app.step(queue="gpu")
        async def train(n: int) -> int:
            sf.emit(n)
            return n + 1

        async def wait(where: str) -> int:
            self.begun[where] += 1
            sf.heartbeat(self.begun[where])
            await self.go.wait()
            return 1

        @app.step
        async def here() -> int:
            return await wait("here")

        @app.step(queue="gpu", retry=sf.Retry(attempts=9, initial=0.0))
        async def queued() -> int:
            return await wait("queued")

        @app.workflow
        async def child(n: int) -> int:
            return await double(n)

        @app.workflow
        async def flow(n: int) -> int:
            sf.set_attributes(size=n, large=False)
            sf.publish("progress", n)
            await sf.sleep(0.01)
            values = await sf.gather(double(n), train(n), child(n))
            question = await sf.question("name", str)
            question.answer(f"you are {question.value}")
            return sum(values) + await sf.signal("more", int)

        @app.workflow
        async def large() -> str:
            """Its result is larger than what the log has of it."""
            return "x" * 1000

        @app.workflow
        async def breaks() -> str:
            raise ValueError("broken")

        @app.workflow
        async def waits() -> int:
            return sum(await sf.gather(here(), queued()))

        @app.reducer
        def tally(state: int, event: sf.Event) -> sf.Decision:
            return sf.Decision(state + 1)

        self.waits = waits
        self.child = child
        app.view(sf.count(), name="ended", kinds=[RunCompleted], by=["workflow"])

    def add_triggers(self, folder: Path) -> None:
        """Of the kinds that read from the namespace."""
        app, child = self.app, self.child

        @app.trigger(sf.triggers.files(folder, "*.txt", settle=0.01))
        def dropped(delivery: sf.triggers.Delivery[sf.triggers.File]) -> sf.triggers.Action:
            return sf.triggers.start(child, 3, id="dropped")

        @app.trigger(sf.triggers.completed("large"))
        def followed(delivery: sf.triggers.Delivery[sf.triggers.Completed[str]]) -> sf.triggers.Action:
            return sf.triggers.start(child, 4, id="followed")


class Site:
    """A server, and a URL for each role: of a user with the rules that `acl` prints, through a door of its own."""

    def __init__(self, admin: Redis, doors: Doors, namespace: str, scheme: str, options: str) -> None:
        self.admin = admin
        self.doors = doors
        self.namespace = namespace
        self._scheme, self._options = scheme, options
        self.urls: dict[Role, str] = {}

    async def open(self) -> None:
        for role in Role:
            port = await self.doors.open(role)
            user = f"{self.namespace}-{role}"
            line = await anyio.to_thread.run_sync(self._printed, role)
            self.admin.execute_command(*line.split())
            self.urls[role] = f"{self._scheme}://{user}:{PASSWORD}@127.0.0.1:{port}{self._options}"

    def _printed(self, role: Role) -> str:
        words = ("acl", "--role", role.value, "--namespace", self.namespace, "--password-stdin")
        result = CliRunner().invoke(cli, words, input=f"{PASSWORD}\n")
        assert result.exit_code == 0, result.output
        assert PASSWORD not in result.output
        return result.stdout

    def named(self, role: Role) -> Any:
        """What `running_daemon` takes for a server."""
        return type("Server", (), {"url": self.urls[role]})

    async def run(self, role: Role, *words: str) -> str:
        """A command as this role; what it printed."""
        environ = {"STREAMFLOW_APP": None, "STREAMFLOW_REDIS": self.urls[role], "STREAMFLOW_NAMESPACE": self.namespace}
        result = await anyio.to_thread.run_sync(lambda: CliRunner().invoke(cli, words, env=environ))
        assert result.exit_code == 0, (words, result.output)
        assert PASSWORD not in result.output
        return result.stdout

    def denied(self) -> list[tuple[str, str]]:
        """User and what it was denied, of all entries in the server's log, but CONFIG GET, which `status` tries."""
        entries: Any = self.admin.acl_log()
        found = {(entry["username"].removeprefix(f"{self.namespace}-"), entry["object"]) for entry in entries}
        return sorted(found - {(role, "config|get") for role in ("daemon", "client", "viewer")})

    def close(self) -> None:
        for role in Role:
            self.admin.acl_deluser(f"{self.namespace}-{role}")


class All:
    """Administrators of all servers of a cluster: each command goes to all."""

    def __init__(self, admins: list[Redis]) -> None:
        self._admins = admins

    def __getattr__(self, name: str) -> Any:
        return lambda *words: [getattr(admin, name)(*words) for admin in self._admins]

    def acl_log(self) -> list[Any]:
        return [entry for admin in self._admins for entry in cast("list[Any]", admin.acl_log())]


class ClusterSite(Site):
    """A cluster, with the users on each server. Its clients find the servers by themselves, so there are no doors."""

    def __init__(self, cluster: EmbeddedCluster, admins: list[Redis], namespace: str) -> None:
        super().__init__(cast("Redis", All(admins)), Doors(0), namespace, "", "")
        self._cluster = cluster

    async def open(self) -> None:
        for role in Role:
            line = await anyio.to_thread.run_sync(self._printed, role)
            self.admin.execute_command(*line.split())
            self.urls[role] = self._cluster.url.replace("://", f"://{self.namespace}-{role}:{PASSWORD}@")


@pytest.fixture(params=["tls", "wheel", *(name for name, path in SERVERS.items() if str(path) != REDIS_SERVER)])
async def site(request: pytest.FixtureRequest, certificates: Certificates, namespace: str) -> AsyncIterator[Site]:
    async with contextlib.AsyncExitStack() as stack:
        if request.param == "tls":
            server, port = await stack.enter_async_context(tls_server(certificates))
            scheme, options = "rediss", f"/1?ssl_ca_certs={certificates.path('ca.pem')}"
        else:
            binary = SERVERS.get(request.param)
            server = await stack.enter_async_context(EmbeddedServer(memory=True, binary=binary))
            scheme, options, port = "redis", "", int(server.url.rpartition(":")[2])
        doors = Doors(port)
        with Redis.from_url(server.url, decode_responses=True) as admin:
            admin.config_set("protected-mode", "no")  # which takes no loopback address but 127.0.0.1
            made = Site(admin, doors, namespace, scheme, options)
            try:
                await made.open()
                yield made
            finally:
                await doors.close()
                made.close()


@contextlib.asynccontextmanager
async def working(site: Site, app: sf.App, *, crash: bool = False, **settings: Any) -> AsyncGenerator[Worker]:
    chosen: dict[str, Any] = PATIENT | {"concurrency": 8, "worker_timeout": 1.0} | settings
    worker = Worker(app, Settings(redis=site.urls[Role.WORKER], namespace=site.namespace, **chosen), ("gpu",))
    async with anyio.create_task_group() as workers:
        workers.start_soon(worker.run)
        with anyio.fail_after(DEADLINE):
            await worker.ready.wait()
        yield worker
        if crash:
            workers.cancel_scope.cancel()
        else:
            worker.stop()


async def whole_flow(site: Site, tmp_path: Path) -> None:
    """What the documentation has a word for, each by the role that does it."""
    flows = Flows()
    server = site.named(Role.DAEMON)
    serving: dict[str, Any] = {"app": flows.app, "server": server, "namespace": site.namespace, **PATIENT}
    site.admin.script_flush()
    async with (
        running_daemon(**serving, crash=False, http="127.0.0.1:0", archive=f"file://{tmp_path}") as daemon,
        sf.connect(site.urls[Role.CLIENT], namespace=site.namespace) as client,
    ):
        shard_of = (await client.read_namespace()).shard_of
        ids = {shard_of(name): name for name in (f"wait-{n}" for n in range(200))}
        assert len(ids) == FAST["shards"]
        runs = [await client.start(flows.waits, id=name) for name in ids.values()]
        await _scraped(daemon)
        async with working(site, flows.app, crash=True) as dead:
            await _reached(flows, here=8, queued=8)
            await dead.claims.extend_once()
            await daemon.records.run_once()
        async with working(site, flows.app, grace=0.0):
            await _reached(flows, queued=16)
        async with running_daemon(**serving, crash=False), working(site, flows.app):
            await _reached(flows, queued=24)
            await until(lambda: _is(daemon.records.running > 0))  # steps of shards that the second daemon owns now
            await daemon.records.run_once()
            flows.go.set()
            assert [await run.result(DEADLINE) for run in runs] == [2] * 8
            await _sinks_and_triggers(site, client, flows, tmp_path)
            await _commands_of_a_client(site, client)
            await _looks(site, Role.VIEWER)
            # Behind every purge: that shortens the logs of shards, also of those that only the ids of children choose.
            await site.run(Role.CLIENT, "enqueue", "large", "--wait")
            await anyio.to_thread.run_sync(_tail, site, Role.VIEWER)
            await _refused_to_viewer(site)
            await _looks(site, Role.CLIENT)
            await _looks(site, Role.DAEMON)
            await anyio.to_thread.run_sync(_tail, site, Role.DAEMON)
    async with running_daemon(**serving, crash=False, retention=0.001) as last:
        await last.retention.run_once()
    await site.run(Role.DAEMON, "views", "rebuild")


async def _is(fact: bool) -> bool:
    return fact


async def _scraped(daemon: Daemon) -> None:
    """Its metrics, when it has said that it owns shards, and while steps wait in a queue."""
    assert daemon.http is not None
    url = f"{daemon.http.url}/metrics"

    def waiting() -> bool:
        with urllib.request.urlopen(url, timeout=DEADLINE) as response:
            text = response.read()
        return all(re.search(rb"\n%b{.*} [1-9]" % name, text) for name in SHOWN)

    async def shown() -> bool:
        return await anyio.to_thread.run_sync(waiting)

    await until(shown)


async def _reached(flows: Flows, **begun: int) -> None:
    async def reached() -> bool:
        return all(flows.begun[where] >= count for where, count in begun.items())

    await until(reached)


async def _commands_of_a_client(site: Site, client: sf.Client) -> None:
    async def run(*words: str) -> str:
        return await site.run(Role.CLIENT, *words)

    await run("trigger", "quarantine", "list")
    await run("trigger", "status")
    await client.store.one(Call.plain("HSCAN", client.keys.files, 0))  # as a trigger of files does first
    await run("enqueue", "large", "--id", "signalled", "--signal", "more", "--value", "1", "--wait")
    await run("enqueue", "flow", "--id", "one", "--input", "3")
    async with anyio.create_task_group() as following:
        following.start_soon(happened, client.run("one"), RunCompleted)
        assert "you are me" in await run("ask", "one", "name", '"me"', "--timeout", "9")
        await run("signal", "one", "more", "5")
    assert await client.run("one").result(DEADLINE) == 6 + 4 + 6 + 5
    await run("enqueue", "tally", "--id", "count", "--input", "0")
    await run("signal", "count", "x", "1")
    await run("cancel", "--workflow", "tally", "--yes")
    await run("enqueue", "flow", "--id", "two", "--input", "4")
    await run("terminate", "two")
    with contextlib.suppress(sf.StreamflowError):
        await client.run("two").result(DEADLINE)
    await run("forget", "two")
    async with client.events("billing", from_="oldest", kinds=["RunCompleted"]) as subscription:
        async for event in subscription:
            assert event.workflow
            break
    await run("groups", "show", "billing")
    await run("groups", "remove", "billing", "--yes")
    await _archiving(site)
    await _mending(site, client)


async def _sinks_and_triggers(site: Site, client: sf.Client, flows: Flows, tmp_path: Path) -> None:
    """Processes of a client: they read what is committed, and start runs."""
    lines = tmp_path / "events.jsonl"
    await sinks.run(client, sinks.Jsonl(str(lines)), group="jsonl", kinds=["RunCompleted"], once=True)
    assert "RunCompleted" in lines.read_text()
    await site.run(Role.CLIENT, "groups", "remove", "jsonl", "--yes")
    folder = tmp_path / "dropped"
    folder.mkdir()
    flows.add_triggers(folder)
    (folder / "a.txt").write_text("x")
    async with anyio.create_task_group() as serving:
        serving.start_soon(serve_pulled, client, list(flows.app.triggers.values()))
        await until(lambda: _has_run(client, "dropped"))
        while not await _has_run(client, "followed"):  # it begins with what completes when it is served
            await site.run(Role.CLIENT, "enqueue", "large", "--wait")
        serving.cancel_scope.cancel()
    for group in await client.groups():
        await site.run(Role.CLIENT, "groups", "remove", group.name, "--yes")
    assert "ended" in await site.run(Role.VIEWER, "view")


async def _has_run(client: sf.Client, run_id: str) -> bool:
    return (await client.find(run_id)).ids == [run_id]


async def _archiving(site: Site) -> None:
    """What is kept of a run behind its end: its stream, and the archive; a signal that starts one once."""

    async def run(*words: str) -> str:
        return await site.run(Role.CLIENT, *words)

    await run("enqueue", "child", "--id", "kept", "--input", "2", "--wait")
    assert "2" in await run("tail", "--stream", "kept")
    await run("purge", "kept")
    assert "kept" in await run("runs", "--archived")
    assert "double" in await run("show", "kept")
    await run("restore", "kept")
    assert '"completed"' in await run("show", "kept", "--json")
    await run("purge", "--workflow", "child", "--yes")
    await run("restore", "--workflow", "child", "--yes")
    await run("purge", "kept")
    await run("forget", "kept")


async def _mending(site: Site, client: sf.Client) -> None:
    """Pauses, forks, replacements, delays and retries, by command and by the API."""

    async def run(*words: str) -> str:
        return await site.run(Role.CLIENT, *words)

    again = ("enqueue", "child", "--id", "again", "--wait", "--on-existing", "new")
    assert await run(*again, "--input", "1") == "2\n"
    assert await run(*again, "--input", "2", "--delay", "0.01s", "--run-timeout", "1h") == "4\n"
    forked = json.loads(await run("fork", "again", "--input", "8", "--id", "forked", "--json"))
    assert await client.run(forked["run_id"]).result(DEADLINE) == 16
    assert "forked" in await run("show", "again")
    await run("pause", "--queue", "gpu", "--reason", "why")
    await run("resume", "--queue", "gpu")
    await run("pause", "--workflow", "child", "--reason", "why")
    await run("enqueue", "child", "--id", "held", "--input", "3")
    await run("resume", "--workflow", "child")
    assert await client.run("held").result(DEADLINE) == 6
    await run("enqueue", "flow", "--id", "paused", "--input", "3")
    await run("pause", "paused")
    await happened(client.run("paused"), RunPaused)
    await run("resume", "--runs", "--workflow", "flow", "--yes")
    await happened(client.run("paused"), PauseEnded)
    await run("cancel", "paused")
    with pytest.raises(sf.RunCancelled):
        await client.run("paused").result(DEADLINE)
    await run("enqueue", "breaks", "--id", "broken")
    with pytest.raises(sf.RunFailed):
        await client.run("broken").result(DEADLINE)
    await run("retry", "broken")


async def _looks(site: Site, role: Role) -> None:
    async def run(*words: str) -> str:
        return await site.run(role, *words)

    status = json.loads(await run("status", "--json", "--shards"))
    assert status["server"]["version"]
    await run("status")
    await run("runs", "--json")
    await run("runs", "--attribute", "size=3", "--attribute", "large=false")
    assert "double" in await run("show", "one")
    assert await run("read", "one", "progress") == "3\n"
    async with sf.connect(site.urls[role], namespace=site.namespace) as client:
        assert await client.run("one").result(DEADLINE) == 21
        assert [event async for _, event in client.run("one").events(follow=True)]


def _tail(site: Site, role: Role) -> None:
    """Until the end of the run with a large result; it runs until Ctrl-C."""
    words = [sys.executable, "-m", "streamflow", "tail", "--since", "all", "--json", "--namespace", site.namespace]
    environ = {**os.environ, "STREAMFLOW_REDIS": site.urls[role]}
    with subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        deadline = threading.Timer(DEADLINE, process.kill)
        deadline.start()
        try:
            seen: list[str] = []
            for line in process.stdout:
                seen.append(line)
                if "x" * 1000 in line:
                    break
            else:
                how = f"it has ended with {process.wait()}, {-signal.SIGKILL} after {DEADLINE:g} s"
                pytest.fail(f"{how}, without the large result, behind {''.join(seen[-3:])}")
        finally:
            deadline.cancel()
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=DEADLINE)


async def _refused_to_viewer(site: Site) -> None:
    async with sf.connect(site.urls[Role.VIEWER], namespace=site.namespace) as viewer:
        with pytest.raises(sf.StoreError, match="ACL"):
            await viewer.start("flow", 1)
    assert site.denied() == [("viewer", "evalsha")]
    site.admin.acl_log_reset()


class Used:
    """What a role was seen to use."""

    def __init__(self) -> None:
        self.verbs: set[str] = set()
        self.commands: set[str] = set()
        self.inside: set[str] = set()
        """Commands that its scripts called."""
        self.keys: dict[str, set[str]] = {}
        """Key -> the commands with which it was used."""
        self.channels: set[str] = set()

    def add(self, words: list[str], keys: list[str], *, in_script: bool) -> None:
        name = words[0].upper()
        if name in ("XGROUP", "XINFO", "MEMORY", "CLIENT", "SCRIPT", "CONFIG"):
            name = f"{name} {words[1].upper()}"
        if name in ("EVALSHA", "EVALSHA_RO") and words[1] != NO_SUCH_SCRIPT:  # by which permissions are tried
            self.verbs.add(VERBS.get(words[1], "another script"))
        (self.inside if in_script else self.commands).add(name)
        if name in ("SSUBSCRIBE", "SUNSUBSCRIBE", "SPUBLISH"):
            self.channels.add(words[1])
            return
        for key in keys:
            self.keys.setdefault(key, set()).add(name)


def used_by_role(site: Site, seen: list[tuple[str, list[str]]]) -> dict[Role, Used]:
    """What a script calls stands behind the call of the script."""
    found = {role: Used() for role in Role}
    caller: Used | None = None
    calls: list[tuple[Used, list[str], bool]] = []
    for who, words in seen:
        if who != "lua":
            door = site.doors.name_of(who)
            caller = None if door is None else found[Role(door)]
        if caller is not None:
            calls.append((caller, words, who == "lua"))
    answers = keys_of(site.admin, [words for _, words, _ in calls])
    for (used, words, in_script), keys in zip(calls, answers, strict=True):
        used.add(words, keys, in_script=in_script)
    return found


def keys_of(admin: Redis, commands: list[list[str]]) -> list[list[str]]:
    """The keys of each command, as the server sees them."""
    connection: Any = admin.connection_pool.get_connection()
    found: list[list[str]] = []
    for first in range(0, len(commands), 500):
        portion = commands[first : first + 500]
        connection.send_packed_command(connection.pack_commands([("COMMAND", "GETKEYS", *words) for words in portion]))
        for _ in portion:
            try:
                found.append(connection.read_response())
            except ResponseError:  # it has none
                found.append([])
    admin.connection_pool.release(connection)
    return found


def matches(text: str, patterns: list[str]) -> bool:
    """As the server does; no pattern of a role has brackets or question marks."""
    return any(fnmatchcase(text, pattern) for pattern in patterns)


async def test_a_whole_flow_runs_as_these_users_with_all_that_they_may(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(claims, "RECONNECT_GRACE", 0.1)
    for module in (pages, namespace_figures):
        monkeypatch.setattr(module, "KEPT", 0.0)
    with Monitor(site.admin) as monitor:
        await whole_flow(site, tmp_path)
        found = used_by_role(site, monitor.seen())
    assert site.denied() == []
    for role, used in found.items():
        access, needed = ACCESS[role], rights(role, site.namespace)
        assert used.verbs <= set(access.verbs), role
        assert used.commands - {"AUTH"} <= set(commands_of(role)), role
        assert used.inside <= set(commands_of(role)), role
        assert all(matches(channel, needed.channels) for channel in used.channels), role
        for key, commands in used.keys.items():
            assert matches(key, needed.writes + ([] if "EVALSHA" in commands else needed.reads)), (role, key, commands)
        unused = set(access.verbs) - used.verbs | set(access.commands) - used.commands
        assert unused <= access.rare.keys(), (role, "neither used nor said to be rare", unused - access.rare.keys())
        for pattern in needed.writes + needed.reads:
            assert any(matches(key, [pattern]) for key in used.keys), (role, pattern)
        assert bool(used.channels) == bool(needed.channels), role


async def test_a_whole_flow_runs_on_a_cluster_as_these_users(
    namespace: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(claims, "RECONNECT_GRACE", 0.1)
    for module in (pages, namespace_figures):
        monkeypatch.setattr(module, "KEPT", 0.0)
    async with EmbeddedCluster(memory=True) as cluster:
        admins = [Redis.from_url(node.url, decode_responses=True) for node in cluster.nodes]
        with contextlib.ExitStack() as stack:
            for admin in admins:
                stack.enter_context(admin)
            site = ClusterSite(cluster, admins, namespace)
            await site.open()
            await whole_flow(site, tmp_path)
            assert site.denied() == []


async def test_what_a_user_lacks_on_some_servers_of_a_cluster_is_said(namespace: str) -> None:
    """Users aren't copied from one server to another, also not to a replica."""
    async with EmbeddedCluster(replicas=1, memory=True) as cluster:
        needed, user = rights(Role.CLIENT, namespace), f"{namespace}-client"
        for node in cluster.nodes:
            await node.command(*("ACL", "SETUSER", user, "reset", "on", f">{PASSWORD}", "resetchannels"), *needed.rules)

        async def found() -> list[str]:
            url = cluster.url.replace("://", f"://{user}:{PASSWORD}@")
            words = ("check", "--redis", url, "--namespace", namespace, "--role", "client", "--json")
            result = await anyio.to_thread.run_sync(lambda: CliRunner().invoke(cli, words))
            findings = json.loads(result.stdout)["findings"]
            assert result.exit_code == any(one["level"] == "error" for one in findings)
            return [one["message"] for one in findings if "append-only" not in one["message"]]

        assert await found() == []
        replica = cluster.nodes[4]
        for rule, command in (("cluster|nodes", "CLUSTER NODES"), ("asking", "ASKING")):
            await replica.command("ACL", "SETUSER", user, f"-{rule}")
            expected = f"the replica {replica.address}: the user may not use {command}: allow +{rule}"
            assert await found() == [expected]
            await replica.command("ACL", "SETUSER", user, f"+{rule}")
        for node in cluster.nodes:
            await node.command("ACL", "SETUSER", user, "-hget")
        assert await found() == ["the user may not use HGET: allow +hget"]
        for node in cluster.nodes:
            await node.command("ACL", "SETUSER", user, "+hget")
        await replica.command("ACL", "DELUSER", user)
        [message] = await found()
        assert message.startswith(f"the replica {replica.address} refuses the credentials")
        assert "create them on each server" in message
        await cluster.nodes[0].command("CLUSTER", "DELSLOTS", 7)
        assert "1 of the cluster's 16384 slots have no server" in " ".join(await found())
        await cluster.nodes[0].command("CLUSTER", "ADDSLOTS", 7)
        await replica.kill()
        [away] = [message for message in await found() if "is away" in message]
        assert replica.address in away


def rules_without(needed: Rights, rule: str) -> list[str]:
    return [other for other in needed.rules if other != rule]


@pytest.mark.parametrize("role", Role)
async def test_each_rule_that_is_missing_is_named(embedded_server: EmbeddedServer, namespace: str, role: Role) -> None:
    """INFO may be hidden, SELECT is refused by its own error, and a single server is asked nothing about a cluster."""
    needed, user = rights(role, namespace), f"{namespace}-{role}"
    url = embedded_server.url.replace("://", f"://{user}:{PASSWORD}@")
    with Redis.from_url(embedded_server.url, decode_responses=True) as admin:
        try:
            for rule in ["", *needed.rules]:
                admin.execute_command(
                    *("ACL", "SETUSER", user, "reset", "on", f">{PASSWORD}", "resetchannels"),
                    *rules_without(needed, rule),
                )
                store = Node(url, connections=1)
                missing = await missing_permissions(store, namespace, role)
                await store.close()
                if rule in ("", "+info", "+select", "+cluster|nodes", "+asking"):
                    assert missing == []
                else:
                    assert missing == [rule]
        finally:
            admin.acl_deluser(user)
