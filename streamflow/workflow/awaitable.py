"""What can be awaited in a workflow: the states of an operation, fibers, and interruptions from outside.

Owns: `Operation`, `Fiber`, `Scope`, and what they need of a `Machine`. The operations themselves are in `actions.py`
(single ones) and `concurrency.py` (combinations).
Must not: drive coroutines (`machine/coroutines.py` does), know redis or asyncio.
Called by: the machines begin, settle and cancel operations.

An operation is lazy: making one schedules nothing. It begins when the machine receives it from an `await`, or together
with the combinator that holds it (`concurrency.py`). A fact settles it, once, with a value or an error; then it wakes
its waiters.
A coroutine of user code is an operation too (a `Fiber`), so gathering coroutines and gathering steps work the same.

When nothing waits for an operation any more it is cancelled: it undoes its decision, and is settled with a `Cancelled`.
A fiber gets the exception at its current await, and is settled when it has cleaned up.
"""

from __future__ import annotations

import contextvars
import functools
import random
import signal
import sys
from collections.abc import Coroutine, Generator
from datetime import datetime
from sys import exception
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from streamflow.errors import Cancelled, Failure, UsageError
from streamflow.model.bugs import note_born
from streamflow.text import is_a, text_of

if TYPE_CHECKING:
    from streamflow.errors import PayloadInvalid
    from streamflow.events import AnyEvent, AskAnswered, AskReceived, ChildStarted, SignalReceived, SignalSent
    from streamflow.model.attributes import Attribute
    from streamflow.model.sharding import Partition
    from streamflow.workflow.actions import ChildCall, SignalSend, SignalWait, StepCall
    from streamflow.workflow.app import App
    from streamflow.workflow.recording import Record

    D = TypeVar("D", bound=AnyEvent)

DEEP = 25
"""Fibers of a chain, each waiting for the next, that are cancelled in nested Python calls. Those further down are
cancelled after them, one at a time: a chain may have any length, the stack may not."""

NEW, PENDING, DONE = 0, 1, 2
"""States of an operation. A failed one is DONE and has an `error`."""


class Unwinding(BaseException):
    """Ends code that must not continue: its machine is evicted, or its replay has diverged. Not an error of the run:
    like `KeyboardInterrupt`, which concerns the process, it passes everything that catches errors of user code."""


class Interrupted(Unwinding):
    """Raised by the watch in code that doesn't give way: the run is parked. The text says why."""


class Bug(Unwinding):
    """Raised by a machine whose code has ended with a bug (`model/bugs.py`): nothing of this transition counts, and the
    run is parked. It unwinds no code of the run's, which has ended."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure


UNWINDING = (Unwinding, GeneratorExit, KeyboardInterrupt)
"""Exceptions that blocks (time-outs, groups, sagas) let pass without making a decision."""

PASSING = (Unwinding, KeyboardInterrupt)
"""Exceptions that don't end a run. Any other that user code raises, of whatever base class, ends that run only."""


def ends_process(error: BaseException) -> bool:
    """Whether it is Ctrl-C. Where neither Python nor `asyncio.run` handles SIGINT, but a daemon does, only user code
    raises KeyboardInterrupt, and that concerns its run only."""
    if not is_a(error, KeyboardInterrupt):
        return False
    handler = signal.getsignal(signal.SIGINT)
    return handler is signal.default_int_handler or isinstance(handler, functools.partial)  # the latter: asyncio.run's


