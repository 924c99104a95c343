"""What can be awaited in a workflow: the life of an operation, fibers, and how an exception reaches one from outside.

Owns: `Operation`, `Fiber`, `Scope`, and what they need of a `Machine`. What is awaited is in `actions.py` (one thing)
and `concurrency.py` (several).
Must not: drive coroutines (`machine/coroutines.py` does), know redis or asyncio.
Called by: the machines begin, settle and cancel operations.

An operation is lazy: making one schedules nothing. It begins when the machine receives it from an `await`, or with what
holds it (`concurrency.py`); it is settled by a fact, once, with a value or an error; then it wakes whoever waits for
it.
A coroutine of user code is an operation too (a `Fiber`), so gathering coroutines and gathering steps is one thing.

When nobody waits for an operation any more it is cancelled: it takes back what it decided, and is settled with a
`Cancelled`; a fiber gets the exception at its current await and is settled when it has cleaned up.
"""

from __future__ import annotations

import contextvars
import random
from collections.abc import Coroutine, Generator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from streamflow.errors import Cancelled, UsageError

if TYPE_CHECKING:
    from streamflow.events import AnyEvent, AskAnswered, ChildStarted, SignalSent
    from streamflow.model.attributes import Attribute
    from streamflow.model.sharding import Partition
    from streamflow.workflow.actions import ChildCall, SignalSend, SignalWait, StepCall
    from streamflow.workflow.app import App

    D = TypeVar("D", bound=AnyEvent)

DEEP = 25
"""Fibers that wait for each other in one chain, of which the innermost is cancelled in one Python call from the
outermost. Below that they take turns: the chain may be as long as a program likes, the stack may not."""

NEW, PENDING, DONE = 0, 1, 2
"""States of an operation. A failed one is DONE and has an `error`."""


class Unwinding(BaseException):
    """Ends code that nobody wants to go on: its coroutine is put away, or its replay has diverged. No error of its own;
    like `KeyboardInterrupt`, which is the process's affair, it passes whatever catches those."""


UNWINDING = (Unwinding, GeneratorExit, KeyboardInterrupt)
"""What blocks of user code let pass without another decision."""

PASSING = (Unwinding, KeyboardInterrupt)
"""What no run ends with. Anything else that user code raises, of whatever base, ends that run alone."""


class Machine(Protocol):
    """What awaitables need of the machine that drives their run. `machine/` implements it; times are shard-clock ms."""

    run_id: str
    workflow: str
    tenant: str
    parent: str
    version: int
    generation: int
    at: int
    app: App
    partition: Partition
    children: dict[int, ChildCall]
    timers: dict[int, Operation]
    ready: list[Fiber]
    """Fibers that go on next, in this order."""
    current: Fiber | None
    cancelling: int
    too_deep: list[tuple[Fiber, Cancelled]]

    @property
    def events_before(self) -> int: ...
    @property
    def rng(self) -> random.Random: ...
    def now(self) -> datetime: ...
    def take_seq(self) -> int: ...
    def decide(self, event: D) -> D: ...
    def start(self, operation: Operation) -> None: ...
    def spawn(self, fiber: Fiber) -> None: ...
    def add_step(self, call: StepCall) -> None: ...
    def cancel_step(self, call: StepCall) -> None: ...
    def add_timer(self, operation: Operation, due: int) -> None: ...
    def add_child(self, call: ChildCall, event: ChildStarted) -> None: ...
    def take_message(self, wait: SignalWait) -> bool: ...
    def forget_wait(self, wait: SignalWait) -> None: ...
    def send(self, target: str, kind: str, body: object) -> None: ...
    def send_signal(self, operation: SignalSend, event: SignalSent) -> None: ...
    def answer(self, event: AskAnswered) -> None: ...
    def set_attributes(self, changes: dict[str, Attribute | None]) -> None: ...
    def publish(self, key: str, data: bytes) -> None: ...
    def patched(self, name: str) -> bool: ...
    def warn(self, text: str) -> None: ...


