"""Subscribing to what happens: every committed event at least once, in the order of each run.

Without a server first (a sandbox has the same method), then with one.
"""

from __future__ import annotations

from datetime import timedelta

import anyio
import msgspec
import pytest

import streamflow as sf
import streamflow.testing as sft
from streamflow.events import RunCompleted, RunStarted
from tests.guide.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()


@app.workflow
async def order(number: int) -> str:
    await sf.sleep(timedelta(days=1))
    return f"order {number} is delivered"


@app.workflow
async def refund(number: int) -> None:
    pass


async def test_a_subscriber_gets_what_it_asks_for() -> None:
    async with sft.Sandbox(app) as sandbox, sandbox.events("billing", workflows=[order]) as subscription:
        await sandbox.start(refund, 1)
        await sandbox.start(order, 2)
        assert [event.kind async for event in subscription] == ["RunStarted", "TimerSet"]
        await sandbox.sleep(timedelta(days=1))
        assert [event.kind async for event in subscription] == ["TimerFired", "RunCompleted"]


async def test_an_event_says_what_it_is_about_and_has_its_payload() -> None:
    async with sft.Sandbox(app) as sandbox, sandbox.events("billing", kinds=[RunCompleted]) as subscription:
        await (await sandbox.start(order, 2, id="order-2", tenant="acme")).result()
        [event] = [event async for event in subscription]
        assert (event.run_id, event.workflow, event.tenant) == ("order-2", "order", "acme")
        assert event.at == sandbox.now
        assert isinstance(event.event, RunCompleted)
        assert msgspec.msgpack.decode(event.event.result) == "order 2 is delivered"


async def test_a_group_goes_on_behind_what_it_has_acknowledged() -> None:
    async with sft.Sandbox(app) as sandbox:
        async with sandbox.events("billing", kinds=[RunStarted]):
            pass  # from now on the group exists
        for number in range(3):
            await sandbox.start(refund, number, id=f"refund-{number}")

        async def book() -> None:
            async with sandbox.events("billing", kinds=[RunStarted]) as subscription:
                async for event in subscription:
                    if event.run_id == "refund-1":
                        raise RuntimeError("the accounting is down")

        with pytest.raises(RuntimeError, match="accounting"):
            await book()
        async with sandbox.events("billing", kinds=[RunStarted]) as subscription:
            assert [event.run_id async for event in subscription] == ["refund-1", "refund-2"]


async def test_a_new_group_may_begin_with_what_is_there() -> None:
    async with sft.Sandbox(app) as sandbox:
        await sandbox.start(refund, 1)
        async with sandbox.events("late", from_="oldest") as subscription:
            assert [event.kind async for event in subscription] == ["RunStarted", "RunCompleted"]


async def test_a_batch_has_events_of_one_shard_and_an_offset_to_store_with_them() -> None:
    async with sft.Sandbox(app) as sandbox, sandbox.events("search") as subscription:
        for number in range(10):
            await sandbox.start(refund, number)
        batches = [batch async for batch in subscription.batches(max_events=8)]
        assert [len(batch) for batch in batches] == [8, 8, 4]
        assert {batch.shard for batch in batches} == {0}
        assert batches[-1].offset == batches[-1][-1].offset


async def test_on_a_server_consumers_share_a_group(serve: Serve) -> None:
    async with (
        serve(app, shards=8) as client,
        client.events("billing", kinds=["RunCompleted"], dead_after=1.0) as one,
        client.events("billing", kinds=["RunCompleted"], dead_after=1.0) as two,
    ):
        for run in await client.start_many(refund, [(number,) for number in range(40)]):
            await run.result()
        seen: set[str] = set()

        async def read(subscription: sf.Subscription) -> None:
            async for event in subscription:
                seen.add(event.run_id)
                if len(seen) == 40:
                    done.set()

        done = anyio.Event()
        async with anyio.create_task_group() as readers:
            readers.start_soon(read, one)
            readers.start_soon(read, two)
            with anyio.fail_after(15):
                await done.wait()
            readers.cancel_scope.cancel()
        assert not set(one.shards) & set(two.shards)
