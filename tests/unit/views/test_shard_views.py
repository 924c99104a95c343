"""Views: the laws that make partials safe to split and merge, and what each view counts."""

from __future__ import annotations

from typing import Any
from unittest import mock

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamflow import events
from streamflow.errors import Failure
from streamflow.events import (
    NOTHING,
    AnyEvent,
    MessageQuarantined,
    RunCompleted,
    RunResumed,
    RunRetried,
    RunStarted,
    RunStuck,
    StepCompleted,
    StepRetrying,
    StepScheduled,
    Transition,
)
from streamflow.model.causes import condensed
from streamflow.views import registry
from streamflow.views.histogram import Timings, bucket_of, middle_of
from streamflow.views.registry import (
    CAUSE_DAYS,
    DAY_MS,
    KEPT_CAUSES,
    KEPT_TENANTS,
    LATEST,
    MAX_CAUSES,
    MAX_TENANTS,
    MAX_TEXT,
    TOGETHER,
)
from streamflow.views.shard_views import VIEWS, ShardViews, merge_oldest

NOW = 1_700_000_000_000
BOOM = Failure("ValueError", "boom")

names = st.sampled_from(["digest", "order", "agent"])
tenants = st.sampled_from(["", "acme", "globex"])
run_ms = st.integers(0, 10**9)
step_ms = st.floats(0, 1e7)
failures = st.builds(Failure, st.sampled_from(["ValueError", "TimeoutError"]), st.text(max_size=5))

any_event: st.SearchStrategy[AnyEvent] = st.one_of(
    st.builds(RunStarted, names, tenants, st.just(NOTHING)),
    st.builds(RunCompleted, names, tenants, run_ms, st.just(NOTHING)),
    st.builds(events.RunFailed, names, tenants, run_ms, failures),
    st.builds(events.RunCancelled, names, tenants, run_ms, st.just("enough")),
    st.builds(RunStuck, names, tenants, st.sampled_from(["diverged", "unknown"])),
    st.builds(RunStuck, names, tenants, st.just("KeyError"), failures, st.just("code")),
    st.builds(RunResumed, names, tenants),
    st.builds(RunResumed, names, tenants, st.sampled_from(["diverged", "unknown"]), st.integers(NOW - 5_000, NOW)),
    st.builds(RunRetried, names, tenants, st.just(1), st.just(1)),
    st.builds(
        lambda name, tenant, failure, since: RunRetried(name, tenant, 1, 1, failure=failure, since=since),
        names,
        tenants,
        failures,
        st.integers(NOW - 5_000, NOW),
    ),
    st.builds(StepScheduled, st.integers(0, 9), names, st.just(NOTHING)),
    st.builds(StepCompleted, st.integers(0, 9), names, st.integers(1, 2), step_ms, st.just(NOTHING)),
    st.builds(StepRetrying, st.integers(0, 9), names, st.just(1), step_ms, failures, st.just(NOW)),
    st.builds(events.StepFailed, st.integers(0, 9), names, st.just(1), step_ms, failures),
    st.builds(MessageQuarantined, st.just("1-1"), st.sampled_from(["garbage", "too deep"])),
)
transitions = st.builds(Transition, st.integers(NOW - 5_000, NOW), st.lists(any_event, max_size=4))
logs = st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), transitions), max_size=30)


def folded(*log: tuple[str, Transition]) -> ShardViews:
    views = ShardViews()
    for run_id, transition in log:
        views.fold(run_id, transition)
    return views


def of(*happened: AnyEvent, at: int = NOW) -> ShardViews:
    return folded(("run-1", Transition(at, list(happened))))


def merged(*parts: ShardViews) -> ShardViews:
    into = ShardViews()
    for part in parts:
        into.merge(part)
    return into


def rendered(views: ShardViews, name: str, now_ms: int = NOW + 2000) -> Any:
    return views.render(now_ms)[name]


# --- laws -----------------------------------------------------------------------------------------------------------


@given(logs, st.data())
@settings(deadline=None)
def test_folding_a_split_log_and_merging_equals_folding_it_whole(log: Any, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(log)))
    assert merged(folded(*log[:cut]), folded(*log[cut:])).partials == folded(*log).partials


