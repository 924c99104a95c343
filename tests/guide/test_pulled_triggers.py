"""Triggers that read from somewhere: a list, a topic of Kafka, a table of PostgreSQL. Each delivery starts one run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import confluent_kafka
import psycopg
import pytest
from redis.asyncio import Redis

import streamflow as sf
import streamflow.testing as sft
from streamflow import triggers
from tests.guide.conftest import Serve
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

Receive = Callable[..., AbstractAsyncContextManager[None]]

app = sf.App()


@app.workflow
async def ship(order: str) -> str:
    return f"shipped {order}"


def said(delivery: triggers.Delivery[dict[str, str]]) -> triggers.Action:
    return triggers.start(ship, delivery.payload["order"])


async def shipped(client: sf.Client) -> str:
    async def runs() -> list[sf.RunSummary]:
        return await client.runs()

    [run] = await until(runs)
    return str(await client.run(run.id).result(10))


async def test_an_element_of_a_list_starts_a_run(
    serve: Serve, receive: Receive, redis_url: str, namespace: str
) -> None:
    orders = sf.App().trigger(triggers.list(f"orders-{namespace}"), name="orders")(said)
    async with Redis.from_url(redis_url) as redis, serve(app) as client, receive(client, orders):
        await redis.lpush(f"orders-{namespace}", '{"order": "17"}')
        assert await shipped(client) == "shipped 17"

        async def nothing_is_left() -> bool:
            return not await redis.keys(f"*orders-{namespace}*")

        await until(nothing_is_left)


async def test_a_record_of_kafka_starts_a_run(serve: Serve, receive: Receive, brokers: str) -> None:
    orders = sf.App().trigger(triggers.kafka("orders", brokers=brokers), name="orders")(said)
    producer = confluent_kafka.Producer({"bootstrap.servers": brokers, "log_level": 0})
    producer.produce("orders", key="kim", value=b'{"order": "17"}')
    assert not producer.flush(10)
    async with serve(app) as client, receive(client, orders):
        assert await shipped(client) == "shipped 17"


async def test_a_row_that_an_application_inserts_starts_a_run(serve: Serve, receive: Receive, database: str) -> None:
    orders = sf.App().trigger(triggers.postgres("orders", url=database), name="orders")(said)
    async with serve(app) as client, receive(client, orders):
        with psycopg.connect(database) as connection:  # in a transaction with the application's own rows
            insert = "INSERT INTO streamflow_outbox (channel, payload) VALUES ('orders', %s)"
            connection.execute(insert, ('{"order": "17"}',))
        assert await shipped(client) == "shipped 17"


@pytest.mark.parametrize(
    "source",
    [
        triggers.list("orders"),
        triggers.kafka("orders", brokers="kafka:9092"),
        triggers.postgres("orders"),
        triggers.postgres_notify("orders"),
    ],
    ids=lambda source: source.kind,
)
async def test_a_test_delivers_without_brokers_or_a_database(source: triggers.Source) -> None:
    orders = sf.App().trigger(source, name="orders")(said)
    async with sft.Sandbox(app) as sandbox:
        for _ in range(2):
            [run] = await sandbox.deliver(orders, {"order": "17"}, id="one", headers={"kafka-key": "kim"})
            assert await run.result() == "shipped 17"
