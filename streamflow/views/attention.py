"""The view `attention`: what needs a person, as one short list, so that who looks first reads one key.

Owns: its rows, and how they are ranked. It is made from the merged views `runs` and `causes`, and from what the leading
daemon knows of queues; nothing is folded for it.
Must not: read anything, know keys or clocks. Called by: the rollup.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from streamflow.model.causes import STUCK

MAX_ROWS = 100


class DeadQueue(NamedTuple):
    """A queue in which steps wait and that no worker reads. `since`: when the oldest was put in, ms; 0: unknown."""

    name: str
    waiting: int
    since: int


class Silent(NamedTuple):
    """A step that has sent heartbeats, and then none for long. `since`: the last one, ms; `holder`: as `worker
    gpu-7`."""

    name: str
    run_id: str
    attempt: int
    since: int
    holder: str


def attention(
    runs: dict[str, Any],
    causes: dict[str, Any],
    queues: Sequence[DeadQueue] | None,
    silent: Sequence[Silent] = (),
) -> dict[str, Any]:
    """`{"rows": [{"kind", "name", "text", "where", "count", "first", "last", "run_id"}], "more": n, "queues_known"}`
    from the rendered views `runs` and `causes`.

    `kind`: `stuck` or `failed` (`name`: the workflow in which it was raised, `count`: runs, less those that were
    mended, `run_id`: the last of them), `queue` (`name`: the queue, `count`: steps that wait), or `silent` (`name`: the
    step, `where`: who runs it, `first`: its last heartbeat). Stuck runs that no cause names (other causes, or longer
    ago than causes are counted) have a row without a name. First what doesn't go on, then what has failed; the last
    seen first. `more`: rows that are left out.
    """
    stuck: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    for cause in causes["causes"]:
        text = f"{cause['kind']}: {cause['message']}" if cause["message"] else cause["kind"]
        if cause["kind"] == STUCK:
            text = cause["message"]
        for kind, rows in (("stuck", stuck), ("failed", failed)):
            if cause[kind] > 0:
                found = {name: cause[name] for name in ("where", "first", "last", "run_id")}
                rows.append(_row(kind, cause["workflow"], text, cause[kind], **found))
    if (unnamed := runs["status"]["stuck"] - sum(row["count"] for row in stuck)) > 0:
        stuck.append(_row("stuck", "", "of other causes, or for longer than causes are counted", unnamed))
    waiting = [_row("queue", queue.name, "no workers", queue.waiting, first=queue.since) for queue in queues or ()]
    hung = [
        _row("silent", one.name, f"attempt {one.attempt} sends no heartbeats any more", 1, where=one.holder,
             first=one.since, last=one.since, run_id=one.run_id)
        for one in silent
    ]  # fmt: skip
    waiting.sort(key=lambda row: (row["first"], row["name"]))
    hung.sort(key=lambda row: (row["first"], row["run_id"]))
    rows = [*stuck, *waiting, *hung, *failed]
    return {"rows": rows[:MAX_ROWS], "more": max(0, len(rows) - MAX_ROWS), "queues_known": queues is not None}


def _row(
    kind: str, name: str, text: str, count: int, *, where: str = "", first: int = 0, last: int = 0, run_id: str = ""
) -> dict[str, Any]:
    return {
        "kind": kind,
        "name": name,
        "text": text,
        "where": where,
        "count": count,
        "first": first,
        "last": last,
        "run_id": run_id,
    }
