"""The part of the status screen that shows queues; a namespace without queues has none.

Owns: its columns. Must not: arrange, wrap, or show data that hasn't passed `safe`. Called by: `layout.py`.
"""

from __future__ import annotations

from rich.text import Text

from streamflow.screen.columns import Column, table
from streamflow.screen.panels.blocks import MAX_NAME, Block
from streamflow.screen.sanitize import safe_text
from streamflow.screen.style import BAD, FAINT, number
from streamflow.status.model import NamespaceStatus, Queue


def queues(status: NamespaceStatus, width: int) -> Block | None:
    """Those first in which steps wait for workers."""
    if not status.queues:
        return None
    columns = [
        Column("QUEUES", right=False, flex=True, least=12, most=MAX_NAME),
        Column("waiting", keep=1),
        Column("running", keep=2),
        Column("workers", keep=3),
    ]
    rows = [
        [safe_text(one.name, limit=MAX_NAME), _count(one.waiting), _count(one.running), _workers(one)]
        for one in sorted(status.queues, key=lambda one: (-one.waiting, one.name))
    ]
    return Block(table(f"QUEUES {len(rows):,}", columns, rows, width))


def _count(value: int) -> Text:
    return Text(number(value), style="" if value else FAINT)


def _workers(queue: Queue) -> Text:
    """None while steps wait is what somebody has to do something about."""
    return _count(queue.workers) if queue.workers else Text("none", style=BAD if queue.waiting else FAINT)
