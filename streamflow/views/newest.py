"""The view `newest`: the runs whose status has changed last, so that who looks needs one GET for a first page.

Owns: its partial, and how it is folded, merged, rendered and cut for storing.
Must not: know keys, offsets or clocks. Called by: `registry.py`.

A partial has the last changes of runs, and knows behind which moment it has all: what a shard stores is cut to its
share of the list and a margin, because it does so every second, and of what several shards have only those are listed
that are newer than all that any of them has dropped. So the list is exact, and shorter than `MOST` where one shard has
more of the newest changes than it stores.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from streamflow.model.record import Status

MOST = 200
"""Runs that a rendered view lists."""
KEPT = 50
"""Runs that a shard stores, at most..."""
MARGIN, FACTOR = 4, 2
"""...of many shards so many, and so many times its share: with 256 of them 6, of which the list has 0.8 on average."""

MERGED = 8 * MOST
"""Runs after which those that are too old are dropped while partials are merged."""

STATUSES = (Status.RUNNING, Status.PAUSED, Status.STUCK, Status.COMPLETED, Status.FAILED, Status.CANCELLED)
"""By number. Of changes in one millisecond the one with the highest number counts: it is the last of a transition."""

RUNNING, COMPLETED = STATUSES.index(Status.RUNNING), STATUSES.index(Status.COMPLETED)

Change = tuple[int, int, str]
"""Shard-clock ms, number of the status, workflow."""


class Newest(msgspec.Struct, array_like=True):
    """By run its last change, of all runs that have changed after `dropped`: the newest of those that are not here.
    Behind a `merge` some may be there that have changed before (`all`)."""

    changes: dict[str, Change] = {}
    dropped: tuple[int, str] = (0, "")

    def add(self, run_id: str, change: Change) -> None:
        if change[0] <= self.dropped[0] and (change[0], run_id) <= self.dropped:
            return
        changes = self.changes
        known = changes.get(run_id)
        if known is None or known < change:
            changes[run_id] = change
            if len(changes) > 2 * MOST:  # a cut costs as much as 200 changes
                self.cut(MOST)

    def cut(self, most: int) -> None:
        """Drop all but the `most` runs that have changed last."""
        if len(self.changes) > most:
            self.dropped = max(self.dropped, sorted(map(_moment, self.changes.items()))[-most - 1])
            self.changes = self.all()

    def all(self) -> dict[str, Change]:
        """Of all runs that have changed after `dropped`, and no others."""
        dropped = self.dropped
        return {run_id: change for run_id, change in self.changes.items() if (change[0], run_id) > dropped}

    def merge(self, other: Newest) -> None:
        """Those that are too old stay for now: to look for them with each of many partials would cost far more."""
        self.dropped = max(self.dropped, other.dropped)
        changes = other.changes
        if not self.changes.keys().isdisjoint(changes):
            known = self.changes
            changes = {run_id: max(change, known.get(run_id, change)) for run_id, change in changes.items()}
        self.changes.update(changes)
        if len(self.changes) > MERGED:
            self.cut(MOST)


def _moment(item: tuple[str, Change]) -> tuple[int, str]:
    return item[1][0], item[0]


def folds_as(status: Status) -> Any:
    """The function that folds an event by which a run gets this status."""
    number = STATUSES.index(status)

    def fold(newest: Newest, run_id: str, at: int, event: Any) -> None:
        newest.add(run_id, (at, number, event.workflow))

    return fold


def render(newest: Newest, now_ms: int) -> Any:
    """`{"since": ms, "runs": [{"at", "run_id", "workflow", "status"}, …]}`, newest first, each run once. All runs whose
    status has changed after `since` are there."""
    changes = sorted(newest.all().items(), key=_moment, reverse=True)
    rows = [
        {"at": at, "run_id": run_id, "workflow": workflow, "status": str(STATUSES[number])}
        for run_id, (at, number, workflow) in changes[:MOST]
    ]
    since = changes[MOST][1][0] if len(changes) > MOST else newest.dropped[0]
    return {"since": since, "runs": rows}


def prune(newest: Newest, now_ms: int, shards: int) -> None:
    newest.cut(min(KEPT, MARGIN + FACTOR * math.ceil(MOST / shards)))
