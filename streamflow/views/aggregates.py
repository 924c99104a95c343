"""PUBLIC: ready-made aggregates for `app.view`: `sf.total`, `sf.count`, `sf.highest`, `sf.lowest`, `sf.histogram`.

Owns: these monoids. Must not: know windows, keys or shards. Called by: user code (makes them), `cells.py` (folds).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from streamflow.errors import UsageError
from streamflow.events import Recorded
from streamflow.model.names import check_name
from streamflow.views.histogram import bucket_of, middle_of
from streamflow.workflow.view import ViewEvent

Of = Callable[[ViewEvent], float | None]
SCALE = 1000
"""A histogram's values are counted in thousandths: smaller ones differ by at most one bucket."""
LARGEST = 2**53


class _OfNumbers:
    """What folds one number of each event: the value of a record, or what a function gives."""

    def __init__(self, of: str | Of | None) -> None:
        if of is not None and not isinstance(of, str) and not callable(of):  # pyright: ignore[reportUnnecessaryIsInstance]
            what = f"sf.{type(self).__name__}(…)"
            raise UsageError(f"{what} takes the name of a record or a function of an event, got {of!r}")
        self.records = (check_name("record", of),) if isinstance(of, str) else ()
        self._of = of if callable(of) else _recorded

    def number(self, event: ViewEvent) -> float | None:
        """None: the event doesn't count."""
        number = self._of(event)
        if number is None or isinstance(number, bool) or number != number or abs(number) > LARGEST:
            return None
        return number


def _recorded(event: ViewEvent) -> float | None:
    return event.event.value if isinstance(event.event, Recorded) else None


class total(_OfNumbers):  # noqa: N801 - users call it like a function
    """The sum of a recorded number, or of what a function of the event gives (None: it doesn't count).

    >>> app.view(sf.total("tokens"), name="cost", by=["model", "tenant"], window="day")
    """

    state = int | float

    def zero(self) -> int | float:
        return 0

    def fold(self, state: float, event: ViewEvent) -> float:
        number = self.number(event)
        return state if number is None else state + number

    def merge(self, one: float, other: float) -> float:
        return one + other


class count:  # noqa: N801
    """How many events there were; with a name, of the records with that name.

    >>> app.view(sf.count(), name="ended", kinds=[sf.events.RunCompleted], by=["workflow"], window="hour")
    """

    state = int

    def __init__(self, of: str | None = None) -> None:
        self.records = () if of is None else (check_name("record", of),)

    def zero(self) -> int:
        return 0

    def fold(self, state: int, event: ViewEvent) -> int:
        return state + 1

    def merge(self, one: int, other: int) -> int:
        return one + other


class highest(_OfNumbers):  # noqa: N801
    """The highest recorded number. Keys are ranked by it."""

    state = int | float | None

    def zero(self) -> float | None:
        return None

    def fold(self, state: float | None, event: ViewEvent) -> float | None:
        number = self.number(event)
        return state if number is None else number if state is None else max(state, number)

    def merge(self, one: float | None, other: float | None) -> float | None:
        return other if one is None else one if other is None else max(one, other)

    def value(self, state: float | None) -> float:
        return 0 if state is None else state


class lowest(highest):  # noqa: N801
    """The lowest recorded number. Keys are ranked by it, the highest first."""

    def fold(self, state: float | None, event: ViewEvent) -> float | None:
        number = self.number(event)
        return state if number is None else number if state is None else min(state, number)

    def merge(self, one: float | None, other: float | None) -> float | None:
        return other if one is None else one if other is None else min(one, other)


class Spread(msgspec.Struct, array_like=True):
    """How often numbers were in each bucket, their sum, and the highest one: the state of `sf.histogram`."""

    buckets: dict[int, int] = {}
    total: float = 0.0
    most: float = 0.0

    @property
    def count(self) -> int:
        return sum(self.buckets.values())

    def percentile(self, share: float) -> float:
        """The number within which that share (0 to 1) of all is, off by at most 6 %; 0 without numbers."""
        left = max(1.0, share * self.count)
        for bucket, number in sorted(self.buckets.items()):
            left -= number
            if left <= 0:
                return min(middle_of(bucket) / SCALE, self.most)
        return self.most


class histogram(_OfNumbers):  # noqa: N801
    """How a recorded number that isn't negative is spread: count, mean, p50, p95, p99 and the highest. Keys are ranked
    by how many numbers they have. Percentiles are off by at most 6 %.

    >>> app.view(sf.histogram("seconds"), name="latency", by=["model"], window="hour")
    """

    state = Spread

    def zero(self) -> Spread:
        return Spread()

    def fold(self, state: Spread, event: ViewEvent) -> Spread:
        number = self.number(event)
        if number is not None:
            bucket = bucket_of(min(int(max(0.0, number) * SCALE), LARGEST))
            state.buckets[bucket] = state.buckets.get(bucket, 0) + 1
            state.total += number
            state.most = max(state.most, number)
        return state

    def merge(self, one: Spread, other: Spread) -> Spread:
        for bucket, number in other.buckets.items():
            one.buckets[bucket] = one.buckets.get(bucket, 0) + number
        one.total += other.total
        one.most = max(one.most, other.most)
        return one

    def value(self, state: Spread) -> float:
        return state.count

    def show(self, state: Spread) -> dict[str, Any]:
        """What readers get in place of the state."""
        count = state.count
        shares = {name: state.percentile(share) for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))}
        return {"count": count, "mean": state.total / count if count else 0.0, **shares, "max": state.most}
