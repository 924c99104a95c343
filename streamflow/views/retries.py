"""The view `retries`: which steps are being tried again, what for, and whether that helps, over the last ten minutes.

Owns: its partial, and how it is folded, merged, rendered and moved up to now.
Must not: know keys, offsets or clocks. Called by: `registry.py`, the status (`retries_at`).

Minutes, because a window needs them: each has its own rows, and of more than `KEPT` causes those of the lowest rank
one by one, as in the view `causes`. So it is a monoid, and exact whatever way a log is split. A retry that isn't
decided yet (its run is stuck) isn't one, nor is the last failure of a step.
"""

from __future__ import annotations

import heapq
import zlib
from functools import lru_cache
from typing import Any

import msgspec

from streamflow.events import StepCompleted, StepRetrying
from streamflow.model.causes import plain_message

MINUTES = 10
"""Whole minutes that count, beside the present one."""
MINUTE_MS = 60_000
KEPT = 20
"""Causes of a minute that are counted one by one: a partial is stored every second."""
MAX_ROWS = 20
"""Causes that a rendered view lists, those with most retries first."""
MAX_TEXT = 120
"""Characters of the newest message."""

Cause = tuple[str, str, str]
"""Step, kind of the error, message without its values."""


class Retries(msgspec.Struct, array_like=True):
    """Of one cause in a minute. `run_id`, `text`: of the last one."""

    count: int = 0
    first: int = 0
    last: int = 0
    run_id: str = ""
    text: str = ""

    def see(self, at: int, run_id: str, text: str) -> None:
        if not self.first or at < self.first:
            self.first = at
        if (at, run_id, text) > (self.last, self.run_id, self.text):
            self.last, self.run_id, self.text = at, run_id, text

    def add(self, other: Retries) -> None:
        self.count += other.count
        if other.first:
            self.see(other.first, "", "")
            self.see(other.last, other.run_id, other.text)


@lru_cache(4 * KEPT)
def _rank(cause: Cause) -> str:
    text = "\0".join(cause)
    return f"{zlib.crc32(text.encode(errors='replace')):08x}{text}"


@lru_cache(256)
def _plain(message: str) -> str:
    """Those of a storm are the same, or few."""
    return plain_message(message)


class RetryMinute(msgspec.Struct, array_like=True):
    rows: dict[Cause, Retries] = {}
    others: Retries = msgspec.field(default_factory=Retries)
    """All other causes together."""
    highest: str = ""
    """The highest rank of those that are kept; empty while there is room for more."""
    succeeded: dict[str, int] = {}
    """By step, calls that have succeeded after their first attempt."""

    def of(self, cause: Cause) -> Retries:
        row = self.rows.get(cause)
        if row is None:
            if self.highest and _rank(cause) > self.highest:
                return self.others
            row = self.rows[cause] = Retries()
            if len(self.rows) >= KEPT:
                self.keep_lowest()
                return self.rows.get(cause, self.others)
        return row

    def merge(self, other: RetryMinute) -> None:
        for cause, row in other.rows.items():
            if cause not in self.rows:
                self.rows[cause] = Retries()
            self.rows[cause].add(row)
        self.others.add(other.others)
        for step, count in other.succeeded.items():
            self.succeeded[step] = self.succeeded.get(step, 0) + count
        self.keep_lowest()

    def keep_lowest(self) -> None:
        """Add causes that are too many to the others."""
        if len(self.rows) < KEPT:
            return
        for cause in heapq.nlargest(len(self.rows) - KEPT, self.rows, key=_rank):
            self.others.add(self.rows.pop(cause))
        self.highest = max(map(_rank, self.rows))


Minutes = dict[int, RetryMinute]
"""Minute (ms // MINUTE_MS) -> the retries in it."""


def _minute(minutes: Minutes, number: int) -> RetryMinute:
    minute = minutes.get(number)
    if minute is None:
        minute = minutes[number] = RetryMinute()
    return minute


def fold_retry(minutes: Minutes, run_id: str, at: int, event: StepRetrying) -> None:
    if not event.due:
        return
    failure = event.failure
    text = failure.message.partition("\n")[0][:MAX_TEXT]
    row = _minute(minutes, at // MINUTE_MS).of((event.name, failure.kind, _plain(text)))
    row.count += 1
    row.see(at, run_id, text)


def fold_success(minutes: Minutes, run_id: str, at: int, event: StepCompleted) -> None:
    if event.attempt > 1:
        succeeded = _minute(minutes, at // MINUTE_MS).succeeded
        succeeded[event.name] = succeeded.get(event.name, 0) + 1


def merge(into: Minutes, other: Minutes) -> None:
    for number, minute in other.items():
        _minute(into, number).merge(minute)


def prune(minutes: Minutes, now_ms: int, shards: int) -> None:
    oldest = now_ms // MINUTE_MS - MINUTES
    for number in [number for number in minutes if number < oldest]:
        del minutes[number]


def render(minutes: Minutes, now_ms: int) -> dict[str, Any]:
    """`{"minutes": n, "retries": [{"step", "kind", "message", "retries", "succeeded", "first", "last", "run_id"}, the
    most first], "others": retries of causes that are not listed}`. `message`: the newest one; `succeeded`: calls of the
    step, whatever their cause, that were tried again and have succeeded; `run_id`: the last run."""
    oldest = now_ms // MINUTE_MS - MINUTES
    whole = RetryMinute()
    for number, minute in minutes.items():
        if number >= oldest:
            for cause, row in minute.rows.items():
                if cause not in whole.rows:
                    whole.rows[cause] = Retries()
                whole.rows[cause].add(row)
            whole.others.add(minute.others)
            for step, count in minute.succeeded.items():
                whole.succeeded[step] = whole.succeeded.get(step, 0) + count
    found = sorted(whole.rows.items(), key=lambda item: (-item[1].count, item[0]))
    return {
        "minutes": MINUTES,
        "retries": [
            {
                "step": step,
                "kind": kind,
                "message": row.text,
                "retries": row.count,
                "succeeded": whole.succeeded.get(step, 0),
                "first": row.first,
                "last": row.last,
                "run_id": row.run_id,
            }
            for (step, kind, _), row in found[:MAX_ROWS]
        ],
        "others": whole.others.count + sum(row.count for _, row in found[MAX_ROWS:]),
    }


def retries_at(rendered: dict[str, Any], now_ms: int) -> dict[str, Any]:
    """The rendered view moved up to now, of which it may be long ago: nobody merges while nothing happens. What has
    left the window with all its retries is left out."""
    oldest = (now_ms // MINUTE_MS - MINUTES) * MINUTE_MS
    rows = [row for row in rendered.get("retries", []) if row["last"] >= oldest]
    return {**rendered, "retries": rows, "others": rendered.get("others", 0) if rows else 0}
