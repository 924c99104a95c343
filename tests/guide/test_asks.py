"""Asks: a question to a run, and its answer."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

import streamflow as sf
from tests.guide.conftest import Serve

pytestmark = pytest.mark.anyio


app = sf.App()


class Seats(msgspec.Struct):
    left: int


@app.workflow
async def box_office(left: int) -> int:
    """Sells seats until somebody closes it."""
    while True:
        request = await sf.question("reserve", int)
        if request.value == 0:
            request.answer("closed")
            return left
        if request.value > left:
            request.refuse(f"only {left} left")
        else:
            left -= request.value
            request.answer({"left": left})


@app.reducer
def doorman(state: int, event: sf.Event) -> sf.Decision:
    match event:
        case sf.Asked(name="enter"):
            return sf.Decision(state + 1, [sf.Answer(event.id, state + 1)])
        case sf.Asked():
            return sf.Decision(state, [sf.Refuse(event.id, "no such thing")])
        case _:
            return sf.Decision(state)


async def test_a_run_answers_each_question_in_its_turn(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(box_office, 5)
        assert await run.ask("reserve", 2, timeout=10, type=Seats) == Seats(3)
        with pytest.raises(sf.AskRefused, match="only 3 left"):
            await run.ask("reserve", 4, timeout=10)
        answers = await asyncio.gather(*(run.ask("reserve", 1, timeout=10, type=Seats) for _ in range(3)))
        assert sorted(answer.left for answer in answers) == [0, 1, 2]
        assert await run.ask("reserve", 0, timeout=10) == "closed"
        assert await run.result(10) == 0


async def test_a_reducer_answers_by_commands(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(doorman)
        assert await run.ask("enter", timeout=10) == 1
        assert await run.ask("enter", timeout=10) == 2
        with pytest.raises(sf.AskRefused, match="no such thing"):
            await run.ask("leave", timeout=10)


@app.reducer
def listener(state: list[int], event: sf.Event) -> sf.Decision:
    """Answers with all that it has heard, in the order in which it was received."""
    match event:
        case sf.Asked(value=number):
            return sf.Decision([*state, number], [sf.Answer(event.id, [*state, number])])
        case sf.Signal(value=number):
            return sf.Decision([*state, number])
        case _:
            return sf.Decision(state)


async def test_asks_and_signals_are_received_in_the_order_of_the_calls(serve: Serve) -> None:
    """Also by the first asks of a client, which have to subscribe to their answers."""
    async with serve(app) as client:
        run = await client.start(listener)
        heard = await asyncio.gather(
            *(run.ask("n", n, timeout=10) if n % 3 else run.signal("n", n) for n in range(1, 12)), run.ask("n", 12)
        )
        assert heard[-1] == list(range(1, 13))