class Machine(Protocol):
    """What awaitables need from the machine that drives their run. `machine/` implements it. Times: shard-clock ms."""

    run_id: str
    workflow: str
    tenant: str
    parent: str
    created: int
    version: int
    generation: int
    live: bool
    """False during a replay."""
    at: int
    clock: int
    """The owner's time: `at`, or earlier. Timers go by it."""
    app: App
    partition: Partition
    children: dict[int, ChildCall]
    timers: dict[int, Operation]
    ready: list[Fiber]
    """Fibers that run next, in this order."""
    current: Fiber | None
    cancelling: int
    too_deep: list[tuple[Fiber, Cancelled]] | None

    @property
    def events_before(self) -> int: ...
    @property
    def rng(self) -> random.Random: ...
    def now(self) -> datetime: ...
    def take_seq(self) -> int: ...
    def decide(self, event: D, value: object = None) -> D: ...
    def start(self, operation: Operation) -> None: ...
    def spawn(self, fiber: Fiber) -> None: ...
    def finalize(self, generator: Any) -> None: ...
    def add_step(self, call: StepCall) -> None: ...
    def cancel_step(self, call: StepCall) -> None: ...
    def add_timer(self, operation: Operation, due: int) -> None: ...
    def drop_timer(self, seq: int) -> None: ...
    def drop_child(self, seq: int) -> None: ...
    def add_child(self, call: ChildCall, event: ChildStarted) -> None: ...
    def take_message(self, wait: SignalWait) -> bool: ...
    def forget_wait(self, wait: SignalWait) -> None: ...
    def cancel_child(self, child: ChildCall, reason: str) -> None: ...
    def send_signal(self, operation: SignalSend, event: SignalSent) -> None: ...
    def answer(self, event: AskAnswered, result: object = None) -> None: ...
    def skip_signal(self, event: SignalReceived, error: PayloadInvalid) -> None: ...
    def was_refused(self, event: SignalReceived | AskReceived) -> bool: ...
    def set_attributes(self, changes: dict[str, Attribute | None]) -> None: ...
    def publish(self, key: str, data: bytes) -> None: ...
    def record(self, record: Record) -> None: ...
    def patched(self, name: str) -> bool: ...
    def warn(self, text: str) -> None: ...
    def forgotten(self, what: str, names: tuple[str, ...], frame: FrameType | None) -> None: ...


active: contextvars.ContextVar[Machine | None] = contextvars.ContextVar("streamflow_machine", default=None)
"""The machine whose user code runs now in this thread; set once an advance. Never set it in code that the garbage
collector may call (`__del__`): CPython 3.11 crashes when a variable is set while it is being set."""


def active_machine(what: str) -> Machine:
    """The machine whose user code calls `sf.<what>`. Raises `UsageError` outside a workflow."""
    machine = active.get()
    if machine is None:
        raise UsageError(f"sf.{what} was called outside a workflow; it works only in code of workflows and reducers")
    return machine


def warn_if_forgotten(operation: Operation) -> None:
    """The `__del__` of operations that user code makes: one that was never begun did nothing.

    It costs 50 ns for each operation. Only here is its line looked for, in the frames that drop it, so that making one
    costs nothing more. The run that is active is taken for the one that made it: an operation in a cycle may be freed
    while another run's code is active."""
    try:
        if operation.state:
            return
    except AttributeError:  # its constructor has refused its arguments
        return
    machine = active.get()
    if machine is not None:
        try:
            machine.forgotten(*operation.label(), sys._getframe(1))  # pyright: ignore[reportPrivateUsage]
        except Exception:  # the machine is being closed
            return


T = TypeVar("T")
Call = Coroutine[Any, Any, T]
"""The declared type of what gives a `T` when it is awaited: type checkers report a call whose `await` is forgotten only
if it gives a coroutine. None of its methods are there."""

if TYPE_CHECKING:

    class _Operation(Coroutine[Any, Any, Any]):
        def send(self, value: Any, /) -> Any: ...
        def throw(self, *error: Any) -> Any: ...
        def close(self) -> None: ...

else:
    _Operation = object


def _note_handled(error: BaseException) -> None:
    """The code awaits in an `except` or a `finally`: if it ends with this error, that was born now or earlier."""
    machine = active.get()
    if machine is not None:
        note_born(error, machine.events_before)


