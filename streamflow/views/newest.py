"""The view `newest`: the runs whose status has changed last, so that who looks needs one GET for a first page.

Owns: its partial, and how it is folded, merged, rendered and cut for storing.
Must not: know keys, offsets or clocks. Called by: `registry.py`.

A partial has the last changes, and knows behind which moment it has all: what a shard stores is cut to `KEPT`, because
it does so every second, and of what several shards have only those are listed that are newer than all that any of them
has dropped. So the list is exact, and shorter than `MOST` where one shard has more of the newest changes than `KEPT`.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from typing import Any

import msgspec

from streamflow.model.record import Status

MOST = 200
"""Runs that a rendered view lists."""
KEPT = 50
"""Changes that a shard stores."""

STATUSES = (Status.RUNNING, Status.PAUSED, Status.STUCK, Status.COMPLETED, Status.FAILED, Status.CANCELLED)
"""By number. Of changes in one millisecond the one with the highest number counts: it is the last of a transition."""

Change = tuple[int, str, int, str]
"""Shard-clock ms, run id, number of the status, workflow."""


class Newest(msgspec.Struct, array_like=True):
    """The last changes, oldest first, all of which are newer than `dropped`: the newest of those that it lacks."""

    changes: list[Change] = []
    dropped: tuple[int, str] = (0, "")

    def add(self, change: Change) -> None:
        changes = self.changes
        if change[:2] <= self.dropped:
            return
        if not changes or change > changes[-1]:
            changes.append(change)
        else:
            insort(changes, change)
        if len(changes) > 2 * MOST:  # a cut costs as much as 200 changes
            self.cut(MOST)

    def cut(self, most: int) -> None:
        """Drop the oldest changes but `most`; those of a run in one millisecond go together."""
        if len(self.changes) > most:
            self.dropped = self.changes[-most - 1][:2]
            self.changes = [change for change in self.changes[-most:] if change[:2] > self.dropped]


def folds_as(status: Status) -> Any:
    """The function that folds an event by which a run gets this status."""
    number = STATUSES.index(status)

    def fold(newest: Newest, run_id: str, at: int, event: Any) -> None:
        newest.add((at, run_id, number, event.workflow))

    return fold


def merge(into: Newest, other: Newest) -> None:
    if other.dropped > into.dropped:
        into.dropped = other.dropped
        del into.changes[: _not_newer(into)]
    if newer := other.changes[_not_newer(other, into.dropped) :]:  # few of most shards, once others have filled it
        into.changes = sorted([*into.changes, *newer])
        into.cut(MOST)


def _not_newer(newest: Newest, dropped: tuple[int, str] | None = None) -> int:
    """How many of its changes are not newer than what is dropped."""
    return bisect_right(newest.changes, newest.dropped if dropped is None else dropped, key=_moment)


def _moment(change: Change) -> tuple[int, str]:
    return change[:2]


def render(newest: Newest, now_ms: int) -> Any:
    """`{"since": ms, "runs": [{"at", "run_id", "workflow", "status"}, …]}`, newest first, each run once. All runs whose
    status has changed after `since` are there."""
    runs: dict[str, dict[str, Any]] = {}
    for at, run_id, number, workflow in reversed(newest.changes):
        if run_id not in runs:
            runs[run_id] = {"at": at, "run_id": run_id, "workflow": workflow, "status": str(STATUSES[number])}
    return {"since": newest.dropped[0], "runs": list(runs.values())}


def prune(newest: Newest, now_ms: int) -> None:
    newest.cut(KEPT)
