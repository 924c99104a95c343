"""What a workflow can await: steps, children, timers, signals, and several of them at once.

Owns: the operations, which carry their own state, and the public functions that make them.
Must not: drive coroutines (`machine.py` does), know redis or asyncio.
Called by: user workflows; the machines begin operations and settle them.

An operation is lazy: making one schedules nothing. It begins when the machine receives it from an `await`, or with the
`gather` that holds it; it is settled by a fact, once, with a value or an error; then it wakes whoever waits for it.
A coroutine of user code is an operation too (a `Fiber`), so gathering coroutines and gathering steps is one thing.
"""

from __future__ import annotations

import contextvars
import math
import types
import uuid as _uuid
from collections.abc import Awaitable, Coroutine, Generator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

import msgspec
from msgspec import Raw

from streamflow.pure import codec, sharding
from streamflow.pure.attributes import Attribute, check_attributes
from streamflow.pure.errors import UsageError
from streamflow.pure.events import NOTHING, ChildStarted, SignalSent, StepScheduled, TimerSet
from streamflow.pure.names import check_name, check_run_id

if TYPE_CHECKING:
    from streamflow.pure.definitions import Reducer, Step, Workflow
    from streamflow.pure.running import RunMachine

NEW, PENDING, DONE = 0, 1, 2
"""States of an operation. A failed one is DONE and has an `error`."""

active: contextvars.ContextVar[RunMachine | None] = contextvars.ContextVar("streamflow_machine", default=None)
"""The machine whose user code runs right now in this thread; set once an advance."""


def _machine(what: str) -> RunMachine:
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
        if self.error is not None:
            raise self.error
        return self.value

    def begin(self, machine: RunMachine) -> None:
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

    def leave(self, waiter: Operation) -> None:
        """Undo `join`: what a cancelled fiber or the loser of a race does."""
        if self.waiter is waiter:
            self.waiter = None
        elif isinstance(self.waiter, list) and waiter in self.waiter:
            self.waiter.remove(waiter)

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


class Fiber(Operation):
    """A coroutine of user code: the workflow itself, or a helper in a `gather`. Awaiting it joins it."""

    __slots__ = ("coroutine", "waiting_on")

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        super().__init__()
        self.coroutine = coroutine
        self.waiting_on: Operation | None = None

    def begin(self, machine: RunMachine) -> None:
        self.state = PENDING
        machine.spawn(self)

    def wake(self, settled: Operation, ready: list[Fiber]) -> None:
        ready.append(self)


class StepJob:
    """An attempt of a step, to start after the commit. `step.queue` says where it runs."""

    __slots__ = ("args", "attempt", "details", "seq", "step", "timeout")

    def __init__(self, seq: int, attempt: int, step: Step[..., Any], args: Raw, details: Raw = NOTHING) -> None:
        self.seq = seq
        self.attempt = attempt
        self.step = step
        self.args = args
        self.details = details
        """What the attempt before told last with `sf.heartbeat`."""
        self.timeout = step.timeout

    def __repr__(self) -> str:
        return f"StepJob({self.seq}, {self.step.name}, attempt={self.attempt})"


