"""Views of apps as tables: for `streamflow view` and the status screen.

Owns: their lines. Must not: read views. Called by: `view`, the panel of the screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, cast

from rich.text import Text

from streamflow.screen.columns import Column, table
from streamflow.screen.sanitize import safe_text
from streamflow.screen.style import MUTED, WARN
from streamflow.text import plural
from streamflow.views.reading import ViewReading, ViewRow, ViewWindow

MOST_FIELDS = 6
"""Of what an aggregate shows besides its value."""


def number(value: float) -> str:
    """As `1,234` or `0.125`."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"


def window_text(start: datetime | None, width: str) -> str:
    """As `2026-11-30`, `2026-11-30 14:00`; `all` without windows."""
    if start is None:
        return "all"
    return start.strftime("%Y-%m-%d" if width == "day" else "%Y-%m-%d %H:%M")


def notes(reading: ViewReading) -> list[Text]:
    """From when it counts, and what is not as it should be: a line each."""
    from_when = "the beginning" if reading.counts_from is None else reading.counts_from.strftime("%Y-%m-%d %H:%M:%S")
    as_of = reading.as_of.strftime("%H:%M:%S")
    earlier = f", and of {plural(reading.earlier, 'run')} what was before" if reading.earlier else ""
    lines = [
        Text(f"counts {plural(reading.events, 'event')} from {from_when} (UTC){earlier}, as of {as_of}", style=MUTED)
    ]
    if reading.unfilled:
        text = f"what happened before is still being counted in {plural(reading.unfilled, 'shard')}"
        lines.append(Text(text, style=WARN))
    if reading.missed is not None:
        begin, end = (time.strftime("%Y-%m-%d %H:%M:%S") for time in reading.missed)
        lines.append(Text(f"events from {begin} to {end} were trimmed from a log before they were counted", style=WARN))
    if reading.filling is not None:
        filling = reading.filling
        text = f"another version is being filled: {filling.ready:,} of {plural(filling.shards, 'shard')} caught up"
        lines.append(Text(text, style=WARN))
    return lines


def view_table(reading: ViewReading, windows: int, rows: int, width: int) -> list[Text]:
    lines: list[Text] = []
    for window in reading.windows[:windows]:
        title = f"{reading.name} {window_text(window.start, reading.window)}".upper()
        lines += window_table(window, title, rows, width)
        if window.understated:
            text = f"a key may have up to {number(window.understated)} more, which `others` has"
            lines.append(Text(text, style=MUTED))
        lines.append(Text(""))
    return [*lines, *(line for line in notes(reading))]


def window_table(window: ViewWindow, title: str, rows: int, width: int) -> list[Text]:
    shown = window.rows[:rows]
    labels = list(dict.fromkeys(name for row in shown for name in row.key))
    if labels:
        title += f" BY {safe_text(labels[0]).plain.upper()}"  # the title stands above the first column
    fields = _fields(shown)
    columns = [Column(name, right=False, flexible=True, min_width=8) for name in labels or ["key"]]
    columns += [Column("value"), *(Column(field, drop_order=1 + place) for place, field in enumerate(fields))]
    cells = [
        [
            *(safe_text(row.key.get(name, "")) for name in labels or ["key"]),
            Text(number(row.value)),
            *(Text(_field(row.state, field)) for field in fields),
        ]
        for row in shown
    ]
    if window.rest is not None:
        blanks = [Text("")] * (len(labels or ["key"]) - 1)
        rest = [Text("others", style=MUTED), *blanks, Text(number(window.rest.value), style=MUTED)]
        cells.append([*rest, *(Text(_field(window.rest.state, field), style=MUTED) for field in fields)])
    return table(title, columns, cells, width)


def list_table(found: Sequence[ViewReading], width: int) -> list[Text]:
    """One line for each view: what is largest in its newest window."""
    columns = [
        Column("view", right=False, flexible=True, min_width=8),
        Column("window", right=False, drop_order=2),
        Column("keys"),
        Column("events"),
        Column("largest", right=False, flexible=True, min_width=10),
        Column("value"),
    ]
    cells: list[list[Text]] = []
    for one in found:
        newest = one.windows[0] if one.windows else ViewWindow(None, [])
        largest = newest.rows[0] if newest.rows else ViewRow({}, 0)
        cells.append(
            [
                safe_text(one.name),
                Text(window_text(newest.start, one.window)),
                Text(f"{len(newest.rows):,}" + ("+" if newest.rest is not None else "")),
                Text(f"{one.events:,}"),
                key_text(largest.key),
                Text(number(largest.value)),
            ]
        )
    return table("VIEW", columns, cells, width)


def key_text(key: dict[str, str]) -> Text:
    return safe_text(" ".join(f"{name}={value}" for name, value in key.items()), limit=200)


def _fields(rows: Sequence[ViewRow]) -> list[str]:
    """Of states that are objects."""
    return list(dict.fromkeys(name for row in rows for name in _members(row.state)))[:MOST_FIELDS]


def _members(state: object) -> dict[str, Any]:
    return cast("dict[str, Any]", state) if isinstance(state, dict) else {}


def _field(state: object, name: str) -> str:
    value = _members(state).get(name, "")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number(value)
    return safe_text(str(value), limit=40).plain
