"""The map of owners: one cell per shard, or per group of neighbours when there are more shards than cells.

Owns: the map. Must not: decide who owns a shard (the status says). Called by: `layout.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.text import Text

from streamflow.screen.columns import fit, join
from streamflow.screen.panels.owners import Owner, owners_of
from streamflow.screen.panels.panel import Panel
from streamflow.screen.style import BAD, MUTED, TITLE, number
from streamflow.status.model import NamespaceStatus, Shard


def shards_panel(status: NamespaceStatus, width: int, rows: int) -> Panel:
    """A map of `rows` lines below the title; with one row, beside it."""
    total = status.shards_total
    title = Text.assemble(("SHARDS", TITLE), end="")
    if not status.shards:
        facts = f"  {total:,}, {status.shards_unowned:,} without owner" if total else "  no namespace yet"
        title.append(facts, style=MUTED)
        return Panel([fit(title, width)], min_rows=1)
    title.append(f" {total:,}", style=TITLE)
    row_width = max(1, width - title.cell_len - 2 if rows == 1 else width)
    group = -(-len(status.shards) // (row_width * rows))
    if rows > 1:
        title.append(f"  {group} per cell" if group > 1 else "", style=MUTED)
        behind = max(status.shards, key=lambda shard: shard.lag + shard.inbox)
        if behind.lag + behind.inbox:
            backlog = f"inbox {number(behind.inbox)}, lag {number(behind.lag)}"
            title.append(f"  most behind: {behind.number} ({backlog})", style=MUTED)
    owners = {owner.daemon.id: owner for owner in owners_of(status)}
    cells = [_cell(status.shards[at : at + group], owners) for at in range(0, len(status.shards), group)]
    lines = [join(cells[at : at + row_width], gap=0) for at in range(0, len(cells), row_width)]
    if rows == 1:
        return Panel([fit(join([title, *lines]), width)], min_rows=1)
    return Panel([fit(title, width), *(fit(line, width) for line in lines)], min_rows=2)


def _cell(group: Sequence[Shard], owners: Mapping[str, Owner]) -> Text:
    """The daemon that owns most shards of the group; a single shard without a live owner marks the whole cell."""
    if any(shard.owner not in owners for shard in group):
        return Text("·", style=f"bold white on {BAD}")
    most_common, _ = Counter(shard.owner for shard in group).most_common(1)[0]
    owner = owners[most_common]
    return Text(owner.letter, style=f"#1c2128 on {owner.colour}")
