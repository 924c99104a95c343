"""The declared views: the numbers over all runs, and how they are folded, merged and rendered.

Owns: `View`, the partials of each view, and the registry `VIEWS`.
Must not: know keys, offsets or clocks; `now_ms` comes from the caller. Called by: `shard_views.py`.

A view is a monoid. Its partials start at `zero()`, `folds` add events to them, and `merge` combines them, which is
associative and commutative: folding a log in pieces and merging the pieces equals folding the whole log. That is why a
view is exact whatever shard, owner or checkpoint its events went through.

To add a view, write its partial (a msgspec type), its functions, and one `View(…)` in `VIEWS`. Stored partials that
don't have the view yet start it at zero and list it in `missing`: rebuild to count the past too. When the meaning of a
view changes, give it a new name, so that old partials are not read as new ones.
"""

from __future__ import annotations

import heapq
import zlib
from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

import msgspec

from streamflow import events
from streamflow.events import (
    HistoryEvent,
    MessageQuarantined,
    PauseEnded,
    RunCompleted,
    RunForked,
    RunPaused,
    RunResumed,
    RunRetried,
    RunStarted,
    RunStuck,
    StepCompleted,
    StepRetrying,
)
from streamflow.model.causes import Cause, Key, cause_of, key_of, stuck_cause
from streamflow.model.record import Status
from streamflow.views import newest, retries
from streamflow.views.histogram import Timings

T = TypeVar("T")
JSON = Any
"""Data for `json.dumps`."""

WINDOW_S = 120
"""Seconds of rates that a partial keeps."""
RENDERED_S = 60
"""Seconds of rates in the rendered view."""
AVERAGE_S = 10
"""Seconds over which the average rates are taken."""
SETTLE_S = 1
"""Seconds before now that are not rendered: not every shard has folded them yet."""
LATEST = 20
"""Rows that a view of the latest failures, stuck runs or quarantined messages keeps."""
MAX_TEXT = 500
"""Characters of a text in such a row."""
MAX_TENANTS = 500
"""Tenants that a rendered view lists, the largest first; the others are added up under `…`."""
KEPT_CAUSES = 100
"""Causes of a day that are counted one by one: what users write into messages must not make a partial grow."""
CAUSE_DAYS = 7
"""Whole days for which a cause is counted, beside the present one."""
MAX_CAUSES = 50
"""Causes that a rendered view lists, those that were seen last first."""
DAY_MS = 24 * 3600 * 1000
KEPT_TENANTS = 1000
"""Tenants that are counted one by one: a partial is stored every second, so it must not grow with their number."""


Fold = Callable[[str, int, Any], None]
"""Adds an event to partials: a function of run id, shard-clock ms and event."""


@dataclass(frozen=True)
class View(Generic[T]):
    """One view: its name, the type of its partial, and its functions. `folds` and `merge` change a partial in place."""

    name: str
    type: Any
    zero: Callable[[], T]
    folds: Mapping[type[HistoryEvent], Callable[[T, str, int, Any], None]]
    """Event type -> function of partial, run id, shard-clock ms, event; those of `TOGETHER` are there. Other types cost
    nothing."""
    merge: Callable[[T, T], None]
    """Adds the second partial to the first; the second stays as it is."""
    render: Callable[[T, int], JSON]
    prune: Callable[[T, int, int], None] | None = None
    """Drops what is not to be stored: of a partial, now (ms), and one of so many shards."""


# --- runs by status, workflow and tenant ----------------------------------------------------------------------------


class Counts(msgspec.Struct, array_like=True):
    """Runs by status: the open ones now, the ended ones in total, but for failures that were retried. Numbers of one
    part of a log may be negative."""

    running: int = 0
    stuck: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    retried: int = 0
    """Runs that had failed and go on: so many more have failed than `failed` says."""
    paused: int = 0
    uncancelled: int = 0
    """Runs that were cancelled and go on with their parents: so many more were cancelled than `cancelled` says."""

    def add(self, other: Counts) -> None:
        self.running += other.running
        self.stuck += other.stuck
        self.completed += other.completed
        self.failed += other.failed
        self.cancelled += other.cancelled
        self.retried += other.retried
        self.paused += other.paused
        self.uncancelled += other.uncancelled

    def plain(self) -> dict[str, int]:
        counts = msgspec.structs.asdict(self)
        for rare in ("retried", "paused", "uncancelled"):
            if not counts[rare]:
                del counts[rare]
        return counts

    @property
    def total(self) -> int:
        return self.running + self.stuck + self.paused + self.completed + self.failed + self.cancelled


