"""Where a run that has ended goes on when it is retried, and what of its history is void then.

Owns: which fact the run goes back to, what it has done since, and how a history with a `RunRetried` is replayed.
Must not: run code, decide whether a run is retried (`run.py` does). Called by: the owner, the replay.

A retry changes nothing that was recorded. The run goes back to the fact because of which it failed: what is behind it
is a gap, as if the run had been stuck there. Decisions in a gap are void, and so are failures, whose steps are tried
again. Results, signals, questions and timers in it count: the code gets them when the gap ends, at the `RunRetried`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from streamflow import events
from streamflow.errors import ChildFailed, Failure, HistoryTooLong, RunTimedOut, StepFailed
from streamflow.events import (
    DECISIONS,
    ENDINGS,
    AnyEvent,
    AskAnswered,
    AskReceived,
    CancelRequested,
    ChildCancelled,
    ChildCompleted,
    ChildStarted,
    HistoryEvent,
    HistoryLimitReached,
    Patched,
    PauseEnded,
    Recorded,
    RunContinued,
    RunForked,
    RunPaused,
    RunResumed,
    RunRetried,
    RunStarted,
    RunStuck,
    SignalReceived,
    SignalSent,
    StartDelayed,
    StartDue,
    StepCancelled,
    StepCompleted,
    StepRetrying,
    StepScheduled,
    TimeoutReached,
    TimeoutSet,
    TimerFired,
    Transition,
)
from streamflow.machine.transition import AgainRequest, CompletedChild, FailedChild, RetryRequest
from streamflow.model.record import Header, ParentLink, Status, parent_link

MOST_EVENTS = 54_000
"""In a history that a run goes on with: there must be room for what it decides, to continue as new (`EVENTS_FAIL`)."""
MAX_DEPTH = 20
"""Of a chain of failures, as far as it is looked through."""
MAX_NAMED = 5

_COUNTS = (
    RunStarted,
    StartDelayed,
    StartDue,
    TimeoutSet,
    StepCompleted,
    ChildCompleted,
    TimerFired,
    SignalReceived,
    AskReceived,
    StepRetrying,
)
"""Facts that count in a gap."""
_GOES_ON = frozenset({RunRetried, RunForked})
"""Events that end a gap."""
_NO_FACTS = (
    *DECISIONS,
    *ENDINGS,
    CancelRequested,
    HistoryLimitReached,
    Patched,
    PauseEnded,
    Recorded,
    RunContinued,
    RunPaused,
    RunResumed,
    RunStuck,
    StartDelayed,
    TimeoutReached,
    TimeoutSet,
)


class Void(HistoryEvent, frozen=True, gc=False):
    """In the place of an event that is void."""

    def describe(self) -> str:
        return "no further decision"


class GapBegins(Void, frozen=True):
    """In the place of the event that the run goes back to: that event, if it counts."""

    fact: AnyEvent | None


class GapForked(Void, frozen=True):
    """In the place of a `RunForked` in a gap: who the run is from here on holds all the same."""

    fork: RunForked


class VoidRecord(Void, frozen=True):
    """In the place of what the run's code had recorded in the gap of a retry: it counts already."""

    record: Recorded


VOID = Void()


class RetryPoint(msgspec.Struct, frozen=True):
    """`kept`, `seq`: as in `RunRetried`. `results`: of steps and children, as many as are kept. `undone`: what the run
    has done behind this point, in words. `attempts`: by number of a step, the highest one of its attempts so far.
    `failure`, `failed_at`: what it has failed from, and when (ms). `failed`: numbers of children whose failure has come
    behind this point, though the run had not cancelled them. `cancelled`: what the run has ended as was its parent's
    doing, which is void."""

    kept: int
    seq: int
    results: int
    undone: list[str]
    attempts: dict[int, int]
    failure: Failure
    failed_at: int
    failed: frozenset[int] = frozenset()
    cancelled: bool = False


