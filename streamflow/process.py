"""The process of a daemon or worker: its signals, its garbage collector, its memory.

Owns: SIGTERM and SIGINT (the first one drains, the second one ends the process at once), and the event loop that goes
on whatever user code does to it. Must not: know what draining means.
Called by: daemon and worker; `run_until_done` by the commands that run them.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Coroutine
from typing import Any

import anyio

from streamflow.forks import leave_signals_to_forks
from streamflow.machine.sealed import hide, hide_tasks
from streamflow.workflow.awaitable import ends_process

RESTART = 75
"""Exit code of a daemon or worker that has drained because only a new process helps (EX_TEMPFAIL of sysexits.h)."""


SWITCH_SECONDS = 0.0005
"""For how long a thread keeps the interpreter if others wait for it (Python: 5 ms). The event loop releases it at each
of its calls to the system: beside one plain step that computed, other runs of five steps took 380 ms instead of 25."""

STOPPING = (signal.SIGTERM, signal.SIGINT)
KEEP_EVERY = 1.0
"""Seconds between two looks whether they still have our handlers."""

_log = logging.getLogger("streamflow.process")


class ExitAtOnce(SystemExit):
    """Ends the process from a task of its own: `run_until_done` takes any other `SystemExit` for one of user code."""


def run_until_done(loop: asyncio.AbstractEventLoop, main: Coroutine[Any, Any, None]) -> None:
    """Run `main` to its end on `loop`, though steps may stop the loop.

    `SystemExit` and `KeyboardInterrupt` in any task or callback leave the event loop, `loop.stop()` ends it: what a
    step does, or a task that it has started, would end its daemon or worker, and each of its successors. Nothing of
    the loop is lost by that, so it is run again. Raises what `main` raises, `ExitAtOnce`, and `KeyboardInterrupt` for
    Ctrl-C.
    """
    task = loop.create_task(main)
    hide_tasks()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        while not task.done():
            try:
                loop.run_until_complete(task)
            except ExitAtOnce:
                raise
            except (SystemExit, KeyboardInterrupt, RuntimeError) as error:
                if task.done() or ends_process(error):
                    raise
                _log.error(
                    "a step, or a task or callback that a step has left behind, stopped the event loop, which "
                    "continues: raise an Exception instead",
                    exc_info=error,
                )
    finally:
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                loop.run_until_complete(task)


async def stop_on_signal(stopping: anyio.Event, grace: float, log: logging.Logger, consequence: str) -> None:
    """Set `stopping` at the first signal, exit at the second. `consequence` of the exit (who continues the work, and
    when) is logged with it; `grace` is in seconds."""
    with anyio.open_signal_receiver(*STOPPING) as received:
        leave_signals_to_forks(STOPPING)
        keeping = asyncio.create_task(_keep_handlers({number: signal.getsignal(number) for number in STOPPING}))
        hide(keeping)
        try:
            async for number in received:
                if stopping.is_set():
                    log.warning("second signal: exiting at once, without draining; %s", consequence)
                    raise ExitAtOnce(1)
                log.info("%s: draining, running steps get %g s to finish", signal.Signals(number).name, grace)
                stopping.set()
        finally:
            leave_signals_to_forks(())
            keeping.cancel()


async def _keep_handlers(handlers: dict[signal.Signals, Any]) -> None:
    """A step, or a library that it uses, may replace them: then the process could no longer be drained."""
    while True:
        await asyncio.sleep(KEEP_EVERY)
        for number, handler in handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
                _log.warning("the handler of %s was replaced, probably by a step, and is put back", number.name)


def tune_garbage_collection() -> None:
    """For a process that only runs a daemon. Runs are freed by reference counts; looking for cycles among
    thousands of live ones every 700 allocations took a quarter of the processor."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


def resident_bytes(max_rss: int) -> int:
    """Resident memory of this process now, in bytes; where the system doesn't report it, its peak (`ru_maxrss`)."""
    try:
        file = os.open(
            "/proc/self/statm", os.O_RDONLY
        )  # as a text file it takes four times as long, with each heartbeat
        try:
            return int(os.read(file, 100).split()[1]) * os.sysconf("SC_PAGE_SIZE")
        finally:
            os.close(file)
    except OSError:
        return max_rss * (1 if sys.platform == "darwin" else 1024)