@lru_cache(2 * KEPT_TENANTS)
def _rank(tenant: str) -> str:
    """The order in which tenants are kept: any order does that depends on nothing but the name. `-` is always kept."""
    return "" if tenant == "-" else f"{zlib.crc32(tenant.encode()):08x}{tenant}"


class Runs(msgspec.Struct, array_like=True):
    """Of all tenants that it has seen, the `KEPT_TENANTS` of the lowest rank are counted one by one, exactly: since
    ranks don't change, a tenant that was left out once is never among them again, however a log is split and merged.
    Of the largest ones the same can't be said."""

    workflows: dict[str, Counts] = {}
    tenants: dict[str, Counts] = {}
    others: Counts = msgspec.field(default_factory=Counts)
    """All other tenants together."""
    highest: str = ""
    """The highest rank of those that are kept; empty while there is room for more."""

    def of(
        self,
        event: RunStarted
        | RunForked
        | RunCompleted
        | events.RunFailed
        | events.RunCancelled
        | RunStuck
        | RunResumed
        | RunPaused
        | PauseEnded
        | RunRetried,
    ) -> tuple[Counts, Counts]:
        workflow = self.workflows.get(event.workflow)
        if workflow is None:
            workflow = self.workflows[event.workflow] = Counts()
        name = event.tenant or "-"
        tenant = self.tenants.get(name)
        if tenant is None:
            tenant = self._other_tenant(name)
        return workflow, tenant

    def _other_tenant(self, name: str) -> Counts:
        if self.highest and _rank(name) > self.highest:
            return self.others
        counts = self.tenants[name] = Counts()
        if len(self.tenants) >= KEPT_TENANTS:
            self.keep_lowest()
        return counts

    def keep_lowest(self) -> None:
        """Add tenants that are too many to the others."""
        if len(self.tenants) < KEPT_TENANTS:
            return
        for name in heapq.nlargest(len(self.tenants) - KEPT_TENANTS, self.tenants, key=_rank):
            self.others.add(self.tenants.pop(name))
        self.highest = max(map(_rank, self.tenants))


def _run_failed(runs: Runs, run_id: str, at: int, event: events.RunFailed) -> None:
    for counts in runs.of(event):
        counts.running -= 1
        counts.failed += 1


def _run_cancelled(runs: Runs, run_id: str, at: int, event: events.RunCancelled) -> None:
    for counts in runs.of(event):
        counts.running -= 1
        counts.cancelled += 1


def _run_stuck(runs: Runs, run_id: str, at: int, event: RunStuck) -> None:
    for counts in runs.of(event):
        counts.running -= 1
        counts.stuck += 1


def _run_resumed(runs: Runs, run_id: str, at: int, event: RunResumed) -> None:
    for counts in runs.of(event):
        counts.running += 1
        counts.stuck -= 1


def _run_paused(runs: Runs, run_id: str, at: int, event: RunPaused) -> None:
    for counts in runs.of(event):
        counts.running -= 1
        counts.paused += 1


def _pause_ended(runs: Runs, run_id: str, at: int, event: PauseEnded) -> None:
    for counts in runs.of(event):
        counts.running += 1
        counts.paused -= 1


def _run_retried(runs: Runs, run_id: str, at: int, event: RunRetried) -> None:
    for counts in runs.of(event):
        counts.running += 1
        if event.cancelled:
            counts.cancelled -= 1
            counts.uncancelled += 1
        else:
            counts.failed -= 1
            counts.retried += 1


def _merge_counts(into: dict[str, Counts], other: dict[str, Counts]) -> None:
    for name, counts in other.items():
        if name not in into:
            into[name] = Counts()
        into[name].add(counts)


def _merge_runs(into: Runs, other: Runs) -> None:
    _merge_counts(into.workflows, other.workflows)
    _merge_counts(into.tenants, other.tenants)
    into.others.add(other.others)
    into.keep_lowest()


