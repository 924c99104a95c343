"""The trampoline: drives a workflow's coroutines, without an event loop.

Owns: fibers, matching signals and questions with waits for them, cancelling, the limits of a history, patches, and how
a run continues as new. Must not: know clocks, I/O or event loops; replay (`replay.py` does).
Called by: `replay.py`, which adds the replay.

A fact settles an operation, which wakes the fibers that wait for it; each runs until it waits again. When none can
continue, the next fact is taken. So the order of decisions follows from the order of facts alone.
"""

from __future__ import annotations

import atexit
import heapq
import weakref
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, TypeVar, cast

from msgspec import Raw

from streamflow import events
from streamflow.errors import (
    Cancelled,
    CancelledError,
    ContinueAs,
    Failure,
    HistoryTooLong,
    PayloadInvalid,
    PayloadTooLarge,
    RunTimedOut,
    UsageError,
)
from streamflow.events import (
    NOTHING,
    AnyEvent,
    AskAnswered,
    AskReceived,
    CancelRequested,
    HistoryLimitReached,
    Patched,
    RunContinued,
    RunStarted,
    SignalReceived,
    StartDue,
    TimeoutReached,
)
from streamflow.machine.open_work import UNTAKEN_NAMES
from streamflow.machine.own_times import over_text
from streamflow.machine.run import EVENTS_CONTINUE, EVENTS_FAIL, RunMachine
from streamflow.machine.sealed import sealed
from streamflow.model.bugs import as_old_as, note_born
from streamflow.model.codec import UnfitArguments
from streamflow.model.failures import failure_of, foreign_await, outside_loop, without_outermost_frame
from streamflow.model.sharding import Partition
from streamflow.text import is_a
from streamflow.workflow.actions import SignalWait, message_key
from streamflow.workflow.app import App, Workflow
from streamflow.workflow.awaitable import (
    DONE,
    NEW,
    PASSING,
    PENDING,
    Fiber,
    Operation,
    Unwinding,
    active,
    ends_process,
    foreign,
)

T = TypeVar("T")

DISCARDS = 100
"""How often a coroutine that awaits in `finally` blocks gets the exception that ends it."""

UNTAKEN_BYTES = 3 * 1024 * 1024
"""Of the messages that a generation has never waited for, so many bytes are carried over to the next one..."""
UNTAKEN_OVERHEAD = 100
"""...where each counts this much more than its value."""

GENERATIONS_AT_ONCE = 1000
"""How often a run may continue as new within one transition: more is considered an endless loop."""


_abandoned: list[CoroutineMachine] = []
"""Machines that were garbage-collected before `close` was called."""


def close_abandoned() -> None:
    """Close the coroutines of machines that were dropped: before the next batch, and when the process ends."""
    while _abandoned:
        _abandoned.pop().close()


atexit.register(close_abandoned)


class _Discarded(Unwinding):
    """Ends coroutines that nothing waits for. Not `close()` and its `GeneratorExit`: a coroutine that awaits in a
    `finally` block would refuse that, and its inner coroutines would be left to the garbage collector."""


# User code is resumed from generators that never end, and have no caller while they wait: what keeps a frame of user
# code keeps nothing else. For an exception keeps the frames that it left, and since CPython 3.12 the frame of a
# coroutine that has ended keeps its caller's, that one its own caller's, and each its local variables: the machine, the
# batch, the owner. An error that an operation of the run keeps would be a cycle with all of that, which only the
# garbage collector frees; and a daemon runs it rarely.


def _discarding() -> Generator[None, Any]:
    """Ends each coroutine that is sent to it. If it awaits in a `finally` block, the exception is thrown again."""
    while True:
        coroutine = yield
        for _ in range(DISCARDS):
            try:
                coroutine.throw(_Discarded())
            except BaseException as error:
                if ends_process(error):
                    raise
                break
        coroutine = None


def _send_to(generator: Generator[None, T]) -> Callable[[T], None]:
    next(generator)
    return generator.send


# Lists, because user code may run or close another machine, and so may several threads. After an exception that
# passes, a generator has ended and isn't put back.
_resume_ready: list[Callable[[CoroutineMachine], None]] = []
_discard_one: list[Callable[[Any], None]] = []


def _discard(coroutine: Any) -> None:
    discard = _discard_one.pop() if _discard_one else _send_to(_discarding())
    discard(coroutine)
    _discard_one.append(discard)


