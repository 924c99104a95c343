"""Every error that streamflow raises, as one tree.

Owns: the exception classes and the text that says what happened, to which run, and what to do next.
Must not: import anything from the rest of the package but `text.py`. Called by: every layer.

    StreamflowError
    ├── UsageError                  the caller's code or options are wrong; nothing was sent
    │   ├── InvalidName             an id, tenant or name outside the alphabet or too long
    │   ├── PayloadTooLarge         a payload above 2 MB
    │   ├── PayloadInvalid          can't be encoded, can't be decoded as the declared type, nested too deep
    │   ├── UnknownView             no daemon has merged a view of that name
    │   ├── UnknownWorkflow         no daemon has registered the workflow
    │   └── ForeignAwait            a workflow awaited something that is not streamflow's
    ├── StoreError                  the server refused a command or can't be reached
    │   ├── StoreUnavailable        no connection, server loading its data, or time-out after every retry
    │   ├── StoreFull               out of memory: no new work is accepted, running work drains
    │   ├── StoreMisconfigured      a server setting would lose data (maxmemory-policy, version)
    │   ├── ArchiveError            the archive of ended runs can't be used
    │   │   └── ArchiveDamaged      an object in it isn't what was written
    │   ├── NamespaceMissing        the namespace was not created yet
    │   └── NamespaceMismatch       the namespace exists with other shards or another partition
    ├── RunError                    about one run: .run_id
    │   ├── RunNotFound             there is no run with this id
    │   ├── RunEnded                the run has ended and takes no more messages
    │   ├── RunConflict             the id belongs to a run of another workflow
    │   │   └── RunExists           start(on_existing="reject"): the id belongs to a run: .status
    │   ├── NotForked               fork(): there is no fork: .failure
    │   ├── NotRetried              retry(): the run doesn't go on: .failure
    │   ├── RunFailed               result() of a failed run: .failure
    │   │   └── RunTimedOut         its time-out was over
    │   └── RunCancelled            result() of a cancelled run
    ├── GroupRemoved                the group of subscribers was removed while it was read
    ├── AskRefused                  ask(): the run refused to answer: .run_id, .name, .failure
    ├── CompensationFailed          inside a workflow: a saga could not undo everything: .errors
    ├── HistoryTooLong              inside a workflow: the history reached its limit; continue as new now
    ├── StepFailed                  inside a workflow: a step failed after its retries: .step, .attempt, .failure
    ├── ChildFailed                 inside a workflow: a child run failed: .run_id, .workflow, .failure
    └── Diverged                    replayed code made a different decision from the recorded one; the run is stuck

Two are raised by your code, in a step or workflow:

    Exception
    ├── Fatal                       the step fails without another attempt: .data
    └── RetryLater                  the step's next attempt begins after .retry_after seconds: .data

Two do not derive from `Exception`, so that an `except Exception` in a workflow doesn't swallow them:

    asyncio.CancelledError
    └── Cancelled                   inside a workflow: the run or the block around the await is cancelled
    BaseException
    └── ContinueAs                  raised by a workflow: continue as new under the same id with a new history
"""

from __future__ import annotations

import pickle
from asyncio import CancelledError  # the class only: a cancelled workflow sees what any cancelled coroutine sees
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Self, SupportsIndex, TypeVar, cast, overload

import msgspec

from streamflow.text import recordable, text_of, type_name

T = TypeVar("T")

MAX_MESSAGE = 4096
"""Bytes of a failure's message."""
MAX_TRACEBACK = 8192
"""Bytes of a failure's traceback."""
MAX_RETRY_AFTER = 1e8
"""Seconds: three years. An attribute `retry_after` above it isn't seconds."""


