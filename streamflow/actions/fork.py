"""Fork: start a new run that shares the beginning of a run's history.

Owns: its words. Must not: decide where a history is cut. Called by: one, many, its command.
"""

from __future__ import annotations

from typing import Any

import msgspec

from streamflow.actions.action import Action, Runs
from streamflow.client.run import Run
from streamflow.model.record import Status


class Forked(msgspec.Struct, frozen=True):
    """`run_id`: of the fork. `created`: False if it existed already."""

    run_id: str
    created: bool


class Fork(Action, frozen=True, kw_only=True, tag="fork"):
    """`at`, `id`: as of `Run.fork`. `payload`: another input, encoded; empty for none."""

    at: int | None = None
    payload: bytes = b""
    id: str | None = None
    reason: str = ""

    name = "fork"
    statuses = frozenset(Status) - {Status.PENDING}
    done = "forked"

    def question(self, what: str) -> str:
        where = "where it failed, was cancelled or is" if self.at is None else f"before event {self.at}"
        return f"Fork {what}? Each gets a new run that goes on from {where}, and stays as it is."

    def words(self) -> list[str]:
        at = [] if self.at is None else ["--at", str(self.at)]
        return [*at, *([] if self.id is None else ["--id", self.id]), *super().words()]

    async def do(self, client: Runs, run: Run[Any], by: str) -> Forked:
        fork = await run._fork(self.at, self.payload or None, self.id, self.reason, by)  # pyright: ignore[reportPrivateUsage]
        return Forked(fork.id, fork.created)

    def did(self, run_id: str, value: Forked) -> str:
        return f"{value.run_id} is a fork of {run_id}" + ("" if value.created else ", and was started before")

    def plain(self, run_id: str, value: Forked) -> dict[str, Any]:
        return {"run_id": value.run_id, "created": value.created, "forked_from": run_id}
