"""A run's history as spans: what happened from when to when, with what outcome.

Owns: pairing decisions with their outcomes, and folding long histories. Must not: draw (`run.py` does).
Called by: `run.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from streamflow import events
from streamflow.errors import Failure
from streamflow.events import (
    AnyEvent,
    AskAnswered,
    AskReceived,
    CancelRequested,
    ChildCancelled,
    ChildCompleted,
    ChildStarted,
    HistoryLimitReached,
    Patched,
    PauseEnded,
    Recorded,
    RunContinued,
    RunForked,
    RunPaused,
    RunResumed,
    RunRetried,
    RunStuck,
    SignalReceived,
    SignalSent,
    SignalSkipped,
    StartDelayed,
    StartDue,
    StepCancelled,
    StepCompleted,
    StepRetrying,
    StepScheduled,
    TimeoutReached,
    TimerFired,
    TimerSet,
    Transition,
)
from streamflow.screen.payload import preview

MAX_ROWS = 200
FOLD_FROM = 3
"""From this many consecutive spans of one kind and name on, they are folded into one; only in a history with more than
`MAX_ROWS` spans."""
PREVIEW = 200
"""Characters of a payload or of an error message in a note."""


START = 0
"""Instead of a number: the start, if it is delayed."""
_NO_SPAN_OF = (RunContinued, RunForked, RunRetried, Recorded)
"""Their number is the last one that was given, and that of another event."""


@dataclass
class Span:
    """Points in time are ms, as in the history. A folded span stands for `count` spans; then `times`, `open` and
    `failures` are about these."""

    kind: str
    """step, timer, child, signal, sent, ask, patch, record, continued, limit, stuck, paused, retried or cancel."""
    name: str
    start: int
    end: int | None = None
    """None: still open."""
    failed: bool = False
    attempts: int = 0
    due: int = 0
    """When a timer fires, or the next attempt starts."""
    took: float | None = None
    """Duration of the last attempt, ms."""
    note: str = ""
    marks: list[int] = field(default_factory=lambda: list[int]())
    """When attempts failed."""
    child: str = ""
    """Run id of the child."""
    queue: str = ""
    number: int = 0
    """That of the event with which it began, from 1: where a fork may go on from."""
    count: int = 1
    times: list[float] = field(default_factory=lambda: list[float]())
    """How long each folded span that has ended took, ms."""
    open: int = 0
    failures: int = 0


def spans_of(transitions: Iterable[Transition]) -> list[Span]:
    """One span for each step, timer, child, signal and ask, in the order in which they began."""
    spans: list[Span] = []
    by_id: dict[int | str, Span] = {}
    stuck: list[Span] = []
    kept: list[Span] = []
    """Signals that have come while it was stuck."""
    failure = ""
    number = 0
    for transition in transitions:
        for index, event in enumerate(transition.events):
            number += 1
            span = _begin(transition.at, event)
            if span is not None:
                span.number = number
                spans.append(span)
                if isinstance(event, AskReceived):
                    by_id[event.id] = span
                elif not isinstance(event, _NO_SPAN_OF) and (seq := getattr(event, "seq", None)) is not None:
                    by_id[seq] = span
                if isinstance(event, RunContinued):
                    _carry_over(spans, by_id, transition.at, event)
                elif isinstance(event, RunStuck | RunPaused):
                    stuck.append(span)
                elif stuck and isinstance(event, SignalReceived):
                    kept.append(span)
                elif isinstance(event, StartDelayed):
                    by_id[START] = span
                elif isinstance(event, RunForked):
                    stuck = _close(stuck, transition.at)
                    kept.clear()
                    _begin_again(by_id, event)
                elif isinstance(event, RunRetried):
                    if failure:
                        span.note = f"{span.note}, after {failure}" if span.note else f"after {failure}"
                    _begin_again(by_id, event)
            elif isinstance(event, RunResumed | PauseEnded):
                if isinstance(event, RunResumed) and _ends_by_force(transition.events[index + 1 : index + 3]):
                    for span in kept:
                        span.note = f"not taken, stuck: {span.note}"
                kept.clear()
                stuck = _close(stuck, transition.at)
            elif isinstance(event, events.RunFailed):
                failure = _failure_text(event.failure)
            elif isinstance(event, events.RunCancelled):
                start = by_id.get(START)
                if start is not None and start.end is None:  # its code has never begun
                    start.end, start.note = transition.at, "cancelled"
            else:
                _apply_outcome(by_id, transition.at, event)
    return spans


def _ends_by_force(following: list[AnyEvent]) -> bool:
    """Whether a run that was stuck ends here without its code, by what comes behind its `RunResumed`."""
    return [type(event) for event in following] == [CancelRequested, events.RunCancelled]


def mark_untaken(spans: list[Span], untaken: dict[str, int]) -> None:
    """Say of the newest signals of these names, so many of each, that the run's code never took them."""
    left = dict(untaken)
    for span in reversed(spans):
        if span.kind == "signal" and left.get(span.name):
            left[span.name] -= 1
            span.note = f"not taken, run ended: {span.note}"