class Failure(msgspec.Struct, array_like=True, frozen=True):
    """Why a step or run failed, as it is recorded in the history.

    `str(failure)` is `kind: message`. All of it has at most about 24 KB; what is longer is cut.
    """

    kind: str
    """Name of the exception's class, for example `ValueError`."""
    message: str
    """The exception's text, at most 4096 bytes. That of an exception group names the exceptions in it."""
    traceback: str = ""
    """The frames of the user's code, with those of its causes and members as Python prints them, at most 8192 bytes;
    empty where there was no exception."""
    notes: tuple[str, ...] = ()
    """What was added to the exception with `add_note`."""
    fields: dict[str, Any] = {}
    """The exception's own attributes that are plain data, as `{"code": "declined", "retry_after": 30}`: at most 16,
    without those whose names begin with `_`. The `data` of a `Fatal` or `RetryLater` is one of them."""
    cause: Failure | None = None
    """The exception that it was raised `from`; of a `StepFailed` or `ChildFailed` the failure of the step or child."""
    context: Failure | None = None
    """The exception that was being handled when it was raised, unless it was raised `from` something."""
    members: tuple[Failure, ...] = ()
    """The exceptions in an exception group: the first ten."""

    def __post_init__(self) -> None:
        # Every failure is encoded into a history, so what can't be encoded never gets into one.
        for name, limit in (("kind", 256), ("message", MAX_MESSAGE), ("traceback", MAX_TRACEBACK)):
            value: object = getattr(self, name)
            text = recordable(value, limit)
            if text is not value:
                msgspec.structs.force_setattr(self, name, text)

    @overload
    def data(self, type: type[T]) -> T: ...

    @overload
    def data(self, type: Any) -> Any: ...

    def data(self, type: Any) -> Any:
        """What the exception carried, decoded as `type`: the `data` of an `sf.Fatal` or `sf.RetryLater`, else all its
        `fields`, as a class with a field for each. Of a `StepFailed`, `ChildFailed` or `RunFailed` it is that of the
        failure which it stands for. Raises `PayloadInvalid` if it isn't a `type`.

        >>> except sf.RunFailed as error:
        ...     decline = error.failure.data(Decline)
        """
        failure = self
        while failure.kind in _STAND_FOR_ANOTHER and failure.cause is not None:
            failure = failure.cause
        value = failure.fields.get("data", failure.fields)
        return _decoding["data"](value, type, f"data of {failure.kind}")

    def __hash__(self) -> int:
        return hash((self.kind, self.message, self.traceback))

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}" if self.message else self.kind


_STAND_FOR_ANOTHER = ("StepFailed", "ChildFailed", "RunFailed")
_decoding: dict[str, Callable[[Any, Any, str], Any]] = {}
"""How `data` is decoded: `model/codec.py`, which this file can't import, has put it here."""


def decode_data_with(decode: Callable[[Any, Any, str], Any]) -> None:
    """`decode(plain value, type, what it is)` is what `Failure.data` calls."""
    _decoding["data"] = decode


class _Portable(BaseException):
    """Exceptions that can be copied, and pickled to another process, with their attributes, notes, cause and context.

    The default calls the class with `args`, which are those of `BaseException`, not those of the class. What doesn't
    pickle is replaced: an exception by a `StreamflowError` with its name and text, anything else by None.
    """

    def __copy__(self) -> Self:
        return cast("Self", _rebuilt(type(self), self.args, self.__dict__, _chain_of(self)))

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        args = tuple(_picklable(value) for value in self.args)
        state = {name: _picklable(value) for name, value in self.__dict__.items()}
        cause, context, suppress = _chain_of(self)
        return _rebuilt, (type(self), args, state, (_picklable(cause), _picklable(context), suppress))


_Chain = tuple[BaseException | None, BaseException | None, bool]


def _chain_of(error: BaseException) -> _Chain:
    return error.__cause__, error.__context__, error.__suppress_context__


def _rebuilt(kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any], chain: _Chain) -> BaseException:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    error.__cause__, error.__context__, error.__suppress_context__ = chain
    return error


def _picklable(value: Any) -> Any:
    if value is None or isinstance(value, str | int | Failure):
        return value
    if isinstance(value, list):
        return [_picklable(item) for item in cast("list[Any]", value)]
    try:
        pickle.loads(pickle.dumps(value))
    except Exception:
        return StreamflowError(f"{type_name(value)}: {text_of(value)}") if isinstance(value, BaseException) else None
    return value


class StreamflowError(_Portable, Exception):
    """Root of every error that streamflow raises on purpose."""


class UsageError(StreamflowError):
    """The caller's code, arguments or options are wrong. Nothing was sent to the server."""


class InvalidName(UsageError):
    """An id, tenant, step or workflow name is outside the alphabet or too long."""


class PayloadTooLarge(UsageError):
    """A payload is above 2 MB; the message has its size and the limit, in bytes."""


class PayloadInvalid(UsageError):
    """A payload can't be encoded, can't be decoded as the declared type, or is nested more than 64 levels deep."""


class UnknownWorkflow(UsageError):
    """No daemon has registered the workflow; the message lists the known names."""


class UnknownView(UsageError):
    """No daemon has counted a view of that name; the message lists the known names."""


class ForeignAwait(UsageError):
    """A workflow awaited something other than streamflow's own awaitables; the message names file and line."""


class StoreError(StreamflowError):
    """The Redis or Valkey server refused a command or can't be reached."""


class StoreUnavailable(StoreError):
    """No connection, or no definite answer after every retry."""


class Unconfirmed(StoreUnavailable):
    """The server has executed it, and didn't confirm within the patience that it is as safe as the namespace's
    `durability` asks for. It may be lost in a failure; to call again is safe."""


class StoreFull(StoreError):
    """The server has no memory for new work: nothing was started. Running work continues and frees memory."""