@given(logs, logs)
@settings(deadline=None)
def test_merge_is_commutative(a: Any, b: Any) -> None:
    assert merged(folded(*a), folded(*b)).partials == merged(folded(*b), folded(*a)).partials


@given(logs, logs, logs)
@settings(deadline=None)
def test_merge_is_associative(a: Any, b: Any, c: Any) -> None:
    left = merged(merged(folded(*a), folded(*b)), folded(*c))
    right = merged(folded(*a), merged(folded(*b), folded(*c)))
    assert left.partials == right.partials


many_tenants = st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=40)


@given(many_tenants, st.data())
@settings(deadline=None)
def test_tenants_above_the_limit_are_exact_however_a_log_is_split(
    runs: list[tuple[int, bool]], data: st.DataObject
) -> None:
    log = [
        (
            "run",
            Transition(
                NOW, [RunStarted("w", f"t{n}", NOTHING), *([RunCompleted("w", f"t{n}", 1, NOTHING)] if done else [])]
            ),
        )
        for n, done in runs
    ]
    cut = data.draw(st.integers(0, len(log)))
    with mock.patch.object(registry, "KEPT_TENANTS", 3):
        whole = folded(*log).partials["runs"]
        assert merged(folded(*log[:cut]), folded(*log[cut:])).partials["runs"] == whole
        assert merged(folded(*log[cut:]), folded(*log[:cut])).partials["runs"] == whole
    assert len(whole.tenants) <= 3
    assert whole.others.total + sum(counts.total for counts in whole.tenants.values()) == len(runs)
    for tenant, counts in whole.tenants.items():
        assert counts.total == sum(f"t{n}" == tenant for n, _ in runs)


def test_a_partial_stays_small_however_many_tenants_there_are() -> None:
    views = of(
        *(RunStarted("w", f"customer-{n}", NOTHING) for n in range(10 * KEPT_TENANTS)), RunStarted("w", "", NOTHING)
    )
    assert len(views.encode()) < 50 * KEPT_TENANTS
    tenants = rendered(ShardViews.decode(views.encode()), "runs")["tenants"]
    assert tenants["-"]["running"] == 1
    assert sum(counts["running"] for counts in tenants.values()) == 10 * KEPT_TENANTS + 1


@given(logs)
@settings(deadline=None)
def test_zero_is_the_identity_of_merge(log: Any) -> None:
    views = folded(*log)
    views.merge(ShardViews())
    assert views.partials == folded(*log).partials == merged(folded(*log)).partials


@given(logs)
@settings(deadline=None)
def test_a_partial_survives_encoding(log: Any) -> None:
    views = folded(*log)
    decoded = ShardViews.decode(views.encode())
    assert decoded.partials == views.partials
    assert decoded.missing == ()
    assert decoded.render(NOW) == views.render(NOW)


@given(logs, logs)
@settings(deadline=None)
def test_merging_leaves_the_other_partial_as_it_was(a: Any, b: Any) -> None:
    other = folded(*b)
    into = merged(folded(*a), other)
    into.merge(folded(*a))
    for run_id, transition in a:
        into.fold(run_id, transition)
    assert other.partials == folded(*b).partials


@given(logs)
@settings(deadline=None)
def test_what_is_rendered_is_json(log: Any) -> None:
    views = folded(*log).render(NOW)
    assert msgspec.json.decode(msgspec.json.encode(views)) == views


@pytest.mark.parametrize("type_", TOGETHER)
def test_an_event_that_is_folded_together_has_no_other_fold(type_: type) -> None:
    assert not [view.name for view in VIEWS if type_ in view.folds]
    assert set(TOGETHER[type_][0]) <= {view.name for view in VIEWS}


# --- stored partials ------------------------------------------------------------------------------------------------


