"""A topic of Kafka, read as a member of a consumer group.

Owns: the consumer, whose calls block and so are made in a thread, its properties, and what is wrong with it. Must not:
know what records mean. Called by: `kafka.py`.

Offsets are committed when the caller asks for it. After a commit that the group refuses, because its partitions have
others by now, or that is lost, the records come again.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread

from streamflow.errors import UsageError
from streamflow.text import recordable
from streamflow.triggers.pulled import SourceFailed, required
from streamflow.triggers.secret import Secret

T = TypeVar("T")

BATCH = 64
POLL_SECONDS = 0.2
CONNECT_SECONDS = 10.0
SLICE = 1.0
"""Seconds between two looks whether the trigger is to end."""
CLOSE_SECONDS = 5.0
QUEUED_KB = 16 * 1024
"""Kilobytes of records that are fetched ahead."""
OURS = frozenset({"bootstrap.servers", "group.id", "enable.auto.commit", "enable.auto.offset.store"})
"""Properties on which the promise of triggers rests."""

_client_log = logging.getLogger("streamflow.triggers.kafka.client")
"""What librdkafka says by itself: each of its connections, every few seconds. What fails is in our errors."""
_client_log.disabled = True


class KafkaTopic:
    """Made by `open_topic`. Its methods raise `SourceFailed`."""

    def __init__(
        self, kafka: Any, topic: str, where: str, properties: Mapping[str, str], hidden: Sequence[str]
    ) -> None:
        self._kafka = kafka
        self._topic = topic
        self._where = where
        self._properties = properties
        self._hidden = hidden
        self._consumer: Any = None
        self._limiter = anyio.CapacityLimiter(1)  # its calls are made one after the other
        self._problem = ""

    async def join(self) -> None:
        """Raises `UsageError` for properties that librdkafka refuses."""
        await self._in_thread(self._join)

    async def read(self) -> list[Any]:
        """Records, after at most `POLL_SECONDS`."""
        records = await self._in_thread(lambda: self._consumer.consume(BATCH, POLL_SECONDS))
        found: list[Any] = []
        for record in records:
            error = record.error()
            if error is None:
                found.append(record)
            elif error.code() != self._kafka.KafkaError._MAX_POLL_EXCEEDED:  # it joins again by itself
                raise SourceFailed(f"{self._where}: {self._said(error)}")
        if self._problem:
            raise SourceFailed(f"{self._where}: {self._problem}")
        return found

    async def commit(self, records: Sequence[Any]) -> None:
        """All up to these are done. It is on its way when this returns; what becomes of it, a later `read` says."""
        ends: dict[int, int] = {}
        for record in records:
            ends[record.partition()] = max(ends.get(record.partition(), 0), record.offset() + 1)
        offsets = [self._kafka.TopicPartition(self._topic, number, end) for number, end in ends.items()]
        await self._in_thread(lambda: self._consumer.commit(offsets=offsets, asynchronous=True))

    async def leave(self) -> None:
        if self._consumer is not None:
            with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                await anyio.to_thread.run_sync(self._consumer.close, abandon_on_cancel=True, limiter=self._limiter)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        try:
            return await anyio.to_thread.run_sync(call, limiter=self._limiter)
        except self._kafka.KafkaException as error:
            raise SourceFailed(f"{self._where}: {self._said(error.args[0])}") from None

    def _join(self) -> None:
        properties: dict[str, Any] = {
            "client.id": "streamflow-trigger",
            "auto.offset.reset": "earliest",
            "queued.max.messages.kbytes": QUEUED_KB,
            **self._properties,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "error_cb": self._note,
            "on_commit": self._committed,
            "logger": _client_log,
        }
        try:
            self._consumer = self._kafka.Consumer(properties)
        except self._kafka.KafkaException as error:
            raise UsageError(f"librdkafka refuses the properties: {self._said(error.args[0])}") from None
        found = self._found_topic(time.monotonic() + CONNECT_SECONDS)
        if found.error is not None:
            raise SourceFailed(f"{self._where}: topic {self._topic}: {self._said(found.error)}")
        self._problem = ""
        self._consumer.subscribe([self._topic])

    def _found_topic(self, until: float) -> Any:
        while True:
            anyio.from_thread.check_cancelled()
            try:
                return self._consumer.list_topics(self._topic, timeout=SLICE).topics[self._topic]
            except self._kafka.KafkaException as error:
                if time.monotonic() > until:
                    reason = self._said(error.args[0])
                    self._consumer.poll(0)  # calls `_note`
                    raise SourceFailed(f"{self._where}: {self._problem or reason}") from None

    def _note(self, error: Any) -> None:
        """Called by librdkafka, within other calls. One broker of several may be away: the others go on."""
        if error.fatal() or error.code() in (
            self._kafka.KafkaError._ALL_BROKERS_DOWN,
            self._kafka.KafkaError._AUTHENTICATION,
            self._kafka.KafkaError._SSL,
        ):
            self._problem = self._said(error)

    def _committed(self, error: Any, _: Any) -> None:
        """Called by librdkafka. Commits that the group refuses were of partitions that others have now."""
        codes = self._kafka.KafkaError
        passing = (
            codes.ILLEGAL_GENERATION, codes.UNKNOWN_MEMBER_ID, codes.REBALANCE_IN_PROGRESS, codes._NO_OFFSET,
            codes._DESTROY,
        )  # fmt: skip
        if error is not None and error.code() not in passing and not error.retriable():
            self._problem = f"offsets can't be committed: {self._said(error)}"

    def _said(self, error: Any) -> str:
        text = error.str()
        for hidden in self._hidden:  # librdkafka may quote a property that it refuses
            text = text.replace(hidden, "…")
        return recordable(text, 300)


@contextlib.asynccontextmanager
async def open_topic(
    topic: str, group: str, brokers: str | Secret, properties: Mapping[str, str | Secret]
) -> AsyncGenerator[KafkaTopic]:
    """Join the group, and leave it at the end of the block. Secrets are read now. Raises `UsageError` and
    `SourceFailed`."""
    kafka = required("confluent_kafka", "kafka")
    values = {name: value.read() if isinstance(value, Secret) else value for name, value in properties.items()}
    hidden = [values[name] for name, value in properties.items() if isinstance(value, Secret)]
    values["bootstrap.servers"] = brokers.read() if isinstance(brokers, Secret) else brokers
    values["group.id"] = group
    where = repr(brokers) if isinstance(brokers, Secret) else brokers
    found = KafkaTopic(kafka, topic, where, values, hidden)
    try:
        await found.join()
        yield found
    finally:
        await found.leave()
