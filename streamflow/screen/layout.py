"""The status screen: the panels arranged for a width and a height.

Owns: which panels get how many lines, in one column or two. Must not: fetch anything, or know what a panel shows.
Called by: `streamflow status`, the live screen, the demo.

Each panel cuts its lines to the width, and is cut to its share of the height, so a small terminal shows less but never
wraps. Panels get lines in the order of their importance; what is left over goes to those that have more to show.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from streamflow.screen.columns import beside, fit
from streamflow.screen.panels.app_views import app_views_panel
from streamflow.screen.panels.daemons import daemons_panel
from streamflow.screen.panels.failures import failures_panel
from streamflow.screen.panels.groups import groups_panel
from streamflow.screen.panels.header import header_lines
from streamflow.screen.panels.oldest import oldest_panel
from streamflow.screen.panels.panel import Panel
from streamflow.screen.panels.queues import queues_panel
from streamflow.screen.panels.runs import runs_panel
from streamflow.screen.panels.shards import shards_panel
from streamflow.screen.panels.steps import steps_panel
from streamflow.screen.panels.tenants import tenants_panel
from streamflow.screen.panels.throughput import throughput_panel
from streamflow.screen.panels.workflows import workflows_panel
from streamflow.screen.sanitize import safe_text
from streamflow.screen.style import MUTED
from streamflow.status.model import NamespaceStatus

TWO_COLUMNS = 116
"""Cells from which panels stand in two columns."""
MARGIN = 3
"""Cells between two columns of panels."""


def render_status(status: NamespaceStatus, width: int, height: int | None = None, problem: str = "") -> RenderableType:
    """Lines of exactly `width` cells; `height` None shows everything. `problem` replaces the health messages."""
    return Group(*status_lines(status, width, height, problem))


def status_lines(status: NamespaceStatus, width: int, height: int | None = None, problem: str = "") -> list[Text]:
    """The same as lines."""
    width = max(width, 1)
    lines = header_lines(status, width, problem)
    spacious = height is None or height >= 30
    if spacious:
        lines.append(_blank(width))
    top = _top(status, width)
    lines.extend(top if spacious else top[:6])
    remaining = None if height is None else max(0, height - len(lines))
    if width < TWO_COLUMNS:
        lines.extend(_stack(_single_column(status, width, height), width, remaining))
    else:
        left_width = (width - MARGIN) // 2
        right_width = width - MARGIN - left_width
        left = _stack(_left_column(status, left_width, height), left_width, remaining)
        right = _stack(_right_column(status, right_width, height), right_width, remaining)
        lines.extend(beside(left, right, left_width, right_width, MARGIN))
    visible = lines if height is None else lines[: max(height, 0)]
    for line in visible:
        line.end = "\n"
    return visible


# --- which panels, most important first -----------------------------------------------------------------------------


def _top(status: NamespaceStatus, width: int) -> list[Text]:
    """Throughput and runs, next to each other where both are readable."""
    if width < 60:
        return [*throughput_panel(status, width).lines, *runs_panel(status, width).lines]
    left_width = (width - MARGIN) // 2 if width >= TWO_COLUMNS else (width - MARGIN) * 4 // 7
    right_width = width - MARGIN - left_width
    left, right = throughput_panel(status, left_width), runs_panel(status, right_width)
    return beside(left.lines, right.lines, left_width, right_width, MARGIN)


def _single_column(status: NamespaceStatus, width: int, height: int | None) -> list[Panel]:
    return _present(
        daemons_panel(status, width),
        queues_panel(status, width),
        groups_panel(status, width),
        shards_panel(status, width, _map_rows(height)),
        workflows_panel(status, width),
        steps_panel(status, width),
        failures_panel(status, width),
        oldest_panel(status, width),
        app_views_panel(status, width),
        _tenants(status, width, height),
    )


def _left_column(status: NamespaceStatus, width: int, height: int | None) -> list[Panel]:
    return _present(
        daemons_panel(status, width),
        queues_panel(status, width),
        groups_panel(status, width),
        shards_panel(status, width, _map_rows(height)),
        failures_panel(status, width),
    )


def _right_column(status: NamespaceStatus, width: int, height: int | None) -> list[Panel]:
    return _present(
        workflows_panel(status, width),
        _tenants(status, width, height),
        steps_panel(status, width),
        oldest_panel(status, width),
        app_views_panel(status, width),
    )


def _present(*panels: Panel | None) -> list[Panel]:
    return [panel for panel in panels if panel is not None]


def _tenants(status: NamespaceStatus, width: int, height: int | None) -> Panel | None:
    return tenants_panel(status, width) if height is None or height >= 36 else None


def _map_rows(height: int | None) -> int:
    """Lines of the map of shards."""
    return 5 if height is None or height >= 38 else 2 if height >= 30 else 1


# --- how many lines each gets ---------------------------------------------------------------------------------------


def _stack(panels: Sequence[Panel], width: int, height: int | None) -> list[Text]:
    """The panels below each other in `height` lines, with blank lines between them where there are lines to spare."""
    wanted = [len(panel.lines) for panel in panels]
    rows = wanted if height is None else _share(panels, wanted, height)
    visible = [(panel, count) for panel, count in zip(panels, rows, strict=True) if count > 0]
    spaced = height is None or height - sum(rows) >= len(visible)
    lines: list[Text] = []
    for panel, count in visible:
        if spaced:
            lines.append(_blank(width))
        lines.extend(panel.cut(count, width))
    return lines


def _share(panels: Sequence[Panel], wanted: Sequence[int], height: int) -> list[int]:
    """Lines for each panel: its `min_rows` first, then one more for each in turn until all lines are used."""
    if sum(wanted) + len(panels) > height >= 24:
        height -= len(panels)  # keeps the blank lines between the panels
    rows = [0] * len(panels)
    for index, panel in enumerate(panels):
        rows[index] = min(panel.min_rows, wanted[index], height - sum(rows))
        if rows[index] == 1 < wanted[index]:
            rows[index] = 0  # a heading alone has no information
    while sum(rows) < height and any(have < want for have, want in zip(rows, wanted, strict=True)):
        for index, want in enumerate(wanted):
            if rows[index] and rows[index] < want and sum(rows) < height:
                rows[index] += 1
        if all(have == want or have == 0 for have, want in zip(rows, wanted, strict=True)):
            break
    return rows


def _blank(width: int) -> Text:
    return fit(Text(""), width)


class StatusScreen:
    """A renderable that takes the size of the terminal each time it is drawn: right after a resize, too."""

    def __init__(self) -> None:
        self.status: NamespaceStatus | None = None
        self.problem = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = console.size
        if self.status is not None:
            yield render_status(self.status, width, height, self.problem)
        else:
            yield fit(safe_text(self.problem or "connecting …", MUTED), width)
