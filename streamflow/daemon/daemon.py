"""A daemon: puts the loops together, runs them in one task group, and drains on SIGTERM.

Owns: composition, the namespace's meta record, the server's check at start, signals. Must not: contain any loop's
logic. Called by: the command line, the demo, tests.
"""

from __future__ import annotations

import gc
import inspect
import logging
import os
import resource
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from pathlib import Path

import anyio
import msgspec

from streamflow.daemon.clock import ServerClock
from streamflow.daemon.inbox import BLOCK_MS, LANES, InboxReader
from streamflow.daemon.membership import Beat, Membership
from streamflow.daemon.owner import Owner, Watch
from streamflow.daemon.relay import Relay
from streamflow.daemon.rollup import Rollup
from streamflow.daemon.takeover import Takeover
from streamflow.errors import NamespaceMismatch, StoreError, StoreMisconfigured
from streamflow.machine.replay import Outcome
from streamflow.model.sharding import Partition
from streamflow.process import stop_on_signal
from streamflow.settings import Settings
from streamflow.steps.executor import StepExecutor
from streamflow.store.blocking_reads import InboxConnection
from streamflow.store.connection import Call, Store
from streamflow.store.kernel import SCHEMA, Kernel
from streamflow.store.keys import NamespaceKeys
from streamflow.version import __version__
from streamflow.workflow.app import App

_log = logging.getLogger("streamflow.daemon")


