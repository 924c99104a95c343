"""What all machines share: from inputs to facts, and from the end of the code to the end of the run.

Owns: `advance`, which facts an input is and whether a failed attempt is tried again, what an ending cancels, and what
happens while a run is stuck (facts are recorded, no user code runs). What is open is in `open_work.py`.
Must not: know clocks, I/O or event loops; run user code (`coroutines.py` and `reducer.py` do).
Called by: the machines; the owner calls `advance` and the properties.

One `advance` is one transition: inputs become facts, each fact is delivered to user code, whose decisions follow it.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime
from heapq import heappop
from typing import TYPE_CHECKING, Any, cast

import msgspec
from msgspec import Raw

from streamflow import errors, events
from streamflow.errors import (
    ContinueAs,
    Failure,
    PayloadInvalid,
    PayloadTooLarge,
    UsageError,
)
from streamflow.events import (
    NOTHING,
    AnyEvent,
    AskAnswered,
    AskReceived,
    CancelRequested,
    ChildCompleted,
    ChildStarted,
    RunCompleted,
    RunResumed,
    RunStarted,
    RunStuck,
    SignalReceived,
    SignalSent,
    StepCancelled,
    StepCompleted,
    StepRetrying,
    TimerFired,
)
from streamflow.machine.open_work import MAX_WORKER_LOSSES, WORKER_LOST, OpenWork
from streamflow.machine.transition import Due, Effects, Ending, Input, Outcome, Outgoing
from streamflow.model import codec
from streamflow.model.attributes import Attribute, merged
from streamflow.model.record import Status
from streamflow.workflow.actions import ChildCall, SignalSend, SignalWait, StepCall
from streamflow.workflow.app import Step
from streamflow.workflow.awaitable import Fiber, Operation, active

if TYPE_CHECKING:
    from streamflow.workflow.awaitable import D

_encode = msgspec.msgpack.Encoder().encode

EVENTS_WARN = 10_000
EVENTS_CONTINUE = 50_000
"""Events of a history at which a run is warned of, and at which it is told to continue as new."""
EVENTS_FAIL = 55_000
"""Events at which a run that didn't is ended."""


