"""Lists of a Redis or Valkey server as the source of a trigger: an element starts one run, whoever dies."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from redis.asyncio import Redis

import streamflow as sf
from streamflow import triggers
from streamflow.embedded.server import EmbeddedServer
from streamflow.store.foreign_list import BATCH, open_list
from streamflow.triggers.quarantine import DeliveryQuarantine
from tests.support.pulling import receiving
from tests.support.waiting import until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()


@app.workflow
async def build(commit: str) -> str:
    return f"built {commit}"


@pytest.fixture
async def redis(embedded_server: EmbeddedServer, namespace: str) -> AsyncGenerator[Redis, None]:
    async with Redis.from_url(embedded_server.url) as redis:
        yield redis
        if left := await redis.keys(f"*orders-{namespace}*"):
            await redis.delete(*left)


def of_list(key: str, **options: Any) -> triggers.Trigger[Any]:
    @sf.App().trigger(triggers.list(key, **options), name="ordered")
    def ordered(delivery: triggers.Delivery[dict[str, str]]) -> triggers.Action:
        return triggers.start(build, delivery.payload["commit"])

    return ordered


async def test_elements_start_runs_and_are_gone(serve: Serve, redis: Redis, namespace: str) -> None:
    key = f"orders-{namespace}"
    await redis.lpush(key, *[json.dumps({"commit": f"{number}"}) for number in range(3 * BATCH)])
    async with serve(app) as (client, _), receiving(client, of_list(key)), receiving(client, of_list(key)):
        await redis.lpush(key, "no JSON", json.dumps({"commit": "last"}))

        async def all_done() -> bool:
            return not await redis.keys(f"*{key}*")

        await until(all_done)
        runs = await client.runs(limit=1000)
        commits = [await client.run(run.id).result(10) for run in runs]
        assert sorted(commits) == sorted(f"built {commit}" for commit in [*range(3 * BATCH), "last"])
        [kept] = await DeliveryQuarantine(client).list()
        assert kept.body == b"no JSON"


async def test_an_element_that_is_too_long_is_put_aside_whole(serve: Serve, redis: Redis, namespace: str) -> None:
    key = f"orders-{namespace}"
    long = json.dumps({"commit": "x" * 5000})
    await redis.lpush(key, long, json.dumps({"commit": "short"}))
    async with serve(app) as (client, _), receiving(client, of_list(key, max_body=100)):

        async def is_kept() -> bool:
            return len(await DeliveryQuarantine(client).list()) == 1

        await until(is_kept)
        [kept] = await DeliveryQuarantine(client).list()
        assert (kept.size, len(kept.body)) == (len(long), 4096)
        assert f"more than max_body=100: it stays in the list {{{key}}}:streamflow:ordered:long" in kept.reason
        assert await redis.lrange(f"{{{key}}}:streamflow:ordered:long", 0, -1) == [long.encode()]


async def test_what_a_dead_process_had_taken_comes_again_under_the_same_id(
    embedded_server: EmbeddedServer, redis: Redis, namespace: str
) -> None:
    key = f"orders-{namespace}"
    await redis.rpush(key, "one", "two", "three")
    where = (embedded_server.url, key, "group")
    async with open_list(*where, end="left", idle_ms=1, longest=100) as dead:
        taken = await dead.take()
        assert [element.value for element in taken] == [b"one", b"two", b"three"]
        await dead.done(taken[1:2])
    async with open_list(*where, end="left", idle_ms=3_600_000, longest=100) as other:
        assert await other.take() == [], "they are not given out again before their time"
        await redis.rpush(key, "one")
        [equal] = await other.take()
        assert equal.id not in {element.id for element in taken}, "an equal element is another one"
        await other.done([equal])
    async with open_list(*where, end="left", idle_ms=1, longest=100) as heir:

        async def found() -> list[Any]:
            return await heir.take()

        again = await until(found)
        assert again == [taken[0], taken[2]]
        await heir.done(again)
    assert not await redis.keys(f"*{key}*")


async def test_waiting_takes_nothing_and_ends_when_there_is_an_element(
    embedded_server: EmbeddedServer, redis: Redis, namespace: str
) -> None:
    key = f"orders-{namespace}"
    async with open_list(embedded_server.url, key, "group", end="right", idle_ms=1000, longest=100) as source:
        await source.wait()  # for a while
        assert not await redis.exists(key)
        await redis.rpush(key, "one", "two", "three")
        await source.wait()
        assert await redis.lrange(key, 0, -1) == [b"one", b"two", b"three"]


async def test_a_key_of_another_type_is_named_and_nothing_is_written(
    embedded_server: EmbeddedServer, redis: Redis, namespace: str
) -> None:
    key = f"orders-{namespace}"
    await redis.set(key, "text")
    async with open_list(embedded_server.url, key, "group", end="right", idle_ms=1000, longest=100) as source:
        with pytest.raises(sf.StoreError, match="WRONGTYPE"):
            await source.take()
    assert await redis.keys(f"*{key}*") == [key.encode()]


def test_mistakes_are_named() -> None:
    with pytest.raises(sf.UsageError, match="needs a key"):
        triggers.list("")
    with pytest.raises(sf.UsageError, match="has a password"):
        triggers.list("orders", url="redis://:pw@127.0.0.1")
    with pytest.raises(sf.UsageError, match="'left' or 'right'"):
        triggers.list("orders", end="top")  # pyright: ignore[reportArgumentType]
    with pytest.raises(sf.UsageError, match="max_body is 1 to"):
        triggers.list("orders", max_body=3_000_000)
