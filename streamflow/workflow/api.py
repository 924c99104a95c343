"""The functions that work inside a workflow: `sf.gather`, `sf.signal`, `sf.now` and the others.

Owns: their names, types and docstrings, and the checks of their arguments.
Must not: decide or drive anything: each makes an operation, or calls the active machine. Called by: user workflows.

Each raises `UsageError` when it is called outside a workflow. Durations are seconds or a `timedelta`, counted on the
shard's clock and rounded up to whole milliseconds. What gives an awaitable does nothing until it is awaited.
"""

from __future__ import annotations

import math
import uuid as _uuid
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timedelta
from typing import Any, Literal, ParamSpec, TypeVar, TypeVarTuple, overload

import msgspec
from msgspec import UNSET, UnsetType

from streamflow.errors import UsageError
from streamflow.model.attributes import Attribute, check_attributes
from streamflow.model.durations import seconds_of
from streamflow.model.names import check_name, check_text
from streamflow.workflow.actions import AskWait, Child, ChildCall, ChildStart, Question, SignalSend, SignalWait, Sleep
from streamflow.workflow.app import OnParentEnd, Startable
from streamflow.workflow.awaitable import Call, Machine, active_machine
from streamflow.workflow.concurrency import Gather, Map, Race, Shield, TaskGroup, Timeout, as_operations, check_callable
from streamflow.workflow.messages import UNDECLARED, Declared, PublishedDefinition, QuestionDefinition, SignalDefinition
from streamflow.workflow.saga import Saga

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")
T5 = TypeVar("T5")
Ts = TypeVarTuple("Ts")


class RunInfo(msgspec.Struct, frozen=True):
    """The result of `sf.info()`: what a run knows about itself."""

    run_id: str
    workflow: str
    """Name of its workflow."""
    tenant: str
    """Its tenant, or empty."""
    parent: str
    """The parent's run id, or empty."""
    events: int = 0
    """Number of events in its history before the current transition."""
    generation: int = 0
    """How often it has continued as new."""
    version: int = 0
    """The version of the workflow's code that it began with."""


# --- several things at once -------------------------------------------------------------------------------------------


# fmt: off
@overload
def gather(a: Awaitable[T1], b: Awaitable[T2], /, *, return_exceptions: Literal[False] = ...) -> Call[tuple[T1, T2]]: ...  # noqa: E501  # pyright: ignore[reportOverlappingOverload]
@overload
def gather(a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], /, *, return_exceptions: Literal[False] = ...) -> Call[tuple[T1, T2, T3]]: ...  # noqa: E501
@overload
def gather(a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], d: Awaitable[T4], /, *, return_exceptions: Literal[False] = ...) -> Call[tuple[T1, T2, T3, T4]]: ...  # noqa: E501
@overload
def gather(a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], d: Awaitable[T4], e: Awaitable[T5], /, *, return_exceptions: Literal[False] = ...) -> Call[tuple[T1, T2, T3, T4, T5]]: ...  # noqa: E501
@overload
def gather(*aws: Awaitable[T], return_exceptions: Literal[False] = ...) -> Call[list[T]]: ...
@overload
def gather(*aws: Awaitable[T], return_exceptions: bool) -> Call[list[T | BaseException]]: ...
# fmt: on
def gather(*aws: Awaitable[Any], return_exceptions: bool = False) -> Call[Any]:
    """Run several awaitables at the same time; gives their results as a list, in the order of the arguments.

    Takes calls of steps and workflows, sleeps, signals, other gathers, and coroutines of helper functions.

    The first exception is raised at once. The others continue, and their outcomes are recorded, as in asyncio
    (`sf.task_group` cancels them). With `return_exceptions` exceptions are put into the list instead. When the gather
    itself is cancelled, all of them are. Raises `TypeError` for an argument that can't be awaited.

    >>> pages = await sf.gather(*(fetch(url) for url in urls))
    """
    active_machine("gather()")
    return Gather(as_operations(aws, "gather()"), return_exceptions)


