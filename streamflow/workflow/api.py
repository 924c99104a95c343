"""The functions that work inside a workflow: what `sf.…` means there.

Owns: their names, types and docstrings, and the checks of their arguments.
Must not: decide or drive anything: each makes an operation, or tells the active machine. Called by: user workflows.
"""

from __future__ import annotations

import math
import uuid as _uuid
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timedelta
from typing import Any, Literal, TypeVar, TypeVarTuple, overload

import msgspec

from streamflow.errors import UsageError
from streamflow.model import codec
from streamflow.model.attributes import Attribute, check_attributes
from streamflow.model.names import check_name
from streamflow.workflow.actions import AskWait, Child, ChildCall, ChildStart, Question, SignalSend, SignalWait, Sleep
from streamflow.workflow.app import OnParentEnd, Startable
from streamflow.workflow.awaitable import active_machine
from streamflow.workflow.concurrency import (
    Gather,
    Map,
    Race,
    Shield,
    TaskGroup,
    Timeout,
    as_operations,
    check_callable,
)
from streamflow.workflow.saga import Saga

R = TypeVar("R")
T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")
T5 = TypeVar("T5")
Ts = TypeVarTuple("Ts")


class RunInfo(msgspec.Struct, frozen=True):
    """What `sf.info()` gives: who this run is. `parent` is the parent's run id, or empty.

    `events`: how long its history was before the present transition; `generation`: how often it has continued as new;
    `version`: the one of the workflow's code that it began with.
    """

    run_id: str
    workflow: str
    tenant: str
    parent: str
    events: int = 0
    generation: int = 0
    version: int = 0


# --- several things at once -------------------------------------------------------------------------------------------


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
    raised at once (the others go on and their outcomes are recorded, as in asyncio; `sf.task_group` cancels them),
    unless `return_exceptions` puts it in the list. When the gather itself is cancelled, so are all of them.

    >>> pages = await sf.gather(*(fetch(url) for url in urls))
    """
    active_machine("gather()")
    return Gather(as_operations(aws, "gather()"), return_exceptions)


# fmt: off
@overload
def race(a: Awaitable[T1], b: Awaitable[T2], /) -> Awaitable[T1 | T2]: ...
@overload
def race(a: Awaitable[T1], b: Awaitable[T2], c: Awaitable[T3], /) -> Awaitable[T1 | T2 | T3]: ...
@overload
def race(*aws: Awaitable[T]) -> Awaitable[T]: ...
# fmt: on
def race(*aws: Awaitable[Any]) -> Awaitable[Any]:
    """The outcome of the first that is done, a result or an exception. The losers are cancelled.

    If several are done at the same time, the first argument wins. Helpers that lose get `Cancelled` and may clean up:
    the race is over when they have. Raises `UsageError` without arguments.

    >>> answer = await sf.race(ask_model(question), ask_other_model(question))
    """
    active_machine("race()")
    if not aws:
        raise UsageError("sf.race() needs at least one awaitable")
    return Race(as_operations(aws, "race()"))


@overload
def map(
    function: Callable[[T], Awaitable[R]],
    items: Iterable[T],
    *,
    concurrency: int,
    return_exceptions: Literal[False] = ...,
) -> Awaitable[list[R]]: ...
@overload
def map(
    function: Callable[[T], Awaitable[R]], items: Iterable[T], *, concurrency: int, return_exceptions: bool
) -> Awaitable[list[R | BaseException]]: ...
def map(
    function: Callable[[Any], Awaitable[Any]],
    items: Iterable[Any],
    *,
    concurrency: int,
    return_exceptions: bool = False,
) -> Awaitable[Any]:
    """Call a step, workflow or helper for every item, at most `concurrency` at the same time; results in order.

    Items are taken from the iterable as places get free. The first exception cancels those that run and is raised,
    unless `return_exceptions` puts it in the list. Each item is two events or more of the history: above some ten
    thousand, split them among child runs.

    >>> vectors = await sf.map(embed, documents, concurrency=100)
    """
    active_machine("map()")
    check_callable(function, "map()")
    if not isinstance(concurrency, int) or concurrency < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"sf.map(): concurrency={concurrency!r} makes no sense; it is a whole number of at least 1")
    return Map(function, items, concurrency, return_exceptions)


def task_group() -> TaskGroup:
    """A block that ends when all that was started in it has ended, in the manner of anyio.

    The first one that fails cancels the others, and the block; the errors are raised as an `ExceptionGroup`.

    >>> async with sf.task_group() as group:
    ...     page = group.start_soon(fetch, url)
    ...     group.start_soon(notify, "started")
    ... text = await page
    """
    return TaskGroup()


def timeout(duration: float | timedelta | None) -> Timeout:
    """A block that may take `duration` seconds (or a timedelta; None: for ever), on the shard's clock.

    What the block waits for then is cancelled, and the block raises the builtin `TimeoutError`. Works with `with` and
    `async with`.

    >>> with sf.timeout(3600):
    ...     approved = await sf.signal("approve", bool)
    """
    return Timeout(None if duration is None else milliseconds(duration, "timeout()"))


def shield() -> Shield:
    """A block that isn't interrupted by a cancel or a time-out from outside it: that comes at the next await after it.

    >>> with sf.shield():
    ...     await release(lock)
    """
    return Shield()


def saga() -> Saga:
    """A block that is undone when it fails or is cancelled: compensations run in reverse, shielded and durable.

    Raises what ended the block; `CompensationFailed` if a compensation failed for good (the others ran all the same).

    >>> async with sf.saga() as saga:
    ...     saga.compensate(cancel_flight, trip)
    ...     await book_flight(trip)
    """
    return Saga()


# --- time, signals, questions -----------------------------------------------------------------------------------------


def sleep(duration: float | timedelta, *, tag: str = "") -> Awaitable[None]:
    """A durable timer: seconds or a timedelta. `tag` comes back in a reducer's `TimerDone`."""
    active_machine("sleep()")
    return Sleep(milliseconds(duration, "sleep()"), tag)


