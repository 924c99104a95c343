"""Cells of a view of an app: whatever is split, stored and merged in between, the numbers are those of all events."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamflow as sf
from streamflow import errors
from streamflow.events import Recorded, RunCompleted, StepCompleted, Transition
from streamflow.views import cells
from streamflow.views.aggregates import Spread
from streamflow.views.cells import Cells
from streamflow.workflow.view import MOST_KEYS, View
from tests.support.machine_driver import raw

MINUTE = 60_000

Event = tuple[int, str, int]
"""Minute, model, value."""
_events = st.lists(st.tuples(st.integers(0, 3), st.sampled_from("abcdefghij"), st.integers(0, 50)), max_size=60)


def view(aggregate: Any = None, **options: Any) -> View:
    chosen: dict[str, Any] = {"name": "v", "by": ["model"], **options}
    return sf.App().view(aggregate or sf.total("x"), **chosen)


def transition(event: Event) -> Transition:
    minute, model, value = event
    return Transition(minute * MINUTE + 7, [Recorded("flow", "acme", "x", value, {"model": model})])


def folded(of: View, events: list[Event], *, stored_after_each: bool = False) -> dict[int, Cells]:
    windows: dict[int, Cells] = {}
    for event in events:
        cells.fold(of, windows, "r", ("flow", "acme"), transition(event))
        if stored_after_each:
            windows = {start: cells.decode(of, cells.encode(of, window)) for start, window in windows.items()}
    return windows


def merged(of: View, parts: list[dict[int, Cells]]) -> dict[int, dict[str, Any]]:
    found: dict[int, list[Cells]] = defaultdict(list)
    for part in parts:
        for start, window in part.items():
            found[start].append(window)
    return {start: cells.shown(of, cells.merge(of, windows)) for start, windows in found.items()}


@pytest.mark.parametrize("name", ["total", "count", "highest", "lowest", "histogram"])
@given(_events, st.lists(st.integers(0, 2), min_size=60, max_size=60))
def test_splitting_among_shards_and_merging_changes_nothing(name: str, events: list[Event], shards: list[int]) -> None:
    of = view(getattr(sf, name)("x"), window="minute")
    parts: list[list[Event]] = [[], [], []]
    for event, shard in zip(events, shards, strict=False):
        parts[shard].append(event)
    assert merged(of, [folded(of, part) for part in parts]) == merged(of, [folded(of, events)])


@given(_events)
def test_storing_after_each_event_changes_nothing(events: list[Event]) -> None:
    of = view(window="minute")
    assert merged(of, [folded(of, events, stored_after_each=True)]) == merged(of, [folded(of, events)])


@given(st.lists(_events, min_size=1, max_size=3))
def test_with_too_many_keys_sums_are_exact_and_rows_within_the_bound(shards: list[list[Event]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "MOST_CELLS", 4)
        of = view(top=2)
        parts = [folded(of, part, stored_after_each=True) for part in shards]
        assert parts == [] or all(len(window.cells) <= 4 for part in parts for window in part.values())
        found = merged(of, parts)
    truth: Counter[str] = Counter()
    for _, model, value in (event for part in shards for event in part):
        truth[model] += value
    for shown in found.values():
        assert len(shown["rows"]) <= 2
        rest = shown["rest"]["value"] if shown["rest"] else 0
        assert sum(row["value"] for row in shown["rows"]) + rest == truth.total()
        for row in shown["rows"]:
            assert row["value"] <= truth[row["key"]["model"]] <= row["value"] + shown["understated"]


def test_the_largest_keys_are_shown_and_equal_ones_in_order() -> None:
    of = view(top=2)
    events = [(0, "c", 5), (0, "a", 5), (0, "b", 9), (0, "d", 1)]
    (shown,) = merged(of, [folded(of, events)]).values()
    assert [(row["key"]["model"], row["value"]) for row in shown["rows"]] == [("b", 9), ("a", 5)]
    assert (shown["rest"]["value"], shown["understated"]) == (6, 0)


def test_a_view_takes_the_records_and_kinds_that_it_names() -> None:
    of = view(sf.count("x"))
    others = Transition(7, [Recorded("flow", "", "y", 1), RunCompleted("flow", "", 1, raw(1))])
    assert cells.fold(of, {}, "r", ("flow", ""), others) == 0
    ended = view(sf.count(), kinds=[RunCompleted], by=["workflow", "kind"])
    windows: dict[int, Cells] = {}
    assert cells.fold(ended, windows, "r", ("flow", ""), others) == 1
    assert list(windows[0].cells) == [(("kind", "RunCompleted"), ("workflow", "flow"))]


def test_an_event_that_does_not_say_whose_it_is_gets_that_of_its_run() -> None:
    of = view(sf.count(), kinds=[StepCompleted], by=["workflow", "tenant", "step"])
    assert of.needs_run
    windows: dict[int, Cells] = {}
    done = Transition(7, [StepCompleted(1, "ask", 1, 2.0, raw(1))])
    cells.fold(of, windows, "r", ("flow", "acme"), done)
    assert list(windows[0].cells) == [(("step", "ask"), ("tenant", "acme"), ("workflow", "flow"))]


def test_a_key_function_may_leave_events_out() -> None:
    of = view(by=lambda event: {"size": "large"} if event.event.value > 10 else None)
    windows = folded(of, [(0, "a", 5), (0, "a", 50)])
    assert windows[0].cells == {(("size", "large"),): 50}


def test_a_key_function_may_give_what_is_no_text() -> None:
    of = view(by=lambda event: {1: 2, "odd": "caf\udce9", "long": "x" * 1000})
    window = cells.decode(of, cells.encode(of, folded(of, [(0, "a", 1)])[0]))
    [row] = cells.shown(of, window)["rows"]
    assert row["key"] == {"1": "2", "odd": "caf\\udce9", "long": "x" * 128}


def test_a_key_has_at_most_so_many_parts() -> None:
    of = view(by=lambda event: {f"part{n}": n for n in range(17)})
    with pytest.raises(ValueError, match="the key of view v has 17 parts; the limit is 16"):
        folded(of, [(0, "a", 1)])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400])
def test_a_value_that_no_reader_can_show_is_refused(value: float) -> None:
    class Odd:
        def zero(self) -> int:
            return 0

        def fold(self, state: int, event: sf.ViewEvent) -> int:
            return state

        def merge(self, one: int, other: int) -> int:
            return one

        def value(self, state: int) -> float:
            return value

    of = view(Odd())
    with pytest.raises(ValueError, match="view v: value\\(state\\) must be a finite number"):
        merged(of, [folded(of, [(0, "a", 1)])])


def test_a_histogram_shows_percentiles_within_its_error() -> None:
    spread = Spread()
    of = sf.histogram("x")
    for number in range(1, 1001):
        event = Recorded("flow", "", "x", number / 10)
        spread = of.fold(spread, sf.ViewEvent("r", "flow", "", sf_time(), event))
    shown = of.show(spread)
    assert (shown["count"], shown["max"]) == (1000, 100.0)
    assert shown["mean"] == pytest.approx(50.05)
    assert shown["p50"] == pytest.approx(50, rel=0.065)
    assert shown["p99"] == pytest.approx(99, rel=0.065)


def sf_time() -> Any:
    from datetime import UTC, datetime

    return datetime(2026, 11, 30, tzinfo=UTC)


def test_a_state_that_its_type_cannot_read_is_refused_before_it_is_stored() -> None:
    class Odd:
        def zero(self) -> int:
            return 0

        def fold(self, state: Any, event: sf.ViewEvent) -> Any:
            return object()

        def merge(self, one: Any, other: Any) -> Any:
            return one

    of = view(Odd())
    windows = folded(of, [(0, "a", 1)])
    with pytest.raises(errors.PayloadInvalid, match="state of view v"):
        cells.encode(of, windows[0])


class Half:
    def zero(self) -> int:
        return 0

    def fold(self, state: int, event: sf.ViewEvent) -> int:
        return state


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"aggregate": Half()}, "merge missing"),
        ({"by": "model"}, r"by must be a list of labels, as \['model'\]"),
        ({"by": ["a b"]}, "can't be a label"),
        ({"window": "week"}, "minute, hour, day or None"),
        ({"keep": 60}, "keep is for views with a window"),
        ({"window": "minute", "keep": 10**6}, "at most 400 windows"),
        ({"top": 0}, f"top must be 1 to {MOST_KEYS}"),
        ({"kinds": ["RunCompleted"]}, "kinds must be classes"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_cannot_be_counted_is_refused_where_it_is_registered(options: dict[str, Any], text: str) -> None:
    with pytest.raises(sf.UsageError, match=text):
        view(**options)


def test_two_views_of_one_name_are_refused() -> None:
    app = sf.App()
    app.view(sf.total("x"), name="v")
    with pytest.raises(sf.UsageError, match="two views are named v"):
        app.view(sf.total("y"), name="v")


@pytest.mark.parametrize("value", [True, "7", float("nan"), float("inf"), 2**60, None])
def test_only_finite_numbers_can_be_recorded(value: Any) -> None:
    with pytest.raises(sf.UsageError):
        sf.record("x", value)


def test_labels_are_few_short_and_have_names() -> None:
    sf.record("x", 1, model="large", number=3)
    refused: list[dict[str, Any]] = [{f"l{n}": "x" for n in range(9)}, {"l": "x" * 129}, {"l l": "x"}, {"l": 1.5}]
    for labels in refused:
        with pytest.raises(sf.UsageError):
            sf.record("x", 1, **labels)
    with pytest.raises(sf.InvalidName):
        sf.record("x y", 1)


def test_states_survive_the_bytes_of_their_type() -> None:
    of = view(sf.histogram("x"))
    window = folded(of, [(0, "a", 3), (0, "a", 4)])[0]
    again = cells.decode(of, cells.encode(of, window))
    assert isinstance(next(iter(again.cells.values())), Spread)
    assert msgspec.to_builtins(again.cells[("model", "a"),]) == msgspec.to_builtins(window.cells[("model", "a"),])
