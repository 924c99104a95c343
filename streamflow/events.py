"""The events of a run's history: what `run.history()` and `run.events()` give.

Owns: the event types, the transition (one commit of one run), and the bytes of both.
Must not: decide anything (see `machine/`), know keys or scripts.
Called by: the machines (which make events), the owner (which commits them), views, client and CLI (which read them).

A history is a list of `Transition`s. Each has the shard's clock and the events of one commit, in the order in which
they took effect. Of a reducer only the newest transitions are kept. Most events are of one of two kinds:

- **Facts** came from outside: the run's start, a step's outcome, a timer that fired, a signal, a question, a child's
  outcome, a cancel request.
- **Decisions** were made by the workflow because of the facts before them: schedule a step, set a timer, start a child,
  cancel one of them, signal another run, answer a question, continue as new, complete, fail.

A replay applies the facts and checks that the code makes the same decisions again.

Fields that many events have:

- `seq`: the number of the decision within its run, from 1. The facts about a step, timer or child have the `seq` of the
  decision that opened it.
- `name`: the step, signal, question, patch, or the child's workflow.
- `workflow`, `tenant`: of the run; `tenant` is empty for a run without one.
- `attempt`: the number of a step's attempt, from 1.
- `ms`: a duration in milliseconds. `due`, `started`, and `Transition.at` are points in time: milliseconds since the
  Unix epoch on the shard's clock. Within a run, `at` never decreases.
- `failure`: a `streamflow.errors.Failure` with kind, message, traceback, notes, fields, cause and members.
- `args`, `input`, `value`, `result`, `details`: payloads, as `msgspec.Raw` that holds MessagePack. Only the types of
  the workflow or step say what is in them; `msgspec.msgpack.decode(event.result)` gives plain data. `args` and `input`
  are an array of all arguments in the order of the parameters, or a map by name if the call used keywords.

Payloads above 512 bytes are stored once, in the run's record. Who follows a run or the log (`events(follow=True)`,
`tail`) gets them from there, and may come too late: the run was forgotten or has continued as new, or a reducer's
record has only newer transitions. Then `gone_bytes(payload)` is its size, and 0 for one that is there. Of a large
failure, kind and the beginning of its message are left then, and a note of its size; of a long `reason` its beginning.

Match on the class:

>>> async for at, event in run.events():
...     match event:
...         case sf.events.StepCompleted(name=name, ms=ms):
...             print(at, name, f"{ms:.0f} ms")
...         case sf.events.StepFailed(name=name, failure=failure):
...             print(at, name, failure)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from msgspec import Raw

from streamflow.errors import Failure

GIVEN_UP = "GivenUp"
"""Kind of the failure in a `StepRetrying` of an attempt that somebody has given up (`run.retry(step=…)`)."""
NOTHING = Raw(b"\xc0")
"""The payload of `None`."""
_GONE = b"\xd7\x73"
"""How the MessagePack of a payload that is gone begins: extension type 115, then its size in eight bytes."""


def gone_payload(size: int) -> Raw:
    """What stands for a payload of so many bytes that is not there."""
    return Raw(_GONE + size.to_bytes(8, "big"))


def gone_bytes(payload: Raw | bytes) -> int:
    """The size of a payload that went with its run's record before it was read; 0 for one that is there."""
    view = memoryview(payload)
    return int.from_bytes(view[2:], "big") if len(view) == 10 and view[:2].tobytes() == _GONE else 0


