"""How often shards have come to this daemon lately.

Owns: the counting. Must not: decide who owns what (membership does). Called by: the owner, the heartbeat.

A shard moves when a daemon starts, leaves or dies. If shards come back to the same daemon again and again, it is taken
for dead by the others now and then, or daemons start and die in a loop.
"""

from __future__ import annotations

import time
from collections import Counter

MINUTES = 10
SETTLES = 60.0
"""Seconds after the start of a daemon in which what it gets is its first share."""


class Moves:
    def __init__(self) -> None:
        self._started = time.monotonic()
        self._minutes = Counter[int]()

    def acquired(self) -> None:
        now = time.monotonic()
        if now - self._started >= SETTLES:
            self._minutes[int(now // 60)] += 1

    def lately(self) -> int:
        """Shards that it has got within the last minutes, each as often as it has."""
        oldest = int(time.monotonic() // 60) - MINUTES
        for minute in [minute for minute in self._minutes if minute < oldest]:
            del self._minutes[minute]
        return self._minutes.total()
