"""What a start asks for besides its input: when the run begins, and how long it may take.

Owns: these options, checked, as the word that the run's header has. Must not: send anything, look at a clock: that of
the server counts. Called by: the client, the sandbox.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from streamflow.errors import UsageError
from streamflow.model.codec import Parameters
from streamflow.model.durations import seconds_of
from streamflow.model.start_word import MAX_MS, NOTHING, StartWord
from streamflow.workflow.app import Reducer


def asked_for(
    workflow: object,
    delay: float | timedelta | None = None,
    at: datetime | None = None,
    timeout: float | timedelta | None = None,
) -> StartWord:
    """Raises `UsageError`."""
    if delay is None and at is None and timeout is None:
        return NOTHING
    if isinstance(workflow, Reducer):
        raise UsageError(f"reducer {workflow.name} can't be started with delay, at or timeout: let it set a timer")
    if delay is not None and at is not None:
        raise UsageError("a start takes delay or at, not both")
    if at is not None and at.tzinfo is None:
        raise UsageError(f"at: {at} has no time zone: use datetime.now(UTC) and the like")
    begins = 0 if at is None else max(1, round(at.timestamp() * 1000))
    return StartWord(
        begins,
        0 if timeout is None else _ms("timeout", timeout, 1),
        delay=0 if delay is None else _ms("delay", delay, 0),
    )


def _ms(name: str, value: float | timedelta, least: int) -> int:
    seconds = seconds_of(value)
    ms = -1 if seconds is None else round(seconds * 1000)
    if not least <= ms <= MAX_MS:
        more = "more than 0" if least else "0 or more"
        raise UsageError(f"{name} must be {more} seconds, or a timedelta, and at most 100 years, got {value!r}")
    return ms


def own_arguments(parameters: Parameters | None, options: dict[str, Any]) -> dict[str, Any]:
    """Those of the given options that are parameters of the workflow itself: its arguments, by keyword. They are taken
    from `options`."""
    if parameters is None:
        return {}
    return {name: options.pop(name) for name in [*options] if options[name] is not None and name in parameters.names}
