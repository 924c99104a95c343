"""Runs by status, each with a bar.

Owns: its lines. Must not: count (the runs view does). Called by: `layout.py`.
"""

from __future__ import annotations

from rich.text import Text

from streamflow.screen.columns import fit
from streamflow.screen.panels.panel import Panel
from streamflow.screen.style import FAINT, MUTED, STATUS, TITLE, VALUE
from streamflow.status.model import NamespaceStatus

_STATUSES = ("running", "stuck", "paused", "completed", "failed", "cancelled")


def runs_panel(status: NamespaceStatus, width: int) -> Panel:
    counted: dict[str, int] = status.view("runs").get("status", {})
    counts = {name: counted.get(name, 0) for name in _STATUSES if name in counted or name != "paused"}
    numbers = {name: f"{count:,}" for name, count in counts.items()}
    number_width = max(len(text) for text in numbers.values())
    largest = max(1, *counts.values())
    bar_width = width - 10 - number_width - 2
    total = f"  {sum(counts.values()):,}" if counted else "  none yet"
    lines = [fit(Text.assemble(("RUNS", TITLE), (total, MUTED), end=""), width)]
    for name, count in counts.items():
        style = STATUS[name] if count else FAINT
        line = Text.assemble((f"{name:<10}", style), end="")
        line.append(f"{numbers[name]:>{number_width}}", style=VALUE if count else FAINT)
        if count > 0 and bar_width >= 4:
            line.append("  " + "▇" * max(1, round(bar_width * count / largest)), style=style)
        lines.append(fit(line, width))
        if name == "running" and status.hibernating:  # of these
            text = f"{status.hibernating:>{number_width},}"
            lines.append(fit(Text.assemble(("  asleep  ", MUTED), (text, MUTED), end=""), width))
    return Panel(lines, min_rows=5)
