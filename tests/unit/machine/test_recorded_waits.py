"""What a record says that its run waits for is what its machine in memory waits for."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings

from streamflow.events import decode_recorded
from streamflow.machine.open_work import MOST_WAITS
from streamflow.machine.retry_point import CannotRetry
from streamflow.machine.run import RunMachine
from streamflow.model.payload_types import type_text
from streamflow.model.waits import Wait, waits_of
from streamflow.workflow import api as sf
from streamflow.workflow.app import App
from tests.support.examples import examples
from tests.support.machine_driver import Run
from tests.unit.machine.test_properties import _inputs, app, moves, programs

Seen = set[tuple[Any, ...]]


def _seen(wait: Wait) -> tuple[Any, ...]:
    until = 0 if wait.until is None else round(wait.until.timestamp() * 1000)
    if wait.kind == "child":
        return wait.kind, wait.seq, wait.name, wait.run_id
    if wait.kind == "step":
        return wait.kind, wait.seq, wait.name, wait.attempt, wait.queue
    if wait.kind == "timer":
        return wait.kind, wait.seq, until
    return wait.kind, wait.name, wait.type, until


def _told(run: Run) -> Seen:
    return {_seen(wait) for wait in waits_of(map(decode_recorded, run.elements))}


def _known(machine: RunMachine) -> Seen:
    """The same from the machine's own state."""
    waits: Any = machine._waits or {}
    dues = {seq: due for due, seq in machine.schedule or ()}
    limiting = {wait.seq for group in waits.values() for wait in group}
    known: Seen = {
        (
            group[0].what,
            group[0].name,
            type_text(group[0].type),
            min((dues[wait.seq] for wait in group if wait.seq in dues), default=0),
        )
        for group in waits.values()
    }
    known |= {
        ("step", call.seq, call.step.name, call.attempt, call.step.queue or "") for call in machine.steps.values()
    }
    known |= {("child", call.seq, call.target.name, call.run_id) for call in machine.children.values()}
    known |= {("timer", seq, dues[seq]) for seq in machine.timers if seq not in limiting}
    return known


@settings(max_examples=examples(300), deadline=None)
@given(programs, moves)
def test_a_record_says_what_the_machine_waits_for(program: Any, turns: Any) -> None:
    run = Run(app, "flow", program)
    for turn in turns:
        if run.last.ended:
            try:
                run.retry(anyway=True)
            except CannotRetry:
                break
            if run.last.ended:
                break
        assert _told(run) == _known(run.machine)
        inputs, after = _inputs(run.machine, turn)
        run.advance(*inputs, after=after)


def test_of_many_waits_for_one_name_few_are_looked_at() -> None:
    """It is done in each transition, and a run may have ten thousand of them."""
    many = App()

    @many.workflow
    async def patient() -> None:
        await sf.gather(*(sf.signal("go", int, 1000 - number) for number in range(MOST_WAITS + 10)))

    [wait] = waits_of(map(decode_recorded, Run(many, "patient", at=1000).elements))
    assert wait.until is not None
    assert wait.until.timestamp() == 1 + 1000 - (MOST_WAITS - 1)
