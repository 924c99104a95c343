"""Doing an action to one run: whether it is allowed, doing it, reading its effect back, the line in the log.

Owns: the order of these. Must not: know a single action, ask anybody. Called by: the commands.
"""

# It is the other half of the client's interface for this.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import msgspec

from streamflow.actions.action import Action, Runs
from streamflow.actions.audit import audit, me, outcome_of
from streamflow.client.listing import RunDescription
from streamflow.errors import RunNotFound, StreamflowError, UsageError

FIRST_PAUSE = 0.02
LONGEST_PAUSE = 0.5
"""Seconds between two reads of the run."""


class ReadOnly(UsageError):
    """Nothing may be done here: it was opened to look only."""


class Outcome(msgspec.Struct, frozen=True):
    """The result of an action. `text`: what has been done; `value`: what the run's owner answered. `run`: as it was
    read back after it, None if it wasn't, or if there is no such run any more; `took_effect`: whether that shows it.
    `delayed`: why it takes effect only later, a part of `text`; empty if it doesn't."""

    run_id: str
    text: str
    value: Any = None
    run: RunDescription | None = None
    took_effect: bool = False
    delayed: str = ""


async def perform(
    client: Runs,
    action: Action,
    run_id: str,
    *,
    by: str = "",
    read_only: bool = False,
    read_back: float | None = None,
) -> Outcome:
    """Do it to a run. `by`: who does it, by default user@host. `read_only`: refuse. `read_back`: seconds to look until
    the run shows it (0: look once); None: don't look, as a command that only asks.

    Raises `ReadOnly`, and what the action raises (`RunNotFound`, `RunEnded`, `NotRetried` …).
    """
    by = by or me()
    namespace = getattr(client, "namespace", "")
    if read_only:
        raise ReadOnly(f"{action.name} of run {run_id} is not allowed: this is read-only")
    run = client.run(run_id)
    try:
        value = await action.do(client, run, by)
    except (StreamflowError, TimeoutError) as error:
        audit(action, namespace, run_id, by, outcome_of(action, error), str(error))
        raise
    audit(action, namespace, run_id, by, "done")
    outcome = Outcome(run_id, action.did(run_id, value), value)
    if action.may_be_delayed:
        with contextlib.suppress(StreamflowError):  # it is only a remark
            wait, hibernates = await client._storage_wait(run_id)
            if delayed := action.delayed(run_id, wait, hibernates=hibernates):
                outcome = Outcome(run_id, f"{outcome.text}\n{delayed}", value, delayed=delayed)
    if read_back is None:
        return outcome
    deadline, pause = time.monotonic() + read_back, FIRST_PAUSE
    while True:
        try:
            found = await run.describe()
        except RunNotFound:
            found = None
        status = None if found is None else found.status
        if (shows := action.took_effect(status)) or time.monotonic() >= deadline:
            return msgspec.structs.replace(outcome, run=found, took_effect=shows)
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
