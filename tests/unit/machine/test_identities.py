"""What a message to another run is: the same decision has the same identity at any daemon, another one another."""

from __future__ import annotations

from typing import Any

import pytest

import streamflow as sf
from streamflow.events import CancelRequested, SignalReceived
from tests.support.machine_driver import Run, make_app, raw

app = make_app()
child = app.workflows["child"]


@app.workflow
async def forwarding(target: str, last: int = 0) -> None:
    """Sends on what it gets, each three times."""
    started = await sf.start(child, "x", on_parent_end="wait")
    while True:
        value = await sf.signal("in", int)
        await sf.send_signal(target, "out", value)
        await sf.send_signal(target, "out", value)
        await started.signal("out", value)
        await started.cancel("why")
        if value == last:
            raise sf.ContinueAs(target, last=-1)


@app.reducer
def fanning(state: list[Any], event: sf.Event) -> sf.Decision:
    match event:
        case sf.Signal(value=value):
            return sf.Decision(state, [sf.send_signal("t", "out", value)])
    return sf.Decision(state)


def sent(run: Run) -> list[tuple[str, bytes]]:
    return [(message.kind, message.identity) for message in run.last.besides.outbox if message.kind != "start"]


def identities(*groups: list[int], workflow: str = "forwarding", target: str = "t", **options: Any) -> list[bytes]:
    """Of all messages that a run sends which gets these signals, each group in one transition."""
    run = Run(app, workflow, *([target] if workflow == "forwarding" else [None]), created=900, **options)
    found: list[tuple[str, bytes]] = []
    for group in groups:
        run.advance(*(SignalReceived("in", raw(value)) for value in group), after=7)
        found += sent(run)
    return [identity for _, identity in found]


@pytest.mark.parametrize("workflow", ["forwarding", "fanning"])
def test_the_same_decisions_have_the_same_identities(workflow: str) -> None:
    once = identities([1], [2], [3], workflow=workflow)
    assert len(once) == len(set(once)) == (12 if workflow == "forwarding" else 3)
    assert {len(identity) for identity in once} == {12}
    assert once == identities([1, 2], [3], workflow=workflow), "in other transitions"
    assert once == identities([1], [2], [3], workflow=workflow, crash=True), "by another daemon"
    assert once == identities([1], [2], [3], workflow=workflow, at=90_000), "at another time"


def test_other_decisions_have_other_identities() -> None:
    found = [
        *identities([1, 2]),
        *identities([2, 1]),
        *identities([1, 2], target="u"),
        *identities([1, 2], run_id="s"),
    ]
    # The cancels and the signals to the child are the same whatever the target of the others is.
    assert len(set(found)) == 8 + 6 + 4 + 8


def test_another_life_of_the_run_decides_something_else() -> None:
    runs = [Run(app, "fanning", None, created=created) for created in (900, 901)]
    for run in runs:
        run.advance(SignalReceived("in", raw(1)))
    assert len({identity for run in runs for _, identity in sent(run)}) == 2


def test_generations_ask_a_child_to_cancel_once_more() -> None:
    """They count their events anew."""
    run = Run(app, "forwarding", "t", created=900)
    run.advance(SignalReceived("in", raw(0)))
    before = [identity for kind, identity in sent(run) if kind == "to-child"]
    run.advance(SignalReceived("in", raw(0)))
    run.advance(CancelRequested("the code ends, the run waits for its children"))
    for _ in range(20):
        run.advance(CancelRequested("enough"))
        before += [identity for kind, identity in sent(run) if kind == "to-child"]
    assert len(before) == len(set(before)) > 20


class Traced:
    def enter(self) -> None: ...

    def text(self, generation: int) -> str:
        return f"00-{generation:032x}-{1:016x}-01"


def test_a_trace_has_no_part_in_it() -> None:
    plain, traced = (Run(app, "fanning", None, created=900) for _ in range(2))
    traced.machine.trace = Traced()  # type: ignore[assignment]
    for run in (plain, traced):
        run.advance(SignalReceived("in", raw(1)))
    assert sent(plain) == sent(traced)
    assert plain.last.besides.outbox[0].body != traced.last.besides.outbox[0].body
