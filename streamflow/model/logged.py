"""The form of a transition in a shard's log: what happened, and how large it was.

Owns: which parts of events are too large for the log, what stands there in their place, and which element of the run's
record has them. Must not: read anything.
Called by: the owner's batches (encode), followers of a run and `tail` (decode).

A transition without large parts is logged as it is, in the bytes of the record, and costs nothing here. Any other is
encoded a second time, and its payloads are only in the record: they go when the run is forgotten. Which fields of
events may be large follows from their types, so a new event needs nothing here.

While a namespace has groups of subscribers, every transition is logged whole, and says what it is of (`Origin`): what
they have not read needs no record, so the run may be forgotten meanwhile.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

import msgspec
from msgspec import Raw

from streamflow.errors import Failure
from streamflow.events import (
    AnyEvent,
    HistoryEvent,
    RunFailed,
    RunForked,
    RunResumed,
    RunRetried,
    RunStuck,
    Transition,
    gone_payload,
)
from streamflow.model.causes import MAX_MESSAGE, condensed

LARGE = 512
"""Bytes of a payload, or of a failure, above which the log has only its size."""
TEXT = MAX_MESSAGE
"""Characters of a reason, and of the message of a large failure, that the log has: as many as the views show."""
FEW = 8
"""Payloads that are looked at one by one."""


class LoggedTransition(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A transition as the log has it. With a `number`, parts of it are only in the record of the run that was `created`
    then (ms): in the transition that made the version `number` of its header. Decoded as a `Transition` it is one."""

    at: int
    events: list[AnyEvent]
    number: int = 0
    created: int = 0

    def is_of(self, transition: Transition) -> bool:
        """Whether that is the whole of it. After a failover another one may have its number."""
        return self.at == transition.at and [type(event) for event in self.events] == [
            type(event) for event in transition.events
        ]


