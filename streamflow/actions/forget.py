"""Forget: delete an ended run and its history.

Owns: its words. Must not: delete anything itself. Called by: one, many, its command.
"""

# The handle's incarnation is part of what is deleted.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from typing import Any

from streamflow.actions.action import Action, Runs
from streamflow.client.run import Run
from streamflow.errors import RunError, RunNotFound
from streamflow.model.record import OPEN, Status


class Forget(Action, frozen=True, kw_only=True, tag="forget"):
    name = "forget"
    statuses = frozenset(Status) - OPEN
    done = "deleted"

    def question(self, what: str) -> str:
        return f"Delete {what}, with history and published values? Nothing brings them back."

    async def do(self, client: Runs, run: Run[Any], by: str) -> None:
        if not await client._forget(run.id, run._incarnation):
            raise RunNotFound(f"there is no run {run.id}", run.id)

    def did(self, run_id: str, value: None) -> str:
        return f"deleted {run_id}"

    def plain(self, run_id: str, value: None) -> dict[str, Any]:
        return {"run_id": run_id, "forgotten": True, "reason": ""}

    def is_moot(self, error: Exception) -> bool:
        return isinstance(error, RunError)  # it isn't there, or goes on

    def took_effect(self, status: Status | None) -> bool:
        return status is None
