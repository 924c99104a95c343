"""Groups of subscribers, with how far each is behind; a namespace without groups has no such panel.

Owns: its columns. Must not: count (the status says). Called by: `layout.py`.
"""

from __future__ import annotations

from rich.text import Text

from streamflow.screen.columns import Column, table
from streamflow.screen.panels.panel import MAX_NAME, Panel, count_cell
from streamflow.screen.sanitize import safe_text
from streamflow.screen.style import BAD, FAINT, WARN, duration
from streamflow.status.model import NamespaceStatus, SubscriberGroup

_COLUMNS = (
    Column("GROUPS", right=False, flexible=True, min_width=12, max_width=MAX_NAME),
    Column("lag"),
    Column("behind", drop_order=1),
    Column("lost", drop_order=2),
    Column("consumers", drop_order=3),
)


def groups_panel(status: NamespaceStatus, width: int) -> Panel | None:
    """The group that is furthest behind first. The name of one that is held up stands out: the header says by what."""
    if not status.groups:
        return None
    rows = [
        [
            safe_text(group.name, WARN if group.trouble else "", MAX_NAME),
            count_cell(group.waiting),
            Text(duration(group.behind_ms)) if group.waiting else Text("–", style=FAINT),
            count_cell(group.lost, BAD),
            _consumers_cell(group),
        ]
        for group in sorted(status.groups, key=lambda group: (-group.behind_ms, group.name))
    ]
    return Panel(table(f"GROUPS {len(rows):,}", _COLUMNS, rows, width))


def _consumers_cell(group: SubscriberGroup) -> Text:
    """`none` while entries wait stands out."""
    if group.consumers:
        return count_cell(group.consumers)
    return Text("none", style=BAD if group.waiting else FAINT)