class CannotRetry(Exception):
    """`kind`: that of the failure in the answer. The text is for who asks for the retry."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind

    @property
    def failure(self) -> Failure:
        return Failure(self.kind, str(self))


def first_position(transition: Transition) -> int:
    """The position at which the history begins in its first transition: its last `RunContinued`, or 0."""
    found = transition.events
    return next((i for i in range(len(found) - 1, 0, -1) if _begins(found[i])), 0)


def _begins(event: AnyEvent) -> bool:
    """Whether a generation begins with it."""
    return isinstance(event.fact if isinstance(event, GapBegins) else event, RunContinued)


def with_gaps(history: list[Transition], kept: int | None = None, *, is_fork: bool = False) -> list[Transition]:
    """What a replay goes through: as long as the history, with `GapBegins` and `VOID` in the gaps of its retries. With
    `kept`, also in the one that a retry now would have, or with `is_fork` the fork that begins with this history. The
    same object if it has none."""
    if kept is None and not _goes_on(history):
        return history
    first = first_position(history[0])
    found: list[AnyEvent] = [event for transition in history for event in transition.events]
    end = len(found)
    if kept is not None:
        _void(found, first + kept, end, is_fork=is_fork)
    while end > first:  # from the last one: those that are in its gap are void then
        end -= 1
        event = found[end]
        if isinstance(event, RunRetried | RunForked):
            _void(found, first + event.kept, end, is_fork=type(event) is RunForked)
    replayed: list[Transition] = []
    begin = 0
    for transition in history:
        replayed.append(Transition(transition.at, found[begin : begin + len(transition.events)]))
        begin += len(transition.events)
    return replayed


def _goes_on(history: list[Transition]) -> bool:
    """Whether it has a retry, or is that of a fork. Each replay asks this. Nothing comes before the event in its
    transition."""
    for transition in history:  # noqa: SIM110 - a generator costs twice as much
        if transition.events and type(transition.events[0]) in _GOES_ON:
            return True
    return False


def _void(found: list[AnyEvent], begin: int, end: int, *, is_fork: bool = False) -> None:
    """`is_fork`: the gap is that of a fork. If it has one fact, and the time that the run had from then, the code had
    got that before, and gets it once more, whatever it is."""
    is_once_more = is_fork and all(isinstance(found[i], TimeoutSet | Recorded) for i in range(begin + 1, end))
    for i in range(begin, end):
        event = found[i]
        counts = is_once_more or isinstance(event, _COUNTS)
        if type(event) is RunForked:
            found[i] = GapForked(event)  # pyright: ignore[reportArgumentType, reportCallIssue]
        elif type(event) is Recorded and not event.seq and not is_fork:
            found[i] = VoidRecord(event)  # pyright: ignore[reportArgumentType, reportCallIssue]
        elif i == begin:
            found[i] = GapBegins(event if counts else None)  # pyright: ignore[reportArgumentType, reportCallIssue]
        elif not counts:
            found[i] = VOID  # pyright: ignore[reportArgumentType, reportCallIssue]


def check_end(run_id: str, header: Header, retry: RetryRequest, *, is_reducer: bool) -> None:
    """Raises `CannotRetry` if the run isn't the one that is to be retried, or has not failed as it had then."""
    if header.created != retry.created:
        raise CannotRetry("NotFailed", f"run {run_id} was forgotten, and another run has its id since")
    if retry.seq:
        raise CannotRetry("NotOpen", not_open(run_id))
    if header.status != Status.FAILED:
        raise CannotRetry("NotFailed", not_failed(run_id, header.status))
    if header.version != retry.version:
        raise CannotRetry("NotFailed", f"run {run_id} was retried already, and has failed again since")
    if is_reducer:
        raise reducer_stays(run_id)


def reducer_stays(run_id: str) -> CannotRetry:
    return CannotRetry(
        "Reducer", f"run {run_id} is a reducer: its state isn't a history, so it can't go back. Start a new run"
    )


def not_failed(run_id: str, status: str) -> str:
    """Why a run with this status isn't retried."""
    was = {Status.COMPLETED: "has completed", Status.FAILED: "has failed", Status.CANCELLED: "was cancelled"}
    open_too = "" if status in was else ", or with --step a step of an open one"
    return (
        f"run {run_id} {was.get(Status(status), f'is {status}')}: only a run that has failed or is stuck can be retried"
        f"{open_too}"
    )


def not_open(run_id: str) -> str:
    """Why no step of a run begins again."""
    return f"run {run_id} has ended: none of its steps runs. If it has failed, retry it without a step"


def again_point(
    run_id: str, header: Header, history: list[Transition], again: AgainRequest, *, is_reducer: bool
) -> RetryPoint | CompletedChild | FailedChild:
    """Where a run goes on that has ended, because its parent does; or what its parent gets, if it doesn't."""
    recorded = [event for transition in history for event in transition.events]
    ending = recorded[-1]
    parent = parent_link(again.parent) or ParentLink("", 0, 0)
    if isinstance(ending, events.RunCompleted):
        return CompletedChild(parent.seq, header.workflow, ending.result, parent.created, run_id)
    is_cancelled = isinstance(ending, events.RunCancelled)
    failure = _failure(ending)
    has_gone_on = any(isinstance(event, RunRetried) and event.request == again.id for event in recorded)
    if has_gone_on or (again.late and any(isinstance(event, RunContinued) for event in recorded)):
        # What a later generation does isn't what its parent has cancelled, and it doesn't know of retries before it.
        return FailedChild(parent.seq, header.workflow, failure, is_cancelled, parent.created, run_id, again.id)
    try:
        if is_reducer:
            raise reducer_stays(run_id)
        return retry_point(run_id, history, may_be_cancelled=again.cancelled)
    except CannotRetry as error:
        return not_again(run_id, again, error, failure)


