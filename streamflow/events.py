"""What can happen to a run: the events of a history, and their encoding.

Owns: the event types, the transition (one commit of one run), and the bytes of both.
Must not: decide anything (see `machine/`), know keys or scripts.
Called by: the machines (which make events), the owner (which commits them), views, client and CLI (which read them).

Two kinds of events, in one list, in the order in which they took effect:

- facts, which came from outside: a start, a step's outcome, a timer, a signal, a question, a child's outcome, a cancel
  request;
- decisions, which the workflow made because of the facts before them: schedule a step, set a timer, start a child,
  give one of them up, signal another run, answer, continue as new, complete, fail.

A replay applies the facts and checks that the code makes the same decisions again.
Every payload is a `msgspec.Raw`: bytes that only the workflow's or the step's own types decode.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import Raw

from streamflow.errors import Failure

NOTHING = Raw(b"\xc0")
"""The payload of `None`."""


class HistoryEvent(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Base of all events. `describe()` is the short form that timelines, `tail` and divergence reports print."""

    def describe(self) -> str:
        name = type(self).__name__
        parts = [str(value) for field in ("seq", "name") if (value := getattr(self, field, ""))]
        return f"{name}({', '.join(parts)})" if parts else name


# --- the run itself -------------------------------------------------------------------------------------------------


class RunStarted(HistoryEvent, tag="started", frozen=True, gc=False):
    """Fact. `parent` is `<run id>#<seq>` of the parent, or empty; `version` is the one of the workflow's code that
    took the start."""

    workflow: str
    tenant: str
    input: Raw
    parent: str = ""
    version: int = 0


class RunCompleted(HistoryEvent, tag="completed", frozen=True, gc=False):
    """Decision. `ms`: from the start to here, on the shard's clock."""

    workflow: str
    tenant: str
    ms: int
    result: Raw


class RunFailed(HistoryEvent, tag="failed", frozen=True, gc=False):
    workflow: str
    tenant: str
    ms: int
    failure: Failure


class RunCancelled(HistoryEvent, tag="cancelled", frozen=True, gc=False):
    workflow: str
    tenant: str
    ms: int
    reason: str


class RunStuck(HistoryEvent, tag="stuck", frozen=True, gc=False):
    """The code could not go on: a divergence, or a workflow that this daemon doesn't know. Later facts are kept."""

    workflow: str
    tenant: str
    reason: str


class RunResumed(HistoryEvent, tag="resumed", frozen=True, gc=False):
    """The code can go on again; the decisions that follow answer all facts since `RunStuck`."""

    workflow: str
    tenant: str


class CancelRequested(HistoryEvent, tag="cancel", frozen=True, gc=False):
    """Fact. `terminate`: the run ends at once and its code isn't asked."""

    reason: str
    terminate: bool = False


class HistoryLimitReached(HistoryEvent, tag="limit", frozen=True, gc=False):
    """Fact: the history has `count` events, and the run is told to continue as new."""

    count: int


class Patched(HistoryEvent, tag="patched", frozen=True, gc=False):
    """`sf.patched(name)` gave True here for the first time. Code that doesn't ask any more passes it over."""

    name: str


# --- steps ----------------------------------------------------------------------------------------------------------


class StepScheduled(HistoryEvent, tag="step", frozen=True, gc=False):
    """Decision. `queue`: where workers take it from; empty for a step that runs at the owner."""

    seq: int
    name: str
    args: Raw
    queue: str = ""


class StepCompleted(HistoryEvent, tag="step-done", frozen=True, gc=False):
    """`ms`: how long the attempt ran."""

    seq: int
    name: str
    attempt: int
    ms: float
    result: Raw


class StepRetrying(HistoryEvent, tag="step-retry", frozen=True, gc=False):
    """Attempt number `attempt` failed; the next one is due at `due` (shard clock, ms). `details`: the last that it told
    with `sf.heartbeat`."""

    seq: int
    name: str
    attempt: int
    ms: float
    failure: Failure
    due: int
    details: Raw = NOTHING


class StepFailed(HistoryEvent, tag="step-failed", frozen=True, gc=False):
    seq: int
    name: str
    attempt: int
    ms: float
    failure: Failure


class StepCancelled(HistoryEvent, tag="step-cancelled", frozen=True, gc=False):
    """Decision: nobody waits for the step any more. It is stopped, and its outcome dropped."""

    seq: int
    name: str


# --- timers, signals, questions, children ---------------------------------------------------------------------------


