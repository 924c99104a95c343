"""Properties: whatever comes for a run whose code has bugs at times, and wherever its owners die, nothing is lost,
doubled or decided otherwise, its record says what it waits for, and it goes on when the bugs are mended."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from streamflow import events
from streamflow.daemon.batch import reason_of
from streamflow.errors import ContinueAs, Failure
from streamflow.events import (
    CancelRequested,
    ChildCompleted,
    RunStarted,
    SignalReceived,
    decode_recorded,
    decode_transition,
)
from streamflow.machine.factory import new_machine, parked_for, rehydrate
from streamflow.machine.retry_point import CannotRetry, RetryPoint, check_end, retry_point
from streamflow.machine.run import RunMachine
from streamflow.machine.snapshot import waits_in
from streamflow.machine.transition import CompletedChild, Effects, FailedChild, RetryRequest
from streamflow.model.record import OPEN, Header, Status
from streamflow.model.sharding import Partition
from streamflow.model.waits import waits_of
from streamflow.workflow import api as sf
from streamflow.workflow.app import App
from streamflow.workflow.awaitable import Bug
from streamflow.workflow.recording import record
from streamflow.workflow.reducer import Decision, Event
from tests.support.examples import examples
from tests.support.machine_driver import raw
from tests.unit.machine.test_properties import (
    _Again,
    _compose,
    _inputs,
    _interpret,
    _leaf,
    _restart_overdue_retries,
    moves,
)
from tests.unit.machine.test_properties import agent as random_agent
from tests.unit.machine.test_properties import app as random_app

Program = Any
BUGS = 3
Release = tuple[bool, frozenset[int]]
"""Whether it has the workflow, and which of the bugs it has no more."""
MENDED: Release = True, frozenset(range(BUGS))

_mended: set[int] = set()
"""The bugs that the code that runs now doesn't have."""


async def flow(parts: list[Program]) -> Any:
    """Behind each of the first parts there is a bug."""
    if isinstance(parts[0], str):  # it has continued as new as one program
        parts = [parts]
    results: list[Any] = []
    for number, part in enumerate(parts):
        record("part", number)
        try:
            results.append(await _interpret(part))
        except _Again:
            if sf.info().generation < 3:
                raise ContinueAs(parts) from None
        if number < BUGS and number not in _mended:
            results.append({}[number])
    return results


def agent(state: list[Any], event: Event) -> Decision:
    """It has a bug for each second state at first."""
    number = len(state) // 2
    if len(state) % 2 and number < BUGS and number not in _mended:
        state.append("half of it")
        return {}[number]
    return random_agent.function(state, event)


def app_of(*, has_flow: bool) -> App:
    app = App()
    app.steps.update(random_app.steps)
    app.workflows["child"] = random_app.workflows["child"]
    if has_flow:
        app.workflow(name="flow")(flow)
        app.reducer(name="agent")(agent)
    return app


APPS = {has_flow: app_of(has_flow=has_flow) for has_flow in (True, False)}


