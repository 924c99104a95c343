"""Sources that a process reads from by itself, in contrast to webhooks, which are delivered to it.

Owns: what they have in common, and that one that fails is begun again. Must not: know a kind. Called by: `serving.py`;
each kind is a subclass.
"""

from __future__ import annotations

import abc
import logging
import time
from typing import cast

import anyio

from streamflow.triggers.receiver import Receiver
from streamflow.workflow.trigger import Source

_log = logging.getLogger("streamflow.triggers")

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
"""Seconds before a source that has failed is begun again; the pause doubles with each failure."""


class PulledSource(Source):
    """A source with a loop of its own."""

    @abc.abstractmethod
    async def serve(self, receiver: Receiver) -> None:
        """Receive until cancelled; acknowledge what `receiver.receive` has returned for. Raises whatever fails: it is
        begun again then, and must find what it had not acknowledged."""


async def keep_serving(source: PulledSource, receiver: Receiver) -> None:
    """Until cancelled. What fails is said in the log, once for a series."""
    pause = FIRST_PAUSE
    name = receiver.trigger.name
    failing = False
    while True:
        began = time.monotonic()
        try:
            await source.serve(receiver)
            return
        except Exception as error:
            if time.monotonic() - began > 2 * LONGEST_PAUSE:
                pause, failing = FIRST_PAUSE, False
            if not failing:
                cause = _first(error)
                _log.warning("trigger %s receives nothing, will retry: %s: %s", name, type(cause).__name__, cause)
            failing = True
        await anyio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def _first(error: Exception) -> Exception:
    """Of what several tasks have raised: the group itself says nothing."""
    while isinstance(error, ExceptionGroup):
        error = cast("ExceptionGroup[Exception]", error).exceptions[0]
    return error
