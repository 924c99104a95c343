"""The lives of one run id: what belongs to a run that was forgotten doesn't reach one that was started again."""

from __future__ import annotations

import re
from typing import Any

import pytest

import streamflow as sf
from streamflow import events
from streamflow.errors import Failure
from streamflow.events import CancelRequested, ChildCompleted, ChildStarted, Transition
from streamflow.machine.factory import rehydrate
from streamflow.machine.transition import CompletedChild, Due, FailedChild
from streamflow.model import sharding
from streamflow.model.record import Header, ParentLink
from streamflow.model.sharding import Partition
from streamflow.wire import to_delivery
from tests.support.machine_driver import Run, kinds, make_app, plain, raw, result_of

app = make_app()
child = app.workflows["child"]


@app.workflow
async def parent() -> Any:
    first = await sf.start(child, "a", on_parent_end="wait")
    await first.signal("go", 1)
    return [first.id, await first.result(), await child("b")]


@app.workflow
async def again(count: int) -> str:
    if count:
        raise sf.ContinueAs(count - 1)
    return await child("x")


@app.reducer
def reducing(state: list[Any], event: sf.Event) -> sf.Decision:
    match event:
        case sf.Started() | sf.Signal():
            return sf.Decision(state, [child("x")])
        case sf.ChildDone(run_id=run_id, result=result):
            return sf.Decision(state, [sf.Complete([run_id, result])])
    return sf.Decision(state)


@pytest.fixture(params=["in memory", "after a crash"], ids=str)
def crash(request: pytest.FixtureRequest) -> bool:
    return request.param == "after a crash"


def started(run: Run) -> list[ChildStarted]:
    return [event for event in run.history if isinstance(event, ChildStarted)]


def test_two_lives_have_children_of_different_ids(crash: bool) -> None:
    ids: list[str] = []
    for created in (900, 901):
        run = Run(app, "parent", created=created, crash=crash)
        run.advance(ChildCompleted(1, "child", raw("A")))
        run.advance(ChildCompleted(3, "child", raw("B")))
        [first, second] = [event.run_id for event in started(run)]
        assert result_of(run.last) == [first, "A", "B"]
        assert re.fullmatch(r"r\.1~[a-z2-7]{13}", first)
        assert re.fullmatch(r"r\.3~[a-z2-7]{13}", second)
        ids += [first, second]
    assert len(set(ids)) == 4


def test_a_childs_link_names_the_life_of_its_parent() -> None:
    run = Run(app, "parent", created=900)
    assert run.last.besides.outbox[0].kind == "start"
    assert plain(run.last.besides.outbox[0].body)[2] == str(ParentLink("r", 1, 900)) == "r#1@900"


@pytest.mark.parametrize("created", [0, 899, 901])
def test_the_outcome_of_a_child_of_another_life_is_dropped(created: int, crash: bool) -> None:
    run = Run(app, "parent", created=900, crash=crash)
    failed = FailedChild(1, "child", Failure("E", "old"), created=created)
    run.advance(CompletedChild(1, "child", raw("old"), created), failed)
    assert kinds(run.last) == []
    assert not run.last.ended
    run.advance(CompletedChild(1, "child", raw("new"), 900))
    assert kinds(run.last) == ["ChildCompleted", "ChildStarted"]


def test_the_outcome_of_a_child_of_a_lost_decision_is_dropped(crash: bool) -> None:
    """A failover has set the parent back, and it has decided something else in that place."""
    run = Run(app, "parent", created=900, crash=crash)
    [event] = started(run)
    lost = sharding.child_run_id("r", 900, 1, Partition.RUN, "", "child", b"another input")
    assert lost != event.run_id
    failed = FailedChild(1, "child", Failure("E", "lost"), created=900, run_id=lost)
    run.advance(CompletedChild(1, "child", raw("lost"), 900, lost), failed)
    assert kinds(run.last) == []
    run.advance(CompletedChild(1, "child", raw("mine"), 900, event.run_id))
    assert kinds(run.last) == ["ChildCompleted", "ChildStarted"]


def test_a_run_that_has_no_code_here_drops_it_too() -> None:
    run = Run(app, "parent", created=900)
    run.reload(sf.App())
    run.advance(CompletedChild(1, "child", raw("old"), 899))
    assert kinds(run.last) == ["RunStuck"]
    run.advance(CompletedChild(1, "child", raw("new"), 900))
    assert kinds(run.last) == ["ChildCompleted"]


