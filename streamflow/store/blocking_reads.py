"""Blocking reads of a queue's partitions, on a dedicated connection.

Owns: XREADGROUP and how to interrupt it. Must not: know what the entries mean.
Called by: `worker/reader.py`, through `open_queue_connection`.

One XREADGROUP reads many streams on one server only: in a cluster they would have to share a slot. There each stream is
waited for on a connection of its own, and what is not waited for is read in pipelines.
"""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from streamflow.errors import StoreError, StoreUnavailable
from streamflow.machine.sealed import hide
from streamflow.server_url import redacted
from streamflow.store.connection import LOST, Call, Store, stream_entries
from streamflow.store.node import Node
from streamflow.store.router import Cluster

_GONE = ("NOGROUP", "UNBLOCKED", "WRONGTYPE")

PENDING = 10_000
"""Pending entries of a stream that are read again at once; a worker never has so many."""
_IN_TIME = 0.5
"""Seconds for which a server is waited for while others have answered."""
_ASK_AGAIN = 0.25
"""Seconds after which a server that did not answer is read again."""
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
    """A connection for each stream that is waited for. A server that doesn't answer in time is left alone until then,
    while the others are read; what a lost answer may have carried is read again."""

    def __init__(self, cluster: Cluster, group: str, block_ms: int, consumer: str) -> None:
        self._cluster = cluster
        self._group = group
        self._consumer = consumer
        self._block_ms = block_ms
        self._parts: dict[str, tuple[Node, NodeQueueConnection]] = {}
        self._reads: dict[asyncio.Task[list[Entry]], list[str]] = {}
        """Reads under way, and their streams, which nothing else reads meanwhile."""
        self._unsure: set[str] = set()
        """Streams of which an answer was lost: their pending entries are read before new ones."""

    async def read(self, streams: Sequence[str], count: int, *, pending: bool, wait: bool = True) -> list[Entry]:
        busy = {stream for some in self._reads.values() for stream in some}
        free = [stream for stream in streams if stream not in busy]
        try:
            if wait and not pending:
                await self._wait([stream for stream in free if stream not in self._unsure], count)
            else:
                by_server: dict[int, list[str]] = {}
                for stream in free:
                    by_server.setdefault(self._cluster.server_of(stream), []).append(stream)
                new = [self._begin(self._read_from(some, count, pending=pending), some) for some in by_server.values()]
                if new:
                    await asyncio.wait(new, timeout=_IN_TIME)
        except BaseException:
            for read in self._reads:
                read.cancel()
            raise
        return self._collected()

    def _begin(self, reading: Coroutine[Any, Any, list[Entry]], streams: list[str]) -> asyncio.Task[list[Entry]]:
        read = asyncio.create_task(reading)
        hide(read)
        self._reads[read] = streams
        read.add_done_callback(_retrieve)
        return read

    def _collected(self) -> list[Entry]:
        """What has been read. Raises what a server has answered, and `StoreUnavailable` if none of them did."""
        entries: list[Entry] = []
        lost: StoreUnavailable | None = None
        answered = False
        for read in [read for read in self._reads if read.done()]:
            streams = self._reads.pop(read)
            error = None if read.cancelled() else read.exception()
            if isinstance(error, StoreUnavailable):
                self._cluster.suspect()
                self._unsure.update(streams)
                lost = error
            elif error is not None:
                raise error  # what others have read is pending, and is read again
            elif not read.cancelled():
                self._unsure.difference_update(streams)
                entries += read.result()
                answered = True
        if lost is not None and not answered and not self._reads:
            raise lost
        return entries

    async def _read_from(self, streams: Sequence[str], count: int, *, pending: bool) -> list[Entry]:
        """Without waiting, from one server."""
        calls: list[Call[Any]] = []
        for stream in streams:
            again = pending or stream in self._unsure
            args = ("COUNT", PENDING if again and not pending else count, "STREAMS", stream, "0" if again else ">")
            calls.append(Call.plain("XREADGROUP", "GROUP", self._group, self._consumer, *args, near=stream))
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

    async def _wait(self, streams: Sequence[str], count: int) -> None:
        """Until there is something on one of them, and the others are not waited for any more."""
        waiting: dict[asyncio.Task[list[Entry]], NodeQueueConnection] = {}
        limit = _ASK_AGAIN if self._unsure or self._reads else None
        for stream in streams:
            part = await self._part(stream)
            waiting[self._begin(part.read([stream], count, pending=False), [stream])] = part
        if not waiting:
            await asyncio.sleep(_ASK_AGAIN)
            return
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=limit)
        interrupts: list[asyncio.Task[None]] = []
        for _ in range(round(_IN_TIME / _INTERRUPT_AGAIN)):  # one that has not begun yet is not interrupted
            left = [part for read, part in waiting.items() if not read.done()]
            if not left:
                break
            for part in left:
                interrupts.append(asyncio.create_task(part.interrupt()))
                interrupts[-1].add_done_callback(_retrieve)
            await asyncio.wait(waiting, timeout=_INTERRUPT_AGAIN)

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
        interrupts = [asyncio.create_task(part.interrupt()) for _, part in self._parts.values()]
        for task in interrupts:
            task.add_done_callback(_retrieve)
        if interrupts:
            await asyncio.wait(interrupts, timeout=_IN_TIME)


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Its error is collected, or there is no caller any more: asyncio would report it as forgotten."""
    if not task.cancelled():
        task.exception()
