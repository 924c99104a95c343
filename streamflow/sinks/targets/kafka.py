"""Events into a topic of Kafka, with the run as the key: its events are in one partition, in order.

Owns: the records, and when a batch counts as written: when the brokers have confirmed each of its records.
Must not: acknowledge anything. Called by: `streamflow.sinks`, `streamflow sink kafka`.

The producer is idempotent, so what it sends again itself is there once. A batch that was written and not acknowledged
is there twice when it comes again: a consumer that must not see that remembers ids, which are in a header.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import anyio.to_thread
from msgspec import Meta

from streamflow.errors import UsageError
from streamflow.sinks.rows import json_bytes, row_of
from streamflow.sinks.sink import Sink, TargetError, required
from streamflow.text import recordable

if TYPE_CHECKING:
    from streamflow.client.committed import CommittedEvent
    from streamflow.client.subscription import EventBatch

LARGEST_RECORD = 16 * 1024 * 1024
"""Bytes; brokers have a limit of their own, 1 MB unless it is raised."""
SLICE = 0.2
"""Seconds between two looks whether the sink is to end."""
CONNECT_SECONDS = 10.0
HEADERS = ("id", "kind", "workflow", "tenant", "shard", "offset")

_log = logging.getLogger("streamflow.sinks.kafka")
_client_log = logging.getLogger("streamflow.sinks.kafka.client")
"""What librdkafka says by itself: each of its connections, every few seconds. What fails is in our errors."""
_client_log.disabled = True


class Kafka(Sink):
    """Produce each event as a record of a Kafka topic, with the run's id as its key.

    The value is the event as JSON; the headers id, kind, workflow, tenant, shard and offset say what it is without
    reading that. A batch is acknowledged when all in-sync replicas have confirmed each of its records. Other properties
    of librdkafka, such as security.protocol and sasl.password, are lines NAME=VALUE of the file --properties.

    \b
    Example:
      streamflow sink kafka broker1:9092,broker2:9092 --topic flows
    """

    max_events = 1000

    def __init__(
        self,
        brokers: Annotated[str, Meta(title="BROKERS", extra={"env": "STREAMFLOW_SINK_KAFKA"})],
        *,
        topic: Annotated[str, Meta(title="NAME", description="Topic of the records")] = "streamflow",
        properties: Annotated[str, Meta(title="FILE", description="File with properties of librdkafka")] = "",
        timeout: Annotated[
            float, Meta(gt=0, title="SECONDS", description="How long the brokers may take to confirm a batch")
        ] = 30.0,
    ) -> None:
        self._topic = topic
        self._timeout = timeout
        self._properties = {**_read_properties(properties), "bootstrap.servers": brokers}
        self._kafka: Any = None
        self._producer: Any = None
        self._ending = False
        self._last_error = ""
        self._too_large: set[str] = set()
        """Ids of events whose records the brokers refuse for their size."""

    async def open(self) -> None:
        self._kafka = required("confluent_kafka", "kafka")
        self._ending = False
        await anyio.to_thread.run_sync(self._connect)

    async def write(self, batch: EventBatch) -> None:
        await anyio.to_thread.run_sync(self._produce, batch, abandon_on_cancel=True)

    async def close(self) -> None:
        self._ending = True
        if self._producer is not None:
            producer, self._producer = self._producer, None
            producer.purge()
            await anyio.to_thread.run_sync(producer.flush, 1.0)

    def _connect(self) -> None:
        kafka = self._kafka
        properties: dict[str, Any] = {
            "client.id": "streamflow-sink",
            "compression.type": "lz4",
            "linger.ms": 5,
            "message.max.bytes": LARGEST_RECORD,
            **self._properties,
            "enable.idempotence": True,
            "acks": "all",
            "message.timeout.ms": int(self._timeout * 1000),
            "error_cb": self._note,
            "logger": _client_log,
        }
        try:
            self._producer = kafka.Producer(properties)
        except kafka.KafkaException as error:
            reason = str(error.args[0].str())
            for name, value in self._properties.items():  # it may quote what it refuses
                reason = reason.replace(value, "…") if value and name != "bootstrap.servers" else reason
            raise UsageError(f"librdkafka refuses the properties: {recordable(reason, 300)}") from None
        try:
            topics = self._producer.list_topics(self._topic, timeout=min(self._timeout, CONNECT_SECONDS)).topics
        except kafka.KafkaException as error:
            self._producer.poll(0)  # calls `_note`
            brokers = recordable(self._properties["bootstrap.servers"], 100)
            raise TargetError(f"{brokers}: {self._reason(error.args[0])}") from None
        if (error := topics[self._topic].error) is not None:
            raise TargetError(f"topic {self._topic}: {recordable(error.str(), 300)}")

    def _produce(self, batch: EventBatch) -> None:
        producer = self._producer
        failures: list[Any] = []

        def reported(error: Any, event_id: str) -> None:
            if error is not None:
                failures.append(error)
                self._note_size(error, event_id)

        until = time.monotonic() + self._timeout + 5  # each record has its own limit, which is reported
        for event in batch.events:
            self._produce_one(event, reported, until)
        while len(producer) and time.monotonic() < until and not self._ending:
            producer.flush(SLICE)
        if failures:
            raise TargetError(self._reason(failures[0]))
        if len(producer):
            raise self._unconfirmed()
        self._too_large.clear()
        self._last_error = ""

    def _produce_one(self, event: CommittedEvent, reported: Callable[[Any, str], None], until: float) -> None:
        record = self._record(event, reported)
        while True:
            try:
                self._producer.produce(self._topic, **record)
                return
            except BufferError:  # its queue is full
                if time.monotonic() > until or self._ending:
                    raise self._unconfirmed() from None
                self._producer.poll(SLICE)
            except self._kafka.KafkaException as error:
                if not self._note_size(error.args[0], event.id):
                    raise TargetError(self._reason(error.args[0])) from None
                record = self._record(event, reported)

    def _record(self, event: CommittedEvent, reported: Callable[[Any, str], None]) -> dict[str, Any]:
        row = row_of(event)
        if event.id in self._too_large:
            row["data"] = {"refused": "the record was too large for the brokers", "bytes": len(json_bytes(row["data"]))}

        def on_delivery(error: Any, _: Any) -> None:
            reported(error, event.id)

        return {
            "key": event.run_id.encode(),
            "value": json_bytes(row),
            "headers": [(name, str(row[name]).encode()) for name in HEADERS],
            "timestamp": int(event.at.timestamp() * 1000),
            "on_delivery": on_delivery,
        }

    def _note_size(self, error: Any, event_id: str) -> bool:
        """Whether the record is refused for its size, and is sent without its data from now on."""
        if error.code() != self._kafka.KafkaError.MSG_SIZE_TOO_LARGE or event_id in self._too_large:
            return False
        self._too_large.add(event_id)
        _log.warning("the data of event %s is left out, because the record is too large", event_id)
        return True

    def _note(self, error: Any) -> None:
        self._last_error = recordable(error.str(), 300)

    def _unconfirmed(self) -> TargetError:
        return TargetError(f"not confirmed within {self._timeout:g} s{self._because()}")

    def _reason(self, error: Any) -> str:
        return recordable(error.str(), 300) + self._because()

    def _because(self) -> str:
        return f": {self._last_error}" if self._last_error else ""


def _read_properties(file: str) -> dict[str, str]:
    """Lines NAME=VALUE; blank ones and those that begin with # are left out. Raises `UsageError`."""
    if not file:
        return {}
    try:
        lines = Path(file).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it isn't text"
        raise UsageError(f"can't read --properties {file}: {reason}") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals:
            raise UsageError(f"--properties {file}, line {number}: expected NAME=VALUE")
        found[name.strip()] = value.strip()
    return found
