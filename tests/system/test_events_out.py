"""Groups of subscribers: everything at least once, in order of each run, whatever dies."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import streamflow as sf
from streamflow.events import RunCompleted, RunStarted
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()


@app.step
async def add(n: int) -> int:
    return n + 1


@app.workflow
async def chain(length: int) -> int:
    n = 0
    for _ in range(length):
        n = await add(n)
    return n


@app.step
async def large(size: int) -> str:
    return "x" * size


@app.workflow
async def report(size: int) -> int:
    return len(await large(size))


async def take(subscription: Any, count: int) -> list[sf.CommittedEvent]:
    found: list[sf.CommittedEvent] = []
    async for event in subscription:
        found.append(event)
        if len(found) == count:
            break
    return found


async def test_a_group_gets_each_event_of_a_run_in_order(serve: Serve) -> None:
    async with serve(app) as (client, _), client.events("billing") as subscription:
        run = await client.start(chain, 3, id="chain-1")
        assert await run.result() == 3
        history = [event async for _, event in run.events()]
        async with asyncio.timeout(10):
            found = await take(subscription, len(history))
        assert [event.event for event in found] == history
        assert {event.run_id for event in found} == {"chain-1"}
        assert {event.workflow for event in found} == {"chain"}
        assert len({event.id for event in found}) == len(found)
        assert found[0].kind == "RunStarted"


async def test_a_consumer_goes_on_behind_what_was_acknowledged(serve: Serve) -> None:
    async with serve(app) as (client, _):
        async with client.events("billing", kinds=[RunStarted, RunCompleted]) as subscription:
            await (await client.start(chain, 1, id="one")).result()
            found = await take(subscription, 2)
        await (await client.start(chain, 1, id="two")).result()
        async with client.events("billing", kinds=["RunStarted", "RunCompleted"]) as subscription:
            found += await take(subscription, 2)
        assert [(event.run_id, event.kind) for event in found] == [
            ("one", "RunStarted"),
            ("one", "RunCompleted"),
            ("two", "RunStarted"),
            ("two", "RunCompleted"),
        ]