class StepCall(Operation):
    """One call of a step, and while it is open also its record: attempt, and when the next one is due."""

    __slots__ = ("args", "attempt", "details", "due", "kwargs", "lost", "payload", "step")

    def __init__(self, step: Step[..., Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> None:
        self.state = NEW
        self.seq = 0
        self.value = None
        self.error = None
        self.waiter = None
        self.step = step
        self.args: tuple[Any, ...] | None = args
        self.kwargs = kwargs
        self.payload = NOTHING
        self.attempt = 1
        """The attempt that runs, or that will run at `due`."""
        self.due: int | None = None
        """Shard-clock ms of the next attempt, while a retry waits."""
        self.lost = 0
        """Attempts that ended because their worker died."""
        self.details = NOTHING
        """What the attempt before told last."""

    @property
    def is_local(self) -> bool:
        """Whether its attempts run at the owner."""
        return self.step.queue is None and self.step.known

    def job(self) -> StepJob:
        return StepJob(self.seq, self.attempt, self.step, self.payload, self.details)

    def begin(self, machine: RunMachine) -> None:
        step = self.step
        if machine.app.steps.get(step.name) is not step.origin:
            raise UsageError(machine.app.unknown_step(step.name))
        payload = Raw(step.parameters.encode(self.args or (), self.kwargs or {}))
        self.args = self.kwargs = None
        self.seq = seq = machine.take_seq()
        self.state = PENDING
        event = machine.decide(StepScheduled(seq, step.name, payload, step.queue or ""))
        self.payload = event.args
        if event.queue != (step.queue or ""):  # replayed by code that names another queue: the attempt is where it was
            self.step = step.options(queue=event.queue or None, tag=step.tag)
        machine.add_step(self)

    def decode_result(self, payload: Raw) -> Any:
        return self.step.parameters.decode_result(payload)


class ChildCall(Operation):
    """A child run, awaited. `target` is a workflow or reducer, with the id and tenant of its `options()`."""

    __slots__ = ("args", "kwargs", "run_id", "target")

    def __init__(
        self,
        target: Workflow[..., Any] | Reducer | Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.target = target
        self.args: tuple[Any, ...] | None = args
        self.kwargs = kwargs
        self.run_id = ""

    def begin(self, machine: RunMachine) -> None:
        target = self.target
        name = target.name
        if name not in machine.app.workflows:
            raise UsageError(machine.app.unknown_workflow(name))
        payload = Raw(target.parameters.encode(self.args or (), self.kwargs or {}))
        self.args = self.kwargs = None
        tenant = target.child_tenant or machine.tenant
        partition = machine.partition
        if target.child_id:
            seq = machine.take_seq()
            run_id = check_run_id(sharding.full_run_id(target.child_id, partition, tenant, name))
        else:
            seq = machine.take_seq()
            run_id = check_run_id(sharding.child_run_id(machine.run_id, seq, partition, tenant, name))
        self.seq = seq
        self.state = PENDING
        event = machine.decide(ChildStarted(seq, name, run_id, tenant, payload))
        self.run_id = event.run_id
        machine.add_child(self, event)

    def decode_result(self, payload: Raw) -> Any:
        return self.target.parameters.decode_result(payload)


class Sleep(Operation):
    __slots__ = ("ms", "tag")

    def __init__(self, ms: int, tag: str = "") -> None:
        super().__init__()
        self.ms = ms
        self.tag = tag

    def begin(self, machine: RunMachine) -> None:
        self.seq = machine.take_seq()
        self.state = PENDING
        event = machine.decide(TimerSet(self.seq, machine.at + self.ms))
        machine.add_timer(self, event.due)


class SignalWait(Operation):
    """Waits for one signal called `name`. With a timeout it is a timer too, and `seq` is the timer's number."""

    __slots__ = ("ms", "name", "type")

    def __init__(self, name: str, type_: Any, ms: int | None) -> None:
        super().__init__()
        self.name = name
        self.type = type_
        self.ms = ms

    def decode(self, payload: Raw) -> Any:
        return codec.decode(payload, self.type, f"value of signal {self.name}")

    def begin(self, machine: RunMachine) -> None:
        self.state = PENDING
        if machine.take_signal(self):
            return
        if self.ms is not None:
            self.seq = machine.take_seq()
            event = machine.decide(TimerSet(self.seq, machine.at + self.ms, self.name))
            machine.add_timer(self, event.due)


class SignalSend(Operation):
    """Sends a signal to another run. It is done at once: the outbox delivers it."""

    __slots__ = ("name", "payload", "target")

    def __init__(self, target: str, name: str, value: object) -> None:
        super().__init__()
        self.target = check_run_id(target)
        self.name = check_name("signal", name)
        self.payload = Raw(codec.encode(value, f"value of signal {name}"))

    def begin(self, machine: RunMachine) -> None:
        self.seq = machine.take_seq()
        self.state = PENDING
        event = machine.decide(SignalSent(self.seq, self.name, self.target, self.payload))
        machine.send_signal(self, event)


class Gather(Operation):
    """Several operations at once. The first error is raised at once, and the others go on, as in asyncio."""

    __slots__ = ("children", "remaining", "return_exceptions")

    def __init__(self, children: list[Operation], return_exceptions: bool) -> None:
        super().__init__()
        self.children = children
        self.remaining = 0
        self.return_exceptions = return_exceptions

    def begin(self, machine: RunMachine) -> None:
        self.state = PENDING
        open_children: list[Operation] = []
        for child in self.children:
            if child.state == NEW:
                machine.start(child)
            if child.state != DONE:
                open_children.append(child)
        self.remaining = len(open_children)
        for child in self.children:
            if child.state == DONE and child.error is not None and not self.return_exceptions:
                self.settle(None, child.error, machine.ready)
                return
        if not open_children:
            self._finish(machine.ready)
        for child in open_children:
            child.join(self)

    def wake(self, settled: Operation, ready: list[Fiber]) -> None:
        if self.state == DONE:
            return
        if settled.error is not None and not self.return_exceptions:
            self.settle(None, settled.error, ready)
            self.children = []
            return
        self.remaining -= 1
        if not self.remaining:
            self._finish(ready)

    def _finish(self, ready: list[Fiber]) -> None:
        values = [child.value if child.error is None else child.error for child in self.children]
        self.children = []
        self.settle(values, None, ready)


# --- the public functions -------------------------------------------------------------------------------------------

T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")
T5 = TypeVar("T5")


class RunInfo(msgspec.Struct, frozen=True):
    """What `sf.info()` gives: who this run is. `parent` is the parent's run id, or empty."""

    run_id: str
    workflow: str
    tenant: str
    parent: str


# fmt: off
@overload
def gather(a: Awaitable[T1], b: Awaitable[T2], /, *, return_exceptions: Literal[False] = ...) -> Awaitable[tuple[T1, T2]]: ...  # noqa: E501  # pyright: ignore[reportOverlappingOverload]
@overload
def gather(a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], /, *, return_exceptions: Literal[False] = ...) -> Awaitable[tuple[T1, T2, T3]]: ...  # noqa: E501
@overload
def gather(a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], d: Awaitable[T4], /, *, return_exceptions: Literal[False] = ...) -> Awaitable[tuple[T1, T2, T3, T4]]: ...  # noqa: E501
@overload
def gather(a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], d: Awaitable[T4], e: Awaitable[T5], /, *, return_exceptions: Literal[False] = ...) -> Awaitable[tuple[T1, T2, T3, T4, T5]]: ...  # noqa: E501
@overload
def gather(*aws: Awaitable[T], return_exceptions: Literal[False] = ...) -> Awaitable[list[T]]: ...
@overload
def gather(*aws: Awaitable[T], return_exceptions: bool) -> Awaitable[list[T | BaseException]]: ...
# fmt: on
def gather(*aws: Awaitable[Any], return_exceptions: bool = False) -> Awaitable[Any]:
    """Run several awaitables at the same time; gives their results as a list, in order.

    Takes steps, child runs, sleeps, signals, other gathers, and coroutines of helper functions. The first exception is
    raised at once (the others go on and their outcomes are recorded), unless `return_exceptions` puts it in the list.

    >>> pages = await sf.gather(*(fetch(url) for url in urls))
    """
    _machine("gather()")
    fibers: dict[int, Operation] = {}  # the same coroutine given twice is one fiber, as in asyncio
    children: list[Operation] = []
    for aw in aws:
        if isinstance(aw, Operation):
            children.append(aw)
        else:
            children.append(fibers.setdefault(id(aw), Fiber(_coroutine(aw))))
    return Gather(children, return_exceptions)


