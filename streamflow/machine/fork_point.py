"""What a fork of a run shares with it, and how its history is cut for that.

Owns: up to which event a fork shares the history of a run, and where its code goes on from there.
Must not: run code, start the fork (the client does), take it (`replay.py` does). Called by: the client, the sandbox.

A fork shares the first events of a history. What is cut off begins with a fact, or was decided because of one: then
that fact is shared, and the code gets it once more, so that it decides again. So no decision is shared without all that
the code decided with it, whatever event was named.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from msgspec import Raw

from streamflow.errors import Failure, HistoryTooLong
from streamflow.events import (
    DECISIONS,
    ENDINGS,
    AnyEvent,
    CancelRequested,
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
    StartDelayed,
    StartDue,
    StepRetrying,
    TimeoutReached,
    TimeoutSet,
    Transition,
    encode_transition,
)
from streamflow.events import ChildFailed as ChildFailedEvent
from streamflow.events import StepFailed as StepFailedEvent
from streamflow.machine.retry_point import MOST_EVENTS, CannotRetry, first_position, retry_point
from streamflow.model.record import Header, Status

MOST_BYTES = 6 * 1024 * 1024
"""Of what a fork shares: its first transition has that, and a commit takes 8 MB of one."""
_DECIDED = (*DECISIONS, *ENDINGS, Patched, Recorded)
_BEGINNINGS = (RunStarted, StartDue, RunContinued, RunRetried, RunForked)
"""Facts behind which the time stands that the run has, and then what the code decided for them."""
_INTERRUPTS = (CancelRequested, HistoryLimitReached, TimeoutReached)
"""Facts that a fork doesn't share whose code would get them when it begins."""


