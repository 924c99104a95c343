"""The inputs of an advance of a machine, and its effects.

Owns: the inputs (messages, outcomes, due times) and `Effects`, the contract between the machines and the owner.
Must not: reduce. Called by: the machines make effects, the owner commits them; both make inputs.
"""

from __future__ import annotations

from typing import Any, NoReturn, cast

import msgspec
from msgspec import Raw

from streamflow import events
from streamflow.errors import Failure, UsageError
from streamflow.events import (
    NOTHING,
    AnyEvent,
    AskAnswered,
    AskReceived,
    CancelRequested,
    ChildCompleted,
    RunCompleted,
    RunForked,
    RunStarted,
    SignalReceived,
    Unrecorded,
)
from streamflow.model.attributes import Attribute
from streamflow.model.record import Status
from streamflow.workflow.actions import StepJob
from streamflow.workflow.recording import Record

Ending = RunCompleted | events.RunFailed | events.RunCancelled


class Outcome(msgspec.Struct, gc=False, omit_defaults=True):
    """How one attempt of a step ended. `ms`: how long it ran. `permanent`: no retry, whatever the policy says.
    `details`: the last value that it reported with `sf.heartbeat`; after a failure the next attempt gets it. `kinds`:
    the names of the error's class and of its bases; the run compares them with `never` of the call's retry policy,
    which the process that ran the attempt doesn't know. `to_blame`: its process died, and nothing else that it ran is
    suspect. `mark`: of what ran, from a queue (`StepCall.mark`). `records`: what it has recorded for views."""

    seq: int
    attempt: int
    ms: float
    result: Raw | None = None
    failure: Failure | None = None
    permanent: bool = False
    details: Raw = NOTHING
    kinds: tuple[str, ...] = ()
    to_blame: bool = False
    mark: bytes = b""
    records: tuple[Record, ...] = ()


class CompletedChild(msgspec.Struct, array_like=True, frozen=True, gc=False, tag="child-done"):
    """A child has completed: a `ChildCompleted`, and behind its fields the incarnation of the parent that it is for, as
    in the `ParentLink`, and the child's id: a failover may have lost the decision that started it, and the parent may
    have made another one in its place. Earlier releases send and read the event alone, or without the id."""

    seq: int
    name: str
    result: Raw
    created: int = 0
    run_id: str = ""

    @property
    def event(self) -> ChildCompleted:
        return ChildCompleted(self.seq, self.name, self.result)


class FailedChild(msgspec.Struct, array_like=True, frozen=True, gc=False, tag="child-failed"):
    """A child has failed, or was cancelled: as `CompletedChild`, of a `ChildFailed`."""

    seq: int
    name: str
    failure: Failure
    cancelled: bool = False
    created: int = 0
    run_id: str = ""
    again: str = ""
    """The request of the retry after which it has ended so; empty if it was not retried."""

    @property
    def event(self) -> events.ChildFailed:
        return events.ChildFailed(self.seq, self.name, self.failure, self.cancelled)


class Returned(msgspec.Struct, frozen=True):
    """An attempt did not end: the daemon that ran it for a former owner has stopped it, so it runs again under its
    number. `details`: the last value that it reported."""

    seq: int
    attempt: int
    details: Raw = NOTHING


class Due(msgspec.Struct, frozen=True):
    """Time has passed: timers that are due fire, and retries that are due start."""


class RetryRequest(msgspec.Struct, array_like=True, frozen=True):
    """Somebody wants an ended run to go on: the one that was created then, from that end (`version`: the number of its
    transitions). `id` identifies the request, whose answer has it, as a question's. `anyway`: also if steps were run
    because of the failure, whose effects would stay. With `seq` the run is open, and its step of that number gives this
    attempt up and begins the next one. Without, an open run is stuck, and its code is tried again."""

    id: str
    created: int
    version: int
    by: str = ""
    reason: str = ""
    anyway: bool = False
    seq: int = 0
    attempt: int = 0


class AgainRequest(msgspec.Struct, array_like=True, frozen=True):
    """The parent of a run goes on, and waits for it: if it has ended, it goes on too, or its outcome is sent again.
    `parent`: the link of that parent; what has another one is another run. `id`: the request for which the parent goes
    on; `by`, `reason` and `anyway` as in that. `cancelled`: the parent may have cancelled it by what is void now.
    `late`: the parent was going on already when it got the failure of the run."""

    id: str
    parent: str
    workflow: str
    by: str = ""
    reason: str = ""
    anyway: bool = False
    cancelled: bool = False
    late: bool = False


