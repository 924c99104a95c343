"""What an open run waits for, found in its record without its code.

Owns: `Wait`, and what follows from recorded transitions. What no event tells stands beside the events
(`events.Unrecorded`): the signals and questions that the code waits for, and what it has given up.
Must not: read anything, know a clock.
Called by: the client, and the sandbox, for descriptions and listings.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec

from streamflow import events
from streamflow.errors import Failure
from streamflow.events import (
    AnyEvent,
    ChildCompleted,
    ChildStarted,
    PauseEnded,
    RecordedTransition,
    RunContinued,
    RunForked,
    RunPaused,
    RunResumed,
    RunRetried,
    RunStuck,
    StartDelayed,
    StartDue,
    StepCancelled,
    StepCompleted,
    StepRetrying,
    StepScheduled,
    TimerFired,
    TimerSet,
)

MAX_WHY = 300
"""Characters of the error of the attempt before, or of why a run is stuck."""
BLOCK = "timeout()"
"""The name of the timer that limits a block."""
ORDER = ("pause", "start", "code", "signal", "question", "step", "child", "timer", "message")


class StepHolder(msgspec.Struct, frozen=True, kw_only=True):
    """Who runs an attempt of a step, or has run it last: a daemon or worker, by its name, host and process id (0: not
    known). `beat_age`: seconds since that process has shown that it lives; None: nothing was found of that."""

    kind: str
    name: str
    host: str = ""
    pid: int = 0
    beat_age: float | None = None


class QueuePlace(msgspec.Struct, frozen=True, kw_only=True):
    """Of an attempt in a queue: how many attempts in its partition are before it, of `waiting` ones there; `workers`:
    those that live and take attempts of the queue. Each is None where it isn't known, or it is more than 1,000.
    `paused`: who has paused the queue, and why, if somebody has."""

    before: int | None = None
    waiting: int | None = None
    workers: int | None = None
    paused: str | None = None


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that an open run waits for. Times are aware, in UTC; None: not known, or there is none.

    `kind`: `signal` or `question` (`name`, and the `type` that the code asks for, empty if any), `step`, `child` (a run
    of the workflow `name`, by `run_id`), `timer` (`name` is `timeout()` if it limits a block), `pause` (somebody has
    paused it, or its workflow, as `name` says: `run` or `workflow`; `why`: who, and what for), `code` (the run is
    stuck: `why`), `storage` (what it needs is in storage that hasn't given it yet: `name`; `why` says what is wrong),
    `start` (no daemon has taken it yet, or its start is delayed, with `until`), `message` (a signal or
    question; which one isn't recorded: it is a reducer, or its last transition is of an earlier release).

    `seq`: the number of the step, child or timer. `since`: when it began. `until`: when a signal or question times out,
    a timer fires, or the next attempt of a step begins; if that is past, it has begun.

    Of a step: `attempt` (from 1) is the one that runs or is next; `why` the error of the one before; `queue`, empty for
    one that a daemon runs. What `describe()` finds out besides: `holder`, `place` in the queue while it waits there,
    `details` that it has reported last, and `reported`, when it has last called `sf.heartbeat` (of one that repeats the
    same details up to 10 s before that); `silent`: its process says that it may hang.
    """

    kind: str
    name: str = ""
    type: str = ""
    seq: int = 0
    run_id: str = ""
    since: datetime | None = None
    until: datetime | None = None
    attempt: int = 0
    why: str = ""
    queue: str = ""
    holder: StepHolder | None = None
    place: QueuePlace | None = None
    details: object = None
    reported: datetime | None = None
    silent: bool = False