class TimerSet(HistoryEvent, tag="timer", frozen=True, gc=False):
    """`name`: the signal whose wait it limits, empty for a sleep."""

    seq: int
    due: int
    name: str = ""


class TimerFired(HistoryEvent, tag="timer-fired", frozen=True, gc=False):
    seq: int


class SignalReceived(HistoryEvent, tag="signal", frozen=True, gc=False):
    name: str
    value: Raw


class SignalSent(HistoryEvent, tag="signal-sent", frozen=True, gc=False):
    """Decision: a signal to run `target`, through the outbox."""

    seq: int
    name: str
    target: str
    value: Raw


class AskReceived(HistoryEvent, tag="ask", frozen=True, gc=False):
    """Fact: somebody asks and waits for an answer. `id` is the question's own, 32 hex digits."""

    id: str
    name: str
    value: Raw


class AskAnswered(HistoryEvent, tag="answer", frozen=True, gc=False):
    """Decision: the answer to a question, or why there is none. Also what the asker gets, as it is encoded here."""

    id: str
    name: str
    result: Raw = NOTHING
    failure: Failure | None = None


class ChildStarted(HistoryEvent, tag="child", frozen=True, gc=False):
    """Decision. `name` is the child's workflow; `on_parent_end` is cancel, abandon or wait."""

    seq: int
    name: str
    run_id: str
    tenant: str
    input: Raw
    on_parent_end: str = "cancel"


class ChildCancelled(HistoryEvent, tag="child-cancelled", frozen=True, gc=False):
    """Decision: the child is asked to cancel."""

    seq: int
    name: str


class ChildCompleted(HistoryEvent, tag="child-done", frozen=True, gc=False):
    seq: int
    name: str
    result: Raw


class ChildFailed(HistoryEvent, tag="child-failed", frozen=True, gc=False):
    """`cancelled`: the child was cancelled rather than failed."""

    seq: int
    name: str
    failure: Failure
    cancelled: bool = False


class RunContinued(HistoryEvent, tag="continued", frozen=True, gc=False):
    """Decision: the run goes on under its id with a new input, and its history begins anew with this event.

    `seq` is the last number that was given, so that no late outcome is taken for a new step's; `started` is the shard's
    clock at the very first start, `generation` how many histories came before, `carried` what was received and not
    consumed, `children` (seq, workflow, run id) those whose end the run's own waits for.
    """

    workflow: str
    tenant: str
    input: Raw
    version: int
    seq: int
    started: int
    generation: int
    carried: list[SignalReceived | AskReceived]
    children: list[tuple[int, str, str]] = []


class MessageQuarantined(HistoryEvent, tag="quarantined", frozen=True, gc=False):
    """Only in the log, under `-<message>`: a message that nothing could be made of, set aside in the shard's `poison`
    stream. `run_id` is what it named, and may be anything."""

    message: str
    reason: str
    run_id: str = ""


AnyEvent = (
    RunStarted
    | RunCompleted
    | RunFailed
    | RunCancelled
    | RunStuck
    | RunResumed
    | RunContinued
    | CancelRequested
    | HistoryLimitReached
    | Patched
    | StepScheduled
    | StepCompleted
    | StepRetrying
    | StepFailed
    | StepCancelled
    | TimerSet
    | TimerFired
    | SignalReceived
    | SignalSent
    | AskReceived
    | AskAnswered
    | ChildStarted
    | ChildCompleted
    | ChildFailed
    | ChildCancelled
    | MessageQuarantined
)

DECISIONS = (StepScheduled, StepCancelled, TimerSet, SignalSent, AskAnswered, ChildStarted, ChildCancelled)
"""Decisions that a replay must make again, in this order and with these numbers."""

ENDINGS = (RunCompleted, RunFailed, RunCancelled)


class Transition(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What one commit did to one run: one element of its history, and its part of one log entry.

    `at` is the shard's clock in ms when the facts were reduced: it is what `sf.now()` returns.
    """

    at: int
    events: list[AnyEvent]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Transition)


def encode_transition(at: int, events: list[AnyEvent]) -> bytes:
    return _encoder.encode(Transition(at, events))


def decode_transition(data: bytes) -> Transition:
    """Raises `msgspec.DecodeError` (garbage), `RecursionError` or `UnicodeDecodeError`."""
    return _decoder.decode(data)


def decode_history(elements: Iterable[bytes]) -> list[Transition]:
    return [_decoder.decode(element) for element in elements]
