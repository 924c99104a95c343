"""How fast a bulk goes: so many runs a second.

Owns: when the next one may begin. Must not: know what begins. Called by: many.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

SLACK = 0.1
"""Seconds that one may be late, and catch up: sleeps are never exact."""


class Pace:
    """`rate` a second, evenly; 0: as fast as it goes. At most `rate` times `SLACK` at once."""

    def __init__(
        self,
        rate: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._interval = 1 / rate if rate else 0.0
        self._clock = clock
        self._sleep = sleep
        self._next = clock()

    async def turn(self) -> None:
        """Return when the next one may begin."""
        now = self._clock()
        if self._next > now:
            await self._sleep(self._next - now)
        self._next = max(self._next, now - SLACK) + self._interval