active: contextvars.ContextVar[Machine | None] = contextvars.ContextVar("streamflow_machine", default=None)
"""The machine whose user code runs right now in this thread; set once an advance. Never set it in what the garbage
collector may call (`__del__`): CPython 3.11 crashes when a variable is set in the midst of being set."""


def active_machine(what: str) -> Machine:
    """The machine whose user code calls `sf.<what>`. Raises `UsageError` outside a workflow."""
    machine = active.get()
    if machine is None:
        raise UsageError(f"sf.{what} works inside a workflow only, and this code was called outside of one")
    return machine


class Operation:
    """Base of all that can be awaited. `wake(operation, ready)` of each waiter is called when it is settled."""

    __slots__ = ("error", "seq", "state", "value", "waiter")

    def __init__(self) -> None:
        self.state = NEW
        self.seq = 0
        self.value: Any = None
        self.error: BaseException | None = None
        self.waiter: Operation | list[Operation] | None = None

    def __await__(self) -> Generator[Operation, None, Any]:
        if self.state != DONE:
            yield self
        error = self.error
        if error is None:
            return self.value
        try:
            raise error
        finally:  # its traceback has this frame: a cycle for each failure, that only the garbage collector would end
            del self, error

    def begin(self, machine: Machine) -> None:
        """Decide: take a number, record the decision. An error raised here is raised at the await."""
        raise NotImplementedError

    def join(self, waiter: Operation) -> None:
        """Let `waiter` be woken when this is settled. Almost always there is one, so one needs no list."""
        if self.waiter is None:
            self.waiter = waiter
        elif isinstance(self.waiter, list):
            self.waiter.append(waiter)
        else:
            self.waiter = [self.waiter, waiter]

    def leave(self, waiter: Operation) -> bool:
        """Undo one `join`; whether somebody else waits still."""
        if self.waiter is waiter:
            self.waiter = None
        elif isinstance(self.waiter, list) and waiter in self.waiter:
            self.waiter.remove(waiter)
        return bool(self.waiter)

    def let_go(self) -> None:
        """Its run is put away: what waits and what is waited for hold each other no more."""
        self.waiter = None

    def settle(self, value: Any, error: BaseException | None, ready: list[Fiber]) -> None:
        """Once, with a value or an error. Appends the fibers that can go on to `ready`."""
        self.state = DONE
        self.value = value
        self.error = error
        waiter = self.waiter
        if waiter is None:
            return
        self.waiter = None
        if isinstance(waiter, list):
            for one in waiter:
                one.wake(self, ready)
        else:
            waiter.wake(self, ready)

    def wake(self, settled: Operation, ready: list[Fiber]) -> None:
        raise NotImplementedError

    def cancel(self, cause: Cancelled, machine: Machine) -> None:
        """Nobody needs it any more. Settled now, or (fibers, and what holds some) as soon as it has cleaned up."""
        if self.state == PENDING:
            self.take_back(cause, machine)
        if self.state != DONE:
            self.settle(None, cause.again(), machine.ready)

    def take_back(self, cause: Cancelled, machine: Machine) -> None:
        """Undo what `begin` did."""

    def give_up(self, waiter: Operation, cause: Cancelled, machine: Machine) -> None:
        """`waiter` needs it no more: cancel it, unless somebody else waits, too. Wakes `waiter` when it is over."""
        if self.state == DONE:
            return
        if self.leave(waiter):
            waiter.wake(self, machine.ready)
        else:
            self.join(waiter)
            self.cancel(cause, machine)


