"""The server's clock, estimated between answers.

Owns: the offset between the server's wall clock and this process's monotonic clock. Must not: read the local wall clock
(it jumps). Called by: owner (stamps transitions, waits for due times), membership, rollup.
"""

from __future__ import annotations

import time


class ServerClock:
    """Never ahead of the server: it is set when an answer *arrives*, which is later than the time in the answer."""

    __slots__ = ("_base_ms", "_monotonic_ms")

    def __init__(self) -> None:
        self._base_ms = 0.0
        self._monotonic_ms = 0.0

    def observe(self, server_ms: int) -> None:
        """Correct the estimate by the server's time in an answer that has just arrived."""
        monotonic = time.monotonic() * 1000
        if server_ms >= self._base_ms + (monotonic - self._monotonic_ms):
            self._base_ms, self._monotonic_ms = server_ms, monotonic

    def now_ms(self) -> int:
        return int(self._base_ms + (time.monotonic() * 1000 - self._monotonic_ms))

    def seconds_until(self, due_ms: float) -> float:
        return max(0.0, (due_ms - self._base_ms) / 1000 - (time.monotonic() - self._monotonic_ms / 1000))
