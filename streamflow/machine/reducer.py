"""Reducers: runs whose code is one function `(state, event) -> Decision`, and whose state is their snapshot.

Owns: the machine. Its snapshot is in `snapshot.py`, the events and commands of reducers in `workflow/reducer.py`.
Must not: know clocks, I/O or event loops; need a history (the newest transitions are kept for people to read).
Called by: the owner through `factory.py`.

Between two transitions the state is bytes, so a reducer gets the same state whether or not its run was in memory.
"""

from __future__ import annotations

import random
from typing import Any, cast

from msgspec import UNSET, Raw

from streamflow import events
from streamflow.errors import Failure, PayloadInvalid, PayloadTooLarge, UsageError
from streamflow.events import (
    NOTHING,
    AnyEvent,
    AskAnswered,
    AskReceived,
    CancelRequested,
    ChildCompleted,
    RunPaused,
    RunStarted,
    RunStuck,
    SignalReceived,
    StepCompleted,
    TimerFired,
    Transition,
)
from streamflow.machine.open_work import unknown_child
from streamflow.machine.run import RunMachine
from streamflow.machine.snapshot import (
    HeldFact,
    OpenStep,
    Snapshot,
    decode_snapshot,
    encode_snapshot,
    overrides_of,
    retry_of,
    tag_of,
)
from streamflow.model import codec
from streamflow.model.failures import failure_of
from streamflow.model.names import check_ask_id
from streamflow.workflow.actions import ChildCall, SignalSend, SignalWait, Sleep, StepCall
from streamflow.workflow.app import Reducer, Step, missing_step
from streamflow.workflow.awaitable import PASSING, PENDING, Fiber, Operation
from streamflow.workflow.reducer import (
    Answer,
    Asked,
    CancelRequest,
    ChildDone,
    ChildFailure,
    Complete,
    Decision,
    Event,
    Fail,
    Refuse,
    Signal,
    Started,
    StepDone,
    StepFailure,
    TimerDone,
)

KEPT = 4096
"""Bytes up to which a state stays in memory decoded, not only encoded."""


