"""What is open in a run, and when the next part of it is due.

Owns: the state of a run between two transitions: steps with their attempts, timers, children, and the effect of each
recorded fact on them, also for a history whose code can't be run.
Must not: know clocks, I/O or event loops; take inputs or end a run (`run.py` does), run user code.
Called by: `run.py`, which builds on it; the owner reads what runs and what is due.
"""

from __future__ import annotations

import contextvars
import random
from collections.abc import Mapping, Sequence
from heapq import heappop, heappush
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, cast

from streamflow import events
from streamflow.errors import Cancelled, Diverged, Failure
from streamflow.events import (
    AnyEvent,
    Awaited,
    ChildCompleted,
    ChildStarted,
    RunContinued,
    RunForked,
    RunPaused,
    RunRetried,
    RunStarted,
    StartDelayed,
    StartDue,
    StepCancelled,
    StepCompleted,
    StepRetrying,
    StepScheduled,
    TimeoutReached,
    TimeoutSet,
    TimerFired,
    TimerSet,
    Unrecorded,
)
from streamflow.machine.transition import IDLE, Effects, Ending
from streamflow.model.attributes import Attribute
from streamflow.model.codec import UnfitArguments
from streamflow.model.payload_types import type_text
from streamflow.model.record import Status
from streamflow.workflow.actions import ChildCall, SignalWait, Sleep, StepCall, StepJob
from streamflow.workflow.app import App, Workflow, missing_step
from streamflow.workflow.awaitable import PENDING, Fiber, Operation

if TYPE_CHECKING:
    from streamflow.machine.retry_point import RetryPoint
    from streamflow.model.sharding import Partition

WORKER_LOST = "WorkerLost"
"""Kind of the failure of an attempt whose daemon, worker or process died or sent no heartbeat."""
UNDECIDED = 1 << 62
"""When the next attempt is due of a call whose attempt failed while the run was stuck: when that has resumed."""
Stuck = tuple[str, int, Failure | None]
NOT_STUCK: Stuck = ("", 0, None)
"""Why and since when a run is stuck that isn't, or whose record doesn't say it any more."""
AWAITED_BYTES = 200
"""Of what is recorded with a transition about the signals and questions that a run waits for, if they are several."""
UNTAKEN_NAMES = 10
"""Names of signals that no code has taken, which are recorded when the run ends."""
MOST_WAITS = 100
"""Waits for one name, the oldest, of which it is recorded when the first times out: that is done in each transition."""
FEW_CLOSED = 4
"""Numbers that are recorded without a look whether the others would be fewer."""
OwnTime = StartDelayed | StartDue | TimeoutSet | TimeoutReached
_OWN_TIMES = frozenset({StartDelayed, StartDue, TimeoutSet, TimeoutReached})
START, TIME_OUT = 0, -1
"""On the schedule instead of the number of a decision: when the code begins, and when its time is over."""
MAX_WORKER_LOSSES = 3
"""Deaths of its processes after which a step fails, if it was to blame for the last two."""


class Trace(Protocol):
    """What a machine needs of its run's trace. `tracing/run_trace.py` implements it."""

    @property
    def dropped(self) -> bool:
        """Whether no span is made of this run, nor of what belongs to it."""
        ...

    def enter(self) -> None:
        """Make it the current one in this context, which is that of the run's code."""
        ...

    def text(self, generation: int) -> str:
        """The packed trace context of what this generation of the run sends and starts."""
        ...


