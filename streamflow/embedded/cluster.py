"""A real cluster of embedded servers on this machine, for `demo --cluster` and tests.

Owns: its nodes, how they become a cluster, and what they agree on. Must not: be used by a daemon in production, be
reached from another machine, or use a client library: it has to ask single nodes, also those that a client avoids.

Each node is an `EmbeddedServer` with a directory of its own, so it ends as that one does, also when this process is
killed. They become a cluster as operators make one: each has an epoch of its own, gets its slots, and meets the first;
replicas are assigned once all know each other. That takes two seconds, which a master waits before it takes writes.

Nodes end and start again on the same ports, while clients try to connect to them. So these are not of the range from
which systems take the local ports of connections: a client's could be in the place of the node, or connect to itself.
"""

from __future__ import annotations

import random
import secrets
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import anyio
import anyio.to_thread
import hiredis

from streamflow.embedded.server import LOOPBACK, EmbeddedServer, find_server
from streamflow.errors import StoreError, StoreUnavailable, UsageError

SLOTS = 16_384
ANSWER_SECONDS, ASKED = 1.0, 2
"""Within so many seconds a node has to answer when all are asked, so often: one that is frozen holds up nobody for
long, and a machine that pauses once makes none look dead."""
COMMAND_SECONDS = 10.0
"""Within so many a command has to be answered."""

_PORTS = range(20_000, 32_000)
_PORT_ATTEMPTS = 10
_POLL_SECONDS = 0.05
_DOUBTED = frozenset({"fail", "fail?", "handshake", "noaddr"})
"""Flags of a node that another one doesn't count as a part of the cluster."""


class NodeView(NamedTuple):
    """What a node says about one (also about itself). `master_id`: of the one that it replicates, empty for a master.
    `epoch`: of two nodes that say that a slot is theirs, the one with the higher epoch has it. `slots`: ascending,
    without those that are only on their way."""

    id: str
    address: str
    flags: frozenset[str]
    master_id: str
    epoch: int
    slots: tuple[range, ...]

    @property
    def is_master(self) -> bool:
        return "master" in self.flags

    def has(self, slot: int) -> bool:
        return any(slot in part for part in self.slots)


class ClusterNode:
    """A server of the cluster, `name` of which is that of its directory."""

    def __init__(self, name: str, server: EmbeddedServer, port: int, bus_port: int, password: str) -> None:
        self.name = name
        self.server = server
        self.host = LOOPBACK
        self.port = port
        self.bus_port = bus_port
        self.id = ""
        """As the cluster calls it; it keeps it as long as its directory."""
        self._password = password

    def __repr__(self) -> str:
        return f"<{self.name} {self.address}>"

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """For a client of this node alone."""
        return self.server.url

    @property
    def pid(self) -> int:
        return self.server.pid

    @property
    def running(self) -> bool:
        return self.server.running

    async def kill(self) -> None:
        """Send SIGKILL, as in a crash. Its data and its place in the cluster stay, for `start`."""
        await self.server.kill()

    async def start(self) -> None:
        """Start it again, on the same ports with the same data. It finds the others by itself."""
        await self.server.start()

    async def command(self, *words: object) -> Any:
        """The reply to one command, texts as `str`. Raises `StoreError` for an error, and `StoreUnavailable` when
        nothing is answered within `COMMAND_SECONDS`."""
        (reply,) = await self.commands([words])
        return reply

    async def commands(self, commands: Sequence[Sequence[object]], seconds: float = COMMAND_SECONDS) -> list[Any]:
        """The replies to several, in one pipeline, within so many seconds; raises what `command` does, for the first
        error."""
        sent = [("AUTH", self._password), *commands] if self._password else [*commands]
        reader = hiredis.Reader(encoding="utf-8", errors="replace")
        replies: list[Any] = []
        try:
            with anyio.fail_after(seconds):
                async with await anyio.connect_tcp(self.host, self.port) as stream:
                    await stream.send(b"".join(_packed(words) for words in sent))
                    while len(replies) < len(sent):
                        if (reply := reader.gets()) is False:
                            reader.feed(await stream.receive())
                        else:
                            replies.append(reply)
        except (OSError, TimeoutError, anyio.EndOfStream, anyio.BrokenResourceError) as error:
            raise StoreUnavailable(
                f"no answer from {self.name} at {self.address}: {error or 'it is silent'}"
            ) from error
        for words, reply in zip(sent, replies, strict=True):
            if isinstance(reply, hiredis.ReplyError):
                name = words[:2] if words[0] == "CLUSTER" else words[:1]  # AUTH's second word is the password
                raise StoreError(f"{self.name}: {' '.join(map(str, name))}: {reply}")
        return replies[-len(commands) :]

    async def view(self) -> dict[str, NodeView]:
        """How this node sees the cluster: by id, itself included. Raises what `command` does."""
        return _views(await self.command("CLUSTER", "NODES"))


