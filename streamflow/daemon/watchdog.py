"""A thread that names the line in which a workflow blocks its daemon.

Owns: the thread, and finding the user's line in a stack. Must not: touch the event loop.
Called by: the daemon (starts and stops it), the owner (notes which run it reduces).
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from pathlib import Path

import msgspec

_log = logging.getLogger("streamflow.watchdog")


class BlockedRun(msgspec.Struct):
    """Which run is being reduced, and since when (monotonic s): the watchdog reads it from its thread."""

    run_id: str = ""
    since: float = 0.0


class Watchdog:
    """A thread that names the line in which a workflow blocks its daemon."""

    def __init__(self, watch: BlockedRun, threshold: float) -> None:
        self._watch = watch
        self._threshold = threshold
        self._stopped = threading.Event()
        self._loop_thread = 0
        self._warned = 0.0
        self._seen = 0.0

    def start(self) -> None:
        self._loop_thread = threading.get_ident()
        threading.Thread(target=self._run, name="streamflow-watchdog", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._threshold / 2):
            self.look()

    def look(self) -> None:
        since, run_id = self._watch.since, self._watch.run_id
        blocked = time.monotonic() - since
        # Also seen by the last check: otherwise the whole process may have been without processor time.
        seen, self._seen = self._seen, since
        if not since or blocked < self._threshold or self._warned == since or seen != since:
            return
        self._warned = since
        frame = sys._current_frames().get(self._loop_thread)  # pyright: ignore[reportPrivateUsage]
        line = user_line(traceback.extract_stack(frame)) if frame is not None else "an unknown line"
        _log.warning(
            "run %s has blocked its daemon for %.0f ms at %s: a workflow only decides; move I/O and long computation "
            "into a step",
            run_id,
            blocked * 1000,
            line,
        )


def user_line(stack: Iterable[traceback.FrameSummary]) -> str:
    """The first line of a workflow in a stack: the frame that the trampoline called."""
    package = str(Path(__file__).resolve().parents[1])
    inside = False
    last = "an unknown line"
    for frame in stack:
        in_package = frame.filename.startswith(package + os.sep)
        if inside and not in_package:
            last = f"{frame.filename}:{frame.lineno} ({frame.line})"
            break
        inside = inside or (in_package and os.sep + "machine" + os.sep in frame.filename)
    return last