def _begin(at: int, event: AnyEvent) -> Span | None:
    match event:
        case StepScheduled():
            return Span("step", event.name, at, note=preview(event.args, PREVIEW), queue=event.queue)
        case TimerSet():
            # A timer that limits the wait for a signal has no row: the signal that came, or the time-out, shows enough.
            return Span("timer", "sleep", at, due=event.due) if not event.name else None
        case ChildStarted():
            return Span("child", event.name, at, child=event.run_id, note=event.run_id)
        case SignalReceived():
            return Span("signal", event.name, at, at, note=preview(event.value, PREVIEW))
        case SignalSkipped():
            return Span("skipped", event.name, at, at, note="it isn't of the type that the code asked for")
        case SignalSent():
            return Span("sent", event.name, at, at, note=f"to {event.target}: {preview(event.value, PREVIEW)}")
        case AskReceived():
            return Span("ask", event.name, at, note=preview(event.value, PREVIEW))
        case Patched():
            return Span("patch", event.name, at, at)
        case Recorded():
            return Span("record", event.name, at, at, note=recorded_text(event))
        case RunContinued():
            return Span("continued", f"generation {event.generation + 1}", at, at, note=preview(event.input, PREVIEW))
        case StartDelayed():
            return Span("timer", "start", at, due=event.due)
        case TimeoutReached():
            return Span("limit", "time-out", at, at, note=f"{event.ms / 1000:,.10g} s")
        case HistoryLimitReached():
            return Span("limit", "history limit", at, at, note=f"{event.count:,} events")
        case RunStuck():
            return Span("stuck", "stuck", at, failed=True, note=event.reason)
        case RunPaused():
            return Span("paused", "paused", at, note=event.says())
        case RunRetried():
            return Span("retried", "retried", at, at, note=retried_text(event))
        case RunForked():
            return Span("forked", "forked", at, at, note=forked_text(event))
        case CancelRequested():
            return Span("cancel", "terminate" if event.terminate else "cancel", at, at, note=event.reason)
        case _:
            return None


def forked_text(event: RunForked, *, short: bool = False) -> str:
    """Of which run it is a fork, how much of its history is shared, and if not `short` who wanted it, and why."""
    shares = f"{event.of}, shares {event.shared:,} event{'s' * (event.shared != 1)}"
    text = f"{shares} and has another input" if event.changed else shares
    if short:
        return text
    who = f", by {event.by}" if event.by else ""
    return f"of {text}{who}{f': {event.reason}' if event.reason else ''}"


def retried_text(event: RunRetried) -> str:
    """Who has retried a run, and why."""
    who = f"by {event.by}" if event.by else ""
    return f"{who}: {event.reason}" if who and event.reason else who or event.reason


def recorded_text(event: Recorded) -> str:
    """As `1,234 model=large, by step ask`."""
    text = f"{event.value:,.6g}" if isinstance(event.value, float) else f"{event.value:,}"
    labels = "".join(f" {name}={value}" for name, value in event.labels.items())
    return f"{text}{labels}, by step {event.step}" if event.step else text + labels


def _close(stuck: list[Span], at: int) -> list[Span]:
    for span in stuck:
        span.end = at
    return []


