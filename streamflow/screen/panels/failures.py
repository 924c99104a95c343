"""What fails and why: what fails for shards and queues now, at daemons and workers; failed and stuck runs by their
cause; steps that are tried again, by theirs; quarantined messages; the last seen first.

Owns: merging the views and the heartbeats. Must not: group or keep failures (the views do). Called by: `layout.py`.
"""

from __future__ import annotations

from typing import Any

from rich.text import Text

from streamflow.model.causes import STUCK
from streamflow.screen.columns import Column, fit, table
from streamflow.screen.panels.panel import Panel, none_panel
from streamflow.screen.sanitize import safe_text
from streamflow.screen.style import BAD, FAINT, MUTED, TITLE, WARN, duration, number, plural
from streamflow.status.model import NamespaceStatus

_TITLE = "FAILURES"
_EMPTY = Text("")
MANY_RETRIES = 10
"""Retries of one cause in the last minutes from which they are listed..."""
MOST_RETRIED = 5
"""...and so many causes at most."""
_ID = 22
"""Cells for the id of a quarantined message, as `123:1764361200000-0`."""


def failures_panel(status: NamespaceStatus, width: int) -> Panel:
    failures = [*_troubles(status), *_causes(status), *_retries(status), *_quarantined(status)]
    others = [fit(line, width) for line in _others(status)]
    if not failures:
        return Panel([fit(Text(_TITLE, TITLE), width), *others]) if others else none_panel(_TITLE, width)
    failures.sort(key=lambda failure: failure[0], reverse=True)
    columns = [
        Column(_TITLE, right=False, max_width=max(_ID, width // 4), flexible=True, min_width=_ID),
        Column("runs"),
        Column("", right=False, flexible=True, min_width=max(20, width // 3), max_width=600),
        Column("ago", drop_order=1),
        Column("first", drop_order=3),
        Column("last run", right=False, drop_order=2, max_width=256, whole=True),
    ]
    rows = [cells for _, cells in failures]
    used = [index for index in range(len(columns)) if any(cells[index].plain for cells in rows)]
    lines = table(
        _TITLE, [columns[index] for index in used], [[cells[index] for index in used] for cells in rows], width
    )
    return Panel([*lines, *others], min_rows=2)


def _others(status: NamespaceStatus) -> list[Text]:
    """What is counted, and in no row."""
    lines: list[Text] = []
    causes = status.view("causes")
    if others := causes.get("others", 0):
        lines.append(Text(f"… and {plural(others, 'run')} of other causes", style=FAINT))
    stuck = status.view("runs").get("status", {}).get("stuck", 0)
    stuck -= sum(row["stuck"] for row in causes.get("causes", []) if row["stuck"] > 0)
    if stuck > 0 and causes:
        lines.append(Text(f"… and {plural(stuck, 'run')} stuck of other causes, or for longer", style=WARN))
    return lines


def _troubles(status: NamespaceStatus) -> list[tuple[int, list[Text]]]:
    """What fails now, at daemons and workers: when, and the cells."""
    now = {
        (subject, text): style
        for daemon in status.daemons
        for style, troubles in ((BAD, daemon.heartbeat.broken), (WARN, daemon.heartbeat.impaired))
        for subject, text in troubles.items()
    }
    now |= {(subject, text): WARN for worker in status.workers for subject, text in worker.impaired.items()}
    return [*_blocked(status)] + [
        (status.as_of, [*_start(subject, _EMPTY), safe_text(text, style, limit=500), *_end("now")])
        for (subject, text), style in now.items()
    ]


def _blocked(status: NamespaceStatus) -> list[tuple[int, list[Text]]]:
    """The line that has blocked each daemon and worker longest, within the last minutes."""
    told = [(daemon.name, daemon.heartbeat.blocked) for daemon in status.daemons]
    told += [(worker.name, worker.blocked) for worker in status.workers]
    found: list[tuple[int, list[Text]]] = []
    for name, lines in told:
        if lines:
            line = max(lines, key=lambda line: line.ms)
            what = line.of if line.of != "own" else "other code"
            text = f"blocked {duration(line.ms)} by {what} at {line.line}"
            count = Text(f"{number(line.count)} ×", WARN)
            cells = [
                *_start(name, count),
                safe_text(text, WARN, 500),
                *_end(duration(1000 * line.age), "", line.run_id),
            ]
            found.append((status.as_of - round(1000 * line.age), cells))
    return found


def _causes(status: NamespaceStatus) -> list[tuple[int, list[Text]]]:
    return [(row["last"], _cause(row, status.as_of)) for row in status.view("causes").get("causes", [])]


def _cause(row: dict[str, Any], now_ms: int) -> list[Text]:
    failed, stuck = row["failed"], row["stuck"]
    runs = Text(f"{number(failed)} ✗" if failed > 0 else "", BAD)
    if stuck > 0:
        runs.append(f"{' ' if runs else ''}{number(stuck)} stuck", WARN)
    what = f"{row['kind']}: {row['message']}" if row["message"] else row["kind"]
    if row["kind"] == STUCK:  # as the column before it says
        what = row["message"]
    details = safe_text(what, BAD if failed > 0 else WARN, 500)
    if row["where"]:
        details.append("  ")
        details.append_text(safe_text(row["where"], MUTED, 200))
    ago, first = (duration(max(0, now_ms - at)) for at in (row["last"], row["first"]))
    return [*_start(row["workflow"], runs), details, *_end(ago, first, row["run_id"])]


def _retries(status: NamespaceStatus) -> list[tuple[int, list[Text]]]:
    rows = status.view("retries").get("retries", [])
    return [(row["last"], _retried(row, status.as_of)) for row in rows if row["retries"] >= MANY_RETRIES][:MOST_RETRIED]


def _retried(row: dict[str, Any], now_ms: int) -> list[Text]:
    what = f"{row['kind']}: {row['message']}" if row["message"] else row["kind"]
    hopeless = not row["succeeded"]
    details = safe_text(what, WARN if hopeless else "", 500)
    details.append("  ")
    details.append("0 succeeded" if hopeless else f"{number(row['succeeded'])} succeeded", WARN if hopeless else MUTED)
    ago, first = (duration(max(0, now_ms - at)) for at in (row["last"], row["first"]))
    count = Text(f"{number(row['retries'])} ↻", WARN)
    return [*_start(f"step {row['step']}", count), details, *_end(ago, first, row["run_id"])]


def _quarantined(status: NamespaceStatus) -> list[tuple[int, list[Text]]]:
    """Those that are there, by the ids that `quarantine` takes; where that isn't known, those that were put there."""
    if status.quarantine is not None:
        found = [(row.at, row.id, f"quarantined, for run {row.run_id}", row.reason) for row in status.quarantine.latest]
    else:
        found = [
            (row["at"], f"message {row['message']}", _where(row), row["reason"])
            for row in status.view("quarantine").get("latest", [])
        ]
    return [
        (
            at,
            [
                *_start(subject, _EMPTY),
                Text.assemble(safe_text(where, WARN, 60), " ", safe_text(reason, limit=500), end=""),
                *_end(duration(max(0, status.as_of - at))),
            ],
        )
        for at, subject, where, reason in found
    ]


def _where(row: dict[str, str]) -> str:
    """With the shard, unless a release has stored the view that didn't say it."""
    shard = row.get("shard")
    return f"quarantined in shard {shard}" if shard else "quarantined"


def _start(subject: str, runs: Text) -> list[Text]:
    return [safe_text(subject, limit=256), runs]


def _end(ago: str, first: str = "", run_id: str = "") -> list[Text]:
    return [Text(ago, style=MUTED), Text(first, style=MUTED), safe_text(run_id, MUTED, 256)]
