"""Lines of text in columns: exact widths; only ids wrap, which are of no use in part.

Owns: cutting, padding and joining `Text` lines by terminal cells. Must not: know what the text is about.
Called by: the status screen, the timeline, the tables. (rich's `Table` can't drop whole columns when a terminal is
narrow, or use its title row as the heading row, which is what makes 24 lines enough.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.cells import cell_len, chop_cells
from rich.text import Text

from streamflow.screen.style import MUTED, TITLE

GAP = 2
"""Cells between two columns."""
INDENT = 2
"""Cells in front of what stands below its row."""


@dataclass(frozen=True)
class Column:
    """Widths are in terminal cells. A column is as wide as its widest cell, at most `max_width`."""

    title: str
    right: bool = True
    """Aligned to the right."""
    drop_order: int = 0
    """When the terminal is too narrow for all columns, the one with the highest number is dropped first."""
    flexible: bool = False
    """May be cut when cells are missing; the last flexible column also gets the cells that are left over."""
    min_width: int = 6
    """A flexible column is not cut below this: other columns are dropped instead."""
    max_width: int = 200
    whole: bool = False
    """Never cut, because one can do nothing with a part of it, as with an id: where a cell doesn't fit, it stands on
    lines of its own below its row."""

    @property
    def narrowest(self) -> int:
        """What it may be cut to."""
        return self.min_width if self.flexible and not self.whole else self.max_width


def fit(text: Text, width: int, right: bool = False) -> Text:
    """A copy of exactly `width` cells: cut with …, or padded."""
    line = text.copy()
    line.no_wrap = True
    line.end = ""
    if line.cell_len > width:
        line.truncate(max(width, 0), overflow="ellipsis")
    missing = width - line.cell_len
    if missing > 0:
        if right:
            line.pad_left(missing)
        else:
            line.pad_right(missing)
    return line


def join(parts: Sequence[Text], gap: int = GAP) -> Text:
    """One line of the parts, with `gap` blanks between them."""
    line = Text(no_wrap=True, end="")
    for position, part in enumerate(parts):
        if position:
            line.append(" " * gap)
        line.append_text(part)
    return line


def beside(left: Sequence[Text], right: Sequence[Text], left_width: int, right_width: int, gap: int) -> list[Text]:
    """Two groups of lines next to each other; the shorter one is filled with blank lines."""
    blank = Text(end="")
    rows = max(len(left), len(right))
    return [
        join(
            [
                fit(left[row] if row < len(left) else blank, left_width),
                fit(right[row] if row < len(right) else blank, right_width),
            ],
            gap,
        )
        for row in range(rows)
    ]


def table(title: str, columns: Sequence[Column], rows: Sequence[Sequence[Text]], width: int) -> list[Text]:
    """A heading line (the title stands over the first column) and a line for each row, each of exactly `width` cells;
    more for a row in which a `whole` cell doesn't fit."""
    columns = [replace(columns[0], title=title), *columns[1:]]
    natural = [
        min(column.max_width, max([cell_len(column.title), *(row[index].cell_len for row in rows)]))
        for index, column in enumerate(columns)
    ]
    kept = _kept_columns(columns, natural, width)
    widths = _widths(columns, natural, kept, width)
    heading = [fit(Text(columns[i].title, style=TITLE if i == 0 else MUTED), widths[i], columns[i].right) for i in kept]
    lines = [join(heading)]
    for row in rows:
        lines.append(join([fit(row[i], widths[i], columns[i].right) for i in kept]))
        for i, column in enumerate(columns):
            if column.whole and row[i].cell_len > widths.get(i, 0):
                lines.extend(_below(row[i], column.title if i else "", width))
    return [fit(line, width) for line in lines]


def _below(cell: Text, title: str, width: int) -> list[Text]:
    """A cell that doesn't fit into its row, on as many lines as it needs."""
    indent = INDENT if width > 4 * INDENT else 0
    label = f"{title} " if title and indent + cell_len(title) + 1 + cell.cell_len <= width else ""
    lines: list[Text] = []
    for part in chop_cells(cell.plain, max(1, width - indent - cell_len(label))):
        lines.append(Text.assemble((" " * indent + label, MUTED), (part, cell.style), end=""))
        label = ""
    return lines


def _kept_columns(columns: Sequence[Column], natural: Sequence[int], width: int) -> list[int]:
    """Indexes of the columns that fit into `width` cells; at least one stays."""
    kept = list(range(len(columns)))
    while len(kept) > 1:
        needed = sum(min(natural[i], columns[i].narrowest) for i in kept)
        if needed + GAP * (len(kept) - 1) <= width:
            break
        kept.remove(max(kept, key=lambda i: (columns[i].drop_order, i)))
    return kept


def _widths(columns: Sequence[Column], natural: Sequence[int], kept: Sequence[int], width: int) -> dict[int, int]:
    """Natural widths. Missing cells are cut from the flexible columns, the widest first; spare cells go to the last
    flexible column."""
    widths = {i: natural[i] for i in kept}
    spare = width - sum(widths.values()) - GAP * (len(kept) - 1)
    flexible = [i for i in kept if columns[i].flexible]
    for i in sorted(flexible, key=lambda i: -widths[i]):
        if spare < 0:
            cut = min(-spare, max(0, widths[i] - columns[i].narrowest))
            widths[i] -= cut
            spare += cut
    if spare > 0 and flexible:
        widths[flexible[-1]] += spare
    if spare < 0:
        widths[kept[0]] = max(1, widths[kept[0]] + spare)
    return widths