class Owned:
    """A run, its record, and what its owner knows of it besides: as shards keep it (`daemon/batch.py`, `owner.py`)."""

    def __init__(self, workflow: str, argument: Any, release: Release) -> None:
        self.workflow = workflow
        self.release = release
        self.state = b""
        self.elements: list[bytes] = []
        self.machine: RunMachine | None = None
        self.status = Status.PENDING
        self.at = 1000
        self.parked = ""
        self.bug: Failure | None = None
        self.again = False
        self.dies_at_bug = False
        """Its owner dies when it has seen the next bug, and before it has recorded that."""
        self.signals = 0
        """Those that were ever recorded."""
        self.refused: Failure | None = None
        self.last = self.take(RunStarted(workflow, "", raw([argument])))

    @property
    def code(self) -> str:
        return str((self.release[0], sorted(self.release[1])))

    @property
    def history(self) -> list[events.Transition]:
        return [decode_transition(element) for element in self.elements]

    def crash(self, release: Release | None = None) -> None:
        """The next owner has it, which knows only the record."""
        self.release = release or self.release
        self._drop()
        self.parked, self.bug, self.again = "", None, False

    def _drop(self) -> None:
        if self.machine is not None:
            self.machine.close()
        self.machine = None

    def load(self) -> RunMachine:
        if self.machine is None:
            if not self.elements:
                _mended.clear()
                _mended.update(self.release[1])
                self.machine = new_machine(APPS[self.release[0]], Partition.RUN, "r", self.workflow, self.parked)
            else:
                is_parked = self.status is Status.STUCK and not self.again
                known = parked_for(self.history, self.code) if is_parked else ""
                self.machine = self._rehydrated(self.parked or known)
            self.machine.bug = self.bug and (self.bug, self.code)
        return self.machine

    def _rehydrated(self, reason: str, point: RetryPoint | None = None) -> RunMachine:
        _mended.clear()
        _mended.update(self.release[1])
        header = Header(self.status, len(self.elements), "c", 0, int(self.status not in OPEN), self.workflow, "", "")
        app = APPS[self.release[0]]
        return rehydrate(app, Partition.RUN, "r", header, self.state, self.history, reason, retry=point)

    def take(self, *inputs: Any, after: int = 0) -> Effects:
        self.at += after
        asks = any(type(one) is RetryRequest and not one.seq for one in inputs)
        while True:
            if asks and self.status is Status.STUCK and not self.again:
                self._drop()
                self.parked, self.bug, self.again = "", None, True
            machine = self.load()
            try:
                effects = machine.advance(list(inputs), self.at)
                return self._commit(machine, effects)
            except Bug as bug:
                assert not self.parked
                self._drop()
                if self.dies_at_bug:
                    self.dies_at_bug = False
                    self.crash()
                else:
                    self.parked, self.bug = reason_of(bug), bug.failure

    def retry(self) -> bool:
        """Of a run that has ended. Returns whether it goes on."""
        version = len(self.elements)
        request = RetryRequest("f" * 32, 0, version, "kim", "again", True)
        try:
            check_end("r", Header(self.status, version, "c", 0, 1, "flow", "", ""), request, is_reducer=False)
            point = retry_point("r", self.history)
        except CannotRetry as error:
            self.refused = error.failure
            return False
        reason = ""
        while True:
            machine = self._rehydrated(reason, point)
            try:
                effects = machine.advance([request], self.at)
                break
            except Bug as bug:
                reason = reason_of(bug)
        self.refused = effects.besides.answers[0].failure
        if self.refused is not None:
            return False
        self.machine = machine
        self._commit(machine, effects)
        return True

    def _commit(self, machine: RunMachine, effects: Effects) -> Effects:
        if effects.events:
            if effects.besides.fresh:
                self.elements.clear()
            self.elements.append(events.encode_transition(machine.at, effects.events, effects.besides.unrecorded))
            self.state = machine.snapshot()
            self.signals += sum(isinstance(event, SignalReceived) for event in effects.events)
            self.status = effects.status
            if self.status is Status.STUCK and self.bug is not None:
                self.parked, self.bug = "", None
        self.again = False
        self.last = effects
        return effects

    def check(self) -> None:
        """The record says what the machine waits for."""
        machine = self.machine
        if machine is None or self.last.ended:
            return
        assert self.status is machine.status
        assert (self.status is Status.STUCK) is machine.stuck
        told = waits_of(map(decode_recorded, self.elements))
        if self.state:
            told = waits_in(self.state, told)
        assert {wait.seq for wait in told if wait.kind == "step"} == set(machine.steps)
        assert any(wait.kind == "code" for wait in told) is machine.stuck
        if not machine.stuck:  # else what its code has given up since isn't known
            waits = machine._waits or {}
            limiting = {wait.seq for some in waits.values() for wait in some}
            assert {wait.seq for wait in told if wait.kind == "timer"} == set(machine.timers) - limiting
            assert {wait.seq for wait in told if wait.kind == "child"} == set(machine.children)
            if self.state:
                return
            names = {(wait.kind, wait.name) for wait in told if wait.kind in ("signal", "question")}
            assert names == {(some[0].what, some[0].name) for some in waits.values()}


def as_sent(item: Any) -> Any:
    """The outcome of a child, as its owner gets it."""
    if isinstance(item, ChildCompleted):
        return CompletedChild(item.seq, item.name, item.result, 0)
    if isinstance(item, events.ChildFailed):
        return FailedChild(item.seq, item.name, item.failure, item.cancelled, 0)
    return item


