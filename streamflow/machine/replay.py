"""The machine of a workflow: live code, and the replay of its history.

Owns: replay and the comparison of decisions.
Must not: know clocks, I/O or event loops. Called by: `factory.py`.

A replay delivers the recorded facts to the code, whose decisions follow from their order alone (`coroutines.py`), and
compares its decisions with the recorded ones.
"""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, NoReturn, cast

import msgspec
from msgspec import Raw

from streamflow import errors, events
from streamflow.errors import Diverged, Failure, PayloadInvalid
from streamflow.events import (
    DECISIONS,
    ENDINGS,
    NOTHING,
    AnyEvent,
    AskAnswered,
    AskReceived,
    CancelRequested,
    ChildCompleted,
    ChildStarted,
    HistoryLimitReached,
    Patched,
    PauseEnded,
    Recorded,
    RunContinued,
    RunForked,
    RunPaused,
    RunResumed,
    RunRetried,
    RunStarted,
    RunStuck,
    SignalReceived,
    SignalSent,
    SignalSkipped,
    StartDelayed,
    StartDue,
    StepCompleted,
    StepScheduled,
    TimeoutReached,
    TimeoutSet,
    TimerFired,
    Transition,
)
from streamflow.machine.coroutines import CoroutineMachine
from streamflow.machine.retry_point import (
    GapBegins,
    GapForked,
    RetryPoint,
    Void,
    VoidRecord,
    first_position,
    with_gaps,
)
from streamflow.machine.transition import Effects, Ending, Oversize
from streamflow.model.attributes import FORKED_FROM, Attribute, merged
from streamflow.model.codec import is_same_value
from streamflow.model.failures import line_of_coroutine
from streamflow.model.plain import plain
from streamflow.model.record import Status
from streamflow.model.sharding import Partition, child_again, is_same_child
from streamflow.workflow.actions import ChildCall
from streamflow.workflow.app import App
from streamflow.workflow.awaitable import DONE, Operation, Unwinding
from streamflow.workflow.recording import Record

if TYPE_CHECKING:
    from streamflow.workflow.awaitable import D

PIECE = 32
"""Facts that are replayed without a pause: some 0.3 ms, if the code does nothing else."""
MAX_SHOWN = 200
"""Characters of arguments in the report of a divergence."""
_TIMES_SET = (StartDelayed, TimeoutSet)
SKIPPED = (Patched, Recorded)
"""Events that no code has to make again. A tuple: a union would be made again at each await."""
_RETRIES = frozenset({Void, GapBegins, GapForked, VoidRecord, RunRetried, RunForked})
_DELIVERED = (RunStarted, StartDue, SignalReceived, AskReceived, StepCompleted, ChildCompleted, TimerFired)
"""Facts that are delivered to user code as they are; of the others only failures are."""


class _Divergence(Unwinding):
    """Raised in a replay, and unwinds it."""

    def __init__(self, position: int, expected: str, found: str, line: str = "") -> None:
        super().__init__(expected, found)
        self.line = line
        self.position = position
        self.expected = expected
        self.found = found


