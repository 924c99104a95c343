"""A loop that survives every error of the server: how daemons and workers retry.

Owns: when a loop tries again after an error, and what is logged about it. Must not: know what a loop does.
Called by: the loops of daemon and worker.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import anyio

from streamflow.errors import StoreError

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 2.0
"""Seconds between two tries of a loop that has no interval; the pause doubles with each consecutive failure."""


async def retry_forever(
    run_once: Callable[[], Awaitable[object]],
    log: logging.Logger,
    failure: str,
    *,
    every: float = 0.0,
    at_once: bool = False,
    until: Callable[[], bool] = lambda: False,
    on_failure: Callable[[], object] | None = None,
) -> None:
    """Call `run_once` repeatedly, `every` seconds apart (the first time `at_once`), whatever the server answers.

    After a `StoreError` it logs `failure` and the reason, once for a series of errors, calls `on_failure`, and tries
    again: after the interval, or without one after a growing pause. Any other error is a defect and ends the loop.
    Returns when `until()` is true.
    """
    if every and not at_once:
        await anyio.sleep(every)
    pause = FIRST_PAUSE
    failing = False
    while not until():
        try:
            await run_once()
        except StoreError as error:
            if not failing:
                log.warning("%s, will retry: %s", failure, error)
            failing = True
            if on_failure is not None:
                on_failure()
            await anyio.sleep(every or pause)
            pause = min(pause * 2, LONGEST_PAUSE)
        else:
            if failing:
                log.info("recovered from: %s", failure)
            failing = False
            pause = FIRST_PAUSE
            if every:
                await anyio.sleep(every)
