"""The tenants: runs by status. There is no such panel for fewer than two.

Owns: its columns. Must not: count (the runs view does). Called by: `layout.py`.
"""

from __future__ import annotations

from streamflow.screen.columns import Column, table
from streamflow.screen.panels.panel import MAX_NAME, Panel, count_cell
from streamflow.screen.sanitize import safe_text
from streamflow.screen.style import BAD
from streamflow.status.model import NamespaceStatus

_COLUMNS = (
    Column("TENANTS", right=False, flexible=True, min_width=12, max_width=MAX_NAME),
    Column("running", drop_order=1),
    Column("done", drop_order=2),
    Column("failed", drop_order=3),
)


def tenants_panel(status: NamespaceStatus, width: int) -> Panel | None:
    tenants = status.view("runs").get("tenants", {})
    if len(tenants) < 2:
        return None
    rows = [
        [
            safe_text(name, limit=MAX_NAME),
            count_cell(counts["running"]),
            count_cell(counts["completed"]),
            count_cell(counts["failed"], BAD),
        ]
        for name, counts in tenants.items()
    ]
    return Panel(table(f"TENANTS {len(rows):,}", _COLUMNS, rows, width))
