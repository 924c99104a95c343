"""Pausing a queue or a workflow as a whole, and having it go on: with a line in the log, as all that operators do.

Owns: which call does it, whether it is allowed, and the line. Must not: ask anybody, print. Called by: the commands
`pause` and `resume`.
"""

from __future__ import annotations

from typing import Literal, Protocol

from streamflow.actions.audit import audit_whole, me
from streamflow.actions.one import ReadOnly
from streamflow.errors import StoreUnavailable, StreamflowError
from streamflow.store.pauses import Pause

Whole = Literal["queue", "workflow"]


class Pausing(Protocol):
    """What these need of a client. A sandbox has those of workflows."""

    async def pause_queue(self, queue: str, *, reason: str = "", by: str = "") -> Pause | None: ...
    async def resume_queue(self, queue: str) -> Pause | None: ...
    async def pause_workflow(self, workflow: str, *, reason: str = "", by: str = "") -> Pause | None: ...
    async def resume_workflow(self, workflow: str) -> Pause | None: ...


async def pause_whole(
    client: Pausing, kind: Whole, name: str, *, reason: str = "", by: str = "", read_only: bool = False
) -> Pause | None:
    """Have nothing new of it begin. Returns what had paused it before, which stays. `by`: who does it, by default
    user@host. Raises `ReadOnly`, and what the client raises."""
    by = by or me()
    return await _do(client, "pause", kind, name, reason, by, read_only)


async def resume_whole(
    client: Pausing, kind: Whole, name: str, *, by: str = "", read_only: bool = False
) -> Pause | None:
    """Have it go on. Returns what had paused it; None: nothing had."""
    return await _do(client, "resume", kind, name, "", by or me(), read_only)


async def _do(
    client: Pausing, action: str, kind: Whole, name: str, reason: str, by: str, read_only: bool
) -> Pause | None:
    if read_only:
        raise ReadOnly(f"{action} of {kind} {name} is not allowed: this is read-only")
    namespace = getattr(client, "namespace", "")
    try:
        if action == "pause":
            pause = client.pause_queue if kind == "queue" else client.pause_workflow
            before = await pause(name, reason=reason, by=by)
        else:
            resume = client.resume_queue if kind == "queue" else client.resume_workflow
            before = await resume(name)
    except (StreamflowError, TimeoutError) as error:
        outcome = "unknown" if isinstance(error, StoreUnavailable | TimeoutError) else "failed"
        audit_whole(action, namespace, kind, name, by, reason, outcome, str(error))
        raise
    is_new = (before is None) == (action == "pause")
    audit_whole(action, namespace, kind, name, by, reason, "done" if is_new else "already")
    return before
