"""What code inside a running step can call: `sf.step_info()`, `sf.heartbeat()`, `sf.emit()`, `sf.cancelled()`.

Owns: the record of a running attempt, and which one the calling task or thread belongs to.
Must not: start or stop anything. Called by: user code inside steps; executor and processes create the records.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import msgspec
from msgspec import Raw

from streamflow.errors import PayloadTooLarge, UsageError
from streamflow.events import NOTHING
from streamflow.model import codec
from streamflow.workflow.actions import StepJob
from streamflow.workflow.awaitable import active
from streamflow.workflow.log_fields import attempt
from streamflow.workflow.recording import Record, Recording

if TYPE_CHECKING:
    from streamflow.machine.transition import Outcome
    from streamflow.tracing.run_trace import DroppedTrace
    from streamflow.tracing.spans import Attempt


LARGEST_CHUNK = 64 * 1024
"""Bytes of one chunk that a step emits, encoded."""


class StepInfo(msgspec.Struct, frozen=True):
    """What `sf.step_info()` returns: facts about the attempt that is running."""

    run_id: str
    """Id of the run that called the step."""
    step: str
    """The step's name."""
    attempt: int
    """1 for the first attempt of this call."""
    key: str
    """The same for all attempts of this call, and different for every other call, also of another run that had the same
    id before: use it as an idempotency key."""
    details: Any = None
    """What the attempt before reported last with `sf.heartbeat`, as plain data; None if nothing was reported."""


class StepInterrupted(BaseException):
    """Raised by the watch in an async step that blocks the event loop: that attempt fails. The text says why.

    `timed_out`: the step's own time-out has passed, so its retry policy decides. Otherwise the call fails without a
    retry: the same code would block all others again.
    """

    def __init__(self, text: str, *, timed_out: bool) -> None:
        super().__init__(text)
        self.timed_out = timed_out


class Running(msgspec.Struct):
    """One attempt that runs or waits for a free slot."""

    shard: int
    run_id: str
    job: StepJob
    details: Raw = NOTHING
    """Encoded details that this attempt reported last, or else the attempt before it."""
    slots: Any = None
    """What limits how many of its kind run here (`executor.Slots`)."""
    on_emit: Callable[..., None] | None = None
    """Takes what it emits, in whatever thread: the attempt, a chunk, encoded, and how many were dropped before it. None
    where nobody would."""
    recording: Recording | None = None
    """What it has recorded with `sf.record`; None for nothing."""
    in_process: bool = False
    """True in the record that only the step's separate process has."""
    task: asyncio.Task[None] | None = None
    expiry: asyncio.TimerHandle | None = None
    started: float = 0.0
    """By `time.perf_counter`; 0 while it waits."""
    beat: float = 0.0
    """When it has called `sf.heartbeat` last, by the same clock; 0: never..."""
    pause: float = 0.0
    """...and the longest time between two calls, or from its start to the first."""
    thread: int = 0
    """Identity of the thread that runs it, if a thread does."""
    returned: bool = False
    """Its thread is free again."""
    replaced: bool = False
    """Its thread hangs, and another one has its slot."""
    lent: bool = False
    """Its shard was handed over while it ran: another daemon waits for its outcome."""
    interrupted: StepInterrupted | None = None
    """What was raised in its code, because that blocked the event loop."""
    span: Attempt | DroppedTrace | None = None
    """Of the attempt, if it is traced here and has not ended."""
    ended: Outcome | None = None
    """How it has ended, while that waits until what it has emitted is stored."""
    emitted: Any = None
    """What it has emitted and the server doesn't have (`emitting.Emitted`), once it has emitted something."""
    over: bool = False
    """It ended, timed out or was cancelled: an outcome that still comes is dropped."""

    @property
    def records(self) -> tuple[Record, ...]:
        """What it has recorded so far, for its outcome."""
        return () if self.recording is None else self.recording.taken()


current = cast("contextvars.ContextVar[Running]", attempt)
"""The attempt that the calling task or thread belongs to."""


collected = contextvars.ContextVar[list[Any] | None]("streamflow_collected", default=None)
"""Where a test wants the chunks of steps that it calls as plain functions."""


def _running(name: str, instead: str = "sf.info() tells about the run") -> Running | None:
    """The attempt that runs; None where a step's function is called as a plain one. Raises `UsageError` in a
    workflow."""
    running = current.get(None)
    if running is None and active.get() is not None:
        raise UsageError(f"sf.{name}() was called in the code of a workflow: it works only in steps; {instead}")
    return running


