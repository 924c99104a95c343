"""What an event loop's thread is executing: the code of a run, of a step, of something that a step has left behind.

Owns: telling from a stack whose code it is, its line, and which code may be interrupted. Must not: log, send signals,
decide by a clock. Called by: the watch (from its thread), its signal handler (from the loop's thread).

A stack begins with the program, down to the event loop. What the loop has called is behind that, outermost first:

    code of a run    an owner's batch, and in it one of the functions that call code of a run (`_RUNS`)
    a step           `StepExecutor._run`, and in it the step's function, the decoder or the encoder
    a task           anything else that carries the context of a step: tasks and callbacks that its code has created
    own              streamflow itself, or code of the program around it
"""

from __future__ import annotations

import asyncio
import os
import time
import traceback
from asyncio import base_events, events, runners
from collections.abc import Callable
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any, Literal, cast

import anyio
import msgspec

from streamflow.machine.coroutines import CoroutineMachine
from streamflow.machine.reducer import ReducerMachine
from streamflow.machine.replay import WorkflowMachine
from streamflow.machine.run import RunMachine
from streamflow.model.failures import failure_of
from streamflow.process import run_until_done
from streamflow.steps.context import Running, current
from streamflow.steps.executor import StepExecutor
from streamflow.steps.stacks import PACKAGE, frames, user_line
from streamflow.watch.shared_note import SharedNote

UNKNOWN_LINE = "an unknown line"

Kind = Literal["run", "step", "task", "own"]

_RUNS = frozenset(
    function.__code__
    for function in (
        RunMachine._advance,  # pyright: ignore[reportPrivateUsage]
        WorkflowMachine.replay,
        ReducerMachine.restore,
        CoroutineMachine._close,  # pyright: ignore[reportPrivateUsage]
    )
)
"""What `sealed` calls: an exception that is raised below one of these discards that machine, and nothing else."""

_ANYIO = str(Path(anyio.__file__).parent) + os.sep
_RUNS_STEP = StepExecutor._run.__code__  # pyright: ignore[reportPrivateUsage]
_EXECUTOR = _RUNS_STEP.co_filename
_ENCODES = StepExecutor._success.__code__  # pyright: ignore[reportPrivateUsage]
_RECORDS = (StepExecutor._failed.__code__, failure_of.__code__)  # pyright: ignore[reportPrivateUsage]
"""`failure_of` catches whatever is raised in it: the code of an exception that can't be shown."""

_LOOP = frozenset(
    function.__code__
    for function in cast(
        "tuple[FunctionType, ...]",
        (
            runners.Runner.run,
            base_events.BaseEventLoop.run_until_complete,
            base_events.BaseEventLoop.run_forever,
            vars(base_events.BaseEventLoop)["_run_once"],
            vars(events.Handle)["_run"],
            run_until_done,
        ),
    )
)
"""The frames of an event loop. Behind `Runner.run` and `run_until_done`, uvloop has none."""


def _nobody() -> None:
    pass


class RunNote:
    """Which run's code the owner executes, and since when (monotonic s; 0: none). The watch reads it from its thread,
    and the process beside this one what is `shared`.

    Writing it is all that the owner does for both, some million times an hour.
    """

    __slots__ = ("asleep", "run_id", "shared", "since", "wake")

    def __init__(self, run_id: str = "", since: float = 0.0) -> None:
        self.run_id = run_id
        self.since = since
        self.asleep = False
        """The watch doesn't look often enough to see a run that blocks."""
        self.wake: Callable[[], None] = _nobody
        self.shared: SharedNote | None = None

    def code_of(self, run_id: str, shard: int) -> None:
        """The code of this run is executed from now on; none is if it is empty."""
        self.since = time.monotonic() if run_id else 0.0
        self.run_id = run_id
        if self.shared is not None:
            self.shared.code_of(run_id, shard, self.since)
        if self.asleep:
            self.wake()


