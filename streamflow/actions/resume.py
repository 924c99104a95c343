"""Resume: have a paused run go on.

Owns: its words, and when it has taken effect. Must not: wait. Called by: one, many, its command.
"""

from __future__ import annotations

from typing import Any

from streamflow.actions.action import Action, Runs
from streamflow.client.run import Run
from streamflow.model.record import Status


class Resume(Action, frozen=True, kw_only=True, tag="resume"):
    name = "resume"
    statuses = frozenset({Status.PAUSED})
    done = "asked to resume"
    posts = True

    def question(self, what: str) -> str:
        return f"Resume {what}? Those whose workflow is paused go on with that."

    async def do(self, client: Runs, run: Run[Any], by: str) -> None:
        await run.resume(by=by)

    def did(self, run_id: str, value: None) -> str:
        return f"asked {run_id} to resume"

    def plain(self, run_id: str, value: None) -> dict[str, Any]:
        return {"run_id": run_id, "requested": self.name}

    def took_effect(self, status: Status | None) -> bool:
        return status != Status.PAUSED