class Operation(_Operation):
    """Base of everything that can be awaited. When it is settled, it calls `wake(operation, ready)` of each waiter."""

    __slots__ = ("error", "home", "seq", "state", "value", "waiter")

    def __init__(self) -> None:
        self.state = NEW
        self.home: list[Fiber] | None = None
        """The `ready` list of the machine that has begun it, where its waiters continue. A list, not the machine, which
        an operation that user code keeps must not hold."""
        self.seq = 0
        self.value: Any = None
        self.error: BaseException | None = None
        self.waiter: Operation | list[Operation] | None = None

    def __await__(self) -> Generator[Operation, None, Any]:
        if (handled := exception()) is not None:
            _note_handled(handled)
        if self.state != DONE:
            yield self
        else:
            self.check_home(active.get())
        error = self.error
        if error is None:
            return self.value
        try:
            raise error
        finally:  # its traceback has this frame: a cycle for each failure, freed only by the garbage collector
            del self, error

    def check_home(self, machine: Machine | None) -> None:
        """Raises `UsageError` if it is another run's (`foreign`)."""
        if self.home is not None and machine is not None and self.home is not machine.ready:
            raise foreign(self)

    def begin(self, machine: Machine) -> None:
        """Take a number and record the decision. An error raised here is raised at the await."""
        raise NotImplementedError

    def label(self) -> tuple[str, tuple[str, ...]]:
        """What it is in a warning, and the names under which code may call what makes it."""
        name = type(self).__name__.lower()
        return f"sf.{name}()", (name,)

    def join(self, waiter: Operation) -> None:
        """Have `waiter` woken when this is settled. Almost always there is only one, so it is kept without a list."""
        if self.waiter is None:
            self.waiter = waiter
        elif isinstance(self.waiter, list):
            self.waiter.append(waiter)
        else:
            self.waiter = [self.waiter, waiter]

    def leave(self, waiter: Operation) -> bool:
        """Undo one `join`. True if others still wait."""
        if self.waiter is waiter:
            self.waiter = None
        elif isinstance(self.waiter, list) and waiter in self.waiter:
            self.waiter.remove(waiter)
        return bool(self.waiter)

    def let_go(self) -> None:
        """Break the reference cycles between waiters and operations: the machine is closed."""
        self.waiter = None

    def settle(self, value: Any, error: BaseException | None, ready: list[Fiber]) -> None:
        """Called once, with a value or an error. Appends the fibers that can continue to `ready`."""
        self.state = DONE
        self.value = value
        self.error = error
        waiter = self.waiter
        if waiter is None:
            return
        self.waiter = None
        if isinstance(waiter, list):
            for member in waiter:
                member.wake(self, ready)
        else:
            waiter.wake(self, ready)

    def wake(self, settled: Operation, ready: list[Fiber]) -> None:
        raise NotImplementedError

    def cancel(self, cause: Cancelled, machine: Machine) -> None:
        """Nothing needs it any more. Settled now; a fiber, and what holds one, as soon as it has cleaned up."""
        if self.state == PENDING:
            self.take_back(cause, machine)
        if self.state != DONE:
            self.settle(None, cause.again(), machine.ready)

    def take_back(self, cause: Cancelled, machine: Machine) -> None:
        """Undo what `begin` did."""

    def give_up(self, waiter: Operation, cause: Cancelled, machine: Machine) -> None:
        """`waiter` doesn't need it any more: cancel it, unless others wait too. Wakes `waiter` when it is settled."""
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
        """None while it runs or is ready to run."""
        self.scopes: list[Scope] | None = None
        """The scopes of the blocks that it is in, outermost first."""
        self.interrupts: list[BaseException] | None = None
        """Exceptions from outside that are not thrown yet: at the next await, or after a shield."""

    def label(self) -> tuple[str, tuple[str, ...]]:
        return f"the helper {getattr(self.coroutine, '__qualname__', '')}()", ()

    def __del__(self) -> None:
        if self.state == NEW:  # part of something that was never awaited: avoids Python's second warning
            self.coroutine.close()

    def begin(self, machine: Machine) -> None:
        self.state = PENDING
        machine.spawn(self)

    def wake(self, settled: Operation, ready: list[Fiber]) -> None:
        if self.waiting_on is settled:  # else an interrupt has woken it already
            self.waiting_on = None
            ready.append(self)

    def cancel(self, cause: Cancelled, machine: Machine) -> None:
        if self.state == NEW:
            self.coroutine.close()
            self.settle(None, cause.again(), machine.ready)
        elif self.state == PENDING:
            self._cancel_running(cause.again(), machine)

    def _cancel_running(self, cause: Cancelled, machine: Machine) -> None:
        """Interrupt it, which cancels the fibers that it waits for; the outermost call cancels those too deep."""
        if machine.cancelling >= DEEP:
            if machine.too_deep is None:
                machine.too_deep = []
            machine.too_deep.append((self, cause))
            return
        machine.cancelling += 1
        try:
            self.interrupt(cause, machine)
            while machine.cancelling == 1 and machine.too_deep:
                fiber, postponed = machine.too_deep.pop()
                fiber.interrupt(postponed, machine)
        finally:
            machine.cancelling -= 1

    # --- exceptions from outside --------------------------------------------------------------------------------------

    def interrupt(self, error: BaseException, machine: Machine) -> None:
        """Throw `error` at the current await, and give up its operation; at the next await if the fiber runs; or after
        the shield that it is in. Two interrupts by the same source with the same class are one exception; a cancel and
        a history that is too long are two."""
        if self.state == DONE:
            return
        pending = self.interrupts
        if pending is None:
            pending = self.interrupts = []
        source = source_of(error)
        if any(source_of(other) is source and type(other) is type(error) for other in pending):
            return
        pending.append(error)
        operation = self.waiting_on
        if operation is not None and operation.state != DONE and not self._is_shielded(error):
            cause = error if isinstance(error, Cancelled) else Cancelled(text_of(error))
            operation.give_up(self, cause, machine)

    def take_interrupt(self) -> BaseException | None:
        """The exception to throw now: that of the outermost scope first."""
        pending = self.interrupts or ()
        unshielded = [error for error in pending if not self._is_shielded(error)]
        if not unshielded:
            return None
        error = min(unshielded, key=self._depth)
        self.interrupts = [other for other in pending if other is not error] or None
        return error

    def withdraw(self, source: Scope | None) -> None:
        """The scope's block has ended: drop its exceptions that were not thrown yet."""
        if self.interrupts is not None:
            self.interrupts = [error for error in self.interrupts if source_of(error) is not source] or None

    def _depth(self, error: BaseException) -> int:
        """Position of the error's scope among this fiber's; -1 if it comes from outside the fiber."""
        source = source_of(error)
        return self.scopes.index(source) if self.scopes and source is not None and source in self.scopes else -1

    def _is_shielded(self, error: BaseException) -> bool:
        scopes = self.scopes
        return scopes is not None and any(scope.is_shield for scope in scopes[self._depth(error) + 1 :])