def test_a_view_that_is_missing_in_stored_data_starts_at_zero() -> None:
    stored = msgspec.msgpack.decode(of(RunStarted("digest", "", NOTHING)).encode())
    del stored["rates"]
    stored["gone"] = {"a": 1}
    views = ShardViews.decode(msgspec.msgpack.encode(stored))
    assert views.missing == ("rates",)
    assert views.partials["rates"] == {}
    assert "gone" not in views.partials
    assert rendered(views, "runs")["status"]["running"] == 1
    assert merged(ShardViews(), views).missing == ("rates",)


def test_a_view_that_is_stored_in_another_form_starts_at_zero() -> None:
    stored = msgspec.msgpack.decode(ShardViews().encode())
    stored["runs"] = "nonsense"
    assert ShardViews.decode(msgspec.msgpack.encode(stored)).missing == ("runs",)


def test_garbage_is_refused() -> None:
    with pytest.raises(msgspec.DecodeError):
        ShardViews.decode(b"\xff\x00")


def test_folding_goes_on_after_decoding() -> None:
    views = ShardViews.decode(of(RunStarted("digest", "", NOTHING)).encode())
    views.fold("run-1", Transition(NOW, [RunCompleted("digest", "", 5, NOTHING)]))
    assert views.partials == of(RunStarted("digest", "", NOTHING), RunCompleted("digest", "", 5, NOTHING)).partials


# --- what each view says --------------------------------------------------------------------------------------------


def test_a_run_is_counted_once_whatever_it_goes_through() -> None:
    started, stuck, resumed = RunStarted("w", "t", NOTHING), RunStuck("w", "t", "diverged"), RunResumed("w", "t")
    ways: list[tuple[list[AnyEvent], str]] = [
        ([started], "running"),
        ([started, stuck], "stuck"),
        ([started, stuck, resumed], "running"),
        ([started, RunCompleted("w", "t", 1, NOTHING)], "completed"),
        ([started, events.RunFailed("w", "t", 1, BOOM)], "failed"),
        ([started, stuck, resumed, events.RunCancelled("w", "t", 1, "enough")], "cancelled"),
    ]
    for way, status in ways:
        expected = dict.fromkeys(("running", "stuck", "completed", "failed", "cancelled"), 0) | {status: 1}
        runs = rendered(of(*way), "runs")
        assert runs == {"status": expected, "workflows": {"w": expected}, "tenants": {"t": expected}}


def test_a_run_that_is_retried_has_not_failed_any_more() -> None:
    failed = events.RunFailed("w", "t", 5, Failure("E", "no"))
    started, retried = RunStarted("w", "t", NOTHING), RunRetried("w", "t", 1, 1)
    views = of(started, failed, retried)
    for counts in (rendered(views, "runs")["workflows"]["w"], rendered(views, "runs")["tenants"]["t"]):
        assert counts == {"running": 1, "stuck": 0, "completed": 0, "failed": 0, "cancelled": 0, "retried": 1}
    views = of(started, failed, retried, failed)
    assert rendered(views, "runs")["status"]["failed"] == 1
    assert "retried" not in rendered(of(started, failed), "runs")["status"]


def test_runs_without_a_tenant_are_shown_under_a_dash() -> None:
    assert list(rendered(of(RunStarted("w", "", NOTHING)), "runs")["tenants"]) == ["-"]


def test_many_tenants_are_shown_by_size_and_the_rest_together() -> None:
    starts = [RunStarted("w", f"t{n}", NOTHING) for n in range(MAX_TENANTS + 5)]
    tenants = rendered(of(*starts, RunStarted("w", "t7", NOTHING)), "runs")["tenants"]
    assert len(tenants) == MAX_TENANTS + 1
    assert next(iter(tenants)) == "t7"
    assert tenants["…"]["running"] == 5


def test_rates_are_lists_of_whole_seconds_up_to_the_last_settled_one() -> None:
    step = StepCompleted(1, "s", 1, 1.0, NOTHING)
    views = merged(of(step, step, at=NOW), of(RunStarted("w", "", NOTHING), at=NOW - 59_000), of(step, at=NOW + 1000))
    rates = rendered(views, "rates", now_ms=NOW + 2500)
    assert rates["until"] == NOW // 1000 + 1
    assert len(rates["steps"]) == 60
    assert rates["steps"][-1] == 2, "the second at NOW is the newest shown"
    assert rates["starts"][0] == 1
    assert rates["average"]["steps"] == pytest.approx(0.2)