class RunMachine(OpenWork):
    """Base of the machines: one run, in memory."""

    __slots__ = ()

    # --- for the owner ----------------------------------------------------------------------------------------------

    @property
    def resumable(self) -> bool:
        """The history is in stuck state and the present code can go on: the next advance does, inputs or not."""
        return self.stuck and not self.reason

    @property
    def awaited_messages(self) -> list[str]:
        """What user code waits for now: names of signals, and of questions behind a question mark."""
        return []

    def advance(self, inputs: list[Any], at: int) -> Effects:
        """Reduce inputs to one transition at shard-clock ms `at`. No events means that nothing is to be committed.

        The caller commits `encode_transition(at, effects.events)`, then starts the jobs.
        """
        if at > self.at:
            self.at = at
        effects = self.effects = Effects()
        if self.ended:
            effects.status = self.status
            effects.ended = True
            return effects
        token = active.set(self)
        try:
            if self.stuck or self.reason:
                inputs = self._park_or_resume(inputs)
            elif self.events_count >= EVENTS_WARN:
                self._limit_history()
            if not effects.ended:
                self._take_all(inputs)
        finally:
            active.reset(token)
        if effects.jobs and (effects.cancelled or effects.revoked):
            _drop_stopped(effects)
        effects.status = self.status
        count = self.events_count
        self.events_count = count + len(effects.events)
        if count < EVENTS_WARN <= self.events_count:
            self._warn_of_history()
        self.effects = _IDLE  # a machine at rest keeps no history
        return effects

    @property
    def events_before(self) -> int:
        """Length of the history before the present transition."""
        return self.events_count

    def _limit_history(self) -> None:
        """The history is long: tell the code, if it has one."""

    def _warn_of_history(self) -> None:
        """The history has just become long."""

    def snapshot(self) -> bytes:
        """The `state` element of the run's record."""
        return b""

    def close(self) -> None:
        """Give up user code without letting it decide anything more. For eviction from the cache; safe to repeat."""

    # --- for operations ---------------------------------------------------------------------------------------------

    def take_seq(self) -> int:
        self.seq = seq = self.seq + 1
        return seq

    def decide(self, event: D) -> D:
        """Record a decision. Gives the recorded one, which in a replay is the history's."""
        self.effects.events.append(event)
        return event

    def warn(self, text: str) -> None:
        """Have the owner log it when the transition is committed."""
        self.effects.warnings.append(text)

    def add_child(self, call: ChildCall, event: ChildStarted) -> None:
        self.children[call.seq] = call
        body = [event.name, event.tenant, f"{self.run_id}#{call.seq}", event.input]
        self.send(event.run_id, "start", body)

    def send_signal(self, operation: SignalSend, event: SignalSent) -> None:
        self.send(event.target, "signal", [event.name, event.value])
        operation.settle(None, None, self.ready)

    def cancel_step(self, call: StepCall) -> None:
        """Nobody waits for the step any more. One whose outcome came while the run was stuck is over already."""
        if call.seq not in self.steps:
            return
        self.decide(StepCancelled(call.seq, call.step.name))
        self._stop_attempt(call)
        self._close_step(call)

    def answer(self, event: AskAnswered) -> None:
        """Record the answer to a question, and give it to the asker."""
        answer = self.decide(event)
        if self.live:
            self.effects.answers.append(answer)

    def take_message(self, wait: SignalWait) -> bool:
        """Settle `wait` with a signal or question that came early, or remember it."""
        raise NotImplementedError

    def forget_wait(self, wait: SignalWait) -> None:
        """The wait is over without a message."""

    def patched(self, name: str) -> bool:
        raise UsageError("sf.patched() is for workflows: a reducer's state can say itself what it knows")

    def spawn(self, fiber: Fiber) -> None:
        raise NotImplementedError

    def start(self, operation: Operation) -> None:
        """Begin an operation; what goes wrong in that is raised where it is awaited."""
        try:
            operation.begin(self)
        except Exception as error:
            operation.settle(None, error, self.ready)

    def send(self, target: str, kind: str, body: object) -> None:
        if self.live:
            self.effects.outbox.append(Outgoing(target, kind, _encode(body)))

    def set_attributes(self, changes: dict[str, Attribute | None]) -> None:
        """Raises `UsageError` or `PayloadTooLarge`, in a replay as it did when it was live."""
        self.attributes = merged(self.attributes or {}, changes)
        effects = self.effects
        if self.live and effects is not _IDLE:  # idle: code of a machine that is only closed decides nothing
            effects.attributes = {**(effects.attributes or {}), **changes}

    def publish(self, key: str, data: bytes) -> None:
        effects = self.effects
        if self.live and effects is not _IDLE:
            if effects.published is None:
                effects.published = {}
            effects.published[key] = data

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.at / 1000, UTC)

    @property
    def rng(self) -> random.Random:
        """What user code draws from: the same for the same life of a run, whoever replays it."""
        if self._rng is None:
            life = f"/{self.generation}" if self.generation else ""
            self._rng = random.Random(f"{self.run_id}@{self.started}{life}")
        return self._rng

    # --- inputs to facts --------------------------------------------------------------------------------------------

    def _take_all(self, inputs: list[Any]) -> None:
        for item in inputs:
            self._take(item)
            if self.effects.ended:
                return

    def _take(self, item: Input) -> None:
        kind = type(item)
        if kind is Outcome:
            self._take_outcome(cast("Outcome", item))
        elif kind is SignalReceived or kind is AskReceived:
            self.effects.events.append(cast("SignalReceived", item))
            self._deliver(cast("SignalReceived", item), None, None, None)
        elif kind is Due:
            self._take_due()
        elif isinstance(item, RunStarted):
            if not self.started:
                definition = self.app.workflows.get(item.workflow)
                if definition is not None and definition.version:
                    item = msgspec.structs.replace(item, version=definition.version)
                self._begin(item)
                self.effects.events.append(item)
                self._deliver(item, None, None, None)
        elif isinstance(item, ChildCompleted | events.ChildFailed):
            self._take_child(item)
        elif isinstance(item, CancelRequested):
            if self.stuck:  # it ends without its code; whoever counts stuck runs must see it leave that state
                self.stuck = False
                self.effects.events.append(RunResumed(self.workflow, self.tenant))
            self.effects.events.append(item)
            self._cancel_requested(item)
        else:
            raise TypeError(f"{item!r} is no input of a run")

    def _take_outcome(self, outcome: Outcome) -> None:
        """An outcome of an attempt that isn't the current one changes nothing: a newer attempt decides."""
        call = self.steps.get(outcome.seq)
        if call is None or call.attempt != outcome.attempt:
            return
        step = call.step
        failure = outcome.failure
        permanent = outcome.permanent
        if failure is None:
            result = NOTHING if outcome.result is None else outcome.result
            try:
                value = step.parameters.decode_result(result)
            except PayloadInvalid as error:
                failure, permanent = Failure("PayloadInvalid", str(error)), True
            else:
                event = StepCompleted(call.seq, step.name, outcome.attempt, outcome.ms, result)
                self.effects.events.append(event)
                self._close_step(call)
                self._deliver(event, call, value, None)
                return
        retry = step.retry
        is_lost = failure.kind == WORKER_LOST
        tried = outcome.attempt - call.lost  # a worker's death is no failure of the step, and has its own limit
        if (
            call.lost + 1 >= MAX_WORKER_LOSSES
            if is_lost
            else permanent or tried >= retry.attempts or _is_final(failure, step)
        ):
            event = events.StepFailed(call.seq, step.name, outcome.attempt, outcome.ms, failure)
            self.effects.events.append(event)
            self._track(event)
            self._deliver(event, call, None, errors.StepFailed(step.name, outcome.attempt, failure))
            return
        # Jitter has its own generator: user code's must not depend on how often a step failed.
        rng = random.Random(f"{self.run_id}/{call.seq}/{outcome.attempt}")
        due = self.at + (0 if is_lost else round(retry.delay(max(tried, 1), rng) * 1000))
        event = StepRetrying(call.seq, step.name, outcome.attempt, outcome.ms, failure, due, outcome.details)
        self.effects.events.append(event)
        self._track(event)

    def _take_due(self) -> None:
        """What is due now, and nothing that is set meanwhile: a loop of `sleep(0)` must not hold the daemon."""
        timers: list[int] = []
        schedule = self.schedule
        while schedule and schedule[0][0] <= self.at:
            due, seq = heappop(schedule)
            if not self._is_due(seq, due):
                continue
            call = self.steps.get(seq)
            if call is None:
                timers.append(seq)
                continue
            call.due = None
            if call.is_local:
                self.in_steps += 1
            if call.step.known:
                self.effects.jobs.append(call.job())
        for seq in timers:
            operation = self.timers.pop(seq, None)
            if operation is None:  # the signal's wait that it limited is over
                continue
            event = TimerFired(seq)
            self.effects.events.append(event)
            self._deliver(event, operation, None, None)
            if self.effects.ended:
                return

    def _take_child(self, item: ChildCompleted | events.ChildFailed) -> None:
        call = self.children.get(item.seq)
        if call is None:
            return
        value = None
        if isinstance(item, ChildCompleted):
            try:
                value = call.target.parameters.decode_result(item.result)
            except PayloadInvalid as error:
                item = events.ChildFailed(item.seq, item.name, Failure("PayloadInvalid", str(error)))
        self.effects.events.append(item)
        self._track(item)
        error = None if isinstance(item, ChildCompleted) else errors.ChildFailed(call.run_id, item.name, item.failure)
        self._deliver(item, call, value, error)

    # --- stuck ------------------------------------------------------------------------------------------------------

    def _park_or_resume(self, inputs: list[Any]) -> list[Any]:
        events = self.effects.events
        if not self.reason:
            self.stuck = False
            self.status = Status.RUNNING
            events.append(RunResumed(self.workflow, self.tenant))
            self._resume_code()
            return [] if self.effects.ended else inputs
        if not self.stuck:
            if not self.started and inputs and isinstance(inputs[0], RunStarted):
                # A run that this app can't even start: it has started all the same, so that views count it once.
                self._begin(inputs[0])
                events.append(inputs[0])
                inputs = inputs[1:]
            self.stuck = True
            events.append(RunStuck(self.workflow, self.tenant, self.reason))
        self.status = Status.STUCK
        return inputs

    def _set_open_status(self) -> None:
        self.status = Status.STUCK if self.stuck else Status.RUNNING if self.started else Status.PENDING

    def _resume_code(self) -> None:
        """Deliver the facts that were recorded while the run was stuck."""

    # --- endings ----------------------------------------------------------------------------------------------------

    def _cancel_requested(self, event: CancelRequested) -> None:
        """End at once, let the code clean up, or hurry the children that an ended code waits for."""
        if event.terminate or self.reason:
            self._end_now(events.RunCancelled(self.workflow, self.tenant, self.at - self.started, event.reason))
        elif self.ending is None:
            self._cancel(event)
        else:
            for child in self.children.values():
                self.send(child.run_id, "cancel", event.reason)

    def _cancel(self, event: CancelRequested) -> None:
        raise NotImplementedError

    def _end_cancelled(self, reason: str) -> None:
        self._end(events.RunCancelled(self.workflow, self.tenant, self.at - self.started, reason))

    def _end(self, event: Ending) -> None:
        """The code is over. The run is, too, unless it waits for children: then nothing else is open any more."""
        if any(child.on_parent_end == "wait" for child in self.children.values()):
            self.ending = event
            for call in list(self.steps.values()):  # in the history, for whoever reads it without the code
                self.cancel_step(call)
            self._let_go("wait")
        else:
            self._end_now(event)

    def _end_if_alone(self) -> None:
        """After a child's outcome: whether it was the last that the run's end waited for."""
        ending = self.ending
        if ending is not None and not self.children:
            if self.stuck:  # whoever counts stuck runs must see it leave that state
                self.stuck = False
                self.effects.events.append(RunResumed(self.workflow, self.tenant))
            self._end_now(msgspec.structs.replace(ending, ms=self.at - self.started))

    def _let_go(self, keep: str = "") -> None:
        """Stop what is open, children as their policies say; those with the policy `keep` stay open."""
        reason = f"the parent run {self.run_id} ended"
        kept: dict[int, ChildCall] = {}
        for child in self.children.values():
            if child.on_parent_end == keep:
                kept[child.seq] = child
            elif child.on_parent_end != "abandon":
                self.send(child.run_id, "cancel", reason)
        for call in self.steps.values():
            self._stop_attempt(call)
        # Decided in this very transition: not worth starting.
        self.effects.jobs.clear()
        self.close()
        self._forget_open()
        self.children.update(kept)

    def _end_now(self, event: Ending) -> None:
        """The run is over: tell the parent, cancel what is open."""
        effects = self.effects
        self.record_ending(event)
        parent, _, number = self.parent.rpartition("#")
        seq = int(number or 0)
        if isinstance(event, RunCompleted):
            self.status = Status.COMPLETED
            outcome = ChildCompleted(seq, self.workflow, event.result)
        elif isinstance(event, events.RunFailed):
            self.status = Status.FAILED
            outcome = events.ChildFailed(seq, self.workflow, event.failure)
        else:
            self.status = Status.CANCELLED
            outcome = events.ChildFailed(seq, self.workflow, Failure("RunCancelled", event.reason), cancelled=True)
        if parent:
            self.send(parent, "child", outcome)
        self._let_go()
        effects.ended = self.ended = True

    def record_ending(self, event: Ending) -> None:
        self.effects.events.append(event)

    # --- for the machines -------------------------------------------------------------------------------------------

    def _deliver(self, event: AnyEvent, operation: Operation | None, value: Any, error: Exception | None) -> None:
        """Give a fact to user code, unless it can't run, and let it decide."""
        raise NotImplementedError

    def _fail(self, failure: Failure) -> None:
        self._end(events.RunFailed(self.workflow, self.tenant, self.at - self.started, failure))

    def _complete(self, result: object) -> None:
        if isinstance(result, ContinueAs):
            words = f"workflow {self.workflow} returned sf.ContinueAs(…): raise it"
            self._fail(Failure(UsageError.__name__, words))
            return
        try:
            data = codec.encode(result, f"result of {self.workflow}")
        except (PayloadInvalid, PayloadTooLarge) as error:
            self._fail(Failure(type(error).__name__, str(error)))
        else:
            self._end(RunCompleted(self.workflow, self.tenant, self.at - self.started, Raw(data)))


def _drop_stopped(effects: Effects) -> None:
    """Attempts that were decided and given up in one transition never start."""
    stopped = {*effects.cancelled, *(job.seq for job in effects.revoked)}
    effects.jobs = [job for job in effects.jobs if job.seq not in stopped]


def _is_final(failure: Failure, step: Step[..., Any]) -> bool:
    return any(failure.kind == (never if isinstance(never, str) else never.__name__) for never in step.retry.never)


_IDLE = Effects()
