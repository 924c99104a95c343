"""The runs whose status has changed last: one read, of what the leading daemon has merged.

Owns: what that says. Must not: read runs or listings (`listing.py` does). Called by: `Client.newest`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from streamflow.client.listing import instant
from streamflow.model.record import Status

VIEW = "newest"


class Change(msgspec.Struct, frozen=True):
    """The last change of a run's status. It may have been forgotten since."""

    id: str
    workflow: str
    status: Status
    at: datetime


class Changes(msgspec.Struct, frozen=True):
    """`runs`: newest first, at most 200, each once. `since`: all runs whose status has changed later are there; None if
    these are all runs that the views have counted. `as_of`: when they were merged; None if they never were."""

    runs: list[Change]
    since: datetime | None = None
    as_of: datetime | None = None


def changes_in(view: bytes | None) -> Changes:
    """From the stored view; None before the first merge. Raises `msgspec.DecodeError` if somebody has damaged it."""
    if view is None:
        return Changes([])
    stored: dict[str, Any] = msgspec.json.decode(view)
    value = stored["value"]
    runs = [Change(row["run_id"], row["workflow"], Status(row["status"]), instant(row["at"])) for row in value["runs"]]
    return Changes(runs, instant(value["since"]) if value["since"] else None, instant(stored["as_of"]))
