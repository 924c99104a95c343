"""Committed events as plain data and as JSON: one form for all sinks.

Owns: the fields that every sink writes of an event, and what makes them safe for every reader. Must not: know a
target. Called by: the sinks.

The JSON is that of RFC 7493 (I-JSON), which every parser reads alike: UTF-8 without lone surrogates, and integers
beyond 2^53 as text, because a number of that size is another one in JavaScript and in what reads numbers as doubles.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import msgspec

from streamflow.model.plain import event_json

if TYPE_CHECKING:
    from streamflow.client.committed import CommittedEvent

EXACT = 2**53 - 1
"""The largest integer that is the same number for every reader of JSON."""

_MAYBE_INEXACT = re.compile(rb"\d{16}")
_ENCODER = msgspec.json.Encoder()


def row_of(event: CommittedEvent) -> dict[str, Any]:
    """All of an event as data that `json_bytes` encodes: `id`, `kind`, `run_id`, `created` (of the run), `workflow`,
    `tenant`, `at`, `shard`, `offset`, `number` and `data`, which has the fields of this kind of event by name."""
    return {
        "id": event.id,
        "kind": event.kind,
        "run_id": event.run_id,
        "created": moment(event.created),
        "workflow": event.workflow,
        "tenant": event.tenant,
        "at": event.at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "shard": event.shard,
        "offset": event.offset,
        "number": event.number,
        "data": data_of(event),
    }


def data_of(event: CommittedEvent) -> dict[str, Any]:
    """The fields of this kind of event, payloads as JSON: what `streamflow show --json` prints of it."""
    fields = event_json(0, event.run_id, event.event)
    for name in ("at", "run_id", "event"):
        fields.pop(name, None)
    return fields


def json_bytes(value: Any) -> bytes:
    """JSON on one line, safe for every reader. Never raises for what `row_of` gives."""
    try:
        encoded = _ENCODER.encode(value)
    except (UnicodeEncodeError, TypeError, ValueError, OverflowError):
        return _ENCODER.encode(exact(value))
    if _MAYBE_INEXACT.search(encoded):
        return _ENCODER.encode(exact(value))
    return encoded


def exact(value: Any) -> Any:
    """A copy in which integers beyond 2^53 are text, and half a surrogate pair is an escape."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, bool) or value is None or isinstance(value, float):
        return value
    if isinstance(value, int):
        return value if -EXACT <= value <= EXACT else str(value)
    if isinstance(value, dict):
        return {exact(str(key)): exact(item) for key, item in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [exact(item) for item in cast("list[Any]", value)]
    return exact(str(value))


def moment(ms: int) -> str | None:
    """Milliseconds since the epoch as text; None for 0, which is unknown."""
    if not ms:
        return None
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