def with_requests(run: Owned, inputs: list[Any], ask: int) -> list[Any]:
    """Now and then somebody wants a stuck run to be tried again, or gives an attempt up."""
    steps = run.load().steps
    if ask < 3 and run.status is Status.STUCK:
        inputs.insert(ask % (len(inputs) + 1), RetryRequest("a" * 32, 0, 0))
    elif ask == 3 and steps:
        call = steps[min(steps)]
        inputs.append(RetryRequest("b" * 32, 0, 0, "kim", "it hangs", seq=call.seq, attempt=call.attempt))
    return inputs


_part = st.recursive(_leaf, _compose, max_leaves=5)
programs = st.lists(_part, min_size=1, max_size=4).map(lambda parts: [("step", 1), *parts])
_release = st.tuples(st.sampled_from([True, True, True, False]), st.frozensets(st.integers(0, BUGS - 1)))
deploys = st.lists(st.one_of(st.none(), st.none(), _release), min_size=25, max_size=25)
requests = st.lists(st.integers(0, 9), min_size=25, max_size=25)


@settings(max_examples=examples(250), deadline=None)
@given(programs, moves, deploys, requests)
def test_a_workflow_with_bugs_decides_the_same_wherever_owners_die(
    parts: Any, turns: Any, releases: Any, asks: Any
) -> None:
    _same_wherever_owners_die("flow", parts, turns, releases, asks)


@settings(max_examples=examples(150), deadline=None)
@given(moves, deploys, requests)
def test_a_reducer_with_bugs_decides_the_same_wherever_owners_die(turns: Any, releases: Any, asks: Any) -> None:
    _same_wherever_owners_die("agent", None, turns, releases, asks)


def _same_wherever_owners_die(workflow: str, argument: Any, turns: Any, releases: Any, asks: Any) -> None:
    first: Release = releases[0] or (True, frozenset())
    both = steady, dying = Owned(workflow, argument, first), Owned(workflow, argument, first)
    begun: set[tuple[int, int, int]] = set()
    signals = 0
    is_cancelled = False
    for turn, release, ask in zip(turns, releases, asks, strict=False):
        if release is not None:
            steady.crash(release)
            begun.clear()  # what was under way begins again
        dying.crash(release)
        dying.dies_at_bug = ask % 2 == 0
        if steady.last.ended and workflow == "agent":
            break
        if steady.last.ended:
            went_on = [run.retry() for run in both]
            assert went_on[0] is went_on[1]
            assert steady.refused == dying.refused
            if not went_on[0]:
                break
            signals = steady.signals  # what came behind its end was for a run that had ended
        else:
            given, after = _inputs(steady.load(), turn)
            inputs = with_requests(steady, [as_sent(one) for one in given], ask)
            _restart_overdue_retries(dying.load(), steady.load())
            is_cancelled = is_cancelled or any(isinstance(one, CancelRequested) for one in inputs)
            for run in both:
                run.take(*inputs, after=after)
            signals += sum(type(one) is SignalReceived for one in inputs)
            assert steady.signals == signals or steady.last.ended
            answered = sorted(answer.id for answer in steady.last.besides.answers if answer.name == "retry")
            assert answered == sorted(one.id for one in inputs if type(one) is RetryRequest)
        assert (steady.elements, steady.state) == (dying.elements, dying.state)
        assert steady.status is dying.status
        for run in both:
            run.check()
        for job in steady.last.jobs:
            attempt = job.seq, job.attempt, steady.load().generation
            assert attempt not in begun
            begun.add(attempt)
    if is_cancelled:  # with a bug it fails, also if it still waits for children: mended code may not fit that
        return
    for run in both:
        if not run.last.ended:
            run.crash(MENDED)
            assert run.load().diverged is None
            run.take()
            assert run.status is not Status.STUCK
            run.check()
    assert steady.elements == dying.elements
    for run in both if workflow == "flow" else ():
        run.crash(MENDED)
        run.status = Status.RUNNING  # its whole history is replayed, also if it has ended
        assert run.load().diverged is None
        run.crash()
