"""Reads of a queue's partitions, as one consumer of their consumer groups. They don't block: a doorbell says when.

Owns: XREADGROUP, and which servers are under way. Must not: know what the entries mean, or when to read.
Called by: `worker/reader.py`, through `open_queue_reads`.

One server is asked by one command for all streams. In a cluster these have slots of their own: there it is a pipeline
to each server, all at the same time. A server that doesn't answer in time is left alone until it does, while the others
are read.
"""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple

from streamflow.errors import StoreError, StoreUnavailable
from streamflow.machine.sealed import hide
from streamflow.store.connection import Call, Store

_GONE = ("NOGROUP", "WRONGTYPE")

PENDING = 10_000
"""Pending entries of a stream that are read again at once; a worker never has so many."""
_IN_TIME = 0.5
"""Seconds for which a server is waited for while others have answered."""

Entry = tuple[str, str, dict[bytes, bytes] | None]
"""Stream, entry id, fields (None when the entry was deleted while it was pending)."""


class QueuePage(NamedTuple):
    """What was read. `unread`: the streams that were not, because their server hasn't answered; `unsure`: an answer
    was lost, which may have carried entries."""

    entries: list[Entry]
    unread: Sequence[str] = ()
    unsure: bool = False


class GroupGone(Exception):
    """One of these streams has no consumer group any more, or is of another type: keys were deleted or overwritten."""

    def __init__(self, text: str, streams: Sequence[str]) -> None:
        super().__init__(text)
        self.streams = list(streams)


class QueueReads(abc.ABC):
    """Reads streams as one consumer of a consumer group."""

    @property
    @abc.abstractmethod
    def is_waiting(self) -> bool:
        """Whether a server is under way that has not answered in time: the next `read` may give what it has."""

    @abc.abstractmethod
    async def read(self, streams: Sequence[str], count: int, *, pending: bool = False) -> QueuePage:
        """New entries of all streams, or with `pending` those that were read before and not acknowledged.

        At most `count` entries of each stream. Raises `GroupGone`, and `StoreUnavailable` when no server can be read:
        in both cases an answer may have been lost.
        """


def open_queue_reads(store: Store, group: str, consumer: str) -> QueueReads:
    """`group` has the same name in every stream."""
    return (_ReadsOfOne if store.is_single else _ReadsOfSeveral)(store, group, consumer)


class _Reads(QueueReads):
    def __init__(self, store: Store, group: str, consumer: str) -> None:
        self._store = store
        self._group = group
        self._consumer = consumer

    def _call(self, streams: Sequence[str], count: int, *, pending: bool) -> Call[Any]:
        group = ("GROUP", self._group, self._consumer)
        starts = ["0" if pending else ">"] * len(streams)
        words = ("XREADGROUP", *group, "COUNT", count, "STREAMS", *streams, *starts)
        return Call.plain(*words, near=streams[0])

    async def _send(self, calls: list[Call[Any]], streams: Sequence[str]) -> list[Entry]:
        entries: list[Entry] = []
        gone: StoreError | None = None
        # Without patience: to be sent again would leave the entries pending whose reply was lost.
        for answer in await self._store.send(calls, patience=0.0):
            if isinstance(answer, StoreError):
                if not any(word in str(answer) for word in _GONE):
                    raise StoreUnavailable(f"could not read streams: {answer}") from answer
                gone = answer
            else:
                entries += _entries(answer)
        if gone is not None:  # what others have read is pending, and is read again
            raise GroupGone(str(gone), streams) from gone
        return entries


class _ReadsOfOne(_Reads):
    """From one server."""

    @property
    def is_waiting(self) -> bool:
        return False

    async def read(self, streams: Sequence[str], count: int, *, pending: bool = False) -> QueuePage:
        return QueuePage(await self._send([self._call(streams, count, pending=pending)], streams))


class _ReadsOfSeveral(_Reads):
    """From the servers of a cluster."""

    def __init__(self, store: Store, group: str, consumer: str) -> None:
        super().__init__(store, group, consumer)
        self._reads: dict[asyncio.Task[list[Entry]], list[str]] = {}
        """Reads under way, and their streams, which nothing else reads meanwhile."""
        self._servers: dict[asyncio.Task[list[Entry]], int] = {}

    @property
    def is_waiting(self) -> bool:
        return bool(self._reads)

    async def read(self, streams: Sequence[str], count: int, *, pending: bool = False) -> QueuePage:
        busy = set(self._servers.values())
        unread: list[str] = []
        by_server: dict[int, list[str]] = {}
        for stream in streams:
            server = self._store.server_of(stream)
            if server in busy:
                unread.append(stream)
            else:
                by_server.setdefault(server, []).append(stream)
        try:
            for server, some in by_server.items():
                calls = [self._call([stream], count, pending=pending) for stream in some]
                self._begin(self._send(calls, some), some, server)
            if self._reads:
                await asyncio.wait(self._reads, timeout=_IN_TIME if by_server else 0)
        except BaseException:
            for read in self._reads:
                read.cancel()
            raise
        return self._collected(unread)

    def _begin(self, reading: Coroutine[Any, Any, list[Entry]], streams: list[str], server: int) -> None:
        read = asyncio.create_task(reading)
        hide(read)
        self._reads[read] = streams
        self._servers[read] = server
        read.add_done_callback(_retrieve)

    def _collected(self, unread: list[str]) -> QueuePage:
        """What has been read. Raises what a server has answered, and `StoreUnavailable` if none of them did."""
        entries: list[Entry] = []
        lost: StoreUnavailable | None = None
        gone: GroupGone | None = None
        answered = False
        for read in [read for read in self._reads if read.done()]:
            streams = self._reads.pop(read)
            del self._servers[read]
            error = None if read.cancelled() else read.exception()
            if isinstance(error, StoreUnavailable):
                unread += streams
                lost = error
            elif isinstance(error, GroupGone):
                gone = error
            elif error is not None:
                raise error
            elif not read.cancelled():
                entries += read.result()
                answered = True
        if gone is not None:
            raise gone
        if lost is not None and not answered and not self._reads:
            raise lost
        return QueuePage(entries, unread, lost is not None)


def _entries(answer: list[tuple[bytes, list[tuple[bytes, dict[bytes, bytes] | None]]]]) -> list[Entry]:
    return [(stream.decode(), entry.decode(), fields) for stream, some in answer for entry, fields in some]


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Its error is collected, or there is no caller any more: asyncio would report it as forgotten."""
    if not task.cancelled():
        task.exception()
