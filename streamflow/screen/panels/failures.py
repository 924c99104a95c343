"""The latest failures: what fails for shards and queues now, at daemons and workers, failed and stuck runs, quarantined
messages, newest first.

Owns: merging the three views and the heartbeats. Must not: keep failures (the views do). Called by: `layout.py`.
"""

from __future__ import annotations

from rich.text import Text

from streamflow.screen.columns import Column, table
from streamflow.screen.panels.panel import Panel, none_panel
from streamflow.screen.sanitize import safe_text
from streamflow.screen.style import BAD, MUTED, WARN, duration
from streamflow.status.model import NamespaceStatus

_TITLE = "LATEST FAILURES"


def failures_panel(status: NamespaceStatus, width: int) -> Panel:
    failed, stuck, quarantined = (status.view(name).get("latest", []) for name in ("failures", "stuck", "quarantine"))
    now = {
        (subject, text): style
        for daemon in status.daemons
        for style, troubles in ((BAD, daemon.heartbeat.broken), (WARN, daemon.heartbeat.impaired))
        for subject, text in troubles.items()
    }
    now |= {(subject, text): WARN for worker in status.workers for subject, text in worker.impaired.items()}
    failures: list[tuple[int, str, str, str, str]] = [
        *((status.as_of, style, subject, "", text) for (subject, text), style in now.items()),
        *((row["at"], BAD, row["run_id"], row["kind"], row["message"]) for row in failed),
        *((row["at"], WARN, row["run_id"], "stuck", row["reason"]) for row in stuck),
        *((row["at"], WARN, f"message {row['message']}", _quarantined(row), row["reason"]) for row in quarantined),
    ]
    failures.sort(key=lambda failure: failure[0], reverse=True)
    if not failures:
        return none_panel(_TITLE, width)
    columns = [
        Column(_TITLE, right=False, max_width=max(15, width // 4), flexible=True, min_width=15),
        Column("", right=False, flexible=True, min_width=20, max_width=600),
        Column("ago", drop_order=1),
    ]
    rows: list[list[Text]] = []
    for at, style, subject, kind, message in failures:
        if (subject, message) in now:
            details = safe_text(message, style, limit=500)
        else:
            details = Text.assemble(safe_text(kind, style, 60), " ", safe_text(message, limit=500), end="")
        age = Text("now" if (subject, message) in now else duration(max(0, status.as_of - at)), style=MUTED)
        rows.append([safe_text(subject, limit=256), details, age])
    return Panel(table(_TITLE, columns, rows, width), min_rows=2)


def _quarantined(row: dict[str, str]) -> str:
    """With the shard in whose quarantine the message is, unless a release has stored the view that didn't say it."""
    shard = row.get("shard")
    return f"quarantined in shard {shard}" if shard else "quarantined"
