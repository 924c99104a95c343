"""The mock brokers that librdkafka has in itself, and what is in their topics."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import confluent_kafka


@contextmanager
def mock_brokers() -> Generator[str]:
    """Other clients, of other processes, too, reach them at the addresses that this one, which has made them, names."""
    owner = confluent_kafka.Producer({"test.mock.num.brokers": 3, "log_level": 0})
    yield ",".join(f"{broker.host}:{broker.port}" for broker in owner.list_topics(timeout=10).brokers.values())
    owner.flush(1)


def produce(brokers: str, topic: str, *records: tuple[str | None, bytes | None], **headers: str) -> None:
    """Records of a key and a value, each in the topic when this returns."""
    producer = confluent_kafka.Producer({"bootstrap.servers": brokers, "log_level": 0})
    for key, value in records:
        producer.produce(topic, key=key, value=value, headers=dict(headers))
    assert not producer.flush(10)


def committed(brokers: str, topic: str, group: str) -> int:
    """Records up to the offsets that a group has committed, of all partitions."""
    consumer = confluent_kafka.Consumer({"bootstrap.servers": brokers, "group.id": group, "log_level": 0})
    try:
        partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        places = [confluent_kafka.TopicPartition(topic, number) for number in partitions]
        return sum(max(place.offset, 0) for place in consumer.committed(places, timeout=10))
    finally:
        consumer.close()


def consume(brokers: str, topic: str, ids: set[str]) -> list[Any]:
    """The records of a topic, when those of all these events are among them."""
    consumer = confluent_kafka.Consumer({"bootstrap.servers": brokers, "group.id": "test", "log_level": 0})
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign([confluent_kafka.TopicPartition(topic, number, 0) for number in partitions])
    found: list[Any] = []
    missing = set(ids)
    try:
        for _ in range(600):
            record: Any = consumer.poll(0.05)
            if record is not None and record.error() is None:
                found.append(record)
                missing.discard(dict(record.headers())["id"].decode())
            if not missing:
                return found
    finally:
        consumer.close()
    raise AssertionError(f"no records of {sorted(missing)[:5]}")
