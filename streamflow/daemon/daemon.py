"""A daemon: composes the loops, runs them in one task group, and drains on SIGTERM.

Owns: composition, the namespace's meta record, the check of the server at start, signals. Must not: contain any loop's
logic. Called by: the command line, the demo, tests.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import secrets
import socket
import time

import anyio

from streamflow.archive.storage import hung_threads
from streamflow.daemon.admission import Admission
from streamflow.daemon.archive_guard import ArchiveGuard, ArchiveWatch
from streamflow.daemon.clock import DaemonClock, start_clock
from streamflow.daemon.context import Context
from streamflow.daemon.deploy_check import DeployCheck
from streamflow.daemon.figures import DaemonFigures
from streamflow.daemon.health import OVERDUE, Ownership
from streamflow.daemon.hibernation import Hibernation
from streamflow.daemon.inbox import InboxReader
from streamflow.daemon.membership import Membership
from streamflow.daemon.metrics import DaemonMetrics
from streamflow.daemon.owner import Owner
from streamflow.daemon.parked_objects import ParkedObjects
from streamflow.daemon.payload_sweep import PayloadSweep
from streamflow.daemon.put_off import MOST_SHOWN
from streamflow.daemon.registration import Registration, described
from streamflow.daemon.relay import Relay
from streamflow.daemon.retention import Retention
from streamflow.daemon.rollup import Rollup
from streamflow.daemon.stand_in import StandIn
from streamflow.daemon.step_records import StepRecords
from streamflow.daemon.stuck_runs import StuckRuns
from streamflow.daemon.takeover import Takeover
from streamflow.daemon.troubles import Troubles
from streamflow.daemon.view_fill import ViewFill
from streamflow.daemon.view_folder import ViewFolder
from streamflow.daemon.waking import Waking
from streamflow.errors import StoreError
from streamflow.http.loop_lag import LoopLag
from streamflow.http.pages import Pages, Part
from streamflow.http.server import HttpServer, serving_http
from streamflow.loops import Supervisor
from streamflow.machine.transition import Outcome
from streamflow.process import RESTART, resident_bytes, stop_on_signal, tune_garbage_collection
from streamflow.settings import Settings
from streamflow.steps.emitting import ChunkSender
from streamflow.steps.executor import StepExecutor
from streamflow.steps.silence import MOST_SILENT, beats_of
from streamflow.store.connection import Store
from streamflow.store.durability import use_durability
from streamflow.store.kernel import Kernel
from streamflow.store.keys import NamespaceKeys
from streamflow.store.namespace import check_server, large_payload_of, open_namespace
from streamflow.store.roles import Role
from streamflow.store.router import open_store
from streamflow.store.workers import for_heartbeat
from streamflow.tracing.setup import find_tracing, set_up_from_environment, shut_down
from streamflow.version import __version__
from streamflow.watch.heartbeat_process import HeartbeatProcess
from streamflow.watch.report import HealthReport
from streamflow.watch.shared_note import SharedNote
from streamflow.watch.watch import EVERY, Watch
from streamflow.wire import Heartbeat
from streamflow.workflow.app import App

_log = logging.getLogger("streamflow.daemon")

OUTBOX_PART = 8
"""Messages for other shards may take one of so many parts of the memory..."""
LEAST_OUTBOX = 4 * 1024 * 1024
"""...and at least so many bytes."""
RELEASE_SECONDS = 2.0
"""Seconds after the grace in which a draining daemon still tries to release shards, before it gives up on them."""


class Daemon:
    """`await Daemon(app, settings).run()` serves until `stop()` or, with `signals=True`, SIGTERM or SIGINT.

    Raises `StoreError` when the server can't be used at start: unreachable, too old, configured to lose data, or with a
    namespace that has another number of shards. Once running, a daemon survives all of these and retries. Raises
    `UsageError` when it can't listen at `settings.http`, before it asks the server for anything.
    """

    def __init__(self, app: App, settings: Settings) -> None:
        self.app = app
        self.settings = settings
        self.session = secrets.token_hex(8)
        self.member = f"{socket.gethostname()[:64]}-{os.getpid()}-{self.session[:6]}"
        self.ready = anyio.Event()
        """Set when this daemon owns its first shards, or others own them all and none is for it."""
        self.loops = Supervisor(_log)
        self.http: HttpServer | None = None
        """With `settings.http`, while it runs."""
        self._pages = Pages("daemon", self.member, settings.namespace) if settings.http else None
        self._stop = anyio.Event()
        self._watch: Watch | None = None
        self._owns_process = False
        self._restart = False
        self._started = 0
        self._clock: DaemonClock
        self._troubles: Troubles
        self._store: Store

    def stop(self) -> None:
        """Drain and return from `run`: steps get the grace period, then shards are released."""
        self._stop.set()

    async def run(self, *, signals: bool = False) -> None:
        """With `signals=True` the process is this daemon's own: it may also end it with exit code 75, when only a
        restart helps: drained when so many threads hang, at once when code blocks the loop that can't be
        interrupted."""
        self._owns_process = signals
        if signals:
            tune_garbage_collection()
            if source := set_up_from_environment():
                _log.info("spans are made, and exported %s", source)
        with serving_http(self.settings.http, self._pages) as self.http:
            store = open_store(self.settings.redis, connections=4, patience=10.0)
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
            _log.error("this daemon drains and exits with code %d, so that it is started again", RESTART)
            self._restart = True
            self._stop.set()

    def _on_other_data(self, identity: str) -> None:
        """The namespace's data were deleted: nothing that was kept of them is true any more."""
        self.owner.adopt(identity)
        self.membership.start_over(everywhere=True)
        self.owner.recent_commits.forget_all()

    def _on_record(self, record: dict[bytes, bytes]) -> None:
        self.registration.compare(record.get(b"identity"), record.get(b"durability"))
        archive = record.get(b"archive", b"").decode(errors="replace")
        self.owner.follow(archive, large_payload_of(record.get(b"large_payload")))
        self.guard.url = archive

    def _on_groups(self, groups: int) -> None:
        self.owner.logs_whole = groups > 0

    def _on_turn(self) -> None:
        if self.owner.active:  # these would find nothing in a shard at rest, and a timer of theirs wakes a process up
            self.deploy_check.look()
            self.stuck_runs.look()

    def _on_mismatch(self) -> None:
        """The namespace has other settings than this daemon now: only one that is started with them can serve it."""
        self.owner.drop(*self.owner.shards.values())
        self._restart = self._owns_process
        self._stop.set()

    async def _serve(self, store: Store, *, signals: bool) -> None:
        context = await self._prepare(store)
        self._compose(context)
        owner, membership, settings = self.owner, self.membership, self.settings
        namespace = context.namespace
        _log.info(
            "daemon %s serves namespace %s: %d shards by %s",
            self.member,
            settings.namespace,
            namespace.shards,
            namespace.partition,
        )
        health: HealthReport | None = None
        if signals or self._pages is not None:
            own = Ownership(settings, owner, membership, context.troubles, context.store)
            health = HealthReport(
                "daemon",
                self.member,
                settings.namespace,
                self.executor,
                self.loops,
                own.problems,
                own.warnings,
                is_away=lambda: context.store.is_away,
                in_file=signals,
            )
        if signals:
            heart = HeartbeatProcess(
                settings.redis,
                context.kernel.keys.members,
                self.member,
                every=settings.beat,
                timeout=settings.dead_after,
            )
            if settings.interrupt or settings.interrupt_steps:
                with contextlib.suppress(OSError, AttributeError):  # only Linux has what it needs
                    owner.watch.shared = note = SharedNote(
                        settings.interrupt, settings.interrupt_steps, self.executor.most_threads
                    )
                    self.executor.noting = note if settings.interrupt_steps else None
                    heart.ends_held(note, context.kernel, "daemon")
            membership.on_beat, membership.on_leave = heart.sent, heart.stop
            heart.start()
        stand_in = StandIn(context, membership)
        watch = self._watch = Watch(
            "daemon",
            settings,
            note=owner.watch,
            every=min(EVERY, settings.dead_after / 4),
            on_late=stand_in.on_late,
            on_answer=stand_in.on_answer,
            give_up=stand_in.give_up,
            on_look=health.report if health is not None else None,
            own_process=signals,
        )
        async with anyio.create_task_group() as loops:
            if signals:
                consequence = f"other daemons take over its shards after {settings.dead_after:g} s (dead_after)"
                loops.start_soon(stop_on_signal, self._stop, settings.grace, _log, consequence)
            supervise = self.loops.run
            for name, loop in (
                ("owner", owner.run),
                ("admission", self.admission.run),
                ("trials of steps", owner.suspects.run),
                ("notes on suspects", owner.suspects.run_notes),
                ("details of steps", self.records.run),
                ("outcomes for other daemons", self.records.run_reports),
                ("chunks of steps", self.chunks.run),
                ("relay", self.relay.run),
                ("safety of messages", self.relay.run_confirming),
                ("rollup", self.rollup.run),
                ("retention", self.retention.run),
                ("archive", self.archive_watch.run),
                ("hibernation", self.hibernation.run),
                ("waking", self.waking.run),
                ("large payloads", self.payload_sweep.run),
                ("deploy check", self.deploy_check.run),
                ("stuck runs", self.stuck_runs.run),
                ("namespace", self.registration.run),
                *((folder.subject, folder.run) for folder in self.view_folders),
                *((fill.subject, fill.run) for fill in self.view_fills),
            ):
                loops.start_soon(supervise, name, loop)
            loops.start_soon(self.reader.run, self.loops)
            loops.start_soon(membership.run, self.loops)
            loops.start_soon(self._announce, membership.has_its_share)
            if self._pages is not None and health is not None:
                loops.start_soon(supervise, "loop lag", self._open_pages(self._pages, context, health).run)
            watch.start()
            try:
                await self._stop.wait()
                await self._drain(membership, owner)
            finally:
                watch.stop()
                membership.on_leave()
                if health is not None:
                    health.close()
                self.executor.close()
                owner.close()
                loops.cancel_scope.cancel()

    async def _prepare(self, store: Store) -> Context:
        """Check the server, open the namespace, and register the app's workflows in it."""
        kernel = Kernel(NamespaceKeys(self.settings.namespace))
        await check_server(store, self.settings.namespace, Role.DAEMON)
        if self.settings.durability:
            await self._use_durability(store, kernel, self.settings.durability)  # before it is the namespace's
        namespace = await open_namespace(store, kernel, self.settings, described(self.app))
        await self._use_durability(store, kernel, namespace.durability)
        clock = self._clock = await start_clock(store, kernel, namespace.shards, self.settings.beat)
        self._started = clock.now_ms()
        tracing = find_tracing()
        self.guard = ArchiveGuard(store, kernel, self.settings.namespace)
        self.guard.url = namespace.archive
        return Context(
            self.app,
            store,
            kernel,
            clock,
            self.settings,
            namespace,
            self.member,
            self.session,
            tracing,
            guard=self.guard,
        )

    async def _use_durability(self, store: Store, kernel: Kernel, level: str) -> None:
        """Raises `StoreMisconfigured` if the server can't confirm that a write is so safe."""
        if use_durability(store, kernel, level) and store.confirmation is not None:
            await store.confirmation.check()

    def _compose(self, context: Context) -> None:
        """Create all loops and connect them. Nothing runs yet."""
        settings = context.settings
        most = max(LEAST_OUTBOX, context.settings.memory * 1024 * 1024 // OUTBOX_PART)
        self.relay = Relay(context.store, context.kernel, context.clock, most, context.troubles)
        self.executor = StepExecutor(
            settings.concurrency,
            settings.threads,
            self._on_outcome,
            processes=settings.processes,
            on_exhausted=self._on_exhausted,
        )
        self.executor.tracing = context.tracing
        self.owner = owner = Owner(context, self.executor, self.relay)
        self.reader = InboxReader(
            context.store, context.kernel, owner.shards, owner.active, owner.starts, owner.wake, owner.lost
        )
        self.admission = Admission(context, owner)
        self.rollup = Rollup(context, owner)
        self.view_folders = [ViewFolder(context, owner, self.rollup, view) for view in self.app.views.values()]
        self.view_fills = [ViewFill(context, owner, folder) for folder in self.view_folders]
        self.retention = Retention(context, owner)
        parked = ParkedObjects(context, owner)
        self.hibernation = Hibernation(context, owner, parked)
        self.waking = waking = Waking(context, owner, parked)
        owner.on_bucket_due, owner.need_of_absent, owner.recent_commits.wake = waking.due, waking.need, waking.wake_all
        self.archive_watch = ArchiveWatch(self.guard, context.troubles)
        self.payload_sweep = PayloadSweep(context, self.rollup)
        self.records = StepRecords(context, owner, self.executor)
        self.chunks = self.executor.chunks = ChunkSender(
            context.store, context.kernel, self.records.holder_of, settings.stream_bytes, settings.stream_age
        )
        takeover = Takeover(context, self.relay, owner.suspects, owner.recent_commits)
        self.membership = Membership(
            context, owner, self.executor, self.reader, takeover, self.rollup, self.records, self._beat
        )
        owner.is_alive = self.membership.is_alive
        self.rollup.heartbeats = self.membership.heartbeats
        self.deploy_check = DeployCheck(context, owner)
        self.stuck_runs = StuckRuns(context, owner)
        takeover.code = self.deploy_check.fingerprint
        self.registration = registration = Registration(context)
        registration.on_other_data = self._on_other_data
        registration.on_mismatch = self._on_mismatch
        owner.on_queue = registration.add_queue
        self.membership.on_record = self._on_record
        self.membership.on_pauses = owner.paused.update
        self.membership.on_groups = self._on_groups
        self.membership.on_turn = self._on_turn
        takeover.paused_workflows = lambda: owner.paused.notes
        self._troubles = context.troubles
        self._store = context.store
        owner.on_lost = self.membership.rebalance_soon
        owner.on_other_history = context.store.on_other_history = self.membership.start_over
        owner.on_caught_up = self.reader.caught_up

    def _open_pages(self, pages: Pages, context: Context, health: HealthReport) -> LoopLag:
        """From now on the HTTP server says how this daemon is. Returns the loop that it needs."""
        counted = DaemonFigures(self.owner, self.relay)
        self.owner.on_committed = counted.committed
        lag = LoopLag(counted.look)
        facts = DaemonMetrics(
            context, self.owner, self.membership, self.executor, self.loops, counted, lag, self.rollup
        )
        pages.part = Part(health.now, facts.unready, facts.add_figures, facts.close)
        return lag

    def _on_outcome(self, shard: int, run_id: str, outcome: Outcome) -> None:
        if not (self.records.lends and self.records.outcome(run_id, outcome)):
            self.owner.outcome(shard, run_id, outcome)

    async def _announce(self, has_its_share: anyio.Event) -> None:
        await has_its_share.wait()
        self.ready.set()

    async def _drain(self, membership: Membership, owner: Owner) -> None:
        membership.draining = self.executor.draining = True
        over = time.monotonic() + self.settings.grace
        if steps := self.executor.in_words():
            _log.info("waiting for running steps: %s", steps)
        try:
            with anyio.move_on_after(self.settings.grace + 5):
                while owner.shards and time.monotonic() < over + RELEASE_SECONDS:
                    await self._release(membership)
                    if owner.shards:
                        await anyio.sleep(0.05)
                if owner.shards:
                    _log.warning("%d shards could not be released; other daemons take them over", len(owner.shards))
                await membership.end_steps(over)
                await membership.leave()
                _log.info("drained")
        except StoreError as error:
            _log.warning(
                "could not deregister: %s; other daemons take over after %g s (dead_after)",
                error,
                self.settings.dead_after,
            )
        except Exception:
            _log.exception("could not drain; other daemons take over after %g s (dead_after)", self.settings.dead_after)

    async def _release(self, membership: Membership) -> None:
        """One turn of membership. A server that doesn't answer for a moment must not cost the steps their grace."""
        try:
            await membership.run_once()
        except StoreError as error:
            if membership.unconfirmed > self.settings.dead_after:  # others take over already
                raise
            _log.warning("a heartbeat or a release failed while draining, will retry: %s", error)

    def _unconfirmed(self) -> dict[str, str]:
        """Servers of which decisions wait until they are as safe as the namespace's durability asks for."""
        confirmation = self._store.confirmation
        lacking = () if confirmation is None else confirmation.lacking(OVERDUE)
        return {f"server {one.server}".rstrip(): f"confirms nothing, so decisions wait: {one.text}" for one in lacking}

    def _beat(self) -> Heartbeat:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        owner = self.owner
        owner.let_rest()
        self._troubles.settle()
        stopped = self._troubles.current(stops=True)
        beats = beats_of(self.executor.reporting(), self.settings.silent_after, time.perf_counter())
        silent = [beat for beat in beats if beat.silent]
        put_off, storage_waits = self.owner.put_off.waits()
        put_off, storage_waits = put_off + self.waking.failing, [*storage_waits, *self.waking.waits()][:MOST_SHOWN]
        return Heartbeat(
            name=self.member,
            started=self._started,
            shards=sorted(owner.shards),
            running=self.executor.running,
            waiting=self.executor.waiting,
            live=owner.live,
            inbox=self.reader.buffered(),
            starts=self.admission.waiting(),
            unfolded=self.rollup.unfolded,
            folds=self.rollup.folds,
            steps=self.executor.started,
            rss=resident_bytes(usage.ru_maxrss),
            cpu=round(usage.ru_utime + usage.ru_stime, 3),
            draining=self.membership.draining,
            version=__version__,
            hung=self.executor.hung + hung_threads(),
            failing=self.loops.failing,
            clock=self._clock.now_ms(),
            ahead=self._clock.ahead,
            lost=owner.lost_writes.recent_count,
            broken=for_heartbeat(stopped),
            stopped=len(stopped),
            impaired=for_heartbeat({**self._unconfirmed(), **self._troubles.current(stops=False)}),
            blocked=[] if self._watch is None else self._watch.blocked.newest(),
            moved=owner.moves.lately(),
            silent=silent[:MOST_SILENT],
            silent_steps=len(silent),
            storage_waits=storage_waits,
            put_off=put_off,
            asleep=sum(shard.asleep for shard in owner.shards.values()),
        )