class Fiber(Operation):
    """A coroutine of user code: the workflow itself, or a helper in a `gather`. Awaiting it joins it."""

    __slots__ = ("coroutine", "interrupts", "scopes", "waiting_on")

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        super().__init__()
        self.coroutine = coroutine
        self.waiting_on: Operation | None = None
        """None while it runs or is about to."""
        self.scopes: list[Scope] | None = None
        """The scopes whose blocks it is in, outermost first."""
        self.interrupts: list[BaseException] | None = None
        """Exceptions from outside that wait to be thrown: at the next await, or behind a shield."""

    def __del__(self) -> None:
        if self.state == NEW:  # made for something that was never awaited: Python need not warn of its coroutine, too
            self.coroutine.close()

    def begin(self, machine: Machine) -> None:
        self.state = PENDING
        machine.spawn(self)

    def wake(self, settled: Operation, ready: list[Fiber]) -> None:
        if self.waiting_on is settled:  # else it was woken already, with an interrupt
            self.waiting_on = None
            ready.append(self)

    def cancel(self, cause: Cancelled, machine: Machine) -> None:
        if self.state == NEW:
            self.coroutine.close()
            self.settle(None, cause.again(), machine.ready)
        elif self.state == PENDING:
            self._cancel_running(cause.again(), machine)

    def _cancel_running(self, cause: Cancelled, machine: Machine) -> None:
        """Interrupt it, which cancels the fibers that it waits for; those too deep when the outermost is done."""
        if machine.cancelling >= DEEP:
            machine.too_deep.append((self, cause))
            return
        machine.cancelling += 1
        try:
            self.interrupt(cause, machine)
            while machine.cancelling == 1 and machine.too_deep:
                fiber, later = machine.too_deep.pop()
                fiber.interrupt(later, machine)
        finally:
            machine.cancelling -= 1

    # --- exceptions from outside --------------------------------------------------------------------------------------

    def interrupt(self, error: BaseException, machine: Machine) -> None:
        """Throw `error` at the current await, whose operation is given up; at the next one if it runs; or behind the
        shield that it is in now. Cancelled twice from the same place, it gets one exception; a history that is too
        long and a cancel are two."""
        if self.state == DONE:
            return
        waiting = self.interrupts
        if waiting is None:
            waiting = self.interrupts = []
        source = source_of(error)
        if any(source_of(other) is source and type(other) is type(error) for other in waiting):
            return
        waiting.append(error)
        operation = self.waiting_on
        if operation is not None and operation.state != DONE and not self._is_shielded(error):
            cause = error if isinstance(error, Cancelled) else Cancelled(str(error))
            operation.give_up(self, cause, machine)

    def take_interrupt(self) -> BaseException | None:
        """What is to be thrown now: the one from the outermost scope first."""
        waiting = self.interrupts or ()
        open_ones = [error for error in waiting if not self._is_shielded(error)]
        if not open_ones:
            return None
        error = min(open_ones, key=self._depth)
        self.interrupts = [other for other in waiting if other is not error] or None
        return error

    def withdraw(self, source: Scope | None) -> None:
        """Its block has ended: an exception of that scope that wasn't thrown isn't needed any more."""
        if self.interrupts is not None:
            self.interrupts = [error for error in self.interrupts if source_of(error) is not source] or None

    def _depth(self, error: BaseException) -> int:
        """Position of its scope among ours; -1 for what comes from outside the fiber."""
        source = source_of(error)
        return self.scopes.index(source) if self.scopes and source is not None and source in self.scopes else -1

    def _is_shielded(self, error: BaseException) -> bool:
        scopes = self.scopes
        return scopes is not None and any(scope.is_shield for scope in scopes[self._depth(error) + 1 :])


class Scope:
    """A block of a fiber's code in which exceptions from outside mean something: a time-out, a task group, a shield."""

    is_shield = False

    def __init__(self) -> None:
        self.fiber: Fiber | None = None

    def enter(self, machine: Machine) -> Fiber:
        fiber = self.fiber = machine.current
        if fiber is None:
            raise UsageError(f"{type(self).__name__} works inside a workflow's own code only")
        if fiber.scopes is None:
            fiber.scopes = []
        fiber.scopes.append(self)
        return fiber

    def exit(self) -> None:
        fiber, self.fiber = self.fiber, None
        if fiber is not None and fiber.scopes is not None and self in fiber.scopes:
            fiber.scopes.remove(self)
            fiber.withdraw(self)

    def caused(self, error: BaseException | None) -> bool:
        """Whether `error` is this scope's own way to end its block."""
        return isinstance(error, Cancelled) and error.source is self


def source_of(error: BaseException) -> Scope | None:
    """The scope that interrupts with `error`; None for the run itself."""
    return cast("Scope | None", error.source) if isinstance(error, Cancelled) else None
