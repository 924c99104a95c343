"""SIGTERM and SIGINT: the first one drains a daemon or worker, the second one ends it on the spot.

Owns: the signals. Must not: know what draining means. Called by: daemon and worker (each runs it in its task group).
"""

from __future__ import annotations

import logging
import signal

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