class ReducerMachine(RunMachine):
    __slots__ = ("_data", "_held", "_next", "_state")

    def __init__(self, app: Any, partition: Any, run_id: str, workflow: str = "") -> None:
        super().__init__(app, partition, run_id, workflow)
        self._data: Raw | None = None
        """The encoded state between transitions; None before the first event."""
        self._state: Any = None
        """The state during a transition."""
        self._next: Any = UNSET
        """The state for the next transition, decoded from `_data`, if it is small enough to be kept."""
        self._held: list[HeldFact] = []

    @property
    def _definition(self) -> Reducer:
        return cast("Reducer", self.app.workflows[self.workflow])

    @property
    def rng(self) -> random.Random:
        """Seeded for each transition: a snapshot doesn't have the state of a generator."""
        if self._rng is None:
            self._rng = random.Random(f"{self.run_id}@{self.started}#{self.events_count}")
        return self._rng

    # --- driving user code ------------------------------------------------------------------------------------------

    def _take_all(self, inputs: list[Any]) -> None:
        if self.reason or self.effects.ended:
            super()._take_all(inputs)
            return
        if not self.effects.events:  # else it has just resumed, and has used this transition's generator already
            self._rng = None
        self._load()
        super()._take_all(inputs)
        self._store()

    def _load(self) -> None:
        if self._data is not None:
            self._state = self._decode(self._data) if self._next is UNSET else self._next
        self._next = UNSET

    def _store(self) -> None:
        """Encode the state. One that its own type can't read is refused here, before it is committed: no later code
        could continue with it."""
        if not self.effects.ended and self.started:
            try:
                data = codec.encode(self._state, self._what)
                state = self._decode(data)
            except (PayloadInvalid, PayloadTooLarge) as error:
                self._fail(failure_of(error))
            else:
                self._data = Raw(data)
                self._next = state if len(data) <= KEPT else UNSET
        self._state = None

    def _decode(self, data: Raw | bytes) -> Any:
        return codec.decode(data, self._definition.state_type, self._what)

    @property
    def _what(self) -> str:
        return f"state of reducer {self.workflow}"

    def _record_start(self, item: RunStarted) -> None:
        asks = bool(self.begins or self.time_limit)
        self.begins = self.time_limit = 0
        if not asks or self.reason:
            super()._record_start(item)
            return
        self._begin(item)
        self.effects.events.append(item)
        text = f"{self.workflow} is a reducer: delay, at and timeout are for workflows"
        self._fail(Failure(UsageError.__name__, text))

    def _deliver(self, event: AnyEvent, operation: Operation | None, value: Any, error: Exception | None) -> None:
        if self.ending is not None:
            self._end_if_alone()
            return
        tag, run_id = tag_of(operation), operation.run_id if isinstance(operation, ChildCall) else ""
        if self.reason:
            self._held.append(HeldFact(event, tag, run_id))
        else:
            self._reduce(event, tag, run_id, value)

    def _reduce(self, event: AnyEvent, tag: str, run_id: str, value: Any) -> None:
        """Make the public event of a fact, and call the reducer with it."""
        match event:
            case RunStarted():
                try:
                    args, _ = self._definition.parameters.decode(event.input)
                    self._state = self._definition.initial()
                except Exception as error:
                    self._fail_or_park(error)
                    return
                self._react(Started(args[0]))
            case SignalReceived():
                try:
                    plain = codec.decode(event.value, Any, f"value of signal {event.name}")
                except PayloadInvalid as invalid:
                    self.warn(f"run {self.run_id} skipped a signal: {invalid}")
                    return
                self._react(Signal(event.name, plain))
            case AskReceived():
                try:
                    plain = codec.decode(event.value, Any, f"value of question {event.name}")
                except PayloadInvalid as invalid:
                    self.answer(AskAnswered(event.id, event.name, failure=Failure("PayloadInvalid", str(invalid))))
                    return
                self._react(Asked(event.id, event.name, plain))
            case StepCompleted():
                self._react(StepDone(event.name, event.seq, tag, value))
            case events.StepFailed():
                self._react(StepFailure(event.name, event.seq, tag, event.failure))
            case TimerFired():
                self._react(TimerDone(event.seq, tag))
            case ChildCompleted():
                self._react(ChildDone(event.name, run_id, event.seq, tag, value))
            case events.ChildFailed():
                self._react(ChildFailure(event.name, run_id, event.seq, tag, event.failure, event.cancelled))
            case _:
                pass

    def _react(self, event: Event) -> None:
        try:
            decision: Any = self._definition.function(self._state, event)
            if not isinstance(decision, Decision):
                raise UsageError(f"reducer {self.workflow} must return sf.Decision(…), got a {type(decision).__name__}")
            self._state = decision.state
            for command in decision.commands:
                self._execute(command)
                if self.effects.ended or self.ending is not None:
                    return
        except PASSING:
            raise
        except BaseException as error:
            self._fail_or_park(error, may_park=not isinstance(event, CancelRequest))

    def _execute(self, command: Any) -> None:
        if isinstance(command, Complete):
            self._complete(command.result)
        elif isinstance(command, Fail):
            self._fail(Failure("Fail", command.message))
        elif isinstance(command, Answer):
            payload = Raw(codec.encode(command.result, f"answer of reducer {self.workflow}"))
            self.answer(AskAnswered(check_ask_id(command.id), "", payload))
        elif isinstance(command, Refuse):
            self.answer(AskAnswered(check_ask_id(command.id), "", failure=Failure("Refused", command.reason)))
        elif isinstance(command, StepCall | ChildCall | Sleep | SignalSend):
            if command.state:
                raise UsageError(f"reducer {self.workflow} returned the same command twice: make a new call for each")
            command.begin(self)
        else:
            raise UsageError(
                f"reducer {self.workflow} returned {command!r}, which is not a command: use calls of steps and "
                "workflows, sf.sleep, sf.send_signal, sf.Answer, sf.Refuse, sf.Complete or sf.Fail; signals are "
                "received as events"
            )

    def _cancel(self, event: CancelRequested) -> None:
        if not self.reason:
            self._react(CancelRequest(event.reason))
        if not self.effects.ended and self.ending is None:
            self._end_cancelled(event.reason)

    def take_message(self, wait: SignalWait) -> bool:
        raise UsageError("a reducer can't wait for signals: it receives them as events")

    def spawn(self, fiber: Fiber) -> None:
        raise UsageError("a reducer can't run coroutines: use calls of steps and workflows as commands")

    # --- stuck ------------------------------------------------------------------------------------------------------

    @property
    def _to_resume(self) -> int:
        return len(self._held)

    def _resume_code(self) -> None:
        held, self._held = self._held, []
        self._rng = None
        self._load()
        for fact in held:
            event, value = fact.event, None
            try:
                value = self._decode_held(event)
            except PayloadInvalid as error:
                failure = Failure("PayloadInvalid", str(error))
                if isinstance(event, StepCompleted):
                    event = events.StepFailed(event.seq, event.name, event.attempt, event.ms, failure)
                elif isinstance(event, ChildCompleted):
                    event = events.ChildFailed(event.seq, event.name, failure)
            self._reduce(event, fact.tag, fact.run_id, value)
            if self.effects.ended or self.ending is not None:
                break
        self._store()

    def _decode_held(self, event: AnyEvent) -> Any:
        if isinstance(event, StepCompleted):
            return (self.app.steps.get(event.name) or missing_step(event.name)).parameters.decode_result(event.result)
        if isinstance(event, ChildCompleted):
            return (self.app.workflows.get(event.name) or unknown_child(event.name)).parameters.decode_result(
                event.result
            )
        return None

    # --- snapshot ---------------------------------------------------------------------------------------------------

    def snapshot(self) -> bytes:
        dues = {seq: due for due, seq in self.schedule or ()}
        return encode_snapshot(
            Snapshot(
                NOTHING if self._data is None else self._data,
                self.seq,
                [
                    OpenStep(
                        call.seq,
                        call.step.name,
                        call.payload,
                        call.step.tag,
                        call.attempt,
                        call.due,
                        overrides_of(call),
                        call.lost,
                        call.details,
                        call.step.queue or "",
                        call.since,
                        call.declined,
                        call.blamed,
                    )
                    for call in self.steps.values()
                ],
                [(seq, dues[seq], tag_of(timer)) for seq, timer in self.timers.items()],
                [
                    (seq, call.target.name, call.run_id, call.target.tag, call.on_parent_end)
                    for seq, call in self.children.items()
                ],
                self.started,
                self.tenant,
                self.parent,
                self.at,
                self.events_count,
                self.paused_by or self.stuck,
                self._held,
                self.ending,
                self.created,
            )
        )

    def restore(self, state: bytes, transitions: list[Transition]) -> None:
        """Restore the snapshot in a new machine. Without a snapshot the history has only facts so far."""
        if not state:
            self._restore_unreduced(transitions)
            return
        try:
            snapshot = decode_snapshot(state)
        except codec.DECODE_ERRORS as error:
            self.reason = f"the snapshot of run {self.run_id} can't be decoded: {error}"
            return
        has_begun = not (snapshot.held and isinstance(snapshot.held[0].event, RunStarted))
        self._data = snapshot.state if has_begun else None
        self.seq, self.started, self.at = snapshot.seq, snapshot.started, snapshot.at
        self.tenant, self.parent = snapshot.tenant, snapshot.parent
        self.events_count, self.stuck, self._held = snapshot.events_count, bool(snapshot.stuck), snapshot.held
        self.paused_by = snapshot.paused_by
        self.ending = snapshot.ending
        self.created = snapshot.created
        for step in snapshot.steps:
            self._restore_step(step)
        for seq, due, tag in snapshot.timers:
            timer = Sleep(0, tag)
            timer.seq, timer.state = seq, PENDING
            self.add_timer(timer, due)
        for seq, name, run_id, tag, on_parent_end in snapshot.children:
            child = self.children[seq] = self.open_child(seq, name, run_id, on_parent_end)
            child.target = child.target.options(tag=tag)
        if not self.reason:
            try:
                self._load()
            except PayloadInvalid as error:
                self.reason = f"{error}. Deploy code whose state type can decode it, and the run continues."
            self._state = None
            self.reason = self.reason or self.unfit_call()
        self.effects.jobs.clear()
        self._set_open_status()

    def _restore_step(self, open_step: OpenStep) -> None:
        step: Step[..., Any] = self.app.steps.get(open_step.name) or missing_step(open_step.name)
        if open_step.overrides is not None:
            timeout, queue = open_step.overrides.timeout, open_step.overrides.queue
            step = step.options(timeout=timeout, queue=queue, retry=retry_of(open_step.overrides), tag=open_step.tag)
        elif open_step.tag:
            step = step.options(tag=open_step.tag)
        if open_step.queue is not None and open_step.queue != (step.queue or ""):
            step = step.options(queue=open_step.queue or None)
        call = StepCall(step)
        call.seq, call.state, call.payload, call.args = open_step.seq, PENDING, open_step.args, None
        call.attempt, call.due = open_step.attempt, open_step.due
        call.lost, call.details, call.since = open_step.lost, open_step.details, open_step.since
        call.declined, call.blamed = open_step.declined, open_step.blamed
        self.restore_step(call)

    def _restore_unreduced(self, transitions: list[Transition]) -> None:
        for transition in transitions:
            self.at = max(self.at, transition.at)
            for event in transition.events:
                self.events_count += 1
                if isinstance(event, RunStuck | RunPaused):
                    self.stuck = True
                    self.paused_by = event if isinstance(event, RunPaused) else None
                elif isinstance(event, (RunStarted, SignalReceived, AskReceived)):
                    self._track_blindly(event)
                    self._held.append(HeldFact(event, "", ""))
        self._set_open_status()
