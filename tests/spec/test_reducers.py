"""Reducers: `(state, event) -> Decision`, for agents that are state machines. Their state is their snapshot."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import msgspec
import pytest

import streamflow as sf
from streamflow.pure.events import RunStuck, SignalReceived, StepCompleted, TimerSet
from tests.spec.support import Serve, happened

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
        case sf.StepError(step, _, _, failure):
            return sf.Decision([*state, f"{step}: {failure}"], [sf.sleep(0.01, tag="the timer")])
        case sf.TimerDone(_, tag):
            return sf.Decision([*state, tag], [child.options(tag="the child")(4)])
        case sf.ChildDone(workflow, _, _, tag, result):
            return sf.Decision([*state, f"{tag}: {workflow} gave {result}"], [failing_child()])
        case sf.ChildError(workflow, _, _, _, failure):
            return sf.Decision(state, [sf.Complete([*state, f"{workflow}: {failure}"])])
        case _:
            return sf.Decision(state)


agent.initial = list


@app.reducer
def stubborn(state: int | None, event: sf.Event) -> sf.Decision:
    match event:
        case sf.CancelRequest(reason):
            return sf.Decision(state, [sf.Complete(f"done already, so {reason} comes late")])
        case _:
            return sf.Decision(state)


stubborn.initial = lambda: None


@app.reducer
def calls_reducer(state: int = 0, event: Any = None) -> sf.Decision:
    match event:
        case sf.Started():
            return sf.Decision(state, [tally.options(id="the-tally")()])
        case sf.ChildDone(result=result):
            return sf.Decision(state, [sf.Complete(result)])
        case _:
            return sf.Decision(state)
