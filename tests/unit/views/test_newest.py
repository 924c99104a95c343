"""The view of the newest changes: exact as far as it goes, whatever way a log is split and whatever a shard stores."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamflow.views import newest as module
from streamflow.views.newest import STATUSES, Newest, prune, render

changes = st.lists(
    st.tuples(st.integers(1, 9), st.sampled_from("abcdef"), st.integers(0, 5), st.just("w")), max_size=30
)


@pytest.fixture(autouse=True, scope="module")
def _small() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST", 5)
        patch.setattr(module, "MERGED", 8)
        patch.setattr(module, "KEPT", 3)
        yield


def of(log: Iterable[tuple[int, str, int, str]]) -> Newest:
    newest = Newest()
    for at, run_id, number, workflow in log:
        newest.add(run_id, (at, number, workflow))
    return newest


def merged(*parts: Newest) -> Newest:
    total = Newest()
    for part in parts:
        total.merge(part)
    return total


def cut(newest: Newest) -> Newest:
    newest.cut(module.MOST)
    return newest


@given(changes, changes, changes)
def test_the_way_a_log_is_split_makes_no_difference(a: Any, b: Any, c: Any) -> None:
    whole = cut(of([*a, *b, *c]))
    assert whole == cut(merged(of(a), of(b), of(c))) == cut(merged(of(c), merged(of(b), of(a))))
    assert whole == cut(of([*c, *a, *b]))


@given(st.lists(changes, max_size=4))
def test_what_is_shown_is_exact_though_shards_store_less(shards: Any) -> None:
    shards = [[(at, f"{run_id}{number}", *rest) for at, run_id, *rest in log] for number, log in enumerate(shards)]
    stored = [of(log) for log in shards]
    for partial in stored:
        prune(partial, 0, 1)
        assert len(partial.changes) <= 3
    total = merged(*stored)
    last: dict[str, Any] = {}
    for change in sorted(change for log in shards for change in log):
        last[change[1]] = change
    shown = render(total, 0)
    newer = sorted((change for change in last.values() if change[:2] > total.dropped), reverse=True)[: module.MOST]
    assert [(row["at"], row["run_id"], row["status"]) for row in shown["runs"]] == [
        (at, run_id, STATUSES[number]) for at, run_id, number, _ in newer
    ]
    assert shown["since"] or len(newer) == len(last), "without a moment these are all"


def test_the_newest_of_many_are_kept() -> None:
    total = of((at, f"r{at}", 0, "w") for at in range(1, 100))
    assert len(total.changes) <= 2 * module.MOST
    total = merged(total)
    assert [row["run_id"] for row in render(total, 0)["runs"]] == ["r99", "r98", "r97", "r96", "r95"]
    prune(total, 0, 1)
    assert render(total, 0) == {
        "since": 96,
        "runs": [{"at": at, "run_id": f"r{at}", "workflow": "w", "status": "running"} for at in (99, 98, 97)],
    }
    total.add("late", (50, 0, "w"))
    assert len(total.changes) == 3, "it is older than what is not known any more"


def test_one_of_many_shards_stores_its_share_and_a_margin() -> None:
    stored = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST", 200)
        patch.setattr(module, "KEPT", 50)
        for shards in (1, 64, 256, 16384):
            total = of((at, f"r{at}", 0, "w") for at in range(1, 100))
            prune(total, 0, shards)
            stored[shards] = len(total.changes)
    assert stored == {1: 50, 64: 12, 256: 6, 16384: 6}


def test_the_end_of_a_run_counts_if_it_has_begun_in_the_same_transition() -> None:
    assert [row["status"] for row in render(of([(7, "r", 3, "w"), (7, "r", 0, "w")]), 0)["runs"]] == ["completed"]