def _begin_again(by_id: dict[int | str, Span], event: RunRetried | RunForked) -> None:
    for seq, _ in event.attempts:
        span = by_id.get(seq)
        if span is not None:
            span.end, span.failed, span.note = None, False, ""
    for seq in event.children if isinstance(event, RunRetried) else ():
        span = by_id.get(seq)
        if span is not None:
            span.end, span.failed, span.note = None, False, span.child
    for seq, run_id in event.children if isinstance(event, RunForked) else ():
        span = by_id.get(seq)
        if span is not None:
            span.child = span.note = run_id


def _carry_over(spans: list[Span], by_id: dict[int | str, Span], at: int, event: RunContinued) -> None:
    """Messages that the previous generation received and didn't consume, and children that are still waited for, belong
    to this generation: its history has no other record of them."""
    for seq, name, run_id in event.children:
        by_id[seq] = Span("child", name, at, child=run_id, note=run_id)
        spans.append(by_id[seq])
    for carried in event.carried:
        span = _begin(at, carried)
        assert span is not None
        spans.append(span)
        if isinstance(carried, AskReceived):
            by_id[carried.id] = span


def _apply_outcome(by_id: dict[int | str, Span], at: int, event: AnyEvent) -> None:
    """Close or update the span that the outcome belongs to. In a history that was cut there may be none: ignored."""
    seq = START if isinstance(event, StartDue) else getattr(event, "seq", -1)
    span = by_id.get(event.id if isinstance(event, AskAnswered) else seq)
    if span is None:
        return
    match event:
        case StepCompleted():
            span.end, span.attempts, span.took, span.note = at, event.attempt, event.ms, preview(event.result, PREVIEW)
        case StepRetrying():
            span.marks.append(at)
            span.attempts, span.due, span.note = event.attempt, event.due, _failure_text(event.failure)
        case events.StepFailed():
            span.marks.append(at)
            span.end, span.attempts, span.took = at, event.attempt, event.ms
            span.failed, span.note = True, _failure_text(event.failure)
        case StepCancelled():
            span.end, span.note = at, "cancelled"
        case TimerFired() | StartDue():
            span.end = at
        case AskAnswered():
            span.end, span.failed = at, event.failure is not None
            answer = _failure_text(event.failure) if event.failure is not None else preview(event.result, PREVIEW)
            span.note = f"{span.note} → {answer}"
        case ChildCancelled():
            # To the parent it has ended: it learns nothing more, unless an outcome was already on its way.
            span.end, span.note = at, f"{span.child} asked to cancel"
        case ChildCompleted():
            span.end, span.note = at, f"{span.child} {preview(event.result, PREVIEW)}"
        case events.ChildFailed():
            span.end, span.failed, span.note = at, True, f"{span.child} {_failure_text(event.failure)}"
        case _:
            return


def _failure_text(failure: Failure) -> str:
    return f"{failure.kind}: {failure.message[:PREVIEW]}"


def fold_spans(spans: Sequence[Span]) -> list[Span]:
    """`spans` unchanged or, if there are more than `MAX_ROWS`, with neighbours of the same kind and name folded into
    one."""
    if len(spans) <= MAX_ROWS:
        return list(spans)
    folded: list[Span] = []
    group: list[Span] = []
    for span in [*spans, None]:
        if group and (span is None or (span.kind, span.name) != (group[0].kind, group[0].name)):
            folded.extend(group if len(group) < FOLD_FROM else [_folded(group)])
            group = []
        if span is not None:
            group.append(span)
    return folded


def _folded(group: Sequence[Span]) -> Span:
    ends = [span.end for span in group if span.end is not None]
    return replace(
        group[0],
        start=min(span.start for span in group),
        end=max(ends) if len(ends) == len(group) else None,
        failed=all(span.failed for span in group),
        attempts=0,
        marks=sorted(mark for span in group for mark in span.marks),
        note="",
        took=None,
        child="",
        count=len(group),
        times=[took_ms(span) for span in group if span.end is not None],
        open=len(group) - len(ends),
        failures=sum(span.failed for span in group),
    )


def took_ms(span: Span) -> float:
    """How long the attempt took; with retries, the whole time since the first attempt began."""
    if span.took is not None and span.attempts <= 1:
        return span.took
    return float((span.end or span.start) - span.start)
