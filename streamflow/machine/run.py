"""The base of all machines: from inputs to facts, and from the end of the code to the end of the run.

Owns: `advance`, the facts that an input becomes, whether a failed attempt is retried, what an ending cancels, and what
happens while a run is stuck (facts are recorded, no user code runs). Its open work is in `open_work.py`.
Must not: know clocks, I/O or event loops; run user code (`coroutines.py` and `reducer.py` do).
Called by: the machines; the owner calls `advance` and the properties.

One `advance` is one transition: inputs become facts, each fact is delivered to user code, whose decisions follow it.
"""

from __future__ import annotations

import hashlib
import random
from datetime import UTC, datetime
from heapq import heappop
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, cast

import msgspec
from msgspec import Raw

from streamflow import errors, events
from streamflow.errors import ContinueAs, Failure, PayloadInvalid, PayloadTooLarge, UsageError
from streamflow.events import (
    ENDINGS,
    LOST_VERSION,
    NOTHING,
    AskAnswered,
    AskReceived,
    CancelRequested,
    ChildCompleted,
    ChildStarted,
    PauseEnded,
    Recorded,
    RunCompleted,
    RunForked,
    RunResumed,
    RunRetried,
    RunStarted,
    RunStuck,
    SignalReceived,
    SignalSent,
    SignalSkipped,
    StepCancelled,
    StepCompleted,
    StepRetrying,
    TimeoutReached,
    TimerFired,
    Unrecorded,
)
from streamflow.machine.open_work import MAX_WORKER_LOSSES, NOT_STUCK, TIME_OUT, UNDECIDED, WORKER_LOST, unfit
from streamflow.machine.own_times import OwnTimes, over_text
from streamflow.machine.retry_point import CannotRetry, RetryPoint, named, not_again
from streamflow.machine.sealed import sealed
from streamflow.machine.transition import (
    IDLE,
    NOTHING_BESIDES,
    AgainRequest,
    CompletedChild,
    Due,
    Effects,
    Ending,
    FailedChild,
    Forgotten,
    Input,
    Outcome,
    Outgoing,
    Oversize,
    PauseRequest,
    ResumeRequest,
    RetryRequest,
    Returned,
)
from streamflow.model.attributes import Attribute, merged
from streamflow.model.bugs import is_bug
from streamflow.model.causes import MAX_LINE, condensed
from streamflow.model.codec import DECLINED, UnfitArguments
from streamflow.model.failures import failure_of, line_of_call, retry_after_of
from streamflow.model.record import ParentLink, Status, parent_link
from streamflow.text import recordable
from streamflow.workflow.actions import ChildCall, SignalSend, SignalWait, StepCall
from streamflow.workflow.awaitable import Bug, Fiber, Operation, active
from streamflow.workflow.recording import Record

if TYPE_CHECKING:
    from streamflow.workflow.app import Reducer, Workflow
    from streamflow.workflow.awaitable import D

_encode = msgspec.msgpack.Encoder().encode
IDENTITY_BYTES = 12
"""Of a message: a target remembers those of some minutes, so that two ever are the same is out of the question."""

EVENTS_WARN = 10_000
"""Events in a history at which the daemon logs a warning."""
EVENTS_CONTINUE = 50_000
"""Events at which `HistoryTooLong` is raised in the code, which must then continue as new."""
EVENTS_FAIL = 55_000
"""Events at which a run that hasn't continued as new fails."""


UNFIT = UnfitArguments.__name__


