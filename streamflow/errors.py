"""Every error that streamflow raises, as one tree.

Owns: the exception classes and the text that says what happened, to which run, and what to do next.
Must not: import anything from the rest of the package. Used by every layer.

    StreamflowError
    ├── UsageError                  the caller's code or options are wrong; nothing was sent
    │   ├── InvalidName             an id, tenant or name outside the alphabet or too long
    │   ├── PayloadTooLarge         above 2 MB
    │   ├── PayloadInvalid          can't be encoded, can't be decoded as the declared type, nested too deep
    │   ├── UnknownWorkflow         no daemon has registered it
    │   └── ForeignAwait            a workflow awaited something that is not streamflow's
    ├── StoreError                  the server refused or can't be reached
    │   ├── StoreUnavailable        no connection, loading, or time-out after every retry
    │   ├── StoreFull               out of memory: admission is stopped, running work drains
    │   ├── StoreMisconfigured      a setting would lose data (maxmemory-policy, version)
    │   ├── NamespaceMissing        nothing has created the namespace yet
    │   └── NamespaceMismatch       it exists with other shards or another partition
    ├── RunError                    about one run
    │   ├── RunNotFound
    │   ├── RunEnded                it can't take signals any more
    │   ├── RunConflict             the id belongs to a run of another workflow
    │   ├── RunFailed               result() of a failed run; .failure says why
    │   └── RunCancelled            result() of a cancelled run
    ├── AskRefused                  ask(): the run refused to answer; .failure says why
    ├── CompensationFailed          inside a workflow: a saga couldn't undo everything; .errors
    ├── HistoryTooLong              inside a workflow: continue as new, now
    ├── StepFailed                  inside a workflow: a step failed for good; .failure says why
    ├── ChildFailed                 inside a workflow: a child run failed; .run_id, .failure
    └── Diverged                    a replay made another decision than the history (the run is parked as stuck)

Two are no `Exception`, so that no `except Exception` takes them by accident:

    asyncio.CancelledError
    └── Cancelled                   inside a workflow: the await is over, because the run or a block is cancelled
    BaseException
    └── ContinueAs                  raised by a workflow: go on under the same id with a fresh history
"""

from __future__ import annotations

from asyncio import CancelledError  # the class only: a cancelled workflow sees what any cancelled coroutine sees
from typing import Any

import msgspec


class Failure(msgspec.Struct, array_like=True, frozen=True):
    """Why a step or run failed, as it is recorded: `kind` is the exception's class name."""

    kind: str
    message: str
    traceback: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}" if self.message else self.kind


class StreamflowError(Exception):
    """Root of every error that streamflow raises on purpose."""


class UsageError(StreamflowError):
    """The caller's code, arguments or options are wrong. Nothing was sent."""


class InvalidName(UsageError):
    """An id, tenant, step or workflow name is outside the alphabet or too long."""


class PayloadTooLarge(UsageError):
    """A payload is above the limit; the message has its size and the limit, in bytes."""


class PayloadInvalid(UsageError):
    """A payload can't be encoded, or can't be decoded as the declared type, or is nested too deep."""


class UnknownWorkflow(UsageError):
    """No daemon has registered the workflow; the message lists the known names."""


class ForeignAwait(UsageError):
    """A workflow awaited something other than streamflow's own awaitables; the message names the line."""


class StoreError(StreamflowError):
    """The Redis or Valkey server refused or can't be reached."""


class StoreUnavailable(StoreError):
    """No connection, or no definite answer after every retry."""


class StoreFull(StoreError):
    """The server is out of memory for new work. Running work goes on and frees memory."""


class StoreMisconfigured(StoreError):
    """A server setting would lose data; the message says which and how to change it."""


class NamespaceMissing(StoreError):
    """The namespace doesn't exist yet: the first daemon creates it."""


class NamespaceMismatch(StoreError):
    """The namespace exists with another number of shards or another partition; both are in the message."""


