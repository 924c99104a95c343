"""Retries by cause, over the last minutes: exact however a log is split, bounded, and forgotten."""

from __future__ import annotations

from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from streamflow.errors import Failure
from streamflow.events import NOTHING, AnyEvent, StepCompleted, StepRetrying, Transition
from streamflow.views import retries
from streamflow.views.retries import KEPT, MAX_ROWS, MINUTE_MS, MINUTES, retries_at
from streamflow.views.shard_views import ShardViews

NOW = 1_700_000_040_000
"""A whole minute."""


def retry(
    message: str = "429 Too Many Requests", step: str = "crawl", kind: str = "HTTPError", due: int = NOW
) -> AnyEvent:
    return StepRetrying(1, step, 1, 5.0, Failure(kind, message), due)


def done(step: str = "crawl", attempt: int = 2) -> StepCompleted:
    return StepCompleted(1, step, attempt, 5.0, NOTHING)


def folded(*log: tuple[int, AnyEvent], run: str = "run") -> ShardViews:
    views = ShardViews()
    for n, (at, event) in enumerate(log):
        views.fold(f"{run}-{n}", Transition(at, [event]))
    return views


def merged(*parts: ShardViews) -> ShardViews:
    into = ShardViews()
    for part in parts:
        into.merge(part)
    return into


def shown(views: ShardViews, now_ms: int = NOW) -> list[tuple[str, str, int, int]]:
    rows = views.render(now_ms)["retries"]["retries"]
    return [(row["step"], row["message"], row["retries"], row["succeeded"]) for row in rows]


def test_retries_are_grouped_by_step_kind_and_message_without_values() -> None:
    log = [(NOW + n, retry(f"429 Too Many Requests, id {n}")) for n in range(3)]
    log += [(NOW, retry("no route", "fetch")), (NOW, retry("no route", "fetch", "OSError"))]
    views = folded(*log)
    assert shown(views) == [
        ("crawl", "429 Too Many Requests, id 2", 3, 0),
        ("fetch", "no route", 1, 0),
        ("fetch", "no route", 1, 0),
    ]
    first = views.render(NOW)["retries"]["retries"][0]
    assert (first["kind"], first["first"], first["last"], first["run_id"]) == ("HTTPError", NOW, NOW + 2, "run-2")


def test_only_calls_that_were_tried_again_count_as_succeeded() -> None:
    log = [(NOW, retry()), (NOW, done(attempt=1)), (NOW, done(attempt=2)), (NOW, done(attempt=7)), (NOW, done("x"))]
    assert shown(folded(*log)) == [("crawl", "429 Too Many Requests", 1, 2)]


def test_what_is_not_decided_yet_is_no_retry() -> None:
    assert shown(folded((NOW, retry(due=0)))) == []


def test_the_window_is_ten_minutes() -> None:
    views = folded(*((NOW - n * MINUTE_MS, retry()) for n in range(MINUTES + 5)))
    assert shown(views)[0][2] == MINUTES + 1
    assert shown(views, NOW + MINUTES * MINUTE_MS)[0][2] == 1
    assert shown(views, NOW + (MINUTES + 1) * MINUTE_MS) == []
    views.prune(NOW)
    assert len(views.partials["retries"]) == MINUTES + 1


def test_a_view_that_nobody_merges_any_more_loses_what_is_over() -> None:
    views = folded((NOW, retry()), (NOW + 3 * MINUTE_MS, retry("no route", "fetch")))
    rendered = views.render(NOW + 3 * MINUTE_MS)["retries"]
    assert retries_at(rendered, NOW + MINUTES * MINUTE_MS) == rendered
    later = retries_at(rendered, NOW + (MINUTES + 1) * MINUTE_MS)
    assert [row["step"] for row in later["retries"]] == ["fetch"]
    assert retries_at(rendered, NOW + 20 * MINUTE_MS)["retries"] == []
    assert retries_at({}, NOW)["retries"] == []


happened = st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0, 1]), st.integers(0, 3)), max_size=40)


@given(happened, st.data())
@settings(deadline=None)
def test_it_is_exact_however_a_log_is_split(events: list[tuple[int, int, int]], data: st.DataObject) -> None:
    log = [
        (NOW + minute * MINUTE_MS + n, done(attempt=n) if succeeded else retry("abcdefghij"[n]))
        for n, succeeded, minute in events
    ]
    cut = data.draw(st.integers(0, len(log)))
    with mock.patch.object(retries, "KEPT", 3):
        whole = folded(*log, run="r").partials["retries"]
        parts = [ShardViews(), ShardViews()]
        for n, (at, event) in enumerate(log):
            parts[n >= cut].fold(f"r-{n}", Transition(at, [event]))
        assert merged(*parts).partials["retries"] == whole
        assert merged(*reversed(parts)).partials["retries"] == whole
        assert ShardViews.decode(merged(*parts).encode()).partials["retries"] == whole
    counted = sum(row.count for minute in whole.values() for row in [*minute.rows.values(), minute.others])
    assert counted == sum(not succeeded for _, succeeded, _ in events)


def test_a_partial_stays_small_however_many_causes_there_are() -> None:
    names = [f"{a}{b}{c}" for a in "abcdefghij" for b in "klmnopqrst" for c in "uvwxyz"]
    views = folded(*((NOW, retry(f"no {name} here " * 9)) for name in names))
    assert len(views.partials["retries"][NOW // MINUTE_MS].rows) == KEPT
    rendered = views.render(NOW)["retries"]
    assert len(rendered["retries"]) == MAX_ROWS
    assert rendered["others"] == len(names) - MAX_ROWS
    assert len(views.encode()) < 500 * KEPT
