"""Due times: each key once, the earliest first, and nothing in memory for what is no longer due."""

from __future__ import annotations

import math

import pytest

from streamflow.daemon.timers import SLACK, Timers


def test_what_is_due_is_taken_once_the_earliest_first() -> None:
    timers = Timers[str]()
    assert timers.set("b", 20)
    assert timers.set("a", 10)
    assert not timers.set("c", 30)
    assert timers.next == 10
    assert timers.take(20) == [(10, "a"), (20, "b")]
    assert timers.take(20) == []
    assert timers.next == 30


@pytest.mark.parametrize("due", [5, 50])
def test_a_key_has_one_time_the_last_that_was_set(due: int) -> None:
    timers = Timers[str]()
    timers.set("a", 10)
    timers.set("a", due)
    assert timers.next == due
    assert timers.take(100) == [(due, "a")]
    assert timers.next == math.inf


def test_a_key_that_is_set_again_to_the_same_time_is_due_once() -> None:
    timers = Timers[str]()
    for time in (10, 20, 10):
        timers.set("a", time)
    assert timers.take(100) == [(10, "a")]
    assert timers.take(100) == []


def test_what_is_discarded_is_not_due() -> None:
    timers = Timers[str]()
    timers.set("a", 10)
    timers.discard("a")
    timers.discard("nobody")
    assert timers.next == math.inf
    assert timers.take(100) == []


def test_memory_follows_what_is_planned_and_not_what_was() -> None:
    timers = Timers[int]()
    for key in range(100):
        timers.set(key, 1_000_000 + key)
    for key in range(100, 50_000):  # each ends long before its time
        timers.set(key, 1_000_000_000 + key)
        timers.discard(key)
        assert len(timers) <= 2 * 101 + SLACK
    for later in range(50_000):  # one that is put off again and again
        timers.set(0, 2_000_000 + later)
    assert len(timers) <= 2 * 100 + SLACK
    assert [key for _, key in timers.take(10_000_000)] == [*range(1, 100), 0]