class CoroutineMachine(RunMachine):
    """A run whose code is coroutines, live."""

    __slots__ = (
        "__weakref__",
        "_asked",
        "_buffered",
        "_cancelling",
        "_fibers",
        "_finalizers",
        "_input",
        "_limited",
        "_patches",
        "_root",
        "_waited",
    )

    replays = True

    def __init__(self, app: App, partition: Partition, run_id: str, workflow: str = "") -> None:
        super().__init__(app, partition, run_id, workflow)
        self._root: Fiber | None = None
        self._fibers: dict[Fiber, None] | None = None
        """Fibers of helpers that have not ended. A dict, because they are closed in the order in which they began."""
        self._buffered: dict[str, deque[SignalReceived | AskReceived]] | None = None
        """Messages that no code has waited for yet, by `message_key`."""
        self._waited: set[str] | None = None
        """The keys of all messages that the code has waited for in this generation."""
        self._asked: dict[str, str] | None = None
        """Questions that the code has received and not answered yet: id -> name."""
        self._patches: dict[str, bool] | None = None
        self._cancelling: CancelRequested | TimeoutReached | None = None
        """That because of which the code is cleaning up."""
        self._finalizers: set[Fiber] | None = None
        """Async generators that were left early and whose `finally` blocks run: the run ends after them."""
        self._limited = False
        """`HistoryTooLong` was raised in the code."""
        self._input = NOTHING
        """Of a run whose code has not begun."""

    @property
    def _length(self) -> int:
        """Number of events in the history so far, including the current transition."""
        return self.events_count + len(self.effects.events)

    def take_seq(self) -> int:
        if self.events_count + len(self.effects.events) >= EVENTS_FAIL and self._length >= EVENTS_FAIL:
            raise HistoryTooLong(
                f"run {self.run_id} has {self._length:,} events and can't make more decisions: split the work among "
                "child runs, or `raise sf.ContinueAs(…)` earlier"
            )
        self.seq = seq = self.seq + 1
        return seq

    # --- driving user code ------------------------------------------------------------------------------------------

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
            if self.begins:
                self._input = event.input
            else:
                self._start_code(event.input)
        elif isinstance(event, StartDue):
            payload, self._input = self._input, NOTHING
            self._start_code(payload)
        if self.ready:
            self._run()

    def _start_code(self, payload: Raw) -> None:
        definition = cast("Workflow[..., Any]", self.app.version(self.workflow, self.version))
        try:
            args, kwargs = definition.parameters.decode(payload)
            coroutine = definition.function(*args, **kwargs)
        except PASSING:
            raise
        except UnfitArguments as error:
            self._fail(Failure("PayloadInvalid", str(error)))
            return
        except BaseException as error:
            self._fail_or_park(error)
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
        generations = 0
        undelivered: CancelRequested | TimeoutReached | None = None
        while (root := self._root) is not None:
            resume_ready = _resume_ready.pop() if _resume_ready else _send_to(self._resuming())
            resume_ready(self)
            _resume_ready.append(resume_ready)
            self.ready.clear()
            if root.state != DONE or self._is_finalizing():
                break
            error, root.error = root.error, None
            if error is None:
                self._complete(root.value)
            elif is_a(error, ContinueAs):
                generations += 1
                pending = root.interrupts or ()
                if any(isinstance(interrupt, Cancelled) and interrupt.source is None for interrupt in pending):
                    undelivered = self._cancelling
                self._continue(cast("ContinueAs", error), generations)
            elif self._cancelling is not None and is_a(error, CancelledError):
                self._end_interrupted(self._cancelling)
            else:
                wanted = self._cancelling is not None or undelivered is not None or self._limited
                self._fail_or_park(as_old_as(outside_loop(error), error), may_park=not wanted)
        if undelivered is not None and self._root is not None:
            # The previous generation was shielded until its end: it is raised at the first await of the current one.
            self.effects.events.append(undelivered)
            if isinstance(undelivered, CancelRequested):
                self._cancel_requested(undelivered)
            else:
                self._track(undelivered)
                self._timed_out(undelivered)

    def finalize(self, generator: Any) -> None:
        """Run the `finally` blocks of an async generator that was left early, beside the code that left it."""
        if self._root is None:  # the run is being closed: the blocks run, and what they try to decide is refused
            _discard(generator.aclose())
            return
        fiber = Fiber(generator.aclose())
        fiber.state = PENDING
        if self._finalizers is None:
            self._finalizers = set()
        self._finalizers.add(fiber)
        self.spawn(fiber)

    def _is_finalizing(self) -> bool:
        finalizers = self._finalizers
        if finalizers is None:
            return False
        finalizers.difference_update([fiber for fiber in finalizers if fiber.state == DONE])
        if not finalizers:
            self._finalizers = None
        return bool(finalizers)

    @staticmethod
    def _resuming() -> Generator[None, CoroutineMachine]:
        """Resumes the ready fibers of each machine that is sent to it, until all wait or the workflow has ended."""
        machine: CoroutineMachine | None
        root: Fiber | None
        fiber: Fiber | None
        awaited: Any
        while True:
            machine = yield
            root = machine._root
            for fiber in machine.ready:
                if fiber.state == DONE:
                    continue
                fiber.waiting_on = None
                machine.current = fiber
                coroutine = fiber.coroutine
                try:
                    interrupt = None if fiber.interrupts is None else fiber.take_interrupt()
                    awaited = coroutine.send(None) if interrupt is None else coroutine.throw(interrupt)
                    while True:
                        if not isinstance(awaited, Operation):
                            awaited = coroutine.throw(foreign_await(coroutine, awaited))
                            continue
                        if awaited is fiber:
                            error = UsageError("a helper awaits its own result, and would wait forever")
                            awaited = coroutine.throw(error)
                            continue
                        if fiber.interrupts is not None and (interrupt := fiber.take_interrupt()) is not None:
                            if awaited.state == NEW:
                                awaited.cancel(Cancelled(str(interrupt)), machine)
                            awaited = coroutine.throw(interrupt)
                            continue
                        if awaited.state == NEW:
                            machine.start(awaited)
                        elif awaited.home is not machine.ready and awaited.home is not None:
                            awaited = coroutine.throw(foreign(awaited))
                            continue
                        if awaited.state != DONE:
                            awaited.join(fiber)
                            fiber.waiting_on = awaited
                            break
                        awaited = coroutine.send(None)
                    continue
                except StopIteration as stop:
                    value, error = stop.value, None
                except PASSING:
                    raise
                except BaseException as raised:
                    # Without its outermost frame, this one, the traceback doesn't refer to itself through `error`.
                    value, error = None, without_outermost_frame(raised)
                    note_born(error, machine.events_before)  # it may be raised again in a later transition
                if machine._fibers is not None:
                    machine._fibers.pop(fiber, None)
                fiber.settle(value, error, machine.ready)
                value = error = None
                if root is None or (root.state == DONE and machine._finalizers is None):
                    break
            # If a frame of a coroutine is kept, this one is, too: it must not hold what keeps the exception.
            machine = root = fiber = coroutine = awaited = interrupt = None

    def close(self) -> None:
        """Close the coroutines. Their `finally` blocks run, but can't make decisions."""
        fibers = list(self._fibers or ())
        root = self._root
        if root is not None:
            if root.state == DONE:  # it has ended by itself: no code is left to run
                root.let_go()
                root.waiting_on = root.scopes = None
            else:
                fibers.append(root)
        self._root = self._fibers = self._waits = self._buffered = self._asked = None
        self.current: Fiber | None = None
        self.ready.clear()
        self.too_deep: list[tuple[Fiber, Cancelled]] | None = None
        if fibers:
            sealed(self.context, self._close, fibers)

    def _close(self, fibers: list[Fiber]) -> None:
        # A step that is called in a `finally` must give an operation, and neither run the plain function nor decide.
        token = active.set(cast("RunMachine", _Closing(self)))
        try:
            for fiber in fibers:
                fiber.state = DONE
                # They refer to each other, and a daemon collects cycles very rarely.
                if fiber.waiting_on is not None:
                    fiber.waiting_on.let_go()
                _discard(fiber.coroutine)
                fiber.let_go()
                fiber.waiting_on = fiber.scopes = None
        finally:
            active.reset(token)

    def __del__(self) -> None:
        # The garbage collector would close the coroutines with no machine active, and their `finally` blocks would run
        # steps as plain functions. And user code must not run here: this may be called in the middle of any other code.
        if self._root is not None:
            _abandoned.append(self)

    def _cancel_requested(self, event: CancelRequested) -> None:
        super()._cancel_requested(event)
        if self.ending is not None:  # its code has ended, but it waits for children: it was cancelled all the same
            self._cancelling = event

    @property
    def is_cancelling(self) -> bool:
        return isinstance(self._cancelling, CancelRequested)

    # --- signals and questions --------------------------------------------------------------------------------------

    @property
    def awaited_messages(self) -> list[str]:
        return list(self._waits or ())

    def untaken_signals(self) -> dict[str, int]:
        untaken: dict[str, int] = {}
        for key, queue in (self._buffered or {}).items():
            if not key.startswith("?") and len(untaken) < UNTAKEN_NAMES:
                untaken[key] = len(queue)
        return untaken

    def _message_arrived(self, event: SignalReceived | AskReceived) -> None:
        key = message_key(event)
        waits = self._waits.get(key) if self._waits else None
        for wait in waits or ():
            if self._deliver_message(event, wait):
                self.forget_wait(wait)
                if wait.seq:
                    self.timers.pop(wait.seq, None)
                return
            if isinstance(event, AskReceived):  # it is refused, which answers it: no other wait may take it
                return
        if not waits:
            self._buffer(key, event)

    def _buffer(self, key: str, event: SignalReceived | AskReceived) -> None:
        if self._buffered is None:
            self._buffered = {}
        queue = self._buffered.get(key)
        if queue is None:
            queue = self._buffered[key] = deque()
        queue.append(event)

    def take_message(self, wait: SignalWait) -> bool:
        key = wait.key
        if self._waited is None:
            self._waited = set()
        self._waited.add(key)
        queue = self._buffered.get(key) if self._buffered else None
        while queue:
            event = queue.popleft()
            if not queue and self._buffered:  # else the dict would grow: a run may use any number of names
                del self._buffered[key]
            if self._deliver_message(event, wait):
                return True
        if self._waits is None:
            self._waits = {}
        self._waits.setdefault(key, []).append(wait)
        return False

    def _deliver_message(self, event: SignalReceived | AskReceived, wait: SignalWait) -> bool:
        if not wait.accept(event, self):
            return False
        if isinstance(event, AskReceived):
            if self._asked is None:
                self._asked = {}
            self._asked[event.id] = event.name
        return True

    def answer(self, event: AskAnswered, result: object = None) -> None:
        if self._asked is not None:
            self._asked.pop(event.id, None)
        super().answer(event, result)

    def forget_wait(self, wait: SignalWait) -> None:
        key = wait.key
        if self._waits and wait in (waits := self._waits.get(key, [])):
            waits.remove(wait)
            if not waits:
                del self._waits[key]

    def _drop_untaken(self) -> dict[str, int]:
        """Drop messages that no code has waited for in this generation, if they are so many that they would be carried
        on forever: of the name that takes most bytes the oldest. Returns how many, by name."""
        queues = {key: queue for key, queue in (self._buffered or {}).items() if key not in (self._waited or ())}
        largest = [(-sum(map(_weight, queue)), key) for key, queue in queues.items()]
        excess = -sum(size for size, _ in largest) - UNTAKEN_BYTES
        dropped: dict[str, int] = {}
        heapq.heapify(largest)
        while excess > 0:
            size, key = largest[0]
            message = queues[key].popleft()
            weight = _weight(message)
            excess -= weight
            heapq.heapreplace(largest, (size + weight, key))
            dropped[message.name] = dropped.get(message.name, 0) + 1
            if isinstance(message, AskReceived):
                text = f"run {self.run_id} has continued as new without waiting for {message.name}"
                self.answer(AskAnswered(message.id, message.name, failure=Failure("ContinuedAsNew", text)))
        if dropped:
            counts = ", ".join(f"{count:,} x {name}" for name, count in sorted(dropped.items()))
            self.warn(
                f"it continues as new, and its oldest signals and questions that it has never waited for in this "
                f"generation are dropped, since they take more than {UNTAKEN_BYTES >> 20} MB: {counts}",
            )
        return dropped

    # --- cancelling, limits, continuing as new ------------------------------------------------------------------------

    def _may_time_out(self) -> bool:
        return self._cancelling is None and not self._limited

    def _interrupt_for(self, event: TimeoutReached) -> None:
        self._cancelling = event
        self._interrupt(Cancelled(over_text(event)))

    def _end_interrupted(self, why: CancelRequested | TimeoutReached) -> None:
        if isinstance(why, CancelRequested):
            self._end_cancelled(why.reason)
        else:
            self._fail(Failure(RunTimedOut.__name__, over_text(why)))

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
        if count >= (EVENTS_FAIL if self._limited or self.ending is not None else EVENTS_CONTINUE):
            event = HistoryLimitReached(count)
            self.effects.events.append(event)
            self._limit_reached(event)

    def _limit_reached(self, event: HistoryLimitReached) -> None:
        error = HistoryTooLong(
            f"run {self.run_id} has a history of {event.count:,} events, and a replay reads all of them. "
            f"`raise sf.ContinueAs(…)` before {EVENTS_CONTINUE:,} events, or split the work among child runs."
        )
        if event.count >= EVENTS_FAIL:  # at once, also if it has children that it should wait for
            self._end_now(events.RunFailed(self.workflow, self.tenant, self.at - self.started, failure_of(error)))
        else:
            self._limited = True
            self._interrupt(error)

    def _warn_of_history(self) -> None:
        self.warn(
            f"its history has {self.events_count:,} events; at {EVENTS_CONTINUE:,} sf.HistoryTooLong is raised in its "
            "code, which must then continue as new (sf.ContinueAs)",
        )

    def patched(self, name: str) -> bool:
        patches = self._patches
        if patches is None:
            patches = self._patches = {}
        known = patches.get(name)
        if known is None:
            known = patches[name] = self._is_patched(name)
        return known

    def _is_patched(self, name: str) -> bool:
        """For the first time in this generation."""
        self.effects.events.append(Patched(name))
        return True

    def _continue(self, error: ContinueAs, count: int) -> None:
        """Continue as new, for the `count`th time in this transition. Messages that no code has taken are carried over;
        everything else is stopped."""
        definition = cast("Workflow[..., Any]", self.app.workflows[self.workflow])
        if count > GENERATIONS_AT_ONCE:
            self._fail(Failure("UsageError", f"{self.workflow} continued as new {count} times without waiting"))
            return
        try:
            payload = Raw(definition.parameters.encode(error.arguments, error.keywords))
        except (TypeError, PayloadInvalid, PayloadTooLarge) as invalid:
            self._fail(failure_of(invalid))
            return
        refusal = Failure("ContinuedAsNew", f"run {self.run_id} continued as new before it answered")
        for ask_id, name in list((self._asked or {}).items()):
            self.answer(AskAnswered(ask_id, name, failure=refusal))
        dropped = self._drop_untaken()
        carried = [event for queue in (self._buffered or {}).values() for event in queue] + self.take_late()
        awaited_children = [call for call in self.children.values() if call.on_parent_end == "wait"]
        event = self.decide(
            RunContinued(
                self.workflow,
                self.tenant,
                payload,
                definition.version,
                self.seq,
                self.started,
                self.generation + 1,
                carried,
                [(call.seq, call.target.name, call.run_id) for call in awaited_children],
                self.created,
                dropped,
            )
        )
        self._let_go("wait")
        self.children.clear()
        besides = self.effects.own_besides()
        besides.closed, besides.restate = [], False  # the new generation has nothing of it
        besides.fresh = True
        self.events_count = 0
        self._begin_generation(event)

    def take_late(self) -> list[SignalReceived | AskReceived]:
        """The messages that were recorded while the run was stuck, and that its code hasn't got yet. They are lost with
        the record of this generation, unless the next one has them; other facts were for this one."""
        return []

    def _begin_generation(self, event: RunContinued) -> None:
        self.seq = event.seq
        self.started = event.started
        self.version = event.version
        self.generation = event.generation
        self.created = event.created
        self.went_on = self.at
        self._rng = self._patches = self._cancelling = self._waited = None
        self.attributes = None  # a replay of this generation doesn't see the previous ones; the header has them all
        self._limited = False
        for message in event.carried:
            self._buffer(message_key(message), message)
        for seq, name, run_id in event.children:
            self.children[seq] = self.open_child(seq, name, run_id, "wait")
        self._carry_time()
        self._start_code(event.input)


def _weight(message: SignalReceived | AskReceived) -> int:
    return len(message.value) + UNTAKEN_OVERHEAD


class _Closing:
    """Replaces a machine while its coroutines are closed: it can be read, and refuses decisions."""

    REFUSED = frozenset({"decide", "take_seq", "start", "answer", "patched", "effects", "current", "send", "forgotten"})

    def __init__(self, machine: CoroutineMachine) -> None:
        # An error that code keeps has frames which have this object: they must not hold the machine, too.
        self._machine = weakref.ref(machine)

    def __getattr__(self, name: str) -> Any:
        if name not in self.REFUSED and (machine := self._machine()) is not None:
            return getattr(machine, name)
        raise UsageError("this run has ended or is being evicted: its finally blocks can't start steps or timers")
