"""Server, owner and executor in memory: the records of all runs, their messages, and a virtual clock.

Owns: the order of everything that happens, what is kept of a run, and what a crash discards.
Must not: wait for anything but a step, read the real clock, or know handles and waiting (`sandbox.py`).
Called by: the sandbox; the crash test (which watches commits).

Everything that will happen is on one agenda, ordered by its virtual time and then by when it was added, and happens one
at a time: a message, a due timer, the start of an attempt, its outcome. Each is at most one transition, so there are as
many points to crash at as possible. Records are the bytes that a server would have; a crash discards everything else
that an owner has in memory.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from contextlib import suppress
from heapq import heappop, heappush
from typing import Any

import msgspec

from streamflow import events
from streamflow.client.listing import ending_of, instant
from streamflow.errors import Failure, RunError, UsageError
from streamflow.events import AnyEvent, Transition, decode_history, encode_transition
from streamflow.machine.factory import new_machine, rehydrate
from streamflow.machine.run import RunMachine
from streamflow.machine.transition import Due, Effects, Forgotten, Outcome
from streamflow.model.attributes import merged
from streamflow.model.record import Header, Status, decode_header
from streamflow.model.sharding import Partition
from streamflow.testing.attempts import perform
from streamflow.testing.stubs import Stubs
from streamflow.wire import InboxMessage, decode_message, to_delivery
from streamflow.workflow.actions import StepJob
from streamflow.workflow.app import App

BEGIN_MS = 1_767_225_600_000
"""2026-01-01 00:00 UTC: always the same, so that a test doesn't depend on when it runs."""


class Stalled(RunError):
    """A run waits for something that can never happen, or loops without end; the message says what it waits for."""


class Record:
    """The record of one run, as bytes, as the server keeps it."""

    __slots__ = ("changed", "header", "log", "published", "state", "transitions")

    def __init__(self, header: bytes) -> None:
        self.header = header
        self.state = b""
        self.transitions: list[bytes] = []
        self.log: list[Transition] = []
        """All transitions, also those of previous generations of a run that continued as new."""
        self.published: dict[str, bytes] = {}
        self.changed = 0
        """Number of the last transition that changed its status."""

    @property
    def head(self) -> Header:
        return decode_header(self.header)

    @property
    def ending(self) -> bytes:
        """The transition that ended the run, or empty."""
        return b"" if self.head.is_open else self.transitions[-1]


class Attempt:
    """An attempt of a step that will start, or has started: then `outcome` is set, and not reduced yet."""

    __slots__ = ("is_repeated", "job", "outcome", "run_id")

    def __init__(self, run_id: str, job: StepJob) -> None:
        self.run_id = run_id
        self.job = job
        self.outcome: Outcome | None = None
        self.is_repeated = False
        """Its first outcome was lost in a crash. The second one arrives when the first would have, so that a crash
        doesn't change who wins a race."""

    @property
    def key(self) -> tuple[str, int]:
        return self.run_id, self.job.seq


class Plan(msgspec.Struct, frozen=True):
    """The run's earliest timer or retry is due, unless it was cancelled meanwhile."""

    run_id: str
    due: int


