"""One attempt of a step in the sandbox: runs the real function or its stub.

Owns: the outcome of an attempt, and how long it takes on the virtual clock.
Must not: handle an outcome (the world does), retry.
Called by: the world, one attempt at a time.

A real function's time-out counts on the real clock, because the virtual one stands still while it runs. A stub's
`takes=` is virtual, and so is its time-out.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from msgspec import UNSET, Raw

from streamflow.errors import Failure, UsageError
from streamflow.machine.transition import Outcome
from streamflow.model.failures import failure_of, kinds_of
from streamflow.steps import executor
from streamflow.steps.context import Running, current
from streamflow.testing.stubs import Stub, StubCall, Stubs
from streamflow.workflow.actions import StepJob

running: contextvars.ContextVar[bool] = contextvars.ContextVar("streamflow_sandbox_step", default=False)
"""True in the code of steps: their calls of the sandbox must not wait for the sandbox."""

_INTERNAL = (str(Path(__file__).parent), executor.__file__)


async def perform(stubs: Stubs, run_id: str, job: StepJob, at: datetime) -> tuple[Outcome, int]:
    """Run the attempt; gives its outcome, and after how many virtual ms it arrives. Raises only if it is cancelled.

    Must run in its own task, because it sets context variables.
    """
    step = job.step
    key = (run_id, job.seq, job.attempt)
    stub = stubs.find(step.name, key)
    takes = 0.0 if stub is None else stub.takes
    record = Running(0, run_id, job, job.details)  # read by step_info(), heartbeat() and cancelled()
    current.set(record)
    running.set(True)
    try:
        args, kwargs = step.parameters.decode(job.args)
        call = StubCall(args=args, kwargs=kwargs, run_id=run_id, seq=job.seq, attempt=job.attempt, at=at)
        stubs.called(step.name, call)
        value = await _value(stub, job, args, kwargs)
        result = Raw(step.parameters.encode_result(value))
        outcome = Outcome(job.seq, job.attempt, takes * 1000, result)
    except _TimedOut:
        return _timed_out(record, 0.0), 0
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        outcome = _failed(record, takes, error)
    except (Exception, SystemExit, GeneratorExit) as error:
        outcome = _failed(record, takes, error)
    if job.timeout is not None and takes > job.timeout:
        return _timed_out(record, job.timeout), round(job.timeout * 1000)
    return outcome, round(takes * 1000)


class _TimedOut(Exception):
    """The real function took longer than its time-out."""


async def _value(stub: Stub | None, job: StepJob, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if stub is not None:
        if stub.raises is not None:
            raise stub.raises if isinstance(stub.raises, type) else stub.raises.with_traceback(None)
        if stub.returns is not UNSET:
            return stub.returns
        if stub.replacement is not None:
            value: Any = stub.replacement(*args, **kwargs)
            return await cast("Any", value) if inspect.isawaitable(value) else value
    step = job.step
    deadline = asyncio.timeout(job.timeout)
    try:
        async with deadline:
            if step.is_async:
                return await step.function(*args, **kwargs)
            # In a thread, as in production: code that works only in the event loop's thread must fail here too.
            return await asyncio.to_thread(step.function, *args, **kwargs)
    except TimeoutError:
        if deadline.expired():
            raise _TimedOut from None
        raise


def _timed_out(record: Running, seconds: float) -> Outcome:
    job = record.job
    failure = Failure("TimeoutError", f"step {job.step.name} took longer than {job.timeout:g} s")
    return Outcome(job.seq, job.attempt, seconds * 1000, None, failure, details=record.details)


def _failed(record: Running, takes: float, error: BaseException) -> Outcome:
    job = record.job
    failure, permanent = failure_of(error, _INTERNAL), isinstance(error, UsageError)
    return Outcome(job.seq, job.attempt, takes * 1000, None, failure, permanent, record.details, kinds_of(error))
