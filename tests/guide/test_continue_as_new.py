"""Continue-as-new: a run goes on under its id with a fresh history, and everything around it stays."""

from __future__ import annotations

from contextlib import aclosing

import pytest

import streamflow as sf
from streamflow.events import RunCompleted, RunContinued, RunStarted, SignalReceived
from tests.guide.conftest import Serve
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

app = sf.App()

DEPOSITS = 5
"""After this many an account continues as new."""


@app.workflow
async def account(balance: int) -> int:
    sf.set_attributes(generation=sf.info().generation)
    if not sf.info().generation:
        sf.set_attributes(owner="ada")
    sf.publish("balance", balance)
    for _ in range(DEPOSITS):
        amount = await sf.signal("deposit", int)
        if amount == 0:
            return balance
        balance += amount
        sf.publish("balance", balance)
    raise sf.ContinueAs(balance)


async def deposit(run: sf.Run[int], first: int, last: int) -> None:
    """One by one, each a transition of its own: the balance goes from `first` to `last`."""
    for balance in range(first + 1, last + 1):
        await run.signal("deposit", 1)
        await until(lambda balance=balance: _balance_is(run, balance))


async def _balance_is(run: sf.Run[int], balance: int) -> bool:
    return await run.read("balance", int) == balance


async def test_signals_are_carried_through_generations_and_each_counts_once(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(account, 0)
        for _ in range(23):
            await run.signal("deposit", 1)
        await run.signal("deposit", 0)
        assert await run.result(10) == 23
        assert (await run.describe()).attributes["generation"] == 4
        assert await run.read("balance") == 23


async def test_a_new_generation_survives_the_death_of_its_daemon(serve: Serve) -> None:
    async with serve(app, crash=True) as client:
        run = await client.start(account, 0, id="a")
        await deposit(run, 0, DEPOSITS + 2)
    async with serve(app):
        await deposit(run, DEPOSITS + 2, DEPOSITS + 3)
        await run.signal("deposit", 0)
        assert await run.result(10) == DEPOSITS + 3
        assert (await run.describe()).attributes == {"owner": "ada", "generation": 1}


async def test_following_a_run_shows_the_events_of_all_its_generations(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(account, 0)
        async with aclosing(run.events(follow=True)) as events:
            seen = [type((await anext(events))[1])]
            await deposit(run, 0, 2 * DEPOSITS)
            await run.signal("deposit", 0)
            seen += [type(event) async for _, event in events]
    assert seen.count(SignalReceived) == 2 * DEPOSITS + 1
    assert seen.count(RunContinued) == 2
    assert (seen[0], seen[-1]) == (RunStarted, RunCompleted)