class Blocker(msgspec.Struct):
    """What the loop was executing when it was looked at."""

    kind: Kind
    frame: FrameType | None = None
    """The outermost frame that the loop has called: as long as the loop doesn't answer, the same frame is the same
    call."""
    running: Running | None = None
    """The attempt whose code it is, or that has left it behind."""
    line: str = UNKNOWN_LINE


def blocker_of(frame: FrameType | None, loop: Any = None) -> Blocker:
    """Seen from another thread, where the context of the code is known from Python 3.12 on only."""
    if frame is None:
        return Blocker("own")
    stack = frames(frame)
    if any(one.f_code in _RUNS for one in stack):
        return Blocker("run", stack[0], None, workflow_line(frame))
    called = _called_by_loop(stack)
    if not called:
        return Blocker("own", None, None, user_line(frame))
    if called[0].f_code is _RUNS_STEP:
        return Blocker("step", called[0], called[0].f_locals.get("running"), line_of(frame, called[0]))
    if _is_own(called):
        return Blocker("own", called[0], None, user_line(frame))
    task = asyncio.current_task(loop) if loop is not None else None
    context = getattr(task, "get_context", None)
    running = context().get(current) if context is not None else None
    return Blocker("task", called[0], running, line_of(frame, called[0]))


def running_here() -> Running | None:
    """The attempt to which the code that is interrupted belongs. Called in a signal handler, which has its context."""
    return current.get(None)


def is_code_of_a_run(frame: FrameType | None) -> bool:
    return any(one.f_code in _RUNS for one in frames(frame))


def is_code_of_a_step(frame: FrameType | None, call: FrameType | None) -> bool:
    """Whether `frame` is below `call`, and what is raised there ends that step or task, and nothing else."""
    called = _called_by_loop(frames(frame))
    if not called or called[0] is not call:
        return False
    if called[0].f_code is not _RUNS_STEP:
        return not _is_own(called)
    codes = [one.f_code for one in called[1:3]]
    return bool(codes) and (codes[0].co_filename != _EXECUTOR or codes[0] is _ENCODES or tuple(codes) == _RECORDS)


def line_of(frame: FrameType | None, call: FrameType | None) -> str:
    """The innermost line of user code in what the loop has called."""
    if frame is None:
        return UNKNOWN_LINE
    above = call.f_back if call is not None and call.f_code is not _RUNS_STEP else call
    return user_line(frame, above.f_code if above is not None else None)


def workflow_line(frame: FrameType | None) -> str:
    """The first line of a workflow in a stack: the frame that the trampoline called."""
    inside = False
    for one in frames(frame):
        in_package = one.f_code.co_filename.startswith(PACKAGE)
        if inside and not in_package:
            [line] = traceback.extract_stack(one, limit=1)
            return f"{line.filename}:{line.lineno} ({line.line})"
        inside = inside or (in_package and os.sep + "machine" + os.sep in one.f_code.co_filename)
    return UNKNOWN_LINE


def workflow_name(frame: FrameType | None) -> str:
    """Of the run whose code is in a stack; empty if there is none."""
    for one in frames(frame):
        if one.f_code in _RUNS:
            name = getattr(one.f_locals.get("self"), "workflow", "")
            return name if isinstance(name, str) else ""
    return ""


def _called_by_loop(stack: list[FrameType]) -> list[FrameType]:
    """The frames of what the loop executes now, outermost first."""
    first = 0
    for position, one in enumerate(stack):
        if one.f_code is _RUNS_STEP:
            return stack[position:]
        if one.f_code in _LOOP:
            first = position + 1
    return stack[first:] if first else []


def _is_own(called: list[FrameType]) -> bool:
    """Whether the task or callback is streamflow's: anyio begins its tasks in a function of its own."""
    first = next((one for one in called if not one.f_code.co_filename.startswith(_ANYIO)), called[0])
    return first.f_code.co_filename.startswith(PACKAGE)