class Scope:
    """A block of a fiber's code that handles exceptions from outside: a time-out, a task group, a shield."""

    is_shield = False

    def __init__(self) -> None:
        self.fiber: Fiber | None = None

    def enter(self, machine: Machine) -> Fiber:
        if self.fiber is not None:
            raise UsageError(
                f"this {type(self).__name__} is in use by another block, or another run: make one for each block"
            )
        fiber = self.fiber = machine.current
        if fiber is None:
            raise UsageError(f"{type(self).__name__} works only in the code of a workflow, not of a reducer")
        if fiber.scopes is None:
            fiber.scopes = []
        fiber.scopes.append(self)
        return fiber

    def check_home(self, machine: Machine) -> None:
        """Raises `UsageError` if its block is another run's."""
        if self.fiber is not None and self.fiber.home is not machine.ready:
            raise UsageError(f"this {type(self).__name__} is a block of another run: make one for each run")

    def exit(self) -> None:
        fiber, self.fiber = self.fiber, None
        if fiber is not None and fiber.scopes is not None and self in fiber.scopes:
            fiber.scopes.remove(self)
            fiber.withdraw(self)

    def caused(self, error: BaseException | None) -> bool:
        """Whether this scope ended its block with `error`."""
        return isinstance(error, Cancelled) and error.source is self


def foreign(operation: Operation) -> UsageError:
    """The error for an operation that another machine has begun: user code has kept it beyond its run. A waiter of
    another run would continue inside that one and decide in its name, or never; and the result of one that is done
    would be in nobody's history."""
    return UsageError(
        f"{operation.label()[0]} was begun by another run, or before this one was loaded again: a run can only wait "
        "for what it has begun itself. Keep no awaitables in globals or caches: make the call in each run"
    )


def start(operation: Operation, machine: Machine) -> None:
    """Begin it unless that has been done. Raises `UsageError` if another run has."""
    if operation.state == NEW:
        machine.start(operation)
    else:
        operation.check_home(machine)


def source_of(error: BaseException) -> Scope | None:
    """The scope that raised `error` as an interrupt; None if it was the run."""
    return cast("Scope | None", error.source) if isinstance(error, Cancelled) else None
