"""Which runs are paused: what the pauses of workflows and the messages to a run make of it.

Owns: that decision, for the moment when a run is read, and whether it has to be read again. Must not: run code, or talk
to the server. Called by: the owner, its batches, what is kept of its commits.

The pause of a workflow is a note on the server, which daemons read with their heartbeats; a run of it is paused when
something comes for it, and goes on when the note is gone. The pause of a run is a message to it, and stands in its
history. A cancel ends both for its run: its code is needed to clean up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping

from streamflow.events import RunPaused
from streamflow.machine.transition import PauseRequest
from streamflow.model.record import Header, Status
from streamflow.store.pauses import Pause
from streamflow.wire import BadMessage, InboxMessage, decode_message, is_fork, stream_order

RUN, WORKFLOW = "run", "workflow"
"""What is paused: `RunPaused.scope`."""
CHANGES = frozenset({"pause", "resume", "cancel"})
"""Kinds of messages that change it."""


def pause_wanted(
    workflows: Mapping[str, Pause],
    header: Header,
    before: RunPaused | None,
    messages: Iterable[InboxMessage],
    *,
    is_cancelling: bool,
) -> RunPaused | None:
    """What a run is to be paused by that was paused by `before` and gets these messages; None: its code is run."""
    own = before if before is not None and before.scope == RUN else None
    for message in messages:
        if message.kind == "cancel":
            return None
        if message.kind == "resume":
            own = None
        elif message.kind == "pause" and own is None:
            own = _asked(header, message)
    if own is not None:
        return own
    note = None if is_cancelling else workflows.get(header.workflow)
    if note is None:
        return None
    return RunPaused(header.workflow, header.tenant, WORKFLOW, note.by, note.reason, note.at)


def _asked(header: Header, message: InboxMessage) -> RunPaused | None:
    with contextlib.suppress(BadMessage):  # it is quarantined with the others
        request = decode_message(message, None)
        if isinstance(request, PauseRequest):
            since = stream_order(message.id)[0]
            return RunPaused(header.workflow, header.tenant, RUN, request.by, request.reason, since)
    return None


def pause_of_fork(workflows: Mapping[str, Pause], header: Header, messages: list[InboxMessage]) -> RunPaused | None:
    """As `pause_wanted`, for a fork that is to begin: not by a pause of its own, which comes behind that."""
    return pause_wanted(workflows, header, None, messages[: behind_cancel(messages)], is_cancelling=False)


def keeps_stuck(header: Header, pause: RunPaused | None) -> bool:
    """Whether a run stays stuck, and no code is tried, because its workflow is paused."""
    return pause is not None and pause.scope == WORKFLOW and header.status == Status.STUCK


def behind_cancel(messages: list[InboxMessage]) -> int:
    """Where messages begin that come in a later transition: a pause that was asked for after a cancel, or of a fork
    that begins with these. Their number if there is none."""
    is_taken = False
    for position, message in enumerate(messages):
        is_taken = is_taken or message.kind == "cancel" or (message.kind == "start" and is_fork(message.body))
        if is_taken and message.kind == "pause":
            return position
    return len(messages)


def paused_text(run_id: str, pause: Pause, workflow: str) -> str:
    """Why nothing of a run begins, for who wants it to."""
    return f"workflow {workflow} of run {run_id} is paused {pause.says()}".rstrip() + ": resume it first"
