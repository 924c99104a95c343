"""Server, owner and executor in memory: the records of all runs, their messages, and a virtual clock.

Owns: the order of everything that happens, what is kept of a run, and what a crash discards.
Must not: wait for anything but a step, read the real clock, or know handles and waiting (`sandbox.py`).
Called by: the sandbox; the crash test (which watches commits).

Everything that will happen is on one agenda, ordered by its virtual time and then by when it was added, and happens one
at a time: a message, a due timer, the start of an attempt, its outcome. Each is at most one transition, so there are as
many points to crash at as possible. Records are the bytes that a server would have; a crash discards everything else
that an owner has in memory.

The functions of steps are real, and take real time. One that ends at once (`AT_ONCE`) is waited for, so its outcome has
the same place in the order each time, and takes no virtual time. One that takes longer is *slow*: everything else goes
on beside it, and the virtual clock, for which what is due comes by skipping the time before it, moves no faster than
the real one (`real_wait`) until the world's patience is over.
"""

from __future__ import annotations

import asyncio
import math
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from heapq import heappop, heappush
from typing import Any, cast

import msgspec

from streamflow.archive.format import ArchivedRun
from streamflow.client.listing import ending_of, instant
from streamflow.daemon.batch import reason_of
from streamflow.daemon.paused import CHANGES, keeps_stuck, pause_wanted, paused_text
from streamflow.errors import Failure, RunError, UsageError
from streamflow.events import (
    NOTHING,
    AnyEvent,
    AskAnswered,
    RunForked,
    RunPaused,
    RunStuck,
    Transition,
    decode_history,
    decode_recorded,
    decode_transition,
    encode_transition,
    last_stopped,
    unfolded,
)
from streamflow.events import is_fork as is_forked
from streamflow.machine.factory import (
    is_reducer,
    new_machine,
    parked_for,
    pause_of,
    rehydrate,
    stuck_for,
    was_cancelled,
)
from streamflow.machine.retry_point import (
    CannotRetry,
    RetryPoint,
    again_point,
    check_end,
    no_child,
    not_again,
    retry_point,
)
from streamflow.machine.run import RunMachine
from streamflow.machine.snapshot import waits_in
from streamflow.machine.transition import (
    AgainRequest,
    CompletedChild,
    Due,
    Effects,
    FailedChild,
    Forgotten,
    Outcome,
    RetryRequest,
)
from streamflow.model.attributes import merged
from streamflow.model.record import STOPPED, Header, Status, decode_header, parent_link
from streamflow.model.retention import RetentionRules
from streamflow.model.sharding import Partition
from streamflow.model.start_word import NOTHING as START_NOTHING
from streamflow.model.start_word import StartWord
from streamflow.model.waits import Wait, waits_of
from streamflow.steps.context import Running
from streamflow.store.pauses import Pause
from streamflow.testing.archive import MemoryArchive, Retention
from streamflow.testing.attempts import perform, timed_out
from streamflow.testing.emitting import EmittedChunks
from streamflow.testing.events_out import EventLog
from streamflow.testing.stand_ins import stand_in
from streamflow.testing.stubs import Stubs
from streamflow.wire import (
    InboxMessage,
    child_outcome,
    decode_fork,
    decode_message,
    is_fork,
    refused_child,
    to_delivery,
)
from streamflow.workflow.actions import StepJob
from streamflow.workflow.app import App
from streamflow.workflow.awaitable import Bug

AT_ONCE = 0.25
"""Real seconds in which the function of a step ends, unless it is slow."""
BEGIN_MS = 1_767_225_600_000
"""2026-01-01 00:00 UTC: always the same, so that a test doesn't depend on when it runs."""


class Stalled(RunError):
    """A run waits for something that can never happen, or loops without end; the message says what it waits for."""


class Record:
    """The record of one run, as bytes, as the server keeps it."""

    __slots__ = ("app", "changed", "created", "fork", "header", "log", "published", "state", "transitions")

    def __init__(self, header: bytes, number: int) -> None:
        self.header = header
        self.app: App | None = None
        """That of a stubbed child, which has what stands in for it; None: that of the world."""
        self.fork: RunForked | None = None
        """How it begins, if it is a fork that has not begun."""
        self.state = b""
        self.transitions: list[bytes] = []
        self.log: list[Transition] = []
        """All transitions, also those of previous generations of a run that continued as new."""
        self.published: dict[str, bytes] = {}
        self.created = self.changed = number
        """`World.changes` at its start, and when its status changed last: the order of listings."""

    @property
    def head(self) -> Header:
        return decode_header(self.header)

    @property
    def stopped(self) -> RunStuck | RunPaused | None:
        """Why the run is stuck or paused, if it is."""
        found = last_stopped(self.log) if self.head.status in STOPPED else None
        return found and found[0]

    def waits(self) -> list[Wait]:
        """What the run waits for, as the client finds it in a record on the server."""
        if not self.head.is_open:
            return []
        found = waits_of(map(decode_recorded, self.transitions))
        return waits_in(self.state, found) if self.state and self.transitions else found

    @property
    def ending(self) -> bytes:
        """The transition that ended the run, or empty."""
        return b"" if self.head.is_open else self.transitions[-1]


