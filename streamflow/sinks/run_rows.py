"""What a batch of events says of their runs: one row for each run, to be added to what is known of it.

Owns: which event changes which column of the table of runs. Must not: know SQL. Called by: `postgres.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from streamflow import events as ev
from streamflow.model.record import Status
from streamflow.sinks.columns import columns_of
from streamflow.sinks.rows import moment

if TYPE_CHECKING:
    from streamflow.client.committed import CommittedEvent

_STATUS: dict[type[ev.HistoryEvent], Status] = {
    ev.RunStarted: Status.RUNNING,
    ev.StartDelayed: Status.PENDING,
    ev.StartDue: Status.RUNNING,
    ev.RunForked: Status.RUNNING,
    ev.RunContinued: Status.RUNNING,
    ev.RunStuck: Status.STUCK,
    ev.RunResumed: Status.RUNNING,
    ev.RunPaused: Status.PAUSED,
    ev.PauseEnded: Status.RUNNING,
    ev.RunRetried: Status.RUNNING,
    ev.RunCompleted: Status.COMPLETED,
    ev.RunFailed: Status.FAILED,
    ev.RunCancelled: Status.CANCELLED,
}
"""What a run is after an event; after others it is what it was."""

_COUNTED: dict[type[ev.HistoryEvent], str] = {
    ev.StepScheduled: "steps",
    ev.StepFailed: "steps_failed",
    ev.StepRetrying: "retries",
}


def run_rows(
    events: Iterable[CommittedEvent], columns: dict[str, dict[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """A row for each run of these events, which are in the order of its history. `status` None: none of them says it,
    and then `ended_at`, `ms`, `error` and `result` say nothing either. Counts are of these events only.
    `columns`: those of the events by id, if they are known."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for event in events:
        if isinstance(event.event, ev.MessageQuarantined):  # of a run that may not exist, or has no such id
            continue
        known = columns_of(event) if columns is None else columns[event.id]
        row = rows.setdefault((event.run_id, event.created), _nothing(known))
        _add(row, event.event, known)
    return list(rows.values())


def _nothing(columns: dict[str, Any]) -> dict[str, Any]:
    return {
        "run_id": columns["run_id"],
        "created": columns["run_created"],
        "status": None,
        "events": 0,
        **dict.fromkeys(_COUNTED.values(), 0),
    }


def _add(row: dict[str, Any], event: ev.AnyEvent, columns: dict[str, Any]) -> None:
    at, data = columns["at"], columns["data"]
    row["workflow"], row["tenant"] = columns["workflow"], columns["tenant"]
    row["last_event"], row["updated_at"] = columns["kind"], at
    row["events"] += 1
    if counted := _COUNTED.get(type(event)):
        row[counted] += 1
    status = _STATUS.get(type(event))
    if status is None:
        return
    ended = isinstance(event, ev.ENDINGS)
    row |= {
        "status": status.value,
        "ended_at": at if ended else None,
        "ms": columns["ms"] if ended else None,
        "error_kind": None,
        "error": None,
        "result": data.get("result") if ended else None,
    }
    if isinstance(event, ev.RunFailed | ev.RunCancelled | ev.RunStuck | ev.RunPaused):
        row |= {"error_kind": columns["error_kind"], "error": columns["error"] or data.get("reason")}
    if isinstance(event, ev.RunStarted | ev.RunContinued):
        row["input"] = data.get("input")
        row["version"] = event.version
    if isinstance(event, ev.RunStarted):
        row["started_at"] = at
        row["generation"] = 0
        row["parent"] = event.parent.partition("#")[0] or None
    elif isinstance(event, ev.StartDelayed):
        row["started_at"] = None
    elif isinstance(event, ev.StartDue):
        row["started_at"] = at
        row["version"] = event.version
    elif isinstance(event, ev.RunForked):
        row["started_at"] = at
        row["forked_from"] = event.of
    elif isinstance(event, ev.RunContinued):
        row["generation"] = event.generation
        row.setdefault("started_at", moment(event.started))
