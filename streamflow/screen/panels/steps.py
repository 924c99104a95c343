"""The steps: how often they ran, how long they take, how often they fail.

Owns: its columns. Must not: count (the views do). Called by: `layout.py`.
"""

from __future__ import annotations

from streamflow.screen.columns import Column
from streamflow.screen.panels.panel import MAX_NAME, Panel, count_cell, table_panel, time_cell
from streamflow.screen.sanitize import safe_text
from streamflow.screen.style import BAD, WARN
from streamflow.status.model import NamespaceStatus

_COLUMNS = (
    Column("STEPS", right=False, flexible=True, min_width=12, max_width=MAX_NAME),
    Column("count", drop_order=1),
    Column("p50", drop_order=2),
    Column("p95", drop_order=4),
    Column("p99", drop_order=3),
    Column("max", drop_order=7),
    Column("retries", drop_order=6),
    Column("failed", drop_order=5),
)


def steps_panel(status: NamespaceStatus, width: int) -> Panel:
    """The step that ran most often first."""
    steps = status.view("step_durations")
    rows = [
        [
            safe_text(name, limit=MAX_NAME),
            count_cell(times["count"]),
            *(time_cell(times, quantile) for quantile in ("p50", "p95", "p99", "max")),
            count_cell(times["retries"], WARN),
            count_cell(times["failures"], BAD),
        ]
        for name, times in sorted(steps.items(), key=lambda item: (-item[1]["count"], item[0]))
    ]
    return table_panel("STEPS", _COLUMNS, rows, width, "no step has run yet")