def test_failed_runs_count_as_failures_and_cancelled_ones_do_not() -> None:
    views = of(
        events.RunFailed("w", "", 1, BOOM), events.RunCancelled("w", "", 1, "enough"), RunCompleted("w", "", 1, NOTHING)
    )
    rates = rendered(views, "rates")
    assert (rates["failures"][-1], rates["completions"][-1]) == (1, 1)


def test_pruning_drops_rates_that_nobody_shows_any_more_and_nothing_else() -> None:
    views = merged(of(RunStarted("w", "", NOTHING), at=NOW - 121_000), of(RunStarted("w", "", NOTHING), at=NOW))
    views.prune(NOW)
    assert list(views.partials["rates"]) == [NOW // 1000]
    assert rendered(views, "runs")["status"]["running"] == 2


@given(st.integers(0, 2**60))
def test_a_bucket_is_at_most_a_sixteenth_off(us: int) -> None:
    assert abs(middle_of(bucket_of(us)) - us) <= us / 16


@given(st.lists(st.floats(0, 1e6), min_size=1), st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_percentiles_are_within_the_error_of_a_bucket(times: list[float], share: float) -> None:
    timings = Timings()
    for ms in times:
        timings.add(ms)
    exact = sorted(times)[max(1, -int(-share * len(times) // 1)) - 1]
    (found,) = timings.percentiles_ms(share)
    assert found == pytest.approx(exact, rel=1 / 16, abs=0.002)


@pytest.mark.parametrize("ms", [float("nan"), float("inf"), -1.0, -float("inf"), 1e300])
def test_an_impossible_duration_is_counted_and_breaks_nothing(ms: float) -> None:
    timings = Timings()
    timings.add(ms)
    assert timings.count == 1


def test_durations_are_kept_by_name_with_failures_and_retries() -> None:
    views = of(
        *(StepCompleted(n, "fetch", 1, ms, NOTHING) for n, ms in enumerate([1.0] * 98 + [200.0, 1000.0])),
        StepRetrying(1, "fetch", 1, 5.0, BOOM, NOW),
        events.StepFailed(1, "fetch", 2, 5.0, BOOM),
        events.StepFailed(1, "parse", 2, 5.0, BOOM),
    )
    fetch = rendered(views, "step_durations")["fetch"]
    assert (fetch["count"], fetch["failures"], fetch["retries"], fetch["max"]) == (100, 1, 1, 1000.0)
    assert fetch["p50"] == pytest.approx(1.0, rel=0.07)
    assert fetch["p99"] == pytest.approx(200.0, rel=0.07)
    parse = rendered(views, "step_durations")["parse"]
    assert (parse["count"], parse["p50"], parse["failures"]) == (0, 0, 1)


def test_run_durations_are_those_of_completed_runs() -> None:
    views = of(RunCompleted("w", "", 4000, NOTHING), events.RunFailed("w", "", 9000, BOOM))
    w = rendered(views, "run_durations")["w"]
    assert (w["count"], w["max"], w["failures"]) == (1, 4000.0, 1)


def test_the_latest_failures_come_newest_first_over_all_shards() -> None:
    parts = [of(events.RunFailed("w", "", 1, Failure("E", f"{n}")), at=NOW + n) for n in range(50)]
    shown = rendered(merged(*reversed(parts)), "failures")
    assert shown["count"] == 50
    assert [row["message"] for row in shown["latest"]] == [str(n) for n in range(49, 49 - LATEST, -1)]
    assert shown["latest"][0] == {"at": NOW + 49, "run_id": "run-1", "workflow": "w", "kind": "E", "message": "49"}


def test_long_failure_messages_are_cut() -> None:
    shown = rendered(of(events.RunFailed("w", "", 1, Failure("E", "x" * 10_000))), "failures")
    assert len(shown["latest"][0]["message"]) == MAX_TEXT


def test_stuck_runs_and_quarantined_messages_are_kept_with_their_reasons() -> None:
    views = of(RunStuck("w", "", "diverged at 3"), MessageQuarantined("7-1", "not MessagePack", shard=3))
    assert rendered(views, "stuck")["latest"] == [
        {"at": NOW, "run_id": "run-1", "workflow": "w", "reason": "diverged at 3"}
    ]
    assert rendered(views, "quarantine") == {
        "count": 1,
        "latest": [{"at": NOW, "run_id": "run-1", "message": "7-1", "reason": "not MessagePack", "shard": "3"}],
    }


def test_the_oldest_open_runs_of_all_shards_are_the_smallest_starts() -> None:
    lists = [[["a", "w", 30], ["b", "w", 10]], [], [["c", "w", 20], ["d", "w", 10]]]
    assert merge_oldest(lists, k=3) == [["b", "w", 10], ["d", "w", 10], ["c", "w", 20]]


# --- failures by cause ----------------------------------------------------------------------------------------------


def failed(kind: str = "ValueError", message: str = "boom", workflow: str = "w") -> events.RunFailed:
    return events.RunFailed(workflow, "", 1, Failure(kind, message))


def causes(views: ShardViews, now_ms: int = NOW) -> list[tuple[str, int, int, str]]:
    """`(message, failed, stuck, last run)` of each cause that is listed."""
    rows = rendered(views, "causes", now_ms)["causes"]
    return [(row["message"], row["failed"], row["stuck"], row["run_id"]) for row in rows]


many_causes = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from(["failed", "stuck", "resumed"]), st.integers(0, 3)), max_size=40
)


@given(many_causes, st.data())
@settings(deadline=None)
def test_causes_above_the_limit_are_exact_however_a_log_is_split(
    happened: list[tuple[int, str, int]], data: st.DataObject
) -> None:
    log: list[tuple[str, Transition]] = []
    for n, what, day in happened:
        reason, at = "abcdefghij"[n], NOW + day * DAY_MS
        event: AnyEvent = failed(message=reason)
        if what != "failed":
            event = RunStuck("w", "", reason) if what == "stuck" else RunResumed("w", "", reason, at)
        log.append((f"run-{n}", Transition(at + n, [event])))
    cut = data.draw(st.integers(0, len(log)))
    with mock.patch.object(registry, "KEPT_CAUSES", 3):
        whole = folded(*log).partials["causes"]
        assert merged(folded(*log[:cut]), folded(*log[cut:])).partials["causes"] == whole
        assert merged(folded(*log[cut:]), folded(*log[:cut])).partials["causes"] == whole
    for day in whole.values():
        assert len(day.rows) <= 3
        assert len(day.rows) == 3 or not day.others.last, "nothing is left out while there is room"
    counted = sum(row.failed for day in whole.values() for row in [*day.rows.values(), day.others])
    assert counted == sum(what == "failed" for _, what, _ in happened)


def test_failures_of_one_cause_are_one_row_whatever_the_values_in_them() -> None:
    log = [(f"run-{n}", Transition(NOW + n, [failed(message=f"order {n} of 'c{n}'")])) for n in range(100)]
    log += [("run-x", Transition(NOW + 500, [failed("KeyError", "'b'")]))]
    views = merged(folded(*log[::2]), folded(*log[1::2]))
    assert causes(views) == [("'…'", 1, 0, "run-x"), ("order # of '…'", 100, 0, "run-99")]
    first = rendered(views, "causes")["causes"][1]
    assert (first["first"], first["last"], first["workflow"], first["kind"]) == (NOW, NOW + 99, "w", "ValueError")


def test_a_run_that_is_stuck_no_more_leaves_the_causes() -> None:
    stuck = [(f"run-{n}", Transition(NOW, [RunStuck("w", "", f"diverged at event {n}")])) for n in range(3)]
    resumed = [
        (f"run-{n}", Transition(NOW + 9, [RunResumed("w", "", f"diverged at event {n}", NOW)])) for n in range(3)
    ]
    assert causes(folded(*stuck, *resumed[:2])) == [("diverged at event #", 0, 1, "run-2")]
    assert causes(folded(*stuck, *resumed)) == []
    assert causes(merged(folded(*resumed), folded(*stuck))) == [], "also if another shard's part comes later"


def test_a_bug_that_keeps_runs_stuck_is_a_cause_until_it_is_mended() -> None:
    def bug(n: int) -> Failure:
        frames = f'  File "/app/shop.py", line {40 + n}, in order\n'
        return Failure("StepFailed", "step", cause=Failure("KeyError", f"'item {n}'", frames))

    stuck = [(f"run-{n}", Transition(NOW, [RunStuck("w", "", f"KeyError {n}", bug(n), "code")])) for n in range(3)]
    assert causes(folded(*stuck)) == [("'…'", 0, 3, "run-2")]
    [cause] = rendered(folded(*stuck), "causes")["causes"]
    assert (cause["kind"], cause["where"]) == ("KeyError", "shop.py:42 in order")
    resumed = [
        (f"run-{n}", Transition(NOW + 9, [RunResumed("w", "", f"KeyError {n}", NOW, condensed(bug(n)))]))
        for n in range(3)
    ]
    assert causes(folded(*stuck, *resumed[:2])) == [("'…'", 0, 1, "run-2")]
    assert causes(folded(*stuck, *resumed)) == []


def test_what_is_mended_late_takes_nothing_from_later_failures() -> None:
    """Five were stuck eight days ago; today they resume, and two others are stuck for the same reason."""
    days = CAUSE_DAYS + 1
    views = folded(*((f"old-{n}", Transition(NOW, [RunStuck("w", "", "diverged")])) for n in range(5)))
    views.prune(NOW + days * DAY_MS)
    for n in range(5):
        views.fold(f"old-{n}", Transition(NOW + days * DAY_MS, [RunResumed("w", "", "diverged", NOW)]))
    for n in range(2):
        views.fold(f"new-{n}", Transition(NOW + days * DAY_MS, [RunStuck("w", "", "diverged")]))
    assert causes(views, NOW + days * DAY_MS) == [("diverged", 0, 2, "new-1")]


def test_a_run_resumed_by_an_older_release_is_counted_on() -> None:
    assert causes(of(RunStuck("w", "", "diverged"), RunResumed("w", ""))) == [("diverged", 0, 1, "run-1")]


def test_causes_are_forgotten_after_some_days() -> None:
    views = of(failed())
    views.prune(NOW + CAUSE_DAYS * DAY_MS)
    assert len(causes(views, NOW + CAUSE_DAYS * DAY_MS)) == 1
    later = NOW + (CAUSE_DAYS + 1) * DAY_MS
    assert causes(views, later) == [], "also if nobody has pruned it"
    views.prune(later)
    assert views.partials["causes"] == {}


def test_a_partial_stays_small_however_many_causes_there_are() -> None:
    names = [f"{a}{b}{c}" for a in "abcdefghij" for b in "klmnopqrst" for c in "uvwxyz"]
    views = of(*(failed(message=f"no {name} here") for name in names))
    assert len(views.partials["causes"][NOW // DAY_MS].rows) == KEPT_CAUSES
    shown = rendered(views, "causes")
    assert len(shown["causes"]) == MAX_CAUSES
    assert shown["others"] == len(names) - MAX_CAUSES
    assert len(of(*(failed(message=f"{name} " * 99) for name in names)).encode()) < 300 * KEPT_CAUSES
    next_day = folded(("run-2", Transition(NOW + DAY_MS, [failed(message="the next one")])))
    assert causes(merged(views, next_day), NOW + DAY_MS)[0] == ("the next one", 1, 0, "run-2")


def test_a_parents_failure_has_the_cause_of_its_childs() -> None:
    child = Failure("ValueError", "boom")
    fields = {"run_id": "run-1~1", "workflow": "charge"}
    parent = Failure("ChildFailed", "child run run-1~1 failed", fields=fields, cause=child)
    views = folded(
        ("run-1~1", Transition(NOW, [events.RunFailed("charge", "", 1, child)])),
        ("run-1", Transition(NOW + 1, [events.RunFailed("order", "", 1, parent)])),
    )
    assert causes(views) == [("boom", 2, 0, "run-1")]