def _coroutine(aw: object) -> Coroutine[Any, Any, Any]:
    if isinstance(aw, types.CoroutineType):
        return cast("Coroutine[Any, Any, Any]", aw)
    if not hasattr(aw, "__await__"):
        raise TypeError(f"sf.gather() takes awaitables, not {type(aw).__name__}")

    async def awaiting() -> Any:
        return await cast("Awaitable[Any]", aw)

    return awaiting()


def sleep(duration: float | timedelta, *, tag: str = "") -> Awaitable[None]:
    """A durable timer: seconds or a timedelta. `tag` comes back in a reducer's `TimerDone`."""
    _machine("sleep()")
    return Sleep(_milliseconds(duration, "sleep()"), tag)


@overload
def signal(name: str, type: type[T], timeout: float | timedelta | None = None) -> Awaitable[T]: ...
@overload
def signal(name: str, type: Any = ..., timeout: float | timedelta | None = None) -> Awaitable[Any]: ...
def signal(name: str, type: Any = Any, timeout: float | timedelta | None = None) -> Awaitable[Any]:
    """Wait for a signal, first come, first served per name; one that came early is kept for the next wait.

    A value that isn't of the `type` is skipped. Raises the builtin `TimeoutError` after `timeout` seconds.

    >>> approved = await sf.signal("approve", bool, timeout=3600)
    """
    _machine("signal()")
    codec.decoder_for(type)
    return SignalWait(check_name("signal", name), type, None if timeout is None else _milliseconds(timeout, "signal()"))