def test_a_child_reports_to_the_life_that_started_it() -> None:
    run = Run(app, "child", "x", parent="up#7@900")
    [message] = run.last.besides.outbox
    assert (message.target, message.kind) == ("up", "child")
    assert plain(message.body) == ["child-done", 7, "child", "x", 900, "r"]
    run = Run(app, "parent", parent="up#7@900")
    [message] = [
        one for one in run.advance(CancelRequested("why", terminate=True)).besides.outbox if one.kind == "child"
    ]
    assert plain(message.body)[1] == 7
    assert plain(message.body)[-4:] == [True, 900, "r", ""]


def test_signals_and_cancels_are_for_the_child_of_the_link_only() -> None:
    run = Run(app, "parent", created=900)
    [_, signal] = run.last.besides.outbox
    run.advance(CancelRequested("the code ends, the run waits for the child"))
    [cancel] = run.advance(CancelRequested("enough")).besides.outbox
    for message, kind, body in ((signal, "signal", ["go", 1]), (cancel, "cancel", "enough")):
        delivery = to_delivery("1-1", message.kind, message.target, message.body)
        assert (delivery.kind, delivery.parent, plain(delivery.body)) == (kind, "r#1@900", body)


def test_a_new_generation_is_the_same_life(crash: bool) -> None:
    run = Run(app, "again", 2, created=900, crash=crash)
    [event] = started(run)
    other = Run(app, "again", 2, created=901)
    assert event.run_id.partition("~")[0] == "r.1"
    assert event.run_id != started(other)[0].run_id
    assert not run.advance(CompletedChild(1, "child", raw("old"), 899)).events
    run.advance(CompletedChild(1, "child", raw("new"), 900))
    assert result_of(run.last) == "new"


def test_a_reducers_snapshot_knows_its_life() -> None:
    run = Run(app, "reducing", None, created=900)
    run.elements.clear()
    run.reload()
    assert not run.advance(CompletedChild(1, "child", raw("old"), 899)).events
    run.advance(sf.events.SignalReceived("more", raw(None)))
    [event] = started(run)
    assert re.fullmatch(r"r\.2~[a-z2-7]{13}", event.run_id)
    run.advance(CompletedChild(2, "child", raw("new"), 900))
    assert result_of(run.last) == [event.run_id, "new"]


def test_a_run_that_began_under_an_earlier_release_goes_on_as_it_began(crash: bool) -> None:
    """Its children have the ids that are in its history, and so have those that it starts later."""
    run = Run(app, "parent", crash=crash)
    assert [(one.target, one.kind) for one in run.last.besides.outbox] == [("r.1", "start"), ("r.1", "signal")]
    assert plain(run.last.besides.outbox[0].body)[2] == "r#1"
    assert not run.advance(CompletedChild(1, "child", raw("of a later life"), 900)).events
    run.advance(CompletedChild(1, "child", raw("A")))
    run.advance(CompletedChild(3, "child", raw("B")))
    assert result_of(run.last) == ["r.1", "A", "B"]


def test_a_history_as_an_earlier_release_wrote_it_is_replayed() -> None:
    """Its bytes have no field for the life."""
    written = [
        [1000, [["started", "parent", "", [], "", 0], ["child", 1, "child", "r.1", "", ["a"], "wait"]]],
        [2000, [["signal-sent", 2, "go", "r.1", 1]]],
    ]
    first, second = written
    events_ = [*first[1], *second[1]]  # type: ignore[misc]
    transition = sf.events.decode_transition(bytes(raw([1000, events_])))
    assert isinstance(transition, Transition)
    header = Header("running", 1, "c", 900, 0, "parent", "", "")
    machine = rehydrate(app, Partition.RUN, "r", header, b"", [transition])
    assert not machine.reason
    effects = machine.advance([CompletedChild(1, "child", raw("A"))], 2000)
    assert kinds(effects) == ["ChildCompleted", "ChildStarted"]
    assert [event.run_id for event in effects.events if isinstance(event, events.ChildStarted)] == ["r.3"]
    assert not machine.advance([Due()], 3000).events
