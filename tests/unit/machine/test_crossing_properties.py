"""Properties: pauses, forks, retries, time-outs, delayed starts, stuck runs and cancels, in any order, and wherever the
owner dies: the same is decided and recorded, the record says what the run waits for, and its time counts rightly."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamflow import events
from streamflow.daemon.batch import reason_of
from streamflow.daemon.paused import keeps_stuck, pause_wanted
from streamflow.errors import Failure
from streamflow.events import (
    AnyEvent,
    CancelRequested,
    PauseEnded,
    RunFailed,
    RunForked,
    RunPaused,
    RunResumed,
    RunRetried,
    RunStarted,
    RunStuck,
    SignalReceived,
    StartDue,
    TimeoutReached,
    TimeoutSet,
    Transition,
    decode_history,
    decode_recorded,
)
from streamflow.machine.factory import new_machine, parked_for, pause_of, rehydrate, stuck_for, was_cancelled
from streamflow.machine.fork_point import CannotFork, fork_of
from streamflow.machine.retry_point import CannotRetry, check_end, retry_point
from streamflow.machine.run import RunMachine
from streamflow.machine.transition import (
    CompletedChild,
    Effects,
    FailedChild,
    PauseRequest,
    ResumeRequest,
    RetryRequest,
)
from streamflow.model.record import Header, Status
from streamflow.model.sharding import Partition
from streamflow.model.start_word import StartWord
from streamflow.model.waits import waits_of
from streamflow.store.pauses import Pause
from streamflow.wire import InboxMessage
from streamflow.workflow.awaitable import Bug
from tests.support.examples import examples
from tests.support.machine_driver import raw
from tests.unit.machine.test_parking_properties import APPS, MENDED, Release, _mended, as_sent, programs
from tests.unit.machine.test_properties import _inputs, _restart_overdue_retries, moves

encode = msgspec.msgpack.encode


class Crossed:
    """A run, its record, and what its owner knows of it besides, as `daemon/batch.py` and `owner.py` keep it."""

    def __init__(self, run_id: str, release: Release, notes: dict[str, Pause], at: int) -> None:
        self.run_id = run_id
        self.release = release
        self.notes = notes
        """The workflows that are paused; of both runs."""
        self.header = Header(Status.PENDING, 0, "-", at, 0, "flow", "", "")
        self.elements: list[bytes] = []
        self.log: list[Transition] = []
        """Also of generations before."""
        self.machine: RunMachine | None = None
        self.at = at
        self.parked = ""
        self.bug: Failure | None = None
        self.kept_stuck = False
        self.fork: RunForked | None = None
        self.last = Effects()

    @property
    def history(self) -> list[Transition]:
        return decode_history(self.elements)

    @property
    def status(self) -> Status:
        return Status(self.header.status)

    @property
    def code(self) -> str:
        return str((self.release[0], sorted(self.release[1])))

    def begin(self, argument: Any, word: str) -> None:
        self.header = msgspec.structs.replace(self.header, start=word)
        self.take(RunStarted("flow", "", raw([argument]), created=self.header.created))

    def crash(self, release: Release | None = None) -> None:
        """The next owner has it, which knows only the record."""
        self.release = release or self.release
        self.drop()
        self.parked, self.bug = "", None

    def drop(self) -> None:
        if self.machine is not None:
            self.machine.close()
        self.machine = None

    def wanted(self, messages: list[InboxMessage]) -> RunPaused | None:
        history = self.history
        before = pause_of(self.header, b"", history)
        is_cancelling = was_cancelled(history)
        machine = self.machine
        if machine is not None and not machine.reason:
            assert machine.is_cancelling is is_cancelling
        return pause_wanted(self.notes, self.header, before, messages, is_cancelling=is_cancelling)

    def load(self, pause: RunPaused | None = None) -> RunMachine:
        if self.machine is None:
            _mended.clear()
            _mended.update(self.release[1])
            if self.elements or self.fork is not None:
                known = parked_for(self.history, self.code) if self.status is Status.STUCK else ""
                self.kept_stuck = keeps_stuck(self.header, pause)
                if self.kept_stuck:
                    pause, known = None, stuck_for(self.history)
                self.machine = self._rehydrated(self.parked or known, pause)
            else:
                app, word = APPS[self.release[0]], self.header.start
                self.machine = new_machine(app, Partition.RUN, self.run_id, "flow", self.parked, word=word, pause=pause)
            self.machine.bug = (self.bug, self.code) if self.bug and pause is None else None
        return self.machine

    def _rehydrated(self, reason: str, pause: RunPaused | None = None, point: Any = None) -> RunMachine:
        _mended.clear()
        _mended.update(self.release[1])
        app, history = APPS[self.release[0]], self.history
        return rehydrate(
            app, Partition.RUN, self.run_id, self.header, b"", history, reason, retry=point, fork=self.fork, pause=pause
        )

    def take(self, *inputs: Any, after: int = 0, messages: list[InboxMessage] | None = None) -> None:
        self.at += after
        pause = self.wanted(messages or [])
        is_kept = keeps_stuck(self.header, pause)
        if self.machine is not None and not is_kept and (self.machine.pause != pause or self.kept_stuck):
            self.drop()
        while True:
            try:
                machine = self.load(pause)
                self._commit(machine, machine.advance(list(inputs), self.at))
                return
            except Bug as bug:
                assert not self.parked
                self.drop()
                self.parked, self.bug = reason_of(bug), bug.failure

    def retry(self) -> bool:
        """Of a run that has ended. Returns whether it goes on."""
        request = RetryRequest("f" * 32, self.header.created, self.header.version, "kim", "again", True)
        try:
            check_end(self.run_id, self.header, request, is_reducer=False)
            point = retry_point(self.run_id, self.history)
        except CannotRetry:
            return False
        reason = ""
        while True:
            machine = self._rehydrated(reason, None, point)
            try:
                effects = machine.advance([request], self.at)
                break
            except Bug as bug:
                reason = reason_of(bug)
        if effects.besides.answers[0].failure is not None:
            return False
        self.machine = machine
        self._commit(machine, effects)
        return True

    def forked(self, at: int | None, run_id: str, release: Release) -> Crossed:
        fork = fork_of(self.run_id, self.header, self.history, at, None, "kim", "")
        made = Crossed(run_id, release, self.notes, self.at)
        made.fork = msgspec.structs.replace(fork, created=made.header.created)
        made.take(made.fork)
        return made

    def _commit(self, machine: RunMachine, effects: Effects) -> None:
        if effects.events:
            if effects.besides.fresh:
                self.elements.clear()
            self.elements.append(events.encode_transition(machine.at, effects.events, effects.besides.unrecorded))
            self.log.append(Transition(machine.at, effects.events))
            self.fork = None
            version, ended = self.header.version + 1, machine.at if effects.ended else 0
            self.header = msgspec.structs.replace(self.header, status=effects.status, version=version, ended=ended)
            if self.status is Status.STUCK and self.bug is not None:
                self.parked, self.bug = "", None
        self.last = effects
        if effects.ended:
            self.machine = None

    def check(self) -> None:
        """The record says what the machine waits for, and how much of its time is left."""
        machine = self.machine
        if machine is None:
            return
        assert self.status is machine.status
        assert (self.status in (Status.STUCK, Status.PAUSED)) is machine.stuck
        assert (self.status is Status.PENDING) is (machine.begins > 0 and not machine.stuck)
        told = waits_of(map(decode_recorded, self.elements))
        assert {wait.seq for wait in told if wait.kind == "step"} == set(machine.steps)
        assert any(wait.kind == "code" for wait in told) is (self.status is Status.STUCK)
        assert any(wait.kind == "pause" for wait in told) is (self.status is Status.PAUSED)
        assert any(wait.kind == "start" for wait in told) is (machine.begins > 0)
        if machine.over_at:
            assert machine.over_at == self.over_at()
        if machine.stuck:  # else what its code has given up since isn't known
            assert not machine.running_jobs()
            return
        waits = machine._waits or {}
        limiting = {wait.seq for some in waits.values() for wait in some}
        assert {wait.seq for wait in told if wait.kind == "timer"} == set(machine.timers) - limiting
        assert {wait.seq for wait in told if wait.kind == "child"} == set(machine.children)
        names = {(wait.kind, wait.name) for wait in told if wait.kind in ("signal", "question")}
        assert names == {(some[0].what, some[0].name) for some in waits.values()}

    def over_at(self) -> int:
        """When its time is over, from when it began and when its code was stopped."""
        began = until = stopped = 0
        since: int | None = None
        limit = 0
        for at, event in all_events(self.log):
            if isinstance(event, RunStarted | StartDue | RunRetried | RunForked):
                began = until = at
                stopped, since = 0, None
            elif isinstance(event, events.RunContinued):
                until = at
            elif isinstance(event, TimeoutSet):
                limit = event.ms
            elif isinstance(event, RunStuck | RunPaused):
                since = event.since if isinstance(event, RunPaused) else at
            elif isinstance(event, RunResumed | PauseEnded) and since is not None:
                stopped += max(0, at - max(since, until))
                until = max(until, at)
        return began + limit + stopped


def all_events(log: list[Transition]) -> list[tuple[int, AnyEvent]]:
    found: list[tuple[int, AnyEvent]] = []
    for transition in log:
        for event in transition.events:
            shared = event.history if isinstance(event, RunForked) else []
            found += [(one.at, inner) for one in shared for inner in one.events]
            found.append((transition.at, event))
    return found


_release = st.tuples(st.sampled_from([True, True, True, False]), st.frozensets(st.integers(0, 2)))
deploys = st.lists(st.one_of(*[st.none()] * 4, _release), min_size=25, max_size=25)
pauses = st.lists(st.sampled_from(["", "", "", "pause", "resume", "note", "end", "end"]), min_size=25, max_size=25)
words = st.tuples(st.sampled_from([0, 0, 500, 3000]), st.sampled_from([0, 2000, 5000, 20_000, 60_000]))
forks = st.lists(st.integers(0, 1000), min_size=3, max_size=3)


def play(both: tuple[Crossed, Crossed], turns: Any, releases: Any, asks: Any) -> None:
    steady, dying = both
    notes = steady.notes
    taken = sum(isinstance(event, SignalReceived) for _, event in all_events(steady.log))
    for number, (turn, release, ask) in enumerate(zip(turns, releases, asks, strict=False)):
        if release is not None:
            steady.crash(release)
        dying.crash(release)
        if steady.last.ended:
            if notes or [run.retry() for run in both] != [True, True]:
                break
            taken = sum(isinstance(event, SignalReceived) for _, event in all_events(steady.log))
        else:
            messages: list[InboxMessage] = []
            inputs: list[Any] = []
            if ask in ("pause", "resume"):
                request = PauseRequest("kim", "why") if ask == "pause" else ResumeRequest("kim")
                messages.append(InboxMessage(f"{steady.at}-{number}", ask, steady.run_id, encode(request)))
                inputs.append(request)
            elif ask == "note" and not notes:
                notes["flow"] = Pause(steady.at, "lee", "429")
            elif ask == "end":
                notes.clear()
            given, after = _inputs(steady.load(steady.wanted([])), turn)
            for one in map(as_sent, given):
                if isinstance(one, CancelRequested):
                    messages.append(InboxMessage(f"{steady.at}-{number}", "cancel", steady.run_id, b""))
                is_outcome = isinstance(one, CompletedChild | FailedChild)
                inputs.append(msgspec.structs.replace(one, created=steady.load().created) if is_outcome else one)
            _restart_overdue_retries(dying.load(dying.wanted([])), steady.load())
            for run in both:
                run.take(*inputs, after=after, messages=messages)
            taken += sum(type(one) is SignalReceived for one in inputs)
            recorded = sum(isinstance(event, SignalReceived) for _, event in all_events(steady.log))
            assert recorded == taken or steady.last.ended
        assert steady.elements == dying.elements
        assert steady.header == dying.header
        for run in both:
            run.check()


NEVER: Any = [None] * 25


@settings(max_examples=examples(150), deadline=None)
@given(programs, words, moves, deploys, pauses, forks, moves)
@example(  # a fork of which nothing is kept but the beginning of a generation, which the same transition had cancelled
    [("step", 1), ("finally", ("step", 0), ("again",))],
    (0, 0),
    [[("s", 0)]],
    NEVER,
    [""] * 25,
    [0, 0, 31],
    [[("s", 0)], [("a", 0), ("a", 0), ("x", 0)], [("s", 0)]],
)
def test_pauses_times_forks_and_deaths_meet_in_any_order(
    parts: Any, word: Any, turns: Any, releases: Any, asks: Any, places: Any, later: Any
) -> None:
    notes: dict[str, Pause] = {}
    first: Release = releases[0] or (True, frozenset())
    steady, dying = Crossed("r", first, notes, 1000), Crossed("r", first, notes, 1000)
    delay, timeout = word
    asked = StartWord(1000 + delay if delay else 0, timeout)
    for run in (steady, dying):
        run.begin(parts, str(asked))
    play((steady, dying), turns, releases, asks)
    for number, place in enumerate(places):
        at = place % (sum(len(one.events) for one in steady.history) + 2)
        try:
            if notes:
                stopped = steady.forked(at or None, "stopped", MENDED)
                failed = stopped.last.events[-1]
                assert isinstance(failed, RunFailed)
                assert (len(stopped.last.events), failed.failure.kind) == (2, "Paused")
                assert (list(stopped.last.jobs), list(stopped.last.besides.outbox)) == ([], [])
                notes.clear()
            steady, dying = (run.forked(at or None, f"fork-{number}", MENDED) for run in (steady, dying))
        except CannotFork:
            notes.clear()
            continue
        begun = steady.last.events[0]
        assert isinstance(begun, RunForked)
        if isinstance(failed := steady.last.events[-1], RunFailed) and failed.failure.kind == "NotForked":
            shared = [event for one in begun.history for event in one.events]
            # its code had a bug in its clean-up, which the mended code doesn't have
            assert any(isinstance(event, CancelRequested | TimeoutReached) for event in shared)
        machine = steady.machine
        if machine is not None and machine.over_at:
            assert machine.over_at == steady.at + machine.time_limit, "a fork has all of its time"
        for run in (steady, dying):
            run.check()
        play((steady, dying), later, releases, asks[number:])
