"""What a daemon looks at twice a second for its metrics."""

from __future__ import annotations

from typing import Any

import pytest

from streamflow.daemon import figures as module
from streamflow.daemon.figures import DaemonFigures
from tests.support.fakes import owned


class Parts:
    """An owner and a relay, as far as they are looked at."""

    def __init__(self) -> None:
        self.active = {number: owned(number) for number in range(3)}
        self.overdue = 0.0
        self.waiting = 0

    def heads(self) -> list[Any]:
        return []


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_one_shard_whose_views_are_not_stored_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, parts = Clock(), Parts()
    monkeypatch.setattr(module, "time", clock)
    any_parts: Any = parts
    figures = DaemonFigures(any_parts, any_parts)
    for second in range(20):
        clock.now += 1
        for number in (0, 1):  # something is always new, and these two are stored
            parts.active[number].folded = f"{second}-0"
            parts.active[number].unfolded = 1
        parts.active[2].unfolded += 1
        figures.look()
    assert figures.views_lag == 19
    parts.active[2].unfolded = 0
    figures.look()
    assert figures.views_lag == 0