def _failure(ending: AnyEvent | None) -> Failure:
    """Why the run has ended, which has not completed."""
    if isinstance(ending, events.RunCancelled):
        return Failure("RunCancelled", ending.reason)
    return ending.failure if isinstance(ending, events.RunFailed) else Failure("NotFailed", "")


def not_again(run_id: str, again: AgainRequest, error: CannotRetry, failure: Failure) -> FailedChild:
    """What the parent of a child gets that has ended with this failure, and can't go on."""
    parent = parent_link(again.parent) or ParentLink("", 0, 0)
    why = Failure("NotRetried", f"{error.kind}: {error}", cause=failure)
    return FailedChild(parent.seq, again.workflow, why, False, parent.created, run_id, again.id)


def no_child(run_id: str, again: AgainRequest) -> FailedChild:
    """What the parent of a child gets that isn't there."""
    parent = parent_link(again.parent) or ParentLink("", 0, 0)
    text = (
        f"child run {run_id} can't go on: it is not on the server. If it is in the archive, `streamflow restore "
        f"{run_id}` puts it back, and then retry this run again; it may have been forgotten, or its id is another run's"
    )
    failure = Failure("RunNotFound", text)
    return FailedChild(parent.seq, again.workflow, failure, False, parent.created, run_id, again.id)


def _cancelled_by_parent(found: Sequence[AnyEvent]) -> int | None:
    """The position from which on a cancel by the parent is void. None if there was none, or somebody has terminated the
    run."""
    requests = [i for i, event in enumerate(found) if isinstance(event, CancelRequested)]
    if not requests or any(event.terminate for event in found if isinstance(event, CancelRequested)):
        return None
    position = requests[0]
    if position and isinstance(found[position - 1], RunResumed | PauseEnded):  # it was cancelled without its code
        position -= 1
    return position


def retry_point(run_id: str, history: list[Transition], *, may_be_cancelled: bool = False) -> RetryPoint:
    """Where a run with this history, which has ended, goes on. `may_be_cancelled`: also one that was cancelled, and
    from before that: it was its parent, which didn't do it after all. Raises `CannotRetry`."""
    recorded = [event for transition in history for event in transition.events]
    ending = recorded[-1] if recorded else None
    was_cancelled = may_be_cancelled and isinstance(ending, events.RunCancelled)
    if not (was_cancelled or isinstance(ending, events.RunFailed)):
        how = "was cancelled" if isinstance(ending, events.RunCancelled) else "has not failed"
        raise CannotRetry("NotFailed", f"run {run_id} {how}")
    failure = _failure(ending)
    if len(recorded) >= MOST_EVENTS:
        raise CannotRetry(
            HistoryTooLong.__name__,
            f"run {run_id} has {len(recorded):,} events, and could not go on for long: start a new run",
        )
    first = first_position(history[0])
    found = [event for transition in with_gaps(history) for event in transition.events][first:]
    transitions = [number for number, transition in enumerate(history) for _ in transition.events][first:]
    cancelled_at = _cancelled_by_parent(found) if may_be_cancelled else None
    if was_cancelled and cancelled_at is None:
        raise CannotRetry("NotFailed", f"run {run_id} was cancelled")
    kept = _position(found, failure, set())
    if failure.kind == RunTimedOut.__name__:  # what it has done since was to clean up
        kept = max((i for i, event in enumerate(found) if isinstance(event, TimeoutReached)), default=None)
    if kept is None:
        kept = _last_fact(found, transitions) if cancelled_at is None else cancelled_at
    if cancelled_at is not None:
        kept = min(kept, cancelled_at)
    if kept == 0 and isinstance(found[0], RunContinued):
        raise CannotRetry(
            "NothingKept",
            f"run {run_id} failed before anything had happened since it continued as new: start a new run",
        )
    return RetryPoint(
        kept,
        max(getattr(event, "seq", 0) for event in recorded),
        _results(found, kept),
        list(_undone(found, transitions, kept)),
        _attempts(recorded),
        failure,
        history[-1].at,
        frozenset(_failed_by_themselves(found, kept)),
        was_cancelled,
    )


def _failed_by_themselves(found: Sequence[AnyEvent], kept: int) -> Iterator[int]:
    cancelled: set[int] = set()
    for event in found[kept:]:
        if isinstance(event, ChildCancelled):
            cancelled.add(event.seq)
        elif isinstance(event, events.ChildFailed) and event.seq not in cancelled:
            yield event.seq


