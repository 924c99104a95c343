"""What all panels are made of: the class `Panel`, and cells that several of them have.

Owns: how a panel is cut to its share of the height. Must not: know any figure. Called by: the panels, `layout.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from streamflow.screen.columns import Column, fit, join, table
from streamflow.screen.style import FAINT, MUTED, TITLE, duration, number

MAX_NAME = 128
"""Maximum number of characters of a name."""


@dataclass
class Panel:
    """Lines, the heading first. Each panel gets its `min_rows` before any panel gets more."""

    lines: list[Text]
    min_rows: int = 2

    def cut(self, rows: int, width: int) -> list[Text]:
        """The first `rows` lines; from 4 rows on, the last of them says how many lines are hidden."""
        if len(self.lines) <= rows:
            return self.lines
        if rows < 4:
            return self.lines[:rows]
        hidden = len(self.lines) - rows + 1
        return [*self.lines[: rows - 1], fit(Text(f"… {hidden:,} more", style=FAINT), width)]


def table_panel(title: str, columns: Sequence[Column], rows: Sequence[Sequence[Text]], width: int, empty: str) -> Panel:
    """A table headed by its title and its number of rows, or the title and the hint `empty` below it."""
    if not rows:
        return Panel([fit(Text(title, style=TITLE), width), fit(Text(empty, style=MUTED), width)])
    return Panel(table(f"{title} {len(rows)}", columns, rows, width), min_rows=3)


def none_panel(title: str, width: int) -> Panel:
    """A single line: the title, and `none`."""
    return Panel([fit(join([Text(title, style=TITLE), Text("none", style=MUTED)]), width)], min_rows=1)


def count_cell(value: float, style: str = "") -> Text:
    """A number in the given style; a zero is faint."""
    return Text(number(value), style=style if value else FAINT)


def time_cell(times: dict[str, Any], key: str) -> Text:
    """A duration of one of the views' histograms, as rendered: `p50`, `p95`, `p99` or `max`."""
    return Text(duration(times[key])) if times.get("count") else UNKNOWN


UNKNOWN = Text("–", style=FAINT)
"""A figure that is not known, or not yet."""
