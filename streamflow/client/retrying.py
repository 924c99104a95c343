"""What a retry of a run says: to the run's owner, and to who asked for it.

Owns: the request's body, its answer, and whether a parent has taken the run's failure.
Must not: send anything (`client.py` does), decide where a run goes on (`machine/retry_point.py`).
Called by: `run.py`; the sandbox.
"""

from __future__ import annotations

import msgspec

from streamflow import events
from streamflow.client.listing import ending_of
from streamflow.errors import ChildFailed, Failure, NotRetried
from streamflow.events import AskAnswered, decode_transition
from streamflow.machine.retry_point import MAX_DEPTH, not_failed
from streamflow.machine.transition import RetryRequest
from streamflow.model.record import Header, ParentLink, Status
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
    None for a run without a parent.
    """

    kept: int
    steps: list[RetriedStep]
    parent: str | None = None


class _Answer(msgspec.Struct):
    kept: int
    steps: list[RetriedStep]


_answer = msgspec.msgpack.Decoder(_Answer)


def request(run_id: str, header: Header, request_id: str, by: str, reason: str, anyway: bool) -> bytes:
    """The body of the message. Raises `NotRetried` if the run hasn't failed."""
    if header.status != Status.FAILED:
        raise NotRetried(run_id, Failure("NotFailed", not_failed(run_id, header.status)))
    retry = RetryRequest(
        request_id, header.created, header.version, recordable(by, MAX_BY), recordable(reason, MAX_REASON), anyway
    )
    return msgspec.msgpack.encode(retry)


def check_parent(run_id: str, parent: ParentLink, header: Header, last: bytes) -> None:
    """Raises `NotRetried` if the parent, with this header and last transition, failed because of this run."""
    if header.status != Status.FAILED or not last:
        return
    ending = ending_of(decode_transition(last))
    if isinstance(ending, events.RunFailed) and _names(ending.failure, run_id):
        text = (
            f"run {run_id} is a child of {parent.run_id}, which failed because of it, and gets nothing from it any "
            "more. Retry it alone if that is what you want"
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
    return Retried(found.kept, found.steps, parent)