class WorkflowMachine(CoroutineMachine):
    """A run whose code is coroutines, live or in a replay."""

    __slots__ = (
        "_divergence",
        "_held",
        "_ids",
        "_late",
        "_own_id",
        "_position",
        "_published",
        "_record_made",
        "_recorded",
        "_replayed",
    )

    def __init__(self, app: App, partition: Partition, run_id: str, workflow: str = "") -> None:
        super().__init__(app, partition, run_id, workflow)
        self._recorded: list[AnyEvent] | None = None
        """The transition that is being replayed; None when live."""
        self._position = 0
        self._divergence: _Divergence | None = None
        """Where this replay has diverged."""
        self._replayed = 0
        """Number of events in the history before that transition."""
        self._held: list[tuple[AnyEvent, Operation | None]] | None = None
        """Facts that were received while the run was stuck, and that are delivered when it resumes."""
        self._late: deque[tuple[AnyEvent, Operation | None]] | None = None
        """Those that are not delivered yet, while it resumes."""
        self._own_id = run_id
        self._ids: list[str] | None = None
        """Of a fork, in a replay: the ids that it has behind each `RunForked`, the next one last."""
        self._published: dict[str, bytes] | None = None
        """What was published in the history that it shares, while it begins."""
        self._record_made: Counter[tuple[object, ...]] | None = None
        """What its code had recorded before the run was retried from before that: it counts once."""

    def replay(
        self, transitions: list[Transition], retry: RetryPoint | None = None, fork: RunForked | None = None
    ) -> Generator[None]:
        """Bring a new machine to the end of a history, with a pause after each `PIECE` facts. A divergence parks it:
        see `diverged` and `reason`. The caller makes the machine the active one for each piece. `retry`: the run has
        ended, and is brought to where it would go on. `fork`: it begins so, behind these transitions of another one."""
        self.live = False
        stored = transitions
        if fork is None:
            transitions = with_gaps(stored, None if retry is None else retry.kept)
        else:
            transitions = with_gaps(stored, fork.kept, is_fork=True)
            self._published = {}
        if transitions is not stored:
            self._take_ids(stored, fork)
        self.events_count = sum(len(transition.events) for transition in transitions)
        if not self.reason and transitions:
            version = _version(transitions)
            if version is not None and self.app.version(self.workflow, version) is None:
                self.reason = self.app.unknown_version(self.workflow, version)
        if not self.reason:
            yield from self._replay_or_park(transitions)
        if self.reason:
            self._replay_blindly(transitions)
        self.run_id = self._own_id
        self._recorded = None
        self.live = True
        self.effects = Effects()
        if not self.ended:
            self._set_open_status()
        self.retrying = retry
        if fork is not None:
            self.forking = fork
            self.stuck = True

    def _take_ids(self, transitions: list[Transition], begins: RunForked | None) -> None:
        """Of a fork: which run it is in the history that it shares."""
        forks = [] if begins is None else [begins]
        first = first_position(transitions[0])
        for number, transition in enumerate(reversed(transitions), 1):
            if number < len(transitions) or not first:
                forks += [event for event in transition.events[:1] if isinstance(event, RunForked)]
        if forks:
            before = [fork.before or fork.of for fork in forks]
            self._ids = [self._own_id, *before]
            self.run_id = self._ids.pop()

    def _replay_or_park(self, transitions: list[Transition]) -> Generator[None]:
        try:
            yield from self._replay(transitions)
        except _Divergence as divergence:
            number = self._replayed + divergence.position + 1
            self.diverged = Diverged(self._own_id, number, divergence.expected, divergence.found, divergence.line)
            self.reason = str(self.diverged)
        else:
            if not self.ended:
                self.reason = self.unfit_call()

    def _replay(self, transitions: list[Transition]) -> Generator[None]:
        left = PIECE
        for transition in transitions:
            self.at = max(self.at, transition.at)
            self.effects = Effects()
            events = self._recorded = transition.events
            self._position = 0 if self._replayed else first_position(transition)
            while self._position < len(events):
                event = events[self._position]
                self._position += 1
                if self.ended:
                    raise _Divergence(self._position - 1, event.describe(), "end the run before this event")
                self._replay_event(event)
                if self._divergence is not None:  # it was raised in code of the run, which caught it
                    raise self._divergence
                left -= 1
                if not left:
                    left = PIECE
                    yield
            self._replayed += len(events)

    def _replay_event(self, event: AnyEvent) -> None:
        following = self._following()
        if type(event) in _RETRIES:
            fact = self._replay_retry(event)
            if fact is None:
                return
            event = fact
        if isinstance(event, RunStuck | RunPaused):
            self._note_stopped(event)
        elif isinstance(event, RunResumed | PauseEnded):
            self.stuck, self.paused_by, self.went_on = False, None, self.at
            if isinstance(following, RunStuck | RunPaused):
                self.stuck = True  # other code was tried, and has decided nothing
            elif isinstance(following, CancelRequested) and isinstance(self._following(1), events.RunCancelled):
                self._held = None  # it was cancelled without running its code, or its code did nothing about it
                self.stuck = True
            else:
                self._resume_code()
        elif isinstance(event, CancelRequested):
            if self.stuck:
                self._end_cancelled(event.reason)
            else:
                self._cancel_requested(event)
        elif isinstance(event, HistoryLimitReached):
            self._limit_reached(event)
        elif isinstance(event, RunContinued) and not self.started:
            self._begin_generation(event)
            if not self.stuck:
                self._run()
        elif isinstance(event, TimeoutReached):
            self._track(event)
            self._timed_out(event)
        elif isinstance(event, _TIMES_SET):
            self._track(event)
        elif isinstance(event, SKIPPED):
            self._skip(event)
        elif isinstance(event, (*DECISIONS, *ENDINGS, RunContinued)):
            raise _Divergence(self._position - 1, self._expected(event), "not make this decision")
        else:
            if isinstance(event, RunStarted):
                self._begin(event)
            operation = self._track(event)
            if isinstance(event, RunStarted | StartDue):
                self._carry_time()
                following = self._following()
            if self.begins and isinstance(event, RunStarted):  # the code begins with another fact
                self._deliver_recorded(event, None, strict=True)
            elif self.stuck or (isinstance(event, RunStarted) and isinstance(following, RunStuck | RunPaused)):
                if self._held is None:
                    self._held = []
                self._held.append((event, operation))
            else:
                self._deliver_recorded(event, operation, strict=True)

    def _replay_retry(self, event: AnyEvent | Void) -> AnyEvent | None:
        """Go through a gap as through a time in which the run was stuck. Gives the fact with which one begins."""
        if isinstance(event, RunRetried):
            self._reopen(event)
            self._carry_time()
            self.stuck, self.paused_by = False, None
            self._resume_code()
        elif isinstance(event, RunForked):
            self._become(event)
            self._go_on_as(event)
        elif isinstance(event, GapForked):
            self._become(event.fork)
            self.stuck = True
        elif isinstance(event, GapBegins):
            self.stuck = True
            return event.fact
        elif isinstance(event, VoidRecord):
            if self._record_made is None:
                self._record_made = Counter()
            self._record_made[_record_key(event.record)] += 1
        return None

    def _carry_time(self) -> None:
        if self._recorded is None:
            super()._carry_time()
        else:
            self._take_times()

    def _renew_time(self) -> None:
        if self._recorded is None:
            super()._renew_time()
        else:
            self._take_times()

    def _take_times(self) -> None:
        while isinstance(event := self._following(), _TIMES_SET):
            self._track(event)
            self._position += 1

    # --- forks --------------------------------------------------------------------------------------------------------

    def _become(self, event: RunForked) -> None:
        """Behind what it shares, the run is another one: with its own id, which is nobody's child."""
        self.run_id = self._ids.pop() if self._ids else self._own_id
        self.parent = ""
        self.again = None  # its children are others
        self.created = event.created
        self.started = self.at
        self.seq = max(self.seq, event.seq)
        self._rng = self._record_made = None

    def _go_on_as(self, event: RunForked) -> None:
        """What was open begins again, and the code gets what it hasn't got."""
        again = dict(event.children)
        for seq, child in list(self.children.items()):
            if seq in again:
                child.run_id = again[seq]
            else:
                del self.children[seq]
        for seq, _ in event.attempts:
            if (call := self.steps.get(seq)) is not None:
                call.details = NOTHING  # reported to the other run
        self._begin_again(event.attempts)
        self.stuck, self.paused_by = False, None
        self._renew_time()
        if self.ready:  # it begins with a generation
            self._run()
        if not self.ended:
            self._resume_code()
        if self.ending is not None and not self.ended and not self.reason:
            self._end_if_alone()

    def _take_fork(self, inputs: list[Any], fork: RunForked) -> list[Any]:
        position = next((i for i, item in enumerate(inputs) if isinstance(item, RunForked)), None)
        if position is None:
            return []
        self.forking = None
        effects = self.effects
        reason = inputs[0].reason if isinstance(inputs[0], Oversize) else self.reason
        self._become(fork)
        effects.own_besides().attributes = self._with_link(fork.of)
        if reason:
            effects.events.append(fork)
            self.stuck = False
            self._forget_open()  # it is the other run's
            kind = "TransitionTooLarge" if reason != self.reason else "NotForked"
            if reason.endswith(Diverged.mend):  # this run has ended, and doesn't go on by itself
                reason = reason.removesuffix(Diverged.mend)
                reason += "Deploy code that makes the recorded decisions and retry this run, or fork from before that."
            failure = Failure(kind, reason)
            if self.pause is not None:  # what is open there would begin
                text = f"{reason}: a fork of run {fork.of} can't begin. Resume it, and fork again"
                failure = Failure("Paused", text)
            elif self.bug is not None:
                failure, _ = self.bug
            self._end_now(events.RunFailed(self.workflow, self.tenant, 0, failure))
            return []
        children, starts = self._children_again(fork)
        event = msgspec.structs.replace(fork, attempts=[(seq, 1) for seq in self.steps], children=children)
        effects.events.append(event)
        for child, start in starts:
            self.add_child(child, start)
        besides = effects.own_besides()
        besides.published, self._published = self._published or None, None
        besides.restate = True
        self.status = Status.PENDING if self.begins else Status.RUNNING
        self._go_on_as(event)
        return [] if effects.ended else inputs[position + 1 :]

    def _children_again(self, fork: RunForked) -> tuple[list[tuple[int, str]], list[tuple[ChildCall, ChildStarted]]]:
        """The children that the code waits for, with the ids that they get here, and how they are started."""
        started = {
            event.seq: event
            for transition in fork.history
            for event in transition.events
            if isinstance(event, ChildStarted)
        }
        children: list[tuple[int, str]] = []
        starts: list[tuple[ChildCall, ChildStarted]] = []
        for seq, child in self.children.items():
            event = started.get(seq)
            if event is None or child.state == DONE:
                continue
            run_id = child_again(
                event.run_id,
                self.run_id,
                self.created,
                seq,
                self.partition,
                event.tenant,
                event.name,
                bytes(event.input),
            )
            children.append((seq, run_id))
            starts.append((child, msgspec.structs.replace(event, run_id=run_id)))
        return children, starts

    def _with_link(self, of: str) -> dict[str, Attribute | None]:
        """The run's attributes, with the one by which the forks of a run are found, if there is room for it."""
        known = self.attributes or {}
        with contextlib.suppress(errors.UsageError, errors.PayloadTooLarge):
            known = merged(known, {FORKED_FROM: of})
        return {**known}

    def publish(self, key: str, data: bytes) -> None:
        if self._published is not None and not self.live:
            self._published[key] = data
        super().publish(key, data)

    def record(self, record: Record) -> None:
        if self._record_made and self._record_made[key := _record_key(record)]:
            self._record_made[key] -= 1
            return
        super().record(record)

    def _note_stopped(self, event: RunStuck | RunPaused) -> None:
        self.stuck = True
        self.paused_by = event if isinstance(event, RunPaused) else None

    def _resume_code(self) -> None:
        late = self._late = deque(self._held or ())
        self._held = None
        while late and not self.ended:
            self._deliver_recorded(*late.popleft(), strict=False)
        self._late = None

    def take_late(self) -> list[SignalReceived | AskReceived]:
        if not self._late:
            return []
        messages = [event for event, _ in self._late if isinstance(event, (SignalReceived, AskReceived))]
        self._late.clear()
        return messages

    def _deliver_recorded(self, event: AnyEvent, operation: Operation | None, *, strict: bool) -> None:
        """`strict`: the run's code received this fact when it was recorded, so it must match."""
        if operation is None and not isinstance(event, (RunStarted, StartDue, SignalReceived, AskReceived)):
            if strict:
                raise _Divergence(self._position - 1, event.describe(), "not wait for it")
            return
        value: Any = None
        error: Exception | None = None
        try:
            if isinstance(event, (StepCompleted, ChildCompleted)):
                value = cast("Any", operation).decode_result(event.result)
        except PayloadInvalid as invalid:
            if strict:
                raise _Divergence(self._position - 1, event.describe(), f"not accept it: {invalid}") from invalid
            failure = Failure("PayloadInvalid", str(invalid))
            if isinstance(event, StepCompleted):
                error = errors.StepFailed(event.name, event.attempt, failure)
            else:
                error = errors.ChildFailed(cast("Any", operation).run_id, cast("ChildCompleted", event).name, failure)
        if isinstance(event, events.StepFailed):
            error = errors.StepFailed(event.name, event.attempt, event.failure)
        elif isinstance(event, events.ChildFailed):
            error = errors.ChildFailed(cast("Any", operation).run_id, event.name, event.failure)
        elif not isinstance(event, _DELIVERED):
            return  # a retry: user code doesn't see it
        self._deliver(event, operation, value, error)

    @property
    def _length(self) -> int:
        return super()._length if self._recorded is None else self._replayed + self._position

    @property
    def events_before(self) -> int:
        return self.events_count if self._recorded is None else self._replayed

    def decide(self, event: D, value: object = None) -> D:
        if self._recorded is None:
            self.effects.events.append(event)
            return event
        return cast("D", self._compare(event, value))

    def record_ending(self, event: Ending) -> None:
        if self._recorded is None:
            self.effects.events.append(event)
        else:
            self._compare(event)

    def _compare(self, event: AnyEvent, value: object = None) -> AnyEvent:
        while isinstance(recorded := self._following(), SKIPPED):
            self._skip(recorded)
            self._position += 1
        if (
            type(recorded) is not type(event)
            or getattr(recorded, "seq", 0) != getattr(event, "seq", 0)
            or getattr(recorded, "name", "") != getattr(event, "name", "")
        ):
            expected = "no further decision" if recorded is None else self._expected(recorded)
            found = event.describe()
            if (failure := getattr(event, "failure", None)) is not None:
                found = f"{found}: {failure}"
            self._diverge(expected, found)
        if not self._has_same_arguments(recorded, event, value):
            self._diverge(_with_arguments(cast("AnyEvent", recorded)), _with_arguments(event))
        self._position += 1
        return cast("AnyEvent", recorded)

    def _diverge(self, expected: str, found: str) -> NoReturn:
        line = line_of_coroutine(self.current and self.current.coroutine)
        self._divergence = _Divergence(self._position, expected, found, line)
        raise self._divergence

    def _has_same_arguments(self, recorded: AnyEvent | None, event: AnyEvent, value: object) -> bool:
        """Whether a decision is about the same. What only a later deploy adds (a parameter or a field with a default)
        doesn't count: then the recorded arguments, decoded and encoded again by today's types, are the same. `value` is
        what was encoded, where no parameters declare its type. When a timer is due isn't compared: the recorded time
        counts, so that a deploy may change it."""
        before: Any = recorded
        if isinstance(event, StepScheduled):
            return self._is_same_call(before.args, event.args, self.app.steps.get(event.name))
        if isinstance(event, ChildStarted):
            is_same_run = is_same_child(before.run_id, event.run_id)
            return is_same_run and self._is_same_call(before.input, event.input, self.app.workflows.get(event.name))
        if isinstance(event, SignalSent):
            return before.target == event.target and is_same_value(before.value, event.value, value)
        if isinstance(event, AskAnswered):
            refusals = [failure and failure.kind for failure in (before.failure, event.failure)]
            is_same_ask = before.id == event.id and refusals[0] == refusals[1]
            return is_same_ask and is_same_value(before.result, event.result, value)
        return True

    @staticmethod
    def _is_same_call(before: Raw, now: Raw, definition: Any) -> bool:
        if bytes(before) == bytes(now):
            return True
        return definition is not None and definition.parameters.is_same_call(before, now)

    def skip_signal(self, event: SignalReceived, error: PayloadInvalid) -> None:
        if self._recorded is not None and not self.was_refused(event):
            self._diverge(f"a signal {event.name} that the code took", f"not accept it: {error}")
        if self._recorded is None:
            super().skip_signal(event, error)

    def was_refused(self, event: SignalReceived | AskReceived) -> bool:
        further = 0
        while isinstance(following := self._following(further), SKIPPED):
            further += 1
        if isinstance(following, SignalSkipped) and isinstance(event, SignalReceived):
            is_refusal = following.name == event.name
        elif isinstance(following, AskAnswered) and isinstance(event, AskReceived) and following.failure is not None:
            is_refusal = following.id == event.id and following.failure.kind == PayloadInvalid.__name__
        else:
            is_refusal = False
        if is_refusal:
            for _ in range(further):
                self._skip(cast("Patched | Recorded", self._following()))
                self._position += 1
            self._position += 1
        return is_refusal

    def _following(self, further: int = 0) -> AnyEvent | None:
        recorded, position = self._recorded, self._position + further
        return recorded[position] if recorded is not None and position < len(recorded) else None

    def _expected(self, event: AnyEvent) -> str:
        is_missing = isinstance(event, StepScheduled) and event.name not in self.app.steps
        return event.describe() + (", a step that is not registered any more" if is_missing else "")

    def _replay_blindly(self, transitions: list[Transition]) -> None:
        """Find out what is open without running code, so that outcomes are still recorded and timers fire."""
        self.close()
        self._forget_open()
        self._held = self.postponed = None
        self._rng = None
        self.seq = self.at = self.started = 0
        self.stuck, self.paused_by = False, None
        self._recorded = []  # not live: nothing here has effects
        for number, transition in enumerate(transitions):
            self.at = max(self.at, transition.at)
            for event in transition.events[0 if number else first_position(transition) :]:
                if isinstance(event, GapForked):
                    self._become(event.fork)
                    self.stuck = True
                    continue
                if isinstance(event, Void):
                    if not isinstance(event, GapBegins):
                        continue
                    self.stuck = True
                    if event.fact is None:
                        continue
                    event = event.fact
                if isinstance(event, RunStuck | RunPaused):
                    self._note_stopped(event)
                elif isinstance(event, RunResumed | PauseEnded):
                    self.stuck, self.paused_by, self.went_on = False, None, self.at
                elif isinstance(event, RunRetried):
                    self.stuck = False
                    self._reopen(event)
                elif isinstance(event, RunForked):
                    self.stuck = False
                    self._become(event)
                    self._go_on_as(event)
                self._track_blindly(event)

    def _is_patched(self, name: str) -> bool:
        """In a replay: whether the history has the patch here. Patches that the code doesn't ask for are skipped."""
        recorded = self._recorded
        if recorded is None:
            return super()._is_patched(name)
        for position in range(self._position, len(recorded)):
            event = recorded[position]
            if isinstance(event, Recorded):
                continue
            if not isinstance(event, Patched):
                break
            if event.name == name:
                self._position = position + 1
                return True
            self._skip(event)
        return False

    def _skip(self, event: Patched | Recorded) -> None:
        """What no code has to make again. Of a patch: it doesn't ask any more, or asks later than when it was recorded:
        the answer stays the run's."""
        if isinstance(event, Recorded):
            return
        if self._patches is None:
            self._patches = {}
        self._patches.setdefault(event.name, True)


