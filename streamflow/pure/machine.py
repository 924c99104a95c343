"""The trampoline: drives a workflow's coroutines, without an event loop, and replays histories.

Owns: fibers, signals, replay and the comparison of decisions; `new_machine` and `rehydrate`.
Must not: know clocks, I/O or event loops.
Called by: the owner, and whoever replays a history.

A fact settles an operation, which wakes the fibers that wait for it; each runs until it waits again. When none can go
on, the next fact is taken. So the order of decisions follows from the order of facts alone, and a replay, which feeds
the recorded facts, must see the recorded decisions.
"""

from __future__ import annotations

from asyncio import CancelledError
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from msgspec import Raw

from streamflow.pure.definitions import App, Reducer, Workflow
from streamflow.pure.errors import ChildFailed as ChildError
from streamflow.pure.errors import Diverged, Failure, PayloadInvalid
from streamflow.pure.errors import StepFailed as StepError
from streamflow.pure.events import (
    DECISIONS,
    AnyEvent,
    CancelRequested,
    ChildCompleted,
    ChildFailed,
    RunResumed,
    RunStarted,
    RunStuck,
    SignalReceived,
    StepCompleted,
    StepFailed,
    StepScheduled,
    TimerFired,
    Transition,
)
from streamflow.pure.failures import failure_of, foreign_await, outside_loop
from streamflow.pure.operations import DONE, NEW, Fiber, Operation, SignalWait, StepJob, active
from streamflow.pure.record import Header, Status
from streamflow.pure.reducing import ReducerMachine
from streamflow.pure.running import Due, Effects, Ending, Input, Outcome, Outgoing, RunMachine
from streamflow.pure.sharding import Partition

if TYPE_CHECKING:
    from streamflow.pure.running import D

__all__ = [
    "Due",
    "Effects",
    "Input",
    "Outcome",
    "Outgoing",
    "ReducerMachine",
    "RunMachine",
    "StepJob",
    "WorkflowMachine",
    "new_machine",
    "rehydrate",
]

USER_ERRORS = (Exception, SystemExit, GeneratorExit, CancelledError)
"""What of user code fails its run. Other BaseExceptions (KeyboardInterrupt) are the process's own affair."""


class _Divergence(BaseException):
    """Unwinds a replay. No `Exception`, so that it passes whatever catches the errors of user code."""

    def __init__(self, position: int, expected: str, found: str) -> None:
        super().__init__(expected, found)
        self.position = position
        self.expected = expected
        self.found = found


