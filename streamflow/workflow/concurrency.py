"""Combinators of awaitables: gather, race, map, task groups; and blocks with a time limit or a shield.

Owns: these operations and scopes: when they are settled, and what they cancel.
Must not: drive coroutines, know redis or asyncio; make decisions, except through the operations that they hold.
Called by: `api.py` makes them; the machines begin, settle and cancel them.

All of it is deterministic: what is started, woken or cancelled first follows from the order of the arguments and facts.
"""

from __future__ import annotations

import types
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from streamflow.errors import Cancelled, CancelledError, UsageError
from streamflow.text import text_of, type_name
from streamflow.workflow.actions import Alarm
from streamflow.workflow.awaitable import (
    DONE,
    NEW,
    PASSING,
    PENDING,
    UNWINDING,
    Fiber,
    Operation,
    Scope,
    active_machine,
    start,
    warn_if_forgotten,
)

if TYPE_CHECKING:
    from streamflow.workflow.awaitable import Machine

P = ParamSpec("P")
R = TypeVar("R")


def as_operation(aw: object, what: str) -> Operation:
    """`aw` as an operation; a coroutine becomes a fiber. Raises `TypeError`."""
    if isinstance(aw, Operation):
        return aw
    if isinstance(aw, types.CoroutineType):
        return Fiber(cast("Coroutine[Any, Any, Any]", aw))
    if not hasattr(aw, "__await__"):
        type_name = type(aw).__name__
        advice = ": unpack it with *" if type_name in ("list", "tuple", "generator") else ""
        raise TypeError(f"sf.{what} must get awaitables, got {type_name}{advice}")

    async def awaiting() -> Any:
        return await cast("Awaitable[Any]", aw)

    return Fiber(awaiting())


def check_callable(function: object, what: str) -> None:
    """Raises `UsageError` for a call instead of a function: it must not begin before what begins it."""
    if callable(function):
        return
    type_name = type(function).__name__
    if isinstance(function, types.CoroutineType):
        cast("Coroutine[Any, Any, Any]", function).close()  # avoids Python's warning "was never awaited"
    raise UsageError(
        f"sf.{what} must get a function and its arguments, as (fetch, url), and calls it; got a {type_name}"
    )


def as_operations(aws: Iterable[object], what: str) -> list[Operation]:
    """`as_operation` of each. Raises `TypeError`."""
    fibers: dict[int, Operation] = {}  # the same coroutine given twice is one fiber, as in asyncio
    operations: list[Operation] = []
    for aw in aws:
        operation = fibers.get(id(aw)) or as_operation(aw, what)
        if operation is not aw:
            fibers[id(aw)] = operation
        operations.append(operation)
    return operations


class Combinator(Operation):
    """Base of operations that hold others. When cancelled, it gives them up, and is settled when all of them are."""

    __slots__ = ("cause", "children", "remaining")

    what = ""

    __del__ = warn_if_forgotten

    def __init__(self, children: list[Operation]) -> None:
        super().__init__()
        self.children: list[Operation] = children
        self.remaining = 0
        """Number of children that aren't done."""
        self.cause: Cancelled | None = None
        """Why the children are being given up; None if they are not."""

    def raises(self, error: BaseException | None, return_exceptions: bool) -> bool:
        """Whether the combinator raises a child's error. A list of results never has a `ContinueAs` or `SystemExit`."""
        return error is not None and (not return_exceptions or not isinstance(error, (Exception, CancelledError)))

    def start_children(self, machine: Machine) -> None:
        """Begin the children in order, and wait for those that aren't done at once."""
        for child in self.children:
            start(child, machine)
            if child.state != DONE:
                self.remaining += 1
                child.join(self)

    def let_go(self) -> None:
        super().let_go()
        children, self.children = self.children, []
        for child in children:
            child.let_go()

    def give_up_children(self, cause: Cancelled, machine: Machine) -> None:
        self.cause = cause
        for child in self.children:
            child.give_up(self, cause, machine)

    def cancel(self, cause: Cancelled, machine: Machine) -> None:
        if self.state == NEW:
            for child in self.children:
                if child.state == NEW:
                    child.cancel(cause, machine)
            self.settle(None, cause.again(), machine.ready)
        elif self.state == PENDING and self.cause is None:
            self.give_up_children(cause, machine)

    def wake(self, settled: Operation, ready: list[Fiber]) -> None:
        if self.state == DONE:
            return
        self.remaining -= 1
        if self.cause is None:
            self.child_done(settled, ready)
        if not self.remaining and self.state != DONE:
            self.all_done(ready)

    def child_done(self, settled: Operation, ready: list[Fiber]) -> None:
        """A child is done, and none is being given up."""

    def all_done(self, ready: list[Fiber]) -> None:
        self.children = []
        self.settle(None, self._take_cause(), ready)

    def _take_cause(self) -> Cancelled | None:
        """Stop holding it: it is raised at the await of this operation, so its traceback refers to this operation."""
        cause, self.cause = self.cause, None
        return None if cause is None else cause.again()


