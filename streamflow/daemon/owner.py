"""The heart of a daemon: collects what waits at its shards, lets runs decide, commits, and starts what was decided.

Owns: the cycle collect -> load -> reduce -> commit -> apply, live runs, and due times. Must not: decide which shards
are ours (membership), read inboxes (inbox), carry messages (relay), run steps (executor).
Called by: the daemon (runs the loop), inbox reader and executor (`wake`, `outcome`), membership (`add`, `drop`).

All shards with work go into one batch of commits, in one pipeline. While the server works on it, the next batch is
reduced for the other shards: two are under way at most. A shard has one commit in flight, so commits have an order and
a lost answer is cured by sending the same commit again.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable

import anyio
import msgspec

from streamflow.daemon.batch import UNKNOWN, Reduced, ShardBatch
from streamflow.daemon.context import Context
from streamflow.daemon.relay import Relay
from streamflow.daemon.shard import LiveRun, OwnedShard
from streamflow.daemon.watchdog import BlockedRun
from streamflow.errors import StoreError
from streamflow.events import Transition, decode_history
from streamflow.machine.factory import rehydrate
from streamflow.machine.run import RunMachine
from streamflow.machine.transition import Due, Input, Outcome
from streamflow.model.codec import DECODE_ERRORS
from streamflow.model.record import OPEN, decode_header
from streamflow.steps.executor import StepExecutor
from streamflow.store.connection import Call
from streamflow.store.kernel import Committed, DueRuns, Reply

_log = logging.getLogger("streamflow.owner")

DUE = Due()
BATCHES = 2
"""Pipelines of commits under way at the same time."""
RUNS = 1000
"""Runs after which no more shards are taken into a pipeline: while the server works on it, the next is reduced."""
FIRE_LIMIT = 500
RETRY_BROKEN = 5.0
"""Seconds until a shard that the server refused is tried again."""


def _ignore() -> None:
    """Nobody listens."""


class Owner:
    """`on_lost` is called when a shard turns out to belong to another daemon, `on_caught_up` when messages have been
    taken out of memory. The daemon connects both before it starts the loop."""

    def __init__(self, context: Context, executor: StepExecutor, relay: Relay) -> None:
        self.shards: dict[int, OwnedShard] = {}
        self.watch = BlockedRun()
        self.on_lost: Callable[[], None] = _ignore
        self.on_caught_up: Callable[[], None] = _ignore
        self._app = context.app
        self._store = context.store
        self._kernel = context.kernel
        self._clock = context.clock
        self._session = context.session
        self._namespace = context.namespace
        self._cache = context.settings.cache
        self._executor = executor
        self._relay = relay
        self._ready: dict[int, OwnedShard] = {}
        self._wake = anyio.Event()
        self._slots = anyio.Semaphore(BATCHES, fast_acquire=True)
        self._shard_timers: list[tuple[int, int]] = []
        """(due ms, shard): when to ask `due_runs` for runs that are not in flight."""
        self._run_timers: list[tuple[int, int, str]] = []
        """(due ms, shard, run id): timers of runs whose steps are in flight; the agenda only says that they are."""
        self._idle: OrderedDict[str, OwnedShard] = OrderedDict()
        """Live runs that wait for something, least recently used first."""

    # --- told by others -----------------------------------------------------------------------------------------------

    def wake(self, shard: OwnedShard) -> None:
        """The shard has something to reduce or to commit."""
        if not shard.busy and not shard.dropped:
            self._ready[shard.number] = shard
            self._wake.set()

    def outcome(self, number: int, run_id: str, outcome: Outcome) -> None:
        """A step's attempt is over."""
        shard = self.shards.get(number)
        if shard is not None:
            shard.add_input(run_id, outcome)
            self.wake(shard)

    def add(self, shard: OwnedShard) -> None:
        """Begin to work for a shard that was taken and recovered."""
        self.shards[shard.number] = shard
        if shard.next_due is not None:
            heapq.heappush(self._shard_timers, (shard.next_due, shard.number))
        self.wake(shard)
        self._wake.set()

    def drop(self, shard: OwnedShard) -> None:
        """Forget a shard: its token is not ours any more, or the server's history changed."""
        if shard.dropped:
            return
        shard.dropped = True
        if self.shards.get(shard.number) is shard:
            del self.shards[shard.number]
            self._executor.cancel_where(lambda running: running.shard == shard.number)
        self._ready.pop(shard.number, None)
        for run_id, live in shard.live.items():
            self._idle.pop(run_id, None)
            live.machine.close()
        shard.live.clear()

    def close(self) -> None:
        """Forget all shards, at the end of this process's work for them."""
        for shard in list(self.shards.values()):
            self.drop(shard)

    @property
    def live(self) -> int:
        return sum(len(shard.live) for shard in self.shards.values())

    # --- the loop -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        under_way: set[asyncio.Task[None]] = set()
        try:
            while True:
                batch = asyncio.create_task(self.process(await self.run_once()))
                under_way.add(batch)
                batch.add_done_callback(under_way.discard)
        finally:
            for batch in under_way:
                batch.cancel()

    async def run_once(self) -> list[ShardBatch]:
        """Wait for work or a due time, and collect one batch of each shard that is ready. `process` takes them on."""
        while True:
            await self._wait()
            if going := await self._collect():
                return going

    async def _collect(self) -> list[ShardBatch]:
        if self._shard_timers and self._shard_timers[0][0] <= self._clock.now_ms():
            await self._fire()
        self._fire_in_flight()
        if not self._ready:
            return []
        await self._slots.acquire()
        going: list[ShardBatch] = []
        runs = 0
        for shard in list(self._ready.values()):
            if runs >= RUNS:
                break
            del self._ready[shard.number]
            if shard.dropped or shard.busy or shard.broken:
                continue
            shard.busy = True
            batch = ShardBatch(shard, shard.next_commit(self._session))
            batch.collect()
            runs += len(batch.work)
            for run_id in batch.work:  # not idle now, so not to be evicted
                self._idle.pop(run_id, None)
            going.append(batch)
        self.on_caught_up()
        if not going:
            self._slots.release()
        return going

    async def _wait(self) -> None:
        if self._ready:
            return
        self._wake = anyio.Event()
        due = min(
            self._shard_timers[0][0] if self._shard_timers else math.inf,
            self._run_timers[0][0] if self._run_timers else math.inf,
        )
        if due == math.inf:
            await self._wake.wait()
            return
        with anyio.move_on_after(self._clock.seconds_until(due) + 0.0005):
            await self._wake.wait()

    # --- due times ----------------------------------------------------------------------------------------------------

    async def _fire(self) -> None:
        """Ask the shards whose time has come which runs are due."""
        now = self._clock.now_ms()
        due: dict[int, OwnedShard] = {}
        while self._shard_timers and self._shard_timers[0][0] <= now:
            at, number = heapq.heappop(self._shard_timers)
            shard = self.shards.get(number)
            if shard is not None and shard.next_due is not None and shard.next_due <= at and not shard.draining:
                due[number] = shard
        if not due:
            return
        calls = [self._kernel.due_runs(shard.number, shard.token, FIRE_LIMIT) for shard in due.values()]
        try:
            answers: list[DueRuns | StoreError] = await self._store.send(calls, patience=math.inf)
        except StoreError as error:
            answers = [error] * len(calls)
        for shard, answer in zip(due.values(), answers, strict=True):
            shard.next_due = None
            if isinstance(answer, StoreError):
                self._break(shard, answer)
            elif answer.code is Reply.FENCED:
                self.lost(shard)
            else:
                self._clock.observe(answer.clock)
                for run_id in answer.due:
                    shard.add_input(run_id, DUE)
                if answer.next is not None:
                    self._plan(shard, answer.next)
                if len(answer.due) == FIRE_LIMIT:
                    # More are due. They are asked for after these have left the agenda.
                    self._plan(shard, answer.clock + 20)
                self.wake(shard)

    def _fire_in_flight(self) -> None:
        if not self._run_timers:
            return
        now = self._clock.now_ms()
        while self._run_timers and self._run_timers[0][0] <= now:
            _, number, run_id = heapq.heappop(self._run_timers)
            shard = self.shards.get(number)
            live = shard.live.get(run_id) if shard is not None else None
            if shard is not None and live is not None:
                shard.add_input(run_id, DUE)
                self.wake(shard)

    def _plan(self, shard: OwnedShard, due: int) -> None:
        if shard.plan_due(due):
            heapq.heappush(self._shard_timers, (due, shard.number))
            if self._shard_timers[0][0] == due:
                self._wake.set()  # the loop may be waiting for something later

    # --- one batch ----------------------------------------------------------------------------------------------------

    async def process(self, going: list[ShardBatch]) -> None:
        """Load, reduce, commit, apply. Never raises; frees the shards and the place for the next batches."""
        try:
            await self._load(going)
            at = self._clock.now_ms()
            calls: list[Call[Committed]] = []
            committing: list[ShardBatch] = []
            for batch in going:
                if batch.shard.dropped:
                    continue
                batch.reduce(self._app, self._namespace, at, self._watch)
                batch.finish()
                if batch.is_empty:
                    self._apply(batch, None)
                    continue
                committing.append(batch)
                calls.append(self._kernel.commit(batch.shard.number, batch.shard.token, self._session, batch.batch))
            if calls:
                answers = await self._store.send(calls, patience=math.inf)
                for batch, answer in zip(committing, answers, strict=True):
                    self._answered(batch, answer)
        except Exception:
            # A defect of ours. What these shards have in memory is not to be trusted: they are taken and read anew.
            _log.exception("a batch of %d shards failed; they are read again", len(going))
            for batch in going:
                self.drop(batch.shard)
        finally:
            self._slots.release()
            for batch in going:
                shard = batch.shard
                shard.busy = False
                if shard.has_work:
                    self.wake(shard)

    def _watch(self, run_id: str) -> None:
        self.watch.since = time.monotonic() if run_id else 0.0
        self.watch.run_id = run_id

    async def _load(self, going: list[ShardBatch]) -> None:
        """Bring runs into memory that are not live: in one pipeline, then replayed."""
        wanted = [(batch, run_id) for batch in going for run_id in batch.missing()]
        if not wanted:
            return
        calls: list[Call[list[bytes]]] = [
            Call.plain("LRANGE", batch.shard.keys.run(run_id), 0, -1) for batch, run_id in wanted
        ]
        records = await self._store.send(calls, patience=math.inf)
        for (batch, run_id), record in zip(wanted, records, strict=True):
            batch.work[run_id].loaded = True
            if isinstance(record, StoreError):
                self._unreadable(batch, run_id, str(record))
            elif record:
                try:
                    self._rehydrate(batch, run_id, record)
                except (*DECODE_ERRORS, IndexError) as error:
                    self._unreadable(batch, run_id, f"{type(error).__name__}: {error}")

    def _rehydrate(self, batch: ShardBatch, run_id: str, record: list[bytes]) -> None:
        shard = batch.shard
        header = decode_header(record[0])
        if header.status not in OPEN or (header.version == 0 and run_id not in shard.suspect):
            return
        self._watch(run_id)
        machine = rehydrate(self._app, self._namespace.partition, run_id, header, record[1], decode_history(record[2:]))
        self._watch("")
        shard.live[run_id] = LiveRun(machine, header, record[0], UNKNOWN)
        shard.workflows.add(header.workflow)
        if not shard.draining:
            self._restart_running_steps(shard, run_id, machine, batch.work[run_id].inputs)

    def _restart_running_steps(self, shard: OwnedShard, run_id: str, machine: RunMachine, inputs: list[Input]) -> None:
        """After a takeover: start the attempts again that ran at the last owner, under the same attempt numbers.

        Their runs are in flight on the agenda (score -1), which is how `takeover.py` finds them. Attempts whose outcome
        has arrived already are left alone.
        """
        arrived = inputs + shard.inputs.get(run_id, [])
        finished = {(outcome.seq, outcome.attempt) for outcome in arrived if isinstance(outcome, Outcome)}
        for job in machine.running_jobs():
            if (job.seq, job.attempt) not in finished:
                self._executor.submit(shard.number, run_id, job)

    def _unreadable(self, batch: ShardBatch, run_id: str, reason: str) -> None:
        _log.error("the record of run %s in shard %d can't be read: %s", run_id, batch.shard.number, reason)
        work = batch.work.pop(run_id)
        batch.poisoned += [(message, f"the run's record can't be read: {reason}"[:500]) for message in work.messages]
        batch.batch.plans.append((run_id, None))

    # --- after the commit ---------------------------------------------------------------------------------------------

    def _answered(self, batch: ShardBatch, answer: Committed | StoreError) -> None:
        shard = batch.shard
        if shard.dropped:
            return
        if isinstance(answer, StoreError):
            batch.put_back()
            self._break(shard, answer)
        elif answer.code is Reply.FENCED:
            self.lost(shard)
        elif answer.code is Reply.CONFLICT:
            # Somebody else changed these runs (a failover lost commits): what is in memory is not the truth.
            _log.warning(
                "shard %d: runs changed under their owner, they are read again: %s", shard.number, answer.conflicts
            )
            for run_id in answer.conflicts:
                self._executor.cancel_where(lambda running, run_id=run_id: running.run_id == run_id)
            shard.suspect.update(answer.conflicts)
            batch.put_back()
        else:
            self._clock.observe(answer.clock)
            self._apply(batch, answer)

    def _apply(self, batch: ShardBatch, committed: Committed | None) -> None:
        """The decisions are durable now: steps may start, messages may leave, views may count them."""
        shard = batch.shard
        shard.acknowledged(batch.batch.acks)
        shard.acknowledged(poison.message_id for poison in batch.batch.poisons)
        del shard.sent[: batch.sent]
        views = shard.views
        for done in batch.reduced:
            if done.transition is not None:
                views.fold(done.run_id, done.transition)
            self._apply_run(shard, done)
        for poison in batch.batch.poisons:
            views.fold(poison.run_id, msgspec.msgpack.decode(poison.event, type=Transition))
        if committed is not None and committed.entry:
            shard.offset = committed.entry
            shard.unfolded += 1
        if batch.sends:
            self._relay.hand_over(shard, batch.sends)

    def _apply_run(self, shard: OwnedShard, done: Reduced) -> None:
        live, effects, run_id = done.live, done.effects, done.run_id
        machine = live.machine
        live.header, live.header_bytes = done.header, done.header_bytes
        live.plan = done.plan
        for seq in effects.cancelled:
            self._executor.cancel(run_id, seq)
        if effects.ended:
            shard.live.pop(run_id, None)
            self._idle.pop(run_id, None)
            return
        if effects.jobs and not shard.draining:
            for job in effects.jobs:
                if job.step.queue is None:  # the others are in the outbox
                    self._executor.submit(shard.number, run_id, job)
        due = machine.next_due
        if machine.in_flight:
            self._idle.pop(run_id, None)
            if due is not None and due != live.timer:
                live.timer = due
                heapq.heappush(self._run_timers, (due, shard.number, run_id))
                if self._run_timers[0][0] == due:
                    self._wake.set()  # the loop may be waiting for something later
            return
        if due is not None:
            self._plan(shard, due)
        self._idle[run_id] = shard
        self._idle.move_to_end(run_id)
        if len(self._idle) > self._cache:
            oldest, home = self._idle.popitem(last=False)
            evicted = home.live.pop(oldest, None)
            if evicted is not None:
                evicted.machine.close()

    def lost(self, shard: OwnedShard) -> None:
        """Its token or its consumer group is gone: drop it, and let membership look whose it is."""
        _log.warning("shard %d has another owner; what this daemon had of it is dropped", shard.number)
        self.drop(shard)
        self.on_lost()

    def _break(self, shard: OwnedShard, error: StoreError) -> None:
        """The server refuses this shard's commits (a key of a wrong type, an ACL): stop it loudly, try again later."""
        _log.error("shard %d is stopped for %g s: %s", shard.number, RETRY_BROKEN, error)
        shard.broken = str(error)
        shard.broken_since = time.monotonic()
        self._ready.pop(shard.number, None)

    def mend(self) -> None:
        """Try shards again that the server refused a while ago. Called with every beat."""
        for shard in self.shards.values():
            if shard.broken and time.monotonic() - shard.broken_since > RETRY_BROKEN:
                shard.broken = ""
                self._plan(shard, self._clock.now_ms())
                self.wake(shard)

    def flush(self) -> None:
        """Let shards commit that only have delivered outbox entries to delete. Called with every rollup."""
        for shard in self.shards.values():
            if shard.sent:
                self.wake(shard)
