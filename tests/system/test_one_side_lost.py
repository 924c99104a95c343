"""A shard that has lost its newest writes, and others that have kept what it sent to them: nodes fail apart.

One server has all shards here. The keys of one are dumped, and restored later: to the others it is a node that a
failover has set back.
"""

from __future__ import annotations

from typing import Any

import pytest

import streamflow as sf
from streamflow.model.record import Status
from streamflow.model.sharding import Partition, shard_of
from streamflow.store.connection import Call
from tests.support.waiting import until
from tests.system.conftest import Serve, Work

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]

SHARDS = 2
app = sf.App()
ran: list[int] = []


@app.step(queue="gpu")
async def square(number: int) -> int:
    ran.append(number)
    return number * number


@app.workflow
async def double(number: int) -> int:
    if number < 0:
        await sf.signal("never", int)
    return 2 * number


@app.workflow
async def collecting() -> list[int]:
    found: list[int] = []
    while (value := await sf.signal("in", int)) >= 0:
        found.append(value)
        sf.publish("found", found)
    return found


@app.workflow
async def sending(target: str) -> int:
    value = await sf.signal("go", int)
    await sf.send_signal(target, "in", value)
    await sf.signal("end", int)
    return value


@app.workflow
async def asking() -> int:
    return await double(await sf.signal("go", int))


@app.workflow
async def working() -> int:
    number = await sf.signal("go", int)
    return await square(number) + number


def id_in(shard: int, name: str) -> str:
    """An id whose run is in this shard."""
    return next(one for n in range(100) if shard_of(one := f"{name}-{n}", SHARDS, Partition.RUN) == shard)


async def keys_of(client: sf.Client, shard: int) -> list[bytes]:
    pattern = client.keys.shard(shard).inbox.removesuffix("inbox") + "*"
    return await client.store.one(Call.plain("KEYS", pattern))


async def dumped(client: sf.Client, shard: int) -> dict[bytes, bytes]:
    keys = await keys_of(client, shard)
    return dict(zip(keys, await client.store.send([Call.plain("DUMP", key) for key in keys]), strict=True))


async def set_back(client: sf.Client, shard: int, dump: dict[bytes, bytes]) -> None:
    await client.store.one(Call.plain("DEL", *await keys_of(client, shard)))
    await client.store.send([Call.plain("RESTORE", key, 0, data, "REPLACE") for key, data in dump.items()])


async def published(run: sf.Run[Any], value: object) -> None:
    async def is_there() -> bool:
        return await run.read("found", default=None) == value

    await until(is_there)


async def running(run: sf.Run[Any]) -> None:
    async def is_running() -> bool:
        return (await run.describe()).status is Status.RUNNING

    await until(is_running)


@pytest.mark.parametrize(("again", "expected"), [(7, [7]), (8, [7, 8])], ids=["the same", "something else"])
async def test_a_signal_of_a_lost_decision_arrives_once_and_another_one_too(
    serve: Serve, again: int, expected: list[int]
) -> None:
    source, target = id_in(0, "source"), id_in(1, "target")
    async with serve(app, shards=SHARDS) as (client, _):
        collector = await client.start(collecting, id=target)
        sender = await client.start(sending, target, id=source)
        await running(sender)
    before = await dumped(client, 0)
    async with serve(app, shards=SHARDS):
        await sender.signal("go", 7)
        await published(collector, [7])
    await set_back(client, 0, before)
    async with serve(app, shards=SHARDS):
        await sender.signal("go", again)
        await sender.signal("end", 0)
        assert await sender.result(timeout=30) == again
        await collector.signal("in", -1)
        assert await collector.result(timeout=30) == expected


PARENTS = 8
"""So many that some have their child in the other shard, whatever its id is."""


async def parents_at(client: sf.Client, workflow: Any) -> list[sf.Run[Any]]:
    """Runs of shard 0 that wait for a signal."""
    ids = [one for n in range(100) if shard_of(one := f"parent-{n}", SHARDS, Partition.RUN) == 0][:PARENTS]
    runs = [await client.start(workflow, id=one) for one in ids]
    for run in runs:
        await running(run)
    return runs


async def children_of(client: sf.Client, count: int) -> list[str]:
    async def are_there() -> list[str]:
        ids = [one.id for one in await client.runs(workflow="double")]
        return ids if len(ids) == count else []

    return await until(are_there)


@pytest.mark.parametrize("lost", [3, -3], ids=["ended", "open"])
async def test_the_child_of_a_lost_decision_is_not_taken_for_another(serve: Serve, lost: int) -> None:
    async with serve(app, shards=SHARDS) as (client, _):
        parents = await parents_at(client, asking)
    before = await dumped(client, 0)
    async with serve(app, shards=SHARDS):
        for parent in parents:
            await parent.signal("go", lost)
        await children_of(client, PARENTS)
        if lost > 0:
            assert [await parent.result(timeout=30) for parent in parents] == [2 * lost] * PARENTS
    await set_back(client, 0, before)
    async with serve(app, shards=SHARDS):
        for parent in parents:
            await parent.signal("go", 5)
        assert [await parent.result(timeout=30) for parent in parents] == [10] * PARENTS


async def test_a_child_that_is_started_again_is_found(serve: Serve) -> None:
    async with serve(app, shards=SHARDS) as (client, _):
        parents = await parents_at(client, asking)
    before = await dumped(client, 0)
    async with serve(app, shards=SHARDS):
        for parent in parents:
            await parent.signal("go", -3)
        children = await children_of(client, PARENTS)
    await set_back(client, 0, before)
    async with serve(app, shards=SHARDS):
        for parent in parents:
            await parent.signal("go", -3)
        assert set(await children_of(client, PARENTS)) == set(children)
        for child in children:
            await client.run(child).signal("never", 1)
        assert [await parent.result(timeout=30) for parent in parents] == [-6] * PARENTS


async def test_an_attempt_of_a_lost_decision_is_not_taken_for_another(serve: Serve, work: Work) -> None:
    async with serve(app, shards=SHARDS) as (client, _):
        run = await client.start(working, id=id_in(0, "run"))
        await running(run)
    before = await dumped(client, 0)

    async def is_queued() -> bool:
        keys = [client.keys.queue("gpu", partition).stream for partition in range(SHARDS)]
        return any(await client.store.send([Call.plain("XLEN", key) for key in keys]))

    async with serve(app, shards=SHARDS):
        await run.signal("go", 3)
        await until(is_queued)
    await set_back(client, 0, before)
    ran.clear()
    async with serve(app, shards=SHARDS), work(app):
        await run.signal("go", 4)
        assert await run.result(timeout=30) == 20
    assert 4 in ran
