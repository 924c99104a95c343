"""How often shards have come to a daemon lately."""

from __future__ import annotations

import pytest

from streamflow.daemon import moves
from streamflow.daemon.moves import MINUTES, SETTLES, Moves


def test_shards_that_come_after_the_start_are_counted_for_some_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [6000.0]
    monkeypatch.setattr(moves.time, "monotonic", lambda: now[0])
    it = Moves()
    it.acquired()
    assert it.lately() == 0, "its first share"
    now[0] += SETTLES
    for _ in range(3):
        it.acquired()
    now[0] += 60
    it.acquired()
    assert it.lately() == 4
    now[0] += 60 * MINUTES
    assert it.lately() == 1
    now[0] += 60
    assert it.lately() == 0
