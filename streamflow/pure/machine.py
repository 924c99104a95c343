"""The trampoline: drives a workflow's coroutines, without an event loop, and replays histories.

Owns: fibers, signals, replay and the comparison of decisions; `new_machine` and `rehydrate`.
Must not: know clocks, I/O or event loops.
Called by: the owner, and whoever replays a history.

A fact settles an operation, which wakes the fibers that wait for it; each runs until it waits again. When none can go
on, the next fact is taken. So the order of decisions follows from the order of facts alone, and a replay, which feeds
the recorded facts, must see the recorded decisions.
"""

from __future__ import annotations

import atexit
from collections import deque
from typing import TYPE_CHECKING, Any, cast

from msgspec import Raw

from streamflow.pure.commands import SignalWait, StepJob, message_key
from streamflow.pure.definitions import App, Reducer, Workflow
from streamflow.pure.errors import (
    Cancelled,
    CancelledError,
    ContinueAs,
    Diverged,
    Failure,
    HistoryTooLong,
    PayloadInvalid,
    PayloadTooLarge,
    UsageError,
)
from streamflow.pure.errors import ChildFailed as ChildError
from streamflow.pure.errors import StepFailed as StepError
from streamflow.pure.events import (
    DECISIONS,
    ENDINGS,
    AnyEvent,
    AskAnswered,
    AskReceived,
    CancelRequested,
    ChildCompleted,
    ChildFailed,
    HistoryLimitReached,
    Patched,
    RunCancelled,
    RunContinued,
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
from streamflow.pure.operations import DONE, NEW, Fiber, Operation, active
from streamflow.pure.record import Header, Status
from streamflow.pure.reducing import ReducerMachine
from streamflow.pure.running import (
    HARD_EVENTS,
    MAX_EVENTS,
    Due,
    Effects,
    Ending,
    Input,
    Outcome,
    Outgoing,
    RunMachine,
)
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

USER_ERRORS = (Exception, SystemExit, GeneratorExit, CancelledError, ContinueAs)
"""What of user code ends its run. Other BaseExceptions (KeyboardInterrupt) are the process's own affair."""

_NEWS = (RunStarted, SignalReceived, AskReceived, StepCompleted, ChildCompleted, TimerFired)
"""Facts that user code is told as they are; of the others only failures."""

DISCARDS = 100
"""Awaits in `finally` blocks through which a coroutine is ended."""

LIVES_AT_ONCE = 1000
"""How often a run may continue as new within one transition: more is an endless loop."""


class _Divergence(BaseException):
    """Unwinds a replay. No `Exception`, so that it passes whatever catches the errors of user code."""

    def __init__(self, position: int, expected: str, found: str) -> None:
        super().__init__(expected, found)
        self.position = position
        self.expected = expected
        self.found = found


_abandoned: list[WorkflowMachine] = []
"""Machines that were dropped without `close`."""


def close_abandoned() -> None:
    """Close what was dropped with coroutines that wait: before the next advance, or when the process ends."""
    while _abandoned:
        _abandoned.pop().close()


atexit.register(close_abandoned)


class _Discarded(BaseException):
    """Ends coroutines that nobody waits for. Not `close()` and its `GeneratorExit`: one that awaits in a `finally`
    block would refuse that, and its inner coroutines would be left to the garbage collector."""


def _discard(coroutine: Any) -> None:
    """End it whatever it does. When it awaits in a `finally` block, it gets the exception there once more."""
    for _ in range(DISCARDS):
        try:
            coroutine.throw(_Discarded())
        except (_Discarded, *USER_ERRORS):
            return


class WorkflowMachine(RunMachine):
    __slots__ = (
        "__weakref__",
        "_asked",
        "_buffered",
        "_cancelling",
        "_fibers",
        "_held",
        "_limited",
        "_patches",
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
        self._buffered: dict[str, deque[SignalReceived | AskReceived]] | None = None
        """What came early, by `message_key`."""
        self._asked: dict[str, str] | None = None
        """Questions that the code took and didn't answer yet: id -> name."""
        self._patches: dict[str, bool] | None = None
        self._cancelling: CancelRequested | None = None
        """The request that the code is cleaning up for."""
        self._limited = False
        """The code was told that its history is too long."""
        self._recorded: list[AnyEvent] | None = None
        """The transition that is being replayed; None when live."""
        self._position = 0
        self._replayed = 0
        """Events of the history before that transition."""
        self._held: list[tuple[AnyEvent, Operation | None]] | None = None
        """Facts that came while the run was stuck, for when it goes on."""

    # --- driving user code ------------------------------------------------------------------------------------------

    def advance(self, inputs: list[Any], at: int) -> Effects:
        if _abandoned:
            close_abandoned()
        return super().advance(inputs, at)

    def _deliver(self, event: AnyEvent, operation: Operation | None, value: Any, error: Exception | None) -> None:
        if self.reason:
            return
        if self.ending is not None:
            self._end_if_alone()
            return
        if operation is not None:
            if operation.state == DONE:
                return
            if isinstance(operation, SignalWait):  # its timer fired
                self.forget_wait(operation)
                seconds = (operation.ms or 0) / 1000
                error = TimeoutError(f"no {operation.what} {operation.name} within {seconds:g} s")
            operation.settle(value, error, self.ready)
        elif isinstance(event, SignalReceived | AskReceived):
            self._message_arrived(event)
        elif isinstance(event, RunStarted):
            self._start_code(event.input)
        if self.ready:
            self._run()

    def _start_code(self, payload: Raw) -> None:
        definition = cast("Workflow[..., Any]", self.app.version(self.workflow, self.version))
        try:
            args, kwargs = definition.parameters.decode(payload)
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
        lives = 0
        while (root := self._root) is not None:
            ready = self.ready
            for fiber in ready:
                if fiber.state != DONE:
                    self._resume(fiber)
                    if root.state == DONE:
                        break
            ready.clear()
            if root.state != DONE:
                return
            error, root.error = root.error, None
            if error is None:
                self._complete(root.value)
            elif isinstance(error, ContinueAs):
                lives += 1
                self._continue(error, lives)
            elif self._cancelling is not None and isinstance(error, CancelledError):
                self._end_cancelled(self._cancelling.reason)
            else:
                self._fail(failure_of(outside_loop(error)))

    def _resume(self, fiber: Fiber) -> None:
        fiber.waiting_on = None
        self.current = fiber
        coroutine = fiber.coroutine
        try:
            interrupt = None if fiber.interrupts is None else fiber.take_interrupt()
            awaited: Any = coroutine.send(None) if interrupt is None else coroutine.throw(interrupt)
            while True:
                if not isinstance(awaited, Operation):
                    awaited = coroutine.throw(foreign_await(coroutine, awaited))
                    continue
                if fiber.interrupts is not None and (interrupt := fiber.take_interrupt()) is not None:
                    if awaited.state == NEW:
                        awaited.cancel(Cancelled(str(interrupt)), self)
                    awaited = coroutine.throw(interrupt)
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
        self._root = self._fibers = self._waits = self._buffered = self._asked = self.current = None
        self.ready.clear()
        if not fibers:
            return
        # A step called in a `finally` must give an operation, not run the plain function here; and decide nothing.
        token = active.set(cast("RunMachine", _Closing(self)))
        try:
            for fiber in fibers:
                fiber.state = DONE
                _discard(fiber.coroutine)
                fiber.waiting_on = fiber.scopes = (
                    None  # they hold each other, and a daemon looks for cycles very rarely
                )
        finally:
            active.reset(token)

    def __del__(self) -> None:
        # The garbage collector would close the coroutines with no machine active, and their `finally` blocks would run
        # steps as plain functions. Nor is this the moment to run user code: it may come in the midst of any other.
        if self._root is not None:
            _abandoned.append(self)

    # --- signals and questions --------------------------------------------------------------------------------------

    @property
    def awaited_messages(self) -> list[str]:
        return list(self._waits or ())

    def _message_arrived(self, event: SignalReceived | AskReceived) -> None:
        key = message_key(event)
        waits = self._waits.get(key) if self._waits else None
        for wait in waits or ():
            if self._give(event, wait):
                self.forget_wait(wait)
                if wait.seq:
                    self.timers.pop(wait.seq, None)
                return
            if isinstance(event, AskReceived):  # it is answered: no other wait may take it
                return
        if not waits:
            self._keep(key, event)

    def _keep(self, key: str, event: SignalReceived | AskReceived) -> None:
        if self._buffered is None:
            self._buffered = {}
        queue = self._buffered.get(key)
        if queue is None:
            queue = self._buffered[key] = deque()
        queue.append(event)

    def take_message(self, wait: SignalWait) -> bool:
        key = wait.key
        queue = self._buffered.get(key) if self._buffered else None
        while queue:
            if self._give(queue.popleft(), wait):
                return True
        if self._waits is None:
            self._waits = {}
        self._waits.setdefault(key, []).append(wait)
        return False

    def _give(self, event: SignalReceived | AskReceived, wait: SignalWait) -> bool:
        if not wait.accept(event, self):
            return False
        if isinstance(event, AskReceived):
            if self._asked is None:
                self._asked = {}
            self._asked[event.id] = event.name
        return True

    def answer(self, event: AskAnswered) -> None:
        if self._asked is not None:
            self._asked.pop(event.id, None)
        super().answer(event)

    def forget_wait(self, wait: SignalWait) -> None:
        key = wait.key
        if self._waits and wait in (waits := self._waits.get(key, [])):
            waits.remove(wait)
            if not waits:
                del self._waits[key]

    # --- cancelling, limits, a next life ------------------------------------------------------------------------------

    def _cancel(self, event: CancelRequested) -> None:
        if self._root is None:
            self._end_cancelled(event.reason)
            return
        self._cancelling = event
        self._interrupt(Cancelled(event.reason))

    def _interrupt(self, error: BaseException) -> None:
        if self._root is not None:
            self._root.interrupt(error, self)
            self._run()

    def _limit_history(self) -> None:
        count = self.events_count
        if count >= (HARD_EVENTS if self._limited else MAX_EVENTS):
            event = HistoryLimitReached(count)
            self.effects.events.append(event)
            self._limit_reached(event)

    def _limit_reached(self, event: HistoryLimitReached) -> None:
        error = HistoryTooLong(
            f"run {self.run_id} has a history of {event.count:,} events, and every one of them is read again when the "
            f"run moves. `raise sf.ContinueAs(…)` before {MAX_EVENTS:,}, or split the work among child runs."
        )
        if event.count >= HARD_EVENTS:
            self._fail(failure_of(error))
        else:
            self._limited = True
            self._interrupt(error)

    def _warn_of_history(self) -> None:
        self.effects.warnings.append(
            f"its history has {self.events_count:,} events; at {MAX_EVENTS:,} it is told to continue as new "
            "(sf.ContinueAs)"
        )

    def patched(self, name: str) -> bool:
        patches = self._patches
        if patches is None:
            patches = self._patches = {}
        known = patches.get(name)
        if known is None:
            known = patches[name] = self._is_recorded(name) if self._recorded is not None else True
            if known and self._recorded is None:
                self.effects.events.append(Patched(name))
        return known

    def _is_recorded(self, name: str) -> bool:
        """Whether the history has this patch here. Patches that the code doesn't ask for any more are passed over."""
        recorded = self._recorded or []
        for position in range(self._position, len(recorded)):
            event = recorded[position]
            if not isinstance(event, Patched):
                break
            if event.name == name:
                self._position = position + 1
                return True
        return False

    def _continue(self, error: ContinueAs, lives_now: int) -> None:
        """Begin anew under the same id. What was received and not taken comes along; all else is let go."""
        definition = cast("Workflow[..., Any]", self.app.workflows[self.workflow])
        if lives_now > LIVES_AT_ONCE:
            self._fail(Failure("UsageError", f"{self.workflow} continued as new {lives_now} times without any wait"))
            return
        try:
            payload = Raw(definition.parameters.encode(error.arguments, error.keywords))
        except (TypeError, PayloadInvalid, PayloadTooLarge) as invalid:
            self._fail(failure_of(invalid))
            return
        refusal = Failure("ContinuedAsNew", f"run {self.run_id} continued as new before it answered")
        for ask_id, name in list((self._asked or {}).items()):
            self.answer(AskAnswered(ask_id, name, failure=refusal))
        carried = [event for queue in (self._buffered or {}).values() for event in queue]
        waited_for = [call for call in self.children.values() if call.on_parent_end == "wait"]
        event = self.decide(
            RunContinued(
                self.workflow,
                self.tenant,
                payload,
                definition.version,
                self.seq,
                self.started,
                self.lives + 1,
                carried,
                [(call.seq, call.target.name, call.run_id) for call in waited_for],
            )
        )
        self._let_go("wait")
        self.children.clear()
        self.effects.fresh = True
        self._begin_life(event)

    def _begin_life(self, event: RunContinued) -> None:
        self.seq = event.seq
        self.started = event.started
        self.version = event.version
        self.lives = event.lives
        if self._recorded is None:
            self.events_count = 0
        self._rng = self._patches = self._cancelling = None
        self.attributes = None  # a replay of this life knows nothing of the ones before; the header has them all
        self._limited = False
        for one in event.carried:
            self._keep(message_key(one), one)
        for seq, name, run_id in event.children:
            self.children[seq] = self.open_child(seq, name, run_id, "wait")
        self._start_code(event.input)

    # --- replay -----------------------------------------------------------------------------------------------------

    def replay(self, transitions: list[Transition]) -> None:
        """Bring a fresh machine to the end of a history. A divergence parks it: see `diverged` and `reason`."""
        self.live = False
        self.events_count = sum(len(transition.events) for transition in transitions)
        if not self.reason and transitions:
            first = transitions[0].events[_first_position(transitions[0])]
            version = first.version if isinstance(first, RunStarted | RunContinued) else 0
            if self.app.version(self.workflow, version) is None:
                self.reason = self.app.unknown_version(self.workflow, version)
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
            self._position = 0 if self._replayed else _first_position(transition)
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
            if isinstance(following, CancelRequested) and isinstance(self._following(1), RunCancelled):
                self._held = None  # it was cancelled without its code, or its code did nothing about it
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
            self._begin_life(event)
            self._run()
        elif isinstance(event, Patched):
            pass  # by code that doesn't ask any more
        elif isinstance(event, (*DECISIONS, *ENDINGS, RunContinued)):
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
        if operation is None and not isinstance(event, (RunStarted, SignalReceived, AskReceived)):
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
        elif not isinstance(event, _NEWS):
            return  # a retry: no news for user code
        self._deliver(event, operation, value, error)

    def take_seq(self) -> int:
        if self._recorded is None:
            length = self.events_count + len(self.effects.events)
        else:
            length = self._replayed + self._position
        if length >= HARD_EVENTS:
            raise HistoryTooLong(
                f"run {self.run_id} has {length:,} events and can't decide more: split the work among child runs, or "
                "`raise sf.ContinueAs(…)` earlier"
            )
        self.seq = seq = self.seq + 1
        return seq

    @property
    def events_before(self) -> int:
        return self.events_count if self._recorded is None else self._replayed

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
        while isinstance(recorded := self._following(), Patched):
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
            raise _Divergence(self._position, expected, found)
        self._position += 1
        return cast("AnyEvent", recorded)

    def _following(self, further: int = 0) -> AnyEvent | None:
        recorded, position = self._recorded, self._position + further
        return recorded[position] if recorded is not None and position < len(recorded) else None

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
        for number, transition in enumerate(transitions):
            self.at = max(self.at, transition.at)
            for event in transition.events[0 if number else _first_position(transition) :]:
                if isinstance(event, RunStuck):
                    self.stuck = True
                elif isinstance(event, RunResumed):
                    self.stuck = False
                self._track_blindly(event)


def _first_position(transition: Transition) -> int:
    """Where the history begins in its first transition: at its last `RunContinued`, or at 0."""
    events = transition.events
    return next((i for i in range(len(events) - 1, 0, -1) if isinstance(events[i], RunContinued)), 0)


class _Closing:
    """Stands in for a machine while its coroutines are closed: it tells what it knows, and decides nothing."""

    REFUSED = frozenset({"decide", "take_seq", "start", "answer", "patched", "effects", "current", "send"})

    def __init__(self, machine: RunMachine) -> None:
        self._machine = machine

    def __getattr__(self, name: str) -> Any:
        if name in self.REFUSED:
            raise UsageError("this run has ended or is being put away: it decides nothing any more")
        return getattr(self._machine, name)


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
        machine.attributes = header.attributes  # nothing is replayed that would set them again
        machine.restore(state, transitions)
    else:
        cast("WorkflowMachine", machine).replay(transitions)
    return machine
