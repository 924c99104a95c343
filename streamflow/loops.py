"""Loops that survive errors: how daemons and workers retry, and what is reported about it.

Owns: when a loop tries again after an error, what is logged about it, and which loops fail now. Must not: know what a
loop does. Called by: daemon and worker (run each loop under a `Supervisor`), the loops themselves (`retry_forever`).

What the server answers is expected, and each loop retries by itself. Any other error is a defect of streamflow, or
comes from data that nobody thought of: it must not end the other loops, and with them the process. So only these end a
daemon or worker: SIGTERM, SIGINT or `stop()` (drained), a second signal, a server or settings that can't be used at
start, and too many hung threads (drained; `process.RESTART`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
import traceback
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import cast

import anyio

from streamflow.errors import StoreError
from streamflow.machine.sealed import hide_all
from streamflow.own_log import guard_own_loggers

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 2.0
"""Seconds between two tries of a loop that has no interval; the pause doubles with each consecutive failure."""

_PHASE = random.random()
"""Seconds: another phase for each process, so that those of a host don't have their turns at the same moments."""
FAILING_FOR = 60.0
"""Seconds without an error after which a loop no longer counts as failing, and its pauses are short again."""


TURN = 120.0
"""Seconds for a turn of a loop that only asks the server something: then the loop counts as one that hangs."""

HEARTBEATS = "heartbeats"
"""The loop whose turns end soon whether the server answers or not: when it hangs, the server is not to blame."""


class _Turn:
    """The turn of a loop that is under way."""

    __slots__ = ("began", "limit")

    def __init__(self) -> None:
        self.began = 0.0
        """Monotonic s; 0: none is under way."""
        self.limit = math.inf


_turn: ContextVar[_Turn | None] = ContextVar("streamflow_turn", default=None)


class Supervisor:
    """The loops of one daemon or worker. Each runs in a task of its own, as `run(name, loop)`."""

    def __init__(self, log: logging.Logger) -> None:
        self.errors = 0
        """Errors of all loops since the start."""
        self._log = log
        self._last: dict[str, tuple[float, str]] = {}
        """When each loop failed last (monotonic s), and how."""
        self.unserved: set[str] = set()
        """The loops whose last error was the server's: it didn't answer, or refused."""
        self._turns: dict[str, _Turn] = {}

    @property
    def failing(self) -> dict[str, str]:
        """The loops that have failed within the last minute, with their errors."""
        since = time.monotonic() - FAILING_FOR
        last = list(self._last.items())  # other threads ask, too
        return {name: text for name, (at, text) in last if at > since}

    @property
    def hanging(self) -> dict[str, float]:
        """The loops whose turn takes longer than it may, with its seconds. Only of those that have a limit."""
        now = time.monotonic()
        taken = {name: (now - turn.began, turn.limit) for name, turn in list(self._turns.items()) if turn.began}
        return {name: seconds for name, (seconds, limit) in taken.items() if seconds > limit}

    async def run(self, name: str, loop: Callable[[], Awaitable[object]], *, longest: float = LONGEST_PAUSE) -> None:
        """Run `loop` until it returns or is cancelled with its scope; after any error run it again, after a pause that
        doubles up to `longest` seconds. The traceback is logged once for a series of equal errors."""
        pause = min(FIRST_PAUSE, longest)
        logged = ""
        guard_own_loggers()
        hide_all()  # no step runs yet
        _turn.set(self._turns.setdefault(name, _Turn()))
        while True:
            began = time.monotonic()
            try:
                await loop()
            except Exception as failure:
                error: BaseException = failure
            except asyncio.CancelledError as stray:
                if anyio.current_effective_deadline() == -math.inf:
                    raise
                # User code has cancelled all tasks that it found (`asyncio.all_tasks()`).
                _uncancel()
                error = stray
            else:
                return
            if time.monotonic() - began > FAILING_FOR:
                pause, logged = min(FIRST_PAUSE, longest), ""
            text = traceback.format_exception_only(error)[-1].strip()
            self._turns[name].began = 0.0
            self.errors += 1
            self._last[name] = (time.monotonic(), text)
            (self.unserved.add if _is_of_server(error) else self.unserved.discard)(name)
            self._log.error(
                "the loop %r failed, will run again in %g s: %s",
                name,
                pause,
                text,
                exc_info=error if text != logged else None,
            )
            logged = text
            try:
                await anyio.sleep(pause)
            except asyncio.CancelledError:  # user code again: one that gets out of here would end all loops
                if anyio.current_effective_deadline() == -math.inf:
                    raise
                _uncancel()
            pause = min(pause * 2, longest)


def _is_of_server(error: BaseException) -> bool:
    """Also in the group that a task group makes of it."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_of_server(one) for one in cast("BaseExceptionGroup[BaseException]", error).exceptions)
    return isinstance(error, StoreError)


def _uncancel() -> None:
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()


async def wait_until(condition: Callable[[], bool], every: float) -> None:
    """Look every so many seconds whether the condition holds: for rare waits that nobody could end with a signal."""
    while not condition():  # noqa: ASYNC110
        await anyio.sleep(every)


async def retry_forever(
    run_once: Callable[[], Awaitable[object]],
    log: logging.Logger,
    failure: str,
    *,
    every: float = 0.0,
    at_once: bool = False,
    until: Callable[[], bool] = lambda: False,
    on_failure: Callable[[], object] | None = None,
    within: float = math.inf,
) -> None:
    """Call `run_once` repeatedly, `every` seconds apart (the first time `at_once`), whatever the server answers. Loops
    of one interval, or of multiples, have their turns at the same moments: an idle process is woken up less often.

    After a `StoreError` it logs `failure` and the reason, once for a series of errors, calls `on_failure`, and tries
    again: after the interval, or without one after a growing pause. Any other error is for the supervisor.
    `within`: seconds in which a turn has to end, or the health of the process names the loop.
    Returns when `until()` is true.
    """
    turn = _turn.get() or _Turn()
    turn.limit = within
    if every and not at_once:
        await anyio.sleep(_until_turn(every))
    pause = FIRST_PAUSE
    failing = False
    while not until():
        turn.began = time.monotonic()
        try:
            await run_once()
        except StoreError as error:
            turn.began = 0.0
            if not failing:
                log.warning("%s, will retry: %s", failure, error)
            failing = True
            if on_failure is not None:
                on_failure()
            await anyio.sleep(_until_turn(every) if every else pause)
            pause = min(pause * 2, LONGEST_PAUSE)
        else:
            turn.began = 0.0
            if failing:
                log.info("recovered from: %s", failure)
            failing = False
            pause = FIRST_PAUSE
            if every:
                await anyio.sleep(_until_turn(every))


def _until_turn(every: float) -> float:
    """Seconds until the next turn of loops with this interval: a quarter of it at least."""
    rest = every - (time.monotonic() - _PHASE) % every
    return rest if rest > every / 4 else rest + every