class Gather(Combinator):
    """Waits for all. The first error is raised at once, and the others continue, as in asyncio."""

    __slots__ = ("return_exceptions",)

    what = "gather()"

    def __init__(self, children: list[Operation], return_exceptions: bool) -> None:
        super().__init__(children)
        self.return_exceptions = return_exceptions

    def begin(self, machine: Machine) -> None:
        self.state = PENDING
        self.start_children(machine)
        for child in self.children:
            if child.state == DONE and self.raises(child.error, self.return_exceptions):
                self.settle(None, child.error, machine.ready)
                return
        if not self.remaining:
            self.all_done(machine.ready)

    def child_done(self, settled: Operation, ready: list[Fiber]) -> None:
        if self.raises(settled.error, self.return_exceptions):
            self.children = []
            self.settle(None, settled.error, ready)

    def all_done(self, ready: list[Fiber]) -> None:
        if self.cause is not None:
            super().all_done(ready)
            return
        values = [child.value if child.error is None else child.error for child in self.children]
        self.children = []
        self.settle(values, None, ready)


_LOST_RACE = "another awaitable of the race was done first"


class Race(Combinator):
    """Waits for the first that is done. The others are cancelled, and have cleaned up when this is settled."""

    __slots__ = ("winner",)

    what = "race()"

    def __init__(self, children: list[Operation]) -> None:
        super().__init__(children)
        self.winner: Operation | None = None

    def begin(self, machine: Machine) -> None:
        self.state = PENDING
        for child in self.children:
            if child.state == NEW and self.winner is not None:
                child.cancel(Cancelled(_LOST_RACE), machine)
                continue
            start(child, machine)
            if child.state != DONE:
                self.remaining += 1
                child.join(self)
            elif self.winner is None:
                self.winner = child
        if self.winner is not None:
            self.give_up_children(Cancelled(_LOST_RACE), machine)
            if not self.remaining:
                self.all_done(machine.ready)

    def child_done(self, settled: Operation, ready: list[Fiber]) -> None:
        self.winner = settled
        self.give_up_children(Cancelled(_LOST_RACE), active_machine(self.what))

    def all_done(self, ready: list[Fiber]) -> None:
        winner = self.winner
        if self.state == DONE:
            return
        if winner is None:
            super().all_done(ready)
            return
        error = winner.error
        if error is None:  # what a loser raises while it cleans up must not be lost
            errors = (child.error for child in self.children if child is not winner)
            error = next((error for error in errors if error is not None and not isinstance(error, Cancelled)), None)
        self.children = []
        self.winner = self.cause = None
        self.settle(winner.value if error is None else None, error, ready)

    def cancel(self, cause: Cancelled, machine: Machine) -> None:
        if self.state == PENDING and self.winner is not None:
            return  # only the losers' clean-up is left; the canceller's own exception is raised after it
        super().cancel(cause, machine)


