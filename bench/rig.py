"""The set-up of every workload: a server, daemon processes, and how much CPU and memory they use.

Owns: starting and stopping them, and emptying the server. Must not: know any workload. Called by: the workloads.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# redis-py types its clients and their commands only in part.

from __future__ import annotations

import contextlib
import gc
import os
import secrets
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anyio
from redis.asyncio import Redis

from streamflow.client.client import Client, connect
from streamflow.embedded.cluster import EmbeddedCluster
from streamflow.embedded.daemon_process import DaemonProcess
from streamflow.embedded.server import EmbeddedServer
from streamflow.errors import NamespaceMissing, StreamflowError
from streamflow.server_url import check_url, cluster_of
from streamflow.store.connection import Call
from streamflow.store.router import Cluster

APP = f"{Path(__file__).with_name('flows.py')}:app"
READY_SECONDS = 30.0
POLL_SECONDS = 0.01

_NOTHING: Mapping[str, object] = {}


@dataclass
class Options:
    """The options of the command line. `runs` None: the default number of each workload."""

    runs: int | None = None
    repeat: int = 3
    daemons: int = 1
    shards: int = 256
    quick: bool = False
    cluster: bool = False

    def scaled(self, runs: int) -> int:
        """The number of runs of a workload whose default is `runs`."""
        return self.runs or (max(runs // 10, 1) if self.quick else runs)


@dataclass
class Rig:
    """A server or a cluster, and a directory for logs. `servers`: plain clients for INFO, of the server or of each
    master. Figures are those of all together."""

    url: str
    folder: Path
    servers: Sequence[Redis]
    version: str = ""
    aof: str = ""

    async def server_cpu(self) -> float:
        """CPU seconds that the servers have used."""
        infos = [await redis.info("cpu") for redis in self.servers]
        return sum(float(info["used_cpu_user"]) + float(info["used_cpu_sys"]) for info in infos)

    async def used_memory(self) -> int:
        return sum([int((await redis.info("memory"))["used_memory"]) for redis in self.servers])

    async def appended(self) -> int:
        """Bytes of the append-only files; 0 without one."""
        return sum([int((await redis.info("persistence")).get("aof_current_size", 0)) for redis in self.servers])

    async def commands(self) -> list[int]:
        """How many commands each server has executed, also those of scripts."""
        return [int((await redis.info("stats"))["total_commands_processed"]) for redis in self.servers]


@contextlib.asynccontextmanager
async def rig(url: str | None, *, cluster: bool = False) -> AsyncGenerator[Rig]:
    """An embedded server with AOF everysec, or the server at `url`, on which only our namespaces are deleted.

    `cluster`: an embedded cluster of three masters without replicas instead. `url` may be that of a cluster, too.
    """
    with tempfile.TemporaryDirectory(prefix="streamflow-bench-") as name:
        folder = Path(name)
        async with contextlib.AsyncExitStack() as stack:
            if url is None:
                made = (
                    EmbeddedCluster(folder / "data")
                    if cluster
                    else EmbeddedServer(folder / "data", appendfsync="everysec")
                )
                url = (await stack.enter_async_context(made)).url
            servers = [await stack.enter_async_context(Redis.from_url(one)) for one in await _servers_of(url)]
            redis = servers[0]
            info = await redis.info()
            product = "valkey" if "valkey_version" in info else "redis"
            version = f"{product} {info.get('valkey_version') or info['redis_version']}"
            if len(servers) > 1:
                version += f", cluster of {len(servers)}"
            fsync = (await redis.config_get("appendfsync")).get("appendfsync") or "?"
            yield Rig(url, folder, servers, version, aof=fsync if int(info["aof_enabled"]) else "off")


async def _servers_of(url: str) -> list[str]:
    """The URLs of all masters of a cluster, or of the one server."""
    check_url(url)
    if cluster_of(url) is None:
        return [url]
    store = Cluster(url)
    try:
        return [node.url for _, node in await store.servers()]
    finally:
        await store.close()


@dataclass
class Deployment:
    """A namespace with its daemons and a client. `source`: the directory of another streamflow that its processes
    run."""

    rig: Rig
    client: Client
    namespace: str
    shards: int
    app: str = APP
    settings: Mapping[str, object] = field(default_factory=dict[str, object])
    source: Path | None = None
    daemons: list[DaemonProcess] = field(default_factory=list[DaemonProcess])
    workers: list[DaemonProcess] = field(default_factory=list[DaemonProcess])

    def add_daemon(self) -> DaemonProcess:
        log = self.rig.folder / f"{self.namespace}-{len(self.daemons)}.log"
        settings = {"shards": self.shards, "log_format": "text", "log_level": "warning", **self.settings}
        daemon = DaemonProcess(self.app, self.rig.url, self.namespace, log, settings, source=self.source)
        self.daemons.append(daemon)
        return daemon

    def add_worker(self, queue: str, concurrency: int) -> DaemonProcess:
        """Start a worker, which ends with the deployment, as a daemon does. Its CPU is counted separately."""
        log = self.rig.folder / f"{self.namespace}-worker.log"
        command = ("worker", "--queue", queue, "--concurrency", str(concurrency))
        settings = {"log_level": "warning", **self.settings}
        worker = DaemonProcess(self.app, self.rig.url, self.namespace, log, settings, command, self.source)
        self.workers.append(worker)
        return worker

    async def log_bytes(self) -> int:
        """Server memory of the logs of all shards."""
        keys = self.client.keys
        calls = [Call.plain("MEMORY", "USAGE", keys.shard(n).log, "SAMPLES", 0) for n in range(self.shards)]
        return sum(answer for answer in await self.client.store.send(calls) if isinstance(answer, int))

    async def holders(self) -> list[str]:
        keys = self.client.keys
        calls = [Call.plain("HGET", keys.shard(n).owner, "holder") for n in range(self.shards)]
        return [answer.decode() if isinstance(answer, bytes) else "" for answer in await self.client.store.send(calls)]

    def owned_by(self, holders: Sequence[str], daemons: Sequence[DaemonProcess]) -> bool:
        """Whether these daemons own all shards, and each of them at least one if there are enough shards."""
        owners = {daemon.pid for daemon in daemons for holder in holders if daemon.is_member(holder)}
        everyone = all(any(daemon.is_member(holder) for daemon in daemons) for holder in set(holders))
        return everyone and len(owners) >= min(len(daemons), self.shards)

    async def ready(self) -> None:
        """Wait until the running daemons own all shards."""
        alive = [daemon for daemon in self.daemons if daemon.running]
        with anyio.fail_after(READY_SECONDS):
            while True:
                for daemon in alive:
                    if not daemon.running:
                        raise StreamflowError(f"a daemon ended:\n{daemon.log_tail()}")
                with contextlib.suppress(NamespaceMissing):
                    await self.client.read_namespace()
                    if self.owned_by(await self.holders(), alive):
                        return
                await anyio.sleep(POLL_SECONDS)

    async def total(self, command: str, key: str) -> int:
        """The sum of XLEN or ZCARD of one key of each shard, named as in `ShardKeys`."""
        keys = self.client.keys
        calls = [Call.plain(command, getattr(keys.shard(n), key)) for n in range(self.shards)]
        return sum(int(answer) for answer in await self.client.store.send(calls))

    async def reduced(self) -> None:
        """Wait until all inboxes are empty."""
        while await self.total("XLEN", "inbox"):  # noqa: ASYNC110 (another process's doing sets no event)
            await anyio.sleep(5 * POLL_SECONDS)

    def daemon_cpu(self) -> float:
        return sum(cpu_seconds(daemon.pid) for daemon in self.daemons if daemon.running)


@contextlib.asynccontextmanager
async def deployment(
    rig: Rig,
    shards: int,
    daemons: int = 1,
    app: str = APP,
    settings: Mapping[str, object] = _NOTHING,
    *,
    keep: bool = False,
    source: Path | None = None,
) -> AsyncGenerator[Deployment]:
    """A new namespace, ready for work; deleted at the end unless `keep`, when the server ends with it. `settings`: more
    fields of `Settings` for its processes; `source`: as of `Deployment`."""
    namespace = f"bench-{secrets.token_hex(4)}"
    async with connect(rig.url, namespace=namespace) as client:
        system = Deployment(rig, client, namespace, shards, app, settings, source)
        try:
            for _ in range(daemons):
                system.add_daemon()
            await system.ready()
            yield system
        finally:
            with anyio.CancelScope(shield=True):
                for daemon in [*system.workers, *system.daemons]:
                    await daemon.end(kill=True)
                if not keep:
                    for redis in rig.servers:
                        await _delete(redis, namespace)
    gc.collect()


async def _delete(redis: Redis, namespace: str) -> None:
    for pattern in (f"sf:{{{namespace}}}:*", f"sf:{{{namespace}/*}}:*"):
        pipeline = redis.pipeline(transaction=False)
        async for key in redis.scan_iter(match=pattern, count=5000):
            pipeline.unlink(key)  # one command for several would be refused by a cluster
            if len(pipeline) >= 5000:
                await pipeline.execute()
        await pipeline.execute()


# --- processes --------------------------------------------------------------------------------------------------------


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, in seconds; 0 without /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def scheduled_seconds(pid: int) -> float:
    """CPU time of the threads that a process has now, to the nanosecond: for a process that does little, and starts no
    threads meanwhile. 0 without /proc."""
    total = 0
    for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # it has ended
            total += int(thread.read_text().split()[0])
    return total / 1e9


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 without /proc."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class Stopwatch:
    """Measures wall time, and CPU time of daemons, server and this process, from `start` to `stop`."""

    def __init__(self, deployment: Deployment, server_cpu: float) -> None:
        self._deployment = deployment
        self._before = (deployment.daemon_cpu(), server_cpu, time.process_time())
        self._began = time.perf_counter()

    @classmethod
    async def start(cls, deployment: Deployment) -> Stopwatch:
        gc.collect()
        gc.freeze()
        return cls(deployment, await deployment.rig.server_cpu())

    async def stop(self) -> Spent:
        wall = time.perf_counter() - self._began
        daemon, server, client = self._before
        return Spent(
            wall,
            self._deployment.daemon_cpu() - daemon,
            await self._deployment.rig.server_cpu() - server,
            time.process_time() - client,
        )


@dataclass
class Spent:
    """Wall time, and CPU time of daemons, server and client, in seconds."""

    wall: float
    daemon: float
    server: float
    client: float
