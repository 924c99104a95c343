"""The status screen: the parts of `panels/` arranged for a width and a height.

Owns: which parts get how many lines, in one column or two. Must not: fetch anything.
Called by: `streamflow status`, the live screen, the demo.

Each line is cut to the width by its part, and each part to its share of the height, so a small terminal shows less but
never wraps. Parts are dealt lines in the order of their importance; what is left over goes to those that have more.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from streamflow.screen.columns import beside, fit
from streamflow.screen.panels import blocks
from streamflow.screen.panels.blocks import Block
from streamflow.screen.panels.queues import queues
from streamflow.status.model import NamespaceStatus

TWO_COLUMNS = 116
MARGIN = 3


def render_status(status: NamespaceStatus, width: int, height: int | None = None, problem: str = "") -> RenderableType:
    """Lines of exactly `width` cells; `height` None shows everything. `problem` stands in for the health words."""
    return Group(*status_lines(status, width, height, problem))


def status_lines(status: NamespaceStatus, width: int, height: int | None = None, problem: str = "") -> list[Text]:
    width = max(width, 1)
    lines = blocks.header(status, width, problem)
    roomy = height is None or height >= 30
    if roomy:
        lines.append(_blank(width))
    top = _top(status, width)
    lines.extend(top if roomy else top[:6])
    left = None if height is None else max(0, height - len(lines))
    if width < TWO_COLUMNS:
        lines.extend(_stack(_parts(status, width, height), width, left))
    else:
        half = (width - MARGIN) // 2
        other = width - MARGIN - half
        one = [
            blocks.daemons(status, half),
            blocks.shards(status, half, _map_rows(height)),
            blocks.failures(status, half),
        ]
        if (waiting := queues(status, half)) is not None:
            one.insert(1, waiting)
        two = [blocks.workflows(status, other), blocks.steps(status, other), blocks.oldest(status, other)]
        tenants = blocks.tenants(status, other)
        if tenants is not None and (height is None or height >= 36):
            two.insert(1, tenants)
        lines.extend(beside(_stack(one, half, left), _stack(two, other, left), half, other, MARGIN))
    shown = lines if height is None else lines[: max(height, 0)]
    for line in shown:
        line.end = "\n"
    return shown


def _top(status: NamespaceStatus, width: int) -> list[Text]:
    """Throughput and runs, next to each other where both are readable."""
    if width < 60:
        return [*blocks.throughput(status, width).lines, *blocks.runs(status, width).lines]
    left = (width - MARGIN) // 2 if width >= TWO_COLUMNS else (width - MARGIN) * 4 // 7
    right = width - MARGIN - left
    return beside(blocks.throughput(status, left).lines, blocks.runs(status, right).lines, left, right, MARGIN)


def _parts(status: NamespaceStatus, width: int, height: int | None) -> list[Block]:
    parts = [
        blocks.daemons(status, width),
        blocks.shards(status, width, _map_rows(height)),
        blocks.workflows(status, width),
        blocks.steps(status, width),
        blocks.failures(status, width),
        blocks.oldest(status, width),
    ]
    if (waiting := queues(status, width)) is not None:
        parts.insert(1, waiting)
    tenants = blocks.tenants(status, width) if height is None or height >= 36 else None
    return [*parts, tenants] if tenants is not None else parts


def _map_rows(height: int | None) -> int:
    return 5 if height is None or height >= 38 else 2 if height >= 30 else 1


def _stack(parts: Sequence[Block], width: int, height: int | None) -> list[Text]:
    """The parts below each other in `height` lines, with blank lines between them where there are lines to spare."""
    wanted = [len(part.lines) for part in parts]
    rows = wanted if height is None else _deal(parts, wanted, height)
    shown = [(part, count) for part, count in zip(parts, rows, strict=True) if count > 0]
    spaced = height is None or height - sum(rows) >= len(shown)
    lines: list[Text] = []
    for part, count in shown:
        if spaced:
            lines.append(_blank(width))
        lines.extend(part.cut(count, width))
    return lines


def _deal(parts: Sequence[Block], wanted: Sequence[int], height: int) -> list[int]:
    """Lines for each part: the least that they ask for, then one more for each in turn until all are dealt."""
    if sum(wanted) + len(parts) > height >= 24:
        height -= len(parts)  # keeps the blank lines between the parts
    rows = [0] * len(parts)
    for index, part in enumerate(parts):
        rows[index] = min(part.least, wanted[index], height - sum(rows))
        if rows[index] == 1 < wanted[index]:
            rows[index] = 0  # a heading alone says nothing
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
            yield fit(blocks.safe_text(self.problem or "connecting …", blocks.MUTED), width)
