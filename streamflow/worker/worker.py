"""A worker: runs the steps of named queues, and nothing else. Any number of them share a queue.

Owns: composition, and the order of shutting down. Must not: own shards, contain any loop's logic.
Called by: the command line, `sf.local`, tests.

Nothing in a worker's memory is needed after its death: entries stay in the queue until their outcomes are in the runs'
inboxes. On SIGTERM it takes no more entries, gives its steps `grace` seconds, and requeues those that still run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Sequence

import anyio

from streamflow.errors import StoreError, StoreMisconfigured, UsageError
from streamflow.http.loop_lag import LoopLag
from streamflow.http.pages import Pages, Part
from streamflow.http.server import HttpServer, serving_http
from streamflow.loops import HEARTBEATS, Supervisor
from streamflow.model.names import check_name
from streamflow.process import RESTART, stop_on_signal
from streamflow.settings import Settings
from streamflow.steps.emitting import ChunkSender
from streamflow.steps.executor import StepExecutor
from streamflow.steps.silence import MOST_BEATS, beats_of, count_silent
from streamflow.steps.suspects import Suspects
from streamflow.store.connection import Store
from streamflow.store.durability import use_durability
from streamflow.store.kernel import WORKERS, Kernel
from streamflow.store.keys import NamespaceKeys
from streamflow.store.namespace import Namespace, check_server, namespace_from, read_namespace, register_queues
from streamflow.store.queue_reads import open_queue_reads
from streamflow.store.roles import Role
from streamflow.store.router import open_store
from streamflow.store.workers import WorkerHeartbeat, for_heartbeat
from streamflow.tracing.setup import find_tracing, set_up_from_environment, shut_down
from streamflow.version import __version__
from streamflow.watch.blocker import RunNote
from streamflow.watch.heartbeat_process import HeartbeatProcess
from streamflow.watch.last_note import last_note
from streamflow.watch.report import HealthReport
from streamflow.watch.shared_note import SharedNote
from streamflow.watch.watch import EVERY, LONGEST, STEP_GIVES_WAY, Culprit, Watch
from streamflow.worker.claims import Claims
from streamflow.worker.heartbeats import WorkerHeartbeats
from streamflow.worker.metrics import WorkerMetrics
from streamflow.worker.reader import QueueReader
from streamflow.workflow.app import App

_log = logging.getLogger("streamflow.worker")

REPLACE_AFTER = 30.0
"""Seconds after which another thread gets the slot of one that hangs. Longer than at a daemon: `--concurrency` may
stand for something of which there is no more (a GPU), and other workers take over meanwhile."""
DEREGISTER = 2.0
"""Seconds for the last call."""
NAMESPACE_POLL = 0.5
"""Seconds between two checks for a namespace that doesn't exist yet."""