class Origin(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a whole transition in the log is of. `commit`: the id of the commit that decided it, which is the same if it
    had to be committed again; `number`: the version of the header that it has made; `created`: the run's, ms."""

    commit: str
    number: int
    created: int
    workflow: str
    tenant: str = ""


class SubscribedTransition(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A transition as subscribers read it: as `LoggedTransition` without an `origin`, and with one it is whole."""

    at: int
    events: list[AnyEvent]
    number: int = 0
    created: int = 0
    unrecorded: Raw = Raw()
    """Not read: what no event tells. Anything, also null."""
    origin: Origin | None = None


_encoder = msgspec.msgpack.Encoder()
_subscribed = msgspec.msgpack.Decoder(SubscribedTransition)
_TWO, _FIVE = b"\x92", b"\x95"
"""The first bytes of encoded transitions: arrays of so many elements."""
_decoder = msgspec.msgpack.Decoder(LoggedTransition)
_type_of: Callable[[AnyEvent], Any] = type


def encode_logged(transition: Transition, number: int, created: int) -> bytes:
    """The bytes for the log if they are not those of the transition itself, else empty.

    `number`, `created`: as in `LoggedTransition`. Only worth a call if the encoded transition is larger than `LARGE`.
    """
    if not _has_large(transition.events):
        return b""
    events = [_without_large(event) for event in transition.events]
    return _encoder.encode(LoggedTransition(transition.at, events, number, created))


def without_large(transition: Transition) -> Transition:
    """As the log has it."""
    if not _has_large(transition.events):
        return transition
    return Transition(transition.at, [_without_large(event) for event in transition.events])


def decode_logged(data: bytes) -> LoggedTransition:
    """Raises `msgspec.DecodeError`, `RecursionError` or `UnicodeDecodeError` if `data` is not a logged transition."""
    return _decoder.decode(data)


def encode_origin(data: bytes, origin: Origin) -> bytes:
    """What goes behind the encoded transition `data` in the log, as `lua/commit.lua` wants it, so that it says what it
    is of: more elements of its array, of which it has six then. Empty if these aren't the bytes of a transition."""
    if data.startswith(_TWO):
        return b"+\x00\x00\xc0" + _encoder.encode(origin)
    return b"+" + _encoder.encode(origin) if data.startswith(_FIVE) else b""


def decode_subscribed(data: bytes) -> SubscribedTransition:
    """Raises as `decode_logged`."""
    return _subscribed.decode(data)


def _has_large(events: Sequence[AnyEvent]) -> bool:
    """Whether any part is too large. Transitions of many small events come here, too: hundreds of one type in a row."""
    for kind, group in groupby(events, _type_of):
        payload_of = _PAYLOAD.get(kind)
        if payload_of is None:
            if kind in _PARTS and any(_without_large(event) is not event for event in group):
                return True
            continue
        payloads = list(map(payload_of, group))
        if len(payloads) > FEW and len(b"".join(payloads)) <= LARGE:
            continue
        if max(map(len, map(memoryview, payloads))) > LARGE:
            return True
    return False


def _without_large(event: Any) -> Any:
    """The event itself if nothing of it is too large."""
    changed: dict[str, Any] = {}
    for name, cut in _PARTS.get(event.__class__, ()):
        value = getattr(event, name)
        kept = cut(value)
        if kept is not value:
            changed[name] = kept
    return msgspec.structs.replace(event, **changed) if changed else event


# --- what is kept of each kind of part --------------------------------------------------------------------------------


def _cut_payload(payload: Raw) -> Raw:
    size = len(memoryview(payload))
    return gone_payload(size) if size > LARGE else payload


def _cut_failure(failure: Failure | None) -> Failure | None:
    if failure is None:
        return None
    size = len(_encoder.encode(failure))
    if size <= LARGE:
        return failure
    return Failure(failure.kind, failure.message[:TEXT], notes=(_note(size),))


def _cut_why(failure: Failure | None) -> Failure | None:
    """Of a run's failure also what it comes from: the views count it, and read the log after a takeover."""
    if failure is None:
        return None
    size = len(_encoder.encode(failure))
    return failure if size <= LARGE else condensed(failure, _note(size))


def _note(size: int) -> str:
    return f"the rest of this error's {size:,} bytes is gone with the history of its run"


def _cut_text(text: str) -> str:
    return text[:TEXT] if len(text) > TEXT else text


def _cut_events(events: list[HistoryEvent]) -> list[HistoryEvent]:
    kept = [_without_large(event) for event in events]
    return kept if any(new is not old for new, old in zip(kept, events, strict=True)) else events


def _cut_history(history: list[Any]) -> list[Any]:
    return [] if history else history


Cut = Callable[[Any], Any]


def _cut_for(name: str, type_: Any) -> Cut | None:
    """What cuts a field of an event; None if it can't be large."""
    if type_ is Raw:
        return _cut_payload
    if type_ is Failure or Failure in typing.get_args(type_):
        return _cut_failure
    if type_ is str and name == "reason":
        return _cut_text
    of = typing.get_args(type_)
    is_events = typing.get_origin(type_) is list and any(
        isinstance(member, type) and issubclass(member, HistoryEvent)
        for item in of
        for member in (item, *typing.get_args(item))
    )
    return _cut_events if is_events else None


def _parts() -> dict[type, tuple[tuple[str, Cut], ...]]:
    found: dict[type, tuple[tuple[str, Cut], ...]] = {}
    for kind in typing.get_args(AnyEvent):
        cuts = [(field.name, _cut_for(field.name, field.type)) for field in msgspec.structs.fields(kind)]
        if kind is RunForked:  # what it shares is in the log of the other run
            cuts = [(name, _cut_history if name == "history" else cut) for name, cut in cuts]
        if kind in (RunFailed, RunStuck, RunResumed, RunRetried):
            cuts = [(name, _cut_why if cut is _cut_failure else cut) for name, cut in cuts]
        if parts := tuple((name, cut) for name, cut in cuts if cut is not None):
            found[kind] = parts
    return found


_PARTS = _parts()
"""By type of event: its fields that may be large, and what cuts them."""
_PAYLOAD: dict[type, Callable[[Any], Raw]] = {
    kind: attrgetter(parts[0][0]) for kind, parts in _PARTS.items() if len(parts) == 1 and parts[0][1] is _cut_payload
}
"""By type of event, for those of which only one payload may be large: how to get it."""
