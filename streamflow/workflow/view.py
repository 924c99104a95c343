"""What `app.view` registers: from which events a view is folded, by which key, in which windows, and with which code.

Owns: `View`, the protocol of an aggregate, and what may be registered.
Must not: fold, keep or merge anything (`views/cells.py` does), know keys of the server or clocks.
Called by: the app (registers), daemons and the sandbox (fold), client and command line (show).
"""

from __future__ import annotations

import re
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol, TypeVar, cast, runtime_checkable

import msgspec

from streamflow.errors import UsageError
from streamflow.events import HistoryEvent, Recorded
from streamflow.model import codec
from streamflow.model.durations import seconds_of
from streamflow.model.names import check_name
from streamflow.text import recordable

S = TypeVar("S")
Width = Literal["minute", "hour", "day"]

WIDTHS: dict[str, int] = {"": 0, "minute": 60_000, "hour": 3_600_000, "day": 86_400_000}
"""Ms; 0: there is one window, which holds all."""
KEPT: dict[str, int] = {"": 0, "minute": 2 * 3_600_000, "hour": 3 * 86_400_000, "day": 60 * 86_400_000}
"""Ms for which windows are kept by default."""
MOST_WINDOWS = 400
MOST_KEYS = 1000
"""`top` at most: so many keys of each window are shown."""
MOST_PARTS = 16
"""Of a key that a function gives."""
MAX_PART = 128
"""Characters of each part of a key."""
_LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


class ViewEvent(msgspec.Struct, frozen=True, gc=False):
    """A committed event, as views get it.

    `event` is the event itself; of payloads above 512 bytes only the size is there (`events.gone_bytes`). `at` is when
    it was committed (UTC), `workflow` and `tenant` those of its run: empty if the run was forgotten meanwhile.
    """

    run_id: str
    workflow: str
    tenant: str
    at: datetime
    event: HistoryEvent

    @property
    def kind(self) -> str:
        """As `StepCompleted`."""
        return type(self.event).__name__

    def label(self, name: str) -> str:
        """What `by` means with a name: a label of the record, or else `workflow`, `tenant`, `kind`, `step` or `name`.
        Empty if there is none."""
        event = self.event
        if isinstance(event, Recorded) and name in event.labels:
            return event.labels[name]
        if name in ("workflow", "tenant", "kind"):
            return str(getattr(self, name))
        if name == "step":
            return getattr(event, "step", "") or (getattr(event, "name", "") if self.kind.startswith("Step") else "")
        return str(getattr(event, "name", "")) if name == "name" else ""


@runtime_checkable
class Aggregate(Protocol[S]):
    """What a view makes of the events of one key: a monoid. Folding events in pieces and merging gives the same as
    folding them all.

    - `zero()` gives the state without events. Its annotation says how the state is stored, as a step's result is.
    - `fold(state, event)` gives the state with one event more; it may change the one that it gets.
    - `merge(one, other)` gives both together; it may change `one`.

    And if it has them: `value(state)`, the number by which keys are ranked, and that Prometheus gets; without it the
    state itself, if that is a number.
    """

    def zero(self) -> S: ...
    def fold(self, state: S, event: ViewEvent, /) -> S: ...
    def merge(self, one: S, other: S, /) -> S: ...


Key = Callable[[ViewEvent], Mapping[str, object] | None]


