"""Restore: put a run back from the archive onto the server.

Owns: its words. Must not: read or write anything itself. Called by: one, many, its command.
"""

# The handle's incarnation is part of what is brought back.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from typing import Any

from streamflow.actions.action import Action, Runs
from streamflow.client.run import Run
from streamflow.errors import RunNotFound
from streamflow.model.record import OPEN, Status


class Restore(Action, frozen=True, kw_only=True, tag="restore"):
    name = "restore"
    statuses = frozenset(Status) - OPEN
    done = "restored"
    archived = True

    def question(self, what: str) -> str:
        return f"Put {what} back from the archive? Their retention begins again."

    async def do(self, client: Runs, run: Run[Any], by: str) -> None:
        await client._restore(run.id, run._incarnation)

    def did(self, run_id: str, value: None) -> str:
        return f"{run_id} is back on the server"

    def plain(self, run_id: str, value: None) -> dict[str, Any]:
        return {"run_id": run_id, "restored": True}

    def is_moot(self, error: Exception) -> bool:
        return isinstance(error, RunNotFound)  # somebody has forgotten it meanwhile

    def took_effect(self, status: Status | None) -> bool:
        return status is not None