class StoreMisconfigured(StoreError):
    """A server setting would lose data; the message says which one, and how to change it."""


class ArchiveError(StoreError):
    """The storage of ended runs can't be reached, refuses, or doesn't answer. Nothing was deleted from the server."""


class ArchiveDamaged(ArchiveError):
    """An object in the archive isn't what was written there, or another version of streamflow has written it; the
    message has its name. All others can be read."""


class NamespaceMissing(StoreError):
    """The namespace doesn't exist yet: the first daemon creates it."""


class NamespaceMismatch(StoreError):
    """The namespace exists with another number of shards or another partition; both are in the message."""


class RunError(StreamflowError):
    """Base of errors about one run. `run_id` is its id."""

    def __init__(self, message: str, run_id: str) -> None:
        super().__init__(message)
        self.run_id = run_id


class RunNotFound(RunError):
    """There is no run with this id in the namespace: it was never started, or was deleted after its retention."""


class RunEnded(RunError):
    """The run has ended and takes no more signals, questions or cancels."""


class RunConflict(RunError):
    """The id belongs to a run of another workflow."""


class RunExists(RunConflict):
    """Raised by `client.start(…, on_existing="reject")`: there is a run of this id. `status` is that which it had."""

    def __init__(self, message: str, run_id: str, status: str = "") -> None:
        super().__init__(message, run_id)
        self.status = status


class NotForked(RunError):
    """Raised by `run.fork()`: no run was started. `failure` says why.

    `failure.kind`: `SayWhere` (it isn't known from which event the fork should go on), `NoSuchEvent`, `Gone` (that
    event is of the time before the run continued as new), `NotBegun`, `Reducer`, `HistoryTooLong` or `TooLarge`.
    """

    def __init__(self, run_id: str, failure: Failure) -> None:
        super().__init__(failure.message, run_id)
        self.failure = failure


class NotRetried(RunError):
    """Raised by `run.retry()`: nothing has changed. `failure` says why.

    `failure.kind`: `NotFailed` (only a failed run can be retried), `StepsUndone` (the run has done something because of
    its failure; `anyway=True`), `Diverged` (its history doesn't fit today's code), `EndedBefore`,
    `ParentFailed` (`alone=True`), `Reducer`, `NothingKept`, `HistoryTooLong` or `TransitionTooLarge`. With a step also
    `NotOpen`, `SeveralOpen` or `Stuck`.
    """

    def __init__(self, run_id: str, failure: Failure) -> None:
        super().__init__(failure.message, run_id)
        self.failure = failure


class RunFailed(RunError):
    """Raised by `run.result()`: the run failed. `failure` says why: kind, message, cause and more."""

    def __init__(self, run_id: str, failure: Failure) -> None:
        super().__init__(f"run {run_id} failed: {failure}", run_id)
        self.failure = failure


class RunTimedOut(RunFailed):
    """Raised by `run.result()`: the run failed because it had not ended within its time-out. Its code was cancelled,
    and could clean up."""


class RunCancelled(RunError):
    """Raised by `run.result()`: the run was cancelled."""


class StepFailed(StreamflowError):
    """Raised at `await step(…)` inside a workflow: the step failed, and is not retried any more.

    `step` is its name, `attempt` the number of its last attempt (from 1), `failure` is what was recorded of the
    step's exception: kind, message, notes, fields, cause.

    >>> try:
    ...     await charge(card)
    ... except sf.StepFailed as error:
    ...     return error.failure.fields.get("code")
    """

    def __init__(self, step: str, attempt: int, failure: Failure) -> None:
        super().__init__(f"step {step} failed after {attempt} attempt{'s' * (attempt != 1)}: {failure}")
        self.step = step
        self.attempt = attempt
        self.failure = failure


class ChildFailed(StreamflowError):
    """Raised at `await workflow(…)` inside a workflow: the child run failed or was cancelled.

    `run_id` is the child's id, `workflow` its workflow; `failure.kind` is `RunCancelled` for a cancelled child.
    """

    def __init__(self, run_id: str, workflow: str, failure: Failure) -> None:
        super().__init__(f"child run {run_id} ({workflow}) failed: {failure}")
        self.run_id = run_id
        self.workflow = workflow
        self.failure = failure


class GroupRemoved(StreamflowError):
    """The group of subscribers was removed while it was read."""


class AskRefused(StreamflowError):
    """Raised by `run.ask(…)`: the run refused the question, or could not read it or answer it.

    `name` is the question's name. `failure.kind` is `Refused` for `question.refuse(…)`, `PayloadInvalid` for a value of
    another type, `ContinuedAsNew` for a run that continued as new before it answered; `failure.message` has the reason.
    """

    def __init__(self, run_id: str, name: str, failure: Failure) -> None:
        super().__init__(f"run {run_id} refused question {name}: {failure}")
        self.run_id = run_id
        self.name = name
        self.failure = failure