class Attempt:
    """An attempt of a step that will start, or has started: then `outcome` is set, and not reduced yet."""

    __slots__ = ("began", "began_at", "is_repeated", "job", "limit_at", "outcome", "record", "run_id", "task")

    def __init__(self, run_id: str, job: StepJob) -> None:
        self.run_id = run_id
        self.job = job
        self.outcome: Outcome | None = None
        self.is_repeated = False
        """Its first outcome was lost in a crash. The second one arrives when the first would have, so that a crash
        doesn't change who wins a race."""
        self.record: Running | None = None
        self.task: asyncio.Task[tuple[Outcome, int]] | None = None
        """Its function runs in it; None before and after that."""
        self.began = 0.0
        """When its function was called (monotonic s)."""
        self.began_at = 0
        """The same in virtual ms."""
        self.limit_at: int | None = None
        """When its time-out is over, in virtual ms."""

    @property
    def key(self) -> tuple[str, int]:
        return self.run_id, self.job.seq

    @property
    def name(self) -> tuple[str, int, int]:
        """What it has in common with the same attempt after a crash."""
        return self.run_id, self.job.seq, self.job.attempt


class Plan(msgspec.Struct, eq=False):
    """The run's earliest timer or retry is due. It counts as long as it is the run's present plan."""

    run_id: str
    due: int


class Limit(msgspec.Struct, eq=False):
    """The time-out of a slow attempt is over, unless it has ended by then."""

    attempt: Attempt


Item = InboxMessage | Attempt | Plan | Limit


