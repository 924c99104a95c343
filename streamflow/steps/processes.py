"""Steps with `process=True`: each call goes to a process that later calls use again, bytes in and bytes out.

Owns: what both sides of the pipe do. Must not: know slots, time-outs or retries. Called by: the executor.

anyio keeps the processes: an idle one is used again, and cancelling a call kills its process. anyio sends the parent's
`sys.path` and loads the parent's main module under the name `__mp_main__`, as multiprocessing does, so a script that
runs `sf.local` needs its `if __name__ == "__main__"`. The code of a step is found by module and name; a file that isn't
on the path (`--app path/types.py`) is loaded again by its path.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import signal
import sys
from collections.abc import Generator
from types import ModuleType
from typing import Any

import anyio
import anyio.to_process
from msgspec import Raw

from streamflow.errors import Failure, UsageError
from streamflow.model import codec
from streamflow.model.failures import failure_of
from streamflow.steps.context import Running, current
from streamflow.workflow.actions import StepJob
from streamflow.workflow.app import Step

CallResult = tuple[bytes, Failure | None, bool]
"""The encoded result, or the failure and whether it is permanent."""


async def call_in_process(running: Running, limiter: anyio.CapacityLimiter) -> CallResult:
    """Run the attempt in a process. Cancelling kills the process."""
    job = running.job
    function = job.step.function
    file = getattr(sys.modules.get(function.__module__), "__file__", None) or ""
    location = (function.__module__, file, function.__qualname__)
    try:
        return await anyio.to_process.run_sync(
            _call,
            location,
            job.step.name,
            running.run_id,
            (job.seq, job.attempt),
            bytes(job.args),
            bytes(job.details),
            cancellable=True,
            limiter=limiter,
        )
    except anyio.BrokenWorkerProcess as error:
        cause = f" ({error.__cause__})" if str(error.__cause__ or "") else ""
        text = f"the process of step {job.step.name} died: it was killed, ran out of memory, or ended itself{cause}"
        return b"", Failure("ProcessDied", text), False


def _call(
    location: tuple[str, str, str], name: str, run_id: str, number: tuple[int, int], args: bytes, details: bytes
) -> CallResult:
    """Runs in the process."""
    # Ctrl-C goes to every process of a terminal: the parent drains, and decides when this one ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gives_up = False
    try:
        step = _find(*location, name)
        job = StepJob(*number, step, Raw(args), Raw(details))
        current.set(Running(0, run_id, job, in_process=True))
        values, keywords = step.parameters.decode(args)
        try:
            with _own_streams():
                value = step.function(*values, **keywords)
        except Exception as error:
            gives_up = step.retry.gives_up_on(error)
            raise
        return codec.encode(value, f"result of step {name}"), None, False
    except BaseException as error:
        return b"", failure_of(error, (__file__,)), gives_up or isinstance(error, UsageError)


@contextlib.contextmanager
def _own_streams() -> Generator[None]:
    """Calls and results travel through this process's stdin and stdout, which everything that the step starts would
    inherit (`subprocess`, a C library that prints): while it runs, stdin is empty and stdout goes to stderr."""
    pipes = os.dup(0), os.dup(1)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.dup2(2, 1)
    os.close(empty)
    try:
        yield
    finally:
        for number, pipe in enumerate(pipes):
            os.dup2(pipe, number)
            os.close(pipe)


def _find(module_name: str, file: str, qualname: str, name: str) -> Step[..., Any]:
    found: Any = _module(module_name, file)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if isinstance(found, Step):
        return found  # pyright: ignore[reportUnknownVariableType]
    if not callable(found):
        raise UsageError(f"step {name}: module {module_name} has no {qualname} that another process can import")
    return Step(found, name)


def _module(name: str, file: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        spec = importlib.util.spec_from_file_location(name, file) if file else None
        if spec is None or spec.loader is None:
            raise
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
