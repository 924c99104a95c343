"""Throughput: starts, completions, failures and steps per second in the last minute, each with a sparkline.

Owns: its lines. Must not: compute rates (the rates view does). Called by: `layout.py`.
"""

from __future__ import annotations

from rich.text import Text

from streamflow.screen.columns import fit, join
from streamflow.screen.panels.panel import Panel
from streamflow.screen.style import BAD, BUSY, FAINT, MUTED, OK, TITLE, VALUE, number, sparkline
from streamflow.status.model import NamespaceStatus

_LINES = (
    # rate, label, style
    ("starts", "starts", BUSY),
    ("completions", "done", OK),
    ("failures", "failed", BAD),
    ("steps", "steps", TITLE.removeprefix("bold ")),
)


def throughput_panel(status: NamespaceStatus, width: int) -> Panel:
    rates = status.view("rates")
    average = rates.get("average", {})
    numbers = {rate: number(average.get(rate, 0)) for rate, _, _ in _LINES}
    number_width = max(len(text) for text in numbers.values())
    sparkline_width = min(60, width - 9 - number_width - 3)
    lines = [fit(join([Text("THROUGHPUT", style=TITLE), Text("per second, last minute", style=MUTED)]), width)]
    for rate, label, style in _LINES:
        values = rates.get(rate, [])
        line = Text.assemble((f"{label:<7} ", MUTED), end="")
        line.append(f"{numbers[rate]:>{number_width}}", style=VALUE)
        line.append("/s ", style=MUTED)
        line.append(sparkline(values, sparkline_width), style=style if any(values[-sparkline_width:]) else FAINT)
        lines.append(fit(line, width))
    return Panel(lines, min_rows=5)