class Map(Combinator):
    """Calls a function for many items, at most `limit` at a time. Items are taken when a call is done."""

    __slots__ = ("function", "items", "limit", "results", "return_exceptions")

    what = "map()"

    def __init__(
        self, function: Callable[[Any], Awaitable[Any]], items: Iterable[Any], limit: int, return_exceptions: bool
    ) -> None:
        super().__init__([])
        self.function = function
        self.items: Iterator[Any] = iter(items)
        self.limit = limit
        self.return_exceptions = return_exceptions
        self.results: list[Any] = []

    def begin(self, machine: Machine) -> None:
        self.state = PENDING
        self._fill(machine)

    def let_go(self) -> None:
        super().let_go()
        for slot in [result for result in self.results if type(result) is _Slot]:
            if slot.operation is not None:
                slot.operation.let_go()
        self.results = []

    def _fill(self, machine: Machine) -> None:
        """Start items until `limit` of them run, or all are done."""
        while self.remaining < self.limit and self.cause is None and self.state != DONE:
            try:
                item = next(self.items)
            except StopIteration:
                break
            except PASSING:
                raise
            except BaseException as error:
                self._failed(error, machine)
                break
            try:
                child = as_operation(self.function(item), self.what)
                child.check_home(machine)
            except PASSING:
                raise
            except BaseException as error:  # raised by the function itself, before anything could be awaited
                if self.raises(error, self.return_exceptions):
                    self._failed(error, machine)
                    break
                self.results.append(error)
                continue
            slot = _Slot(self, len(self.results))
            self.results.append(slot)
            if child.state == NEW:
                machine.start(child)
            slot.operation = child
            self.remaining += 1
            if child.state == DONE:
                self._take(slot, child, machine)
            else:
                child.join(slot)
        if not self.remaining and self.state != DONE:
            self.all_done(machine.ready)

    def _take(self, slot: _Slot, settled: Operation, machine: Machine) -> None:
        self.remaining -= 1
        error = settled.error
        self.results[slot.number] = settled.value if error is None else error
        if self.cause is None and error is not None and self.raises(error, self.return_exceptions):
            self._failed(error, machine)

    def item_done(self, slot: _Slot, settled: Operation) -> None:
        if self.state == DONE:
            return
        machine = active_machine(self.what)
        self._take(slot, settled, machine)
        self._fill(machine)

    def _failed(self, error: BaseException, machine: Machine) -> None:
        self.error = error
        self.give_up_children(Cancelled("another item failed"), machine)

    def give_up_children(self, cause: Cancelled, machine: Machine) -> None:
        self.cause = cause
        for slot in [result for result in self.results if type(result) is _Slot]:
            if slot.operation is not None:
                slot.operation.give_up(slot, cause, machine)

    def all_done(self, ready: list[Fiber]) -> None:
        cause = self._take_cause()
        error = self.error or cause
        results, self.results = self.results, []
        self.settle(None if error is not None else results, error, ready)

    def cancel(self, cause: Cancelled, machine: Machine) -> None:
        super().cancel(cause, machine)
        if self.state == PENDING and not self.remaining:
            self.all_done(machine.ready)


class _Slot(Operation):
    """Stands in `Map.results` for an item that isn't done, and is woken when it is."""

    __slots__ = ("number", "operation", "owner")

    def __init__(self, owner: Map, number: int) -> None:
        super().__init__()
        self.owner = owner
        self.number = number
        self.operation: Operation | None = None

    def wake(self, settled: Operation, ready: list[Fiber]) -> None:
        self.owner.item_done(self, settled)


# --- blocks -----------------------------------------------------------------------------------------------------------


class Shield(Scope):
    """The block of `with sf.shield():`. Exceptions from outside are raised at the first await after the block."""

    is_shield = True

    def __enter__(self) -> None:
        self.enter(active_machine("shield()"))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.exit()


class Timeout(Scope):
    """The block of `with sf.timeout(5):`. It raises `TimeoutError` when it takes longer."""

    def __init__(self, ms: int | None) -> None:
        super().__init__()
        self.expired = False
        """True after the block if it took too long."""
        self._ms = ms
        self._alarm: Alarm | None = None

    def __enter__(self) -> Timeout:
        machine = active_machine("timeout()")
        fiber = self.enter(machine)
        if self._ms is not None:
            self._alarm = Alarm(self._ms, fiber, Cancelled(self._text, self))
            self._alarm.begin(machine)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.exit()
        if self._alarm is not None and self._alarm.state != DONE and not isinstance(error, UNWINDING):
            machine = active_machine("timeout()")
            self._alarm.cancel(Cancelled(), machine)
        self._alarm = None  # breaks a cycle: the exception that it throws refers to this block
        if self.caused(error):
            self.expired = True
            raise TimeoutError(self._text) from error

    async def __aenter__(self) -> Timeout:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, tb)

    @property
    def _text(self) -> str:
        return f"the block took longer than {(self._ms or 0) / 1000:g} s"


