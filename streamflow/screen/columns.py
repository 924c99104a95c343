"""Lines of text in columns: exact widths, nothing ever wraps.

Owns: cutting, padding and joining `Text` lines by terminal cells. Must not: know what is shown.
Called by: the status screen, the timeline, the tables. (rich's `Table` can't be told to drop whole columns when a
terminal is narrow, or to use its title row as the heading row, which is what makes 24 lines enough.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from streamflow.screen.style import MUTED, TITLE

GAP = 2


@dataclass(frozen=True)
class Column:
    """`keep`: the columns with the lowest numbers stay when there is no room for all. `flex`: takes what is left."""

    title: str
    right: bool = True
    keep: int = 0
    flex: bool = False
    least: int = 6
    """Cells that a flexible column keeps at least before other columns are dropped."""
    most: int = 200


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
    line = Text(no_wrap=True, end="")
    for position, part in enumerate(parts):
        if position:
            line.append(" " * gap)
        line.append_text(part)
    return line


def beside(left: Sequence[Text], right: Sequence[Text], left_width: int, right_width: int, gap: int) -> list[Text]:
    """Two blocks of lines next to each other; the shorter one is filled with blank lines."""
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
    """A heading line (the title stands over the first column) and one line a row, each of at most `width` cells."""
    first = Column(title, columns[0].right, columns[0].keep, columns[0].flex, columns[0].least, columns[0].most)
    columns = [first, *columns[1:]]
    natural = [
        min(column.most, max([cell_len(column.title), *(row[index].cell_len for row in rows)]))
        for index, column in enumerate(columns)
    ]
    shown = _that_fit(columns, natural, width)
    widths = _widths(columns, natural, shown, width)
    heading = [
        fit(Text(columns[i].title, style=TITLE if i == 0 else MUTED), widths[i], columns[i].right) for i in shown
    ]
    lines = [join(heading)]
    lines.extend(join([fit(row[i], widths[i], columns[i].right) for i in shown]) for row in rows)
    return [fit(line, width) for line in lines]


def _that_fit(columns: Sequence[Column], natural: Sequence[int], width: int) -> list[int]:
    shown = list(range(len(columns)))
    while len(shown) > 1:
        needed = sum(min(natural[i], columns[i].least) if columns[i].flex else natural[i] for i in shown)
        if needed + GAP * (len(shown) - 1) <= width:
            break
        shown.remove(max(shown, key=lambda i: (columns[i].keep, i)))
    return shown


def _widths(columns: Sequence[Column], natural: Sequence[int], shown: Sequence[int], width: int) -> dict[int, int]:
    """Natural widths; what lacks or is left over goes to the flexible columns, the last of them first."""
    widths = {i: natural[i] for i in shown}
    spare = width - sum(widths.values()) - GAP * (len(shown) - 1)
    flexible = [i for i in shown if columns[i].flex]
    for i in sorted(flexible, key=lambda i: -widths[i]):
        if spare < 0:
            cut = min(-spare, max(0, widths[i] - columns[i].least))
            widths[i] -= cut
            spare += cut
    if spare > 0 and flexible:
        widths[flexible[-1]] += spare
    if spare < 0:
        widths[shown[0]] = max(1, widths[shown[0]] + spare)
    return widths
