"""Resetting and removing groups of subscribers: with a line in the log, as all that operators do.

Owns: the line, and whether it is allowed. Must not: ask anybody, print. Called by: the command `groups`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamflow.actions.audit import audit_whole, me
from streamflow.errors import StoreUnavailable, StreamflowError

if TYPE_CHECKING:
    from streamflow.client.client import Client
    from streamflow.client.groups import From


async def reset_group(client: Client, name: str, to: From, *, by: str = "", reason: str = "") -> None:
    """Have a group go on from elsewhere. `by`: who does it, by default user@host. Raises what the client raises."""
    try:
        await client.reset_group(name, to)
    except (StreamflowError, TimeoutError) as error:
        _failed(client, "reset", name, by, reason, error)
        raise
    audit_whole("reset", client.namespace, "group", name, by or me(), reason, "done", f"to {to}")


async def remove_group(client: Client, name: str, *, by: str = "", reason: str = "") -> bool:
    """Remove a group. Returns False if there was none. Raises what the client raises."""
    try:
        was_there = await client.remove_group(name)
    except (StreamflowError, TimeoutError) as error:
        _failed(client, "remove", name, by, reason, error)
        raise
    audit_whole("remove", client.namespace, "group", name, by or me(), reason, "done" if was_there else "already")
    return was_there


def _failed(client: Client, action: str, name: str, by: str, reason: str, error: Exception) -> None:
    outcome = "unknown" if isinstance(error, StoreUnavailable | TimeoutError) else "failed"
    audit_whole(action, client.namespace, "group", name, by or me(), reason, outcome, str(error))