class WorkflowMachine(RunMachine):
    __slots__ = (
        "__weakref__",
        "_buffered",
        "_fibers",
        "_held",
        "_position",
        "_recorded",
        "_replayed",
        "_root",
        "_waits",
    )

    def __init__(self, app: App, partition: Partition, run_id: str, workflow: str = "") -> None:
        super().__init__(app, partition, run_id, workflow)
        self._root: Fiber | None = None
        self._fibers: dict[Fiber, None] | None = None
        """Helpers' fibers that are alive. A dict, because they are closed in the order in which they began."""
        self._waits: dict[str, list[SignalWait]] | None = None
        self._buffered: dict[str, list[Raw]] | None = None
        self._recorded: list[AnyEvent] | None = None
        """The transition that is being replayed; None when live."""
        self._position = 0
        self._replayed = 0
        """Events of the history before that transition."""
        self._held: list[tuple[AnyEvent, Operation | None]] | None = None
        """Facts that came while the run was stuck, for when it goes on."""

    # --- driving user code ------------------------------------------------------------------------------------------

    def _deliver(self, event: AnyEvent, operation: Operation | None, value: Any, error: Exception | None) -> None:
        if self.reason:
            return
        if operation is not None:
            if operation.state == DONE:
                return
            if type(operation) is SignalWait:  # its timer fired
                self._forget_wait(operation)
                error = TimeoutError(f"no signal {operation.name} within {(operation.ms or 0) / 1000:g} s")
            operation.settle(value, error, self.ready)
        elif isinstance(event, SignalReceived):
            self._signal_arrived(event)
        elif isinstance(event, RunStarted):
            self._start_code(event)
        if self.ready:
            self._run()

    def _start_code(self, event: RunStarted) -> None:
        definition = cast("Workflow[..., Any]", self.app.workflows[self.workflow])
        try:
            args, kwargs = definition.parameters.decode(event.input)
            coroutine = definition.function(*args, **kwargs)
        except USER_ERRORS as error:
            self._fail(failure_of(error))
            return
        self._root = Fiber(coroutine)
        self.start(self._root)

    def spawn(self, fiber: Fiber) -> None:
        if fiber is not self._root:
            if self._fibers is None:
                self._fibers = {}
            self._fibers[fiber] = None
        self.ready.append(fiber)

    def _run(self) -> None:
        """Run fibers until all of them wait. The list grows while they wake each other."""
        root = self._root
        assert root is not None
        ready = self.ready
        for fiber in ready:
            if fiber.state != DONE:
                self._resume(fiber)
                if root.state == DONE:
                    break
        ready.clear()
        if root.state == DONE:
            error = root.error
            if error is None:
                self._complete(root.value)
            else:
                root.error = None
                self._fail(failure_of(outside_loop(error)))

    def _resume(self, fiber: Fiber) -> None:
        fiber.waiting_on = None
        coroutine = fiber.coroutine
        try:
            awaited: Any = coroutine.send(None)
            while True:
                if not isinstance(awaited, Operation):
                    awaited = coroutine.throw(foreign_await(coroutine, awaited))
                    continue
                if awaited.state == NEW:
                    self.start(awaited)
                if awaited.state != DONE:
                    awaited.join(fiber)
                    fiber.waiting_on = awaited
                    return
                awaited = coroutine.send(None)
        except StopIteration as stop:
            value, error = stop.value, None
        except USER_ERRORS as raised:
            # Without its outermost frame, this one, the traceback keeps no reference to itself through `error`.
            value, error = None, raised.with_traceback(raised.__traceback__ and raised.__traceback__.tb_next)
        if self._fibers is not None:
            self._fibers.pop(fiber, None)
        fiber.settle(value, error, self.ready)

    def close(self) -> None:
        """Close the coroutines. Their `finally` blocks run, and what they try to decide there is refused."""
        fibers = [*(self._fibers or ()), *((self._root,) if self._root is not None else ())]
        self._root = self._fibers = self._waits = self._buffered = None
        self.ready.clear()
        if not fibers:
            return
        token = active.set(self)  # a step called in a `finally` must give an operation, not run the plain function here
        try:
            for fiber in fibers:
                fiber.state = DONE
                # "coroutine ignored GeneratorExit" means that it awaited; there is nobody to answer any more.
                with suppress(*USER_ERRORS):
                    fiber.coroutine.close()
                fiber.waiting_on = None  # they hold each other, and a daemon looks for cycles very rarely
        finally:
            active.reset(token)

    def __del__(self) -> None:
        # Without this the garbage collector would close the coroutines with no machine active, and their `finally`
        # blocks would run steps as plain functions.
        self.close()

    # --- signals ----------------------------------------------------------------------------------------------------

    @property
    def awaited_signals(self) -> list[str]:
        return list(self._waits or ())

    def _signal_arrived(self, event: SignalReceived) -> None:
        waits = self._waits.get(event.name) if self._waits else None
        if not waits:
            if self._buffered is None:
                self._buffered = {}
            self._buffered.setdefault(event.name, []).append(event.value)
            return
        for wait in waits:
            if self._fits(wait, event.value):
                self._forget_wait(wait)
                if wait.seq:
                    self.timers.pop(wait.seq, None)
                return

    def take_signal(self, wait: SignalWait) -> bool:
        queue = self._buffered.get(wait.name) if self._buffered else None
        while queue:
            if self._fits(wait, queue.pop(0)):
                return True
        if self._waits is None:
            self._waits = {}
        self._waits.setdefault(wait.name, []).append(wait)
        return False

    def _fits(self, wait: SignalWait, payload: Raw) -> bool:
        try:
            value = wait.decode(payload)
        except PayloadInvalid as error:
            self.effects.warnings.append(f"run {self.run_id} skipped a signal: {error}")
            return False
        wait.settle(value, None, self.ready)
        return True

    def _forget_wait(self, wait: SignalWait) -> None:
        if self._waits and wait in (waits := self._waits.get(wait.name, [])):
            waits.remove(wait)
            if not waits:
                del self._waits[wait.name]

    # --- cancelling -------------------------------------------------------------------------------------------------

    def _cancel(self, event: CancelRequested) -> None:
        self._end_cancelled(event.reason)

    # --- replay -----------------------------------------------------------------------------------------------------

    def replay(self, transitions: list[Transition]) -> None:
        """Bring a fresh machine to the end of a history. A divergence parks it: see `diverged` and `reason`."""
        self.live = False
        self.events_count = sum(len(transition.events) for transition in transitions)
        token = active.set(self)
        try:
            if not self.reason:
                self._replay(transitions)
        except _Divergence as divergence:
            number = self._replayed + divergence.position + 1
            self.diverged = Diverged(self.run_id, number, divergence.expected, divergence.found)
            self.reason = str(self.diverged)
        finally:
            active.reset(token)
        if self.reason:
            self._replay_blindly(transitions)
        self._recorded = None
        self.live = True
        self.effects = Effects()
        if not self.ended:
            self._set_open_status()

    def _replay(self, transitions: list[Transition]) -> None:
        for transition in transitions:
            self.at = max(self.at, transition.at)
            self.effects = Effects()
            events = self._recorded = transition.events
            self._position = 0
            while self._position < len(events):
                event = events[self._position]
                self._position += 1
                if self.ended:
                    raise _Divergence(self._position - 1, event.describe(), "end the run before")
                self._replay_event(event)
            self._replayed += len(events)

    def _replay_event(self, event: AnyEvent) -> None:
        following = self._following()
        if isinstance(event, RunStuck):
            self.stuck = True
        elif isinstance(event, RunResumed):
            self.stuck = False
            if isinstance(following, CancelRequested):
                self._held = None  # it was cancelled without its code
            else:
                self._resume_code()
        elif isinstance(event, CancelRequested):
            self._cancel(event)
        elif isinstance(event, (*DECISIONS, *_ENDINGS)):
            raise _Divergence(self._position - 1, self._expected(event), "nothing of the kind")
        else:
            if isinstance(event, RunStarted):
                self._begin(event)
            operation = self._track(event)
            if self.stuck or (isinstance(event, RunStarted) and isinstance(following, RunStuck)):
                if self._held is None:
                    self._held = []
                self._held.append((event, operation))
            else:
                self._deliver_recorded(event, operation, strict=True)

    def _resume_code(self) -> None:
        held, self._held = self._held or [], None
        for event, operation in held:
            self._deliver_recorded(event, operation, strict=False)
            if self.ended:
                return

    def _deliver_recorded(self, event: AnyEvent, operation: Operation | None, *, strict: bool) -> None:
        """`strict`: the run's own code took this fact when it came, so it must fit."""
        if operation is None and not isinstance(event, (RunStarted, SignalReceived)):
            if strict:
                raise _Divergence(self._position - 1, event.describe(), "wait for nothing of that number")
            return
        value: Any = None
        error: Exception | None = None
        try:
            if isinstance(event, (StepCompleted, ChildCompleted)):
                value = cast("Any", operation).decode_result(event.result)
        except PayloadInvalid as invalid:
            if strict:
                raise _Divergence(self._position - 1, event.describe(), f"refuse it: {invalid}") from invalid
            failure = Failure("PayloadInvalid", str(invalid))
            if isinstance(event, StepCompleted):
                error = StepError(event.name, event.attempt, failure)
            else:
                error = ChildError(cast("Any", operation).run_id, cast("ChildCompleted", event).name, failure)
        if isinstance(event, StepFailed):
            error = StepError(event.name, event.attempt, event.failure)
        elif isinstance(event, ChildFailed):
            error = ChildError(cast("Any", operation).run_id, event.name, event.failure)
        elif not isinstance(event, (RunStarted, SignalReceived, StepCompleted, ChildCompleted, TimerFired)):
            return  # a retry: no news for user code
        self._deliver(event, operation, value, error)

    def decide(self, event: D) -> D:
        if self._recorded is None:
            self.effects.events.append(event)
            return event
        return cast("D", self._compare(event))

    def record_ending(self, event: Ending) -> None:
        if self._recorded is None:
            self.effects.events.append(event)
        else:
            self._compare(event)

    def _compare(self, event: AnyEvent) -> AnyEvent:
        recorded = self._following()
        if (
            type(recorded) is not type(event)
            or getattr(recorded, "seq", 0) != getattr(event, "seq", 0)
            or getattr(recorded, "name", "") != getattr(event, "name", "")
        ):
            expected = "no further decision" if recorded is None else self._expected(recorded)
            found = event.describe()
            if (failure := getattr(event, "failure", None)) is not None:
                found = f"{found}: {failure}"
            raise _Divergence(self._position, expected, found)
        self._position += 1
        return cast("AnyEvent", recorded)

    def _following(self) -> AnyEvent | None:
        recorded = self._recorded
        return recorded[self._position] if recorded is not None and self._position < len(recorded) else None

    def _expected(self, event: AnyEvent) -> str:
        gone = isinstance(event, StepScheduled) and event.name not in self.app.steps
        return event.describe() + (", a step that is not registered any more" if gone else "")

    def _replay_blindly(self, transitions: list[Transition]) -> None:
        """Know what is open without running code, so that outcomes are still taken and timers fire."""
        self.close()
        self._forget_open()
        self._held = None
        self._rng = None
        self.seq = self.at = self.started = 0
        self.stuck = False
        self._recorded = []  # nothing that happens here takes effect
        for transition in transitions:
            self.at = max(self.at, transition.at)
            for event in transition.events:
                if isinstance(event, RunStuck):
                    self.stuck = True
                elif isinstance(event, RunResumed):
                    self.stuck = False
                self._track_blindly(event)


