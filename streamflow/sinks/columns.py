"""The columns of an event in a table: what an analyst asks for first, beside the whole of it as JSON.

Owns: their names, and which field of which event is in them. Must not: know a table or a file.
Called by: the sinks that write tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamflow.sinks.rows import exact, json_bytes, row_of

if TYPE_CHECKING:
    from streamflow.client.committed import CommittedEvent

FIGURES = ("seq", "attempt", "ms")
"""Fields of many events that are columns under their own names."""
EPOCH = "1970-01-01T00:00:00.000Z"
"""When a run was created that began under a release which didn't record it."""


def columns_of(event: CommittedEvent) -> dict[str, Any]:
    """`id`, `kind`, `run_id`, `run_created`, `workflow`, `tenant`, `at`, `name`, `seq`, `attempt`, `ms`, `error_kind`,
    `error`, `shard`, `log_offset`, `number`, and `data`: all fields of the event, as JSON. Other text has no NUL, which
    databases refuse; times are text in ISO 8601; what an event doesn't have is None."""
    row = row_of(event)
    data = row["data"]
    kind, message = _error(data)
    columns = {
        "id": row["id"],
        "kind": row["kind"],
        "run_id": row["run_id"],
        "run_created": row["created"] or EPOCH,
        "workflow": row["workflow"],
        "tenant": row["tenant"],
        "at": row["at"],
        "name": _text(data.get("name")),
        **{name: _number(data.get(name)) for name in FIGURES},
        "error_kind": _text(kind),
        "error": _text(message),
        "shard": row["shard"],
        "log_offset": row["offset"],
        "number": row["number"],
    }
    columns["data"] = data
    return columns


def _error(data: dict[str, Any]) -> tuple[str | None, str | None]:
    failure: Any = data.get("failure")
    if isinstance(failure, dict):
        return failure.get("kind"), failure.get("message")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    reason = data.get("reason")
    return None, reason or None


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else without_nul(exact(str(value)))


def _number(value: Any) -> int | float | None:
    return value if isinstance(value, int | float) else None


def without_nul(text: str) -> str:
    """NUL as its picture: a database's text can't have it."""
    return text.replace("\0", "\u2400")


def json_without_nul(value: Any) -> bytes:
    """JSON whose strings have no NUL, also not as an escape."""
    encoded = json_bytes(value)
    if b"\\u0000" not in encoded:
        return encoded
    return json_bytes(_replaced(value))


def _replaced(value: Any) -> Any:
    if isinstance(value, str):
        return without_nul(value)
    if isinstance(value, dict):
        return {_replaced(key): _replaced(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list | tuple):
        return [_replaced(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return value