class CannotFork(Exception):
    """`kind`: that of the failure which is raised. The text is for who asks for the fork."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind

    @property
    def failure(self) -> Failure:
        return Failure(self.kind, str(self))


class _Cut(NamedTuple):
    """`end`: as many events are shared. `kept`: the position of the first one that the code gets when the fork begins,
    `end` if it has got all."""

    end: int
    kept: int


def fork_of(
    run_id: str,
    header: Header,
    history: list[Transition],
    at: int | None,
    input: Raw | None,
    by: str,
    reason: str,
) -> RunForked:
    """The beginning of a fork that goes on from before event `at` of this history (from 1), or from where the run is,
    or has failed, or was cancelled. With an `input` it has another one. Raises `CannotFork`."""
    recorded = [event for transition in history for event in transition.events]
    if not recorded:
        raise CannotFork("NotBegun", f"run {run_id} has not begun: there is nothing to share. Start a new run")
    first = first_position(history[0])
    if at is None:
        at = first + 2 if input is not None else _default(run_id, header, history, recorded, first)
    if not 1 <= at <= len(recorded) + 1:
        raise CannotFork("NoSuchEvent", f"run {run_id} has {len(recorded):,} events: there is no event {at}")
    if at <= first:
        raise CannotFork(
            "Gone",
            f"event {at} of run {run_id} is of the time before it continued as new, of which the history is gone: "
            f"fork it from event {first + 1} or a later one",
        )
    cut = _cut(recorded, max(at - 1, first + 1), first)
    if cut.end >= MOST_EVENTS:
        raise CannotFork(
            HistoryTooLong.__name__,
            f"a fork of run {run_id} would begin with {cut.end:,} events, and could not go on for long: fork it from "
            "an earlier event",
        )
    shared = _shared(history, cut.end)
    if input is not None:
        shared[0] = _with_input(shared[0], first, input)
    size = sum(len(encode_transition(transition.at, transition.events)) for transition in shared)
    if size > MOST_BYTES:
        raise CannotFork(
            "TooLarge",
            f"a fork of run {run_id} from there would share {size / 1024 / 1024:.1f} MB of history, and the limit is "
            f"{MOST_BYTES // 1024 // 1024} MB: fork it from an earlier event",
        )
    return RunForked(
        header.workflow,
        header.tenant,
        run_id,
        header.created,
        cut.end,
        cut.kept - first,
        max(getattr(event, "seq", 0) for event in recorded[: cut.end]),
        changed=input is not None,
        by=by,
        reason=reason,
        before=_id_at(recorded, cut.end),
        history=shared,
    )


def _default(run_id: str, header: Header, history: list[Transition], recorded: Sequence[AnyEvent], first: int) -> int:
    """The number of the event with which a fork goes on, if none is named."""
    if header.is_open:
        return len(recorded) + 1
    if header.status == Status.COMPLETED:
        raise CannotFork("SayWhere", f"run {run_id} has completed: say from which event its fork goes on (--at)")
    if header.status == Status.CANCELLED:
        requests = [i for i, event in enumerate(recorded) if isinstance(event, CancelRequested)]
        return requests[-1] + 1 if requests else len(recorded)
    try:
        position = first + retry_point(run_id, history).kept
    except CannotRetry as error:
        text = f"it isn't known from where a fork of run {run_id} goes on ({error}): say from which event (--at)"
        raise CannotFork("SayWhere", text) from None
    again = isinstance(recorded[position], StepFailedEvent | ChildFailedEvent | RunRetried | TimeoutReached)
    return position + 1 if again else position + 2


def _cut(recorded: Sequence[AnyEvent], end: int, first: int) -> _Cut:
    """Where the history is cut of which at most `end` events are to be shared."""
    while end < len(recorded) and _belongs(recorded[end], recorded[end - 1]):
        end += 1
    following = recorded[end] if end < len(recorded) else None
    if isinstance(following, RunForked):  # what its code got there is cut off
        return _Cut(end, first + following.kept)
    decided = isinstance(following, _DECIDED)
    while True:
        last = recorded[end - 1]
        if isinstance(last, ENDINGS):  # it went on behind that: a decision is missing
            decided = True
            end -= 1
        elif not decided:
            if isinstance(last, RunResumed | PauseEnded):  # its code got what was held then, and that is cut off
                end -= 1
            elif isinstance(following, RunStuck | RunPaused):
                begin = _fact_at(recorded, end)
                if isinstance(recorded[begin], RunStarted | RunContinued):
                    return _Cut(end, begin)
            return _Cut(end, end)
        elif isinstance(last, _INTERRUPTS):  # it isn't shared
            decided = False
            following = last
            end -= 1
        elif isinstance(last, RunResumed | PauseEnded):
            return _Cut(end - 1, end - 1)
        elif isinstance(last, RunStuck | RunPaused):
            return _Cut(end, end)
        elif isinstance(last, (*_DECIDED, StepRetrying)):
            end -= 1
        else:
            begin = _fact_at(recorded, end)
            fact = recorded[begin]
            return _Cut(begin, first + fact.kept) if isinstance(fact, RunRetried | RunForked) else _Cut(end, begin)


def _belongs(event: AnyEvent, before: AnyEvent) -> bool:
    """Whether an event that somebody names is a part of the fact before it, and is shared with that."""
    if isinstance(event, StartDelayed):
        return isinstance(before, RunStarted)
    return isinstance(event, TimeoutSet) and isinstance(before, _BEGINNINGS)


def _fact_at(recorded: Sequence[AnyEvent], end: int) -> int:
    """The position of the last fact before this one, which may be followed by the time that the run has."""
    begin = end - 1
    return begin - (begin > 0 and _belongs(recorded[begin], recorded[begin - 1]))


def _id_at(recorded: Sequence[AnyEvent], end: int) -> str:
    """Of the run to which the event before this position happened, if the history is that of a fork, and it shares that
    event; else empty."""
    following = next((event for event in recorded[end:] if isinstance(event, RunForked)), None)
    return "" if following is None else following.before or following.of


def _shared(history: Sequence[Transition], end: int) -> list[Transition]:
    shared: list[Transition] = []
    for transition in history:
        if end <= 0:
            break
        if transition.events:
            shared.append(Transition(transition.at, transition.events[:end]))
        end -= len(transition.events)
    return shared


def _with_input(transition: Transition, first: int, input: Raw) -> Transition:
    found = transition.events[:]
    began = found[first]
    if isinstance(began, RunStarted | RunContinued):
        found[first] = msgspec.structs.replace(began, input=input)
    return Transition(transition.at, found)