@overload
def signal(name: str, type: type[T], timeout: float | timedelta | None = None) -> Awaitable[T]: ...
@overload
def signal(name: str, type: Any = ..., timeout: float | timedelta | None = None) -> Awaitable[Any]: ...
def signal(name: str, type: Any = Any, timeout: float | timedelta | None = None) -> Awaitable[Any]:
    """Wait for a signal, first come, first served per name; one that came early is kept for the next wait.

    A value that isn't of the `type` is skipped. Raises the builtin `TimeoutError` after `timeout` seconds.

    >>> approved = await sf.signal("approve", bool, timeout=3600)
    """
    active_machine("signal()")
    codec.decoder_for(type)
    return SignalWait(check_name("signal", name), type, None if timeout is None else milliseconds(timeout, "signal()"))


def send_signal(run_id: str, name: str, value: object = None) -> Awaitable[None]:
    """Send a signal to another run; done as soon as it is recorded. Raises `InvalidName`, `PayloadInvalid`."""
    active_machine("send_signal()")
    return SignalSend(run_id, name, value)


@overload
def question(name: str, type: type[T], timeout: float | timedelta | None = None) -> Awaitable[Question[T]]: ...
@overload
def question(name: str, type: Any = ..., timeout: float | timedelta | None = None) -> Awaitable[Question[Any]]: ...
def question(name: str, type: Any = Any, timeout: float | timedelta | None = None) -> Awaitable[Question[Any]]:
    """Wait for a question from `run.ask(name, value)`, first come, first served per name; early ones are kept.

    Somebody waits for its `answer(…)` or `refuse(…)`. One whose value isn't of the `type` is refused by itself. Raises
    the builtin `TimeoutError` after `timeout` seconds.

    >>> change = await sf.question("set-limit", int)
    >>> change.answer("accepted" if change.value < 100 else "too high")
    """
    active_machine("question()")
    codec.decoder_for(type)
    name = check_name("question", name)
    return AskWait(name, type, None if timeout is None else milliseconds(timeout, "question()"))