class Daemon:
    """`await Daemon(app, settings).run()` serves until `stop()` or, with `signals=True`, SIGTERM or SIGINT.

    Raises `StoreError` when the server can't be used: unreachable, too old, configured to lose data, or with a
    namespace that has other shards. A running daemon survives everything of the kind and waits.
    """

    def __init__(self, app: App, settings: Settings) -> None:
        self.app = app
        self.settings = settings
        self.session = secrets.token_hex(8)
        self.member = f"{socket.gethostname()[:64]}-{os.getpid()}-{self.session[:6]}"
        self.ready = anyio.Event()
        """Set when this daemon owns its first shards."""
        self._stop = anyio.Event()
        self._started = 0
        self._beats = 0

    def stop(self) -> None:
        """Drain and return from `run`: steps get the grace period, then shards are released."""
        self._stop.set()

    async def run(self, *, signals: bool = False) -> None:
        if signals:
            tune_garbage_collection()
        store = Store(self.settings.redis, connections=3, patience=10.0)
        try:
            await self._serve(store, signals=signals)
        finally:
            with anyio.CancelScope(shield=True):  # cancelled or not, no connection is left open
                await store.close()

    async def _serve(self, store: Store, *, signals: bool) -> None:
        settings = self.settings
        kernel = Kernel(NamespaceKeys(settings.namespace))
        await check_server(store)
        shards, partition = await open_namespace(store, kernel, settings)
        await self._register(store, kernel)
        clock = ServerClock()
        seconds, micros = await store.one(Call.plain("TIME"))
        clock.observe(int(seconds) * 1000 + int(micros) // 1000)
        self._started = clock.now_ms()

        self.relay = relay = Relay(store, kernel)
        self.executor = executor = StepExecutor(
            settings.concurrency, settings.threads, self._on_outcome, processes=settings.processes
        )
        self.owner = owner = Owner(
            self.app,
            store,
            kernel,
            executor,
            relay,
            clock,
            session=self.session,
            partition=partition,
            shards=shards,
            cache=settings.cache,
            on_lost=lambda: membership.look_soon(),
            on_caught_up=lambda: reader.caught_up(),
        )
        connections = [InboxConnection(store, self.session, BLOCK_MS) for _ in range(LANES)]
        self.reader = reader = InboxReader(connections, owner.shards, owner.wake, owner.lost)
        takeover = Takeover(store, kernel, relay, clock, member=self.member, session=self.session)
        self.rollup = rollup = Rollup(
            self.app,
            store,
            kernel,
            owner,
            clock,
            settings,
            shards=shards,
            partition=partition,
            others_folds=lambda: membership.folds_of_others,
        )
        self.membership = membership = Membership(
            self.app,
            store,
            kernel,
            owner,
            executor,
            reader,
            takeover,
            rollup,
            settings,
            member=self.member,
            shards=shards,
            describe=self._beat,
        )
        watchdog = Watchdog(owner.watch, settings.blocking)
        _log.info("daemon %s serves namespace %s: %d shards by %s", self.member, settings.namespace, shards, partition)
        async with anyio.create_task_group() as loops:
            if signals:
                loops.start_soon(stop_on_signal, self._stop, settings.grace, _log, "the others take over")
            for loop in (owner.run, reader.run, relay.run, membership.run, rollup.run, rollup.run_sweeps):
                loops.start_soon(loop)
            loops.start_soon(self._announce, membership.owns_something)
            watchdog.start()
            try:
                await self._stop.wait()
                await self._drain(membership, owner)
            finally:
                watchdog.stop()
                executor.close()
                owner.close()
                loops.cancel_scope.cancel()

    def _on_outcome(self, shard: int, run_id: str, outcome: Outcome) -> None:
        self.owner.outcome(shard, run_id, outcome)

    async def _announce(self, owns_something: anyio.Event) -> None:
        await owns_something.wait()
        self.ready.set()

    async def _drain(self, membership: Membership, owner: Owner) -> None:
        membership.draining = True
        try:
            with anyio.move_on_after(self.settings.grace + 5):
                while owner.shards:
                    await membership.run_once()
                    if owner.shards:
                        await anyio.sleep(0.05)
                await membership.leave()
                _log.info("drained")
        except StoreError as error:
            _log.warning("can't say good-bye, the others will notice: %s", error)

    async def _register(self, store: Store, kernel: Kernel) -> None:
        """Tell clients which workflows there are."""
        words: list[object] = []
        for name, workflow in self.app.workflows.items():
            words += (name, msgspec.json.encode(describe_workflow(self.app, workflow)))
        if words:
            await store.one(Call.plain("HSET", kernel.keys.workflows, *words))

    def _beat(self) -> Beat:
        self._beats += 1
        usage = resource.getrusage(resource.RUSAGE_SELF)
        owner = self.owner
        return Beat(
            beat=self._beats,
            name=self.member,
            started=self._started,
            shards=sorted(owner.shards),
            running=self.executor.running,
            waiting=self.executor.waiting,
            live=owner.live,
            inbox=self.reader.buffered(),
            unfolded=self.rollup.unfolded,
            folds=self.rollup.folds,
            steps=self.executor.started,
            rss=_resident_bytes(usage.ru_maxrss),
            cpu=round(usage.ru_utime + usage.ru_stime, 3),
            version=__version__,
            draining=self.membership.draining,
            broken={str(n): shard.broken for n, shard in owner.shards.items() if shard.broken},
        )


def tune_garbage_collection() -> None:
    """For a process that is a daemon and nothing else. Runs are freed by reference counts; looking for cycles among
    thousands of live ones every 700 allocations took a quarter of the processor."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


def describe_workflow(app: App, workflow: object) -> dict[str, object]:
    """What clients may know of a workflow: its kind, its parameters' names, the first line of its docstring."""
    from streamflow.workflow.app import Reducer, Workflow

    assert isinstance(workflow, Workflow | Reducer)
    doc = (workflow.function.__doc__ or "").strip().partition("\n")[0]
    return {
        "kind": "reducer" if isinstance(workflow, Reducer) else "workflow",
        "params": workflow.parameters.names,
        "required": sum(default is inspect.Parameter.empty for default in workflow.parameters.defaults),
        "doc": doc,
        "steps": sorted(app.steps),
    }


async def open_namespace(store: Store, kernel: Kernel, settings: Settings) -> tuple[int, Partition]:
    """Create the namespace with these settings, or check that it has them. Gives shards and partition.

    Raises `NamespaceMismatch` with both values.
    """
    shards, partition, schema = await store.one(kernel.found(settings.shards, settings.partition))
    if schema != SCHEMA:
        raise NamespaceMismatch(
            f"namespace {settings.namespace!r} was made by another version (schema {schema}, this one has {SCHEMA}). "
            "Run daemons of one version, or use another --namespace."
        )
    if (shards, partition) != (settings.shards, settings.partition):
        raise NamespaceMismatch(
            f"namespace {settings.namespace!r} has {shards} shards by {partition}, but {settings.shards} by "
            f"{settings.partition} were asked for. They are fixed when a namespace is created: use --shards {shards} "
            f"--partition {partition}, or another --namespace."
        )
    return shards, partition


async def check_server(store: Store) -> None:
    """Refuse a server that would lose data, warn of one that might. Raises `StoreMisconfigured`."""
    info: dict[str, object] = await store.one(Call.plain("INFO", "everything"))
    version = str(info.get("valkey_version") or info.get("redis_version") or "0")
    major = int(version.partition(".")[0] or 0)
    if major < 7:
        raise StoreMisconfigured(f"the server is version {version}; streamflow needs Redis 7.0 or any Valkey")
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        raise StoreMisconfigured(
            f"the server has maxmemory-policy {policy}: it would throw runs away when memory is short. "
            "Set `CONFIG SET maxmemory-policy noeviction`."
        )
    if not int(str(info.get("aof_enabled", 0))):
        _log.warning(
            "the server has no append-only file: a restart loses runs. `CONFIG SET appendonly yes` keeps them."
        )


def _resident_bytes(max_rss: int) -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return max_rss * (1 if sys.platform == "darwin" else 1024)


class Watchdog:
    """A thread that names the line in which a workflow blocks its daemon."""

    def __init__(self, watch: Watch, threshold: float) -> None:
        self._watch = watch
        self._threshold = threshold
        self._stopped = threading.Event()
        self._loop_thread = 0
        self._warned = 0.0
        self._seen = 0.0

    def start(self) -> None:
        self._loop_thread = threading.get_ident()
        threading.Thread(target=self._run, name="streamflow-watchdog", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._threshold / 2):
            self.look()

    def look(self) -> None:
        since, run_id = self._watch.since, self._watch.run_id
        blocked = time.monotonic() - since
        # Seen before, too: else it may be the whole process that didn't get the processor.
        seen, self._seen = self._seen, since
        if not since or blocked < self._threshold or self._warned == since or seen != since:
            return
        self._warned = since
        frame = sys._current_frames().get(self._loop_thread)  # pyright: ignore[reportPrivateUsage]
        where = user_line(traceback.extract_stack(frame)) if frame is not None else "an unknown line"
        _log.warning(
            "run %s has blocked its daemon for %.0f ms at %s: a workflow only decides; move I/O and long computation "
            "into a step",
            run_id,
            blocked * 1000,
            where,
        )


def user_line(stack: Iterable[traceback.FrameSummary]) -> str:
    """The first line of a workflow in a stack: the frame that the trampoline called."""
    package = str(Path(__file__).resolve().parents[1])
    inside = False
    last = "an unknown line"
    for frame in stack:
        ours = frame.filename.startswith(package + os.sep)
        if inside and not ours:
            last = f"{frame.filename}:{frame.lineno} ({frame.line})"
            break
        inside = inside or (ours and os.sep + "machine" + os.sep in frame.filename)
    return last