class RunError(StreamflowError):
    """Something about one run; `run_id` says which."""

    def __init__(self, message: str, run_id: str) -> None:
        super().__init__(message)
        self.run_id = run_id


class RunNotFound(RunError):
    """There is no run with this id in the namespace."""


class RunEnded(RunError):
    """The run has ended and takes no more messages."""


class RunConflict(RunError):
    """The id belongs to a run of another workflow."""


class RunFailed(RunError):
    """Raised by `run.result()`: the run failed. `failure` has kind, message and traceback."""

    def __init__(self, run_id: str, failure: Failure) -> None:
        super().__init__(f"run {run_id} failed: {failure}", run_id)
        self.failure = failure


class RunCancelled(RunError):
    """Raised by `run.result()`: the run was cancelled."""


class StepFailed(StreamflowError):
    """Raised at `await step(…)`: the step failed for good. `failure` has kind, message and traceback."""

    def __init__(self, step: str, attempt: int, failure: Failure) -> None:
        super().__init__(f"step {step} failed after {attempt} attempt{'s' * (attempt != 1)}: {failure}")
        self.step = step
        self.attempt = attempt
        self.failure = failure


class ChildFailed(StreamflowError):
    """Raised at `await workflow(…)` inside a workflow: the child run failed or was cancelled."""

    def __init__(self, run_id: str, workflow: str, failure: Failure) -> None:
        super().__init__(f"child run {run_id} ({workflow}) failed: {failure}")
        self.run_id = run_id
        self.workflow = workflow
        self.failure = failure


class AskRefused(StreamflowError):
    """Raised by `run.ask(…)`: the run didn't want to answer, or couldn't. `failure` has kind and message."""

    def __init__(self, run_id: str, name: str, failure: Failure) -> None:
        super().__init__(f"run {run_id} refused question {name}: {failure}")
        self.run_id = run_id
        self.name = name
        self.failure = failure


class CompensationFailed(StreamflowError):
    """Raised by a saga: some compensations failed, the others were run. `errors` has theirs; the cause is why the saga
    was undone."""

    def __init__(self, errors: list[BaseException]) -> None:
        count = len(errors)
        reasons = "; ".join(f"{type(error).__name__}: {error}" for error in errors)
        super().__init__(f"{count} compensation{'s' * (count != 1)} failed: {reasons}")
        self.errors = errors


class HistoryTooLong(StreamflowError):
    """Raised at a workflow's current await: its history is too long to go on. Raise `sf.ContinueAs(…)` soon."""


class Cancelled(CancelledError):
    """Raised at a workflow's current await when its run, or the block around it, is cancelled.

    Clean up and let it pass; awaiting in the clean-up is allowed. `reason`: what the one who cancelled said.
    """

    def __init__(self, reason: str = "", source: object = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.source = source
        """The scope (time-out, task group) that did it; None for the run."""

    def again(self) -> Cancelled:
        """Another instance: one that is raised in two fibers would collect the tracebacks of both."""
        return Cancelled(self.reason, self.source)


class ContinueAs(BaseException):
    """Raise it in a workflow to go on under the same id, with these arguments and a fresh history.

    Signals and questions that nobody took yet are carried over; open steps are cancelled, children as when a parent
    ends. Who waits for the result goes on waiting.

    >>> raise sf.ContinueAs(cursor, total=total)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("a workflow continues as new")
        self.arguments = args
        self.keywords = kwargs


class Diverged(StreamflowError):
    """A replay decided otherwise than the history. Parks the run as `stuck`; never fails it."""

    def __init__(self, run_id: str, number: int, expected: str, found: str) -> None:
        super().__init__(
            f"run {run_id} diverged at event {number}: the history has {expected}, the code did {found}. "
            "Deploy code that makes the recorded decisions and the run goes on."
        )
        self.run_id = run_id
        self.number = number
        self.expected = expected
        self.found = found