def step_info() -> StepInfo:
    """Facts about the attempt that is running: `run_id`, `step`, `attempt`, `key`, `details`.

    A step may run more than once (at least once). Pass `key` to outside systems as an idempotency key: it is the same
    for all attempts of one call, and different for every other call. `details` is what the attempt before reported
    last with `sf.heartbeat`, as plain data.

    Where the step's function is called as a plain one, in a test or script, `run_id` and `step` are empty, `attempt` is
    1, `details` is None, and `key` is random, another one each time: an outside system never takes two calls for one.
    Raises `UsageError` in the code of a workflow.

    >>> @app.step
    ... async def charge(cents: int) -> str:
    ...     return await payments.charge(cents, idempotency_key=sf.step_info().key)
    """
    running = _running("step_info")
    if running is None:
        return StepInfo("", "", 1, f"outside/{uuid.uuid4().hex}")
    job = running.job
    details = msgspec.msgpack.decode(job.details)
    run = f"{running.run_id}@{job.created}" if job.created else running.run_id
    return StepInfo(running.run_id, job.step.name, job.attempt, f"{run}/{job.seq}", details)


def heartbeat(details: Any = None) -> None:
    """Report how far the step is: if this attempt fails or its worker dies or leaves, the next one finds `details` in
    `sf.step_info().details`.

    `details` can be anything that a step can return; only the newest counts, and None keeps what was reported before.
    A step that has called it, and then doesn't for long (`silent_after`, 10 minutes, and three times its longest pause
    so far), is said to be silent in the status: it may hang.
    A call only encodes `details`, so it is cheap. The daemon or worker stores the newest about once a second: what was
    reported in the last second before its death may be lost. May be called from any task or thread of the step that has
    its context.

    Where the step's function is called as a plain one, in a test or script, `details` are only checked. Raises
    `UsageError` in a step with `process=True` and in the code of a workflow; `PayloadInvalid` and `PayloadTooLarge` for
    `details` that can't be encoded or are too large.

    >>> for page in range(sf.step_info().details or 0, 100):
    ...     await fetch(page)
    ...     sf.heartbeat(page + 1)
    """
    running = _running("heartbeat")
    if running is None:
        codec.encode(details, "heartbeat details")
        return
    if running.in_process:
        raise UsageError(
            f"sf.heartbeat() doesn't reach the daemon from step {running.job.step.name}, which has process=True: "
            "split it into shorter steps, or leave process=True out"
        )
    now = time.perf_counter()
    if running.started and now - (running.beat or running.started) > running.pause:
        running.pause = now - (running.beat or running.started)
    running.beat = now
    if details is not None:
        running.details = Raw(codec.encode(details, f"heartbeat details of step {running.job.step.name}"))


def emit(value: Any) -> None:
    """Give a chunk of a result that is being made to the readers of the run's stream: a token of a language model, a
    line of a log, how far an export is.

    `value` can be anything that a step can return, up to 64 KB. It reaches `run.stream()` and `streamflow tail
    --stream` within milliseconds, is not in the history, and doesn't change what the run does: what counts is what
    the step returns. A call only encodes, and never waits: if the server doesn't take a megabyte in time, the oldest
    chunks are dropped, and readers see how many. Works in async steps, threads, steps with `process=True` and
    workers; may be called from any task or thread of the step that has its context.

    The server keeps the newest megabyte of a run (`stream_bytes`), for an hour after the last chunk (`stream_age`).

    Where the step's function is called as a plain one, in a test or script, `value` is only checked
    (`streamflow.testing.emitted` collects it). Raises `UsageError` in the code of a workflow; `PayloadInvalid` and
    `PayloadTooLarge` for a value that can't be encoded or is too large.

    >>> @app.step
    ... async def write(prompt: str) -> str:
    ...     text = ""
    ...     async for token in model.stream(prompt):
    ...         sf.emit(token)
    ...         text += token
    ...     return text
    """
    running = _running("emit", "sf.publish() shows a value of the run")
    what = "emitted chunk" if running is None else f"emitted chunk of step {running.job.step.name}"
    data = codec.encode(value, what)
    if len(data) > LARGEST_CHUNK:
        raise PayloadTooLarge(
            f"the {what} has {len(data):,} bytes; the limit is {LARGEST_CHUNK:,}. Emit it in smaller parts."
        )
    if running is None:
        chunks = collected.get()
        if chunks is not None:
            chunks.append(value)
    elif running.on_emit is not None and not running.over:
        running.on_emit(running, data)


def cancelled() -> bool:
    """Whether the result of this attempt will be dropped: its run was cancelled or doesn't need it any more, it took
    longer than its `timeout`, or another worker runs it now.

    For plain functions, which run in threads and can't be stopped: return as soon as it is True. An async function
    gets `CancelledError` instead. Always False in a step with `process=True`, whose process is killed instead.

    False where the step's function is called as a plain one, in a test or script. Raises `UsageError` in the code of a
    workflow.

    >>> @app.step
    ... def crunch(blocks: int) -> int:
    ...     for number in range(blocks):
    ...         if sf.cancelled():
    ...             return 0
    ...         crunch_block(number)
    ...     return blocks
    """
    running = _running("cancelled")
    return running is not None and running.over
