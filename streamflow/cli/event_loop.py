"""The event loop of a command: until its work is done, or, for a daemon or worker, until a signal.

Owns: the choice of the loop, what is logged while a command runs, leaving the process although threads are busy.
Must not: catch a command's errors. Called by: all commands that wait for something.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from streamflow.cli.connection import check_server
from streamflow.cli.logs import set_up, silence
from streamflow.settings import Settings

T = TypeVar("T")

THREADS_END_WITHIN = 2.0
"""Seconds that threads of steps have to end when a daemon or worker has drained."""


def run_async(function: Callable[[], Coroutine[Any, Any, T]], *, fast: bool = False, screen: bool = False) -> T:
    """Run `function` until it is done; with `fast` on uvloop, if installed: short commands don't earn back its import.

    Warnings go to stderr, unless a live `screen` uses the whole terminal: it shows problems in its header.
    """
    import anyio

    set_up("text", "warning")
    if screen:
        silence()
    return anyio.run(function, backend_options={"use_uvloop": fast and _has_uvloop()})


def run_service(service: Callable[[], Coroutine[Any, Any, None]], settings: Settings) -> None:
    """Run a daemon or worker until it ends, once the server has answered. Raises `StoreUnavailable`."""
    from streamflow.process import run_until_done
    from streamflow.steps.executor import STEP_THREAD
    from streamflow.store.router import open_store

    async def run() -> None:
        probe = open_store(settings.redis, connections=1)
        try:
            await check_server(probe)
        finally:
            await probe.close()
        await service()

    before = set(threading.enumerate())
    code: object = 0
    runner = asyncio.Runner(loop_factory=_loop_factory())
    try:
        run_until_done(runner.get_loop(), run())
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        runner.close()
        raise
    number = code if isinstance(code, int) else 1
    if any(thread.name.startswith(STEP_THREAD) for thread in threading.enumerate()):
        # Steps that outlasted their grace period and can't be stopped. Python would wait for their threads at exit.
        _exit(number)
    # `asyncio.to_thread` in a step that was cancelled, or a thread of its own: closing the loop and the end of Python
    # wait for these without a limit.
    timer = threading.Timer(THREADS_END_WITHIN, _exit, (number,))
    timer.daemon = True
    timer.start()
    runner.close()
    for thread in set(threading.enumerate()) - before:
        if not thread.daemon:
            thread.join()
    timer.cancel()
    if code:
        raise SystemExit(code)


def _exit(code: int) -> None:
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if not _has_uvloop():
        return None
    import uvloop

    return uvloop.new_event_loop


def _has_uvloop() -> bool:
    return importlib.util.find_spec("uvloop") is not None
