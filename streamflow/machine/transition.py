"""What goes into an advance of a machine, and what comes out of it.

Owns: the inputs (messages, outcomes, due times) and `Effects`, the contract between the machines and the owner.
Must not: reduce. Called by: the machines make effects, the owner commits them; both make inputs.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw

from streamflow import events
from streamflow.errors import Failure
from streamflow.events import (
    NOTHING,
    AnyEvent,
    AskAnswered,
    AskReceived,
    CancelRequested,
    ChildCompleted,
    RunCompleted,
    RunStarted,
    SignalReceived,
)
from streamflow.model.attributes import Attribute
from streamflow.model.record import Status
from streamflow.workflow.actions import StepJob

Ending = RunCompleted | events.RunFailed | events.RunCancelled


class Outcome(msgspec.Struct, gc=False):
    """How one attempt of a step ended. `permanent`: no retry, whatever the policy says. `details`: what it told last
    with `sf.heartbeat`; after a failure the next attempt gets it."""

    seq: int
    attempt: int
    ms: float
    result: Raw | None = None
    failure: Failure | None = None
    permanent: bool = False
    details: Raw = NOTHING


class Due(msgspec.Struct, frozen=True):
    """Time has passed: timers fire and retries start that are due at `at`."""


Input = (
    RunStarted | SignalReceived | AskReceived | CancelRequested | ChildCompleted | events.ChildFailed | Outcome | Due
)


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """A message for another run: `start`, `signal`, `cancel` or `child` (the outcome of one). The outbox carries it."""

    target: str
    kind: str
    body: bytes


class Effects:
    """What one advance did: the events to commit, and what to do when they are."""

    __slots__ = (
        "answers",
        "attributes",
        "cancelled",
        "ended",
        "events",
        "fresh",
        "jobs",
        "outbox",
        "published",
        "revoked",
        "status",
        "warnings",
    )

    def __init__(self) -> None:
        self.events: list[AnyEvent] = []
        self.jobs: list[StepJob] = []
        """To start after the commit; those of a queue travel in the commit's outbox."""
        self.outbox: list[Outgoing] = []
        self.cancelled: list[int] = []
        """Numbers of steps at the owner that run for nothing now."""
        self.revoked: list[StepJob] = []
        """Attempts in queues that are not wanted any more."""
        self.published: dict[str, bytes] | None = None
        """New values by key, encoded, for `run.read`."""
        self.attributes: dict[str, Attribute | None] | None = None
        """Attributes that change; None takes one off."""
        self.answers: list[AskAnswered] = []
        self.fresh = False
        """The history begins anew with this transition (at its last `RunContinued`): what was there before goes."""
        self.warnings: list[str] = []
        self.status = Status.RUNNING
        self.ended = False
