"""Cancel: ask a run to clean up and end as cancelled.

Owns: its words, and when it has taken effect. Must not: wait. Called by: one, many, its command.
"""

from __future__ import annotations

from typing import Any

from streamflow.actions.action import Action, Runs, read_first, why_of
from streamflow.client.run import Run
from streamflow.model.record import OPEN, Status
from streamflow.model.waits import Wait


class Cancel(Action, frozen=True, kw_only=True, tag="cancel"):
    reason: str = ""

    name = "cancel"
    statuses = OPEN
    done = "asked to cancel"
    posts = True
    may_be_delayed = True

    def question(self, what: str) -> str:
        return f"Cancel {what}? Clean-up code runs, sagas are undone, and children are cancelled, too."

    async def do(self, client: Runs, run: Run[Any], by: str) -> None:
        await run.cancel(self.reason)

    def did(self, run_id: str, value: None) -> str:
        return f"asked {run_id} to cancel"

    def plain(self, run_id: str, value: None) -> dict[str, Any]:
        return {"run_id": run_id, "requested": self.name}

    def delayed(self, run_id: str, wait: Wait | None, *, hibernates: bool) -> str:
        if hibernates:
            return read_first(wait)
        if wait is None:
            return ""
        return (
            f"it waits for {wait.name}{why_of(wait)}; its clean-up code needs that, so it ends when storage works "
            f"again. `streamflow terminate {run_id}` ends it now, without clean-up"
        )

    def took_effect(self, status: Status | None) -> bool:
        return status not in OPEN