class RunMachine(OwnTimes):
    """Base of the machines: one run, in memory."""

    __slots__ = ()

    replays = False
    """Whether the options of its calls are known from its code alone: not while that can't be run."""

    # --- for the owner ----------------------------------------------------------------------------------------------

    @property
    def resumable(self) -> bool:
        """The history is in stuck state, and the current code can continue: the next advance resumes it, with or
        without inputs."""
        return self.stuck and not self.reason and self.forking is None

    @property
    def awaited_messages(self) -> list[str]:
        """The messages that user code waits for now: names of signals, and of questions after a question mark."""
        return []

    def untaken_signals(self) -> dict[str, int]:
        """Signals that have come and that no code has taken: how many of each name, of at most `UNTAKEN_NAMES`."""
        return {}

    @property
    def is_cancelling(self) -> bool:
        """Whether a cancel was requested that the code has got: a pause of its workflow doesn't hold that up."""
        return False

    def advance(self, inputs: list[Any], clock: int, not_before: int = 0, *, in_seal: bool = False) -> Effects:
        """Reduce inputs to one transition at `clock` (ms), its owner's time. Without events there is nothing to commit.

        The transition's time `at` is later if the run's last one was, or `not_before`; timers don't depend on that.
        `in_seal`: the caller has sealed code off already, for many runs (`one_seal`).

        The caller commits `encode_transition(machine.at, effects.events)`, then starts the jobs.
        """
        self.clock = clock
        if clock > self.at:
            self.at = clock
        if not_before > self.at:
            self.at = not_before
        effects = self.effects = Effects()
        if self.ended:
            effects.status = self.status
            effects.ended = True
            return effects
        if in_seal:
            self.context.run(self._advance, inputs)
        else:
            sealed(self.context, self._advance, inputs)
        besides = effects.besides
        says_anew = self._waits
        if besides is not NOTHING_BESIDES:
            if besides.cancelled or besides.revoked:
                _drop_stopped(effects)
            says_anew = says_anew or besides.closed or besides.restate
        if says_anew and not effects.ended:
            effects.own_besides().unrecorded = self.unrecorded(effects)
        effects.status = self.status
        before = self.events_count
        self.events_count = count = before + len(effects.events)
        if count >= EVENTS_WARN and before < EVENTS_WARN:
            self._warn_of_history()
        self.effects = IDLE  # an idle machine must not hold its last transition in memory
        return effects

    def _advance(self, inputs: list[Any]) -> None:
        token = active.set(self)
        given = inputs
        try:
            if inputs and type(inputs[0]) is Oversize and self.retrying is None and self.forking is None:
                self._fail_oversize(inputs[0], inputs[1:])
            elif self.stuck or self.reason:
                inputs = self._park_or_resume(inputs)
            elif self.events_count >= EVENTS_WARN:
                self._limit_history()
            if not self.effects.ended:
                self._take_all(inputs)
            if self.effects.ended:
                self._refuse_late(given)
        finally:
            active.reset(token)

    @property
    def events_before(self) -> int:
        """Number of events in the history before the current transition."""
        return self.events_count

    def _limit_history(self) -> None:
        """The history is long: a workflow gets `HistoryTooLong`."""

    @property
    def _to_resume(self) -> int:
        """Number of events that its code has to go through again when the run resumes."""
        return self.events_count

    def _warn_of_history(self) -> None:
        """The history has reached `EVENTS_WARN`."""

    def snapshot(self) -> bytes:
        """The `state` element of the run's record."""
        return b""

    def close(self) -> None:
        """End the user code, which can't make decisions any more. For eviction from the cache; safe to repeat."""

    # --- for operations ---------------------------------------------------------------------------------------------

    def take_seq(self) -> int:
        self.seq = seq = self.seq + 1
        return seq

    def decide(self, event: D, value: object = None) -> D:
        """Record a decision. Gives the recorded event, which in a replay is the one of the history. `value`: what its
        payload was encoded from, if no declared type says what it is."""
        self.effects.events.append(event)
        return event

    def warn(self, text: str) -> None:
        """Have the owner log a warning when the transition is committed."""
        self.effects.own_besides().warnings.append(text)

    def forgotten(self, what: str, names: tuple[str, ...], frame: FrameType | None) -> None:
        """An awaitable was dropped that was never begun: warn once in a transition for each line. Not in a replay, and
        not when the run ends: then nothing would have been awaited any more."""
        effects = self.effects
        if not self.live or self.ended or self.ending is not None or effects is IDLE:
            return
        where = line_of_call(names, frame, self.current and self.current.coroutine)
        if not any(isinstance(other, Forgotten) and f" at {where} " in other for other in effects.besides.warnings):
            effects.own_besides().warnings.append(
                Forgotten(
                    f"{what} at {where} was never awaited, gathered or started, so it did nothing: write `await` "
                    "before it"
                ),
            )

    def add_child(self, call: ChildCall, event: ChildStarted) -> None:
        self.children[call.seq] = call
        body = [event.name, event.tenant, str(self._link(call)), event.input]
        if self.trace is not None:
            body.append(self.trace.text(self.generation))
        self.send(event.run_id, "start", body)

    def send_signal(self, operation: SignalSend, event: SignalSent) -> None:
        body = [event.name, event.value]
        identity = self._identity("signal", event.seq, event.target, event.name, event.value)
        if self.trace is not None:
            body.append(self.trace.text(self.generation))
        if operation.child is None:
            self.send(event.target, "signal", body, identity)
        else:
            self.send_to_child(operation.child, "signal", body, identity)
        operation.settle(None, None, self.ready)

    def cancel_step(self, call: StepCall) -> None:
        """Nothing waits for the step any more. A step whose outcome was recorded while the run was stuck is closed."""
        if call.seq not in self.steps:
            return
        self.decide(StepCancelled(call.seq, call.step.name))
        self._stop_attempt(call)
        self._close_step(call)

    def skip_signal(self, event: SignalReceived, error: PayloadInvalid) -> None:
        """The signal isn't of the type that the code asks for: drop it."""
        self.decide(SignalSkipped(event.name))
        self.warn(f"run {self.run_id} skipped a signal: {error}")

    def was_refused(self, event: SignalReceived | AskReceived) -> bool:
        """In a replay: whether the code of that time refused this message, which today's code would accept."""
        return False

    def answer(self, event: AskAnswered, result: object = None) -> None:
        """Record the answer to a question, and send it to the asker."""
        answer = self.decide(event, result)
        if self.live:
            self.effects.own_besides().answers.append(answer)

    def take_message(self, wait: SignalWait) -> bool:
        """Settle `wait` with an early signal or question, or register it."""
        raise NotImplementedError

    def forget_wait(self, wait: SignalWait) -> None:
        """The wait has ended without a message."""

    def patched(self, name: str) -> bool:
        raise UsageError("sf.patched() works only in workflows: a reducer can keep a flag in its state")

    def spawn(self, fiber: Fiber) -> None:
        raise NotImplementedError

    def finalize(self, generator: Any) -> None:
        """An async generator of user code is dropped before its end."""

    def start(self, operation: Operation) -> None:
        """Begin an operation; an error in that is raised where it is awaited."""
        operation.home = self.ready
        try:
            operation.begin(self)
        except Exception as error:
            operation.settle(None, error, self.ready)

    def send(self, target: str, kind: str, body: object, identity: bytes = b"") -> None:
        if self.live:
            self.effects.own_besides().outbox.append(Outgoing(target, kind, _encode(body), identity))

    def send_to_child(self, child: ChildCall, kind: str, body: object, identity: bytes) -> None:
        """For this child only: its id may be another run's, now or by the time that the message arrives."""
        if self.created:
            self.send(child.run_id, "to-child", [kind, str(self._link(child)), Raw(_encode(body))], identity)
        else:
            self.send(child.run_id, kind, body, identity)

    def cancel_child(self, child: ChildCall, reason: str) -> None:
        """Ask it to cancel. Each request counts for the child, so its place in the history belongs to its identity."""
        if self.again is not None:
            self.again[1].discard(child.seq)
        place = self.events_count + len(self.effects.events)
        identity = self._identity("cancel", child.seq, child.run_id, reason, self.generation, place)
        self.send_to_child(child, "cancel", reason, identity)

    def _identity(self, *decision: object) -> bytes:
        """What a message is, for targets that may have it already: the same decision of the same run has the same
        identity, also when a replay makes it, and another one another. What only accompanies it, like a trace, has no
        part in it."""
        if not self.live:
            return b""
        parts = _encode([self.run_id, self.created, *decision])
        return hashlib.blake2b(parts, digest_size=IDENTITY_BYTES).digest()

    def _link(self, child: ChildCall) -> ParentLink:
        return ParentLink(self.run_id, child.seq, self.created)

    def set_attributes(self, changes: dict[str, Attribute | None]) -> None:
        """Raises `UsageError` or `PayloadTooLarge`, in a replay as when it was live."""
        self.attributes = merged(self.attributes or {}, changes)
        effects = self.effects
        if self.live and effects is not IDLE:  # idle: the machine is only closed, which has no effects
            besides = effects.own_besides()
            besides.attributes = {**(besides.attributes or {}), **changes}

    def publish(self, key: str, data: bytes) -> None:
        effects = self.effects
        if self.live and effects is not IDLE:
            besides = effects.own_besides()
            if besides.published is None:
                besides.published = {}
            besides.published[key] = data

    def record(self, record: Record) -> None:
        """Not when the run has ended, and its code is only closed: an ending is the last event of a run."""
        recorded = self.effects.events
        is_over = self.ended or self.ending is not None or bool(recorded and isinstance(recorded[-1], ENDINGS))
        if self.live and self.effects is not IDLE and not is_over:
            recorded.append(Recorded(self.workflow, self.tenant, record.name, record.value, record.labels))

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.at / 1000, UTC)

    @property
    def rng(self) -> random.Random:
        """The random numbers of user code: the same in each replay of one generation of a run."""
        if self._rng is None:
            suffix = f"/{self.generation}" if self.generation else ""
            self._rng = random.Random(f"{self.run_id}@{self.started}{suffix}")
        return self._rng

    # --- inputs to facts --------------------------------------------------------------------------------------------

    def _take_all(self, inputs: list[Any]) -> None:
        for item in inputs:
            if type(item) is Outcome:
                self._take_outcome(item)
            else:
                self._take(item)
            if self.effects.ended:
                return

    def _take(self, item: Input) -> None:
        kind = type(item)
        if kind is SignalReceived or kind is AskReceived:
            self.effects.events.append(cast("SignalReceived", item))
            self._deliver(cast("SignalReceived", item), None, None, None)
        elif kind is Due:
            self._take_due()
        elif isinstance(item, RunStarted):
            if not self.started:
                self._record_start(item)
        elif isinstance(item, CompletedChild | FailedChild):
            if item.created == self.created:  # else it was a child of an earlier run that had this id
                if self.again is not None and type(item) is FailedChild and self._failed_before(item, *self.again):
                    return
                self._take_child(item.event, item.run_id)
        elif isinstance(item, CancelRequested):
            if self.stuck:  # it ends without its code; the views, which count stuck runs, need this event
                self._be_stuck_no_more()
            self.effects.events.append(item)
            self._cancel_requested(item)
        elif isinstance(item, Returned):
            call = self.steps.get(item.seq)
            if call is not None and call.is_local and call.due is None and call.attempt == item.attempt:
                call.details = item.details
                self.effects.jobs.append(call.job())
        elif isinstance(item, RetryRequest):
            if item.seq:
                self._give_up(item)
            else:
                self._answer_tried(item)
        elif isinstance(item, PauseRequest | ResumeRequest):
            pass  # its owner has loaded the run with what comes of it
        elif isinstance(item, AgainRequest):
            pass  # it is open, and reports its outcome
        else:
            raise TypeError(f"{item!r} is not an input of a machine")

    def _take_outcome(self, outcome: Outcome) -> None:
        """An outcome of an attempt that isn't the current one is ignored: the newer attempt counts."""
        call = self.steps.get(outcome.seq)
        if call is None or call.attempt != outcome.attempt or call.due == UNDECIDED:
            return
        if outcome.mark and outcome.mark != call.mark:
            return  # of an attempt that a failover has lost
        step = call.step
        failure = outcome.failure
        permanent = outcome.permanent
        if failure is None:
            result = NOTHING if outcome.result is None else outcome.result
            try:
                value = None if self.reason else step.parameters.decode_result(result)
            except PayloadInvalid as error:
                failure, permanent = Failure("PayloadInvalid", str(error)), True
            else:
                event = StepCompleted(call.seq, step.name, outcome.attempt, outcome.ms, result)
                self.effects.events.append(event)
                if outcome.records:
                    self._note_records(step.name, outcome)
                self._close_step(call)
                self._deliver(event, call, value, None)
                return
        if DECLINED in outcome.kinds:
            misfit = unfit(call) if failure.kind == UNFIT and not self.reason else ""
            if not misfit:
                self._decline(call, outcome, failure)
                return
            failure, permanent = Failure("PayloadInvalid", misfit), True  # this very code is wrong
        elif self.reason and self.replays and not permanent and failure.kind != WORKER_LOST:
            event = StepRetrying(
                call.seq, step.name, outcome.attempt, outcome.ms, failure, 0, outcome.details, kinds=outcome.kinds
            )
            self.effects.events.append(event)
            self._note_records(step.name, outcome)
            self._track(event)
            return
        self._take_failure(call, outcome, failure, permanent, self.clock)

    def _note_records(self, step: str, outcome: Outcome) -> None:
        """What the attempt has recorded for views, behind its outcome."""
        for record in outcome.records:
            event = Recorded(
                self.workflow,
                self.tenant,
                record.name,
                record.value,
                record.labels,
                step,
                outcome.seq,
                outcome.attempt,
            )
            self.effects.events.append(event)

    def _take_failure(self, call: StepCall, outcome: Outcome, failure: Failure, permanent: bool, at: int) -> None:
        """An attempt failed at `at`: retry the step, or fail it, as the policy of the call says."""
        step = call.step
        retry = step.retry
        is_lost = failure.kind == WORKER_LOST
        # A worker's death is not a failure of the step, and has its own limit.
        tried = outcome.attempt - call.lost - call.declined
        due = at
        if is_lost:
            # Twice in a row: a step that never died before may have done it, which no note names.
            is_final = outcome.to_blame and call.blamed and call.lost + 1 >= MAX_WORKER_LOSSES
        else:
            # Jitter has its own generator: user code's numbers must not depend on how often a step failed.
            rng = random.Random(f"{self.run_id}/{call.seq}/{outcome.attempt}")
            wanted = retry_after_of(failure) if failure.fields or failure.members else None
            due += round(retry.delay(max(tried, 1), rng, wanted) * 1000)
            is_final = (
                permanent
                or (retry.attempts is not None and tried >= retry.attempts)
                or (retry.within is not None and due - (call.since or at - outcome.ms) > retry.within * 1000)
                or retry.gives_up_on((failure.kind, *outcome.kinds))
            )
        if is_final:
            event = events.StepFailed(call.seq, step.name, outcome.attempt, outcome.ms, failure)
            self.effects.events.append(event)
            self._note_records(step.name, outcome)
            self._track(event)
            self._deliver(event, call, None, errors.StepFailed(step.name, outcome.attempt, failure))
            return
        event = StepRetrying(
            call.seq,
            step.name,
            outcome.attempt,
            outcome.ms,
            failure,
            due,
            outcome.details,
            blamed=is_lost and outcome.to_blame,
        )
        self.effects.events.append(event)
        self._note_records(step.name, outcome)
        self._track(event)

    def _decline(self, call: StepCall, outcome: Outcome, failure: Failure) -> None:
        """A process with other code, as in the middle of a deploy, has refused to begin the attempt: it is tried again,
        as often as it takes."""
        rng = random.Random(f"{self.run_id}/{call.seq}/{outcome.attempt}")
        due = self.clock + round(call.step.retry.delay(call.declined + 1, rng) * 1000)
        event = StepRetrying(
            call.seq,
            call.step.name,
            outcome.attempt,
            outcome.ms,
            failure,
            due,
            outcome.details,
            declined=True,
            blamed=call.blamed,
        )
        self.effects.events.append(event)
        self._track(event)

    def _decide_postponed(self) -> None:
        """The run resumes, so the policies of its calls are known again: decide about the attempts that failed while it
        was stuck. The time that it was stuck for takes nothing from `within`."""
        postponed, self.postponed = self.postponed, None
        for event, at in (postponed or {}).values():
            call = self.steps.get(event.seq)
            if call is not None and call.due == UNDECIDED and not self.effects.ended:
                outcome = Outcome(event.seq, event.attempt, event.ms, details=event.details, kinds=event.kinds)
                self._take_failure(call, outcome, event.failure, False, at)

    def _take_due(self) -> None:
        """Take what is due now, but not what is set meanwhile: a loop of `sleep(0)` must not block the daemon."""
        timers: list[int] = []
        schedule = self.schedule
        while schedule and schedule[0][0] <= self.clock:
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
            if seq <= 0:
                self._take_own_due(seq)
            else:
                operation = self.timers.pop(seq, None)
                if operation is None:  # the wait for a signal that it limited has ended
                    continue
                event = TimerFired(seq)
                self.effects.events.append(event)
                self._deliver(event, operation, None, None)
            if self.effects.ended:
                return

    def _take_child(self, item: ChildCompleted | events.ChildFailed, run_id: str) -> None:
        call = self.children.get(item.seq)
        if call is None or run_id not in ("", call.run_id):
            return
        value = None
        if isinstance(item, ChildCompleted) and not self.reason:
            try:
                value = call.target.parameters.decode_result(item.result)
            except PayloadInvalid as error:
                item = events.ChildFailed(item.seq, item.name, Failure("PayloadInvalid", str(error)))
        self.effects.events.append(item)
        self._track(item)
        error = None if isinstance(item, ChildCompleted) else errors.ChildFailed(call.run_id, item.name, item.failure)
        self._deliver(item, call, value, error)

    def _failed_before(self, item: FailedChild, retried: RunRetried, children: set[int]) -> bool:
        """Whether it is the failure of a child that ended before the retry, which doesn't count any more: it has come
        late, so the child may have been asked to go on while it was still about to end. It is asked again then."""
        call = self.children.get(item.seq)
        if call is None or item.seq not in children or item.run_id not in ("", call.run_id):
            return False
        if item.again == retried.request:
            return False
        self._ask_again(call, retried, may_be_cancelled=True, late=True)
        return True

    # --- stuck ------------------------------------------------------------------------------------------------------

    def _park_or_resume(self, inputs: list[Any]) -> list[Any]:
        if self.retrying is not None:
            return self._take_retry(inputs, self.retrying)
        if self.forking is not None:
            return self._take_fork(inputs, self.forking)
        events = self.effects.events
        if not self.reason:
            self._be_stuck_no_more()
            self._set_open_status()
            self._resume_code()
            self._decide_postponed()
            return [] if self.effects.ended else inputs
        if not self.stuck or self.pause != self.paused_by or self.bug is not None or self._is_stuck_otherwise:
            if self.stuck:  # for something else, or for other code, until this one was tried
                self._be_stuck_no_more()
            elif not self.started and inputs and isinstance(inputs[0], RunStarted):
                # A run that this app can't start: its start is recorded all the same, so that views count it once.
                self._record_start(inputs[0])
                inputs = inputs[1:]
            self.stuck = True
            events.append(self._stop() if self.pause is None else self.pause)
            self.paused_by = self.pause
        self._set_open_status()
        if self._to_resume >= EVENTS_FAIL:  # nothing else limits what comes for it
            self._end_stuck()
        return inputs

    def _stop(self) -> RunStuck:
        failure, code = self.bug or (None, "")
        event = RunStuck(self.workflow, self.tenant, recordable(self.reason), failure, code)
        self.stuck_by = event.reason[:MAX_LINE], self.at, failure and condensed(failure)
        self.bug = None
        return event

    @property
    def _is_stuck_otherwise(self) -> bool:
        """It was stuck for a bug, and can't continue now for another reason: who has mended the bug must see it."""
        reason, _, bug = self.stuck_by
        return bug is not None and recordable(self.reason)[:MAX_LINE] != reason

    def _be_stuck_no_more(self) -> None:
        self.stuck = False
        if self.paused_by is None:
            self._stretch_time(self.stuck_by[1])
            self.effects.events.append(RunResumed(self.workflow, self.tenant, *self.stuck_by))
            self.stuck_by = NOT_STUCK
        else:
            self._stretch_time(self.paused_by.since)
            self.effects.events.append(PauseEnded(self.workflow, self.tenant))
            self.paused_by = None
        self.effects.own_besides().restate = True  # the code of today may have given up what that of then had not

    def _end_stuck(self) -> None:
        """So much has come while the run was stuck that no code could continue: it fails."""
        was, mend = ("stuck", "deploy code that fits") if self.pause is None else ("paused", "resume it")
        text = (
            f"run {self.run_id} has {self._to_resume:,} events, of which the last came while it was {was} "
            f"({self.reason}): {mend} earlier, or send less to a run that is {was}"
        )
        self._fail_now(Failure(errors.HistoryTooLong.__name__, text))

    def _fail_oversize(self, oversize: Oversize, inputs: list[Any]) -> None:
        """Only its start is recorded, if it has none yet, so that views count it."""
        for item in inputs:
            if isinstance(item, RunStarted) and not self.started:
                self._begin(item)
                self.effects.events.append(item)
        self._fail_now(Failure("TransitionTooLarge", oversize.reason))

    def _fail_now(self, failure: Failure) -> None:
        """The run fails without its code, also if it is stuck or has children that it should wait for."""
        if self.stuck:  # the views, which count stuck runs, need this event
            self._be_stuck_no_more()
        self._end_now(events.RunFailed(self.workflow, self.tenant, self.at - self.started, failure))

    def _take_fork(self, inputs: list[Any], fork: RunForked) -> list[Any]:
        """The run begins, with a history that it shares with another one. Returns the other inputs."""
        raise NotImplementedError

    # --- retried ----------------------------------------------------------------------------------------------------

    def _take_retry(self, inputs: list[Any], point: RetryPoint) -> list[Any]:
        """The run has ended, and goes on: what came before the request was for the ended run. Returns the rest."""
        self.retrying = None
        for position, retry in enumerate(inputs):
            if not isinstance(retry, RetryRequest | AgainRequest):
                continue
            try:
                self._check_retry(retry, point, inputs[0])
            except CannotRetry as error:
                self._refuse_to_go_on(retry, point, error)
            else:
                self._go_on(retry, point)
                return [] if self.effects.ended else inputs[position + 1 :]
        self.effects.ended = self.ended = True
        self.close()
        return []

    def _refuse_to_go_on(self, retry: RetryRequest | AgainRequest, point: RetryPoint, error: CannotRetry) -> None:
        if isinstance(retry, RetryRequest):
            self._refuse(retry, error.kind, str(error))
        elif parent := parent_link(self.parent):
            self.send(parent.run_id, "child", not_again(self.run_id, retry, error, point.failure))

    def _check_retry(self, retry: RetryRequest | AgainRequest, point: RetryPoint, first: Input) -> None:
        """Raises `CannotRetry`."""
        if isinstance(first, Oversize):
            raise CannotRetry("TransitionTooLarge", first.reason)
        if self.reason:
            raise CannotRetry("Diverged", f"run {self.run_id} can't go on with today's code: {self.reason}")
        if self.ending is not None:
            raise CannotRetry(
                "EndedBefore",
                f"the code of run {self.run_id} had ended before the children that it waited for: start a new run",
            )
        if point.undone and not retry.anyway:
            raise CannotRetry(
                "StepsUndone",
                f"run {self.run_id} would go on from before {named(point.undone)}: it would not know of that, "
                "and may do it again. Retry it with --anyway (anyway=True) only if that is right",
            )

    def _go_on(self, retry: RetryRequest | AgainRequest, point: RetryPoint) -> None:
        attempts = [(call.seq, point.attempts.get(call.seq, 1) + 1) for call in self.steps.values()]
        event = RunRetried(
            self.workflow,
            self.tenant,
            point.kept,
            point.seq,
            attempts,
            retry.by,
            retry.reason,
            None if point.cancelled else condensed(point.failure),
            point.failed_at,
            retry.id,
            list(self.children),
            point.cancelled,
            retry.anyway,
        )
        self.effects.events.append(event)
        if self.time_limit and not self.begins:  # it gets all of its time again
            self._note(events.TimeoutSet(self.time_limit, self.at + self.time_limit))
        steps = [{"name": self.steps[seq].step.name, "seq": seq, "attempt": attempt} for seq, attempt in attempts]
        if isinstance(retry, RetryRequest):
            found: dict[str, Any] = {"kept": point.results, "steps": steps}
            if self.children:
                found["children"] = [child.run_id for child in self.children.values()]
            answer = Raw(_encode(found))
            self.effects.own_besides().answers.append(AskAnswered(retry.id, "retry", answer))
        self._reopen(event)
        for child in self.children.values():
            may_be_cancelled = child.on_parent_end != "abandon" and child.seq not in point.failed
            self._ask_again(child, event, may_be_cancelled=may_be_cancelled)
        self.effects.own_besides().restate = True
        self.stuck = False
        self.status = Status.PENDING if self.begins else Status.RUNNING
        self._resume_code()

    def _ask_again(self, child: ChildCall, retried: RunRetried, *, may_be_cancelled: bool, late: bool = False) -> None:
        """Have a child go on that has ended. It goes by its link, which is looked at where the child's record is: who
        waits for a child that isn't there has to know."""
        place = self.events_count + len(self.effects.events)
        identity = self._identity("again", child.seq, child.run_id, retried.request, self.generation, place)
        body = AgainRequest(
            retried.request,
            str(self._link(child)),
            child.target.name,
            retried.by,
            retried.reason,
            retried.anyway,
            may_be_cancelled,
            late,
        )
        self.send(child.run_id, "again", body, identity)

    def _give_up(self, request: RetryRequest) -> None:
        """The current attempt of a step is given up, whatever it does, and the next one begins: that counts for nothing
        in its policy. Not if it isn't the attempt that was meant."""
        call = self.steps.get(request.seq)
        if call is None or call.attempt != request.attempt:
            over = f"attempt {request.attempt} of step {request.seq} of run {self.run_id} is over"
            self._refuse(request, "NotOpen", over)
            return
        if self.reason:
            is_, kind = ("is stuck", "Stuck") if self.pause is None else ("is paused", "Paused")
            self._refuse(request, kind, f"run {self.run_id} {is_}, and begins no step: {self.reason}")
            return
        who = f"given up by {request.by}" if request.by else "given up"
        failure = Failure(events.GIVEN_UP, f"{who}: {request.reason}" if request.reason else who)
        # Due a moment later: what is stopped in a transition doesn't begin in it.
        event = StepRetrying(
            call.seq, call.step.name, call.attempt, 0.0, failure, self.clock + 1, call.details, declined=True
        )
        self._stop_attempt(call)
        self.effects.events.append(event)
        self._track(event)
        begins = {"name": call.step.name, "seq": call.seq, "attempt": call.attempt}
        answer = Raw(_encode({"kept": 0, "steps": [begins]}))
        self.effects.own_besides().answers.append(AskAnswered(request.id, "retry", answer))

    def _answer_tried(self, request: RetryRequest) -> None:
        """The run was stuck, and its code was tried again."""
        if self.reason:
            self._refuse(request, "Stuck", f"run {self.run_id} is still stuck: {self.reason}")
            return
        answer = Raw(_encode({"kept": 0, "steps": []}))
        self.effects.own_besides().answers.append(AskAnswered(request.id, "retry", answer))

    def _refuse(self, request: RetryRequest, kind: str, text: str) -> None:
        answer = AskAnswered(request.id, "retry", failure=Failure(kind, text))
        self.effects.own_besides().answers.append(answer)

    def _refuse_late(self, inputs: list[Any]) -> None:
        """The run has ended in this transition: who asked for something else still gets an answer."""
        answered = {answer.id for answer in self.effects.besides.answers}
        for item in inputs:
            if type(item) is RetryRequest and item.id not in answered:
                if item.seq:
                    self._refuse(item, "NotOpen", f"run {self.run_id} has just ended")
                else:
                    self._answer_tried(item)

    def _resume_code(self) -> None:
        """Deliver the facts that were recorded while the run was stuck."""

    # --- endings ----------------------------------------------------------------------------------------------------

    def _cancel_requested(self, event: CancelRequested) -> None:
        """End at once, or let the code clean up; if it has ended, cancel the children that the run waits for."""
        if event.terminate or self.reason:
            reason = event.reason
            if self.version == LOST_VERSION:
                reason = recordable(f"{reason}; {self.reason}" if reason else self.reason)
            self._end_now(events.RunCancelled(self.workflow, self.tenant, self.at - self.started, reason))
        elif self.ending is None:
            self._cancel(event)
        else:
            for child in self.children.values():
                self.cancel_child(child, event.reason)

    def _cancel(self, event: CancelRequested) -> None:
        raise NotImplementedError

    def _interrupt_for(self, event: TimeoutReached) -> None:
        """Let the code clean up, and fail the run."""
        raise NotImplementedError

    def _end_cancelled(self, reason: str) -> None:
        self._end(events.RunCancelled(self.workflow, self.tenant, self.at - self.started, reason))

    def _timed_out(self, event: TimeoutReached) -> None:
        if self.ending is not None:  # only its children are still open
            for child in self.children.values():
                self.cancel_child(child, over_text(event))
        else:
            self._interrupt_for(event)

    def _end(self, event: Ending) -> None:
        """The code has ended. The run ends too, unless it waits for children: then nothing else stays open."""
        if self.children and any(child.on_parent_end == "wait" for child in self.children.values()):
            self.ending = event
            for call in list(self.steps.values()):  # recorded, because a history may be read without its code
                self.cancel_step(call)
            self._let_go("wait")
            self.effects.own_besides().restate = True
        else:
            self._end_now(event)

    def _end_if_alone(self) -> None:
        """After a child's outcome: end the run if that was the last child that it waited for."""
        ending = self.ending
        if ending is not None and not self.children:
            if self.live and self.replayed_bug is not None:  # other code had ended otherwise, and this one has a bug
                raise Bug(self.replayed_bug)
            if self.stuck:  # the views, which count stuck runs, need this event
                self._be_stuck_no_more()
            self._end_now(msgspec.structs.replace(ending, ms=self.at - self.started))

    def _let_go(self, keep: str = "") -> None:
        """Stop what is open, children according to their policies; those with the policy `keep` stay open."""
        reason = f"the parent run {self.run_id} ended"
        kept: dict[int, ChildCall] = {}
        for child in self.children.values():
            if child.on_parent_end == keep:
                kept[child.seq] = child
            elif child.on_parent_end != "abandon":
                self.cancel_child(child, reason)
        for call in self.steps.values():
            self._stop_attempt(call)
        # Scheduled in this same transition: they don't have to start.
        self.effects.jobs.clear()
        self.close()
        self._forget_open()
        self.children.update(kept)
        if keep and self.over_at:  # its time goes on
            self.plan(self.over_at, TIME_OUT)

    def _end_now(self, event: Ending) -> None:
        """The run ends: send its outcome to the parent, stop what is open."""
        effects = self.effects
        self.record_ending(event)
        parent = parent_link(self.parent) or ParentLink("", 0, 0)
        if isinstance(event, RunCompleted):
            self.status = Status.COMPLETED
            outcome = CompletedChild(parent.seq, self.workflow, event.result, parent.created, self.run_id)
        else:
            is_cancelled = isinstance(event, events.RunCancelled)
            self.status = Status.CANCELLED if is_cancelled else Status.FAILED
            failure = Failure("RunCancelled", event.reason) if is_cancelled else event.failure
            again = "" if self.again is None else self.again[0].request
            outcome = FailedChild(parent.seq, self.workflow, failure, is_cancelled, parent.created, self.run_id, again)
        if parent.run_id:
            self.send(parent.run_id, "child", outcome)
        if self.live and (untaken := self.untaken_signals()):
            effects.own_besides().unrecorded = Unrecorded(untaken=untaken)
        self._let_go()
        effects.ended = self.ended = True

    def record_ending(self, event: Ending) -> None:
        self.effects.events.append(event)

    # --- for the machines -------------------------------------------------------------------------------------------

    def _fail_or_park(self, error: BaseException, *, may_park: bool = True) -> None:
        """The code has ended with this error. Raises `Bug` if it is one."""
        definition = self._definition_here
        parks = self.app.parks if definition.parks is None else definition.parks
        package = str(getattr(definition.function, "__module__", "")).partition(".")[0]
        failure = failure_of(error)
        if may_park and is_bug(error, parks, self.events_before, package):
            if self.live:
                raise Bug(failure)
            self.replayed_bug = failure
        self._fail(failure)

    @property
    def _definition_here(self) -> Workflow[..., Any] | Reducer:
        return self.app.version(self.workflow, self.version) or self.app.workflows[self.workflow]

    def _fail(self, failure: Failure) -> None:
        self._end(events.RunFailed(self.workflow, self.tenant, self.at - self.started, failure))

    def _complete(self, result: object) -> None:
        definition = self._definition_here
        if isinstance(result, ContinueAs):
            message = f"workflow {self.workflow} returned sf.ContinueAs(…): raise it"
            self._fail(Failure(UsageError.__name__, message, _beginning(definition.function)))
            return
        try:
            data = definition.parameters.encode_result(result, f"result of {self.workflow}")
        except (PayloadInvalid, PayloadTooLarge) as error:
            self._fail(Failure(type(error).__name__, str(error), _beginning(definition.function)))
        else:
            self._end(RunCompleted(self.workflow, self.tenant, self.at - self.started, Raw(data)))


def _beginning(function: object) -> str:
    """The traceback of what is wrong with a result: no frame of the code is left, so the line where it begins."""
    code: CodeType | None = getattr(function, "__code__", None)
    return "" if code is None else f'  File "{code.co_filename}", line {code.co_firstlineno}, in {code.co_name}\n'


def _drop_stopped(effects: Effects) -> None:
    """Attempts that were scheduled and cancelled in the same transition never start."""
    stopped = {*effects.besides.cancelled, *(job.seq for job in effects.besides.revoked)}
    effects.jobs = [job for job in effects.jobs if job.seq not in stopped]
