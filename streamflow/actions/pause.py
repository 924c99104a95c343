"""Pause: have a run begin nothing new until it is resumed.

Owns: its words, and when it has taken effect. Must not: wait. Called by: one, many, its command.
"""

from __future__ import annotations

from typing import Any

from streamflow.actions.action import Action, Runs
from streamflow.client.run import Run
from streamflow.model.record import OPEN, Status


class Pause(Action, frozen=True, kw_only=True, tag="pause"):
    reason: str = ""

    name = "pause"
    statuses = OPEN
    done = "asked to pause"
    posts = True

    def question(self, what: str) -> str:
        return f"Pause {what}? What is under way ends, and nothing new begins until streamflow resume."

    async def do(self, client: Runs, run: Run[Any], by: str) -> None:
        await run.pause(reason=self.reason, by=by)

    def did(self, run_id: str, value: None) -> str:
        return f"asked {run_id} to pause: what is under way ends, nothing new begins"

    def plain(self, run_id: str, value: None) -> dict[str, Any]:
        return {"run_id": run_id, "requested": self.name}

    def took_effect(self, status: Status | None) -> bool:
        return status == Status.PAUSED
