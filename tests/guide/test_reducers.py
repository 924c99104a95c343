"""Reducers: `(state, event) -> Decision`, for agents that are state machines. Their state is their snapshot."""

from __future__ import annotations

from typing import Any

import anyio
import msgspec
import pytest

import streamflow as sf
from streamflow.events import RunStuck, SignalReceived, StepCompleted, TimerSet
from tests.guide.conftest import Serve
from tests.support.waiting import happened, until

pytestmark = pytest.mark.anyio

app = sf.App()


class Tally(msgspec.Struct):
    total: int = 0
    seen: list[str] = []


@app.reducer
def tally(state: Tally, event: sf.Event) -> sf.Decision:
    """Adds up what is signalled, and completes at `done`."""
    match event:
        case sf.Signal("add", value):
            return sf.Decision(Tally(state.total + value, [*state.seen, str(value)]))
        case sf.Signal("done"):
            return sf.Decision(state, [sf.Complete(msgspec.to_builtins(state))])
        case _:
            return sf.Decision(state)


@app.step
async def double(n: int) -> int:
    return 2 * n


@app.step(retry=sf.NO_RETRY)
async def refuse() -> None:
    raise PermissionError("no")


@app.workflow
async def child(n: int) -> int:
    return await double(n)


@app.workflow
async def failing_child() -> None:
    raise ValueError("not this one")


@app.reducer
def agent(state: list[str], event: sf.Event) -> sf.Decision:
    """Does one thing of each kind, one after the other, and notes what came of it."""
    match event:
        case sf.Started(input):
            return sf.Decision([f"started with {input}"], [double.options(tag="the step")(21)])
        case sf.StepDone(step, _, tag, result):
            return sf.Decision([*state, f"{tag}: {step} gave {result}"], [refuse()])
        case sf.StepFailure(step, _, _, failure):
            return sf.Decision([*state, f"{step}: {failure}"], [sf.sleep(0.01, tag="the timer")])
        case sf.TimerDone(_, tag):
            return sf.Decision([*state, tag], [child.options(tag="the child")(4)])
        case sf.ChildDone(workflow, _, _, tag, result):
            return sf.Decision([*state, f"{tag}: {workflow} gave {result}"], [failing_child()])
        case sf.ChildFailure(workflow, _, _, _, failure):
            return sf.Decision(state, [sf.Complete([*state, f"{workflow}: {failure}"])])
        case _:
            return sf.Decision(state)


@app.reducer
def stubborn(state: int, event: sf.Event) -> sf.Decision:
    match event:
        case sf.CancelRequest(reason):
            return sf.Decision(state, [sf.Complete(f"done already, so {reason} comes late")])
        case _:
            return sf.Decision(state)


@app.reducer
def calls_reducer(state: int, event: sf.Event) -> sf.Decision:
    match event:
        case sf.Started():
            return sf.Decision(state, [tally.options(id="the-tally")()])
        case sf.ChildDone(result=result):
            return sf.Decision(state, [sf.Complete(result)])
        case _:
            return sf.Decision(state)


@app.reducer
def undecided(state: int, event: sf.Event) -> sf.Decision:
    return None  # type: ignore[return-value]


@app.reducer
def giving_up(state: int, event: sf.Event) -> sf.Decision:
    return sf.Decision(state, [sf.Fail("had enough")])


async def test_signals_change_the_state_and_complete_ends_the_run(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(tally)
        for number in (3, 4):
            await run.signal("add", number)
        await run.signal("done")
        assert await run.result(10) == {"total": 7, "seen": ["3", "4"]}


async def test_every_outcome_comes_as_an_event_with_the_tag_of_its_command(serve: Serve) -> None:
    async with serve(app) as client:
        assert await (await client.start(agent, "a plan")).result(10) == [
            "started with a plan",
            "the step: double gave 42",
            "refuse: PermissionError: no",
            "the timer",
            "the child: child gave 8",
            "failing_child: ValueError: not this one",
        ]


async def test_the_state_outlives_the_daemon(serve: Serve) -> None:
    async with serve(app, crash=True) as client:
        run = await client.start(tally)
        await run.signal("add", 3)
        await happened(run, SignalReceived)
    async with serve(app):
        await run.signal("add", 4)
        await run.signal("done")
        assert await run.result(10) == {"total": 7, "seen": ["3", "4"]}


@pytest.mark.parametrize("moment", [StepCompleted, TimerSet], ids=lambda kind: kind.__name__)
async def test_open_commands_go_on_at_another_daemon(serve: Serve, moment: Any) -> None:
    async with serve(app, crash=True) as client:
        run = await client.start(agent, "a plan")
        await happened(run, moment)
    async with serve(app):
        assert len(await run.result(10)) == 6


async def test_many_signals_do_not_grow_the_history(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(tally)
        for _ in range(3):
            async with anyio.create_task_group() as sending:
                for _ in range(200):
                    sending.start_soon(run.signal, "add", 1)
        await run.signal("done")
        result = await run.result(10)
        assert result["total"] == 600
        assert len(await run.history()) <= 400, "the newest transitions only"


async def test_a_reducer_may_fail_its_run(serve: Serve) -> None:
    async with serve(app) as client:
        with pytest.raises(sf.RunFailed, match="Fail: had enough"):
            await (await client.start(giving_up)).result(10)


async def test_a_reducer_that_returns_something_else_is_stuck(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(undecided)
        assert "must return sf.Decision(…), got a NoneType" in (await happened(run, RunStuck)).reason


async def test_a_cancelled_reducer_ends_as_cancelled(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(tally)
        await run.cancel("enough")
        with pytest.raises(sf.RunCancelled, match="enough"):
            await run.result(10)


async def test_a_reducer_may_answer_a_cancel_with_an_ending_of_its_own(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(stubborn)
        await run.cancel("stopping")
        assert await run.result(10) == "done already, so stopping comes late"


async def test_a_reducer_can_be_a_child(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(calls_reducer)

        async def tally_is_there() -> bool:
            try:
                await client.run("the-tally").signal("add", 5)
            except sf.RunNotFound:
                return False
            return True

        await until(tally_is_there)
        await client.run("the-tally").signal("done")
        assert await run.result(10) == {"total": 5, "seen": ["5"]}


async def test_a_state_that_the_new_code_cannot_read_parks_the_run(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(tally)
        await run.signal("add", 3)
        await happened(run, SignalReceived)
    changed = sf.App()

    @changed.reducer(name="tally")
    def other_state(state: int, event: sf.Event) -> sf.Decision:
        return sf.Decision(state)

    async with serve(changed):
        await run.signal("add", 4)
        stuck = await happened(run, RunStuck)
        assert "the state of reducer tally is not a int" in stuck.reason
    async with serve(app):
        await run.signal("done")
        assert await run.result(10) == {"total": 7, "seen": ["3", "4"]}