_ENDINGS = Ending.__args__


def new_machine(app: App, partition: Partition, run_id: str, workflow_name: str) -> RunMachine:
    """The machine of a run that has no history yet. For an unknown workflow it records that the run is stuck."""
    return _machine_for(app, partition, run_id, workflow_name, is_reducer=False)


def _machine_for(app: App, partition: Partition, run_id: str, workflow_name: str, *, is_reducer: bool) -> RunMachine:
    definition = app.workflows.get(workflow_name)
    is_reducer = is_reducer if definition is None else isinstance(definition, Reducer)
    machine = (ReducerMachine if is_reducer else WorkflowMachine)(app, partition, run_id, workflow_name)
    if definition is None:
        machine.reason = app.unknown_workflow(workflow_name)
    return machine


def rehydrate(
    app: App, partition: Partition, run_id: str, header: Header, state: bytes, transitions: list[Transition]
) -> RunMachine:
    """The machine of a run as its record tells. Never raises: what can't go on is parked, see `RunMachine.reason`."""
    machine = _machine_for(app, partition, run_id, header.workflow, is_reducer=bool(state))
    machine.tenant = header.tenant
    machine.parent = header.parent
    if not header.is_open:
        machine.status = Status(header.status)
        machine.ended = True
    elif isinstance(machine, ReducerMachine):
        machine.restore(state, transitions)
    else:
        cast("WorkflowMachine", machine).replay(transitions)
    return machine
