"""What a running step can ask and tell: `sf.step_info()`, `sf.heartbeat()`, `sf.cancelled()`.

Owns: the record of a running attempt, and which one the calling task or thread belongs to.
Must not: start or stop anything. Called by: user code inside steps; the executor and the processes make the records.
"""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

import msgspec
from msgspec import Raw

from streamflow.errors import UsageError
from streamflow.events import NOTHING
from streamflow.model import codec
from streamflow.workflow.actions import StepJob


class StepInfo(msgspec.Struct, frozen=True):
    """What a running step may want to know: `sf.step_info()`. `key` is the same for all attempts of one call; `details`
    is what an attempt before told last with `sf.heartbeat`, as plain data."""

    run_id: str
    step: str
    attempt: int
    key: str
    details: Any = None


class Running(msgspec.Struct):
    """One attempt that runs or waits for its turn."""

    shard: int
    run_id: str
    job: StepJob
    details: Raw = NOTHING
    """The newest that it told, or that an attempt before it told."""
    in_process: bool = False
    """This is the record in the step's own process, which nobody else sees."""
    task: asyncio.Task[None] | None = None
    expiry: asyncio.TimerHandle | None = None
    started: float = 0.0
    """Monotonic seconds; 0 while it waits."""
    over: bool = False


current: contextvars.ContextVar[Running] = contextvars.ContextVar("streamflow_step")


def _running(name: str) -> Running:
    try:
        return current.get()
    except LookupError:
        raise UsageError(f"sf.{name}() works inside a step that a daemon or worker runs") from None


def step_info() -> StepInfo:
    """About the step that is running: use `key` as the idempotency key of outside effects. Raises `UsageError`."""
    running = _running("step_info")
    job = running.job
    details = msgspec.msgpack.decode(job.details)
    return StepInfo(running.run_id, job.step.name, job.attempt, f"{running.run_id}/{job.seq}", details)


def heartbeat(details: Any = None) -> None:
    """Tell how far the step is: if this attempt fails or its worker dies, the next one finds `details` in
    `sf.step_info().details`. Cheap; the newest counts, and None leaves what was told before. From any task or thread of
    the step that has its context.

    Raises `UsageError` outside a step and in a step with `process=True`, `PayloadInvalid`, `PayloadTooLarge`.

    >>> for page in range(sf.step_info().details or 0, 100):
    ...     await fetch(page)
    ...     sf.heartbeat(page + 1)
    """
    running = _running("heartbeat")
    if running.in_process:
        raise UsageError(
            f"sf.heartbeat() doesn't reach the daemon from step {running.job.step.name}, which has process=True: "
            "split it into shorter steps, or leave process=True out"
        )
    if details is not None:
        running.details = Raw(codec.encode(details, f"heartbeat details of step {running.job.step.name}"))


def cancelled() -> bool:
    """Whether this attempt runs for nothing: its run was cancelled or doesn't want it any more, it took longer than its
    `timeout`, or it runs elsewhere now. For plain functions, which can't be stopped: return when it is True.

    Always False in a step with `process=True`, whose process is killed instead. Raises `UsageError` outside a step.
    """
    return _running("cancelled").over
