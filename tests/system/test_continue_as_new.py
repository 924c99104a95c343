"""Continue-as-new on the server: the run's record begins again."""

from __future__ import annotations

from typing import Any

import pytest

import streamflow as sf
from streamflow.store.connection import Call
from tests.support.waiting import names_of, reduced, until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio


app = sf.App()


DEPOSITS = 5


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


async def elements(client: sf.Client, run: sf.Run[Any]) -> int:
    """How many transitions the run's record has."""
    shard = (await client.read_namespace()).shard_of(run.id)
    return int(await client.store.one(Call.plain("LLEN", client.keys.shard(shard).run(run.id)))) - 2


async def deposit(run: sf.Run[int], first: int, last: int) -> None:
    """One by one, each a transition of its own: the balance goes from `first` to `last`."""
    for balance in range(first + 1, last + 1):
        await run.signal("deposit", 1)
        await until(lambda balance=balance: _balance_is(run, balance))


async def _balance_is(run: sf.Run[int], balance: int) -> bool:
    return await run.read("balance", int) == balance


async def test_the_record_begins_again_with_the_attributes_and_values(serve: Serve) -> None:
    async with serve(app) as (client, _):
        run = await client.start(account, 0, id="a")
        await reduced(client, "a")
        await deposit(run, 0, DEPOSITS)
        assert await elements(client, run) == 1
        assert (await names_of(run))[-1] == "RunContinued"
        described = await run.describe()
        assert described.version == 1 + DEPOSITS
        assert described.attributes == {"owner": "ada", "generation": 1}
        assert [found.id for found in await client.runs(attributes={"owner": "ada", "generation": 1})] == ["a"]
        await run.signal("deposit", 0)
        assert await run.result(10) == DEPOSITS
        assert await elements(client, run) == 2