# --- telling others ---------------------------------------------------------------------------------------------------


def set_attributes(**values: Attribute | None) -> None:
    """Give this run attributes, by which `client.runs(attributes=…)` and `streamflow runs --attribute` find it.

    A value is a str of at most 256 characters, an int, float or bool; None takes the attribute off; what isn't named
    stays. They are there when the decisions of this moment are committed, and until the run is forgotten.
    Raises `InvalidName`, `UsageError` (another type, more than 32), `PayloadTooLarge` (more than 2 KB together).

    >>> sf.set_attributes(customer="acme", priority=2)
    """
    active_machine("set_attributes()").set_attributes(check_attributes(values))


def publish(key: str, value: object) -> None:
    """Let others read a value while the run goes on: `await run.read(key)` gives the newest one. The run isn't asked.

    It is there when the decisions of this moment are committed, and until the run is forgotten.
    Raises `InvalidName`, `PayloadInvalid`, `PayloadTooLarge`.

    >>> sf.publish("progress", {"done": 3, "of": 10})
    """
    machine = active_machine("publish()")
    machine.publish(check_name("key", key), codec.encode(value, f"published value {key}"))


# --- children ---------------------------------------------------------------------------------------------------------


def start(
    workflow: Callable[[*Ts], Awaitable[R]],
    *args: *Ts,
    id: str = "",
    tenant: str = "",
    on_parent_end: OnParentEnd = "cancel",
) -> Awaitable[Child[R]]:
    """Start a child run and go on; gives its handle, with `id`, `result()`, `signal(…)` and `cancel(…)`.

    `on_parent_end` says what happens to it when this run ends before it: `"cancel"`, `"abandon"` (it goes on alone), or
    `"wait"` (this run ends when it has). `id` and `tenant` as in `workflow.options()`.

    >>> audit = await sf.start(audit_trail, order, on_parent_end="abandon")
    """
    active_machine("start()")
    if not isinstance(workflow, Startable):
        raise UsageError(f"sf.start() takes a workflow or reducer, not {workflow!r}")
    target = workflow.options(id=id, tenant=tenant, on_parent_end=on_parent_end)
    return ChildStart(ChildCall(target, args, {}))


# --- facts about the run ----------------------------------------------------------------------------------------------


def now() -> datetime:
    """The time of the current transition on the shard's clock, aware, in UTC. A replay gives the same."""
    return active_machine("now()").now()


def uuid4() -> _uuid.UUID:
    """A random UUID that a replay makes again."""
    return _uuid.UUID(int=active_machine("uuid4()").rng.getrandbits(128), version=4)


def random() -> float:
    """A random number from 0 up to 1 that a replay makes again."""
    return active_machine("random()").rng.random()


def info() -> RunInfo:
    """Who this run is."""
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
    """Whether this run takes the new way of a change in its workflow's code: True for runs that come here first with
    the new code, False for those that had passed here before. The answer is recorded, and stays the same for the run.

    >>> if sf.patched("ask-twice"):
    ...     await confirm(order)
    """
    return active_machine("patched()").patched(check_name("patch", name))


def milliseconds(duration: float | timedelta, what: str) -> int:
    try:
        seconds = duration.total_seconds() if isinstance(duration, timedelta) else float(duration)
    except (TypeError, ValueError):
        seconds = math.nan
    if not math.isfinite(seconds) or seconds > 1e11:
        raise UsageError(f"sf.{what}: {duration!r} is no duration: use seconds or a timedelta, at most 1e11 seconds")
    return max(math.ceil(round(seconds * 1000, 3)), 0)  # rounded up, but 1.1 is 1100 whatever binary fractions say