class CompensationFailed(StreamflowError):
    """Raised by a saga: at least one compensation failed; all others were run.

    `errors` has the exceptions of the failed ones, in the order in which they ran; `__cause__` is the exception because
    of which the saga was undone.
    """

    def __init__(self, errors: list[BaseException]) -> None:
        count = len(errors)
        reasons = "; ".join(f"{type_name(error)}: {text_of(error)}" for error in errors)
        super().__init__(f"{count} compensation{'s' * (count != 1)} failed: {reasons}")
        self.errors = errors


class HistoryTooLong(StreamflowError):
    """Raised at a workflow's current await when its history has 50,000 events: raise `sf.ContinueAs(…)` soon.

    A run that doesn't continue as new fails at 55,000 events.
    """


class Fatal(_Portable, Exception):
    """Raise it in a step: the step fails without another attempt, whatever its retry policy says. In a workflow or
    reducer it fails the run, as other exceptions do.

    `data` is for the code that handles it: any value that could be a result, of at most 4 KB. The workflow reads it
    with `error.failure.data(Decline)`, and so does who waits for the run's result. Classes of your own may derive from
    it. In a group of exceptions it is as final.

    >>> raise sf.Fatal("the card was declined", data=Decline(code="51"))
    """

    data: Any = None

    def __init__(self, message: object = "", *, data: Any = None) -> None:
        super().__init__(message)
        if data is not None:
            self.data = data


class RetryLater(_Portable, Exception):
    """Raise it in a step: the next attempt begins after `retry_after` seconds (or a timedelta), instead of after the
    pause of the retry policy. It begins no earlier, and later by up to the policy's `jitter`, so that runs which got
    the same answer don't come back together. The policy's `attempts` and `within` count as for every failure.

    The same goes for any exception with an attribute `retry_after` that is a positive number or a timedelta.
    What isn't positive leaves it at the policy's pause. `data`: as for `Fatal`. Raises `UsageError` for a `retry_after`
    that isn't a number.

    >>> raise sf.RetryLater("too many requests", retry_after=float(response.headers["retry-after"]))
    """

    data: Any = None

    def __init__(self, message: object = "", *, retry_after: float | timedelta, data: Any = None) -> None:
        super().__init__(message)
        seconds: Any = retry_after.total_seconds() if isinstance(retry_after, timedelta) else retry_after
        if type(seconds) not in (int, float) or seconds != seconds:  # NaN
            raise UsageError(f"sf.RetryLater: retry_after must be seconds or a timedelta, got {retry_after!r}")
        self.retry_after = float(max(0, min(seconds, MAX_RETRY_AFTER)))  # what a server has said may be anything
        if data is not None:
            self.data = data


class Cancelled(_Portable, CancelledError):
    """Raised at a workflow's current await when its run, or the block around it, is cancelled.

    Clean up and re-raise it; the clean-up may await steps. `reason` is the text that the canceller gave.

    >>> try:
    ...     await train(model)
    ... except sf.Cancelled:
    ...     await release(machine)
    ...     raise
    """

    def __init__(self, reason: str = "", source: object = None) -> None:
        self.reason = recordable(reason)
        super().__init__(self.reason)
        self.source = source
        """The scope (time-out, task group) that cancels its block; None if the run is cancelled."""

    def again(self) -> Cancelled:
        """A copy: an instance that is raised in two fibers would collect the tracebacks of both."""
        return Cancelled(self.reason, self.source)


class ContinueAs(_Portable):
    """Raise it in a workflow to continue as new: under the same id, with these arguments and a new history.

    Signals and questions that the code has not taken yet are carried over. Open steps are cancelled; children are
    treated as when their parent ends (`on_parent_end`). `run.result()` keeps waiting, and gives the result of the last
    generation.

    >>> raise sf.ContinueAs(cursor, total=total)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("a workflow continues as new")
        self.arguments = args
        self.keywords = kwargs


class Diverged(StreamflowError):
    """Replayed code made a different decision from the recorded one. The run is parked as `stuck`; it does not fail.

    `number` is the event's number in the history (from 1), `expected` what is recorded there, `found` what the code
    did, `line` where it did so (`file:line`, empty if it had ended). Deploy code that makes the recorded decisions, and
    the run continues.
    """

    mend = "Deploy code that makes the recorded decisions, and the run continues."

    def __init__(self, run_id: str, number: int, expected: str, found: str, line: str = "") -> None:
        where = f" at {line}" if line else ""
        super().__init__(
            f"run {run_id} diverged at event {number}: the history has {expected}, the code did {found}{where}. "
            f"{self.mend}"
        )
        self.line = line
        self.run_id = run_id
        self.number = number
        self.expected = expected
        self.found = found
