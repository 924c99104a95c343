"""What a view of an app has counted: cells by key in windows of time, of one shard or of all merged.

Owns: folding, merging and bounding cells, their bytes, and what readers get of them.
Must not: know log offsets, servers, clocks or threads: its callers run it where code of users may fail or hang.
Called by: the daemon's loop of views (a shard's part, the merge), the sandbox.

A window has the state of each key, and `rest`, those of all other keys together. While a window of a shard has no more
keys than `MOST_CELLS` every one is exact. Above that the smallest quarter goes into `rest`: a key that comes again
begins at zero, so what is shown for it may be less than the truth, by at most `understated`: the sum, over all such
rounds, of the largest value that went. Rounds follow from the order of events alone, so a crash in between changes
nothing. Sums over all keys with `rest` are always exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any

import msgspec
from msgspec import Raw

from streamflow.errors import PayloadTooLarge
from streamflow.events import Transition
from streamflow.model import codec
from streamflow.model.plain import plain
from streamflow.workflow.view import View, ViewEvent

MOST_CELLS = 2000
"""Keys of a window in a shard's part; at least twice as many as are shown."""
MAX_CELL = 16 * 1024
"""Bytes of one key's state."""

CellKey = tuple[tuple[str, str], ...]
"""Labels by name, in order."""


class Cells:
    """The cells of one window."""

    __slots__ = ("cells", "evicted", "rest", "understated")

    def __init__(self) -> None:
        self.cells: dict[CellKey, Any] = {}
        self.rest: Any = None
        """The state of all other keys; None if there are none."""
        self.evicted = 0
        """How often a key went into `rest`."""
        self.understated = 0.0
        """By how much a key's value may be too small, at most."""


class _Encoded(msgspec.Struct, array_like=True):
    cells: list[tuple[dict[str, str], Raw]]
    rest: Raw | None = None
    evicted: int = 0
    understated: float = 0.0


class _Decoded(msgspec.Struct, array_like=True):
    """msgspec can't decode `Raw | None`: nil is what an empty rest has."""

    cells: list[tuple[dict[str, str], Raw]]
    rest: Raw = Raw(b"\xc0")
    evicted: int = 0
    understated: float = 0.0


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Decoded)


def window_of(view: View, at: int) -> int:
    """The beginning of the window that a time (ms) is in; 0 without windows."""
    return at - at % view.width if view.width else 0


def oldest_window(view: View, newest: int) -> int:
    """The first window that is kept when there are events up to this time (ms)."""
    return window_of(view, max(0, newest - view.keep)) if view.width else 0


def fold(view: View, windows: dict[int, Cells], run_id: str, whose: tuple[str, str], transition: Transition) -> int:
    """Add a transition's events. `whose`: workflow and tenant of the run. Returns how many it has counted. Raises
    whatever the view's code raises; the windows are of no use then."""
    counted = 0
    for event in transition.events:
        if not view.takes(event):
            continue
        workflow, tenant = whose
        if hasattr(event, "workflow"):
            workflow, tenant = str(getattr(event, "workflow", "")), str(getattr(event, "tenant", ""))
        at = datetime.fromtimestamp(transition.at / 1000, UTC)
        given = ViewEvent(run_id, workflow, tenant, at, event)
        labels = view.key(given)
        if labels is None:
            continue
        start = window_of(view, transition.at)
        window = windows.get(start)
        if window is None:
            window = windows[start] = Cells()
        key = tuple(sorted(labels.items()))
        cells = window.cells
        before = cells[key] if key in cells else view.aggregate.zero()
        cells[key] = view.aggregate.fold(before, given)
        counted += 1
        if len(cells) > max(MOST_CELLS, 2 * view.top):
            _shrink(view, window)
    return counted


def _shrink(view: View, window: Cells) -> None:
    ranked = _ranked(view, window)
    _put_aside(view, window, ranked[len(ranked) - len(ranked) // 4 :])


def _ranked(view: View, window: Cells) -> list[tuple[float, CellKey]]:
    """The largest first, and equal ones in the order of their keys."""
    found = [(view.value(state), key) for key, state in window.cells.items()]
    found.sort(key=itemgetter(1))
    found.sort(key=itemgetter(0), reverse=True)
    return found


def _put_aside(view: View, window: Cells, ranked: list[tuple[float, CellKey]]) -> None:
    for _, key in ranked:
        state = window.cells.pop(key)
        window.rest = state if window.rest is None else view.aggregate.merge(window.rest, state)
    window.evicted += len(ranked)
    window.understated += max((abs(value) for value, _ in ranked), default=0.0)


def merge(view: View, parts: Iterable[Cells]) -> Cells:
    """One window of all shards, with the `top` largest keys; the others are in its `rest`. Changes the parts."""
    merged = Cells()
    for part in parts:
        for key, state in part.cells.items():
            known = merged.cells
            known[key] = view.aggregate.merge(known[key], state) if key in known else state
        if part.rest is not None:
            merged.rest = part.rest if merged.rest is None else view.aggregate.merge(merged.rest, part.rest)
        merged.evicted += part.evicted
        merged.understated += part.understated
    ranked = _ranked(view, merged)[view.top :]
    for _, key in ranked:
        state = merged.cells.pop(key)
        merged.rest = state if merged.rest is None else view.aggregate.merge(merged.rest, state)
    merged.evicted += len(ranked)
    return merged


def encode(view: View, window: Cells) -> bytes:
    """Raises `PayloadInvalid` or `PayloadTooLarge` for a state that its own type can't read, or that is too large."""
    what = f"state of view {view.name}"
    cells = [(dict(key), _state(view, state, what)) for key, state in window.cells.items()]
    rest = None if window.rest is None else _state(view, window.rest, what)
    return _encoder.encode(_Encoded(cells, rest, window.evicted, window.understated))


def _state(view: View, state: Any, what: str) -> Raw:
    data = codec.encode(state, what)
    if len(data) > MAX_CELL:
        raise PayloadTooLarge(f"{what}: one key has {len(data):,} bytes, and the limit is {MAX_CELL:,}")
    return Raw(data)


def decode(view: View, data: bytes) -> Cells:
    """Raises `msgspec.DecodeError`, `RecursionError`, `UnicodeDecodeError` or `PayloadInvalid`."""
    stored = _decoder.decode(data)
    what = f"state of view {view.name}"
    window = Cells()
    for labels, state in stored.cells:
        window.cells[tuple(sorted(labels.items()))] = codec.decode(state, view.type, what)
    if bytes(stored.rest) != b"\xc0":
        window.rest = codec.decode(stored.rest, view.type, what)
    window.evicted, window.understated = stored.evicted, stored.understated
    return window


def shown(view: View, window: Cells) -> dict[str, Any]:
    """What readers get of a merged window, as plain data, the largest keys first."""
    show: Callable[[Any], Any] = getattr(view.aggregate, "show", _itself)
    rows = [
        {"key": dict(key), "value": value, "state": _plain(view, show(window.cells[key]))}
        for value, key in _ranked(view, window)
    ]
    rest = None
    if window.rest is not None:
        rest = {"value": view.value(window.rest), "state": _plain(view, show(window.rest))}
    return {"rows": rows, "rest": rest, "others": window.evicted, "understated": window.understated}


def _itself(state: Any) -> Any:
    return state


def _plain(view: View, value: Any) -> Any:
    return plain(codec.encode(value, f"state of view {view.name}"))
