"""The log line of each run that has failed, or is stuck: which one, why, and where.

Owns: what the line says, and how many there are a second. Must not: say anything before the decision is committed.
Called by: the owner, for each accepted batch.

A daemon that dies between the commit and its line says nothing, and the next owner doesn't say it again: who has to see
each failure reads the view `causes`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import NamedTuple

from streamflow.errors import Failure
from streamflow.model.causes import Cause, cause_of

_log = logging.getLogger("streamflow.runs")

LINES = 50
"""Lines a second and daemon: an outage makes thousands of runs fail, for one cause."""


class Noted(NamedTuple):
    """A run that a batch has made fail, or be stuck for a `reason`: with a failure for a bug."""

    run_id: str
    workflow: str
    failure: Failure | None = None
    reason: str = ""


class FailureLog:
    def __init__(self) -> None:
        self._second = 0.0
        """When the present second began (monotonic s)."""
        self._lines = 0
        self._left_out = 0

    def write(self, noted: Sequence[Noted]) -> None:
        """In the event loop: what is left out is said when the second is over."""
        for run in noted:
            now = time.monotonic()
            if now - self._second >= 1:
                self._second, self._lines = now, 0
            self._lines += 1
            if self._lines <= LINES:
                _write(run)
            else:
                if not self._left_out:
                    asyncio.get_running_loop().call_later(self._second + 1 - now, self.say_left_out)
                self._left_out += 1

    def say_left_out(self) -> None:
        count, self._left_out = self._left_out, 0
        _log.warning(
            "and %d more run%s failed or got stuck within that second: status has the causes", count, "s" * (count != 1)
        )


def _write(run: Noted) -> None:
    fields: dict[str, object] = {"run": run.run_id, "workflow": run.workflow}
    if run.reason and run.failure is not None:
        text = "run %s of %s is stuck, its code raised %s; it goes on when other code is deployed, "
        text += "or with streamflow retry %s"
        _log.warning(text, run.run_id, run.workflow, run.reason, run.run_id, extra=fields)
        return
    if run.failure is None:
        text = "run %s of %s is stuck until a daemon has code that fits its history: %s"
        _log.warning(text, run.run_id, run.workflow, run.reason, extra=fields)
        return
    cause = cause_of(run.run_id, run.workflow, run.failure)
    if cause.step and cause.run_id == run.run_id:
        fields |= {"step": cause.step, "attempt": cause.attempt}
    source = source_of(cause, run.run_id)
    text = "run %s of %s failed: %s (%s)" if source else "run %s of %s failed: %s%s"
    _log.warning(text, run.run_id, run.workflow, cause, source, extra=fields)


def source_of(cause: Cause, run_id: str) -> str:
    """Which child, step and line a cause is from: `step charge, attempt 5, pay.py:48 in charge`."""
    parts = [f"run {cause.run_id} of {cause.workflow}"] if cause.run_id != run_id else []
    parts += [f"step {cause.step}, attempt {cause.attempt}"] if cause.step else []
    return ", ".join([*parts, cause.where] if cause.where else parts)
