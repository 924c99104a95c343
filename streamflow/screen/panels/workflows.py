"""The workflows: runs by status, and how long runs take.

Owns: its columns. Must not: count (the views do). Called by: `layout.py`.
"""

from __future__ import annotations

from rich.text import Text

from streamflow.screen.columns import Column
from streamflow.screen.panels.panel import MAX_NAME, Panel, count_cell, table_panel, time_cell
from streamflow.screen.sanitize import safe_text
from streamflow.screen.style import BAD, WARN
from streamflow.status.model import NamespaceStatus

_COLUMNS = (
    Column("WORKFLOWS", right=False, flexible=True, min_width=12, max_width=MAX_NAME),
    Column("running", drop_order=1),
    Column("stuck", drop_order=6),
    Column("paused", drop_order=9),
    Column("done", drop_order=2),
    Column("failed", drop_order=3),
    Column("cancelled", drop_order=7),
    Column("p50", drop_order=4),
    Column("p95", drop_order=5),
    Column("p99", drop_order=8),
)
_UNPAUSED = tuple(column for column in _COLUMNS if column.title != "paused")


def workflows_panel(status: NamespaceStatus, width: int) -> Panel:
    """The workflow with the most running runs first."""
    counts_by_name = status.view("runs").get("workflows", {})
    times_by_name = status.view("run_durations")
    names = sorted(
        counts_by_name,
        key=lambda name: (-counts_by_name[name]["running"], -sum(counts_by_name[name].values()), name),
    )
    rows: list[list[Text]] = []
    columns = _COLUMNS if any("paused" in counts for counts in counts_by_name.values()) else _UNPAUSED
    for name in names:
        counts, times = counts_by_name[name], times_by_name.get(name, {})
        rows.append(
            [
                safe_text(name, limit=MAX_NAME),
                count_cell(counts["running"]),
                count_cell(counts["stuck"], WARN),
                *([] if columns is _UNPAUSED else [count_cell(counts.get("paused", 0), WARN)]),
                count_cell(counts["completed"]),
                count_cell(counts["failed"], BAD),
                count_cell(counts["cancelled"]),
                *(time_cell(times, quantile) for quantile in ("p50", "p95", "p99")),
            ]
        )
    return table_panel("WORKFLOWS", columns, rows, width, "nothing has run yet: see streamflow enqueue --help")