class Worker:
    """`await Worker(app, settings, ["gpu"]).run()` serves until `stop()` or, with `signals=True`, SIGTERM or SIGINT.

    `settings.concurrency` is how many steps it runs at once, in tasks or threads. It waits for a namespace that no
    daemon has created yet. Raises `UsageError` without a queue, or when it can't listen at `settings.http`, and
    `StoreError` when the server can't be used at start.
    """

    def __init__(self, app: App, settings: Settings, queues: Sequence[str]) -> None:
        if not queues:
            raise UsageError("a worker needs a queue to serve: name at least one")
        self.app = app
        self.settings = settings
        self.queues = [check_name("queue", queue) for queue in dict.fromkeys(queues)]
        self.name = f"{socket.gethostname()[:64]}-{os.getpid()}-{secrets.token_hex(3)}"
        self.ready = anyio.Event()
        """Set when this worker reads its queues."""
        self.loops = Supervisor(_log)
        self.http: HttpServer | None = None
        """With `settings.http`, while it runs."""
        self._pages = Pages("worker", self.name, settings.namespace) if settings.http else None
        self._stop = anyio.Event()
        self._watch: Watch | None = None
        self._owns_process = False
        self._restart = False

    def stop(self) -> None:
        """Drain and return from `run`."""
        self._stop.set()

    async def run(self, *, signals: bool = False) -> None:
        """With `signals=True` the process is this worker's own: it may also end it with exit code 75, when only a
        restart helps: drained when so many threads hang, at once when code blocks the loop that can't be
        interrupted."""
        self._owns_process = signals
        if signals and (source := set_up_from_environment()):
            _log.info("spans are made, and exported %s", source)
        with serving_http(self.settings.http, self._pages) as self.http:
            store = open_store(self.settings.redis, connections=3, patience=10.0)
            try:
                await self._serve(store, signals=signals)
            finally:
                with anyio.CancelScope(shield=True):  # cancelled or not, no connection is left open
                    await store.close()
                if signals:
                    shut_down(self.settings.grace)
        if self._restart:
            raise SystemExit(RESTART)

    def _on_exhausted(self) -> None:
        if self._owns_process and not self._stop.is_set():
            _log.error("this worker drains and exits with code %d, so that it is started again", RESTART)
            self._restart = True
            self._stop.set()

    async def _serve(self, store: Store, *, signals: bool) -> None:
        settings = self.settings
        kernel = Kernel(NamespaceKeys(settings.namespace))
        await check_server(store, settings.namespace, Role.WORKER)
        namespace = await self._wait_for_namespace(store, kernel)
        if namespace is None:
            return
        [answer] = await store.send([register_queues(kernel, self.queues)])
        if isinstance(answer, StoreMisconfigured):
            raise answer
        if isinstance(answer, StoreError):
            _log.error("the queues can't be registered, so `status` doesn't list them: %s", answer)
        longest_block = max(LONGEST, settings.interrupt_steps + STEP_GIVES_WAY)
        self.claims = claims = Claims(
            store,
            kernel,
            consumer=self.name,
            queues=self.queues,
            timeout=settings.worker_timeout,
            shards=namespace.shards,
            on_capacity=lambda: reader.slot_freed(),
            longest_block=longest_block,
        )

        def other_history() -> None:
            claims.history_changed()
            reader.look_everywhere()

        store.on_other_history = other_history
        self.executor = executor = StepExecutor(
            settings.concurrency,
            settings.concurrency,
            claims.outcome,
            processes=settings.processes,
            replace_after=REPLACE_AFTER,
            on_exhausted=self._on_exhausted,
            on_free=claims.attempt_left,
        )
        claims.executor = executor
        executor.tracing = find_tracing()
        executor.chunks = chunks = ChunkSender(
            store, kernel, claims.holder_of, settings.stream_bytes, settings.stream_age
        )
        claims.suspects = suspects = Suspects(executor, store, kernel, self.name)
        self.reader = reader = QueueReader(
            self.app,
            store,
            kernel,
            open_queue_reads(store, WORKERS, self.name),
            claims,
            executor,
            suspects,
            slots=settings.concurrency,
        )
        claims.on_refused = self.reader.ask
        claims.heartbeats = heartbeats = WorkerHeartbeats(kernel, self.name, self.queues, self._describe)
        durability = namespace.durability

        def follow(level: str) -> None:
            nonlocal durability
            if level == durability:
                return
            durability = level
            try:
                use_durability(store, kernel, level)
            except (UsageError, StoreError) as error:  # of a later release
                _log.error("the namespace has another durability, which this worker can't wait for: %s", error)

        use_durability(store, kernel, durability)
        heartbeats.on_durability = follow
        heartbeats.on_paused = self.reader.pause
        self.reader.hold()
        heart: HeartbeatProcess | None = None
        run_note = RunNote()
        if signals:
            heart = HeartbeatProcess(
                settings.redis,
                kernel.keys.workers,
                self.name,
                every=claims.interval,
                timeout=settings.worker_timeout,
                longest=max(longest_block, 3 * settings.worker_timeout),
                ended=kernel.keys.ended,
            )
            if settings.interrupt_steps:
                with contextlib.suppress(OSError, AttributeError):  # only Linux has what it needs
                    run_note.shared = note = SharedNote(0.0, settings.interrupt_steps, executor.most_threads)
                    executor.noting = note
                    heart.ends_held(note, kernel, "worker")
            heartbeats.on_beat = heart.sent
            heart.start()
        with contextlib.suppress(StoreError):  # the loop tries again
            await claims.extend_once()
            await claims.extend_once()  # the first one didn't know the server's time
        _log.info("worker %s serves %s of namespace %s", self.name, ", ".join(self.queues), settings.namespace)
        health: HealthReport | None = None
        if signals or self._pages is not None:
            health = HealthReport(
                "worker",
                self.name,
                settings.namespace,
                executor,
                self.loops,
                self._problems,
                is_away=lambda: store.is_away,
                in_file=signals,
            )

        def give_up(culprit: Culprit) -> None:
            shard = namespace.shard_of(culprit.run_id) if culprit.run_id else 0
            record = last_note(kernel, self.name, shard, culprit) if culprit.run_id else None
            claims.give_up(culprit.run_id, culprit.seq, record)

        watch = self._watch = Watch(
            "worker",
            settings,
            note=run_note,
            every=min(settings.worker_timeout / 8, EVERY),
            on_late=claims.extend_late,
            on_answer=claims.on_answer,
            give_up=give_up,
            on_look=health.report if health is not None else None,
            own_process=signals,
        )
        async with anyio.create_task_group() as loops:
            if signals:
                consequence = f"other workers run its steps again after {settings.worker_timeout:g} s (worker_timeout)"
                loops.start_soon(stop_on_signal, self._stop, settings.grace, _log, consequence)
            for name, loop in (
                ("doorbell", reader.run_bell),
                ("queue subscriptions", reader.run_subscribing),
                ("queue round", reader.run_looking),
                ("reader", reader.run),
                ("reports", claims.run_reports),
                ("chunks of steps", chunks.run),
                (HEARTBEATS, claims.run_extending),
                ("expired claims", claims.run_expiring),
                ("claims of dead workers", claims.run_losing),
                ("trials of steps", suspects.run),
            ):
                loops.start_soon(self.loops.run, name, loop)
            if self._pages is not None and health is not None:
                lag = LoopLag()
                facts = WorkerMetrics(settings, claims, reader, executor, self.loops, lag)
                self._pages.part = Part(health.now, facts.unready, facts.add_figures, facts.close)
                loops.start_soon(self.loops.run, "loop lag", lag.run)
            watch.start()
            self.ready.set()
            try:
                await self._stop.wait()
                await self._drain(reader, claims)
                if heart is not None:
                    heart.stop()
                await self._deregister(store, heartbeats)
            finally:
                watch.stop()
                if heart is not None:
                    heart.stop()
                if health is not None:
                    health.close()
                executor.close()
                loops.cancel_scope.cancel()

    def _problems(self) -> list[str]:
        silent = self.claims.unanswered
        if silent <= 1.5 * self.settings.worker_timeout:
            return []
        return [f"the server has answered nothing for {silent:.0f} s"]

    def _describe(self) -> WorkerHeartbeat:
        beats = beats_of(self.executor.reporting(), self.settings.silent_after, time.perf_counter())
        return WorkerHeartbeat(
            name=self.name,
            host=socket.gethostname()[:64],
            pid=os.getpid(),
            timeout=self.settings.worker_timeout,
            queues=self.queues,
            concurrency=self.settings.concurrency,
            running=self.claims.running,
            draining=self.executor.draining,
            version=__version__,
            impaired=for_heartbeat(self.reader.broken),
            blocked=[] if self._watch is None else self._watch.blocked.newest(),
            beats=beats[:MOST_BEATS],
            silent_steps=count_silent(beats),
        )

    async def _deregister(self, store: Store, heartbeats: WorkerHeartbeats) -> None:
        try:
            with anyio.fail_after(DEREGISTER):
                for answer in await store.send(heartbeats.leave(), urgent=True):
                    if isinstance(answer, StoreError):
                        raise answer
        except (StoreError, TimeoutError) as error:
            _log.warning("could not deregister: %s; `status` counts this worker until worker_timeout is over", error)

    async def _wait_for_namespace(self, store: Store, kernel: Kernel) -> Namespace | None:
        """Shards and partition as the first daemon fixed them; None when this worker is stopped before that."""
        warned = False
        while not self._stop.is_set():
            namespace = namespace_from(self.settings.namespace, await store.one(read_namespace(kernel.keys)))
            if namespace is not None:
                return namespace
            if not warned:
                _log.warning(
                    "there is no namespace %r yet: waiting for its first daemon to create it (`streamflow daemon`)",
                    self.settings.namespace,
                )
                warned = True
            with anyio.move_on_after(NAMESPACE_POLL):
                await self._stop.wait()
        return None

    async def _drain(self, reader: QueueReader, claims: Claims) -> None:
        self.executor.draining = True
        if steps := self.executor.in_words():
            _log.info("waiting for running steps: %s", steps)
        try:
            with anyio.move_on_after(self.settings.grace + 5):
                await reader.stop()
                with anyio.move_on_after(self.settings.grace):
                    while claims.unfinished:
                        await claims.ended()
                requeued = await claims.requeue_running()
                claims.retry_refused()
                while claims.unreported and await claims.report_once():
                    pass
                _log.info("drained; running steps requeued for other workers: %d", requeued)
        except StoreError as error:
            _log.warning(
                "could not requeue running steps: %s; other workers run them again after %g s (worker_timeout)",
                error,
                self.settings.worker_timeout,
            )
        except Exception:
            _log.exception(
                "could not drain; other workers run its steps again after %g s (worker_timeout)",
                self.settings.worker_timeout,
            )