class _Open:
    """What is open behind some transition."""

    def __init__(self) -> None:
        self.ever: dict[int, Wait] = {}
        """All that this generation has begun: what it had given up may be open again when it is retried."""
        self.waits: dict[int, Wait] = {}
        self.at = 0
        self.stuck: Wait | None = None
        self.start: Wait | None = None
        self.messages: dict[str, Wait] = {}

    def begin(self, wait: Wait) -> None:
        self.ever[wait.seq] = self.waits[wait.seq] = wait

    def apply(self, transition: RecordedTransition) -> None:
        self.at = transition.at
        at = datetime.fromtimestamp(self.at / 1000, UTC)
        for event in transition.events:
            self._apply(event, at)
        told = transition.unrecorded or events.Unrecorded()
        for seq in told.closed:
            self.waits.pop(seq, None)
        if told.still is not None:
            steps = {seq: wait for seq, wait in self.waits.items() if wait.kind == "step"}
            self.waits = steps | {seq: self.ever[seq] for seq in told.still if seq in self.ever}
        self.messages = {awaited.key: self._awaited(awaited, at) for awaited in told.messages}
        if told.more:
            self.messages[""] = Wait(kind="message", why=f"{told.more:,} more")

    def _awaited(self, awaited: events.Awaited, at: datetime) -> Wait:
        before = self.messages.get(awaited.key)
        kind, name = ("question", awaited.key[1:]) if awaited.key.startswith("?") else ("signal", awaited.key)
        since = at if before is None else before.since
        return Wait(kind=kind, name=name, type=awaited.type, since=since, until=_instant(awaited.until))

    def _apply(self, event: AnyEvent, at: datetime) -> None:
        match event:
            case StepScheduled():
                self.begin(Wait(kind="step", name=event.name, seq=event.seq, since=at, attempt=1, queue=event.queue))
            case StepRetrying():
                known = self.waits.get(event.seq) or Wait(kind="step", name=event.name, seq=event.seq)
                why, until = error_line(event.failure), _instant(event.due)
                self.begin(msgspec.structs.replace(known, attempt=event.attempt + 1, until=until, why=why))
            case TimerSet():
                if event.name in ("", BLOCK):  # any other limits a wait for a message, which has its time
                    until = _instant(event.due)
                    self.begin(Wait(kind="timer", name=event.name, seq=event.seq, since=at, until=until))
            case ChildStarted():
                self.begin(Wait(kind="child", name=event.name, seq=event.seq, run_id=event.run_id, since=at))
            case StepCompleted() | events.StepFailed() | StepCancelled() | TimerFired():
                self.waits.pop(event.seq, None)
            case ChildCompleted() | events.ChildFailed():
                self.waits.pop(event.seq, None)
            case RunContinued():
                self.waits, self.ever = {}, {}
                for seq, name, run_id in event.children:
                    self.begin(Wait(kind="child", name=name, seq=seq, run_id=run_id))
            case StartDelayed():
                self.start = Wait(kind="start", since=at, until=_instant(event.due))
            case StartDue():
                self.start = None
            case RunStuck():
                self.stuck = Wait(kind="code", why=event.reason[:MAX_WHY], since=at)
            case RunPaused():
                why = ": ".join(filter(None, [f"by {event.by}" if event.by else "", event.reason]))[:MAX_WHY]
                self.stuck = Wait(kind="pause", name=event.scope, why=why, since=_instant(event.since) or at)
            case RunResumed() | PauseEnded():
                self.stuck = None
            case RunForked():
                for shared in event.history:
                    for one in shared.events:
                        self._apply(one, datetime.fromtimestamp(shared.at / 1000, UTC))
                self.stuck = None
                again = {seq: run_id for seq, run_id in event.children if seq in self.ever}
                begun = {seq for seq, _ in event.attempts}
                self.waits = {seq: wait for seq, wait in self.waits.items() if wait.kind == "timer"}
                for seq in sorted(begun & set(self.ever)):
                    self.begin(msgspec.structs.replace(self.ever[seq], attempt=1, until=None, why="", since=at))
                for seq, run_id in again.items():
                    self.begin(msgspec.structs.replace(self.ever[seq], run_id=run_id, since=at))
            case RunRetried():
                self.stuck = None
                self.waits = {}
                for seq, attempt in event.attempts:
                    if seq in self.ever:
                        self.begin(msgspec.structs.replace(self.ever[seq], attempt=attempt, until=None))
            case _:
                pass


def waits_of(transitions: Iterable[RecordedTransition]) -> list[Wait]:
    """What an open run waits for whose history this is, the most telling first. Of the newest part of a history alone,
    what began before that is missing, but for signals, questions and steps that have been tried again."""
    found = _Open()
    for transition in transitions:
        found.apply(transition)
    if not found.at:
        return [Wait(kind="start")]
    alone = [wait for wait in (found.start, found.stuck) if wait is not None]
    waits = [*alone, *found.messages.values(), *found.waits.values()]
    return in_order(waits or [Wait(kind="message")])


def in_order(waits: list[Wait]) -> list[Wait]:
    """By kind; within a kind what is due first, and then what began first."""
    return sorted(waits, key=lambda wait: (ORDER.index(wait.kind), wait.until or _NEVER, wait.seq))


_NEVER = datetime.max.replace(tzinfo=UTC)


def error_line(failure: Failure) -> str:
    """Kind and the first line of the message."""
    message = failure.message.partition("\n")[0]
    return (f"{failure.kind}: {message}" if message else failure.kind)[:MAX_WHY]


def _instant(ms: int) -> datetime | None:
    return datetime.fromtimestamp(ms / 1000, UTC) if ms else None