# fmt: off
@overload
def race(a: Awaitable[T1], b: Awaitable[T2], /) -> Call[T1 | T2]: ...
@overload
def race(a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], /) -> Call[T1 | T2 | T3]: ...
@overload
def race(*aws: Awaitable[T]) -> Call[T]: ...
# fmt: on
def race(*aws: Awaitable[Any]) -> Call[Any]:
    """Wait for the first of several awaitables; gives its result, or raises its exception. The others are cancelled.

    If several are done at the same time, the first argument wins. Helpers that lose get `Cancelled` and may clean up:
    the race is over when they have. Raises `UsageError` without arguments, `TypeError` for one that can't be awaited.

    >>> answer = await sf.race(ask_model(question), ask_other_model(question))
    """
    active_machine("race()")
    if not aws:
        raise UsageError("sf.race() must get at least one awaitable, got none")
    return Race(as_operations(aws, "race()"))


@overload
def map(
    function: Callable[[T], Awaitable[R]],
    items: Iterable[T],
    *,
    concurrency: int,
    return_exceptions: Literal[False] = ...,
) -> Call[list[R]]: ...
@overload
def map(
    function: Callable[[T], Awaitable[R]], items: Iterable[T], *, concurrency: int, return_exceptions: bool
) -> Call[list[R | BaseException]]: ...
def map(
    function: Callable[[Any], Awaitable[Any]],
    items: Iterable[Any],
    *,
    concurrency: int,
    return_exceptions: bool = False,
) -> Call[Any]:
    """Call a step, workflow or helper for each item, at most `concurrency` at the same time.

    Gives the results as a list, in the order of the items. The next item is taken from the iterable when a call is
    done. The first exception cancels the calls that run, and is raised; with `return_exceptions` exceptions are put in
    the list instead. Each item makes at least two events in the history: above about ten thousand items, split them
    among child runs. Raises `UsageError` if `concurrency` is not an integer >= 1.

    >>> vectors = await sf.map(embed, documents, concurrency=100)
    """
    active_machine("map()")
    check_callable(function, "map()")
    if not isinstance(concurrency, int) or concurrency < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"sf.map(): concurrency must be an integer >= 1, got {concurrency!r}")
    return Map(function, items, concurrency, return_exceptions)


def task_group() -> TaskGroup:
    """A block that ends when everything that was started in it has ended, as a task group of anyio.

    The first task that fails cancels the others and the block; all errors are raised as one `ExceptionGroup`.

    >>> async with sf.task_group() as group:
    ...     page = group.start_soon(fetch, url)
    ...     group.start_soon(notify, "started")
    ... text = await page
    """
    return TaskGroup()


def timeout(duration: float | timedelta | None) -> Timeout:
    """A block that may take at most `duration`, in seconds or a timedelta; None: any time.

    After that, what the block waits for is cancelled, and the block raises the built-in `TimeoutError`. Works with
    `with` and `async with`; `expired` of the block says afterwards whether the time was over. Raises `UsageError` for a
    duration that is not a finite number of seconds.

    >>> with sf.timeout(3600):
    ...     approved = await sf.signal("approve", bool)
    """
    return Timeout(None if duration is None else milliseconds(duration, "timeout()"))


def shield() -> Shield:
    """A block that isn't interrupted by a cancel or a time-out from outside: that is raised at the next await after it.

    >>> with sf.shield():
    ...     await release(lock)
    """
    return Shield()


def saga() -> Saga:
    """A block that is undone when it fails or is cancelled: its compensations run in reverse, shielded and durable.

    Raises what ended the block, or `CompensationFailed` if a compensation failed (all others were run).

    >>> async with sf.saga() as saga:
    ...     saga.compensate(cancel_flight, trip)
    ...     await book_flight(trip)
    """
    return Saga()


# --- time, signals, questions -----------------------------------------------------------------------------------------


def sleep(duration: float | timedelta, *, tag: str = "") -> Call[None]:
    """A durable timer of `duration`, in seconds or a timedelta. A reducer gets `tag` in its `TimerDone`.

    Raises `UsageError` for a duration that is not a finite number of seconds.

    >>> await sf.sleep(timedelta(days=30))
    """
    active_machine("sleep()")
    return Sleep(milliseconds(duration, "sleep()"), check_text("tag", tag))


