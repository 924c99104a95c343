"""A shard's part of a view of an app: its position, its windows in memory, and what is stored of it.

Owns: folding log entries into a part, and the fields that one store writes. It runs code of users (key, zero, fold,
value), so all that does is called in the view's thread. Must not: send anything.
Called by: `view_folder.py`.

Only the newest windows stay in memory: an event of an older one needs that to be read again (`Part.lacks`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from streamflow.events import Transition, decode_transition
from streamflow.views import cells
from streamflow.views.cells import Cells
from streamflow.workflow.view import View

_log = logging.getLogger("streamflow.views")

WINDOWS_IN_MEMORY = 2
"""Of each part."""

Whose = tuple[str, str]
"""Workflow and tenant of a run."""


class PartState(msgspec.Struct, array_like=True):
    """What is stored with the cells, as a whole: see `lua/store_view`."""

    offset: str = "0-0"
    """The log entry up to which is counted."""
    counts_from: int = 0
    """Ms; 0: from the first entry that the shard has ever had."""
    missed_from: int = 0
    missed_to: int = 0
    """Entries that were gone before they were counted; 0 if there were none."""
    newest: int = 0
    """The time of the newest event (ms): windows expire by it."""
    events: int = 0
    """How many were counted."""
    ready: bool = False
    """It has counted once all that was logged."""
    windows: dict[int, int] = {}
    """Of each stored window, the number of events that were counted when it changed last."""
    stored_at: int = 0
    cut: int = 0
    """What was committed before it (ms) is not counted from the log, but from records and archive."""
    fill: str = ""
    """How far that is: empty if there is nothing to fill, `SERVER`, `ARCHIVE` and up to which folder, `DONE`."""
    filled: int = 0
    """Runs of which something is counted so."""

    @property
    def is_filled(self) -> bool:
        return self.fill in ("", DONE)


SERVER, ARCHIVE, DONE = "server", "archive/", "done"
"""Phases of a fill: see `view_fill.py`."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(PartState).decode


def decode_state(data: bytes) -> PartState:
    """Raises `msgspec.DecodeError`, `RecursionError` or `UnicodeDecodeError`."""
    return _decode(data)


def state_field(version: str) -> str:
    return f"state/{version}"


def window_field(version: str, start: int) -> str:
    return f"window/{version}/{start}"


def folded_field(version: str) -> str:
    """The digests of the runs whose records were counted on the server, while a part is being filled."""
    return f"folded/{version}"


def version_of_field(field: str) -> str:
    parts = field.split("/")
    return parts[1] if len(parts) > 1 else ""


class EarlierRun(NamedTuple):
    """What a run has done before the cut of its part, as far as the view takes something of it."""

    run_id: str
    created: int
    whose: Whose
    transitions: list[Transition]


class Page(msgspec.Struct):
    """What was read of a log: run ids with the transitions that the view takes something of, and the last entry."""

    last: str
    transitions: list[tuple[str, Transition]]
    unknown: set[str] = set()
    """Runs of which it isn't known whose they are, and has to be."""


def decode_page(
    view: View, entries: Iterable[tuple[bytes, Mapping[bytes, bytes]]], known: dict[str, Whose], cut: int = 0
) -> Page:
    """Runs no code of users. `known`: whose runs are, as far as it is known; events that say it are noted there.
    `cut`: what was committed before is left out (ms)."""
    last = ""
    found: list[tuple[str, Transition]] = []
    unknown: set[str] = set()
    needs_run = view.needs_run
    for entry_id, fields in entries:
        last = entry_id.decode()
        for name, data in fields.items():
            try:
                run_id, transition = name.decode(), decode_transition(data)
            except Exception as error:  # somebody has damaged it
                _log.error("view %s doesn't count a log entry of run %r: %s", view.name, name[:64], error)
                continue
            takes = False
            for event in transition.events:
                if needs_run and (workflow := getattr(event, "workflow", "")):
                    known[run_id] = workflow, getattr(event, "tenant", "")
                takes = takes or view.takes(event)
            if takes and transition.at >= cut:
                found.append((run_id, transition))
                if needs_run and run_id not in known:
                    unknown.add(run_id)
    return Page(last, found, unknown)


def latest_in(fields: Mapping[bytes, bytes]) -> int:
    """The latest time of the transitions of a log entry, ms; 0 if none can be read."""
    found = 0
    for data in fields.values():
        try:
            found = max(found, decode_transition(data).at)
        except Exception as error:
            _log.error("a log entry can't be read: %s", error)
    return found


class Part:
    """One shard's part."""

    def __init__(self, version: str, stored: bytes) -> None:
        self.version = version
        self.stored = stored
        """`state`, as it is stored; empty if it isn't."""
        self.state = decode_state(stored) if stored else PartState()
        self.windows: dict[int, Cells] = {}
        self.held = b""
        """From where the log is kept for this view, as it is stored; empty if it isn't."""
        self.old_fields: list[str] = []
        """Of other versions."""
        self.folded: bytes | None = None
        """Digests, in order, as they are stored in `folded_field`; None: not read."""
        self.is_settled = False
        """Nothing from before the cut is under way any more."""

    def lacks(self, view: View, pages: Iterable[Page]) -> list[int]:
        """The stored windows that are needed to fold these pages."""
        starts = {cells.window_of(view, transition.at) for page in pages for _, transition in page.transitions}
        return sorted(start for start in starts if start in self.state.windows and start not in self.windows)

    def fold(self, view: View, pages: Iterable[Page], known: Mapping[str, Whose]) -> None:
        """Runs code of users. If it raises, the part is of no use any more."""
        state = self.state
        for page in pages:
            for run_id, transition in page.transitions:
                oldest = cells.oldest_window(view, max(state.newest, transition.at))
                if view.width and transition.at < oldest:
                    continue
                counted = cells.fold(view, self.windows, run_id, known.get(run_id, ("", "")), transition)
                if counted:
                    state.events += counted
                    state.newest = max(state.newest, transition.at)
                    state.windows[cells.window_of(view, transition.at)] = state.events
            state.offset = page.last or state.offset

    def changes(self, view: View, now: int, changed_since: int) -> tuple[bytes, list[str], list[tuple[str, bytes]]]:
        """What a store has to write: the state, the fields to remove, and those to write. `changed_since`: the number
        of events that were counted when it was stored last."""
        state = self.state
        oldest = cells.oldest_window(view, state.newest)
        gone = [start for start in state.windows if start < oldest] if view.width else []
        for start in gone:
            del state.windows[start]
            self.windows.pop(start, None)
        written = [
            (window_field(self.version, start), cells.encode(view, self.windows[start]))
            for start, changed in state.windows.items()
            if changed > changed_since
        ]
        state.stored_at = now
        removed = [window_field(self.version, start) for start in gone] + self.old_fields
        return _encode(state), removed, written

    def was_stored(self, state: bytes) -> None:
        self.stored, self.held, self.old_fields = state, self.state.offset.encode(), []
        self.trim()

    def trim(self) -> None:
        """Behind a store: older windows can be read again."""
        for start in sorted(self.windows)[:-WINDOWS_IN_MEMORY]:
            del self.windows[start]
