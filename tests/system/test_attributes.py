"""What attributes leave on the server: a listing as long as their run is kept, and nothing for runs without any."""

from __future__ import annotations

from typing import Any

import pytest

import streamflow as sf
from streamflow.store.connection import Call
from tests.support.waiting import until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio


app = sf.App()


@app.workflow
async def careless() -> None: ...


@app.reducer
def basket(state: int, event: sf.Event) -> sf.Decision:
    match event:
        case sf.Signal(name="add"):
            sf.set_attributes(items=state + 1)
            return sf.Decision(state + 1)
        case sf.Signal(name="close"):
            return sf.Decision(state, [sf.Complete(state)])
        case _:
            sf.set_attributes(kind="basket")
            return sf.Decision(state)


async def found(client: sf.Client, **filters: Any) -> list[str]:
    return [run.id for run in await client.runs(**filters)]


async def test_retention_removes_ended_runs_from_their_attributes_listings(serve: Serve) -> None:
    async with serve(app, retention=0.001) as (client, daemon):
        run = await client.start(basket, id="b")
        await run.signal("close")
        await run.result(10)

        async def swept() -> bool:
            await daemon.retention.forget_once()
            return not await found(client, attributes={"kind": "basket"})

        await until(swept)
    shard = (await client.read_namespace()).shard_of("b")
    listing = client.keys.shard(shard).attribute("kind", "basket")
    assert await client.store.one(Call.plain("EXISTS", listing)) == 0


async def test_a_run_without_attributes_has_a_header_of_eight_fields(serve: Serve) -> None:
    """Only runs that use attributes pay for them."""
    async with serve(app) as (client, _):
        run = await client.start(careless)
        await run.result(10)
        [(line, _)] = await client.store.one(
            client.kernel.peek_runs((await client.read_namespace()).shard_of(run.id), [run.id])
        )
        assert len(line.split(b" ")) == 8