class View:
    """A view of an app: `app.view(…)` makes it. Read it with `client.view(view)`."""

    def __init__(
        self,
        name: str,
        aggregate: Aggregate[Any],
        *,
        kinds: Iterable[type[HistoryEvent]] | None,
        records: str | Iterable[str] | None,
        by: Iterable[str] | Key,
        window: Width | None,
        keep: float | timedelta | None,
        top: int,
        version: str,
    ) -> None:
        self.name = check_name("view", name)
        self.aggregate = aggregate
        what = f"view {name}"
        self.type = _state_type(aggregate, what)
        names = (records,) if isinstance(records, str) else tuple(records or ())
        self.records = frozenset(names) or frozenset(getattr(aggregate, "records", ()))
        """Names of records that it takes; empty: all."""
        self.kinds = tuple(kinds) if kinds is not None else (Recorded,)
        if not self.kinds or not all(isinstance(kind, type) and issubclass(kind, HistoryEvent) for kind in self.kinds):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"{what}: kinds must be classes of sf.events, as [sf.events.Recorded], got {self.kinds!r}")
        self.key, self.by = _key(by, what)
        self.given_key = by if callable(by) else None
        """The function that gives the key, if it is one."""
        if window is not None and window not in WIDTHS:
            raise UsageError(f"{what}: window must be minute, hour, day or None, got {window!r}")
        self.window = window or ""
        self.width = WIDTHS[self.window]
        self.keep = _keep(keep, self.window, what)
        if isinstance(top, bool) or not isinstance(top, int) or not 1 <= top <= MOST_KEYS:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"{what}: top must be 1 to {MOST_KEYS}, got {top!r}")
        self.top = top
        self.version = check_name("version of a view", version) if version else ""
        """As given; empty: what its code says."""
        self._value: Callable[[Any], Any] | None = getattr(aggregate, "value", None)

    @property
    def needs_run(self) -> bool:
        """Whether its events don't all tell whose they are, so that their runs have to be looked up."""
        return any("workflow" not in kind.__struct_fields__ for kind in self.kinds)

    def takes(self, event: HistoryEvent) -> bool:
        if not isinstance(event, self.kinds):
            return False
        return not (self.records and isinstance(event, Recorded) and event.name not in self.records)

    def value(self, state: Any) -> float:
        """By which keys are ranked. Raises what the view's code raises, `TypeError` if that is not a number, and
        `ValueError` if it is not finite."""
        value = state if self._value is None else self._value(state)
        if isinstance(value, bool) or not isinstance(value, int | float):
            what = "its aggregate needs value(state), to" if self._value is None else "value(state) must"
            raise TypeError(f"view {self.name}: {what} give a number, got a {type(value).__name__}")
        if not -sys.float_info.max <= value <= sys.float_info.max:
            raise ValueError(f"view {self.name}: value(state) must be a finite number, which a float can have")
        return value

    def __repr__(self) -> str:
        return f"<view {self.name}>"


def _part(value: object) -> str:
    return recordable(str(value)[:MAX_PART], 8 * MAX_PART)


def _key(by: Iterable[str] | Key, what: str) -> tuple[Callable[[ViewEvent], dict[str, str] | None], tuple[str, ...]]:
    if callable(by):
        given = by

        def key(event: ViewEvent) -> dict[str, str] | None:
            found = given(event)
            if found is not None and len(found) > MOST_PARTS:
                raise ValueError(f"the key of {what} has {len(found)} parts; the limit is {MOST_PARTS}")
            return None if found is None else {_part(name): _part(value) for name, value in found.items()}

        return key, ()
    if isinstance(by, str):
        raise UsageError(f"{what}: by must be a list of labels, as [{by!r}], or a function of an event")
    names = tuple(by)
    for name in names:
        if not isinstance(name, str) or not _LABEL.fullmatch(name):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"{what}: {name!r} in by can't be a label: use letters, digits and _")

    def labels(event: ViewEvent) -> dict[str, str]:
        return {name: event.label(name)[:MAX_PART] for name in names}

    return labels, names


def _keep(keep: float | timedelta | None, window: str, what: str) -> int:
    """Ms for which windows are kept; 0 if there is one only."""
    if not window:
        if keep is not None:
            raise UsageError(f"{what}: keep is for views with a window")
        return 0
    if keep is None:
        return KEPT[window]
    seconds = seconds_of(keep)
    if seconds is None or not 0 < seconds * 1000 <= MOST_WINDOWS * WIDTHS[window]:
        limit = f"for at most {MOST_WINDOWS} windows"
        raise UsageError(f"{what}: keep must be seconds or a timedelta, {limit}, got {keep!r}")
    return round(seconds * 1000)


def _state_type(aggregate: object, what: str) -> Any:
    """The type of its states. Raises `UsageError` if something is missing, `PayloadInvalid` if that can't be stored."""
    missing = [name for name in ("zero", "fold", "merge") if not callable(getattr(aggregate, name, None))]
    if missing:
        raise UsageError(f"{what} needs zero(), fold(state, event) and merge(one, other): {', '.join(missing)} missing")
    declared = getattr(aggregate, "state", None)
    if declared is None:
        try:
            declared = typing.get_type_hints(cast("Any", aggregate).zero).get("return", Any)
        except NameError as error:
            raise UsageError(f"the annotations of {what} can't be resolved: {error}") from error
    codec.decoder_for(declared)
    return declared
