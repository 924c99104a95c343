"""Makes the machine of a run: of a new one, or of one with a record.

Owns: which class a run's machine has. Must not: know clocks, I/O or event loops. Called by: the owner, and everything
that replays a history.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from typing import ParamSpec, cast

from streamflow.events import (
    CancelRequested,
    RunContinued,
    RunForked,
    RunPaused,
    RunRetried,
    Transition,
    last_paused,
    last_stuck,
)
from streamflow.machine.lost import lost_history
from streamflow.machine.open_work import NOT_STUCK, Stuck, Trace
from streamflow.machine.reducer import ReducerMachine
from streamflow.machine.replay import WorkflowMachine
from streamflow.machine.retry_point import RetryPoint, first_position
from streamflow.machine.run import RunMachine
from streamflow.machine.sealed import sealed
from streamflow.machine.snapshot import decode_snapshot
from streamflow.model.causes import MAX_LINE, condensed
from streamflow.model.codec import DECODE_ERRORS
from streamflow.model.record import Header, Status
from streamflow.model.sharding import Partition
from streamflow.workflow.app import App, Reducer
from streamflow.workflow.awaitable import active

P = ParamSpec("P")


def new_machine(
    app: App,
    partition: Partition,
    run_id: str,
    workflow_name: str,
    reason: str = "",
    trace: Trace | None = None,
    word: str = "",
    pause: RunPaused | None = None,
) -> RunMachine:
    """The machine of a run that has no history yet. For an unknown workflow, or with a `reason` why its code can't be
    run, it records that the run is stuck; with `pause` that it is paused. `word`: what its start asks for besides."""
    machine = _machine_for(app, partition, run_id, workflow_name, is_reducer=False)
    machine.be_traced(trace)
    _stop(machine, reason, pause)
    if word:
        machine.ask_for(word)
    return machine


def _stop(machine: RunMachine, reason: str, pause: RunPaused | None) -> None:
    """None of its code is run, if there is a reason not to. That somebody has paused it comes before all others."""
    machine.pause = pause
    machine.reason = machine.reason or reason if pause is None else pause.says()


def _machine_for(app: App, partition: Partition, run_id: str, workflow_name: str, *, is_reducer: bool) -> RunMachine:
    definition = app.workflows.get(workflow_name)
    is_reducer = is_reducer if definition is None else isinstance(definition, Reducer)
    machine = (ReducerMachine if is_reducer else WorkflowMachine)(app, partition, run_id, workflow_name)
    if definition is None:
        machine.reason = app.unknown_workflow(workflow_name)
    return machine


def is_reducer(app: App, header: Header, state: bytes) -> bool:
    """Whether a run with this record is a reducer's. One that was never reduced has no state."""
    return bool(state) or isinstance(app.workflows.get(header.workflow), Reducer)


def rehydrating(
    app: App,
    partition: Partition,
    run_id: str,
    header: Header,
    state: bytes,
    transitions: list[Transition],
    reason: str = "",
    trace: Trace | None = None,
    retry: RetryPoint | None = None,
    fork: RunForked | None = None,
    pause: RunPaused | None = None,
) -> Generator[None, None, RunMachine]:
    """The machine of a run with this record, in pieces: a long history takes a second, and the caller has other things
    to do in between. A run that can't continue is parked, see `RunMachine.reason`.

    An ended run has a machine that does nothing; with `retry` one that takes a `RetryRequest`. With `fork` the run has
    no transitions yet: its machine has gone through what it shares, and takes that event as its first input.

    With a `reason`, or a `pause`, it is parked for that, and none of its code is run. Without one, what its code raises
    that no run can end with is raised here: call again with that as the reason.
    """
    machine = _machine_for(app, partition, run_id, header.workflow, is_reducer=bool(state))
    if fork is not None and isinstance(machine, ReducerMachine):
        machine = WorkflowMachine(app, partition, run_id, header.workflow)
        machine.reason = f"{header.workflow} is a reducer by now, and run {fork.of} was a workflow's"
    if lost := lost_history(transitions if fork is None else fork.history):
        machine.reason, pause = lost, None
    _stop(machine, reason, pause)
    machine.be_traced(trace)
    machine.tenant = header.tenant
    machine.parent = header.parent
    if not header.is_open and retry is None:
        machine.status = Status(header.status)
        machine.ended = True
    elif isinstance(machine, ReducerMachine):
        machine.attributes = header.attributes  # nothing is replayed that would set them again
        sealed(machine.context, machine.restore, state, transitions)
    else:
        shared = transitions if fork is None else fork.history
        replay = cast("WorkflowMachine", machine).replay(shared, retry, fork)
        while sealed(machine.context, _replay_piece, machine, replay):
            yield
        if retry is not None:
            machine.status = Status(header.status)
    if machine.stuck and machine.paused_by is None and retry is None and fork is None:
        machine.stuck_by = _stuck_by(transitions)
    return machine


def _stuck_by(transitions: list[Transition]) -> Stuck:
    """Why and since when a run is stuck. The record of a reducer may not have the transition any more that says it."""
    found = last_stuck(transitions)
    if found is None:
        return NOT_STUCK
    event, at = found
    return event.reason[:MAX_LINE], at, event.failure and condensed(event.failure)


def pause_of(header: Header, state: bytes, transitions: Sequence[Transition]) -> RunPaused | None:
    """What a run with this record is paused by. That of a reducer may not have the transition any more that says it."""
    if header.status != Status.PAUSED:
        return None
    found = last_paused(transitions)
    if found is None and state:
        with contextlib.suppress(*DECODE_ERRORS):
            found = decode_snapshot(state).paused_by
    return found


def was_cancelled(transitions: Sequence[Transition]) -> bool:
    """Whether the code of a run with this history has got a request to cancel: a pause of its workflow doesn't hold
    that up. Not what is void because it was retried, or is a fork, nor what the generation before has got."""
    position = known = sum(len(transition.events) for transition in transitions)
    first = first_position(transitions[0]) if transitions else 0
    for transition in reversed(transitions):
        for event in reversed(transition.events):
            position -= 1
            if position < first:
                return False
            if position >= known:
                continue
            if isinstance(event, CancelRequested | RunRetried | RunContinued):
                return isinstance(event, CancelRequested)
            if isinstance(event, RunForked):
                known = first + event.kept
    return False


def parked_for(transitions: Sequence[Transition], code: str) -> str:
    """The bug for which a run is stuck, with this history, if this very code has it; else empty. It isn't tried
    again."""
    found = last_stuck(transitions)
    return found[0].reason if found is not None and found[0].code == code != "" else ""


def stuck_for(transitions: Sequence[Transition]) -> str:
    """Why a stuck run is stuck, as recorded: that of a reducer may have been dropped since."""
    found = last_stuck(transitions)
    return "its code can't continue" if found is None else found[0].reason


def _at_once(pieces: Callable[P, Generator[None, None, RunMachine]]) -> Callable[P, RunMachine]:
    def whole(*args: P.args, **kwargs: P.kwargs) -> RunMachine:
        generator = pieces(*args, **kwargs)
        while True:
            try:
                next(generator)
            except StopIteration as done:
                return done.value

    return whole


rehydrate = _at_once(rehydrating)
"""As `rehydrating`, for callers that have nothing else to do in between."""


def _replay_piece(machine: RunMachine, replay: Generator[None]) -> bool:
    """Whether more is left."""
    token = active.set(machine)
    try:
        next(replay)
    except StopIteration:
        return False
    finally:
        active.reset(token)
    return True
