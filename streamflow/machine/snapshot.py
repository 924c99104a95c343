"""A reducer's snapshot: its state and its open work, as stored in the record between two transitions.

Owns: the snapshot's fields and its bytes, and what it says that the reducer waits for. Must not: decide.
Called by: the reducer's machine; the client and the sandbox, which show a run.
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
from msgspec import UNSET, Raw, UnsetType

from streamflow import events
from streamflow.errors import UsageError
from streamflow.events import NOTHING, AnyEvent, RunCompleted, RunPaused
from streamflow.machine.open_work import UNDECIDED
from streamflow.model.waits import Wait, in_order
from streamflow.text import recordable
from streamflow.workflow.actions import ChildCall, Sleep, StepCall
from streamflow.workflow.awaitable import Operation
from streamflow.workflow.retry import Retry


class Overrides(msgspec.Struct, array_like=True):
    """The settings of a step that differ from the registered ones (`step.options`)."""

    timeout: float | None
    queue: str | None
    retry: tuple[int, float, float, float, float, list[str]]
    """Attempts (0: any number), initial, factor, maximum, jitter, never."""
    within: float | None = None


class OpenStep(msgspec.Struct, array_like=True):
    seq: int
    name: str
    args: Raw
    tag: str
    attempt: int
    due: int | None
    overrides: Overrides | None
    lost: int = 0
    details: Raw = NOTHING
    queue: str | None = None
    """The queue of its attempt: a later deploy may name another one. Empty: at the owner; None: an older record."""
    since: int = 0
    declined: int = 0
    blamed: bool = False


class HeldFact(msgspec.Struct, array_like=True):
    """A fact that was received while the run was stuck, with the tag and run id of its operation, which is closed."""

    event: AnyEvent
    tag: str
    run_id: str


class Snapshot(msgspec.Struct, array_like=True):
    state: Raw
    seq: int
    steps: list[OpenStep]
    timers: list[tuple[int, int, str]]
    children: list[tuple[int, str, str, str, str]]
    started: int
    tenant: str
    parent: str
    at: int
    events_count: int
    stuck: bool | RunPaused
    """Whether no code is run; of a paused run what it is paused by."""
    held: list[HeldFact]
    ending: RunCompleted | events.RunFailed | events.RunCancelled | None = None
    created: int = 0

    @property
    def paused_by(self) -> RunPaused | None:
        return self.stuck if isinstance(self.stuck, RunPaused) else None


encode_snapshot = msgspec.msgpack.Encoder().encode
decode_snapshot = msgspec.msgpack.Decoder(Snapshot).decode


def tag_of(operation: Operation | None) -> str:
    """The operation's tag for the reducer's event, or an empty text."""
    if isinstance(operation, StepCall):
        return operation.step.tag
    if isinstance(operation, ChildCall):
        return operation.target.tag
    return operation.tag if isinstance(operation, Sleep) else ""


def overrides_of(call: StepCall) -> Overrides | None:
    """The call's settings; None if they are the registered ones."""
    step = call.step
    registered = step.origin
    if step.timeout == registered.timeout and step.queue == registered.queue and step.retry == registered.retry:
        return None
    retry = step.retry
    never = [recordable(name if isinstance(name, str) else name.__name__, 256) for name in retry.never]
    numbers = (retry.attempts or 0, retry.initial, retry.factor, retry.maximum, retry.jitter)
    return Overrides(step.timeout, step.queue, (*numbers, never), retry.within)


def retry_of(overrides: Overrides) -> Retry | UnsetType:
    """The call's policy; unset, for the registered one, if this release refuses its values: a snapshot is always
    read."""
    attempts, initial, factor, maximum, jitter, never = overrides.retry
    try:
        return Retry(
            attempts=attempts or UNSET,
            within=overrides.within,
            initial=initial,
            factor=factor,
            maximum=maximum,
            jitter=jitter,
            never=[name for name in never if name.isidentifier()],
        )
    except UsageError:
        return UNSET


def waits_in(state: bytes, recorded: list[Wait]) -> list[Wait]:
    """What a reducer waits for: what is open in its snapshot, and always a message. `recorded`: what its newest
    transitions say, which have since when, and why a step is tried again. Raises `codec.DECODE_ERRORS`."""
    snapshot = decode_snapshot(state)
    known = {wait.seq: wait for wait in recorded if wait.seq}
    waits = [wait for wait in recorded if wait.kind in ("code", "pause")]
    for step in snapshot.steps:
        wait = known.get(step.seq) or Wait(kind="step", name=step.name, seq=step.seq, queue=step.queue or "")
        until = _instant(step.due) if step.due is not None and step.due < UNDECIDED else None
        waits.append(msgspec.structs.replace(wait, attempt=step.attempt, until=until))
    waits += [
        known.get(seq) or Wait(kind="child", name=name, seq=seq, run_id=run_id)
        for seq, name, run_id, _, _ in snapshot.children
    ]
    for seq, due, _ in snapshot.timers:
        wait = known.get(seq) or Wait(kind="timer", seq=seq)
        waits.append(msgspec.structs.replace(wait, until=_instant(due)))
    return in_order([*waits, *([] if snapshot.stuck or snapshot.ending is not None else [Wait(kind="message")])])


def _instant(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
