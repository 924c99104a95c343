"""The process of a daemon or worker: its signals, its garbage collector, its memory.

Owns: SIGTERM and SIGINT (the first one drains, the second one ends the process at once).
Must not: know what draining means. Called by: daemon and worker.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from pathlib import Path

import anyio

RESTART = 75
"""Exit code of a daemon or worker that has drained because only a new process helps (EX_TEMPFAIL of sysexits.h)."""


async def stop_on_signal(stopping: anyio.Event, grace: float, log: logging.Logger, consequence: str) -> None:
    """Set `stopping` at the first signal, exit at the second. `consequence` of the exit (who continues the work, and
    when) is logged with it; `grace` is in seconds."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        async for number in received:
            if stopping.is_set():
                log.warning("second signal: exiting at once, without draining; %s", consequence)
                raise SystemExit(1)
            log.info("%s: draining, running steps get %g s to finish", signal.Signals(number).name, grace)
            stopping.set()


def tune_garbage_collection() -> None:
    """For a process that only runs a daemon. Runs are freed by reference counts; looking for cycles among
    thousands of live ones every 700 allocations took a quarter of the processor."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


def resident_bytes(max_rss: int) -> int:
    """Resident memory of this process now, in bytes; where the system doesn't report it, its peak (`ru_maxrss`)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return max_rss * (1 if sys.platform == "darwin" else 1024)