class HistoryEvent(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Base of all events."""

    def describe(self) -> str:
        """Class name, `seq` and `name`, as `StepScheduled(3, fetch)`: what `tail` and divergence reports print."""
        name = type(self).__name__
        parts = [str(value) for field in ("seq", "name") if (value := getattr(self, field, ""))]
        return f"{name}({', '.join(parts)})" if parts else name


# --- the run itself -------------------------------------------------------------------------------------------------


LOST_VERSION = -1
"""The `version` in the only start that is left of a run whose history is lost (`machine/lost.py`)."""


class RunStarted(HistoryEvent, tag="started", frozen=True, gc=False):
    """Fact: the run was started.

    `parent` is `<run id>#<seq>@<created>` of the parent, or empty. `version` is the version of the workflow's code that
    the run keeps; -1 if its history is lost (then `input` is the text that says how). `created` tells this run from
    others that had its id before: ms, as in its header; 0 if it began under a release that didn't record it.
    """

    workflow: str
    tenant: str
    input: Raw
    parent: str = ""
    version: int = 0
    created: int = 0


class RunCompleted(HistoryEvent, tag="completed", frozen=True, gc=False):
    """Decision: the run completed with `result`. `ms` is the time since its very first start."""

    workflow: str
    tenant: str
    ms: int
    result: Raw


class RunFailed(HistoryEvent, tag="failed", frozen=True, gc=False):
    """Decision: the run failed. `ms` is the time since its very first start."""

    workflow: str
    tenant: str
    ms: int
    failure: Failure


class RunCancelled(HistoryEvent, tag="cancelled", frozen=True, gc=False):
    """Decision: the run ended as cancelled. `ms` is the time since its very first start.

    `reason` is the text that the canceller gave.
    """

    workflow: str
    tenant: str
    ms: int
    reason: str


class RunStuck(HistoryEvent, tag="stuck", frozen=True, gc=False):
    """The run's code can't continue: it diverged from the history, has a bug, or its workflow is not registered.

    `reason` is the text that `streamflow show` prints. Later facts are recorded, and delivered when the run resumes. Of
    a bug, `failure` is what the code raised, of which nothing else is recorded, and `code` the code that did, which
    isn't tried again.
    """

    workflow: str
    tenant: str
    reason: str
    failure: Failure | None = None
    code: str = ""


class RunResumed(HistoryEvent, tag="resumed", frozen=True, gc=False):
    """The run is no longer stuck. The decisions that follow answer all facts since `RunStuck`; if another `RunStuck`
    follows, other code was tried, which can't continue either.

    `reason` is the beginning of the reason for which it was stuck, `since` when that began: what the views count is
    over. Empty and 0 if a release has written it that didn't say, or a reducer has received too much meanwhile. Of a
    bug, `failure` is as little of it as tells the cause.
    """

    workflow: str
    tenant: str
    reason: str = ""
    since: int = 0
    failure: Failure | None = None


class RunPaused(HistoryEvent, tag="paused", frozen=True, gc=False):
    """Fact: somebody has paused the run, or its workflow, so none of its code is run. Later facts are recorded, and
    delivered when it goes on.

    `scope` says what is paused: `run` or `workflow`. `by` is who wanted it, `reason` why, and `since` when (ms).
    """

    workflow: str
    tenant: str
    scope: str = "run"
    by: str = ""
    reason: str = ""
    since: int = 0

    def says(self) -> str:
        """As `its workflow is paused by kim@host: the bank is down`."""
        what = "it" if self.scope == "run" else "its workflow"
        who = f" by {self.by}" if self.by else ""
        return f"{what} is paused{who}" + (f": {self.reason}" if self.reason else "")


class PauseEnded(HistoryEvent, tag="unpaused", frozen=True, gc=False):
    """The run is no longer paused. The decisions that follow answer all facts since `RunPaused`; if another `RunPaused`
    or a `RunStuck` follows, its code can't be run for that."""

    workflow: str
    tenant: str


class RunRetried(HistoryEvent, tag="retried", frozen=True, gc=False):
    """Fact: somebody had the run go on that had ended.

    What is behind the first `kept` events of its generation is void, but for the outcomes, signals, questions and
    timers in it: the code gets those now, and the decisions that follow answer them. `seq` is the last number that was
    given before, so that nothing late can match a new decision. `attempts`: `(seq, attempt)` of the steps that begin
    again. `by` and `reason` say who wanted it, and why. `failure` is what it had failed from, as little of it as tells
    the cause, and `since` when (shard-clock ms): what the views count is over. `request` identifies what was asked for,
    and `children` are the numbers of those that the run waits for: they have been asked to go on for the same. With
    `cancelled` the run is itself such a child, and was cancelled by what its parent did before. `anyway`: even if it
    had undone things.
    """

    workflow: str
    tenant: str
    kept: int
    seq: int
    attempts: list[tuple[int, int]] = []
    by: str = ""
    reason: str = ""
    failure: Failure | None = None
    since: int = 0
    request: str = ""
    children: list[int] = []
    cancelled: bool = False
    anyway: bool = False


class StartDelayed(HistoryEvent, tag="delayed", frozen=True, gc=False):
    """Fact, behind `RunStarted`: the run's code begins at `due`. `timeout` (ms) is that of this very start, 0 for the
    workflow's own."""

    due: int
    timeout: int = 0


class StartDue(HistoryEvent, tag="start-due", frozen=True, gc=False):
    """Fact: the time of a delayed start has come. `version` is the version of the code that the run keeps."""

    version: int = 0


class TimeoutSet(HistoryEvent, tag="timeout-set", frozen=True, gc=False):
    """Fact: the run has `ms` for its work, and is over at `due`, in whichever generation it is then. Recorded when its
    code begins; again when it goes on after it was stuck, for as long as which it gets more; when it is retried; and
    when it continues as new."""

    ms: int
    due: int


class TimeoutReached(HistoryEvent, tag="timeout-reached", frozen=True, gc=False):
    """Fact: the run has not ended within its time-out of `ms`, so its code is cancelled; then the run fails."""

    ms: int


class RunForked(HistoryEvent, tag="forked", frozen=True, gc=False):
    """Fact: the run began as a fork of the run `of`, with the first `shared` events of its history.

    What is before this event has happened in that run, the one that was created at `of_created` (ms). `kept`: of the
    events of this generation before, the one at this position is what the code gets now, and so are those behind it, as
    after a `RunRetried`; if none is there, the code has got all. `seq` is the last number that was given before.
    `attempts`: `(seq, attempt)` of the steps that were open, which begin again here; `children`: `(seq, run id)` of the
    children that were open and are started again, under these ids. `created` is this run's. `changed`: it has another
    input than the run `of`, in its `RunStarted`. `by` and `reason` say who wanted it, and why.

    `before`: the id that the run had in the last event before this one, if that wasn't `of`: that is a fork, and no
    event of its own is shared.

    `history` is empty in a history, where its transitions are before this one.
    """

    workflow: str
    tenant: str
    of: str
    of_created: int
    shared: int
    kept: int
    seq: int
    attempts: list[tuple[int, int]] = []
    children: list[tuple[int, str]] = []
    created: int = 0
    changed: bool = False
    by: str = ""
    reason: str = ""
    before: str = ""
    history: list[Transition] = []


class CancelRequested(HistoryEvent, tag="cancel", frozen=True, gc=False):
    """Fact: somebody asked the run to cancel. `terminate`: the run ends at once, without running its clean-up code."""

    reason: str
    terminate: bool = False


class HistoryLimitReached(HistoryEvent, tag="limit", frozen=True, gc=False):
    """Fact: the history has `count` events, so `HistoryTooLong` is raised in the run's code."""

    count: int


class Patched(HistoryEvent, tag="patched", frozen=True, gc=False):
    """Decision: `sf.patched(name)` gave True for the first time in this history.

    A replay skips it if the code doesn't ask any more.
    """

    name: str


class Recorded(HistoryEvent, tag="recorded", frozen=True, gc=False):
    """`sf.record(name, value, **labels)` was called: a number for views. It is neither a fact nor a decision: no code
    gets it, and a replay skips it.

    `step`, `seq` and `attempt` say which attempt of a step has called it: then it stands behind that attempt's outcome,
    with which it was committed. They are empty and 0 if the run's own code has.
    """

    workflow: str
    tenant: str
    name: str
    value: int | float
    labels: dict[str, str] = {}
    step: str = ""
    seq: int = 0
    attempt: int = 0


# --- steps ----------------------------------------------------------------------------------------------------------


class StepScheduled(HistoryEvent, tag="step", frozen=True, gc=False):
    """Decision: run a step. `queue` is the queue that workers take it from; empty for a step that the owner runs."""

    seq: int
    name: str
    args: Raw
    queue: str = ""


class StepCompleted(HistoryEvent, tag="step-done", frozen=True, gc=False):
    """Fact: attempt number `attempt` returned `result`. `ms` is how long that attempt ran."""

    seq: int
    name: str
    attempt: int
    ms: float
    result: Raw


class StepRetrying(HistoryEvent, tag="step-retry", frozen=True, gc=False):
    """Fact: attempt number `attempt` failed after `ms`; the next one starts at `due`.

    `details` is the last value that the attempt reported with `sf.heartbeat`; the next attempt gets it.

    `declined`: the attempt counts for nothing: a process whose code doesn't fit the call has refused to begin it, or
    somebody has given it up (`failure.kind` is `GivenUp`).
    `due` is 0 if the run was stuck: when it resumes, the call's policy decides about this failure, by `kinds` (the
    names of the error's classes), and another event says what it has decided.
    `blamed`: the attempt was lost with its process, and most probably the reason for that: the next one is tried last.
    """

    seq: int
    name: str
    attempt: int
    ms: float
    failure: Failure
    due: int
    details: Raw = NOTHING
    declined: bool = False
    kinds: tuple[str, ...] = ()
    blamed: bool = False


class StepFailed(HistoryEvent, tag="step-failed", frozen=True, gc=False):
    """Fact: the step's last attempt failed after `ms`, and is not retried. The code gets `errors.StepFailed`."""

    seq: int
    name: str
    attempt: int
    ms: float
    failure: Failure


class StepCancelled(HistoryEvent, tag="step-cancelled", frozen=True, gc=False):
    """Decision: nothing waits for the step any more. Its attempt is stopped, and the outcome discarded."""

    seq: int
    name: str


# --- timers, signals, questions, children ---------------------------------------------------------------------------


class TimerSet(HistoryEvent, tag="timer", frozen=True, gc=False):
    """Decision: set a timer for `due`.

    `name` is the signal or question whose wait it limits, `timeout()` for a block, and empty for a sleep.
    """

    seq: int
    due: int
    name: str = ""


class TimerFired(HistoryEvent, tag="timer-fired", frozen=True, gc=False):
    """Fact: the timer with this `seq` fired."""

    seq: int


class SignalReceived(HistoryEvent, tag="signal", frozen=True, gc=False):
    """Fact: the run received a signal, whether or not its code waited for one."""

    name: str
    value: Raw


class SignalSkipped(HistoryEvent, tag="signal-skipped", frozen=True, gc=False):
    """Decision: the oldest signal of this name is dropped: its value is not of the type that the code asked for.

    A replay drops it again, whatever type the code asks for by then.
    """

    name: str


class SignalSent(HistoryEvent, tag="signal-sent", frozen=True, gc=False):
    """Decision: send a signal to the run with the id `target`. The outbox delivers it."""

    seq: int
    name: str
    target: str
    value: Raw


class AskReceived(HistoryEvent, tag="ask", frozen=True, gc=False):
    """Fact: somebody asked a question and waits for the answer. `id` identifies it: 32 hex digits."""

    id: str
    name: str
    value: Raw


class AskAnswered(HistoryEvent, tag="answer", frozen=True, gc=False):
    """Decision: answer the question `id` with `result`, or refuse it with `failure`.

    `name` may be empty if a reducer answered. The asker receives this event, encoded.
    """

    id: str
    name: str
    result: Raw = NOTHING
    failure: Failure | None = None


class ChildStarted(HistoryEvent, tag="child", frozen=True, gc=False):
    """Decision: start the child run `run_id` of workflow `name`.

    `on_parent_end` says what happens to it when this run ends first: `cancel`, `abandon` or `wait`.
    """

    seq: int
    name: str
    run_id: str
    tenant: str
    input: Raw
    on_parent_end: str = "cancel"


class ChildCancelled(HistoryEvent, tag="child-cancelled", frozen=True, gc=False):
    """Decision: ask the child to cancel. Its outcome follows as another event."""

    seq: int
    name: str


class ChildCompleted(HistoryEvent, tag="child-done", frozen=True, gc=False):
    """Fact: the child of workflow `name` completed with `result`."""

    seq: int
    name: str
    result: Raw


class ChildFailed(HistoryEvent, tag="child-failed", frozen=True, gc=False):
    """Fact: the child of workflow `name` failed, or was cancelled if `cancelled` is true."""

    seq: int
    name: str
    failure: Failure
    cancelled: bool = False


class RunContinued(HistoryEvent, tag="continued", frozen=True, gc=False):
    """Decision: continue as new. The run keeps its id, and its history starts again with this event and a new `input`.

    - `seq`: the last number that was given before, so that a late outcome can't match a new step;
    - `started`: the time of the very first start;
    - `generation`: how often the run has continued as new, this one included;
    - `carried`: signals and questions that were received and not taken yet;
    - `children`: `(seq, workflow, run id)` of the children with `on_parent_end="wait"`;
    - `created`: as in the `RunStarted` of the first generation;
    - `dropped`: how many signals and questions were not carried over, by name: those that the generation before never
      waited for are bounded in number and bytes.
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
    created: int = 0
    dropped: dict[str, int] = {}


class MessageQuarantined(HistoryEvent, tag="quarantined", frozen=True, gc=False):
    """A message to a run could not be processed and was moved to the shard's `poison` stream.

    It is not part of a history: only the shard's log (`streamflow tail`) has it, under the run id `-<message>`.
    `message` is the message's id in the inbox. `run_id` is the run that it was addressed to, and is not validated.
    `shard` is the number of the shard; -1: a release wrote it that didn't say.
    """

    message: str
    reason: str
    run_id: str = ""
    shard: int = -1


AnyEvent = (
    RunStarted
    | RunCompleted
    | RunFailed
    | RunCancelled
    | RunStuck
    | RunResumed
    | RunPaused
    | PauseEnded
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
    | SignalSkipped
    | SignalSent
    | AskReceived
    | AskAnswered
    | ChildStarted
    | ChildCompleted
    | ChildFailed
    | ChildCancelled
    | MessageQuarantined
    | RunRetried
    | StartDelayed
    | StartDue
    | TimeoutSet
    | TimeoutReached
    | RunForked
    | Recorded
)
"""Any event of a history or a log."""

DECISIONS = (
    StepScheduled,
    StepCancelled,
    TimerSet,
    SignalSkipped,
    SignalSent,
    AskAnswered,
    ChildStarted,
    ChildCancelled,
)
"""Decisions that a replay must make again, in the same order and with the same numbers."""

ENDINGS = (RunCompleted, RunFailed, RunCancelled)
"""Decisions that end a run; one of them is the last event of a run that has ended. A `RunRetried` may follow."""


class Transition(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What one commit did to one run: one element of its history, and one part of a log entry.

    `at` is the shard's clock, in milliseconds since the Unix epoch, when the facts were applied; `sf.now()` returned it
    to the code. `events` are the facts and decisions of that commit, in order.
    """

    at: int
    events: list[AnyEvent]


class Awaited(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A signal that the code waits for, or a question: then `key` begins with a question mark. `type`: what its value
    has to be, empty for anything. `until`: when the first of the waits for it times out (ms), 0 if none does; if they
    are more than 100, of the oldest 100."""

    key: str
    type: str = ""
    until: int = 0


class Unrecorded(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a run waits for behind a transition, as far as no event tells it. Of most transitions there is nothing.

    `messages`: the signals and questions, as many as fit; `more`: how many others. `closed`: numbers of timers and
    children that the code has given up in this transition. `still`: the numbers of all that are still open, where that
    is shorter, or no event tells what the code has given up before; else None.

    `untaken`: in the transition that ends the run, the signals that had come and that no code took: how many of each
    name, of at most ten names.
    """

    messages: list[Awaited] = []
    closed: list[int] = []
    still: list[int] | None = None
    more: int = 0
    untaken: dict[str, int] = {}


class RecordedTransition(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A `Transition` with all that its element of the record has. Between the two there is what the log has there."""

    at: int
    events: list[AnyEvent]
    number: int = 0
    created: int = 0
    unrecorded: Unrecorded | None = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Transition)
_recorded = msgspec.msgpack.Decoder(RecordedTransition)


def encode_transition(at: int, events: list[AnyEvent], unrecorded: Unrecorded | None = None) -> bytes:
    """The bytes of `Transition(at, events)`, with what no event tells, if there is something. Readers that don't ask
    for that read over it."""
    if unrecorded is None:
        return _encoder.encode(Transition(at, events))
    messages, closed, still, more = unrecorded.messages, unrecorded.closed, unrecorded.still, unrecorded.more
    if unrecorded.untaken:
        return _encoder.encode((at, events, 0, 0, (messages, closed, still, more, unrecorded.untaken)))
    parts = (messages, closed, still, more) if more else (messages, closed, still)
    if not more and still is None:
        parts = (messages, closed) if closed else (messages,)
    return _encoder.encode((at, events, 0, 0, parts))


def decode_recorded(element: bytes) -> RecordedTransition:
    """Raises as `decode_transition`."""
    return _recorded.decode(element)


def decode_transition(data: bytes) -> Transition:
    """Raises `msgspec.DecodeError`, `RecursionError` or `UnicodeDecodeError` if `data` is not a transition."""
    return _decoder.decode(data)


def decode_history(elements: Iterable[bytes]) -> list[Transition]:
    """The transitions of a stored history, of a fork also those that it shares. Raises as `decode_transition`."""
    history = [_decoder.decode(element) for element in elements]
    return unfolded(history) if history and is_fork(history[0].events) else history


def is_fork(events: Sequence[AnyEvent]) -> bool:
    """Whether this is the first transition of a run that began as a fork, as it is stored."""
    return bool(events) and type(events[0]) is RunForked and bool(events[0].history)


def unfolded(history: list[Transition]) -> list[Transition]:
    """A fork's history from its stored transitions, of which the first one has those that it shares. A run that has
    continued as new in that one shares none any more."""
    first = history[0]
    fork = first.events[0]
    assert type(fork) is RunForked
    own = Transition(first.at, [msgspec.structs.replace(fork, history=[]), *first.events[1:]])
    has_continued = any(type(event) is RunContinued for event in first.events)
    return [*([] if has_continued else fork.history), own, *history[1:]]


def latest_fork(history: Sequence[Transition]) -> RunForked | None:
    """How the run began whose history this is, if it is a fork; None also if it has continued as new since."""
    for transition in reversed(history):
        event = transition.events[0] if transition.events else None
        if isinstance(event, RunForked):
            return event
    return None


def last_stopped(transitions: Sequence[Transition]) -> tuple[RunStuck | RunPaused, int] | None:
    """Why the code of a run isn't run, or wasn't the last time, if these transitions of its history say it; and since
    when (ms)."""
    for transition in reversed(transitions):
        for event in reversed(transition.events):
            if isinstance(event, RunStuck | RunPaused):
                return event, transition.at
    return None


def last_paused(transitions: Sequence[Transition]) -> RunPaused | None:
    """What a run is paused by, if these transitions of its history say it; None if that has ended."""
    for transition in reversed(transitions):
        for event in reversed(transition.events):
            if isinstance(event, RunPaused | PauseEnded):
                return event if isinstance(event, RunPaused) else None
    return None


def last_stuck(transitions: Sequence[Transition]) -> tuple[RunStuck, int] | None:
    """Why a run is stuck, or was last, if these transitions of its history say it; and since when (ms)."""
    for transition in reversed(transitions):
        for event in reversed(transition.events):
            if isinstance(event, RunStuck):
                return event, transition.at
    return None
