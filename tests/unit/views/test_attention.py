"""The list of what needs a person: made from other views, in the order in which one looks at it."""

from __future__ import annotations

from typing import Any

from streamflow import events
from streamflow.errors import Failure
from streamflow.events import NOTHING, RunResumed, RunRetried, RunStarted, RunStuck, Transition
from streamflow.views.attention import MAX_ROWS, DeadQueue, Silent, attention
from streamflow.views.registry import CAUSE_DAYS, DAY_MS, MAX_CAUSES
from streamflow.views.shard_views import ShardViews

NOW = 1_700_000_000_000
BOOM = Failure("KeyError", "'b'", '  File "/srv/order.py", line 48, in total\n')


def rows(views: ShardViews, queues: list[DeadQueue] | None = None, now_ms: int = NOW) -> list[dict[str, Any]]:
    rendered = views.render(now_ms)
    return attention(rendered["runs"], rendered["causes"], queues)["rows"]


def short(found: list[dict[str, Any]]) -> list[tuple[str, str, int]]:
    return [(row["kind"], row["name"], row["count"]) for row in found]


def test_what_does_not_go_on_comes_before_what_has_failed() -> None:
    views = ShardViews()
    for n in range(3):
        started = RunStarted("order", "", NOTHING)
        views.fold(f"r{n}", Transition(NOW + n, [started, RunStuck("order", "", "diverged at event 3")]))
        views.fold(f"f{n}", Transition(NOW + 9, [started, events.RunFailed("order", "", 5, BOOM)]))
    found = rows(views, [DeadQueue("pdf", 1, NOW + 5), DeadQueue("gpu", 318, NOW - 5)])
    assert short(found) == [("stuck", "order", 3), ("queue", "gpu", 318), ("queue", "pdf", 1), ("failed", "order", 3)]
    assert found[0] == {
        "kind": "stuck",
        "name": "order",
        "text": "diverged at event #",
        "where": "",
        "count": 3,
        "first": NOW,
        "last": NOW + 2,
        "run_id": "r2",
    }
    assert (found[-1]["text"], found[-1]["where"]) == ("KeyError: '…'", "order.py:48 in total")


def test_what_was_mended_is_not_in_it() -> None:
    views = ShardViews()
    views.fold("r", Transition(NOW, [RunStarted("order", "", NOTHING), RunStuck("order", "", "diverged")]))
    views.fold("f", Transition(NOW, [RunStarted("order", "", NOTHING), events.RunFailed("order", "", 5, BOOM)]))
    views.fold("r", Transition(NOW + 1, [RunResumed("order", "", "diverged", NOW)]))
    assert short(rows(views)) == [("failed", "order", 1)]
    views.fold("f", Transition(NOW + 1, [RunRetried("order", "", 1, 1, failure=BOOM, since=NOW)]))
    assert rows(views) == []


def test_no_run_that_is_stuck_is_left_out_however_long_it_is() -> None:
    views = ShardViews()
    views.fold("r", Transition(NOW, [RunStarted("order", "", NOTHING), RunStuck("order", "", "diverged")]))
    later = NOW + (CAUSE_DAYS + 2) * DAY_MS
    views.prune(later)
    assert short(rows(views, now_ms=later)) == [("stuck", "", 1)]
    for n in range(MAX_CAUSES + 5):
        views.fold(f"o{n}", Transition(later, [RunStarted(f"w{n}", "", NOTHING), RunStuck(f"w{n}", "", "unknown")]))
    assert sum(row["count"] for row in rows(views, now_ms=later)) == MAX_CAUSES + 6


def test_it_is_short_and_says_how_much_it_leaves_out() -> None:
    rendered = ShardViews().render(NOW)
    queues = [DeadQueue(f"q{n}", 1, n) for n in range(MAX_ROWS + 7)]
    found = attention(rendered["runs"], rendered["causes"], queues)
    assert (len(found["rows"]), found["more"], found["queues_known"]) == (MAX_ROWS, 7, True)
    assert attention(rendered["runs"], rendered["causes"], None) == {"rows": [], "more": 0, "queues_known": False}


def test_a_silent_step_comes_before_what_has_failed() -> None:
    views = ShardViews()
    failed = events.RunFailed("order", "", 5, BOOM)
    views.fold("f", Transition(NOW, [RunStarted("order", "", NOTHING), failed]))
    rendered = views.render(NOW)
    steps = [Silent("crawl", f"r{n}", 2, NOW - n, "worker gpu-7") for n in (1, 2)]
    found = attention(rendered["runs"], rendered["causes"], [DeadQueue("pdf", 1, NOW)], steps)["rows"]
    assert short(found) == [("queue", "pdf", 1), ("silent", "crawl", 1), ("silent", "crawl", 1), ("failed", "order", 1)]
    assert found[1] == {
        "kind": "silent",
        "name": "crawl",
        "text": "attempt 2 sends no heartbeats any more",
        "where": "worker gpu-7",
        "count": 1,
        "first": NOW - 2,
        "last": NOW - 2,
        "run_id": "r2",
    }
