"""Terminate: force a run to end as cancelled, without running its clean-up code.

Owns: its words, and when it has taken effect. Must not: wait. Called by: one, many, its command.
"""

from __future__ import annotations

from typing import Any

from streamflow.actions.action import Action, Runs, read_first
from streamflow.client.run import Run
from streamflow.model.record import OPEN, Status
from streamflow.model.waits import Wait


class Terminate(Action, frozen=True, kw_only=True, tag="terminate"):
    reason: str = ""

    name = "terminate"
    statuses = OPEN
    done = "asked to end"
    posts = True
    may_be_delayed = True

    def question(self, what: str) -> str:
        return f"Terminate {what}? No clean-up code runs, and sagas are not compensated."

    async def do(self, client: Runs, run: Run[Any], by: str) -> None:
        await run.terminate(self.reason)

    def did(self, run_id: str, value: None) -> str:
        return f"asked for the termination of {run_id}"

    def plain(self, run_id: str, value: None) -> dict[str, Any]:
        return {"run_id": run_id, "requested": self.name}

    def delayed(self, run_id: str, wait: Wait | None, *, hibernates: bool) -> str:
        return read_first(wait) if hibernates else ""  # what else is in storage isn't needed

    def took_effect(self, status: Status | None) -> bool:
        return status not in OPEN