class PauseRequest(msgspec.Struct, array_like=True, frozen=True):
    """Somebody wants the run to be paused. What comes of it is `RunMachine.pause`, which its owner sets."""

    by: str = ""
    reason: str = ""


class ResumeRequest(msgspec.Struct, array_like=True, frozen=True):
    """Somebody wants the run to go on, if it is paused for a `PauseRequest`."""

    by: str = ""


class Oversize(msgspec.Struct, frozen=True):
    """What the run has decided from these inputs is too large for one commit: it fails, and none of its code is run.
    The first of its inputs. `reason`: how large, and what to do."""

    reason: str


Input = (
    RunStarted
    | SignalReceived
    | AskReceived
    | CancelRequested
    | CompletedChild
    | FailedChild
    | Outcome
    | Returned
    | Due
    | Oversize
    | RetryRequest
    | AgainRequest
    | RunForked
    | PauseRequest
    | ResumeRequest
)


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """A message to another run: `start`, `signal`, `cancel`, `child` (a child's outcome), `to-child` (a signal or
    cancel that only the child of this link may get) or `again` (`AgainRequest`). The outbox delivers it."""

    target: str
    kind: str
    body: bytes
    identity: bytes = b""
    """Of a signal, cancel or `again`: what tells its target that it has it already (decision 37)."""


class Forgotten(str):
    """The text of a warning: something was made that only works when it is awaited, and was dropped."""

    __slots__ = ()


class Besides(msgspec.Struct):
    """What few advances do: see `Effects.besides`."""

    outbox: list[Outgoing] = []
    cancelled: list[int] = []
    """Numbers of steps at the owner whose attempts are to be stopped."""
    revoked: list[StepJob] = []
    """Attempts in queues that are to be revoked."""
    published: dict[str, bytes] | None = None
    """New values of `sf.publish` by key, encoded."""
    attributes: dict[str, Attribute | None] | None = None
    """Attributes that change; None removes one."""
    answers: list[AskAnswered] = []
    fresh: bool = False
    """The history starts again with this transition (at its last `RunContinued`): the previous one is deleted."""
    warnings: list[str] = []
    closed: list[int] = []
    """Numbers of timers and children that the code has given up, which no event tells."""
    restate: bool = False
    """What is still open doesn't follow from the events."""
    unrecorded: Unrecorded | None = None
    """What no event tells of what the run waits for now: recorded with them."""


class _Nothing(Besides, frozen=True):  # pyright: ignore[reportGeneralTypeIssues] (msgspec allows it)
    """Frozen, and with tuples in the place of lists: to add something to what all share is an error."""


_EMPTY = cast("list[Any]", ())
NOTHING_BESIDES = _Nothing(_EMPTY, _EMPTY, _EMPTY, answers=_EMPTY, warnings=_EMPTY, closed=_EMPTY)
"""Of all advances that do nothing of it: nothing can be added to this one."""


class Effects(msgspec.Struct):
    """What one advance did: the events to commit, and what to do once they are committed."""

    events: list[AnyEvent] = []
    jobs: list[StepJob] = []
    """Attempts to start after the commit; those of a queue are sent with the commit's outbox."""
    status: Status = Status.RUNNING
    ended: bool = False
    besides: Besides = NOTHING_BESIDES
    """What most advances don't have, to be read. Advances that have nothing of it share one object."""

    def own_besides(self) -> Besides:
        """`besides`, to be changed."""
        own = self.besides
        if own is NOTHING_BESIDES:
            own = Besides()
            if self is not IDLE:
                self.besides = own
        return own


class _NoEvents(list[AnyEvent]):
    def append(self, event: AnyEvent, /) -> NoReturn:
        raise UsageError(
            "this run's code was left, and nothing can be decided for it now: only the code of the run itself may call "
            "streamflow, and no thread or task that it has started"
        )


IDLE = Effects(_NoEvents())
"""The effects of a machine that is not in an advance. One object for all runs: nothing is ever added to them."""