class EmbeddedCluster:
    """`async with EmbeddedCluster(masters=3, replicas=1) as cluster: cluster.url`.

    `directory`: an empty or new one for the nodes' directories; None: a temporary one, removed by `stop`. `masters`:
    share the slots evenly. `replicas`: of each master; `nodes` has all masters, then all replicas, in turns. For a
    failover without anybody's help, more than half of the masters have to be alive.
    `node_timeout`: seconds after which a silent node counts as failed. `memory`, `appendfsync`, `binary`, `extra` and
    `timeout`: as those of an `EmbeddedServer`. `private`: a new password, part of the URLs, keeps other users of the
    machine from reading and writing. Nodes among each other know no password: such a user could still disturb.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        masters: int = 3,
        replicas: int = 0,
        node_timeout: float = 1.5,
        memory: bool = False,
        appendfsync: str = "everysec",
        binary: Path | None = None,
        extra: Sequence[str] = (),
        timeout: float = 60.0,
        private: bool = False,
    ) -> None:
        if masters < 1 or replicas < 0:
            raise UsageError("a cluster needs a master, and replicas can't be fewer than none")
        self._given_directory = directory
        self._masters = masters
        self._replicas = replicas
        self._node_timeout = node_timeout
        self._memory = memory
        self._appendfsync = appendfsync
        self._binary = binary
        self._extra = tuple(extra)
        self._timeout = timeout
        self._password = secrets.token_hex(16) if private else ""
        self._directory: Path | None = None
        self._made = 0
        """Nodes so far: a removed one's directory isn't used again."""
        self.nodes: tuple[ClusterNode, ...] = ()

    @property
    def url(self) -> str:
        """It names all nodes, and has the password if there is one."""
        if not self.nodes:
            raise UsageError("the embedded cluster has no URL before it is started")
        secret = f":{self._password}@" if self._password else ""
        return f"redis+cluster://{secret}{','.join(node.address for node in self.nodes)}"

    @property
    def directory(self) -> Path:
        if self._directory is None:
            raise UsageError("the embedded cluster has no directory before it is started")
        return self._directory

    async def __aenter__(self) -> EmbeddedCluster:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start the nodes and wait until they are a cluster that takes writes. Starting a started one does nothing.

        Raises `UsageError` when there is no binary, no port, or something in the directory, and `StoreUnavailable` when
        a node ends or they aren't ready in time.
        """
        if self._directory is not None:
            return
        if self._binary is None:
            self._binary = await anyio.to_thread.run_sync(find_server)
        self._directory = _empty_directory(self._given_directory)
        try:
            await self._start_nodes(self._masters * (1 + self._replicas))
            await self._form()
            await self.wait_ready()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End all nodes, and remove the directory if it is a temporary one. Stopping twice does nothing."""
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as ending:
                for node in self.nodes:
                    ending.start_soon(node.server.stop)
        if self._given_directory is None and self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
        self._directory = None
        self._made = 0
        self.nodes = ()

    async def add_node(self) -> ClusterNode:
        """Start one more, and wait until all know it. It is a master without slots, so it has no data yet. Raises what
        `start` does."""
        other = next((node for node in self.nodes if node.running), None)
        if other is None:
            raise UsageError("no node is running that another one could meet: start one first")
        (node,) = await self._start_nodes(1)
        await node.command("CLUSTER", "MEET", other.host, other.port, other.bus_port)
        await self.wait_ready()
        return node

    async def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until the running nodes take writes and agree: each says `cluster_state:ok`, sees every other one as
        that sees itself, and is in step with its master. `timeout`: None for that of the cluster.

        Raises `StoreUnavailable` with what isn't right yet.
        """

        async def doubt() -> str:
            nodes = self._running()
            return _doubt(nodes, await _reports(nodes))

        await self._wait_until_sure(doubt, timeout)

    async def owner(self, slot: int) -> ClusterNode:
        """The running master that has the slot. Raises `StoreUnavailable` when there is none that answers."""
        node = _owner(await _reports(self._running()), slot)
        if node is None:
            raise StoreUnavailable(f"no running master has slot {slot}: start its node, or wait for a failover")
        return node

    async def masters(self) -> list[ClusterNode]:
        """The running masters that have slots, by their first one. One that was frozen during a failover believes for
        a moment that it is one still."""
        own = await self._own_views()
        having = [node for node, view in own.items() if view.is_master and view.slots]
        return sorted(having, key=lambda node: own[node].slots[0].start)

    async def replicas(self, master: ClusterNode) -> list[ClusterNode]:
        """The running replicas of a master, which itself may be dead."""
        return [node for node, view in (await self._own_views()).items() if view.master_id == master.id]

    async def wait_for_failover(self, lost: ClusterNode, slot: int, timeout: float | None = None) -> ClusterNode:
        """Wait until another node has a slot of a master that was killed or is frozen, and all others agree on it.

        Returns that node. Raises `StoreUnavailable` with what isn't right yet: without a replica of `lost`, or without
        more than half of the masters, nobody is promoted.
        """
        found: list[ClusterNode] = []

        async def doubt() -> str:
            nodes = [node for node in self._running() if node is not lost]
            reports = await _reports(nodes)
            found[:] = filter(None, [_owner(reports, slot)])
            return _doubt(nodes, reports) or ("" if found else f"no other node has slot {slot} of {lost.name}")

        await self._wait_until_sure(doubt, timeout)
        return found[0]

    async def _own_views(self) -> dict[ClusterNode, NodeView]:
        """What each running node that answers says about itself."""
        return {node: report.own for node, report in (await _reports(self._running())).items()}

    def _running(self) -> list[ClusterNode]:
        return [node for node in self.nodes if node.running]

    async def _wait_until_sure(self, doubt: Callable[[], Awaitable[str]], timeout: float | None) -> None:
        """Until `doubt` returns none."""
        limit = self._timeout if timeout is None else timeout
        last = "no node has answered"
        with anyio.move_on_after(limit):
            while True:
                last = await doubt()
                if not last:
                    return
                await anyio.sleep(_POLL_SECONDS)
        raise StoreUnavailable(f"the embedded cluster in {self.directory} isn't ready after {limit:g} s: {last}")

    async def _start_nodes(self, count: int) -> list[ClusterNode]:
        """Start so many more, at the same time."""
        names = [f"node-{self._made + i}" for i in range(1, count + 1)]
        self._made += count
        started: dict[str, ClusterNode] = {}
        errors: list[Exception] = []

        async def start(name: str) -> None:
            try:
                started[name] = await self._start_node(name)
            except Exception as error:
                errors.append(error)

        try:
            async with anyio.create_task_group() as starting:
                for name in names:
                    starting.start_soon(start, name)
        finally:
            self.nodes += tuple(started[name] for name in names if name in started)  # `stop` ends them in any case
        if errors:
            raise errors[0]
        return [started[name] for name in names]

    async def _start_node(self, name: str) -> ClusterNode:
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            port, bus_port = random.sample(_PORTS, 2)  # another process may have one of them: then it doesn't start
            server = EmbeddedServer(
                self.directory / name,
                port,
                self._memory,
                self._appendfsync,
                binary=self._binary,
                extra=(*self._options(bus_port), *self._extra),
                timeout=self._timeout,
                password=self._password,
            )
            try:
                await server.start()
            except UsageError:
                if attempt == _PORT_ATTEMPTS:
                    raise
                continue
            node = ClusterNode(name, server, port, bus_port, self._password)
            try:
                node.id = await node.command("CLUSTER", "MYID")
            except BaseException:
                await server.stop()
                raise
            return node
        raise AssertionError("the last attempt returns or raises")

    def _options(self, bus_port: int) -> tuple[str, ...]:
        return (
            *("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"),
            *("--cluster-port", str(bus_port), "--cluster-announce-ip", LOOPBACK),
            *("--cluster-node-timeout", str(round(self._node_timeout * 1000))),
            *("--repl-diskless-sync-delay", "0"),  # else replicas wait five seconds for others to join in
        )

    async def _form(self) -> None:
        masters, others = self.nodes[: self._masters], self.nodes[self._masters :]
        first = masters[0]
        for i, node in enumerate(self.nodes):
            # Of its own: two masters with one epoch have to find out first which of them counts.
            commands: list[list[object]] = [["CLUSTER", "SET-CONFIG-EPOCH", i + 1]]
            if i < len(masters):
                begin, end = (SLOTS * part // len(masters) for part in (i, i + 1))
                commands.append(["CLUSTER", "ADDSLOTSRANGE", begin, end - 1])
            await node.commands(commands)
        for node in self.nodes[1:]:
            await node.command("CLUSTER", "MEET", first.host, first.port, first.bus_port)

        async def strangers() -> str:
            """Who isn't known to all yet. One that replicates a master that doesn't know it has to sync twice."""
            for node in self.nodes:
                view = await node.view()
                for other in self.nodes:
                    if other.id not in view or view[other.id].flags & _DOUBTED:
                        return f"{node.name} doesn't know {other.name}"
            return ""

        await self._wait_until_sure(strangers, None)
        for i, node in enumerate(others):
            await node.command("CLUSTER", "REPLICATE", masters[i % len(masters)].id)


class _Report(NamedTuple):
    """What one node says. `state`: `ok` if it serves. `link`: whether it is in step with its master."""

    own: NodeView
    views: dict[str, NodeView]
    state: str
    link: bool


async def _reports(nodes: Sequence[ClusterNode]) -> dict[ClusterNode, _Report]:
    """Those of the nodes that answer, in their order."""
    found: dict[ClusterNode, _Report] = {}

    async def ask(node: ClusterNode) -> None:
        questions = [["CLUSTER", "NODES"], ["CLUSTER", "INFO"], ["INFO", "replication"]]
        for _ in range(ASKED):
            try:
                seen, cluster, replication = await node.commands(questions, ANSWER_SECONDS)
            except StoreError:
                continue
            break
        else:
            return
        views = _views(seen)
        own = next(view for view in views.values() if "myself" in view.flags)
        state = _facts(cluster).get("cluster_state", "unknown")
        found[node] = _Report(own, views, state, _facts(replication).get("master_link_status") != "down")

    async with anyio.create_task_group() as asking:
        for node in nodes:
            asking.start_soon(ask, node)
    return {node: found[node] for node in nodes if node in found}


def _doubt(nodes: Sequence[ClusterNode], reports: Mapping[ClusterNode, _Report]) -> str:
    """What keeps these from being a cluster; empty when they are one."""
    if not nodes:
        return "no node is running"
    for node in nodes:
        report = reports.get(node)
        if report is None:
            return f"{node.name} doesn't answer"
        if report.state != "ok":
            return f"{node.name} says cluster_state:{report.state}"
        if not report.link:
            return f"{node.name} isn't in step with its master"
        for other, said in reports.items():
            seen = report.views.get(other.id)
            if seen is None or seen.flags & _DOUBTED:
                return f"{node.name} doesn't know {other.name}" if seen is None else f"{node.name} doubts {other.name}"
            if (seen.master_id, seen.slots) != (said.own.master_id, said.own.slots):
                return f"{node.name} sees {other.name} in another role or with other slots than that itself"
    return ""


def _owner(reports: Mapping[ClusterNode, _Report], slot: int) -> ClusterNode | None:
    """The master that says that the slot is its own. A former one doesn't know yet that it has lost it to another."""
    found = [(report.own.epoch, node) for node, report in reports.items() if report.own.has(slot)]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _packed(words: Sequence[object]) -> bytes:
    encoded = [str(word).encode() for word in words]
    return b"*%d\r\n%s" % (len(encoded), b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded))


def _views(text: str) -> dict[str, NodeView]:
    """Of the reply to `CLUSTER NODES`: a line a node."""
    found: dict[str, NodeView] = {}
    for line in text.splitlines():
        id_, address, flags, master_id, _, _, epoch, _, *slots = line.split()
        found[id_] = NodeView(
            id_,
            address.partition("@")[0],
            frozenset(flags.split(",")),
            master_id.strip("-"),
            int(epoch),
            tuple(_slots(part) for part in slots if not part.startswith("[")),
        )
    return found


def _slots(part: str) -> range:
    begin, _, end = part.partition("-")
    return range(int(begin), int(end or begin) + 1)


def _facts(text: str) -> dict[str, str]:
    lines = (line.partition(":") for line in text.splitlines())
    return {name: value for name, _, value in lines}


def _empty_directory(given: Path | None) -> Path:
    """Raises `UsageError` if something is in it: the nodes of an earlier cluster would look for each other's ports."""
    if given is None:
        return Path(tempfile.mkdtemp(prefix="streamflow-"))
    directory = given.expanduser().resolve()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise UsageError(f"{directory} isn't empty: choose another directory for a cluster")
    return directory
