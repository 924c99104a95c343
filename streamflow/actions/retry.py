"""Retry: have a failed run go on from where it failed, try a stuck one again, or give up an attempt that hangs.

Owns: its words, and which refusals mean that there is nothing to do. Must not: decide where a run goes on.
Called by: one, many, its command.
"""

from __future__ import annotations

from typing import Any

from streamflow.actions.action import Action, Runs
from streamflow.client.listing import RunSummary
from streamflow.client.retrying import Retried
from streamflow.client.run import Run
from streamflow.errors import NotRetried
from streamflow.model.record import OPEN, Status

MOST_STEPS = 5
"""Steps that are named."""
MOOT = ("NotFailed", "NotOpen", "ParentFailed")
"""Refusals of runs that aren't to be retried: they go on already, or their parent is the one to retry."""


class Retry(Action, frozen=True, kw_only=True, tag="retry"):
    """`step`, `anyway`, `alone`: as of `Run.retry`."""

    step: str | None = None
    reason: str = ""
    anyway: bool = False
    alone: bool = False

    name = "retry"
    statuses = frozenset({Status.FAILED, Status.STUCK})
    done = "retried"

    def question(self, what: str) -> str:
        if self.step is not None:
            return f"Give up the current attempt of step {self.step} of {what}, and begin the next one?"
        return f"Retry {what}, from where it went wrong? Recorded results are kept."

    def words(self) -> list[str]:
        step = [] if self.step is None else ["--step", self.step]
        return [*step, *super().words(), *["--anyway"] * self.anyway, *["--alone"] * self.alone]

    def check(self, run: RunSummary) -> str:
        if self.step is None:
            return super().check(run)
        return "" if run.status in OPEN else f"run {run.id} is {run.status}: it has no open step"

    async def do(self, client: Runs, run: Run[Any], by: str) -> Retried:
        return await run.retry(step=self.step, reason=self.reason, by=by, anyway=self.anyway, alone=self.alone)

    def did(self, run_id: str, value: Retried) -> str:
        named = [f"step {step.name}, attempt {step.attempt}" for step in value.steps[:MOST_STEPS]]
        if (more := len(value.steps) - MOST_STEPS) > 0:
            named.append(f"{more:,} more steps" if more > 1 else "1 more step")
        results = "1 result is kept" if value.kept == 1 else f"{value.kept:,} results are kept"
        text = f"{run_id} goes on: {'; '.join([*named, results])}"
        if value.parent is not None:
            text += f"\nits parent {value.parent} has taken its failure, and gets nothing from it any more"
        if value.held:
            text += f"\n{value.held}"
        return text

    def plain(self, run_id: str, value: Retried) -> dict[str, Any]:
        steps = [{"name": step.name, "seq": step.seq, "attempt": step.attempt} for step in value.steps]
        found = {"run_id": run_id, "kept": value.kept, "steps": steps, "parent": value.parent}
        return {**found, "held": value.held} if value.held else found

    def is_moot(self, error: Exception) -> bool:
        return super().is_moot(error) or (isinstance(error, NotRetried) and error.failure.kind in MOOT)

    def took_effect(self, status: Status | None) -> bool:
        return status not in self.statuses