def _render_runs(runs: Runs, now_ms: int) -> JSON:
    """`{"status": {status: n}, "workflows": {name: {status: n}}, "tenants": {name: {status: n}}}`, and `retried` beside
    the statuses where runs were."""
    total = Counts()
    for counts in runs.workflows.values():
        total.add(counts)
    ranked = sorted(runs.tenants.items(), key=lambda item: (-item[1].total, item[0]))
    tenants = dict(ranked[:MAX_TENANTS])
    if runs.highest or len(ranked) > MAX_TENANTS:
        tenants["…"] = rest = Counts()
        rest.add(runs.others)
        for _, counts in ranked[MAX_TENANTS:]:
            rest.add(counts)
    return {
        "status": total.plain(),
        "workflows": {name: counts.plain() for name, counts in sorted(runs.workflows.items())},
        "tenants": {name: counts.plain() for name, counts in tenants.items()},
    }


# --- rates ----------------------------------------------------------------------------------------------------------


class Second(msgspec.Struct, array_like=True):
    """Events in one second. `starts`, `completions`, `failures`: of runs; `steps`: completed steps.

    A cancelled run counts as neither: a race or a task group cancels children also when everything works.
    """

    starts: int = 0
    completions: int = 0
    failures: int = 0
    steps: int = 0


Rates = dict[int, Second]
"""Second (ms // 1000) -> the events in it."""