def _record_key(record: Record | Recorded) -> tuple[object, ...]:
    return record.name, record.value, *sorted(record.labels.items())


def _version(transitions: list[Transition]) -> int | None:
    """Which version of its code a run with this history keeps; None if that has not begun."""
    events = transitions[0].events[first_position(transitions[0]) :]
    first = events[0].fact if isinstance(events[0], GapBegins) else events[0]
    if len(events) > 1 and isinstance(events[1], StartDelayed):
        found = (event for transition in transitions for event in transition.events if isinstance(event, StartDue))
        return next((event.version for event in found), None)
    return first.version if isinstance(first, RunStarted | RunContinued) else 0


def _with_arguments(event: AnyEvent) -> str:
    """A decision with its arguments, cut to a line."""
    what = event.describe()
    if isinstance(event, AskAnswered):
        what = f"{what} of question {event.id}"
        if event.failure is not None:
            return f"{what} with a refusal, {event.failure}"
        payload = event.result
    elif isinstance(event, SignalSent):
        what, payload = f"{what} to {event.target}", event.value
    elif isinstance(event, ChildStarted):
        what, payload = f"{what} as run {event.run_id}", event.input
    else:
        payload = cast("StepScheduled", event).args
    text = msgspec.json.encode(plain(payload)).decode()
    return f"{what} with {text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + '…'}"
