"""Purge: move an ended run into the archive before its retention is over.

Owns: its words. Must not: write or delete anything itself. Called by: one, many, its command.
"""

# The handle's incarnation is part of what is moved.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from typing import Any

from streamflow.actions.action import Action, Runs
from streamflow.client.run import Run
from streamflow.errors import RunError, RunNotFound
from streamflow.model.record import OPEN, Status


class Purge(Action, frozen=True, kw_only=True, tag="purge"):
    name = "purge"
    statuses = frozenset(Status) - OPEN
    done = "archived"

    def question(self, what: str) -> str:
        return f"Move {what} into the archive? The ids are free again, and `streamflow restore` brings runs back."

    async def do(self, client: Runs, run: Run[Any], by: str) -> None:
        if not await client._purge(run.id, run._incarnation):
            raise RunNotFound(f"there is no run {run.id} on the server", run.id)

    def did(self, run_id: str, value: None) -> str:
        return f"{run_id} is in the archive"

    def plain(self, run_id: str, value: None) -> dict[str, Any]:
        return {"run_id": run_id, "archived": True}

    def is_moot(self, error: Exception) -> bool:
        return isinstance(error, RunError)  # it isn't there, or goes on

    def took_effect(self, status: Status | None) -> bool:
        return status is None