def _position(found: Sequence[AnyEvent], failure: Failure, used: set[int], depth: int = 0) -> int | None:
    """That of the failed step or child that this failure comes from: the outermost in a chain, the first of a group.
    `used`: those that are other members' of a group."""
    if depth > MAX_DEPTH:
        return None
    position = _failed(found, failure, used)
    if position is not None:
        used.add(position)
        return position
    of_members = [_position(found, member, used, depth + 1) for member in failure.members]
    if positions := [at for at in of_members if at is not None]:
        return min(positions)
    for other in (failure.cause, failure.context):
        if other is not None and (position := _position(found, other, used, depth + 1)) is not None:
            return position
    return None


def _failed(found: Sequence[AnyEvent], failure: Failure, used: set[int]) -> int | None:
    """The last event that this failure was raised for, if it was for one."""
    fields, cause = failure.fields, failure.cause
    if failure.kind == StepFailed.__name__:
        wanted = fields.get("step"), fields.get("attempt")
        positions = [
            i
            for i, event in enumerate(found)
            if isinstance(event, events.StepFailed) and (event.name, event.attempt) == wanted
        ]
    elif failure.kind == ChildFailed.__name__:
        numbers = _children(found, fields.get("run_id"))
        positions = [
            i for i, event in enumerate(found) if isinstance(event, events.ChildFailed) and event.seq in numbers
        ]
    else:
        return None
    free = [i for i in positions if i not in used]
    same = [i for i in free if cause is not None and str(getattr(found[i], "failure", None)) == str(cause)]
    return max(same or free, default=None)


def _children(found: Sequence[AnyEvent], run_id: object) -> set[int]:
    numbers = {event.seq for event in found if isinstance(event, ChildStarted) and event.run_id == run_id}
    for event in found[:1]:
        if isinstance(event, RunContinued):
            numbers |= {seq for seq, _, child in event.children if child == run_id}
    return numbers


def _last_fact(found: Sequence[AnyEvent], transitions: Sequence[int]) -> int:
    """The last fact in the transition that ended the run: its code had just got it. Without one the run goes on from
    before that transition."""
    last = transitions[-1]
    position = len(found) - 1
    begin = position
    while position >= 0 and transitions[position] == last:
        event = found[position]
        if isinstance(event, RunRetried | RunForked):
            return event.kept
        if not isinstance(event, (*_NO_FACTS, Void)):
            return position
        begin = position
        position -= 1
    return begin


def _results(found: Sequence[AnyEvent], kept: int) -> int:
    """Of steps and children, those that the code has got, or gets when it goes on."""
    opened = {getattr(event, "seq", 0) for event in found[:kept] if isinstance(event, StepScheduled | ChildStarted)}
    done = {event.seq for event in found if isinstance(event, StepCompleted | ChildCompleted)}
    return len(done & opened)


def _undone(found: Sequence[AnyEvent], transitions: Sequence[int], kept: int) -> Iterator[str]:
    """What the run has done behind the point, and would not know of any more."""
    seen = {event.seq for event in found[kept:] if isinstance(event, StepCompleted | StepRetrying | events.StepFailed)}
    cancelled = {
        event.seq: transitions[i] for i, event in enumerate(found) if i >= kept and isinstance(event, StepCancelled)
    }
    for i in range(kept, len(found)):
        event = found[i]
        if isinstance(event, StepScheduled):
            # What is decided and dropped in one transition has never begun.
            began = transitions[i] < min(cancelled.get(event.seq, transitions[-1]), transitions[-1])
            if event.seq in seen or began:
                yield f"step {event.name} (number {event.seq})"
        elif isinstance(event, ChildStarted):
            yield f"child run {event.run_id}"
        elif isinstance(event, SignalSent):
            yield f"signal {event.name} to run {event.target}"
        elif isinstance(event, AskAnswered):
            yield f"the answer to question {event.name or event.id}"


def _attempts(recorded: Sequence[AnyEvent]) -> dict[int, int]:
    highest: dict[int, int] = {}
    for event in recorded:
        if isinstance(event, StepRetrying):
            highest[event.seq] = max(highest.get(event.seq, 1), event.attempt + 1)
        elif isinstance(event, StepCompleted | events.StepFailed):
            highest[event.seq] = max(highest.get(event.seq, 1), event.attempt)
        elif isinstance(event, RunRetried):
            for seq, attempt in event.attempts:
                highest[seq] = max(highest.get(seq, 1), attempt)
    return highest


def named(texts: Sequence[str]) -> str:
    """The first of them."""
    more = len(texts) - MAX_NAMED
    return ", ".join(texts[:MAX_NAMED]) + (f" and {more:,} more" if more > 0 else "")
