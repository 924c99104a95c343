"""The process of a daemon or worker: its signals, its garbage collector, its memory.

Owns: SIGTERM and SIGINT (the first one drains, the second one ends the process on the spot).
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


async def stop_on_signal(stopping: anyio.Event, grace: float, log: logging.Logger, who_goes_on: str) -> None:
    """Set `stopping` at the first signal. `who_goes_on` is said at the second: the others take over, and how."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        async for number in received:
            if stopping.is_set():
                log.warning("second signal: leaving at once; %s", who_goes_on)
                raise SystemExit(1)
            log.info("%s: draining, steps get %g s", signal.Signals(number).name, grace)
            stopping.set()


def tune_garbage_collection() -> None:
    """For a process that is a daemon and nothing else. Runs are freed by reference counts; looking for cycles among
    thousands of live ones every 700 allocations took a quarter of the processor."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


def resident_bytes(max_rss: int) -> int:
    """Memory that this process has now; where the system doesn't say, the most that it had (`ru_maxrss`)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return max_rss * (1 if sys.platform == "darwin" else 1024)
