"""What a start asks for besides its input: when the run begins, how long it may take, what becomes of one with its id.

Owns: these options, checked, as the word that the run's header has, and what follows from the reply. Must not: look at
a clock: that of the server counts. Called by: the client, the sandbox.
"""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

from streamflow.client.pipelines import CREATED, Batcher
from streamflow.errors import RunConflict, RunExists, UsageError
from streamflow.model.codec import Parameters
from streamflow.model.durations import seconds_of
from streamflow.model.record import Header, decode_header
from streamflow.model.sleeping import UNKNOWN_WORKFLOW
from streamflow.model.start_word import MAX_MS, NOTHING, StartWord
from streamflow.store.kernel import Start
from streamflow.workflow.app import Reducer

OnExisting = Literal["existing", "reject", "new"]
"""What a start does if there is a run of its id: returns that, raises `RunExists`, or begins a new one in its place if
it has ended."""
IDENTITY_BYTES = 8


def asked_for(
    workflow: object,
    delay: float | timedelta | None = None,
    at: datetime | None = None,
    timeout: float | timedelta | None = None,
    on_existing: OnExisting = "existing",
) -> StartWord:
    """Raises `UsageError`."""
    if on_existing not in get_args(OnExisting):
        raise UsageError(f"on_existing must be one of {', '.join(get_args(OnExisting))}, got {on_existing!r}")
    # To the default it is the same which start has created the run. Others must know their own, if a reply was lost.
    identity = "" if on_existing == "existing" else secrets.token_hex(IDENTITY_BYTES)
    if delay is None and at is None and timeout is None:
        return StartWord(identity=identity) if identity else NOTHING
    if isinstance(workflow, Reducer):
        raise UsageError(f"reducer {workflow.name} can't be started with delay, at or timeout: let it set a timer")
    if delay is not None and at is not None:
        raise UsageError("a start takes delay or at, not both")
    if at is not None and not isinstance(at, datetime):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"at must be a datetime with a zone, got {at!r}")
    if at is not None and at.tzinfo is None:
        raise UsageError(f"at: {at} has no time zone: use datetime.now(UTC) and the like")
    begins = 0 if at is None else max(1, round(at.timestamp() * 1000))
    return StartWord(
        begins,
        0 if timeout is None else _ms("timeout", timeout, 1),
        identity,
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


async def replaced(batcher: Batcher, shard: int, start: Start, header: bytes) -> bytes:
    """The reply to a start that wants a new run, if the id has one that has ended: that is replaced, whichever it is by
    then, but none that is open. `header`: the reply of the server, which may be such a run's."""
    while header[:1] not in CREATED and may_replace(start, decode_header(header)):
        start.replaces = header
        header = await batcher.replace(shard, start)
    return header


def may_replace(start: Start, found: Header) -> bool:
    return not found.is_open and found.workflow == start.workflow


def check_existing(start: Start, found: Header, on_existing: OnExisting) -> None:
    """The id had a run already. Raises `RunConflict`, or `RunExists` if that is not wanted."""
    run_id = start.run_id
    if found.workflow not in (start.workflow, UNKNOWN_WORKFLOW):
        raise RunConflict(
            f"the id {run_id} belongs to a run of workflow {found.workflow}, not {start.workflow}: use another id",
            run_id,
        )
    if on_existing == "reject":
        text = f"there is a run {run_id} already, which is {found.status}: no run was started"
        raise RunExists(text, run_id, found.status)
