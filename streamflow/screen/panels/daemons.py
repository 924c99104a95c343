"""The daemons, one per row: the figures of their last heartbeats.

Owns: its columns. Must not: compute figures. Called by: `layout.py`.

To add a column for a figure that daemons send:

1. Add a field with a default to `Heartbeat` in `streamflow/wire.py`, and fill it in in `Daemon._beat`. It is now in
   `status --json` under its own name, and in each `DaemonRow` of the status as `daemon.heartbeat.<field>`.
2. Add a line to `COLUMNS` below: the heading, how early it is dropped on a narrow terminal, and the cell.

Daemons of the version before don't send the field: while both versions run, their rows show the default.
"""

from __future__ import annotations

from collections.abc import Callable

from rich.text import Text

from streamflow.screen.columns import Column, fit, table
from streamflow.screen.panels.owners import Owner, owners_of
from streamflow.screen.panels.panel import MAX_NAME, UNKNOWN, Panel, count_cell
from streamflow.screen.sanitize import safe_text
from streamflow.screen.style import BAD, MUTED, TITLE, WARN, duration, size
from streamflow.status.model import DaemonRow, NamespaceStatus

BACKLOG_WARN = 10_000
"""A daemon with more messages or log entries waiting than this gets the number in the colour of warnings."""
BEAT_LATE_S = 2
"""The age of a heartbeat above this, in seconds, gets the colour of errors."""

COLUMNS: tuple[tuple[Column, Callable[[DaemonRow], Text]], ...] = (
    (Column("shards", drop_order=2), lambda daemon: count_cell(len(daemon.heartbeat.shards))),
    (Column("running", drop_order=3), lambda daemon: count_cell(daemon.heartbeat.running)),
    (Column("waiting", drop_order=5), lambda daemon: count_cell(daemon.heartbeat.waiting)),
    (Column("inbox", drop_order=4), lambda daemon: _backlog_cell(daemon.heartbeat.inbox)),
    (Column("starts", drop_order=6), lambda daemon: _backlog_cell(daemon.heartbeat.starts)),
    (Column("lag", drop_order=3), lambda daemon: _backlog_cell(daemon.heartbeat.unfolded)),
    (Column("cached", drop_order=9), lambda daemon: count_cell(daemon.heartbeat.live)),
    (Column("steps/s", drop_order=4), lambda daemon: _steps_cell(daemon.steps_per_s)),
    (Column("cpu", drop_order=6), lambda daemon: _cpu_cell(daemon.cpu_percent)),
    (Column("memory", drop_order=7), lambda daemon: Text(size(daemon.heartbeat.rss), style=MUTED)),
    (Column("beat", drop_order=8), lambda daemon: _age_cell(daemon.beat_age)),
)
"""The columns after the name."""
BLOCKED: tuple[Column, Callable[[DaemonRow], Text]] = (
    Column("blocked", drop_order=1),
    lambda daemon: _blocked_cell(daemon),
)
"""The longest time for which its loop was blocked within the last minutes, where one was; FAILURES has the line."""


def daemons_panel(status: NamespaceStatus, width: int) -> Panel:
    if not status.daemons:
        hint = Text("none: start one with streamflow daemon --app flows:app", style=MUTED)
        return Panel([fit(Text("DAEMONS", style=TITLE), width), fit(hint, width)])
    draining = any(daemon.heartbeat.draining for daemon in status.daemons)
    name = Column("DAEMONS", right=False, flexible=True, min_width=24 if draining else 12, max_width=MAX_NAME)
    shown = [*COLUMNS, *(BLOCKED for _ in range(any(daemon.heartbeat.blocked for daemon in status.daemons)))]
    columns = [name, *(column for column, _ in shown)]
    rows = [[_name_cell(owner), *(cell(owner.daemon) for _, cell in shown)] for owner in owners_of(status)]
    return Panel(table(f"DAEMONS {len(rows)}", columns, rows, width), min_rows=3)


def _name_cell(owner: Owner) -> Text:
    name = Text.assemble((f"{owner.letter} ", f"bold {owner.colour}"), end="")
    name.append_text(safe_text(owner.daemon.name, limit=MAX_NAME))
    if owner.daemon.heartbeat.draining:
        name.append(" draining", style=WARN)
    return name


def _backlog_cell(count: int) -> Text:
    return count_cell(count, WARN if count > BACKLOG_WARN else "")


def _steps_cell(steps_per_s: float | None) -> Text:
    return UNKNOWN if steps_per_s is None else count_cell(steps_per_s)


def _cpu_cell(percent: float | None) -> Text:
    return UNKNOWN if percent is None else Text(f"{percent:.0f} %")


def _blocked_cell(daemon: DaemonRow) -> Text:
    longest = max((line.ms for line in daemon.heartbeat.blocked), default=0.0)
    return Text(duration(longest), style=WARN) if longest else Text("")


def _age_cell(seconds: float | None) -> Text:
    return UNKNOWN if seconds is None else Text(duration(seconds * 1000), style=BAD if seconds > BEAT_LATE_S else MUTED)
