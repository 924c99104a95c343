"""Deliveries from a topic of Kafka: each record is one.

Owns: what a record is as a delivery, the order in which records are processed, and when offsets are committed. Must
not: call the consumer's library. Called by: user code (makes sources), `serving.py`.

A record is known by topic, partition, offset and time: the offsets of a topic that was deleted and created again begin
at 0, the times don't. Records with one key are processed one after the other, in their order, others at the same time.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import anyio

from streamflow.errors import UsageError
from streamflow.triggers.kafka_topic import OURS, KafkaTopic, open_topic
from streamflow.triggers.pulled import (
    MAX_BODY,
    STORE_PAUSE,
    PulledSource,
    checked_max_body,
    is_stored,
    process_at_once,
)
from streamflow.triggers.receiver import Receiver, received_now
from streamflow.triggers.secret import Secret

TOMBSTONE = b"null"
"""The payload of a record without a value."""
_SECRET_WORDS = ("password", "secret", "key.pem")


class Kafka(PulledSource):
    """Made by `kafka`."""

    kind = "kafka"

    def __init__(
        self,
        topic: str,
        brokers: str | Secret,
        group: str,
        properties: Mapping[str, str | Secret],
        max_body: int,
    ) -> None:
        self.topic = topic
        self._brokers = brokers
        self._group = group
        self._properties = properties
        self._max_body = max_body

    @property
    def about(self) -> str:
        where = repr(self._brokers) if isinstance(self._brokers, Secret) else self._brokers
        return f"topic {self.topic} of {where}"

    async def serve(self, receiver: Receiver) -> None:
        group = self._group or receiver.trigger.name
        async with open_topic(self.topic, group, self._brokers, self._properties) as topic:
            while True:
                records = await topic.read()
                receiver.problem = ""
                if records:
                    await self._process_all(topic, receiver, records)

    async def _process_all(self, topic: KafkaTopic, receiver: Receiver, records: Sequence[Any]) -> None:
        """Until all are stored: then their offsets are committed."""
        left = list(_by_key(records).values())
        while left:
            left = await process_at_once(lambda chain: self._process_in_order(receiver, chain), left)
            if left:
                await anyio.sleep(STORE_PAUSE)
        await topic.commit(records)

    async def _process_in_order(self, receiver: Receiver, chain: list[Any]) -> bool:
        while chain:
            if not await self._process(receiver, chain[0]):
                return False
            del chain[0]
        return True

    async def _process(self, receiver: Receiver, record: Any) -> bool:
        partition, offset = record.partition(), record.offset()
        delivery_id = f"{self.topic}/{partition}/{offset}@{record.timestamp()[1]}"
        body = TOMBSTONE if record.value() is None else record.value()
        if len(body) > self._max_body:
            where = f"the topic {self.topic}, in partition {partition} at offset {offset}"
            return await is_stored(receiver.set_aside_long(delivery_id, body, len(body), self._max_body, where))
        return await is_stored(receiver.receive(received_now(delivery_id, body, _headers(record))))


def _by_key(records: Sequence[Any]) -> dict[Hashable, list[Any]]:
    """Records in their order, those with one key in one list; each without a key is in one of its own."""
    chains: dict[Hashable, list[Any]] = {}
    for record in records:
        partition, key = record.partition(), record.key()
        place = (partition, record.offset()) if key is None else (partition, key)
        chains.setdefault(place, []).append(record)
    return chains


def _headers(record: Any) -> dict[str, str]:
    found = {name.lower(): _text(value) for name, value in record.headers() or ()}
    found["kafka-partition"], found["kafka-offset"] = str(record.partition()), str(record.offset())
    if record.key() is not None:
        found["kafka-key"] = _text(record.key())
    return found


def _text(value: bytes | str | None) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""


def kafka(
    topic: str,
    /,
    *,
    brokers: str | Secret,
    group: str = "",
    properties: Mapping[str, str | Secret] | None = None,
    max_body: int = MAX_BODY,
) -> Kafka:
    """Records of a topic, from its first one on, as a consumer group. The value is the payload (of a record without one
    `null`), the record's headers are the headers, with `kafka-key`, `kafka-partition` and `kafka-offset`.

    `brokers`: host:port, with commas between several. `group`: by default the trigger's name. `properties`: others of
    librdkafka, such as `security.protocol`; secrets as `sf.triggers.secret(…)`. `max_body`: bytes, at most 2 MB; of a
    longer record the beginning is quarantined. Raises `UsageError`.

    >>> sf.triggers.kafka(
    ...     "orders",
    ...     brokers="kafka:9093",
    ...     properties={"security.protocol": "SASL_SSL", "sasl.password": sf.triggers.secret("KAFKA_PASSWORD")},
    ... )
    """
    if not topic or topic.startswith("^"):
        raise UsageError(f"a topic is one by its name, got {topic!r}")
    if not brokers:
        raise UsageError("brokers are HOST:PORT, with commas between several")
    given = dict(properties or {})
    for name, value in given.items():
        if name in OURS:
            raise UsageError(f"the property {name} is the trigger's: it can't be given")
        if isinstance(value, str) and any(word in name for word in _SECRET_WORDS):
            raise UsageError(f"the property {name} is a secret: give it as sf.triggers.secret('VARIABLE')")
    return Kafka(topic, brokers, group, given, checked_max_body(max_body))