def send_signal(run_id: str, name: str, value: object = None) -> Awaitable[None]:
    """Send a signal to another run; done as soon as it is recorded. Raises `InvalidName`, `PayloadInvalid`."""
    _machine("send_signal()")
    return SignalSend(run_id, name, value)


def set_attributes(**values: Attribute | None) -> None:
    """Give this run attributes, by which `client.runs(attributes=…)` and `streamflow runs --attribute` find it.

    A value is a str of at most 256 characters, an int, float or bool; None takes the attribute off; what isn't named
    stays. They are there when the decisions of this moment are committed, and until the run is forgotten.
    Raises `InvalidName`, `UsageError` (another type, more than 32), `PayloadTooLarge` (more than 2 KB together).

    >>> sf.set_attributes(customer="acme", priority=2)
    """
    _machine("set_attributes()").set_attributes(check_attributes(values))


def publish(key: str, value: object) -> None:
    """Let others read a value while the run goes on: `await run.read(key)` gives the newest one. The run isn't asked.

    It is there when the decisions of this moment are committed, and until the run is forgotten.
    Raises `InvalidName`, `PayloadInvalid`, `PayloadTooLarge`.

    >>> sf.publish("progress", {"done": 3, "of": 10})
    """
    machine = _machine("publish()")
    machine.publish(check_name("key", key), codec.encode(value, f"published value {key}"))


def now() -> datetime:
    """The time of the current transition on the shard's clock, aware, in UTC. A replay gives the same."""
    return _machine("now()").now()


def uuid4() -> _uuid.UUID:
    """A random UUID that a replay makes again."""
    return _uuid.UUID(int=_machine("uuid4()").rng.getrandbits(128), version=4)


def random() -> float:
    """A random number from 0 up to 1 that a replay makes again."""
    return _machine("random()").rng.random()


def info() -> RunInfo:
    """Who this run is."""
    machine = _machine("info()")
    return RunInfo(machine.run_id, machine.workflow, machine.tenant, machine.parent.rpartition("#")[0])


def _milliseconds(duration: float | timedelta, what: str) -> int:
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else float(duration)
    if not math.isfinite(seconds) or seconds > 1e11:
        raise UsageError(f"sf.{what}: {duration!r} is no duration; the longest is 1e11 seconds")
    return max(math.ceil(round(seconds * 1000, 3)), 0)  # rounded up, but 1.1 is 1100 whatever binary fractions say