class OpenWork:
    """The open steps, timers and children of one run, and the run's identity."""

    __slots__ = (
        "_rng",
        "_waits",
        "again",
        "app",
        "at",
        "attributes",
        "begins",
        "bug",
        "cancelling",
        "children",
        "clock",
        "context",
        "created",
        "current",
        "diverged",
        "effects",
        "ended",
        "ending",
        "events_count",
        "forking",
        "generation",
        "in_steps",
        "live",
        "over_at",
        "parent",
        "partition",
        "pause",
        "paused_by",
        "postponed",
        "ready",
        "reason",
        "replayed_bug",
        "retried",
        "retrying",
        "run_id",
        "schedule",
        "seq",
        "started",
        "status",
        "steps",
        "stuck",
        "stuck_by",
        "tenant",
        "time_limit",
        "timers",
        "too_deep",
        "trace",
        "version",
        "went_on",
        "workflow",
    )

    def __init__(self, app: App, partition: Partition, run_id: str, workflow: str = "") -> None:
        self.app = app
        self.context = contextvars.Context()
        """The context variables of its code: empty at first, and its own."""
        self.partition = partition
        self.run_id = run_id
        self.workflow = workflow
        self.tenant = ""
        self.parent = ""
        self.status = Status.PENDING
        self.ended = False
        self.ending: Ending | None = None
        """How the code has ended, while the run waits for its children with `on_parent_end="wait"`."""
        self.version = 0
        """Of the workflow's code."""
        self.generation = 0
        """How often the run has continued as new."""
        self.live = True
        """False during a replay, whose effects have been applied already."""
        self.created = 0
        """What tells this run from others that had its id before: ms, as recorded in its first event."""
        self.started = 0
        """Ms of the start, like `at`; 0 before."""
        self.at = 0
        """Ms of the last transition, on its owner's clock. It never goes backwards."""
        self.clock = 0
        """Its owner's clock at that transition: earlier than `at` if a former owner's was ahead. Timers go by it."""
        self.begins = 0
        """When its code begins (ms), if that is delayed and the time has not come; else 0."""
        self.time_limit = 0
        """Its time-out (ms); 0: none, or not known yet."""
        self.over_at = 0
        """When its time is over (ms); 0: never, or it was."""
        self.went_on = 0
        """When its code could go on again the last time that it was stuck or paused, or its generation began (ms)."""
        self.events_count = 0
        self.seq = 0
        self.steps: dict[int, StepCall] = {}
        self.timers: dict[int, Operation] = {}
        self.children: dict[int, ChildCall] = {}
        self.schedule: list[tuple[int, int]] | None = None
        """A heap of (due, seq) of timers and retries; entries that are not open any more are skipped. None: no entry
        yet."""
        self.postponed: dict[int, tuple[StepRetrying, int]] | None = None
        """Attempts that failed while the run was stuck, by number, with the shard-clock ms of their failure."""
        self.in_steps = 0
        """Number of steps that run at the owner now."""
        self.current: Fiber | None = None
        """The fiber whose code runs now."""
        self.ready: list[Fiber] = []
        self.cancelling = 0
        """Depth of nested calls that cancel fibers."""
        self.too_deep: list[tuple[Fiber, Cancelled]] | None = None
        """Fibers below that depth, if there were some, which the outermost call cancels when the others are."""
        self.effects: Effects = IDLE
        self.attributes: Mapping[str, Attribute] | None = None
        """What the code has set so far, also during a replay; limits are checked against it."""
        self.stuck = False
        """Whether the history ends in a state in which no code is run: behind a `RunStuck` without a `RunResumed`, or a
        `RunPaused` without a `PauseEnded`."""
        self.paused_by: RunPaused | None = None
        """In the second case that event."""
        self.pause: RunPaused | None = None
        """What `reason` is about, if somebody has paused the run or its workflow."""
        self.stuck_by = NOT_STUCK
        """The beginning of that RunStuck's reason, when it was recorded (shard-clock ms), and of a bug what tells its
        cause."""
        self.reason = ""
        """Why user code can't run; empty if it can."""
        self.bug: tuple[Failure, str] | None = None
        """What the code has raised that `reason` is about, and which code that was, until that is recorded."""
        self.replayed_bug: Failure | None = None
        """The bug that its code has ended with in the replay: while it waits for children, that isn't recorded."""
        self.retried = -1
        """The generation that has ended before, and was retried."""
        self.again: tuple[RunRetried, set[int]] | None = None
        """Its last retry, and the children of which no failure counts that they had before."""
        self.retrying: RetryPoint | None = None
        """Where the run would go on, which has ended and is in memory for a `RetryRequest` only."""
        self.forking: RunForked | None = None
        """How the run begins, which is a fork: it has come to the end of what it shares, and takes this next."""
        self.diverged: Diverged | None = None
        self._waits: dict[str, list[SignalWait]] | None = None
        """What the code waits for, by `message_key`; signals and questions."""
        self._rng: random.Random | None = None
        self.trace: Trace | None = None
        """The run's part of a trace; None if it isn't traced here."""

    def be_traced(self, trace: Trace | None) -> None:
        """Before any of its code is run: what the run sends and starts is a part of this trace."""
        self.trace = trace
        if trace is not None:
            self.context.run(trace.enter)

    @property
    def in_flight(self) -> bool:
        """Whether a step runs at the owner now (not one that waits for a retry, not one of a queue). A stuck run starts
        nothing, so that its next owner has nothing to start again; what still runs reports its outcome all the same."""
        return self.in_steps > 0 and not self.reason

    def plan(self, due: int, seq: int) -> None:
        """Put an entry on the schedule."""
        if self.schedule is None:
            self.schedule = []
        heappush(self.schedule, (due, seq))

    @property
    def next_due(self) -> int | None:
        """Shard-clock ms of the earliest timer or retry. While the run is stuck, no retry is due."""
        schedule = self.schedule
        while schedule:
            due, seq = schedule[0]
            if self._is_due(seq, due):
                return due
            heappop(schedule)
        return None

    def running_jobs(self) -> list[StepJob]:
        """After a rehydration: the attempts that ran, but for retries. None if the run is stuck: only its code says
        with which options, and for which parameters; nor if it has ended, or begins as a fork."""
        if self.reason or self.retrying is not None or self.forking is not None:
            return []
        return [call.job() for call in self.steps.values() if call.due is None and call.is_local]

    def begun_jobs(self, now: int) -> list[StepJob]:
        """After a rehydration: the attempts that the last owner ran, or was about to. Retries among them are known by
        their due time only, because no fact records that one has begun. None if the run is stuck: its next owner
        begins nothing, and what still runs elsewhere reports its outcome. Nor if it has ended, or begins as a fork."""
        if self.reason or self.retrying is not None or self.forking is not None:
            return []
        return [call.job() for call in self.steps.values() if call.is_local and (call.due is None or call.due <= now)]

    def note_begun(self, seq: int) -> None:
        """The current attempt of a step runs, although it was due after a rehydration."""
        call = self.steps[seq]
        if call.due is not None:
            call.due = None
            self.in_steps += 1

    # --- opening -------------------------------------------------------------------------------------------------

    def add_step(self, call: StepCall) -> None:
        self.steps[call.seq] = call
        if call.is_local:
            self.in_steps += 1
        if self.live:
            self.effects.jobs.append(call.job())

    def restore_step(self, call: StepCall) -> None:
        self.steps[call.seq] = call
        if call.due is not None:
            self.plan(call.due, call.seq)
        elif call.is_local:
            self.in_steps += 1

    def add_timer(self, operation: Operation, due: int) -> None:
        self.timers[operation.seq] = operation
        self.plan(due, operation.seq)

    def drop_timer(self, seq: int) -> None:
        """The code has given it up."""
        if self.timers.pop(seq, None) is not None:
            self._note_closed(seq)

    def drop_child(self, seq: int) -> None:
        """The code doesn't wait for it any more, and neither does the run."""
        if self.children.pop(seq, None) is not None:
            self._note_closed(seq)

    def _note_closed(self, seq: int) -> None:
        effects = self.effects
        if self.live and effects is not IDLE:  # idle: the machine is only closed
            effects.own_besides().closed.append(seq)

    def unrecorded(self, effects: Effects) -> Unrecorded:
        """What no event tells of what the run waits for."""
        messages, size = list[Awaited](), 0
        waits = self._waits or {}
        for key, waiting in waits.items():
            awaited = _awaited(key, waiting)
            size += len(awaited.key) + len(awaited.type) + 10
            if messages and size > AWAITED_BYTES:
                break
            messages.append(awaited)
        closed = list(effects.besides.closed)
        still: list[int] | None = None
        if effects.besides.restate or len(closed) > FEW_CLOSED:
            limiting = {wait.seq for waiting in waits.values() for wait in waiting}
            still = [*(seq for seq in self.timers if seq not in limiting), *self.children]
            if len(still) > len(closed) and not effects.besides.restate:
                still = None
            else:
                closed = []
        return Unrecorded(messages, closed, still, len(waits) - len(messages))

    # --- the effect of facts -------------------------------------------------------------------------------------

    def _begin(self, event: RunStarted) -> None:
        self.workflow = event.workflow
        self.tenant = event.tenant
        self.parent = event.parent
        self.version = event.version
        self.created = event.created
        self.started = self.at
        self.status = Status.RUNNING

    def _is_due(self, seq: int, due: int) -> bool:
        call = self.steps.get(seq)
        if call is not None:
            return call.due == due and not self.reason
        if seq > 0:
            return seq in self.timers
        return due == (self.begins if seq == START else self.over_at) and not self.reason

    def _close_step(self, call: StepCall) -> None:
        del self.steps[call.seq]
        if call.due is None and call.is_local:
            self.in_steps -= 1

    def _track(self, event: AnyEvent) -> Operation | None:
        """Apply a fact to what is open; gives the operation that it is about, if that was open."""
        kind = type(event)
        if kind is StepCompleted or kind is events.StepFailed:
            call = self.steps.get(cast("StepCompleted", event).seq)
            if call is not None:
                self._close_step(call)
            return call
        if kind is StepRetrying:
            retrying = cast("StepRetrying", event)
            call = self.steps.get(retrying.seq)
            if call is not None:
                if call.due is None and call.is_local:
                    self.in_steps -= 1
                if not retrying.due:
                    self._postpone(call, retrying)
                    return call
                call.attempt = retrying.attempt + 1
                call.blamed = retrying.blamed
                if retrying.declined:
                    call.declined += 1
                elif retrying.failure.kind == WORKER_LOST:
                    call.lost += 1
                elif not call.since:
                    call.since = self.at - round(retrying.ms)
                call.details = retrying.details
                call.due = retrying.due
                self.plan(retrying.due, retrying.seq)
            return call
        if kind is TimerFired:
            return self.timers.pop(cast("TimerFired", event).seq, None)
        if kind is ChildCompleted or kind is events.ChildFailed:
            return self.children.pop(cast("ChildCompleted", event).seq, None)
        if kind is StepCancelled:  # only when no code runs
            call = self.steps.get(cast("StepCancelled", event).seq)
            if call is not None:
                self._close_step(call)
        elif kind in _OWN_TIMES:
            self._apply_own(cast("OwnTime", event))
        return None

    def _apply_own(self, event: OwnTime) -> None:
        """A fact about when the run's code begins, or when its time is over."""
        raise NotImplementedError

    def _postpone(self, call: StepCall, event: StepRetrying) -> None:
        """The attempt failed while the run was stuck: what follows is decided when it resumes."""
        if not call.since:
            call.since = self.at - round(event.ms)
        call.details = event.details
        call.due = UNDECIDED
        if self.postponed is None:
            self.postponed = {}
        self.postponed[event.seq] = event, self.at

    def _reopen(self, event: RunRetried) -> None:
        """The steps that are open begin again, with their next attempts, and may be tried as often as at first."""
        self._begin_again(event.attempts)
        self.seq = max(self.seq, event.seq)
        self.retried = self.generation
        asked = [self.children[seq] for seq in event.children if seq in self.children]
        self.again = event, {child.seq for child in asked if child.on_parent_end != "abandon"}

    def _begin_again(self, attempts: Sequence[tuple[int, int]]) -> None:
        for seq, attempt in attempts:
            call = self.steps.get(seq)
            if call is None:
                continue
            if call.due is not None and call.is_local:
                self.in_steps += 1
            call.attempt, call.due, call.since = attempt, None, 0
            call.lost, call.declined, call.blamed = 0, attempt - 1, False
            if self.live and call.step.known:
                self.effects.jobs.append(call.job())
        self.postponed = self.paused_by = None

    def unfit_call(self) -> str:
        """Why an open step can't be run by today's code; empty if each can."""
        for call in self.steps.values():
            if misfit := unfit(call):
                return (
                    f"step {call.step.name} (number {call.seq}) was called before a deploy, and doesn't fit now: "
                    f"{misfit}. Deploy code with parameters that fit, and the run continues."
                )
        return ""

    def _track_blindly(self, event: AnyEvent) -> None:
        """As `_track`, for a history whose code can't be run: decisions open placeholders, of which no attempt is
        started, because only the code knows with which options."""
        if isinstance(event, RunStarted):
            self._begin(event)
        elif isinstance(event, StepScheduled):
            step = self.app.steps.get(event.name) or missing_step(event.name)
            call = StepCall(step if (step.queue or "") == event.queue else step.options(queue=event.queue or None))
            call.seq, call.state, call.payload, call.args = event.seq, PENDING, event.args, None
            self.add_step(call)
        elif isinstance(event, TimerSet):
            timer = Sleep(0)
            timer.seq, timer.state = event.seq, PENDING
            self.add_timer(timer, event.due)
        elif isinstance(event, ChildStarted):
            self.children[event.seq] = self.open_child(event.seq, event.name, event.run_id, event.on_parent_end)
        elif isinstance(event, RunContinued):
            self._forget_open()
            self.started = event.started
            self.version = event.version
            self.generation = event.generation
            self.created = event.created
            self.went_on = self.at
            for seq, name, run_id in event.children:
                self.children[seq] = self.open_child(seq, name, run_id, "wait")
        else:
            self._track(event)
        self.seq = max(self.seq, getattr(event, "seq", 0))

    def open_child(self, seq: int, name: str, run_id: str, on_parent_end: str) -> ChildCall:
        """A child that is known from a record; no code waits for it."""
        child = ChildCall(self.app.workflows.get(name) or unknown_child(name))
        child.seq, child.state, child.run_id, child.args = seq, PENDING, run_id, None
        child.on_parent_end = on_parent_end
        return child

    def _forget_open(self) -> None:
        self.steps.clear()
        self.timers.clear()
        self.children.clear()
        if self.schedule is not None:
            self.schedule.clear()
        self.in_steps = 0

    def _stop_attempt(self, call: StepCall) -> None:
        """Nothing needs the step's current attempt, if there is one: stop it."""
        if call.step.queue is None:
            self.effects.own_besides().cancelled.append(call.seq)
        elif call.due is None or call.due <= self.clock:  # a due attempt may have been enqueued: no fact records that
            self.effects.own_besides().revoked.append(call.job())


def _awaited(key: str, waits: Sequence[SignalWait]) -> Awaited:
    dues = [wait.due for wait in islice(waits, MOST_WAITS) if wait.due]
    return Awaited(key, type_text(waits[0].type), min(dues, default=0))


def unfit(call: StepCall) -> str:
    """Why today's code can't run the step with the recorded arguments; empty if it can."""
    try:
        call.step.parameters.decode(call.payload)
    except UnfitArguments as error:
        return str(error)
    return ""


def unknown_child(name: str) -> Workflow[..., Any]:
    """Placeholder for the workflow of a child that this app doesn't register: its result is plain data."""

    async def placeholder(*, _: Any = None) -> Any: ...

    return Workflow(placeholder, name)
