"""A topic of Kafka as the source of a trigger, against the mock brokers that librdkafka has in itself: they speak the
protocol over loopback, consumer groups included. What only real brokers do isn't tested here."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import anyio.to_thread
import pytest

import streamflow as sf
from streamflow import triggers
from streamflow.triggers.kafka_topic import open_topic
from streamflow.triggers.quarantine import DeliveryQuarantine
from tests.support.kafka import committed, mock_brokers, produce
from tests.support.pulling import receiving
from tests.support.waiting import until
from tests.system.conftest import Serve

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

app = sf.App()


@app.workflow
async def build(commit: str) -> str:
    return f"built {commit}"


@app.workflow
async def collect(count: int) -> list[int]:
    return [await sf.signal("add", int) for _ in range(count)]


@pytest.fixture(scope="module")
def brokers() -> Iterator[str]:
    with mock_brokers() as names:
        yield names


def of_topic(topic: str, brokers: str, **options: Any) -> triggers.Trigger[Any]:
    """Each topic has a group of its own: one that a member has just left isn't joined for a while."""

    @sf.App().trigger(triggers.kafka(topic, brokers=brokers, group=f"readers of {topic}", **options), name="ordered")
    def ordered(delivery: triggers.Delivery[dict[str, Any] | None]) -> list[triggers.Action]:
        payload, key = delivery.payload, delivery.headers.get("kafka-key")
        if payload is None:
            return [triggers.start(build, f"tombstone of {key}{delivery.headers['mark']}")]
        if "number" in payload:
            return [
                triggers.signal_with_start(collect, 20, id=f"{key}", signal="add", value=payload["number"]),
            ]
        return [triggers.start(build, payload["commit"])]

    return ordered


async def group_at(brokers: str, topic: str, count: int) -> None:
    async def is_there() -> bool:
        return await anyio.to_thread.run_sync(committed, brokers, topic, f"readers of {topic}") == count

    await until(is_there)


async def test_records_are_deliveries_and_those_of_one_key_come_in_order(serve: Serve, brokers: str) -> None:
    numbers = [(f"key-{number % 3}", json.dumps({"number": number // 3}).encode()) for number in range(60)]
    others: list[tuple[str | None, bytes | None]] = [
        ("gone", None),
        (None, b'{"commit": "one"}'),
        ("bad", b"no JSON"),
        ("long", b'{"commit": "' + b"x" * 5000 + b'"}'),
    ]
    produce(brokers, "all", *numbers, *others, Mark="!")
    async with serve(app) as (client, _), receiving(client, of_topic("all", brokers, max_body=1000)):
        await group_at(brokers, "all", 64)
        for key in range(3):
            assert await client.run(f"key-{key}").result(10) == list(range(20))
        built = [await client.run(run.id).result(10) for run in await client.runs(workflow="build")]
        assert sorted(built) == ["built one", "built tombstone of gone!"]
        bad, long = sorted(await DeliveryQuarantine(client).list(), key=lambda one: one.size)
        assert (bad.body, bad.received.headers["kafka-key"]) == (b"no JSON", "bad")
        assert (long.size, len(long.body)) == (5014, 4096)
        assert "it stays in the topic all, in partition" in long.reason


async def test_nothing_is_committed_before_it_is_stored(serve: Serve, brokers: str) -> None:
    produce(brokers, "kept", ("a", b'{"commit": "one"}'))
    async with serve(app) as (client, _):
        trigger, refused = of_topic("kept", brokers), 0
        start = client.start

        async def refuse(*_: Any, **__: Any) -> Any:
            nonlocal refused
            refused += 1
            raise sf.StoreUnavailable("the server is away")

        async def was_tried() -> bool:
            return refused > 0

        client.start = refuse  # type: ignore[method-assign]
        async with receiving(client, trigger):
            await until(was_tried)
            assert await anyio.to_thread.run_sync(committed, brokers, "kept", "readers of kept") == 0
            client.start = start  # type: ignore[method-assign]
            await group_at(brokers, "kept", 1)
        [run] = await client.runs()
        assert await client.run(run.id).result(10) == "built one"


async def test_brokers_that_are_away_are_said_and_waited_for(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("streamflow.triggers.kafka_topic.CONNECT_SECONDS", 0.2)
    monkeypatch.setattr("streamflow.triggers.kafka_topic.SLICE", 0.2)
    async with serve(app) as (client, _), receiving(client, of_topic("any", "127.0.0.1:1")):

        async def is_said() -> bool:
            return "trigger ordered receives nothing, will retry: 127.0.0.1:1: " in caplog.text

        await until(is_said)


async def test_a_secret_is_neither_shown_nor_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("KAFKA_PASSWORD", "geheim")
    with pytest.raises(sf.UsageError, match=r"sasl\.password is a secret"):
        triggers.kafka("orders", brokers="kafka:9092", properties={"sasl.password": "geheim"})
    with pytest.raises(sf.UsageError, match=r"enable\.auto\.commit is the trigger's"):
        triggers.kafka("orders", brokers="kafka:9092", properties={"enable.auto.commit": "true"})
    secret = triggers.secret("KAFKA_PASSWORD")
    source = triggers.kafka("orders", brokers="kafka:9092", properties={"sasl.password": secret})
    assert "geheim" not in f"{source.about} {vars(source)}"
    with caplog.at_level(logging.DEBUG):
        with pytest.raises(sf.UsageError, match=r"no\.such\.password") as failure:
            async with open_topic("orders", "group", "127.0.0.1:1", {"no.such.password": secret}):
                pass
        with pytest.raises(sf.UsageError, match=r"security\.protocol") as other:
            async with open_topic("orders", "group", "127.0.0.1:1", {"security.protocol": secret}):
                pass
    assert "geheim" not in f"{failure.value} {other.value} {caplog.text}"