class TaskGroup(Scope):
    """The block of `async with sf.task_group() as group:`. It ends when everything that was started in it has ended.

    The first task that fails cancels the others and the block; all errors are raised as one `ExceptionGroup`, as by
    anyio. `cancel()` ends the group without an error.
    """

    def __init__(self) -> None:
        super().__init__()
        self._open: dict[Operation, None] = {}
        self._errors: list[Exception] = []
        self._last: BaseException | None = None
        """`ContinueAs` or `SystemExit` of a member: raised by the block as it is, not in an `ExceptionGroup`."""
        self._join: _GroupEnd | None = None
        self._leaving = False
        self._cancelled: Cancelled | None = None
        self._members: _Members | None = _Members(self)

    async def __aenter__(self) -> TaskGroup:
        self.enter(active_machine("task_group()"))
        return self

    def start_soon(self, function: Callable[P, Awaitable[R]], *args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
        """Start a step, a child run or a helper; gives an awaitable of its result.

        Raises `UsageError` outside the block, and for a call instead of a function and its arguments.

        >>> page = group.start_soon(fetch, url)
        """
        machine = active_machine("task_group()")
        check_callable(function, "task_group(): start_soon()")
        members = self._members
        if self.fiber is None and not self._leaving:
            raise UsageError("start_soon() was called outside the block `async with sf.task_group() as group:`")
        if self.fiber is None or members is None:
            raise UsageError("start_soon() was called after the block of the task group had ended")
        self.check_home(machine)
        member = as_operation(function(*args, **kwargs), "task_group()")
        self._open[member] = None
        start(member, machine)
        if member.state == DONE:
            self.member_done(member, machine)
        else:
            member.join(members)
            if self._cancelled is not None:
                member.give_up(members, self._cancelled, machine)
        return cast("Awaitable[R]", member)

    def cancel(self, reason: str = "") -> None:
        """Cancel everything that was started, and the rest of the block. The block then ends without an error."""
        self._abort(Cancelled(reason or "the task group was cancelled", self))

    def _abort(self, cause: Cancelled) -> None:
        if self._cancelled is not None or (self._leaving and self.fiber is None):
            return
        machine = active_machine("task_group()")  # not stored: a coroutine that holds its machine is a cycle
        self.check_home(machine)
        self._cancelled = cause
        for member in list(self._open):
            member.give_up(cast("_Members", self._members), cause, machine)
        if self.fiber is not None and not self._leaving:
            self.fiber.interrupt(Cancelled(cause.reason, self), machine)

    def member_done(self, member: Operation, machine: Machine) -> None:
        self._open.pop(member, None)
        error = member.error
        if isinstance(error, Exception):
            self._errors.append(error)
            self._abort(Cancelled(f"another task failed: {text_of(error)}", self))
        elif error is not None and not isinstance(error, CancelledError):  # ContinueAs, SystemExit
            self._last = self._last or error
            self._abort(Cancelled(f"another task ended with {type_name(error)}", self))
        if not self._open and self._join is not None and self._join.state == PENDING:
            self._join.settle(None, None, machine.ready)

    def exit(self) -> None:
        super().exit()
        self._cancelled = None  # breaks cycles: both refer to the group
        self._members = None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        self._leaving = True
        if isinstance(error, UNWINDING):
            self.exit()
            return False
        if self.fiber is not None:
            self.fiber.withdraw(self)  # the block has ended already
        outside: BaseException | None = None
        if isinstance(error, Exception):
            self._errors.append(error)
        elif not self.caused(error):
            outside = error
        if error is not None:
            self._abort(Cancelled("the block of the task group has ended", self))
        while self._open:
            self._join = _GroupEnd()
            try:
                await self._join
            except (Exception, CancelledError) as interruption:
                outside = interruption
                self._abort(Cancelled(str(interruption), self))
        self.exit()
        errors, self._errors = self._errors, []
        last, self._last = self._last, None
        try:
            if errors:
                raise ExceptionGroup("unhandled errors in a task group", errors) from outside
            if outside is None and last is not None:
                raise last
            if outside is not None and outside is not error:
                raise outside
            return outside is None
        finally:  # their tracebacks have this frame
            del outside, error, errors, last


class _Members(Operation):
    """Is woken when a member of the group is done."""

    __slots__ = ("group",)

    def __init__(self, group: TaskGroup) -> None:
        super().__init__()
        self.group = group

    def wake(self, settled: Operation, ready: list[Fiber]) -> None:
        self.group.member_done(settled, active_machine("task_group()"))


class _GroupEnd(Operation):
    """Settled by its group when the last open member is done."""

    __slots__ = ()

    def begin(self, machine: Machine) -> None:
        self.state = PENDING
