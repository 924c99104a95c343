"""What fails for single shards: pauses that grow, and what is said about it."""

from __future__ import annotations

import pytest

from streamflow.daemon import troubles as module
from streamflow.daemon.troubles import LONGEST_PAUSE, SAY_AGAIN, SETTLED, Troubles
from streamflow.errors import StoreError
from streamflow.store.workers import MOST_TEXT, MOST_TOLD, for_heartbeat

REFUSED = StoreError("commit: WRONGTYPE sf:{ns/5}:log")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    it = Clock()
    monkeypatch.setattr(module, "time", it)
    monkeypatch.setattr(module, "JITTER", 1.0)
    return it


def fail(troubles: Troubles, error: Exception = REFUSED, *, stops: bool = True) -> float:
    return troubles.failed("shard 5", "is stopped", error, stops=stops)


def test_pauses_grow_up_to_a_limit(clock: Clock) -> None:
    troubles, pauses = Troubles(), list[float]()
    for _ in range(8):
        pauses.append(fail(troubles))
        assert troubles.waits("shard 5", "is stopped")
        assert not troubles.waits("shard 6", "is stopped")
        clock.now += pauses[-1]
        assert not troubles.waits("shard 5", "is stopped")
    assert pauses == [1, 2, 4, 8, 16, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE]


def test_who_does_not_wait_makes_no_pause_longer(clock: Clock) -> None:
    """Such as a loop that does something for all shards every second, and whose calls are cheap."""
    troubles = Troubles()
    fail(troubles)
    for _ in range(5):
        clock.now += 0.1
        fail(troubles)
    assert fail(troubles) == pytest.approx(0.5)


def test_shards_that_failed_together_are_tried_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = {Troubles().failed("shard 5", "is stopped", REFUSED, stops=True) for _ in range(20)}
    assert len(pauses) > 5
    assert 0.75 <= min(pauses) <= max(pauses) <= 1.0


def test_what_works_again_is_forgotten(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    troubles = Troubles()
    fail(troubles)
    clock.now += 1.0
    fail(troubles)
    troubles.works("shard 5", "is stopped")
    assert "recovered from: shard 5 is stopped" in caplog.text
    assert not troubles
    assert fail(troubles) == 1.0, "a new one"
    clock.now += 1.0 + SETTLED
    troubles.settle()
    assert troubles, "it may just have been tried"
    clock.now += 0.1
    troubles.settle()
    assert not troubles
    caplog.clear()
    troubles.works("shard 5", "is stopped")
    assert not caplog.text


def test_what_is_tried_rarely_is_kept_for_longer(clock: Clock) -> None:
    troubles = Troubles()
    troubles.failed("shard 5", "keeps ended runs", REFUSED, stops=False, kept=90.0)
    clock.now += 60.0
    troubles.settle()
    assert troubles.failed("shard 5", "keeps ended runs", REFUSED, stops=False, kept=90.0) == 2.0


def test_the_log_has_each_try_until_pauses_grow_no_more(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    troubles = Troubles()
    for _ in range(100):
        clock.now += fail(troubles)
    assert caplog.text.count("shard 5 is stopped, will retry in 20.0 s") == 1 + int(100 * LONGEST_PAUSE / SAY_AGAIN)
    assert len(caplog.records) < 12
    assert "commit: WRONGTYPE sf:{ns/5}:log (somebody has overwritten this key; see docs/operations.md" in caplog.text
    caplog.clear()
    fail(troubles, StoreError("commit: NOPERM"))
    assert "will retry in 20.0 s: commit: NOPERM" in caplog.text, "another reason"


def test_an_unexpected_error_has_its_traceback_once(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    troubles = Troubles()
    for _ in range(3):
        try:
            raise KeyError("r1")
        except KeyError as error:
            clock.now += fail(troubles, error)
    assert caplog.text.count("Traceback") == 1
    assert caplog.text.count("KeyError: 'r1'") == 3 + 1


def test_a_shard_that_stands_still_is_not_named_twice() -> None:
    troubles = Troubles()
    troubles.failed("shard 5", "is stopped", REFUSED, stops=True)
    troubles.failed("shard 5", "has views that could not be stored", REFUSED, stops=False)
    troubles.failed("shard 6", "takes no messages", REFUSED, stops=False)
    assert troubles.current(stops=True) == {"shard 5": f"is stopped: {REFUSED}"}
    assert troubles.current(stops=False) == {"shard 6": f"takes no messages: {REFUSED}"}


def test_a_heartbeat_has_some_of_them_only() -> None:
    many = for_heartbeat({f"shard {n}": "x" * 10_000 for n in range(1000)})
    assert list(many) == [f"shard {n}" for n in range(MOST_TOLD)]
    assert {len(text) for text in many.values()} == {MOST_TEXT}
