"""Groups of subscribers as tables and lines.

Owns: their columns. Must not: read anything. Called by: the command `groups`, the panel of the status screen.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from rich.table import Table
from rich.text import Text

from streamflow.client.groups import Group
from streamflow.screen.sanitize import safe, safe_text
from streamflow.screen.style import BAD, MUTED, WARN, moment
from streamflow.text import duration


def groups_table(groups: list[Group], now_ms: int) -> Table:
    table = _table()
    table.add_column("GROUP", no_wrap=True, overflow="ellipsis", min_width=8)
    for title in ("CONSUMERS", "LAG", "BEHIND", "LOST"):
        table.add_column(title, no_wrap=True, justify="right")
    for group in groups:
        table.add_row(
            safe_text(group.name),
            Text(str(len(group.consumers)), style="" if group.consumers or not group.waiting else WARN),
            f"{group.waiting:,}",
            age(group.oldest, now_ms),
            Text(f"{group.lost:,}", style=BAD) if group.lost else Text("0", style=MUTED),
        )
    return table


def group_lines(group: Group, now_ms: int) -> Iterator[tuple[str, str]]:
    """What there is to say of a group, each with its name."""
    yield "group", safe(group.name)
    yield "since", moment(_ms(group.created)) + (safe(f", by {group.by}") if group.by else "")
    start = moment(int(group.start)) if group.start.isdigit() else group.start
    yield "began", safe(start)
    yield "lag", f"{group.waiting:,} log entries" + (f", {age(group.oldest, now_ms)}" if group.oldest else "")
    if group.lost and group.lost_at is not None:
        yield "lost", f"{group.lost:,} log entries that were trimmed, the last {age(group.lost_at, now_ms)} ago"
    for one in group.consumers:
        if one.trouble:
            yield "trouble", safe(f"{one.id}: {one.trouble}", limit=500)


def consumers_table(group: Group, now_ms: int) -> Table:
    table = _table()
    table.add_column("CONSUMER", no_wrap=True, overflow="fold")
    for title in ("PID", "SHARDS", "UP"):
        table.add_column(title, no_wrap=True, justify="right")
    for one in group.consumers:
        table.add_row(safe_text(one.id, limit=200), str(one.pid), str(one.shards), age(one.since, now_ms))
    return table


def shards_table(group: Group, now_ms: int, most: int) -> Table:
    """Those that are furthest behind."""
    table = _table()
    table.add_column("SHARD", no_wrap=True, justify="right")
    table.add_column("LAG", no_wrap=True, justify="right")
    table.add_column("BEHIND", no_wrap=True, justify="right")
    table.add_column("OFFSET", no_wrap=True)
    table.add_column("CONSUMER", no_wrap=True, overflow="fold")
    for one in sorted(group.shards, key=lambda one: (-one.waiting, one.shard))[:most]:
        holder = safe_text(one.consumer, limit=200) if one.consumer else Text("none", style=MUTED)
        table.add_row(str(one.shard), f"{one.waiting:,}", age(one.oldest, now_ms), one.offset, holder)
    return table


def age(at: datetime | None, now_ms: int) -> str:
    return "-" if at is None else duration(max(0, now_ms - _ms(at)))


def _ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)


def _table() -> Table:
    return Table(box=None, pad_edge=False, header_style=MUTED, padding=(0, 2, 0, 0))
