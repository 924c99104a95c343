"""Payloads and events as JSON, for people and for `--json`, without the types of the app.

Owns: the plain form of opaque MessagePack. Must not: raise for a payload, whatever it contains.
Called by: the timeline, `tail`, `show --json`, exported histories.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec
from msgspec import Raw

from streamflow.errors import Failure
from streamflow.events import AnyEvent, HistoryEvent, gone_bytes
from streamflow.model.references import shown_value


def plain(payload: Raw | bytes) -> Any:
    """Data for `json.dumps`: values without a JSON type become text, an undecodable payload `{"bytes": size}`, and one
    that went with its run's record `{"gone": size}`. A reference to storage says what it stands for."""
    if gone := gone_bytes(payload):
        return {"gone": gone}
    try:
        value = msgspec.msgpack.decode(payload)
        return msgspec.to_builtins(value, str_keys=True, enc_hook=shown_value)
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError):
        return {"bytes": len(memoryview(payload))}


def plain_failure(failure: Failure) -> dict[str, Any]:
    """A failure's fields by name, because it is recorded as an array; empty ones are left out."""
    fields: dict[str, Any] = {"kind": failure.kind, "message": failure.message, "traceback": failure.traceback}
    if failure.notes:
        fields["notes"] = list(failure.notes)
    if failure.fields:
        fields["fields"] = msgspec.to_builtins(failure.fields, str_keys=True, enc_hook=str)
    for name, other in (("cause", failure.cause), ("context", failure.context)):
        if other is not None:
            fields[name] = plain_failure(other)
    if failure.members:
        fields["members"] = [plain_failure(member) for member in failure.members]
    return fields


def event_json(at: int, run_id: str, event: AnyEvent) -> dict[str, Any]:
    """One event as `tail --json` and `show --json` print it: its tag under `event`, payloads as JSON."""
    return {"at": at, "run_id": run_id, **_fields(event)}


def _fields(event: HistoryEvent) -> dict[str, Any]:
    fields: dict[str, Any] = {"event": type(event).__struct_config__.tag}
    for name in event.__struct_fields__:
        if name == "history":  # of a fork: what it shares is before it, or in the log of the other run
            continue
        value = getattr(event, name)
        key = "child" if name == "run_id" else name
        if isinstance(value, Raw):
            fields[key] = plain(value)
        elif isinstance(value, Failure):
            fields[key] = plain_failure(value)
        elif isinstance(value, msgspec.Struct):
            fields[key] = msgspec.structs.asdict(value)
        elif isinstance(value, list):  # RunContinued: what it carries over
            items = cast("list[Any]", value)
            fields[key] = [_fields(item) if isinstance(item, HistoryEvent) else item for item in items]
        else:
            fields[key] = value
    return fields
