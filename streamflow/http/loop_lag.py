"""By how much an event loop is late: it is asked twice a second.

Owns: the loop that asks, and what it finds. Must not: warn of it (the watch does). Called by: daemon and worker (run
it, if they serve metrics), their figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio

from streamflow.http.catalog import LOOP_BLOCKED, LOOP_LAG
from streamflow.http.figures import Figures, Powers

EVERY = 0.5
"""Seconds between two turns."""


def _nothing() -> None:
    pass


class LoopLag:
    """`on_turn()` is called in the loop at each turn: for what can be counted only there."""

    def __init__(self, on_turn: Callable[[], None] = _nothing) -> None:
        self._on_turn = on_turn
        self._late = Powers()
        """Microseconds."""
        self._due = time.monotonic() + EVERY
        """When the next turn should begin (monotonic s)."""

    async def run(self) -> None:
        while True:
            await self.run_once()

    async def run_once(self) -> None:
        self._due = time.monotonic() + EVERY
        await anyio.sleep(EVERY)
        self._late.add(int(max(0.0, time.monotonic() - self._due) * 1e6))
        self._on_turn()

    def add_figures(self, figures: Figures) -> None:
        """Called in another thread."""
        figures.set_histogram(LOOP_LAG, self._late.counts, self._late.total / 1e6)
        figures.set(LOOP_BLOCKED, max(0.0, time.monotonic() - self._due))
