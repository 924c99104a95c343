"""The values of one answer to /metrics, and how durations and sizes are counted cheaply until somebody asks.

Owns: `Figures`, `Powers`, and which names a label may have. Must not: know Prometheus' format, or what is counted.
Called by: daemon and worker (count, and set values), `exposition.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from streamflow.http.catalog import OTHER, Metric

T = TypeVar("T")

OTHERS = 50
"""Names beside those of the app that a label may have: more are `OTHER`."""
DIGITS = 64


class Powers:
    """Counts of integers by their binary digits, and their sum: adding one is two operations on plain lists. Only one
    thread may add."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (DIGITS + 1)
        self.total = 0

    def add(self, value: int) -> None:
        """`value`: from 0 to 2**64 - 1."""
        self.counts[value.bit_length()] += 1
        self.total += value


def up_to(counts: Sequence[int], powers: Iterable[int]) -> list[int]:
    """How many values are below each of these powers of two, and at the end how many there are. `counts`: by binary
    digits, of any length."""
    return [*(sum(counts[: power + 1]) for power in powers), sum(counts)]


class Figures:
    """Values by metric and by the values of its labels."""

    def __init__(self) -> None:
        self.values: dict[Metric, dict[tuple[str, ...], float]] = {}
        self.histograms: dict[Metric, dict[tuple[str, ...], tuple[list[int], float]]] = {}
        """Cumulative counts, as `up_to` gives them, and the sum in the metric's unit."""

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        self.values.setdefault(metric, {})[labels] = value

    def set_histogram(self, metric: Metric, counts: Sequence[int], total: float, *labels: str) -> None:
        """`counts`: by binary digits; `total`: the sum of all values in the metric's unit."""
        self.histograms.setdefault(metric, {})[labels] = (up_to(counts, metric.powers), total)


class Names:
    """The names that a label may have: all of the app's, and the first `OTHERS` others that are seen. A name that has
    once been let in stays: otherwise its counters would move from one series to another."""

    def __init__(self, known: Iterable[str]) -> None:
        self._names = set(known)
        self._left = OTHERS

    def label(self, name: str) -> str:
        if name in self._names:
            return name
        if not self._left:
            return OTHER
        self._left -= 1
        self._names.add(name)
        return name

    def grouped(self, values: Mapping[str, T]) -> dict[str, list[T]]:
        """The values by label."""
        grouped: dict[str, list[T]] = {}
        for name in sorted(values):
            grouped.setdefault(self.label(name), []).append(values[name])
        return grouped