def _second(rates: Rates, at: int) -> Second:
    second = rates.get(at // 1000)
    if second is None:
        second = rates[at // 1000] = Second()
    return second


def _rate_failure(rates: Rates, run_id: str, at: int, event: events.RunFailed) -> None:
    _second(rates, at).failures += 1


def _merge_rates(into: Rates, other: Rates) -> None:
    for number, second in other.items():
        total = _second(into, number * 1000)
        total.starts += second.starts
        total.completions += second.completions
        total.failures += second.failures
        total.steps += second.steps


def _render_rates(rates: Rates, now_ms: int) -> JSON:
    """`{"until": second, "starts": [60 numbers, oldest first], …, "average": {"starts": per second, …}}`"""
    end = now_ms // 1000 - SETTLE_S
    seconds = [rates.get(number, Second()) for number in range(end - RENDERED_S, end)]
    names = Second.__struct_fields__
    lists = {name: [getattr(second, name) for second in seconds] for name in names}
    average = {name: sum(values[-AVERAGE_S:]) / AVERAGE_S for name, values in lists.items()}
    return {"until": end, **lists, "average": average}


def _prune_rates(rates: Rates, now_ms: int, shards: int) -> None:
    oldest = now_ms // 1000 - WINDOW_S
    for number in [number for number in rates if number < oldest]:
        del rates[number]


# --- durations ------------------------------------------------------------------------------------------------------

Durations = dict[str, Timings]
"""Name of a step or workflow -> its timings."""


def _timings(durations: Durations, name: str) -> Timings:
    timings = durations.get(name)
    if timings is None:
        timings = durations[name] = Timings()
    return timings


def _run_failure(durations: Durations, run_id: str, at: int, event: events.RunFailed) -> None:
    _timings(durations, event.workflow).failures += 1


def _step_failure(durations: Durations, run_id: str, at: int, event: events.StepFailed) -> None:
    _timings(durations, event.name).failures += 1


def _step_retry(durations: Durations, run_id: str, at: int, event: StepRetrying) -> None:
    if event.due:  # else it isn't decided yet, and another event says what becomes of the attempt
        _timings(durations, event.name).retries += 1


def _merge_durations(into: Durations, other: Durations) -> None:
    for name, timings in other.items():
        _timings(into, name).merge(timings)


def _render_durations(durations: Durations, now_ms: int) -> JSON:
    """`{name: {"count", "p50", "p95", "p99", "max", "failures", "retries", "sum", "powers"}}`; times in ms, of the
    successes. `powers`: counts for a coarser histogram, see `Timings.by_power`."""
    rendered: dict[str, JSON] = {}
    for name, timings in sorted(durations.items()):
        p50, p95, p99 = timings.percentiles_ms(0.5, 0.95, 0.99)
        rendered[name] = {
            "count": timings.count,
            "p50": p50,
            "p95": p95,
            "p99": p99,
            "max": timings.max_us / 1000,
            "failures": timings.failures,
            "retries": timings.retries,
            "sum": round(timings.sum_ms, 3),
            "powers": timings.by_power(),
        }
    return rendered


# --- the latest of something ----------------------------------------------------------------------------------------

Row = tuple[int, str, str, str, str]
"""Shard-clock ms, run id, three texts. Compared as a whole, so that the latest rows don't depend on their order."""


class Latest(msgspec.Struct, array_like=True):
    """The total number, and the last `LATEST` rows, oldest first."""

    count: int = 0
    rows: list[Row] = []

    def add(self, row: Row) -> None:
        self.count += 1
        if len(self.rows) >= LATEST:
            if row <= self.rows[0]:
                return
            del self.rows[0]
        insort(self.rows, row)

    def merge(self, other: Latest) -> None:
        self.count += other.count
        if other.rows:
            self.rows = sorted([*self.rows, *other.rows])[-LATEST:]


def _failed(latest: Latest, run_id: str, at: int, event: events.RunFailed) -> None:
    latest.add((at, run_id, event.workflow, event.failure.kind[:MAX_TEXT], event.failure.message[:MAX_TEXT]))


def _stuck(latest: Latest, run_id: str, at: int, event: RunStuck) -> None:
    latest.add((at, run_id, event.workflow, event.reason[:MAX_TEXT], ""))


def _quarantined(latest: Latest, run_id: str, at: int, event: MessageQuarantined) -> None:
    shard = str(event.shard) if event.shard >= 0 else ""
    latest.add((at, event.run_id or run_id, event.message[:MAX_TEXT], event.reason[:MAX_TEXT], shard))


def _latest_view(name: str, columns: Sequence[str], event: type[HistoryEvent], fold: Any) -> View[Latest]:
    """`{"count": n, "latest": [{"at", "run_id", *columns}, newest first]}`"""

    def render(latest: Latest, now_ms: int) -> JSON:
        names = ("at", "run_id", *columns)
        return {"count": latest.count, "latest": [dict(zip(names, row, strict=False)) for row in reversed(latest.rows)]}

    return View(name, Latest, Latest, {event: fold}, Latest.merge, render)


# --- failures by cause ----------------------------------------------------------------------------------------------


class CauseRow(msgspec.Struct, array_like=True):
    """What has failed of one cause in a day, less what was mended. Numbers of one part of a log may be negative.

    `failed`, `stuck`: runs. `first`, `last`: shard-clock ms, 0 if nothing failed in this part. `run_id`, `where`: of
    the last one, and the last frame of the user's code in it.
    """

    failed: int = 0
    stuck: int = 0
    first: int = 0
    last: int = 0
    run_id: str = ""
    where: str = ""

    def see(self, at: int, run_id: str, where: str) -> None:
        if not self.first or at < self.first:
            self.first = at
        if (at, run_id, where) > (self.last, self.run_id, self.where):
            self.last, self.run_id, self.where = at, run_id, where

    def add(self, other: CauseRow) -> None:
        self.failed += other.failed
        self.stuck += other.stuck
        if other.first:
            self.see(other.first, "", "")
            self.see(other.last, other.run_id, other.where)


@lru_cache(2 * KEPT_CAUSES)
def _cause_rank(key: Key) -> str:
    """The order in which causes are kept, as that of tenants: it must not depend on how often one was seen, or how
    a log is split."""
    text = "\0".join(key)
    return f"{zlib.crc32(text.encode(errors='replace')):08x}{text}"


class CauseDay(msgspec.Struct, array_like=True):
    """The causes of one day, those of the lowest rank one by one, exactly: see `Runs`."""

    rows: dict[Key, CauseRow] = {}
    others: CauseRow = msgspec.field(default_factory=CauseRow)
    """All other causes together."""
    highest: str = ""
    """The highest rank of those that are kept; empty while there is room for more."""

    def of(self, key: Key) -> CauseRow:
        row = self.rows.get(key)
        if row is None:
            if self.highest and _cause_rank(key) > self.highest:
                return self.others
            row = self.rows[key] = CauseRow()
            if len(self.rows) >= KEPT_CAUSES:
                self.keep_lowest()
                return self.rows.get(key, self.others)
        return row

    def merge(self, other: CauseDay) -> None:
        for key, row in other.rows.items():
            if key not in self.rows:
                self.rows[key] = CauseRow()
            self.rows[key].add(row)
        self.others.add(other.others)
        self.keep_lowest()

    def keep_lowest(self) -> None:
        """Add causes that are too many to the others."""
        if len(self.rows) < KEPT_CAUSES:
            return
        for key in heapq.nlargest(len(self.rows) - KEPT_CAUSES, self.rows, key=_cause_rank):
            self.others.add(self.rows.pop(key))
        self.highest = max(map(_cause_rank, self.rows))


Causes = dict[int, CauseDay]
"""Day (ms // DAY_MS) of the failure -> its causes.

Days, because a cause that was left out in favour of others would stay so: who has had a hundred causes in a year must
still see the next one. And what was mended is taken from the day on which it had failed, so that it takes nothing
from later failures of the same cause.
"""


def _cause_day(causes: Causes, at: int) -> CauseDay:
    day = causes.get(at // DAY_MS)
    if day is None:
        day = causes[at // DAY_MS] = CauseDay()
    return day


def _cause_failed(causes: Causes, run_id: str, at: int, event: events.RunFailed) -> None:
    cause = cause_of(run_id, event.workflow, event.failure)
    row = _cause_day(causes, at).of(key_of(cause))
    row.failed += 1
    row.see(at, run_id, cause.where)


def _cause_stuck(causes: Causes, run_id: str, at: int, event: RunStuck) -> None:
    cause = _stuck_cause(run_id, event)
    row = _cause_day(causes, at).of(key_of(cause))
    row.stuck += 1
    row.see(at, run_id, cause.where)


def _cause_resumed(causes: Causes, run_id: str, at: int, event: RunResumed) -> None:
    if event.since:  # else it isn't known what is over
        _cause_day(causes, event.since).of(key_of(_stuck_cause(run_id, event))).stuck -= 1


def _stuck_cause(run_id: str, event: RunStuck | RunResumed) -> Cause:
    if event.failure is None:
        return stuck_cause(run_id, event.workflow, event.reason)
    return cause_of(run_id, event.workflow, event.failure)


def _cause_retried(causes: Causes, run_id: str, at: int, event: RunRetried) -> None:
    if event.failure is not None:
        cause = cause_of(run_id, event.workflow, event.failure)
        _cause_day(causes, event.since).of(key_of(cause)).failed -= 1


def _merge_causes(into: Causes, other: Causes) -> None:
    for number, day in other.items():
        _cause_day(into, number * DAY_MS).merge(day)


def _render_causes(causes: Causes, now_ms: int) -> JSON:
    """`{"days": n, "causes": [{"workflow", "kind", "message", "where", "failed", "stuck", "first", "last", "run_id"},
    the last seen first], "others": runs of causes that are not listed}`. `workflow`: of the run in which it was raised;
    `run_id`: the last run that it made fail, or be stuck."""
    oldest = now_ms // DAY_MS - CAUSE_DAYS
    rows: dict[Key, CauseRow] = {}
    others = CauseRow()
    for number, day in causes.items():
        if number >= oldest:
            others.add(day.others)
            for key, row in day.rows.items():
                if key not in rows:
                    rows[key] = CauseRow()
                rows[key].add(row)
    present = [(key, row) for key, row in rows.items() if row.failed + row.stuck > 0]
    present.sort(key=lambda item: (-item[1].last, item[0]))
    for _, row in present[MAX_CAUSES:]:
        others.add(row)
    return {
        "days": CAUSE_DAYS,
        "causes": [
            {
                "workflow": workflow,
                "kind": kind,
                "message": message,
                "where": row.where,
                "failed": row.failed,
                "stuck": row.stuck,
                "first": row.first,
                "last": row.last,
                "run_id": row.run_id,
            }
            for (workflow, kind, message, _), row in present[:MAX_CAUSES]
        ],
        "others": max(0, others.failed + others.stuck),
    }


def _prune_causes(causes: Causes, now_ms: int, shards: int) -> None:
    oldest = now_ms // DAY_MS - CAUSE_DAYS
    for number in [number for number in causes if number < oldest]:
        del causes[number]


# --- the registry ---------------------------------------------------------------------------------------------------

VIEWS: tuple[View[Any], ...] = (
    View(
        "runs",
        Runs,
        Runs,
        {
            events.RunFailed: _run_failed,
            events.RunCancelled: _run_cancelled,
            RunStuck: _run_stuck,
            RunResumed: _run_resumed,
            RunPaused: _run_paused,
            PauseEnded: _pause_ended,
            RunRetried: _run_retried,
        },
        _merge_runs,
        _render_runs,
    ),
    View(
        "rates",
        Rates,
        dict[int, Second],
        {
            events.RunFailed: _rate_failure,
        },
        _merge_rates,
        _render_rates,
        _prune_rates,
    ),
    View(
        "run_durations",
        Durations,
        dict[str, Timings],
        {events.RunFailed: _run_failure},
        _merge_durations,
        _render_durations,
    ),
    View(
        "step_durations",
        Durations,
        dict[str, Timings],
        {events.StepFailed: _step_failure, StepRetrying: _step_retry},
        _merge_durations,
        _render_durations,
    ),
    _latest_view("failures", ("workflow", "kind", "message"), events.RunFailed, _failed),
    _latest_view("stuck", ("workflow", "reason"), RunStuck, _stuck),
    View(
        "causes",
        Causes,
        dict[int, CauseDay],
        {
            events.RunFailed: _cause_failed,
            RunStuck: _cause_stuck,
            RunResumed: _cause_resumed,
            RunRetried: _cause_retried,
        },
        _merge_causes,
        _render_causes,
        _prune_causes,
    ),
    View(
        "retries",
        retries.Minutes,
        dict[int, retries.RetryMinute],
        {StepRetrying: retries.fold_retry},
        retries.merge,
        retries.render,
        retries.prune,
    ),
    _latest_view("quarantine", ("message", "reason", "shard"), MessageQuarantined, _quarantined),
    View(
        "newest",
        newest.Newest,
        newest.Newest,
        {
            RunResumed: newest.folds_as(Status.RUNNING),
            PauseEnded: newest.folds_as(Status.RUNNING),
            RunRetried: newest.folds_as(Status.RUNNING),
            RunPaused: newest.folds_as(Status.PAUSED),
            RunStuck: newest.folds_as(Status.STUCK),
            events.RunFailed: newest.folds_as(Status.FAILED),
            events.RunCancelled: newest.folds_as(Status.CANCELLED),
        },
        newest.Newest.merge,
        newest.render,
        newest.prune,
    ),
)


# --- what several views count, and happens in each run ----------------------------------------------------------------


def _begun(runs: Runs, rates: Rates, latest: newest.Newest) -> Fold:
    def fold(run_id: str, at: int, event: RunStarted | RunForked) -> None:
        for counts in runs.of(event):
            counts.running += 1
        _second(rates, at).starts += 1
        latest.add(run_id, (at, newest.RUNNING, event.workflow))

    return fold


def _completed(runs: Runs, rates: Rates, durations: Durations, latest: newest.Newest) -> Fold:
    def fold(run_id: str, at: int, event: RunCompleted) -> None:
        for counts in runs.of(event):
            counts.running -= 1
            counts.completed += 1
        _second(rates, at).completions += 1
        _timings(durations, event.workflow).add(event.ms)
        latest.add(run_id, (at, newest.COMPLETED, event.workflow))

    return fold


def _step_completed(rates: Rates, durations: Durations, minutes: retries.Minutes) -> Fold:
    def fold(run_id: str, at: int, event: StepCompleted) -> None:
        second = rates.get(at // 1000)
        (_second(rates, at) if second is None else second).steps += 1
        timings = durations.get(event.name)
        (_timings(durations, event.name) if timings is None else timings).add(event.ms)
        if event.attempt > 1:
            retries.fold_success(minutes, run_id, at, event)

    return fold


TOGETHER: dict[type[HistoryEvent], tuple[tuple[str, ...], Callable[..., Fold]]] = {
    RunStarted: (("runs", "rates", "newest"), _begun),
    RunForked: (("runs", "rates", "newest"), _begun),
    RunCompleted: (("runs", "rates", "run_durations", "newest"), _completed),
    StepCompleted: (("rates", "step_durations", "retries"), _step_completed),
}
"""Of an event type, which `View.folds` doesn't have then: views, and what makes a fold of their partials. One call for
all of them, because these events happen in each run."""
