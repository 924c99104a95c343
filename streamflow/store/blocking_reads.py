"""Blocking reads of a queue's partitions, on a dedicated connection.

Owns: XREADGROUP and how to interrupt it. Must not: know what the entries mean.
Called by: `worker/reader.py`, through `open_queue_connection`.

One XREADGROUP reads many streams on one server only: in a cluster they would have to share a slot. There each stream is
waited for on a connection of its own, and what is not waited for is read in pipelines.
"""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Sequence

from streamflow.errors import StoreError, StoreUnavailable
from streamflow.server_url import redacted
from streamflow.store.connection import LOST, Call, Store, stream_entries
from streamflow.store.node import Node
from streamflow.store.router import Cluster

_GONE = ("NOGROUP", "UNBLOCKED", "WRONGTYPE")

_INTERRUPT_AGAIN = 0.05
"""Seconds after which a read that goes on waiting is interrupted again."""

Entry = tuple[str, str, dict[bytes, bytes] | None]
"""Stream, entry id, fields (None when the entry was deleted while it was pending)."""


class GroupGone(Exception):
    """A stream's consumer group doesn't exist any more: the keys were deleted."""


class QueueConnection(abc.ABC):
    """Reads streams as one consumer of a consumer group."""

    @abc.abstractmethod
    async def read(self, streams: Sequence[str], count: int, *, pending: bool, wait: bool = True) -> list[Entry]:
        """New entries of all streams, or with `pending` those that were read before and not acknowledged.

        At most `count` entries of each stream. Waits for new entries, unless `wait` is False.

        Raises `StoreUnavailable` when the connection is lost, `GroupGone` when one of the groups is missing.
        """

    @abc.abstractmethod
    async def interrupt(self) -> None:
        """Make a blocked `read` return at once, without entries."""


def open_queue_connection(store: Store, group: str, block_ms: int, consumer: str) -> QueueConnection:
    """`group` has the same name in every stream. A read waits at most `block_ms`."""
    if isinstance(store, Cluster):
        return ClusterQueueConnection(store, group, block_ms, consumer)
    assert isinstance(store, Node)
    return NodeQueueConnection(store, group, block_ms, consumer)


class NodeQueueConnection(QueueConnection):
    """A dedicated connection to one server."""

    def __init__(self, store: Node, group: str, block_ms: int, consumer: str) -> None:
        self._store = store
        self._group = group
        self._consumer = consumer
        self._block_ms = block_ms
        self._link = store.link()
        self._link.wants_id = True
        self._blocked = False

    async def read(self, streams: Sequence[str], count: int, *, pending: bool, wait: bool = True) -> list[Entry]:
        block = ["BLOCK", self._block_ms] if wait and not pending else []
        starts = ["0" if pending else ">"] * len(streams)
        group = ("GROUP", self._group, self._consumer)
        command = ["XREADGROUP", *group, "COUNT", count, *block, "STREAMS", *streams, *starts]
        self._blocked = bool(block)
        try:
            (reply,) = await self._link.exchange([command], self._block_ms / 1000 if block else 0.0)
        except LOST as error:
            self._store.note_refusal(error)
            raise StoreUnavailable(f"could not read streams from {redacted(self._store.url)}: {error}") from error
        finally:
            self._blocked = False
        if isinstance(reply, Exception):
            text = str(reply)
            if not self._store.note_refusal(reply) and any(word in text for word in _GONE):
                raise GroupGone(text) from reply
            raise StoreUnavailable(f"could not read streams: {text}") from reply
        return [
            (stream.decode(), entry_id.decode(), fields)
            for stream, entries in stream_entries(reply)
            for entry_id, fields in entries
        ]

    async def interrupt(self) -> None:
        client_id = self._link.client_id
        if client_id is not None and self._blocked and self._link.is_open:
            await self._store.send([Call.plain("CLIENT", "UNBLOCK", client_id)])

    def drop(self) -> None:
        """Close the connection, if no read is under way."""
        self._link.drop()


class ClusterQueueConnection(QueueConnection):
    """A connection for each stream that is waited for."""

    def __init__(self, cluster: Cluster, group: str, block_ms: int, consumer: str) -> None:
        self._cluster = cluster
        self._group = group
        self._consumer = consumer
        self._block_ms = block_ms
        self._parts: dict[str, tuple[Node, NodeQueueConnection]] = {}

    async def read(self, streams: Sequence[str], count: int, *, pending: bool, wait: bool = True) -> list[Entry]:
        if wait and not pending:
            return await self._wait(streams, count)
        group = ("GROUP", self._group, self._consumer)
        calls = [
            Call.plain("XREADGROUP", *group, "COUNT", count, "STREAMS", stream, "0" if pending else ">", near=stream)
            for stream in streams
        ]
        entries: list[Entry] = []
        # Without patience: to be sent again would leave the entries pending whose reply was lost.
        for answer in await self._cluster.send(calls, patience=0.0):
            if isinstance(answer, StoreError):
                if any(word in str(answer) for word in _GONE):
                    raise GroupGone(str(answer)) from answer
                raise StoreUnavailable(f"could not read streams: {answer}") from answer
            found: list[tuple[bytes, list[tuple[bytes, dict[bytes, bytes] | None]]]] = answer
            entries += ((name.decode(), id_.decode(), fields) for name, some in found for id_, fields in some)
        return entries

    async def _wait(self, streams: Sequence[str], count: int) -> list[Entry]:
        parts = [await self._part(stream) for stream in streams]
        reads = [
            asyncio.create_task(part.read([stream], count, pending=False))
            for stream, part in zip(streams, parts, strict=True)
        ]
        try:
            _, left = await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
            while left:  # an interruption has no effect on a read that has not begun yet
                waiting = [part for part, read in zip(parts, reads, strict=True) if not read.done()]
                await asyncio.gather(*(part.interrupt() for part in waiting))
                _, left = await asyncio.wait(reads, timeout=_INTERRUPT_AGAIN)
        except BaseException:
            for read in reads:
                read.cancel()
            await asyncio.gather(*reads, return_exceptions=True)
            raise
        entries: list[Entry] = []
        error: BaseException | None = None
        for read in reads:
            if (failure := read.exception()) is None:
                entries += read.result()
            elif error is None or isinstance(failure, GroupGone):
                error = failure
        if error is not None:
            self._cluster.suspect()
            raise error  # what the others have read is pending, and read again
        return entries

    async def _part(self, stream: str) -> NodeQueueConnection:
        node = await self._cluster.node_of(stream)
        known = self._parts.get(stream)
        if known is not None and known[0] is node:
            return known[1]
        if known is not None:
            known[1].drop()
        part = NodeQueueConnection(node, self._group, self._block_ms, self._consumer)
        self._parts[stream] = node, part
        return part

    async def interrupt(self) -> None:
        await asyncio.gather(*(part.interrupt() for _, part in self._parts.values()), return_exceptions=True)
