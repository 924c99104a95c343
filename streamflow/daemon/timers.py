"""Due times by key: one for each, in a heap that stays as small as what is planned.

Owns: which keys are due, and that an entry that is out of date doesn't stay until its time.
Must not: know what the keys mean, read clocks. Called by: the owner (shards, and runs whose steps are in flight).
"""

from __future__ import annotations

import heapq
import math
from typing import Generic, TypeVar

K = TypeVar("K")

SLACK = 64
"""Entries that may be out of date before the heap is made again, besides as many as there are keys: that costs nothing
on average, and the heap has never more than twice the keys."""


class Timers(Generic[K]):
    def __init__(self) -> None:
        self._due: dict[K, int] = {}
        self._heap: list[tuple[int, K]] = []
        """All of `_due`, and entries that are out of date: their key has another time by now, or none."""

    def __len__(self) -> int:
        """Entries in memory, those included that are out of date."""
        return len(self._heap)

    def set(self, key: K, due: int) -> bool:
        """The key is due at `due` (ms), and no longer at the time before. Returns whether nothing is due earlier."""
        if self._due.get(key) != due:
            self._due[key] = due
            heapq.heappush(self._heap, (due, key))
            self._tidy()
        return self._heap[0][0] == due

    def discard(self, key: K) -> None:
        """The key is not due any more."""
        if self._due.pop(key, None) is not None:
            self._tidy()

    @property
    def next(self) -> float:
        """When the first key is due (ms); infinite if none is."""
        heap = self._heap
        while heap:
            due, key = heap[0]
            if self._due.get(key) == due:
                return due
            heapq.heappop(heap)
        return math.inf

    def take(self, now: int) -> list[tuple[int, K]]:
        """Remove the keys that are due at `now` (ms), and return them with their times, the earliest first."""
        taken: list[tuple[int, K]] = []
        while self.next <= now:
            due, key = heapq.heappop(self._heap)
            del self._due[key]
            taken.append((due, key))
        return taken

    def _tidy(self) -> None:
        if len(self._heap) > 2 * len(self._due) + SLACK:
            self._heap = [(due, key) for key, due in self._due.items()]
            heapq.heapify(self._heap)
