"""A thread that notices when an async step blocks the event loop of its daemon or worker.

Owns: the thread, and finding the step and its line. Must not: touch what belongs to the loop, except to ask whether it
still runs. Called by: daemon and worker (start and stop it); the worker extends its claims from it (`on_late`).

It asks the loop for an answer every half second; that is its whole cost. Only when none comes does it look at the stack
of the loop's thread. Workflow code has a watchdog of its own, which knows the run.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from streamflow.steps.context import Running, current
from streamflow.steps.executor import StepExecutor
from streamflow.steps.stacks import PACKAGE, frames, user_line

_log = logging.getLogger("streamflow.steps")

EVERY = 0.5
"""Seconds between two looks."""
BLOCKED = 1.0
"""Seconds without an answer of the loop after which a warning is logged; the next one when it has lasted twice as
long."""


class LoopWatch:
    """`place` is "daemon" or "worker". `on_late(seconds)` is called in the thread, at each look at which the loop has
    not answered the one before."""

    def __init__(
        self,
        place: str,
        *,
        every: float = EVERY,
        blocked: float = BLOCKED,
        on_late: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._place = place
        self._every = every
        self._blocked = blocked
        self._on_late = on_late
        self._stopped = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._asked = 0.0
        """When the loop was asked for an answer that it has not given yet (monotonic s)."""
        self._looks = 0
        """Looks since then."""
        self._next_warning = blocked

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        threading.Thread(target=self._run, name="streamflow-loop-watch", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._every):
            try:
                self.look()
            except Exception:
                _log.exception("could not look whether the event loop of this %s is blocked, will retry", self._place)

    def look(self) -> None:
        asked, now = self._asked, time.monotonic()
        if not asked:
            self._asked, self._looks, self._next_warning = now, 0, self._blocked
            self._ask()
            return
        self._looks += 1
        late = now - asked
        if self._looks == 1:
            return  # this process itself may have been paused: the loop gets the time until the next look
        if late >= self._next_warning:
            self._next_warning = 2 * late
            self._warn(late)
        self._on_late(late)

    def _ask(self) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._answer)
        except RuntimeError:  # the loop is closed
            self._stopped.set()

    def _answer(self) -> None:
        self._asked = 0.0

    def _warn(self, late: float) -> None:
        frame = sys._current_frames().get(self._loop_thread)  # pyright: ignore[reportPrivateUsage]
        if frame is None:
            return
        stack = frames(frame)
        if any(one.f_code.co_filename.startswith(PACKAGE + "machine" + os.sep) for one in stack):
            return
        running = _running(stack, self._loop)
        if running is None:
            _log.warning(
                "the event loop of this %s has been blocked for %.1f s at %s",
                self._place,
                late,
                user_line(frame, _EXECUTES),
            )
            return
        _log.warning(
            "step %s of run %s has blocked the event loop of its %s for %.1f s at %s: everything else there waits for "
            "it; await something that doesn't block, or make the step a plain function, which runs in a thread",
            running.job.step.name,
            running.run_id,
            self._place,
            late,
            user_line(frame, _EXECUTES),
        )


_EXECUTES = StepExecutor._run.__code__  # pyright: ignore[reportPrivateUsage]


def _running(stack: list[FrameType], loop: Any) -> Running | None:
    """The attempt whose code the loop runs: its own task's, or a task's that the step has started."""
    for frame in stack:
        if frame.f_code is _EXECUTES:
            return frame.f_locals.get("running")
    task = asyncio.current_task(loop)
    context = getattr(task, "get_context", None)  # from Python 3.12 on
    return context().get(current) if context is not None else None
