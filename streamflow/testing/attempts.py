"""One attempt of a step in the sandbox: runs the real function or its stub.

Owns: the outcome of an attempt, and how long it takes on the virtual clock.
Must not: handle an outcome (the world does), retry, limit how long it runs (the world does).
Called by: the world, in a task for each attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from msgspec import UNSET, Raw

from streamflow.errors import Failure
from streamflow.machine.transition import Outcome
from streamflow.model.failures import failure_of, is_permanent, kinds_of
from streamflow.steps import executor
from streamflow.steps.context import Running, current
from streamflow.testing.stubs import Stub, StubCall, Stubs

running: contextvars.ContextVar[bool] = contextvars.ContextVar("streamflow_sandbox_step", default=False)
"""True in the code of steps: their calls of the sandbox must not wait for the sandbox."""

_INTERNAL = (str(Path(__file__).parent), executor.__file__)


async def perform(stubs: Stubs, record: Running, at: datetime) -> tuple[Outcome, int]:
    """Run the attempt; gives its outcome, and after how many virtual ms it arrives. Raises only if it is cancelled.

    Must run in its own task, because it sets context variables.
    """
    job = record.job
    step = job.step
    key = (record.run_id, job.seq, job.attempt)
    stub = stubs.find(step.name, key)
    takes = 0.0 if stub is None else stub.takes
    current.set(record)
    running.set(True)
    try:
        args, kwargs = step.parameters.decode(job.args)
        call = StubCall(args=args, kwargs=kwargs, run_id=record.run_id, seq=job.seq, attempt=job.attempt, at=at)
        stubs.called(step.name, call)
        value, error = await _called(stub, record, args, kwargs)
        if error is None:
            result = Raw(step.parameters.encode_result(value))
            outcome = Outcome(job.seq, job.attempt, takes * 1000, result, records=record.records)
        else:
            outcome = _failed(stubs, record, takes, error)
    except asyncio.CancelledError as error:
        if record.over or cast("asyncio.Task[Any]", asyncio.current_task()).cancelling():
            raise
        outcome = _failed(stubs, record, takes, error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also sys.exit(): it ends only this attempt
        outcome = _failed(stubs, record, takes, error)
    if job.timeout is not None and takes > job.timeout:
        return timed_out(record, job.timeout), round(job.timeout * 1000)
    return outcome, round(takes * 1000)


async def _called(
    stub: Stub | None, record: Running, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, BaseException | None]:
    """What the function has returned, or what it has raised in its thread."""
    if stub is not None:
        if stub.raises is not None:
            raise stub.raises if isinstance(stub.raises, type) else stub.raises.with_traceback(None)
        if stub.returns is not UNSET:
            return stub.returns, None
        if stub.replacement is not None:
            value: Any = stub.replacement(*args, **kwargs)
            return (await cast("Any", value) if inspect.isawaitable(value) else value), None
    step = record.job.step
    if step.is_async:
        return await step.function(*args, **kwargs), None
    # In a thread, as in production: code that works only in the event loop's thread must fail here too.
    return await _in_thread(lambda: step.function(*args, **kwargs))


async def _in_thread(function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """In a thread of its own, which doesn't keep the process alive: a function that never returns is left behind."""
    loop = asyncio.get_running_loop()
    returned: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()
    context = contextvars.copy_context()

    def settle(answer: tuple[Any, BaseException | None]) -> None:
        if not returned.done():
            returned.set_result(answer)

    def call() -> None:
        try:
            answer = context.run(function), None
        except BaseException as error:
            answer = None, error
        with contextlib.suppress(RuntimeError):  # the test, and its event loop, have ended
            loop.call_soon_threadsafe(settle, answer)

    threading.Thread(target=call, name="sandbox-step", daemon=True).start()
    return await returned


def timed_out(record: Running, seconds: float) -> Outcome:
    """The outcome of an attempt that took longer than its time-out: it ran for `seconds`."""
    job = record.job
    failure = Failure("TimeoutError", f"step {job.step.name} took longer than {job.timeout:g} s")
    ms = seconds * 1000
    return Outcome(job.seq, job.attempt, ms, None, failure, details=record.details, records=record.records)


def _failed(stubs: Stubs, record: Running, takes: float, error: BaseException) -> Outcome:
    job = record.job
    stubs.failed(record.run_id, error)
    failure, permanent = failure_of(error, _INTERNAL), is_permanent(error)
    ms, kinds = takes * 1000, kinds_of(error)
    return Outcome(job.seq, job.attempt, ms, None, failure, permanent, record.details, kinds, records=record.records)
