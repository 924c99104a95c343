"""A thread that names the line in which a workflow blocks its daemon, and interrupts code that doesn't give way.

Owns: the thread, finding the user's line in a stack, and the signal that interrupts. Must not: touch the event loop.
Called by: the daemon (starts and stops it), the owner (notes which run it reduces).

A thread can't raise in another one, but a signal handler runs in the main thread, between two of its bytecodes: it sees
the frame that it interrupts. If that is code of a run, it raises `Interrupted` there, and the run is parked. The
daemon's own code is never interrupted, nor is a call into C that holds on to the interpreter.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from streamflow.machine.coroutines import CoroutineMachine
from streamflow.machine.reducer import ReducerMachine
from streamflow.machine.replay import WorkflowMachine
from streamflow.machine.run import RunMachine
from streamflow.workflow.awaitable import Interrupted

_log = logging.getLogger("streamflow.watchdog")

SIGNAL = signal.SIGURG
"""Ignored unless somebody handles it, so that one which comes late harms nobody."""

UNKNOWN_LINE = "an unknown line"
TRIES = 20
PAUSE = 0.002
"""Interruptions in a row, and seconds between two."""

_INTERRUPTIBLE = frozenset(
    function.__code__
    for function in (
        RunMachine._advance,  # pyright: ignore[reportPrivateUsage]
        WorkflowMachine.replay,
        ReducerMachine.restore,
        CoroutineMachine._close,  # pyright: ignore[reportPrivateUsage]
    )
)
"""What `sealed` calls: an exception that is raised below one of these discards that machine, and nothing else."""


class BlockedRun(msgspec.Struct):
    """Which run is being reduced, and since when (monotonic s): the watchdog reads it from its thread."""

    run_id: str = ""
    since: float = 0.0


class Watchdog:
    """Warns after `threshold` seconds in code of one run, and interrupts it after `limit` (0: never)."""

    def __init__(self, watch: BlockedRun, threshold: float, limit: float = 0.0) -> None:
        self._watch = watch
        self._threshold = threshold
        self._limit = limit
        self._stopped = threading.Event()
        self._loop_thread = 0
        self._warned = 0.0
        self._seen = 0.0
        self._line = UNKNOWN_LINE

    def start(self) -> None:
        """Call it in the thread of the event loop. In another thread than the main one nothing can be interrupted."""
        self._loop_thread = threading.get_ident()
        if self._limit and threading.current_thread() is threading.main_thread():
            _listen(self)
        threading.Thread(target=self._run, name="streamflow-watchdog", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()
        _ignore(self)

    def _run(self) -> None:
        while not self._stopped.wait(self._threshold / 2):
            self.look()

    def look(self) -> None:
        since, run_id = self._watch.since, self._watch.run_id
        blocked = time.monotonic() - since
        # Also seen by the last check: otherwise the whole process may have been without processor time.
        seen, self._seen = self._seen, since
        if not since or blocked < self._threshold or seen != since:
            return
        if self._warned != since:
            self._warned = since
            self._line = UNKNOWN_LINE
            frame = sys._current_frames().get(self._loop_thread)  # pyright: ignore[reportPrivateUsage]
            line = self._line = user_line(traceback.extract_stack(frame)) if frame is not None else UNKNOWN_LINE
            _log.warning(
                "run %s has blocked its daemon for %.0f ms at %s: a workflow only decides; move I/O and long "
                "computation into a step",
                run_id,
                blocked * 1000,
                line,
            )
        if self in _listening and blocked >= self._limit:
            self._insist(since)

    def _insist(self, since: float) -> None:
        """Code may catch the interruption and continue its loop: try again until it is raised outside of that."""
        for _ in range(TRIES):
            if self._watch.since != since:
                break
            signal.pthread_kill(self._loop_thread, SIGNAL)
            time.sleep(PAUSE)

    def interrupt(self, frame: FrameType | None) -> None:
        """Raise in the code of a run that has blocked for too long. Called in the main thread, by the signal."""
        since = self._watch.since
        if since and time.monotonic() - since >= self._limit and _is_code_of_a_run(frame):
            line = user_line(traceback.extract_stack(frame))
            if line == UNKNOWN_LINE:
                line = self._line
            raise Interrupted(
                f"its code did not give way for {self._limit:g} s at {line}: a workflow only decides; move long "
                "computation into a step, and end a loop that retries"
            )


def _is_code_of_a_run(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code in _INTERRUPTIBLE:
            return True
        frame = frame.f_back
    return False


_listening: set[Watchdog] = set()
"""Those of all daemons whose loops run in the main thread: they share the signal."""
_before: Any = signal.SIG_DFL


def _listen(watchdog: Watchdog) -> None:
    global _before
    if not _listening:
        _before = signal.signal(SIGNAL, _on_signal)
    _listening.add(watchdog)


def _ignore(watchdog: Watchdog) -> None:
    if watchdog in _listening:
        _listening.discard(watchdog)
        if not _listening and threading.current_thread() is threading.main_thread():
            signal.signal(SIGNAL, signal.SIG_DFL if _before is None else _before)


def _on_signal(_: int, frame: FrameType | None) -> None:
    for watchdog in list(_listening):
        watchdog.interrupt(frame)


def user_line(stack: Iterable[traceback.FrameSummary]) -> str:
    """The first line of a workflow in a stack: the frame that the trampoline called."""
    package = str(Path(__file__).resolve().parents[1])
    inside = False
    last = UNKNOWN_LINE
    for frame in stack:
        in_package = frame.filename.startswith(package + os.sep)
        if inside and not in_package:
            last = f"{frame.filename}:{frame.lineno} ({frame.line})"
            break
        inside = inside or (in_package and os.sep + "machine" + os.sep in frame.filename)
    return last