@overload
def signal(name: SignalDefinition[T], *, timeout: float | timedelta | None = None) -> Call[T]: ...
@overload
def signal(name: str, type: type[T], timeout: float | timedelta | None = None) -> Call[T]: ...
@overload
def signal(name: str, type: Any = ..., timeout: float | timedelta | None = None) -> Call[Any]: ...
def signal(name: str | SignalDefinition[Any], type: Any = UNSET, timeout: float | timedelta | None = None) -> Call[Any]:
    """Wait for a signal called `name`; gives its value, checked against `type`. Of a definition the type is known, and
    of a name that the workflow declares as well.

    Signals of one name are taken in the order in which they were received. One that is received before a wait is kept
    for the next wait. One whose value is not of the `type` is skipped, with a warning in the daemon's log.

    `timeout` is in seconds or a timedelta; after it the built-in `TimeoutError` is raised. Raises `InvalidName`,
    `PayloadInvalid` for a type that can't be decoded, and `UsageError` for a signal that the workflow doesn't declare
    although it declares its signals.

    >>> approved = await sf.signal("approve", bool, timeout=3600)
    """
    declared = _declared_here(active_machine("signal()"))
    name, type_, _ = declared.expected("signal", name, type)
    return SignalWait(name, type_, None if timeout is None else milliseconds(timeout, "signal()"))


@overload
def send_signal(run_id: str, name: SignalDefinition[None]) -> Call[None]: ...
@overload
def send_signal(run_id: str, name: SignalDefinition[T], value: T) -> Call[None]: ...
@overload
def send_signal(run_id: str, name: str, value: object = None) -> Call[None]: ...
def send_signal(run_id: str, name: str | SignalDefinition[Any], value: object = None) -> Call[None]:
    """Send a signal to the run with the id `run_id`. Settled as soon as it is recorded; it is delivered exactly once.

    A signal to a run that doesn't exist or has ended is dropped. Raises `InvalidName`, `PayloadInvalid`,
    `PayloadTooLarge`.

    >>> await sf.send_signal("order-17", "paid", receipt)
    """
    active_machine("send_signal()")
    return SignalSend(run_id, UNDECLARED, name, value)


@overload
def question(name: QuestionDefinition[T, Any], *, timeout: float | timedelta | None = None) -> Call[Question[T]]: ...
@overload
def question(name: str, type: type[T], timeout: float | timedelta | None = None) -> Call[Question[T]]: ...
@overload
def question(name: str, type: Any = ..., timeout: float | timedelta | None = None) -> Call[Question[Any]]: ...
def question(
    name: str | QuestionDefinition[Any, Any], type: Any = UNSET, timeout: float | timedelta | None = None
) -> Call[Question[Any]]:
    """Wait for a question called `name`, from `run.ask(name, value)`; gives a `Question`. Of a definition the types of
    question and answer are known, and of a name that the workflow declares as well.

    The asker waits until its `answer(…)` or `refuse(…)` is called. Questions of one name are taken in the order in
    which they were received; one that is received before a wait is kept for the next wait. One whose value is not of
    the `type` is refused automatically.

    `timeout` is in seconds or a timedelta; after it the built-in `TimeoutError` is raised. Raises `InvalidName`,
    `PayloadInvalid` for a type that can't be decoded, and `UsageError` for a question that the workflow doesn't declare
    although it declares its questions.

    >>> change = await sf.question("set-limit", int)
    >>> change.answer("accepted" if change.value < 100 else "too high")
    """
    declared = _declared_here(active_machine("question()"))
    name, type_, definition = declared.expected("question", name, type)
    ms = None if timeout is None else milliseconds(timeout, "question()")
    return AskWait(name, type_, ms, Any if definition is None else definition.answer)


# --- what others can read ---------------------------------------------------------------------------------------------


def set_attributes(**values: Attribute | None) -> None:
    """Set attributes of this run, by which `client.runs(attributes=…)` and `streamflow runs --attribute` find it.

    A value is a str of at most 256 characters, a 64-bit int, a float or a bool; None removes the attribute. Attributes
    that are not named stay. The change is visible when the current transition is committed, and stays until the run is
    deleted.

    Raises `InvalidName`, `UsageError` (another type, or more than 32 attributes), `PayloadTooLarge` (more than 2 KB
    together).

    >>> sf.set_attributes(customer="acme", priority=2)
    """
    active_machine("set_attributes()").set_attributes(check_attributes(values))