class World:
    """All runs of a sandbox. `now` is the virtual time in ms since the Unix epoch."""

    def __init__(self, app: App, partition: Partition) -> None:
        self.app = app
        self.partition = partition
        self.stubs = Stubs(app)
        self.now = BEGIN_MS
        self.records: dict[str, Record] = {}
        self.answers: dict[str, bytes] = {}
        """Answers to questions, by the question's id."""
        self.transitions = 0
        """Number of committed transitions of all runs."""
        self.on_commit: Callable[[str], None] | None = None
        """Called with the run's id after each commit."""
        self._machines: dict[str, RunMachine] = {}
        self._attempts: dict[tuple[str, int], Attempt] = {}
        self._lost: dict[tuple[str, int], Attempt] = {}
        """Attempts that a crash ended and that haven't started again; each keeps its position on the agenda."""
        self._running: Attempt | None = None
        """The attempt whose function runs now."""
        self._agenda: list[tuple[int, int, InboxMessage | Attempt | Plan]] = []
        self._planned: dict[str, int] = {}
        self.planned = 0
        """Number of items that were put on the agenda so far."""

    # --- messages from outside --------------------------------------------------------------------------------------

    def start(self, run_id: str, workflow: str, tenant: str, payload: bytes, parent: str = "") -> bytes:
        """Start a run. Gives nothing, or the header of the run that has this id already, as `lua/start_runs` does."""
        record = self.records.get(run_id)
        if record is not None:
            return record.header
        header = Header(Status.PENDING, 0, "-", self.now, 0, workflow, tenant, parent).encode()
        self.records[run_id] = Record(header)
        self.post("start", run_id, payload, header)
        return b""

    def post(self, kind: str, run_id: str, body: bytes, header: bytes = b"") -> None:
        self._later(self.now, InboxMessage(str(self.planned), kind, run_id, body, header))

    def close(self) -> None:
        for machine in self._machines.values():
            machine.close()
        self._machines.clear()

    # --- the agenda -------------------------------------------------------------------------------------------------

    @property
    def next_at(self) -> int | None:
        """Virtual ms of the next item of the agenda; None if there is none."""
        while self._agenda and self._is_obsolete(self._agenda[0][2]):
            heappop(self._agenda)
        return self._agenda[0][0] if self._agenda else None

    async def step(self) -> bool:
        """Process the next item of the agenda that is due now. False if there is none."""
        at = self.next_at
        if at is None or at > self.now:
            return False
        item = self._agenda[0][2]
        if isinstance(item, Attempt) and self._lost.get(item.key) is item:
            self._restart_lost(item)
            return True
        heappop(self._agenda)
        if isinstance(item, Plan):
            self._planned.pop(item.run_id, None)
            self._reduce(item.run_id, Due())
        elif isinstance(item, InboxMessage):
            self._take(item)
        elif item.outcome is None:
            await self._begin(item)
        else:
            self._end(item, item.outcome)
        return True

    def _later(self, at: int, item: InboxMessage | Attempt | Plan) -> None:
        self.planned += 1
        heappush(self._agenda, (at, self.planned, item))

    def _is_obsolete(self, item: InboxMessage | Attempt | Plan) -> bool:
        """Whether it is an attempt or a timer that nothing waits for any more: the clock doesn't move for it."""
        if isinstance(item, Attempt):
            return item is not self._attempts.get(item.key) and item is not self._lost.get(item.key)
        return isinstance(item, Plan) and self._due(item.run_id) != item.due

    def _restart_lost(self, attempt: Attempt) -> None:
        """Have the machine start an attempt again that a crash ended. It was a retry: no history records that one has
        started, so the machine finds it due. It must do so before the attempt's turn, or the attempt would start twice.
        """
        self._reduce(attempt.run_id, Due())
        due = self._due(attempt.run_id)
        if self._lost.get(attempt.key) is attempt and (due is None or due > self.now):
            del self._lost[attempt.key]  # nothing waits for it any more

    async def _begin(self, attempt: Attempt) -> None:
        at = instant(self.now)
        self._running = attempt
        try:
            # A task, because the step must have its own context.
            outcome, takes = await asyncio.create_task(perform(self.stubs, attempt.run_id, attempt.job, at))
        except BaseException:
            self._later(self.now, attempt)  # the test's wait was cancelled, not the run: the attempt starts again
            raise
        finally:
            self._running = None
        if self._attempts.get(attempt.key) is not attempt:
            return
        if attempt.is_repeated:
            self._end(attempt, outcome)
        else:
            attempt.outcome = outcome
            self._later(self.now + takes, attempt)

    def _end(self, attempt: Attempt, outcome: Outcome) -> None:
        del self._attempts[attempt.key]
        self._reduce(attempt.run_id, outcome)

    def _take(self, message: InboxMessage) -> None:
        record = self.records.get(message.run_id)
        if record is None or not record.head.is_open:
            return  # as in production: the sender gets no error
        header = decode_header(message.header) if message.kind == "start" else None
        self._reduce(message.run_id, decode_message(message, header))

    # --- transitions ------------------------------------------------------------------------------------------------

    def machine(self, run_id: str) -> RunMachine | None:
        """The machine of an open run: the one in memory, or a new one from its record."""
        machine = self._machines.get(run_id)
        record = self.records.get(run_id)
        if machine is None and record is not None and (header := record.head).is_open:
            if header.version == 0:
                machine = new_machine(self.app, self.partition, run_id, header.workflow)
            else:
                history = decode_history(record.transitions)
                machine = rehydrate(self.app, self.partition, run_id, header, record.state, history)
            self._machines[run_id] = machine
        return machine

    def _reduce(self, run_id: str, *inputs: Any) -> None:
        machine = self.machine(run_id)
        if machine is not None:
            self._commit(run_id, machine, machine.advance(list(inputs), self.now))

    def _commit(self, run_id: str, machine: RunMachine, effects: Effects) -> None:
        if effects.events:
            self._record(run_id, machine, effects)
        for seq in effects.cancelled:
            self._attempts.pop((run_id, seq), None)
            self._lost.pop((run_id, seq), None)
        for job in effects.revoked:
            self._attempts.pop((run_id, job.seq), None)
        for message in effects.outbox:
            self._deliver(message.target, message.kind, message.body)
        for answer in effects.answers:
            self.answers[answer.id] = msgspec.msgpack.encode(answer)
        if effects.ended:
            self._machines.pop(run_id, None)
        else:
            for job in effects.jobs:
                self._submit(run_id, job)
            self._plan(run_id)
        if effects.events and self.on_commit is not None:
            self.on_commit(run_id)
        for warning in effects.warnings:
            if isinstance(warning, Forgotten):
                warnings.warn(f"run {run_id}: {warning}", RuntimeWarning, stacklevel=2)

    def _record(self, run_id: str, machine: RunMachine, effects: Effects) -> None:
        record = self.records[run_id]
        old = record.head
        self.transitions += 1
        if old.status != effects.status:
            record.changed = self.transitions
        changes: dict[str, Any] = {
            "status": effects.status,
            "version": old.version + 1,
            "commit": str(self.transitions),
            "ended": machine.at if effects.ended else 0,
        }
        if effects.attributes is not None:
            with suppress(UsageError):  # too many with those of the previous generation: none change, as in production
                changes["attributes"] = merged(old.attributes, effects.attributes)
        record.header = msgspec.structs.replace(old, **changes).encode()
        record.state = machine.snapshot()
        record.log.append(Transition(machine.at, effects.events))
        if effects.fresh:
            record.transitions.clear()
        record.transitions.append(encode_transition(machine.at, effects.events))
        record.published.update(effects.published or {})

    def _deliver(self, target: str, kind: str, body: bytes) -> None:
        """Deliver a message between runs, as `lua/deliver_messages` does."""
        if kind != "start":
            self.post(kind, target, body)
            return
        start = to_delivery("", kind, target, body)
        header = self.start(target, start.workflow, start.tenant, start.body, start.parent)
        if header and decode_header(header).parent != start.parent:
            parent, _, seq = start.parent.rpartition("#")
            failure = Failure("RunConflict", f"the run id {target} belongs to another run")
            self.post("child", parent, msgspec.msgpack.encode(events.ChildFailed(int(seq), "", failure)))

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
        due = self._due(run_id)
        if due is not None and self._planned.get(run_id) != due:
            self._planned[run_id] = due
            self._later(max(due, self.now), Plan(run_id, due))

    # --- crash ------------------------------------------------------------------------------------------------------

    def crash(self) -> list[RunMachine]:
        """Discard the owner's memory, and take over as another owner does. Gives the machines of all open runs.

        Steps that ran at the owner start again, those of queues continue. Messages are on the server, so they stay.
        """
        self.close()
        for key, attempt in list(self._attempts.items()):
            if attempt.job.step.queue is None:
                del self._attempts[key]
                attempt.is_repeated = attempt.is_repeated or attempt.outcome is not None
                attempt.outcome = None
                if attempt is not self._running:  # else it starts again, and the outcome of its function is dropped
                    self._lost[key] = attempt
        machines: list[RunMachine] = []
        for run_id, record in self.records.items():
            machine = self.machine(run_id)
            if machine is None:
                continue
            machines.append(machine)
            if record.head.version == 0:
                continue  # its start is still in the inbox
            for job in machine.running_jobs():
                self._submit(run_id, job)
            self._plan(run_id)
            if machine.resumable:
                self._reduce(run_id)
        return machines

    # --- reading ----------------------------------------------------------------------------------------------------

    def events(self, run_id: str) -> list[AnyEvent]:
        """All events of a run, also those of its previous generations."""
        return [event for transition in self.records[run_id].log for event in transition.events]

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
        if machine.reason:
            return f"other code: it is stuck ({machine.reason})"
        waits = [f"question {key[1:]}" if key.startswith("?") else f"signal {key}" for key in machine.awaited_messages]
        waits += [f"step {call.step.name} (number {call.seq})" for call in machine.steps.values()]
        waits += [
            f"child run {child.run_id}, which waits for {self.waits_for(child.run_id)}"
            for child in machine.children.values()
        ]
        return ", ".join(waits) or "a signal: it has no step, timer or child"
