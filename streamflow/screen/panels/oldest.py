"""The open runs that were started first.

Owns: its columns. Must not: search for them (the status has them). Called by: `layout.py`.
"""

from __future__ import annotations

from rich.text import Text

from streamflow.screen.columns import Column, table
from streamflow.screen.panels.panel import MAX_NAME, Panel, none_panel
from streamflow.screen.sanitize import safe_text
from streamflow.screen.style import MUTED, duration
from streamflow.screen.waits import waits_text
from streamflow.status.model import NamespaceStatus

_TITLE = "OLDEST OPEN RUNS"


def oldest_panel(status: NamespaceStatus, width: int) -> Panel:
    if not status.oldest:
        return none_panel(_TITLE, width)
    columns = [
        Column(_TITLE, right=False, flexible=True, max_width=256, whole=True),
        Column("workflow", right=False, drop_order=2, max_width=max(8, width // 3)),
        Column("open for", drop_order=1),
        Column("waits for", right=False, flexible=True, drop_order=3, min_width=20, max_width=200),
    ]
    rows = [
        [
            safe_text(run_id, limit=256),
            safe_text(workflow, MUTED, MAX_NAME),
            Text(duration(max(0, status.as_of - started))),
            safe_text(waits_text(status.oldest_waits.get(run_id, []), status.as_of), MUTED, 500),
        ]
        for run_id, workflow, started in status.oldest
    ]
    return Panel(table(_TITLE, columns, rows, width), min_rows=2)