class World:
    """All runs of a sandbox. `now` is the virtual time in ms since the Unix epoch.

    `patience`: real seconds after which the virtual clock waits no longer for a slow step.
    """

    def __init__(
        self,
        app: App,
        partition: Partition,
        patience: float = math.inf,
        rules: RetentionRules | None = None,
        *,
        archives: bool = False,
    ) -> None:
        """`rules`: how long ended runs are kept; `archives`: whether they go to an archive then."""
        self.app = app
        self.archive = MemoryArchive() if archives else None
        self._retention = None if rules is None else Retention(rules)
        self.partition = partition
        self.stubs = Stubs(app)
        self.now = BEGIN_MS
        self._last = 0
        """When a run was created, or has ended, that was forgotten (ms)."""
        self.records: dict[str, Record] = {}
        self.answers: dict[str, bytes] = {}
        """Answers to questions, by the question's id."""
        self.log = EventLog()
        """For subscribers."""
        self.transitions = 0
        """Number of committed transitions of all runs."""
        self.paused: dict[str, Pause] = {}
        """The workflows that are paused."""
        self.on_commit: Callable[[str, int], None] | None = None
        """Called with the run's id and the number of the transition after each commit."""
        self._committed: list[tuple[str, int]] | None = None
        """During a takeover: commits that `on_commit` is called for when all runs are taken over."""
        self._machines: dict[str, RunMachine] = {}
        self.code = 1
        """Which code it is: another one after each deploy."""
        self._parked: dict[str, str] = {}
        """Runs whose code this owner doesn't run any more, and why."""
        self._again: set[str] = set()
        """Stuck runs whose code is tried once more."""
        self._bugs: dict[str, Failure] = {}
        """What the code of some of them has raised, until that is recorded."""
        self._attempts: dict[tuple[str, int], Attempt] = {}
        self._lost: dict[tuple[str, int], Attempt] = {}
        """Attempts that a crash ended and that haven't started again; each keeps its position on the agenda."""
        self._slow: set[Attempt] = set()
        """Attempts whose functions didn't end at once, and run beside everything else."""
        self._slow_before: dict[tuple[str, int, int], int | None] = {}
        """Slow attempts by name, with the ends of their time-outs: after a crash they are not waited for again."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping: set[asyncio.Task[Any]] = set()
        """Tasks of attempts that were stopped since the last item of the agenda."""
        self._agenda: list[tuple[int, int, Item]] = []
        self._plans: dict[str, Plan] = {}
        """The one plan of each run that counts; others on the agenda are obsolete."""
        self._patience = patience
        self.changes = 0
        """Grows with everything that happens: messages, transitions, moves of the clock."""
        self._news = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.chunks = EmittedChunks(lambda: self.now, self._emitted)

    # --- messages from outside --------------------------------------------------------------------------------------

    def start(
        self,
        run_id: str,
        workflow: str,
        tenant: str,
        payload: bytes,
        parent: str = "",
        word: StartWord = START_NOTHING,
    ) -> bytes:
        """Start a run. Gives nothing, or the header of the run that has this id already, which stays as it is."""
        record = self.records.get(run_id)
        if record is not None:
            return record.header
        created = max(self.now, self._last + 1)
        if word.delay:
            word = word._replace(begins=created + word.delay, delay=0)
        header = Header(Status.PENDING, 0, "-", created, 0, workflow, tenant, parent, start=str(word)).encode()
        record = self.records[run_id] = Record(header, self.changes)
        if is_fork(payload):
            record.fork = decode_fork(payload, record.head)
        self.post("start", run_id, payload, header)
        return b""

    def move_to_archive(self, run_id: str) -> None:
        """Of a run that has ended; without an archive it is deleted."""
        record = self.records[run_id]
        if self.archive is not None:
            published = dict(record.published)
            self.archive.add(ArchivedRun(run_id, record.header, record.state, list(record.transitions), published))
        self.forget(run_id)

    def restore(self, run: ArchivedRun) -> Header:
        """Put a run back, unless another one has its id. Returns the header of the one that has it then."""
        found = self.records.get(run.run_id)
        if found is not None:
            return found.head
        self._changed()
        record = self.records[run.run_id] = Record(run.header, self.changes)
        record.state, record.transitions, record.published = run.state, list(run.transitions), dict(run.published)
        record.log = [decode_transition(data) for data in run.transitions]
        self._last = max(self._last, record.head.created, record.head.ended)
        if self._retention is not None:
            self._retention.begins(run.run_id, record.head, self.now)
        return record.head

    def _retire(self) -> None:
        """What a daemon does about ended runs once a minute."""
        for run_id, created in () if self._retention is None else self._retention.over(self.now):
            record = self.records.get(run_id)
            if record is not None and record.head.created == created and not record.head.is_open:
                self.move_to_archive(run_id)

    def forget(self, run_id: str) -> None:
        """Delete the record of a run that has ended, if there is one: the next run of its id is created later."""
        record = self.records.pop(run_id, None)
        if record is not None:
            self._last = max(self._last, record.head.created, record.head.ended)
            self._slow_before = {name: at for name, at in self._slow_before.items() if name[0] != run_id}

    def post(self, kind: str, run_id: str, body: bytes, header: bytes = b"") -> None:
        self._later(self.now, InboxMessage(str(self.changes), kind, run_id, body, header))

    def close(self) -> None:
        """Close the coroutines of open runs, and stop the steps that still run."""
        for attempt in list(self._slow):
            self._stop(attempt)
        self._close_machines()

    async def aclose(self) -> None:
        """Also let the functions of those steps end."""
        self.close()
        await self._let_stopped_end()

    def _close_machines(self) -> None:
        for machine in self._machines.values():
            machine.close()
        self._machines.clear()

    # --- time -------------------------------------------------------------------------------------------------------

    @property
    def has_slow_steps(self) -> bool:
        return bool(self._slow)

    def move_to(self, at: int) -> None:
        """Move the virtual clock, never back."""
        if at > self.now:
            self.now = at
            self._changed()
            self._retire()

    def real_wait(self, at: int) -> float:
        """How long (real seconds) the clock may not move to `at` yet: a slow step may still end before that."""
        now = time.monotonic()
        waits = [a.began + min((at - a.began_at) / 1000, self._patience) - now for a in self._slow]
        return max(waits, default=0.0)

    async def news(self, seconds: float) -> None:
        """Wait until something happens, for at most that long on the real clock."""
        with suppress(TimeoutError):
            async with asyncio.timeout(None if seconds == math.inf else seconds):
                await self._news.wait()

    def _emitted(self) -> None:
        """In the thread of a step."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the test, and its event loop, have ended
                self._loop.call_soon_threadsafe(self._changed)

    def _changed(self) -> None:
        self.changes += 1
        self._news.set()
        self._news = asyncio.Event()

    # --- the agenda -------------------------------------------------------------------------------------------------

    @property
    def next_at(self) -> int | None:
        """Virtual ms of the next item of the agenda; None if there is none."""
        while self._agenda and self._is_obsolete(self._agenda[0][2]):
            heappop(self._agenda)
        return self._agenda[0][0] if self._agenda else None

    async def step(self) -> bool:
        """Process the next item of the agenda that is due now. False if there is none."""
        if self._stopping:
            await self._let_stopped_end()
        at = self.next_at
        if at is None or at > self.now:
            return False
        item = self._agenda[0][2]
        if isinstance(item, Attempt) and self._lost.get(item.key) is item:
            self._restart_lost(item)
            return True
        heappop(self._agenda)
        if isinstance(item, Plan):
            del self._plans[item.run_id]
            self._reduce(item.run_id, Due())
        elif isinstance(item, InboxMessage):
            self._take(item)
        elif isinstance(item, Limit):
            self._expire(item.attempt)
        elif item.outcome is None:
            await self._begin(item)
        else:
            self._end(item, item.outcome)
        return True

    def _later(self, at: int, item: Item) -> None:
        self._changed()
        heappush(self._agenda, (at, self.changes, item))

    def _is_obsolete(self, item: Item) -> bool:
        """Whether it is an attempt or a timer that nothing waits for any more: the clock doesn't move for it."""
        if isinstance(item, Attempt):
            return item is not self._attempts.get(item.key) and item is not self._lost.get(item.key)
        if isinstance(item, Limit):
            return item.attempt.task is None
        return isinstance(item, Plan) and self._plans.get(item.run_id) is not item

    def _restart_lost(self, attempt: Attempt) -> None:
        """Have the machine start an attempt again that a crash ended. It was a retry: no history records that one has
        started, so the machine finds it due. It must do so before the attempt's turn, or the attempt would start twice.
        """
        self._reduce(attempt.run_id, Due())
        due = self._due(attempt.run_id)
        if self._lost.get(attempt.key) is attempt and (due is None or due > self.now):
            del self._lost[attempt.key]  # nothing waits for it any more

    async def _begin(self, attempt: Attempt) -> None:
        """Call its function, and wait for it if it ends at once."""
        self._loop = asyncio.get_running_loop()
        job = attempt.job
        attempt.record = Running(0, attempt.run_id, job, job.details, on_emit=self.chunks.emit)
        attempt.began, attempt.began_at = time.monotonic(), self.now
        was_slow = attempt.name in self._slow_before
        at_once = 0.0 if was_slow else min(AT_ONCE, self._patience)
        if job.timeout is not None:
            at_once = min(at_once, job.timeout)
            attempt.limit_at = self._slow_before.get(attempt.name) or self.now + round(job.timeout * 1000)
        # A task, because the step must have its own context.
        task = attempt.task = asyncio.create_task(perform(self.stubs, attempt.record, instant(self.now)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await asyncio.wait({task}, timeout=at_once)
        finally:  # if the test's wait was cancelled, the step goes on all the same
            if task.done():
                self._performed(attempt, task)
            elif attempt.task is task:
                self._slow.add(attempt)
                self._slow_before[attempt.name] = attempt.limit_at
                task.add_done_callback(lambda task: self._performed(attempt, task))
                if attempt.limit_at is not None:
                    self._later(max(attempt.limit_at, self.now), Limit(attempt))

    def _performed(self, attempt: Attempt, task: asyncio.Task[tuple[Outcome, int]]) -> None:
        """Its function has ended; what it gave counts only if the attempt was not stopped meanwhile."""
        if task.cancelled():
            return
        outcome, takes = task.result()
        if attempt.task is not task:
            return
        attempt.task = None
        if attempt in self._slow:
            self._slow.discard(attempt)
            outcome.ms = max(outcome.ms, (time.monotonic() - attempt.began) * 1000)
            takes = max(takes - (self.now - attempt.began_at), 0)
        elif attempt.is_repeated:
            self._end(attempt, outcome)
            return
        attempt.outcome = outcome
        self._later(self.now + takes, attempt)

    def _expire(self, attempt: Attempt) -> None:
        assert attempt.record is not None
        self._stop(attempt)
        self._end(attempt, timed_out(attempt.record, (self.now - attempt.began_at) / 1000))

    def _stop(self, attempt: Attempt) -> None:
        """Nothing waits for the attempt any more: end its function, if it runs."""
        task, attempt.task = attempt.task, None
        if task is None or attempt.record is None:
            return
        attempt.record.over = True
        self._slow.discard(attempt)
        if task is not _current_task():  # else it is the step's own code that has led here
            task.cancel()
            self._stopping.add(task)

    async def _let_stopped_end(self) -> None:
        """A step that was stopped may clean up, in real time, before anything else happens."""
        stopping, self._stopping = self._stopping, set()
        if stopping := {task for task in stopping if not task.done()}:
            await asyncio.wait(stopping, timeout=AT_ONCE)

    def _end(self, attempt: Attempt, outcome: Outcome) -> None:
        del self._attempts[attempt.key]
        self._reduce(attempt.run_id, outcome)

    def _take(self, message: InboxMessage) -> None:
        record = self.records.get(message.run_id)
        if record is not None and message.kind == "retry":
            if (pause := self.paused.get(record.head.workflow)) is not None:
                text = paused_text(message.run_id, pause, record.head.workflow)
                self._refuse(cast("RetryRequest", decode_message(message, None)), Failure("Paused", text))
                return
            retry = cast("RetryRequest", decode_message(message, None))
            if not retry.seq and record.head.status == Status.STUCK:
                self._try_again(message.run_id, retry)
                return
            if not (retry.seq and record.head.is_open):
                self._retry(message.run_id, record, retry)
                return
        if message.kind == "again":
            self._ask_again(message.run_id, record, cast("AgainRequest", decode_message(message, None)))
            return
        if record is None or not record.head.is_open:
            return  # as in production: the sender gets no error
        header = decode_header(message.header) if message.kind == "start" else None
        made = self._machines.get(message.run_id)
        if self.paused or message.kind in CHANGES or (made is not None and made.pause is not None):
            self._look_at_pause(message.run_id, message)
        self._reduce(message.run_id, decode_message(message, header), message=message)

    def _refuse(self, retry: RetryRequest, failure: Failure) -> None:
        self.answers[retry.id] = msgspec.msgpack.encode(AskAnswered(retry.id, "retry", failure=failure))

    def pause_workflow(self, name: str, pause: Pause | None) -> None:
        """Pause a workflow, or have it go on. As daemons do it, runs are paused when something comes for them."""
        if pause is not None:
            self.paused[name] = pause
            for run_id in {attempt.run_id for attempt in self._attempts.values() if attempt.record is None}:
                self._reduce(run_id, Due())
            return
        self.paused.pop(name, None)
        for run_id, record in list(self.records.items()):
            if record.head.workflow == name and record.head.status in STOPPED:
                self._drop_machine(run_id)
                self._reduce(run_id, Due())

    def _pause_wanted(self, record: Record, message: InboxMessage | None = None) -> RunPaused | None:
        """What a run is to be paused by, which may get this message."""
        header, history = record.head, decode_history(record.transitions)
        messages = [] if message is None else [msgspec.structs.replace(message, id=f"{self.now}-0")]
        before = pause_of(header, record.state, history)
        return pause_wanted(self.paused, header, before, messages, is_cancelling=was_cancelled(history))

    def _look_at_pause(self, run_id: str, message: InboxMessage | None = None) -> None:
        """Make the machine of a run again that is, or was, paused since it was made, or is by this message."""
        record, machine = self.records.get(run_id), self.machine(run_id)
        if record is None or machine is None:
            return
        wanted = self._pause_wanted(record, message)
        if wanted == machine.pause or keeps_stuck(record.head, wanted):
            return
        machine.close()
        machine = self._machines[run_id] = self._made(run_id, record, wanted)
        if wanted is None:
            for job in machine.running_jobs():
                if (run_id, job.seq) not in self._attempts:
                    self._submit(run_id, job)
            return
        for key, attempt in list(self._attempts.items()):
            if attempt.run_id == run_id and attempt.record is None and attempt.job.step.queue is None:
                del self._attempts[key]  # it hasn't begun

    def _drop_machine(self, run_id: str) -> None:
        if (machine := self._machines.pop(run_id, None)) is not None:
            machine.close()

    # --- transitions ------------------------------------------------------------------------------------------------

    def machine(self, run_id: str) -> RunMachine | None:
        """The machine of an open run: the one in memory, or a new one from its record."""
        machine = self._machines.get(run_id)
        record = self.records.get(run_id)
        if machine is None and record is not None and record.head.is_open:
            machine = self._machines[run_id] = self._made(run_id, record, self._pause_wanted(record))
        return machine

    def _made(self, run_id: str, record: Record, pause: RunPaused | None) -> RunMachine:
        header = record.head
        if record.fork is not None:
            return self._forked(run_id, header, record, record.fork, pause)
        if header.version:
            return self._rehydrate(run_id, header, record, pause)
        app, reason = record.app or self.app, self._parked.get(run_id, "")
        machine = new_machine(app, self.partition, run_id, header.workflow, reason, word=header.start, pause=pause)
        machine.bug = self._bug_of(run_id) if pause is None else None
        return machine

    def _forked(
        self, run_id: str, header: Header, record: Record, fork: RunForked, pause: RunPaused | None
    ) -> RunMachine:
        """The machine of a fork that has not begun."""
        app = record.app or self.app
        if pause is not None or run_id not in self._parked:
            try:
                return rehydrate(app, self.partition, run_id, header, b"", [], fork=fork, pause=pause)
            except BaseException as error:
                self._park(run_id, error)
        machine = rehydrate(app, self.partition, run_id, header, b"", [], self._parked[run_id], fork=fork)
        machine.bug = self._bug_of(run_id)
        return machine

    def _rehydrate(self, run_id: str, header: Header, record: Record, pause: RunPaused | None) -> RunMachine:
        app = record.app or self.app
        history = decode_history(record.transitions)
        is_parked = header.status == Status.STUCK and run_id not in self._again
        known = parked_for(history, str(self.code)) if is_parked else ""
        if keeps_stuck(header, pause):
            pause, known = None, stuck_for(history)
        if pause is None and run_id not in self._parked and not known:
            try:
                return rehydrate(app, self.partition, run_id, header, record.state, history)
            except BaseException as error:
                self._park(run_id, error)
        reason = self._parked.get(run_id, known)
        machine = rehydrate(app, self.partition, run_id, header, record.state, history, reason, pause=pause)
        machine.bug = self._bug_of(run_id) if pause is None else None
        return machine

    def _bug_of(self, run_id: str) -> tuple[Failure, str] | None:
        failure = self._bugs.pop(run_id, None)
        return None if failure is None else (failure, str(self.code))

    def _reduce(self, run_id: str, *inputs: Any, message: InboxMessage | None = None) -> None:
        """Let a run decide, and commit. One whose code raises what no run may is parked, as a daemon does it: the
        inputs are recorded, and none of its code is run any more."""
        machine = self.machine(run_id)
        if machine is None:
            return
        if message is None and (self.paused or machine.pause is not None):
            self._look_at_pause(run_id)
            machine = self._machines[run_id]
        try:
            effects = machine.advance(list(inputs), self.now)
            encoded = encode_transition(machine.at, effects.events, effects.besides.unrecorded), machine.snapshot()
        except BaseException as error:
            if run_id in self._parked:
                raise
            self._park(run_id, error)
            machine.close()
            del self._machines[run_id]
            self._reduce(run_id, *inputs, message=message)
            return
        self._commit(run_id, machine, effects, *encoded)

    def _try_again(self, run_id: str, retry: RetryRequest) -> None:
        """Run the code of a stuck run once more."""
        self._parked.pop(run_id, None)
        if (machine := self._machines.pop(run_id, None)) is not None:
            machine.close()
        self._again.add(run_id)
        try:
            self._reduce(run_id, retry)
        finally:
            self._again.discard(run_id)

    def _ask_again(self, run_id: str, record: Record | None, again: AgainRequest) -> None:
        """The parent of a run goes on, which waits for it."""
        outcome: CompletedChild | FailedChild | None = None
        if record is None or record.head.parent != again.parent:
            outcome = no_child(run_id, again)
        elif not record.head.is_open:
            history = decode_history(record.transitions)
            app = record.app or self.app
            reducer = is_reducer(app, record.head, record.state)
            found = again_point(run_id, record.head, history, again, is_reducer=reducer)
            if isinstance(found, RetryPoint):
                try:
                    if (pause := self.paused.get(record.head.workflow)) is not None:
                        raise CannotRetry("Paused", paused_text(run_id, pause, record.head.workflow))
                    self._go_on(run_id, record, again, found)
                except CannotRetry as error:
                    outcome = not_again(run_id, again, error, found.failure)
            else:
                outcome = found
        if outcome is not None and (parent := parent_link(again.parent)):
            self.post("child", parent.run_id, child_outcome(outcome))

    def _retry(self, run_id: str, record: Record, retry: RetryRequest) -> None:
        """Have a run go on that has failed, as its owner does; or say why not."""
        app = record.app or self.app
        try:
            check_end(run_id, record.head, retry, is_reducer=is_reducer(app, record.head, record.state))
            self._go_on(run_id, record, retry, retry_point(run_id, decode_history(record.transitions)))
        except CannotRetry as error:
            self._refuse(retry, error.failure)

    def _go_on(self, run_id: str, record: Record, retry: RetryRequest | AgainRequest, point: RetryPoint) -> None:
        app, history = record.app or self.app, decode_history(record.transitions)
        try:
            machine = rehydrate(app, self.partition, run_id, record.head, b"", history, retry=point)
            effects = machine.advance([retry], self.now)
            encoded = encode_transition(machine.at, effects.events, effects.besides.unrecorded), machine.snapshot()
        except BaseException as error:
            if type(error) is KeyboardInterrupt:
                raise
            raise CannotRetry("Diverged", f"run {run_id} can't go on: {reason_of(error)}") from error
        if not effects.ended:
            self._machines[run_id] = machine
        self._commit(run_id, machine, effects, *encoded)

    def _park(self, run_id: str, error: BaseException) -> None:
        if type(error) is KeyboardInterrupt:  # it stops the test, not a run
            raise error
        self._parked[run_id] = reason_of(error)
        if isinstance(error, Bug):
            self._bugs[run_id] = error.failure

    def _commit(self, run_id: str, machine: RunMachine, effects: Effects, transition: bytes, state: bytes) -> None:
        if effects.events:
            self._record(run_id, machine, effects, transition, state)
        for seq in (*effects.besides.cancelled, *(job.seq for job in effects.besides.revoked)):
            self._lost.pop((run_id, seq), None)
            if (attempt := self._attempts.pop((run_id, seq), None)) is not None:
                self._stop(attempt)
        for message in effects.besides.outbox:
            self._deliver(message.target, message.kind, message.body)
        for answer in effects.besides.answers:
            self.answers[answer.id] = msgspec.msgpack.encode(answer)
        if effects.ended:
            self._machines.pop(run_id, None)
            self._plans.pop(run_id, None)
        else:
            for job in effects.jobs:
                job.workflow = machine.workflow
                self._submit(run_id, job)
            self._plan(run_id)
        if effects.events:
            self._report(run_id, self.transitions)
        for warning in effects.besides.warnings:
            if isinstance(warning, Forgotten):
                warnings.warn(f"run {run_id}: {warning}", RuntimeWarning, stacklevel=2)

    def _report(self, run_id: str, number: int) -> None:
        if self._committed is not None:
            self._committed.append((run_id, number))
        elif self.on_commit is not None:
            self.on_commit(run_id, number)

    def _record(self, run_id: str, machine: RunMachine, effects: Effects, transition: bytes, state: bytes) -> None:
        record = self.records[run_id]
        old = record.head
        self.transitions += 1
        self._changed()
        if old.status != effects.status:
            record.changed = self.changes
        changes: dict[str, Any] = {
            "status": effects.status,
            "version": old.version + 1,
            "commit": str(self.transitions),
            "ended": machine.at if effects.ended else 0,
        }
        if effects.besides.attributes is not None:
            with suppress(UsageError):  # too many with those of the previous generation: none change, as in production
                changes["attributes"] = merged(old.attributes, effects.besides.attributes)
        record.header = msgspec.structs.replace(old, **changes).encode()
        record.fork = None
        record.state = state
        record.log.append(Transition(machine.at, effects.events))
        self.log.committed(run_id, record.head, record.log[-1])
        if effects.besides.fresh:
            record.transitions.clear()
        record.transitions.append(transition)
        record.published.update(effects.besides.published or {})
        if effects.ended and self._retention is not None:
            self._retention.begins(run_id, record.head, self.now)

    def _deliver(self, target: str, kind: str, body: bytes) -> None:
        """Deliver a message between runs, as `lua/deliver_messages` does."""
        message = to_delivery("", kind, target, body)
        record = self.records.get(target)
        is_other = record is not None and record.head.parent != message.parent
        if message.kind != "start":
            if not (message.parent and (record is None or is_other)):
                self.post(message.kind, target, message.body)
        elif record is None:
            definition = self.stubs.child_begins(message.workflow, target)
            self.start(target, message.workflow, message.tenant, message.body, message.parent)
            if definition is not None:
                self.records[target].app = stand_in(definition, target, self.stubs)
        elif is_other and (parent := parent_link(message.parent)):
            self.post("child", parent.run_id, refused_child(target, parent))

    def _submit(self, run_id: str, job: StepJob) -> None:
        key = (run_id, job.seq)
        lost = self._lost.pop(key, None)
        if lost is not None and lost.job.attempt == job.attempt:
            lost.job = job
            self._attempts[key] = lost  # it keeps its position on the agenda
        else:
            attempt = self._attempts[key] = Attempt(run_id, job)
            self._later(self.now, attempt)

    def _due(self, run_id: str) -> int | None:
        machine = self._machines.get(run_id)
        return None if machine is None or machine.ended else machine.next_due

    def _plan(self, run_id: str) -> None:
        """Called whenever the run's earliest due time may have changed."""
        due, plan = self._due(run_id), self._plans.get(run_id)
        if due is None:
            self._plans.pop(run_id, None)
        elif plan is None or plan.due != due:
            plan = self._plans[run_id] = Plan(run_id, due)
            self._later(max(due, self.now), plan)

    # --- crash ------------------------------------------------------------------------------------------------------

    def crash(self) -> list[RunMachine]:
        """Discard the owner's memory, and take over as another owner does. Gives the machines of all open runs.

        Steps that ran at the owner start again, those of queues continue. Messages are on the server, so they stay.
        """
        self._close_machines()
        self._parked.clear()  # another owner tries their code again, unless it was recorded that this code has a bug
        for key, attempt in list(self._attempts.items()):
            if attempt.job.step.queue is None:
                del self._attempts[key]
                if attempt.task is not None:  # it starts again, and what its function gives is dropped
                    self._stop(attempt)
                    continue
                attempt.is_repeated = attempt.is_repeated or attempt.outcome is not None
                attempt.outcome = None
                self._lost[key] = attempt
        machines: list[RunMachine] = []
        self._committed = []
        for run_id, record in list(self.records.items()):
            machine = self.machine(run_id)
            if machine is None:
                continue
            machines.append(machine)
            if record.head.version == 0:
                continue  # its start is still in the inbox
            for job in machine.running_jobs():
                self._submit(run_id, job)
            self._plan(run_id)
            if machine.resumable or (machine.reason and not machine.stuck):
                self._reduce(run_id)  # it goes on, or is stuck from now on
        committed, self._committed = self._committed, None
        for run_id, number in committed:
            self._report(run_id, number)
        return machines

    # --- reading ----------------------------------------------------------------------------------------------------

    def events(self, run_id: str) -> list[AnyEvent]:
        """All events of a run, also those of its previous generations."""
        log = self.records[run_id].log
        if log and is_forked(log[0].events):
            log = unfolded(log)
        return [event for transition in log for event in transition.events]

    def ended(self, run_id: str) -> bool:
        return bool(self.records[run_id].ending)

    def waits_for(self, run_id: str) -> str:
        """A text that says what a run waits for."""
        machine = self.machine(run_id)
        if machine is None:
            record = self.records.get(run_id)
            if record is None:
                return "nothing: it was not started"
            ending = ending_of(record.log[-1])
            return f"nothing: it has ended ({ending.describe() if ending else record.head.status})"
        if machine.pause is not None:
            return f"the end of a pause: {machine.pause.says()}"
        if machine.reason:
            return f"other code: it is stuck ({machine.reason})"
        waits = [f"question {key[1:]}" if key.startswith("?") else f"signal {key}" for key in machine.awaited_messages]
        waits += [
            f"step {call.step.name} (number {call.seq}{self._runs_for(run_id, call.seq)})"
            for call in machine.steps.values()
        ]
        waits += [
            f"child run {child.run_id}, which waits for {self.waits_for(child.run_id)}"
            for child in machine.children.values()
        ]
        if machine.begins:
            return f"its start at {instant(machine.begins):%Y-%m-%d %H:%M:%S}"
        if machine.timers and machine.next_due is not None:
            waits.append(f"a timer (what is next due is due at {instant(machine.next_due):%Y-%m-%d %H:%M:%S})")
        return ", ".join(waits) or "a signal: it has no step, timer or child"

    def details_of(self, run_id: str, seq: int) -> bytes:
        """What the attempt that runs has reported last, encoded."""
        attempt = self._attempts.get((run_id, seq))
        if attempt is None:
            return bytes(NOTHING)
        return bytes(attempt.job.details if attempt.record is None else attempt.record.details)

    def _runs_for(self, run_id: str, seq: int) -> str:
        attempt = self._attempts.get((run_id, seq))
        if attempt is None or attempt not in self._slow:
            return ""
        return f", whose function has been running for {time.monotonic() - attempt.began:.1f} s of real time"


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # in a thread
        return None
