"""What a retry of a run says: to the run's owner, and to who asked for it.

Owns: the request's body, its answer, and whether a parent has taken the run's failure.
Must not: send anything (`client.py` does), decide where a run goes on (`machine/retry_point.py`).
Called by: `run.py`; the sandbox.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from streamflow import events
from streamflow.client.listing import ending_of
from streamflow.errors import ChildFailed, Failure, NotRetried
from streamflow.events import (
    AskAnswered,
    ChildCompleted,
    RunContinued,
    RunForked,
    RunRetried,
    StepCancelled,
    StepCompleted,
    StepRetrying,
    StepScheduled,
    Transition,
    decode_transition,
)
from streamflow.machine.retry_point import MAX_DEPTH, MAX_NAMED, not_failed, not_open
from streamflow.machine.transition import RetryRequest
from streamflow.model.record import Header, ParentLink, Status
from streamflow.store.pauses import Pause
from streamflow.text import recordable

MAX_BY = 64
"""Bytes of who wants the retry..."""
MAX_REASON = 4096
"""...and of why."""


class RetriedStep(msgspec.Struct, frozen=True):
    """A step that begins again, with this attempt. `seq` is its number in the history."""

    name: str
    seq: int
    attempt: int


class Retried(msgspec.Struct, frozen=True):
    """What `run.retry()` gives: how many results of steps and children are kept, and which steps begin again.

    `parent`: the run that has started this one as its child, and has taken its failure: it doesn't get the new outcome.
    None for a run without a parent. `held`: why the step doesn't begin now, if its queue is paused. `children`: runs
    that it waits for, which go on with it if they have ended.
    """

    kept: int
    steps: list[RetriedStep]
    parent: str | None = None
    held: str = ""
    children: list[str] = []


class _Answer(msgspec.Struct):
    kept: int
    steps: list[RetriedStep]
    children: list[str] = []


_answer = msgspec.msgpack.Decoder(_Answer)


def request(run_id: str, header: Header, request_id: str, by: str, reason: str, anyway: bool) -> bytes:
    """The body of the message. Raises `NotRetried` if the run hasn't failed and isn't stuck."""
    if header.status not in (Status.FAILED, Status.STUCK):
        raise NotRetried(run_id, Failure("NotFailed", not_failed(run_id, header.status)))
    retry = RetryRequest(
        request_id, header.created, header.version, recordable(by, MAX_BY), recordable(reason, MAX_REASON), anyway
    )
    return msgspec.msgpack.encode(retry)


class OpenStep(NamedTuple):
    name: str
    seq: int
    attempt: int


def open_steps(history: Iterable[Transition]) -> list[OpenStep]:
    """The steps that are open at the end of a history, with their current attempts."""
    steps: dict[int, OpenStep] = {}
    before: dict[int, OpenStep] = {}
    for transition in history:
        for event in transition.events:
            if isinstance(event, StepScheduled):
                steps[event.seq] = before[event.seq] = OpenStep(event.name, event.seq, 1)
            elif isinstance(event, StepRetrying) and event.seq in steps:
                steps[event.seq] = OpenStep(event.name, event.seq, event.attempt + 1)
            elif isinstance(event, StepCompleted | events.StepFailed | StepCancelled):
                steps.pop(event.seq, None)
            elif isinstance(event, RunContinued):
                steps.clear()
            elif isinstance(event, RunRetried | RunForked):
                steps = {seq: OpenStep(before[seq].name, seq, at) for seq, at in event.attempts if seq in before}
    return list(steps.values())


def step_request(
    run_id: str, header: Header, history: list[Transition], step: str | int, request_id: str, by: str, reason: str
) -> bytes:
    """The body of the message that gives the current attempt of a step up. Raises `NotRetried`."""
    if not header.is_open:
        raise NotRetried(run_id, Failure("NotOpen", not_open(run_id)))
    found = open_steps(history)
    named = [one for one in found if str(step) in (one.name, str(one.seq))]
    if len(named) != 1:
        which = ", ".join(f"{one.seq} ({one.name})" for one in (named or found)[:MAX_NAMED]) or "none"
        more = ", …" if len(named or found) > MAX_NAMED else ""
        if named:
            text = f"run {run_id} has {len(named):,} open calls of step {step}: name one by its number: {which}{more}"
        else:
            text = f"run {run_id} has no open step {step}; open are: {which}{more}"
        raise NotRetried(run_id, Failure("SeveralOpen" if named else "NotOpen", text))
    [one] = named
    by, reason = recordable(by, MAX_BY), recordable(reason, MAX_REASON)
    request = RetryRequest(request_id, header.created, header.version, by, reason, False, one.seq, one.attempt)
    return msgspec.msgpack.encode(request)


def queue_of(history: Iterable[Transition], steps: Sequence[RetriedStep]) -> str:
    """The queue of the step that begins again; empty if there is none."""
    seqs = {step.seq for step in steps}
    scheduled = (event for one in history for event in one.events if isinstance(event, StepScheduled))
    return next((event.queue for event in scheduled if event.seq in seqs), "")


def held_in(queue: str, pause: Pause | None) -> str:
    """Why a step in this queue doesn't begin; empty if nothing holds it up."""
    if pause is None:
        return ""
    return f"queue {queue} is paused {pause.says()}".rstrip() + f": it begins after streamflow resume --queue {queue}"


def results_of(history: Iterable[Transition]) -> int:
    """How many results of steps and children a history has."""
    return sum(isinstance(event, StepCompleted | ChildCompleted) for one in history for event in one.events)


def check_parent(run_id: str, parent: ParentLink, header: Header, last: bytes) -> None:
    """Raises `NotRetried` if the parent, with this header and last transition, failed because of this run."""
    if header.status != Status.FAILED or not last:
        return
    ending = ending_of(decode_transition(last))
    if isinstance(ending, events.RunFailed) and _names(ending.failure, run_id):
        text = (
            f"run {run_id} is a child of {parent.run_id}, which failed because of it, and gets nothing from it any "
            f"more. Retry {parent.run_id}, and this run goes on with it; or retry this one with --alone (alone=True)"
        )
        raise NotRetried(run_id, Failure("ParentFailed", text))


def _names(failure: Failure, run_id: str, depth: int = 0) -> bool:
    if failure.kind == ChildFailed.__name__ and failure.fields.get("run_id") == run_id:
        return True
    if depth == MAX_DEPTH:
        return False
    others = [failure.cause, failure.context, *failure.members]
    return any(_names(other, run_id, depth + 1) for other in others if other is not None)


def retried(run_id: str, answer: bytes, parent: str | None) -> Retried:
    """What the run's owner has answered. Raises `NotRetried`."""
    answered = msgspec.msgpack.decode(answer, type=AskAnswered)
    if answered.failure is not None:
        raise NotRetried(run_id, answered.failure)
    found = _answer.decode(answered.result)
    return Retried(found.kept, found.steps, parent, children=found.children)