@overload
def publish(key: PublishedDefinition[T], value: T) -> None: ...
@overload
def publish(key: str, value: object) -> None: ...
def publish(key: str | PublishedDefinition[Any], value: object) -> None:
    """Publish a value that others can read: `await run.read(key)` gives the newest one, without disturbing the run.

    It is visible when the current transition is committed, and stays until the run is deleted. Raises `InvalidName`,
    `PayloadInvalid` (also for a value that isn't of the type that the definition has), `PayloadTooLarge`, and
    `UsageError` for a key that the workflow doesn't declare although it declares what it publishes.

    >>> sf.publish("progress", {"done": 3, "of": 10})
    """
    machine = active_machine("publish()")
    machine.publish(*_declared_here(machine).payload("key", key, value))


# --- children ---------------------------------------------------------------------------------------------------------


@overload
def start(
    workflow: Callable[[*Ts], Awaitable[R]],
    /,
    *args: *Ts,
    id: str | UnsetType = ...,
    tenant: str | UnsetType = ...,
    on_parent_end: OnParentEnd | UnsetType = ...,
) -> Call[Child[R]]: ...
@overload
def start(workflow: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> Call[Child[R]]: ...
def start(
    workflow: Callable[..., Awaitable[Any]],
    /,
    *args: Any,
    id: str | UnsetType = UNSET,
    tenant: str | UnsetType = UNSET,
    on_parent_end: OnParentEnd | UnsetType = UNSET,
    **kwargs: Any,
) -> Call[Child[Any]]:
    """Start a child run without waiting for it; gives a `Child` with `id`, `result()`, `signal(…)` and `cancel(…)`.

    `on_parent_end` says what happens to it when this run ends first: `"cancel"`, the default, cancels it, `"abandon"`
    lets it continue on its own, `"wait"` delays the end of this run until the child has ended. `id`, `tenant` and
    `on_parent_end` are those of `workflow.options()`: what isn't given here is what was given there, and so is all of
    it when the workflow's arguments are given by keyword. Raises `UsageError` for what is not a workflow or reducer, or
    for another `on_parent_end`.

    >>> audit = await sf.start(audit_trail, order, on_parent_end="abandon")
    """
    active_machine("start()")
    if not isinstance(workflow, Startable):
        raise UsageError(f"sf.start(): {workflow!r} is not a workflow or reducer: decorate it with @app.workflow")
    target = workflow.options(id=id, tenant=tenant, on_parent_end=on_parent_end)
    return ChildStart(ChildCall(target, args, kwargs))


# --- facts about the run ----------------------------------------------------------------------------------------------


def now() -> datetime:
    """The time of the current transition on the shard's clock, as an aware datetime in UTC. A replay gives the same."""
    return active_machine("now()").now()


def uuid4() -> _uuid.UUID:
    """A random UUID. A replay gives the same."""
    return _uuid.UUID(int=active_machine("uuid4()").rng.getrandbits(128), version=4)


def random() -> float:
    """A random number `0 <= x < 1`. A replay gives the same."""
    return active_machine("random()").rng.random()


def info() -> RunInfo:
    """What this run knows about itself: its id, workflow, tenant, parent, history length, generation and version."""
    machine = active_machine("info()")
    parent = machine.parent.rpartition("#")[0]
    return RunInfo(
        machine.run_id,
        machine.workflow,
        machine.tenant,
        parent,
        machine.events_before,
        machine.generation,
        machine.version,
    )


def patched(name: str) -> bool:
    """Whether this run executes the new branch of a change in its workflow's code.

    True for a run that reaches this line for the first time with the new code, False for one that had already passed it
    with the old code. The answer is recorded, and doesn't change for the run. Raises `InvalidName`.

    >>> if sf.patched("ask-twice"):
    ...     await confirm(order)
    """
    return active_machine("patched()").patched(check_name("patch", name))


def milliseconds(duration: float | timedelta, what: str) -> int:
    """`duration` in whole ms, rounded up, at least 0. Raises `UsageError`; `what` names the function in its message."""
    seconds = seconds_of(duration)
    if seconds is None:
        raise UsageError(f"sf.{what}: duration must be seconds or a timedelta, at most 1e11 seconds, got {duration!r}")
    return max(math.ceil(round(seconds * 1000, 3)), 0)  # rounded up, but 1.1 s is 1100 ms in spite of binary fractions


def _declared_here(machine: Machine) -> Declared:
    """What the workflow declares whose code runs."""
    return machine.app.declared_by(machine.workflow, machine.version)
