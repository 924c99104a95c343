"""The main loop of a daemon: collects the inputs of its shards, lets runs decide, commits, and starts what was decided.

Owns: the cycle collect -> load -> reduce -> commit -> apply, live runs, and due times. Must not: decide which shards
this daemon owns (membership), read inboxes (inbox), carry messages (relay), run steps (executor).
Called by: the daemon (runs the loop), inbox reader and executor (`wake`, `outcome`), membership (`add`, `drop`).

All shards with work go into one batch of commits, in one pipeline. While the server works on it, the next batch is
reduced for the other shards: at most two are under way. A shard has one commit in flight, so commits have an order, and
when an answer is lost the same commit is sent again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator, Iterator

import anyio
import msgspec
from msgspec import Raw

from streamflow.daemon.batch import BYTES, IN_FLIGHT, SENT, UNKNOWN, Reduced, ShardBatch, parked_reason, reason_of
from streamflow.daemon.careful_turns import CarefulTurns
from streamflow.daemon.context import Context
from streamflow.daemon.failure_log import FailureLog
from streamflow.daemon.large_payloads import LargePayloads
from streamflow.daemon.lost_writes import LostWrites
from streamflow.daemon.moves import Moves
from streamflow.daemon.paused import keeps_stuck, pause_of_fork, pause_wanted
from streamflow.daemon.paused_workflows import PausedWorkflows
from streamflow.daemon.put_off import Need, RunsPutOff
from streamflow.daemon.recent_commits import RecentCommits
from streamflow.daemon.relay import Relay
from streamflow.daemon.shard import (
    CODE,
    RUN_BYTES,
    UNKNOWN_ATTEMPT,
    LiveRun,
    OwnedShard,
    StepRecord,
    run_and_number,
)
from streamflow.daemon.slots import Slots
from streamflow.daemon.starts import Starts, class_of
from streamflow.daemon.timers import Timers
from streamflow.daemon.troubles import shard_name
from streamflow.errors import Failure, StoreError
from streamflow.events import RunContinued, RunForked, RunPaused, Transition, decode_history
from streamflow.machine.factory import is_reducer, parked_for, pause_of, rehydrating, stuck_for, was_cancelled
from streamflow.machine.open_work import WORKER_LOST, Trace
from streamflow.machine.retry_point import CannotRetry, RetryPoint, retry_point
from streamflow.machine.run import RunMachine
from streamflow.machine.sealed import hide, one_seal
from streamflow.machine.transition import Due, Input, Outcome
from streamflow.model.record import OPEN, Header, Status, decode_header
from streamflow.model.reports import decode_details
from streamflow.steps.executor import STEP_BLOCKED, StepExecutor
from streamflow.steps.suspects import Note, Suspects
from streamflow.store.connection import Call, OtherHistory
from streamflow.store.kernel import Batch, Committed, DueRuns, Reply
from streamflow.watch.blocker import RunNote
from streamflow.workflow.actions import StepJob
from streamflow.workflow.awaitable import ends_process

_log = logging.getLogger("streamflow.owner")

DUE = Due()
BUCKET = "-"
"""Begins the entry on the agenda of runs that were moved out of memory: one for each bucket of them."""
BATCHES = 2
"""Pipelines of commits under way at the same time."""
RUNS = 1000
"""Runs after which no more shards are added to a pipeline: while the server works on it, the next is reduced."""
DUE_LIMIT = 500
"""Due runs of a shard that are read at once."""
DUE_SHARDS = 64
"""Shards that are asked for due runs in one pipeline."""
LEAST = 16 * 1024
"""Bytes of records that are read from a shard at once at least, however many shards are read."""
LONGEST_TURN = 0.005
"""Seconds of replays, decisions and what follows from them, after which the event loop gets its turn."""
RESULTS_PART = 4
"""Results that wait for their commits may take one of so many parts of the memory, before no more steps are started."""
LEAST_WAITING = 64
"""Runs may have steps that wait for free slots, this many or a quarter of the slots, before starts wait instead..."""
FEW_WAITING = 4
"""...those of tenants of which more runs wait than so few."""
REFUSED = "is stopped"
DEFECT = "is stopped by an unexpected error"
"""What may be wrong with a single shard (`Troubles`)."""


def _lost(job: StepJob, host: str, note: Note, run_id: str) -> Outcome:
    """How an attempt ends whose daemon died, and left this note. What the daemon itself has given up on isn't tried
    again."""
    if proof := note.proof(run_id, job.seq):
        failure = Failure(STEP_BLOCKED, proof)
    else:
        failure = Failure(WORKER_LOST, f"daemon {host} died or sent no heartbeat while it ran step {job.step.name}")
    to_blame = note.blames(run_id, job.seq)
    return Outcome(job.seq, job.attempt, 0.0, None, failure, bool(proof), job.details, to_blame=to_blame)


def _describe(job: StepJob, live: LiveRun) -> None:
    """What a job needs to know of its run besides its call."""
    machine = live.machine
    job.created, job.workflow = live.header.created, machine.workflow
    if machine.trace is not None:
        job.trace = machine.trace.text(machine.generation)


def generation_began(history: list[Transition]) -> int:
    """When (ms) the run has continued as new, or begun as a fork, if this is the history since then, else 0."""
    if forked := next((one.at for one in history if one.events and isinstance(one.events[0], RunForked)), 0):
        return forked
    return next((history[0].at for event in history[0].events if isinstance(event, RunContinued)), 0) if history else 0


class _Turn:
    """A turn of the event loop that may be long."""

    def __init__(self) -> None:
        self._ends = time.monotonic() + LONGEST_TURN

    async def may_end(self) -> None:
        """Let the others go on if it was long enough. Shards may be dropped meanwhile."""
        if time.monotonic() > self._ends:
            await asyncio.sleep(0)
            self._ends = time.monotonic() + LONGEST_TURN


def _ignore() -> None:
    """A callback that is not connected."""


class Owner:
    """`on_lost` is called when a shard turns out to belong to another daemon, `on_other_history` when the server turns
    out to have lost what it had acknowledged, and `on_caught_up` when batches have taken messages from memory;
    `is_alive(member)` says whether a daemon still runs the steps that it has kept. The daemon
    connects them before it starts the loop."""

    def __init__(self, context: Context, executor: StepExecutor, relay: Relay) -> None:
        self.shards: dict[int, OwnedShard] = {}
        self.active: dict[int, OwnedShard] = {}
        """Those of them that may not be at rest: what loops look at again and again, however many are owned."""
        self.starts = Starts(context.settings.admission)
        self.starts.on_held = self.wake_up
        self.lost_writes = LostWrites(context.store, context.kernel, self.starts.held)
        self.recent_commits = RecentCommits(context, self.starts.held, self.lost_writes.forgotten)
        self.watch = RunNote()
        self._failure_log = FailureLog()
        self.logs_whole = False
        """There are groups of subscribers: the log gets whole transitions, which they can read when the run is gone."""
        self.shards_lost = 0
        """How often `lost` was called."""
        self.moves = Moves()
        self.on_committed: Callable[[list[ShardBatch], list[Committed | StoreError], float], None] | None = None
        """Called once a pipeline: the batches, their answers, and when it was sent (monotonic s)."""
        self.on_lost: Callable[[], None] = _ignore
        self.on_caught_up: Callable[[], None] = _ignore
        self._app = context.app
        self._store = context.store
        self._kernel = context.kernel
        self._clock = context.clock
        self._session = context.session
        self._namespace = context.namespace
        self._troubles = context.troubles
        self._cache = context.settings.cache
        self._memory = context.settings.memory * 1024 * 1024
        self._most_results = self._memory // RESULTS_PART
        self._waiting_runs = max(LEAST_WAITING, context.settings.concurrency // 4)
        self._results = 0
        """Bytes of the results of steps that no batch has collected; more, until they are counted."""
        self._counted = 0.0
        self._bytes = 0
        """Of the records of live runs; more, because what leaves a batch isn't subtracted, until they are counted."""
        self._executor = executor
        self._relay = relay
        relay.on_sent = self.touch
        self._tracing = context.tracing
        self.on_other_history: Callable[[], None] = _ignore
        self.on_queue: Callable[[str], None] = lambda _: None
        """Called when this daemon has enqueued for the first time in the queue of this name."""
        self._known_queues: set[str] = set()
        self.on_bucket_due: Callable[[OwnedShard, str], None] = lambda shard, bucket: None
        """Called when something is due in a bucket of runs that were moved out of memory."""
        self.need_of_absent: Callable[[OwnedShard, str], Need] | None = None
        """What a run waits for that has no record, in a shard of which some were moved out of memory."""
        self.hibernated = self.woken = 0
        """Runs that were moved out of memory, and put back, since this daemon started."""
        self.hibernate_after_ms = round(context.settings.hibernate_after * 1000) or math.inf
        self.suspects = Suspects(executor, context.store, context.kernel, context.member)
        self.paused = PausedWorkflows(self.shards, executor, self.suspects, self.wake, self.touch)
        self.is_alive: Callable[[str], bool] = lambda _: False
        self.careful = CarefulTurns(context.store, self.suspects, self.active, self.wake, self.wake_up)
        self.put_off = RunsPutOff(context, self.wake, self.drop)
        self.payloads = LargePayloads(context)
        self.put_off.suppliers.append(self.payloads)
        self.follow(context.namespace.archive, context.namespace.large_payload)
        self._ready: dict[int, OwnedShard] = {}
        self._under_way: set[asyncio.Task[None]] = set()
        self._batches: dict[int, ShardBatch] = {}
        """Those under way, by shard."""
        self._wake = anyio.Event()
        self._slots = Slots(BATCHES)
        self._shard_timers = Timers[int]()
        """When to ask `due_runs` for runs of a shard that are not in flight."""
        self._run_timers = Timers[tuple[int, str]]()
        """Timers of runs (shard, run id) whose steps are in flight; the agenda only says that they are."""
        self._idle: OrderedDict[str, OwnedShard] = OrderedDict()
        """Live runs without running steps, least recently used first: the first one is evicted."""

    # --- called by other parts ----------------------------------------------------------------------------------------

    def wake(self, shard: OwnedShard) -> None:
        """The shard has something to reduce or to commit."""
        self.touch(shard)
        if not shard.busy and not shard.dropped and not shard.leaving:
            self._ready[shard.number] = shard
            self._wake.set()

    def touch(self, shard: OwnedShard) -> None:
        """The shard may not be at rest any more."""
        if self.shards.get(shard.number) is shard:  # not dropped, nor still being acquired
            self.active[shard.number] = shard

    def let_rest(self) -> None:
        """Find out which shards are at rest again. Called with every heartbeat."""
        resting = [number for number, shard in self.active.items() if shard.is_at_rest and number not in self._ready]
        for number in resting:
            del self.active[number]

    def outcome(self, number: int, run_id: str, outcome: Outcome) -> None:
        """A step's attempt has ended."""
        shard = self.shards.get(number)
        if shard is not None:
            shard.add_input(run_id, outcome)
            if outcome.result is not None:
                self._results += len(outcome.result)
                if self._results > self._most_results and not self._executor.crowded:
                    self._executor.crowded = self._count_results() > self._most_results
            if shard.busy:
                self.active[number] = shard  # as `touch`
            elif number not in self._ready:
                self.wake(shard)

    def add(self, shard: OwnedShard) -> None:
        """Begin to work for a shard that was acquired and recovered."""
        self.shards[shard.number] = shard
        self.moves.acquired()
        self.paused.added(shard)
        if shard.next_due is not None:
            self._shard_timers.set(shard.number, shard.next_due)
        self.wake(shard)
        self.wake_up()
        self.starts.look_for_more()

    def under_way(self, number: int) -> object | None:
        """The batch of a shard that is being decided or committed; None if there is none."""
        return self._batches.get(number)

    def is_quiet(self, shard: OwnedShard, run_id: str) -> bool:
        """Whether nothing has come for a run that it has not recorded, and no step of it runs here."""
        live, batch = shard.live.get(run_id), self._batches.get(shard.number)
        return not (
            shard.is_going
            or (live is not None and live.machine.in_flight)
            or (batch is not None and run_id in batch.work)
            or run_id in shard.inputs
            or run_id in shard.aside
            or run_id in shard.careful
            or run_id in shard.put_off
            or run_id in shard.returned
            or any(message.run_id == run_id for message in shard.inbox)
        )

    def let_go(self, shard: OwnedShard, run_id: str) -> bool:
        """Drop what is in memory of a run that is about to be moved out. False: something has come for it."""
        if not self.is_quiet(shard, run_id):
            return False
        live = shard.live.pop(run_id, None)
        if live is not None:
            self._idle.pop(run_id, None)
            self._bytes -= live.size
            with one_seal():
                live.machine.close()
        return True

    def plan_due(self, shard: OwnedShard, due: int) -> None:
        """Something of the shard is due at `due` (ms), which this daemon has not decided itself."""
        if not shard.dropped:
            self._plan(shard, due)

    def wake_up(self) -> None:
        """Let the loop look at what there is to do."""
        self._wake.set()

    def drop(self, *shards: OwnedShard) -> None:
        """Forget these shards: their tokens are no longer this daemon's, or the server's history changed. Many are one
        call, because it goes through the attempts and starts of all."""
        going: list[OwnedShard] = []
        under_way: dict[OwnedShard, ShardBatch] = {}
        numbers: set[int] = set()
        for shard in shards:
            if shard.dropped:
                continue
            shard.dropped = True
            going.append(shard)
            self.lost_writes.dropped(shard)
            batch = self._batches.pop(shard.number, None)
            if batch is not None and batch.shard is shard:
                under_way[shard] = batch
            if self.shards.get(shard.number) is shard:
                numbers.add(shard.number)
                del self.shards[shard.number]
                self.active.pop(shard.number, None)
                self._shard_timers.discard(shard.number)
                for run_id in shard.live:
                    self._run_timers.discard((shard.number, run_id))
            self._ready.pop(shard.number, None)
        if going:
            self.put_off.dropped(going)
            self.recent_commits.dropped(going, under_way)
        if numbers:
            self._executor.cancel_where(lambda running: running.shard in numbers)
            self.suspects.forget_shards(numbers)
        with one_seal():
            for shard in going:
                for run_id, live in shard.live.items():
                    self._idle.pop(run_id, None)
                    self._bytes -= live.size
                    live.machine.close()
                shard.live.clear()

    def follow(self, archive: str, large_payload: int) -> None:
        """Large payloads go to this storage from now on: called with what the namespace's record says."""
        self.payloads.follow(archive, large_payload)

    def adopt(self, identity: str) -> None:
        """The namespace's data are other ones from now on: notifications carry this identity of theirs."""
        self._namespace = msgspec.structs.replace(self._namespace, identity=identity)
        self._known_queues.clear()

    def close(self) -> None:
        """Forget all shards and the batches that are under way, when this daemon stops."""
        for batch in self._under_way:
            batch.cancel()
        self.drop(*self.shards.values())

    @property
    def is_full(self) -> bool:
        """Whether starts have to wait: the runs in memory are as large as they may be."""
        if self._bytes + self.put_off.bytes > self._memory:
            self._count_bytes()
        return self._bytes + self.put_off.bytes > self._memory

    def crowding(self) -> set[bytes]:
        """The tenants of whose runs many wait for a free slot, if all together are as many as may: their starts have to
        wait. A run counts once, however many steps of it wait: other runs are served before its second one."""
        if self._executor.waiting < self._waiting_runs:
            return set()
        runs = self._executor.waiting_runs()
        if len(runs) < self._waiting_runs:
            return set()
        counts: Counter[bytes] = Counter()
        for number, run_id in runs:
            shard = self.shards.get(number)
            live = shard.live.get(run_id) if shard is not None else None
            if live is not None:
                counts[class_of(live.header_bytes)] += 1
        return {name for name, count in counts.items() if count > FEW_WAITING}

    @property
    def overdue(self) -> float:
        """Seconds for which something is due that the loop has not looked at yet."""
        due = min(self._shard_timers.next, self._run_timers.next)
        return 0.0 if due == math.inf else max(0.0, (self._clock.now_ms() - due) / 1000)

    @property
    def live(self) -> int:
        return sum(len(shard.live) for shard in self.active.values())

    # --- the loop -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Batches that are under way survive an error of the loop, until `close`."""
        while True:
            batch = asyncio.create_task(self.process(await self.run_once()))
            hide(batch)
            self._under_way.add(batch)
            batch.add_done_callback(self._under_way.discard)

    async def run_once(self) -> list[ShardBatch]:
        """Wait for work or a due time, and collect one batch of each shard that is ready, for `process`."""
        while True:
            await self._wait()
            if batches := await self._collect():
                return batches

    async def _collect(self) -> list[ShardBatch]:
        if self._shard_timers.next <= self._clock.now_ms():
            await self._read_due_runs()
        self._wake_due_in_flight()
        if not self._ready and not self.starts.held:
            return []
        while self._is_occupied():
            if not self._store.is_single:
                return []  # `_wait` also looks whether others become ready, on another server
            await self._slots.freed()
        taken: list[OwnedShard] = []
        try:
            if self.starts.used:
                self._take_starts()
            batches = await self._take_careful_batch(taken) or self._take_batches(taken)
        except Exception:  # a defect: what these shards have in memory can't be trusted
            self.drop(*taken)
            raise
        self.on_caught_up()
        if self._executor.crowded and self._count_results() < self._most_results // 2:
            self._executor.crowded = False
        if batches:
            self._slots.take(batches[0].server)
        return batches

    def _is_occupied(self) -> bool:
        """Whether no batch may begin now of any shard that is ready."""
        if self.careful.is_exclusive:
            return True
        return self._free_server() is None if self._ready else self._slots.all_taken()

    def _free_server(self) -> int | None:
        """That of a shard which is ready, for which one more batch may begin."""
        for shard in self._ready.values():
            server = self._store.server_of(shard.keys.owner)
            if self._slots.is_free(server):
                return server
            if self._store.is_single:
                break
        return None

    def _take_starts(self) -> None:
        """Let the starts begin for which there is room in this round."""
        load = sum(len(shard.inputs) + len(shard.inbox) for shard in self._ready.values())
        for held in self.starts.take(load, is_full=self.is_full, crowding=self.crowding()):
            held.shard.inbox.extend(held.messages)
            self.wake(held.shard)

    async def _take_careful_batch(self, taken: list[OwnedShard]) -> list[ShardBatch]:
        """The next run that a former owner had in hand when its process ended, if it is its turn. No other code is run
        before it is through."""
        careful = self.careful
        if not careful.is_due(self._ready.values()):
            return []
        careful.is_running = True  # from now on no trial of a step begins
        batches = list[ShardBatch]()
        try:
            await self._slots.all_free(careful.confirms_late)
            if (found := careful.next_run(self._ready.values())) is not None:
                number, run_id = found
                taken.append(self.shards[number])
                batch = self._begin(self.shards[number])
                batch.careful = run_id
                batch.collect_careful(run_id)
                self._idle.pop(run_id, None)
                batches.append(batch)
                careful.began(batch.server)
        finally:
            careful.is_running = bool(batches)
        return batches

    def _begin(self, shard: OwnedShard) -> ShardBatch:
        del self._ready[shard.number]
        shard.busy = True
        batch = self._batches[shard.number] = ShardBatch(
            shard,
            Batch(shard.next_commit(self._session)),
            tracing=self._tracing,
            server=self._store.server_of(shard.keys.owner),
            paused=self.paused.notes,
            payloads=self.payloads,
            logs_whole=self.logs_whole,
        )
        if shard.put_off:
            self.put_off.keep_back(shard)
        return batch

    def _take_batches(self, taken: list[OwnedShard]) -> list[ShardBatch]:
        """Of shards that are on one server. Adds each shard to `taken` before it is touched."""
        batches: list[ShardBatch] = []
        runs = size = 0
        server, several = self._free_server(), not self._store.is_single
        for shard in list(self._ready.values()):
            if runs >= RUNS or size >= BYTES:
                break
            if several and self._store.server_of(shard.keys.owner) != server:
                continue
            taken.append(shard)
            if shard.dropped or shard.busy or shard.broken or shard.leaving:
                del self._ready[shard.number]
                taken.pop()
                continue
            if self.careful.waits_only(shard):
                del self._ready[shard.number]
                taken.pop()
                continue
            batch = self._begin(shard)
            batch.collect()
            runs += len(batch.work)
            size += batch.collected
            if self._idle:
                for run_id in batch.work:  # not idle now, so not to be evicted
                    self._idle.pop(run_id, None)
            batches.append(batch)
        return batches

    async def _wait(self) -> None:
        if self._ready and self._store.is_single:
            return
        self._wake = anyio.Event()
        if self._ready and not self._is_occupied():
            return
        due = min(self._shard_timers.next, self._run_timers.next)
        if due == math.inf:
            await self._wake.wait()
            return
        with anyio.move_on_after(self._clock.seconds_until(due) + 0.0005):
            await self._wake.wait()

    # --- due times ----------------------------------------------------------------------------------------------------

    def look_at_clock(self) -> None:
        """The loop waits by the monotonic clock: wake it if that was too long, because the host was suspended or the
        daemon's clock moved. Called with every heartbeat."""
        if self.starts.held or min(self._shard_timers.next, self._run_timers.next) <= self._clock.now_ms():
            self._wake.set()
        if self.starts.more:
            self.starts.wanted.set()

    async def _read_due_runs(self) -> None:
        """Read which runs are due from the shards whose due time has come."""
        now = self._clock.now_ms()
        due: dict[int, OwnedShard] = {}
        for at, number in self._shard_timers.take(now):
            shard = self.shards.get(number)
            if shard is not None and shard.next_due is not None and shard.next_due <= at and not shard.draining:
                due[number] = shard
        if not due:
            return
        if self._store.is_single:
            await self._read_due(list(due.values()))
            return
        by_server: dict[int, list[OwnedShard]] = {}
        for shard in due.values():
            by_server.setdefault(self._store.server_of(shard.keys.owner), []).append(shard)
        for shards in by_server.values():  # one that doesn't answer must not hold up the others
            reading = asyncio.create_task(self._read_due_apart(shards))
            hide(reading)
            self._under_way.add(reading)
            reading.add_done_callback(self._under_way.discard)

    async def _read_due_apart(self, shards: list[OwnedShard]) -> None:
        """`_read_due` in a task of its own."""
        try:
            await self._read_due(shards)
        except Exception as error:
            for shard in shards:
                self._troubles.failed(shard_name(shard.number), DEFECT, error, stops=True)

    async def _read_due(self, shards: list[OwnedShard]) -> None:
        try:
            for first in range(0, len(shards), DUE_SHARDS):
                await self._take_due_runs(shards[first : first + DUE_SHARDS])
        except Exception:  # a defect: nothing else knows when these shards are due
            self.drop(*shards)
            raise

    async def _take_due_runs(self, due: list[OwnedShard]) -> None:
        now = self._clock.now_ms()
        calls = [self._kernel.due_runs(shard.number, shard.token, DUE_LIMIT, now) for shard in due]
        for shard in due:
            shard.next_due = None  # what is planned from now on is not in the answer
        try:
            answers: list[DueRuns | StoreError] = await self._store.send(calls, patience=math.inf)
        except StoreError as error:
            answers = [error] * len(calls)
        for shard, answer in zip(due, answers, strict=True):
            if shard.dropped:
                continue
            if isinstance(answer, StoreError):
                self.refused(shard, answer)
            elif answer.code is Reply.FENCED:
                self.lost(shard)
            else:
                for run_id in answer.due:
                    if run_id.startswith(BUCKET):
                        self.on_bucket_due(shard, run_id.removeprefix(BUCKET))
                        continue
                    shard.add_input(run_id, DUE)
                    if shard.was_due:
                        shard.careful.setdefault(run_id, set())
                shard.was_due = False
                if answer.next is not None:
                    self._plan(shard, answer.next)
                if len(answer.due) == DUE_LIMIT:
                    # More are due. They are read after these have left the agenda.
                    self._plan(shard, now + 20)
                self.wake(shard)

    def _wake_due_in_flight(self) -> None:
        """Due times of runs whose steps are in flight, which are not on the agenda."""
        if not self._run_timers:
            return
        for _, (number, run_id) in self._run_timers.take(self._clock.now_ms()):
            shard = self.shards.get(number)
            live = shard.live.get(run_id) if shard is not None else None
            if shard is not None and live is not None:
                live.timer = None  # noted again if the run finds that it isn't due: the clock may go back by a ms
                shard.add_input(run_id, DUE)
                self.wake(shard)

    def _plan(self, shard: OwnedShard, due: int) -> None:
        if shard.plan_due(due) and self._shard_timers.set(shard.number, due):
            self._wake.set()  # the loop may be waiting for something later

    # --- one batch ----------------------------------------------------------------------------------------------------

    async def process(self, batches: list[ShardBatch]) -> None:
        """Load, reduce, commit, apply. Never raises; frees the shards, and a slot for the next batches."""
        careful = batches[0].careful
        try:
            if careful:
                await self.careful.mark(batches[0])
            await self._load(batches)
            if self.put_off:
                self._put_off(batches)
            at = self._clock.now_ms()
            committing: list[tuple[ShardBatch, Call[Committed]]] = []
            size = 0
            turn = _Turn()
            for batch in batches:
                await turn.may_end()
                if batch.shard.dropped:
                    continue
                try:
                    batch.reduce(self._app, self._namespace, at, self.watch)
                    if batch.undecided:
                        for run_id, work, need in batch.undecided:
                            self.put_off.put_off(batch.shard, run_id, work, need)
                        self.put_off.ask()
                    batch.finish()
                    if batch.is_empty:
                        batch.applied = True
                        self._apply(batch, None)
                        continue
                    call = self._kernel.commit(batch.shard.number, batch.shard.token, batch.batch, at)
                except Exception as error:
                    self._defect(batch.shard, error)
                    continue
                committing.append((batch, call))
                size += batch.size
                if size >= BYTES:  # one pipeline doesn't take much more
                    await self._commit(committing)
                    committing, size = [], 0
            if committing:
                await self._commit(committing)
        except Exception as error:  # it isn't known which shard is to blame
            for batch in batches:
                self._defect(batch.shard, error)
        except asyncio.CancelledError:  # by `close`, or by user code that cancels all tasks that it finds
            self.drop(*[batch.shard for batch in batches])
            raise
        finally:
            if careful:
                self.careful.ended(batches[0])
            self._slots.free(batches[0].server)
            if not self._store.is_single:
                self._wake.set()
            for batch in batches:
                shard = batch.shard
                shard.busy = False
                if self._batches.get(shard.number) is batch:
                    del self._batches[shard.number]
                if shard.has_work or len(shard.sent) >= SENT:
                    self.wake(shard)

    def _put_off(self, batches: list[ShardBatch]) -> None:
        """Leave out the runs that can't be reduced yet. They may be evicted meanwhile, unless their steps run here."""
        least = self.put_off.least
        for batch in batches:
            shard = batch.shard
            if shard.dropped or not (batch.may_have_references or batch.collected >= least):
                continue
            try:
                waiting = self.put_off.look_at_inputs(shard, batch.work)
            except Exception as error:
                self._defect(shard, error)
                continue
            for run_id in waiting:
                live = shard.live.get(run_id)
                if live is not None and not live.machine.in_flight:
                    self._idle[run_id] = shard
        self.put_off.ask()

    def _defect(self, shard: OwnedShard, error: Exception) -> None:
        """An error in this code, or from data that nobody thought of: what is in memory can't be trusted."""
        if not shard.dropped:
            self._troubles.failed(shard_name(shard.number), DEFECT, error, stops=True)
            self.drop(shard)

    async def _commit(self, decided: list[tuple[ShardBatch, Call[Committed]]]) -> None:
        batches: list[ShardBatch] = []
        calls: list[Call[Committed]] = []
        for batch, call in decided:
            if not batch.shard.dropped:  # while others decided
                batch.is_sent = True
                batches.append(batch)
                calls.append(call)
        if not calls:
            return
        began = time.monotonic()
        answers = await self._store.send(calls, patience=math.inf, same_history=True, confirmed=True)
        if self.on_committed is not None:
            self.on_committed(batches, answers, began)
        turn = _Turn()
        for batch, answer in zip(batches, answers, strict=True):
            await turn.may_end()
            try:
                self._answered(batch, answer)
            except Exception as error:
                self._defect(batch.shard, error)

    async def _load(self, batches: list[ShardBatch]) -> None:
        """Bring runs into memory that are not live: read in one pipeline, then replayed."""
        wanted = [(batch, run_id) for batch in batches for run_id in batch.missing()]
        if not wanted:
            return
        parts: dict[tuple[int, str], list[bytes]] = {}
        while wanted:
            complete: list[tuple[tuple[ShardBatch, str], list[bytes] | StoreError]] = []
            rest: list[tuple[ShardBatch, str]] = []
            for (batch, run_id), answer in await self._read_some(wanted, parts):
                record = parts.setdefault((batch.shard.number, run_id), [])
                if isinstance(answer, StoreError):
                    complete.append(((batch, run_id), answer))
                    continue
                following, elements = answer
                record += elements
                if following is None:
                    complete.append(((batch, run_id), parts.pop((batch.shard.number, run_id))))
                else:
                    rest.append((batch, run_id))
            await self._read_details([(batch.shard, run_id) for (batch, run_id), _ in complete])
            turns = self._rehydrate_all([one for one in complete if not self._may_sleep(*one)])
            while not self._take_turn(turns):  # noqa: ASYNC110
                await asyncio.sleep(0)  # heartbeats must not wait for thousands of replays, nor for a long one
            wanted = rest

    def _may_sleep(self, where: tuple[ShardBatch, str], record: list[bytes] | StoreError) -> bool:
        """Put a run off that has no record, if it may have been moved out of memory, until it is known, and awake."""
        batch, run_id = where
        shard = batch.shard
        if record or not shard.asleep or shard.dropped or self.need_of_absent is None or batch.work[run_id].found:
            return False
        self.put_off.put_off(shard, run_id, batch.work.pop(run_id), self.need_of_absent(shard, run_id))
        return True

    async def _read_some(
        self, wanted: list[tuple[ShardBatch, str]], parts: dict[tuple[int, str], list[bytes]]
    ) -> list[tuple[tuple[ShardBatch, str], tuple[int | None, list[bytes]] | StoreError]]:
        """Read on in the records of runs, each behind the part that was read before; about `BYTES` in one pipeline."""
        by_batch: dict[int, list[tuple[ShardBatch, str]]] = {}
        for batch, run_id in wanted:
            by_batch.setdefault(batch.shard.number, []).append((batch, run_id))
        limit = max(LEAST, BYTES // len(by_batch))
        calls = [
            self._kernel.read_runs(
                number, [(run_id, len(parts.get((number, run_id), ()))) for _, run_id in runs], limit
            )
            for number, runs in by_batch.items()
        ]
        answers: list[list[tuple[int | None, list[bytes]] | StoreError] | StoreError] = await self._store.send(
            calls, patience=math.inf
        )
        found: list[tuple[tuple[ShardBatch, str], tuple[int | None, list[bytes]] | StoreError]] = []
        for runs, answer in zip(by_batch.values(), answers, strict=True):
            if isinstance(answer, StoreError):
                answer = [answer] * len(runs)
            found += zip(runs, answer, strict=True)
        return found

    async def _read_details(self, runs: list[tuple[OwnedShard, str]]) -> None:
        """Read what steps of these runs had reported last at the former owner; about `BYTES` in one pipeline."""
        left: dict[int, tuple[OwnedShard, list[bytes]]] = {}
        for shard, run_id in runs:
            fields = [f"{run_id}/{seq}" for seq, record in shard.records.get(run_id, {}).items() if record.unread]
            if fields:
                _, known = left.setdefault(shard.number, (shard, [b""]))  # no cursor: only these fields
                known += [field.encode() for field in fields]
        while left:
            limit = max(LEAST, BYTES // len(left))
            calls = [self._kernel.read_hash(shard.keys.details, fields, limit) for shard, fields in left.values()]
            pages: list[tuple[list[bytes], list[tuple[bytes, bytes]]] | StoreError] = await self._store.send(
                calls, patience=math.inf
            )
            for (shard, _), page in zip(list(left.values()), pages, strict=True):
                if isinstance(page, StoreError):  # its commits are refused, too
                    self._troubles.failed(shard_name(shard.number), "has details that can't be read", page, stops=False)
                    del left[shard.number]
                    continue
                following, values = page
                for field, value in values:
                    run_id, seq = run_and_number(field)
                    record = shard.records.get(run_id, {}).get(seq)
                    created, details = decode_details(value)
                    if record is not None and record.unread and created in (0, record.created):
                        record.details, record.unread = details, False
                if following:
                    left[shard.number] = shard, following
                else:
                    del left[shard.number]

    def _take_turn(self, turns: Iterator[list[tuple[ShardBatch, str]]]) -> bool:
        """Bring runs into memory for one turn of the event loop. True if that was all."""
        with one_seal():
            loaded = next(turns, None)
        self.put_off.ask()
        for batch, run_id in loaded or ():  # not in the seal: steps are started
            shard = batch.shard
            live = shard.live.get(run_id)
            if live is not None and not shard.draining:
                try:
                    self._restart_running_steps(shard, run_id, live, batch.work[run_id].inputs)
                except Exception as error:
                    self._defect(shard, error)
            shard.orphans.discard(run_id)  # also if it has ended or can't be read: the shard may be handed over
        return loaded is None

    def _rehydrate_all(
        self, records: list[tuple[tuple[ShardBatch, str], list[bytes] | StoreError]]
    ) -> Generator[list[tuple[ShardBatch, str]]]:
        """Gives the runs that were loaded in each turn, and at the end of each lets the others go on."""
        ends = time.monotonic() + LONGEST_TURN
        loaded: list[tuple[ShardBatch, str]] = []
        for (batch, run_id), record in records:
            shard = batch.shard
            if shard.dropped:
                continue
            batch.work[run_id].loaded = True
            if isinstance(record, StoreError):
                self._unreadable(batch, run_id, str(record))
            elif record and batch.begin_waiting(run_id, record) and not batch.has_fork(run_id):
                batch.work[run_id].loaded = False
            elif record:
                try:
                    if self.put_off:
                        record = self.put_off.whole_record(shard, batch.work, run_id, record)
                        if record is None:
                            continue
                    for _ in self._rehydrate(batch, run_id, record):
                        if time.monotonic() > ends:
                            yield loaded
                            loaded, ends = [], time.monotonic() + LONGEST_TURN
                            if shard.dropped:
                                break
                except Exception as error:  # a record of somebody else is its run's trouble, whatever it raises
                    self._unreadable(batch, run_id, f"{type(error).__name__}: {error}")
            else:
                batch.absent.add(run_id)
            if shard.dropped:
                continue
            loaded.append((batch, run_id))
            if time.monotonic() > ends:
                yield loaded
                loaded, ends = [], time.monotonic() + LONGEST_TURN
        yield loaded

    def _rehydrate(self, batch: ShardBatch, run_id: str, record: list[bytes]) -> Generator[None]:
        shard = batch.shard
        header = decode_header(record[0])
        fork = batch.fork_of(run_id, header) if header.version == 0 else None
        if header.version == 0 and fork is None and run_id not in shard.suspect:
            batch.work[run_id].loaded = not batch.has_fork(run_id)  # of one that can't be decoded the start counts
            return
        is_open = header.status in OPEN
        is_retried = is_asked = is_a_reducer = False
        if not is_open:
            is_a_reducer = is_reducer(self._app, header, record[1])
            is_retried = batch.retry_of(run_id, header, is_reducer=is_a_reducer) is not None
            is_asked = batch.is_asked_again(run_id)
            if not (is_retried or is_asked):
                return
        history = decode_history(record[2:]) if fork is None else fork.history
        point: RetryPoint | None = None
        if is_asked:
            point = batch.again_of(run_id, header, history, is_reducer=is_a_reducer)
        if not is_open and point is None:
            if not is_retried:
                return
            try:
                point = retry_point(run_id, history)
            except CannotRetry as error:
                batch.refused[run_id] = error.failure
                return
        trace: Trace | None = None
        if self._tracing is not None:
            trace, header = self._tracing.begin(run_id, header, generation_began(history))
        state = record[1] if fork is None else b""
        pause: RunPaused | None = None
        messages = batch.work[run_id].messages
        if fork is not None:
            pause = pause_of_fork(batch.paused, header, messages) if batch.paused else None
        elif is_open and (batch.paused or messages or header.status == Status.PAUSED):
            before = pause_of(header, record[1], history)
            is_cancelling = bool(batch.paused) and was_cancelled(history)
            pause = pause_wanted(batch.paused, header, before, messages, is_cancelling=is_cancelling)
        machine = yield from self._machine(shard, run_id, header, state, history, trace, point, fork, pause)
        if shard.dropped:  # meanwhile
            machine.close()
            return
        live = shard.live[run_id] = LiveRun(machine, header, record[0], UNKNOWN)
        live.kept_stuck = keeps_stuck(header, pause)
        shard.has_paused = shard.has_paused or pause is not None
        live.size = RUN_BYTES + sum([len(element) for element in record])
        self._bytes += live.size
        shard.workflows.add(header.workflow)

    def _machine(
        self,
        shard: OwnedShard,
        run_id: str,
        header: Header,
        state: bytes,
        history: list[Transition],
        trace: Trace | None,
        point: RetryPoint | None,
        fork: RunForked | None,
        pause: RunPaused | None,
    ) -> Generator[None, None, RunMachine]:
        """The machine of a record. A run whose code raises what no run may is parked, and its code isn't run. `point`:
        the run has ended, and is to go on from there. `fork`: it begins so, behind this history. `pause`: it, or its
        workflow, is paused."""
        partition = self._namespace.partition
        is_parked = header.status == Status.STUCK and run_id not in shard.again
        known = parked_for(history, shard.code) if is_parked else ""
        if keeps_stuck(header, pause):
            pause, known = None, stuck_for(history)
        if pause is None and run_id not in shard.parked and not known:
            pieces = rehydrating(self._app, partition, run_id, header, state, history, "", trace, point, fork)
            while True:
                self.watch.code_of(run_id, shard.number)
                try:
                    next(pieces)
                except StopIteration as done:
                    return done.value
                except BaseException as error:
                    if ends_process(error):
                        raise
                    shard.parked[run_id] = reason_of(error)
                    _log.error("run %s is parked, its code can't be replayed: %s", run_id, shard.parked[run_id])
                    break
                finally:
                    self.watch.code_of("", 0)
                yield
        reason = parked_reason(shard, run_id, header.workflow, self._app) or known
        machine = yield from rehydrating(
            self._app, partition, run_id, header, state, history, reason, trace, point, fork, pause
        )
        machine.bug = shard.bug_of(run_id) if pause is None else None
        return machine

    def _restart_running_steps(self, shard: OwnedShard, run_id: str, live: LiveRun, inputs: list[Input]) -> None:
        """After a takeover: what becomes of the attempts that ran at the last owner.

        Their runs are in flight on the agenda (score -1), which is how `takeover.py` finds them. After a release the
        last owner goes on running them and reports their outcomes, or they start again here under the same numbers;
        after its death they are lost, like those of a worker. Those whose outcome has already arrived are left alone.
        So are those that another daemon runs, alive or not: it may have reported them last (`StepRecords.lose_gone`).
        """
        arrived = inputs + shard.inputs.get(run_id, [])
        finished = {(outcome.seq, outcome.attempt) for outcome in arrived if isinstance(outcome, Outcome)}
        records = shard.records.get(run_id, {})
        is_orphan = run_id in shard.orphans
        shard.orphans.discard(run_id)
        machine = live.machine
        for job in machine.begun_jobs(self._clock.now_ms()):
            _describe(job, live)
            if (job.seq, job.attempt) in finished:
                machine.note_begun(job.seq)
                continue
            record = records.get(job.seq)
            if record is not None and record.created not in (0, live.header.created):
                record = None  # of an earlier run of this id
            if record is not None and record.attempt in (job.attempt, UNKNOWN_ATTEMPT):
                record.attempt = job.attempt
                if record.host and record.created == live.header.created:
                    machine.note_begun(job.seq)
                    continue
                job.details = Raw(record.details) if record.details else job.details
            if is_orphan and (not job.lost or shard.note.has_begun(run_id, job.seq)):
                machine.note_begun(job.seq)
                inputs.append(_lost(job, shard.lost_with, shard.note, run_id))
            elif machine.steps[job.seq].due is None:
                self.suspects.submit(shard.number, run_id, job)
        if run_id in shard.careful:
            shard.careful[run_id] = set(machine.steps)

    def gone_records(self) -> list[tuple[OwnedShard, str, int, StepRecord]]:
        """Shard, run, number and record of the steps that daemons still ran for this one, and that have gone. Those of
        runs that are not in memory follow when something comes for these; those whose outcome waits here are over."""
        found: list[tuple[OwnedShard, str, int, StepRecord]] = []
        for shard in self.active.values():
            for run_id, records in shard.records.items():
                gone = [
                    (shard, run_id, seq, record)
                    for seq, record in records.items()
                    if not (record.reported or seq == CODE or not record.host or self.is_alive(record.host))
                ]
                if gone and run_id in shard.live:
                    waiting = shard.outcomes_of(run_id)
                    found += [item for item in gone if (item[2], item[3].attempt) not in waiting]
        return found

    def lose_step(self, shard: OwnedShard, run_id: str, seq: int, record: StepRecord, note: Note) -> None:
        """An attempt is lost that another daemon ran for this one, and has not reported. `note`: what that has left."""
        live = shard.live.get(run_id)
        if live is None or record.created != live.header.created:
            return
        call = live.machine.steps.get(seq)
        if call is not None and call.attempt == record.attempt:
            job = call.job()
            job.details = Raw(record.details) if record.details else job.details
            shard.add_input(run_id, _lost(job, record.host, note, run_id))
            self.wake(shard)

    def _unreadable(self, batch: ShardBatch, run_id: str, reason: str) -> None:
        work = batch.work.pop(run_id)
        _log.error(
            "the record of run %s in shard %d can't be read; its %d messages are quarantined: %s",
            run_id,
            batch.shard.number,
            len(work.messages),
            reason,
        )
        batch.quarantine(run_id, work, f"the run's record can't be read: {reason}")
        batch.batch.plans.append((run_id, None))

    # --- after the commit ---------------------------------------------------------------------------------------------

    def _answered(self, batch: ShardBatch, answer: Committed | StoreError) -> None:
        shard = batch.shard
        if shard.dropped:
            return
        batch.is_sent = False  # what became of it is known
        if isinstance(answer, OtherHistory):
            batch.is_sent = True
            self.drop(shard)
        elif isinstance(answer, StoreError):
            batch.put_back()
            self.refused(shard, answer)
        elif answer.code is Reply.FENCED:
            self.lost(shard)
        elif answer.code is Reply.BEHIND:
            self.other_history(shard)
        elif answer.code is Reply.CONFLICT:
            # The server has other versions of these runs (somebody has changed them): the ones in memory are wrong.
            _log.warning(
                "runs of shard %d have another version on the server than in memory, so they are read again: %s",
                shard.number,
                ", ".join(answer.conflicts),
            )
            self._executor.cancel_where(lambda running: running.run_id in answer.conflicts)
            shard.suspect.update(answer.conflicts)
            batch.put_back()
        else:
            batch.applied = True
            self._apply(batch, answer)

    def _apply(self, batch: ShardBatch, committed: Committed | None) -> None:
        """The decisions are durable now: steps may start, messages may leave, views may count them."""
        shard = batch.shard
        if batch.admitted:
            shard.admitted(batch.admitted)
            self.starts.wanted.set()
        del shard.sent[: batch.sent]
        views = shard.views
        for done in batch.reduced:
            if done.transition is not None:
                views.fold(done.run_id, done.transition)
            self._apply_run(shard, done)
        self._evict()
        for poison in batch.batch.poisons:
            views.fold(poison.run_id, msgspec.msgpack.decode(poison.event, type=Transition))
        if committed is not None:
            shard.commit_accepted()
            self.recent_commits.accepted(shard, shard.commits, batch)
            if committed.entry:
                if shard.forget_at == math.inf:
                    shard.forget_at = 0.0  # a run may have ended
                if shard.hibernate_at == math.inf:
                    shard.hibernate_at = self._clock.now_ms() + self.hibernate_after_ms
                shard.offset = committed.entry
                shard.unfolded += 1
                shard.logged += batch.logged
        if batch.outbox:
            self._relay.hand_over(shard, batch.outbox)
        for attempt in batch.batch.attempts:
            if attempt.queue not in self._known_queues:
                self._known_queues.add(attempt.queue)
                self.on_queue(attempt.queue)
        if batch.noted:
            self._failure_log.write(batch.noted)
        if self._tracing is not None:
            batch.make_spans(self._tracing)

    def _apply_run(self, shard: OwnedShard, done: Reduced) -> None:
        live = done.live
        effects = done.effects
        run_id = done.run_id
        machine = live.machine
        live.header = done.header
        live.header_bytes = done.header_bytes
        live.plan = done.plan
        for seq in effects.besides.cancelled:
            self.suspects.cancel(run_id, seq)
        if shard.suspect:
            shard.suspect.discard(run_id)
        if shard.bugs and done.header.status == Status.STUCK:
            shard.bug_recorded(run_id)
        self._bytes += done.size - live.size
        live.size = done.size
        if machine.pause is not None and not effects.ended:
            self.paused.is_recorded(shard, run_id, live, machine.pause)
        if effects.ended:
            self._bytes -= live.size
            shard.live.pop(run_id, None)
            self.lost_writes.left_memory(shard.number, run_id, done.header_bytes)
            shard.forget(run_id)
            self._run_timers.discard((shard.number, run_id))
            return
        if effects.jobs and not shard.draining:
            for job in effects.jobs:
                if job.step.queue is None:  # those of queues are in the commit
                    job.created, job.workflow = live.header.created, machine.workflow
                    if machine.trace is not None:
                        job.trace = machine.trace.text(machine.generation)
                    (self.suspects if job.lost else self._executor).submit(shard.number, run_id, job)
        due = machine.next_due if machine.schedule else None
        if done.plan == IN_FLIGHT:
            if due != live.timer:
                live.timer = due
                if due is None:
                    self._run_timers.discard((shard.number, run_id))
                elif self._run_timers.set((shard.number, run_id), due):
                    self._wake.set()  # the loop may be waiting for something later
            return
        if live.timer is not None:
            live.timer = None
            self._run_timers.discard((shard.number, run_id))
        if due is not None:
            self._plan(shard, due)
        self._idle[run_id] = shard
        self._idle.move_to_end(run_id)

    def _evict(self) -> None:
        if len(self._idle) <= self._cache and self._bytes <= self._memory:
            return
        with one_seal():
            while len(self._idle) > self._cache:
                self._evict_next()
            if self._bytes > self._memory:
                self._count_bytes()
            while self._bytes > self._memory and self._idle:
                self._evict_next()

    def _evict_next(self) -> None:
        run_id, shard = self._idle.popitem(last=False)
        live = shard.live.pop(run_id, None)
        if live is not None:
            self._bytes -= live.size
            self.lost_writes.left_memory(shard.number, run_id, live.header_bytes)
            live.machine.close()

    def _count_results(self) -> int:
        """Exactly how many bytes of results wait in memory."""
        self._results = sum(
            len(input_.result)
            for shard in self.active.values()
            for inputs in shard.inputs.values()
            for input_ in inputs
            if type(input_) is Outcome and input_.result is not None
        )
        return self._results

    def _count_bytes(self) -> None:
        """Once a second at most: exactly how large the runs in memory are."""
        now = time.monotonic()
        if now - self._counted >= 1.0:
            self._counted = now
            self._bytes = sum(live.size for shard in self.active.values() for live in shard.live.values())

    def other_history(self, shard: OwnedShard) -> None:
        """The server doesn't have what it had acknowledged for this shard, and it wasn't noticed otherwise: nothing in
        memory can be trusted."""
        _log.error("the server has lost commits of shard %d that it had acknowledged", shard.number)
        self.drop(shard)
        self._store.history_lost(shard.keys.owner)
        self.on_other_history()

    def lost(self, shard: OwnedShard) -> None:
        """Its token is gone: drop it, and let membership find out which daemon owns it."""
        self.shards_lost += 1
        _log.warning(
            "shard %d has another owner, or its inbox is not what it was: this daemon drops its state of the shard and "
            "cancels the steps it ran for it",
            shard.number,
        )
        self.drop(shard)
        self.on_lost()

    def refused(self, shard: OwnedShard, error: StoreError) -> None:
        """The server refuses this shard's commits (a key of a wrong type, an ACL): stop, and retry later."""
        shard.broken = str(error)
        shard.retry_at = time.monotonic() + self._troubles.failed(shard_name(shard.number), REFUSED, error, stops=True)
        self._ready.pop(shard.number, None)
        self.touch(shard)

    def retry_broken(self) -> None:
        """Retry shards that the server refused a while ago. Called with every heartbeat."""
        for shard in list(self.active.values()):
            if shard.broken and time.monotonic() >= shard.retry_at:
                shard.broken = ""
                self._plan(shard, self._clock.now_ms())
                self.wake(shard)

    def flush(self) -> None:
        """Let shards commit whose only work is to delete delivered outbox entries. Called with every rollup."""
        for shard in list(self.active.values()):
            if shard.sent:
                self.wake(shard)
