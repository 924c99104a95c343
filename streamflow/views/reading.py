"""PUBLIC: what one reads of a view of an app: `client.view`, `streamflow view`, the status.

Owns: the types, the JSON of a merged view, and what a reading without some keys is.
Must not: know servers. Called by: the daemon that merges (stores it), client, sandbox, status.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec


class ViewRow(msgspec.Struct, frozen=True):
    """What a view has counted for one key. `value` is the number by which keys are ranked, `state` what its aggregate
    shows, as plain data: of `sf.total` the same number."""

    key: dict[str, str]
    value: int | float
    state: Any = None


class ViewRest(msgspec.Struct, frozen=True):
    """The same of all keys together that are not shown."""

    value: int | float
    state: Any = None


class ViewWindow(msgspec.Struct, frozen=True):
    """One window, the largest keys first. `start`: None if the view has no windows. `rest`: all other keys together,
    None if there are none. `understated`: so much more than its `value` a key may have, because it was among the
    smallest of its shard for a while and is counted in `rest` until then; 0 if all is exact."""

    start: datetime | None
    rows: list[ViewRow]
    rest: ViewRest | None = None
    understated: float = 0.0


class ViewFilling(msgspec.Struct, frozen=True):
    """Another version of the view, which is being filled: so many of the shards have caught up."""

    version: str
    ready: int
    shards: int


class ViewReading(msgspec.Struct, frozen=True):
    """A view, as it was merged last. Times are aware, in UTC.

    `as_of`: when that was. `counts_from`: every event from then on is counted; None: all that ever were. `earlier`: of
    so many runs also what happened before that is counted, as their records and the archive have it; in `unfilled`
    shards that is still to be done. `missed`: from when to when the logs of a shard were gone before the view had
    counted them; None if that has never happened. `events`: how many it has counted. `windows`: the newest first;
    without windows there is one.
    """

    name: str
    version: str
    as_of: datetime
    counts_from: datetime | None
    missed: tuple[datetime, datetime] | None
    window: str
    by: list[str]
    events: int
    windows: list[ViewWindow]
    filling: ViewFilling | None = None
    earlier: int = 0
    unfilled: int = 0

    @property
    def rows(self) -> list[ViewRow]:
        """Those of the newest window."""
        return self.windows[0].rows if self.windows else []

    def sum(self, **labels: str) -> float:
        """The values of all windows that were read together, of the keys with these labels; without labels of all keys,
        with those that are not shown. For totals and counts; of others it means nothing."""
        found = sum(row.value for window in self.windows for row in window.rows if _has(row.key, labels))
        if not labels:
            found += sum(window.rest.value for window in self.windows if window.rest is not None)
        return found


class StoredWindow(msgspec.Struct):
    """As it is stored, merged of all shards. `start`: ms, 0 if there is only one."""

    start: int
    rows: list[ViewRow]
    rest: ViewRest | None = None
    understated: float = 0.0


class StoredView(msgspec.Struct):
    """As it is stored: what each field means is said in `ViewReading`. Times are ms; 0 for none."""

    version: str
    as_of: int = 0
    counts_from: int = 0
    missed_from: int = 0
    missed_to: int = 0
    window: str = ""
    by: list[str] = []
    events: int = 0
    ready: int = 0
    """How many of the shards have counted all that was logged when it was looked at."""
    shards: int = 0
    windows: list[StoredWindow] = []
    filling: ViewFilling | None = None
    earlier: int = 0
    unfilled: int = 0

    @property
    def is_complete(self) -> bool:
        return self.ready >= self.shards


class EncodedView(StoredView):
    """The same with windows that are encoded already."""

    windows: list[msgspec.Raw] = []  # pyright: ignore[reportIncompatibleVariableOverride]


def rebuild_field(name: str) -> str:
    """Beside the heads: when somebody has wanted the view to be counted again. No name has a slash."""
    return f"{name}/rebuild"


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(StoredView).decode


def encode_window(start: int, shown: Mapping[str, Any]) -> bytes:
    """`shown`: what `cells.shown` gives."""
    rows = [ViewRow(row["key"], row["value"], row["state"]) for row in shown["rows"]]
    rest = None if shown["rest"] is None else ViewRest(shown["rest"]["value"], shown["rest"]["state"])
    return _encode(StoredWindow(start, rows, rest, shown["understated"]))


def encode_view(view: StoredView) -> bytes:
    return _encode(view)


def decode_view(data: bytes) -> StoredView:
    """Raises `msgspec.DecodeError` or `UnicodeDecodeError`."""
    return _decode(data)


def reading(name: str, stored: StoredView, labels: Mapping[str, str], since: int = 0) -> ViewReading:
    """`labels`: of the keys that are wanted, `since`: only windows that aren't over then (ms)."""
    windows = [
        ViewWindow(
            _time(window.start),
            [row for row in window.rows if _has(row.key, labels)],
            window.rest,
            window.understated,
        )
        for window in stored.windows
        if window.start >= since or not stored.window
    ]
    missed = None
    if stored.missed_to:
        missed = _at(stored.missed_from), _at(stored.missed_to)
    return ViewReading(
        name,
        stored.version,
        _at(stored.as_of),
        _time(stored.counts_from),
        missed,
        stored.window,
        stored.by,
        stored.events,
        windows,
        stored.filling,
        stored.earlier,
        stored.unfilled,
    )


def _has(key: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return all(key.get(name) == value for name, value in labels.items())


def _at(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _time(ms: int) -> datetime | None:
    return _at(ms) if ms else None
