"""The queues, with what waits in them and who serves them; a namespace without queues has no such panel.

Owns: its columns. Must not: count (the status says). Called by: `layout.py`.
"""

from __future__ import annotations

from rich.text import Text

from streamflow.screen.columns import Column, table
from streamflow.screen.panels.panel import MAX_NAME, Panel, count_cell
from streamflow.screen.sanitize import safe_text
from streamflow.screen.style import BAD, FAINT
from streamflow.status.model import NamespaceStatus, Queue

_COLUMNS = (
    Column("QUEUES", right=False, flexible=True, min_width=12, max_width=MAX_NAME),
    Column("waiting", drop_order=1),
    Column("running", drop_order=2),
    Column("workers", drop_order=3),
)


def queues_panel(status: NamespaceStatus, width: int) -> Panel | None:
    """The queue with the most waiting steps first."""
    if not status.queues:
        return None
    rows = [
        [
            safe_text(queue.name, limit=MAX_NAME),
            count_cell(queue.waiting),
            count_cell(queue.running),
            _workers_cell(queue),
        ]
        for queue in sorted(status.queues, key=lambda queue: (-queue.waiting, queue.name))
    ]
    return Panel(table(f"QUEUES {len(rows):,}", _COLUMNS, rows, width))


def _workers_cell(queue: Queue) -> Text:
    """`none` while steps wait stands out: somebody has to start a worker. So does a queue that somebody has paused, of
    which it is said, too, that there are none."""
    if queue.paused is not None:
        return Text("paused" if queue.workers else "paused, none", style=BAD if queue.waiting else FAINT)
    return count_cell(queue.workers) if queue.workers else Text("none", style=BAD if queue.waiting else FAINT)
