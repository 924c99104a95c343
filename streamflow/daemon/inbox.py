"""Reads the inboxes of all owned shards, with a few blocking commands.

Owns: which inboxes are read, and when pending entries are read again. Must not: decode messages or acknowledge them
(the commit does both). Called by: the daemon (runs the loop), membership (reports that the set of shards has changed).

All shards of a daemon use the same group name, which is this session's: `acquire_shard` destroys the last owner's group
and creates this one from the first entry, so every message that was never committed is read again. After an error,
entries that a lost answer carried are pending; only reading from `0` returns them again.

A blocked XREADGROUP checks each of its streams again when one of them gets an entry: 2 to 3 µs a stream, before any
client is answered. So the shards are divided among a few lanes, each with a connection: a start wakes one eighth of
them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence

import anyio

from streamflow.daemon.shard import OwnedShard
from streamflow.daemon.starts import Starts
from streamflow.errors import StoreError
from streamflow.loops import Supervisor, retry_forever
from streamflow.store.blocking_reads import Entry, GroupGone, InboxConnection
from streamflow.wire import InboxMessage

_log = logging.getLogger("streamflow.inbox")

LANES = 8
BLOCK_MS = 5000
READ_PAUSE = 0.001
"""Seconds between two reads: entries are committed before the server has to check all streams again."""
COUNT = 64
"""Entries of one shard in one answer, unless..."""
HOT_COUNT = 2048
"""...some shards had that many: then this, divided among those. A hot run's messages become one transition if they come
together."""
HOT_BYTES = 256 * 1024
"""An answer of this size means that entries are large: the next one gets no more of them."""
ANSWER_BYTES = 4 * 1024 * 1024
"""After a larger answer, the next ones get fewer entries, until they are smaller."""
HIGH_WATER = 10_000
HIGH_WATER_BYTES = 32 * 1024 * 1024
"""Messages in memory, and their bytes, at which reading pauses until the owner has caught up."""


class InboxReader:
    """`shards` is the daemon's table of owned shards; `starts` takes the starts that have to wait; `on_messages(shard)`
    is called when one has new messages; `on_group_gone(shard)` when this daemon's consumer group no longer exists in
    its inbox. One lane for each connection."""

    def __init__(
        self,
        connections: Sequence[InboxConnection],
        shards: dict[int, OwnedShard],
        starts: Starts,
        on_messages: Callable[[OwnedShard], None],
        on_group_gone: Callable[[OwnedShard], None],
    ) -> None:
        self.starts = starts
        self._shards = shards
        self._caught_up = anyio.Event()
        self._has_large = False
        """The last answer had messages of which fewer than `HIGH_WATER` are too much."""
        self._lanes = [Lane(self, connection, on_messages, on_group_gone) for connection in connections]

    async def run(self, supervisor: Supervisor) -> None:
        async with anyio.create_task_group() as lanes:
            for number, lane in enumerate(self._lanes):
                lanes.start_soon(supervisor.run, f"inbox {number}", lane.run)

    async def shards_changed(self) -> None:
        """Call when shards may have been acquired or lost: the running reads continue with the new set."""
        lanes = self._lanes
        streams: list[dict[str, OwnedShard]] = [{} for _ in lanes]
        for shard in self._shards.values():
            if not shard.draining and not shard.broken:
                streams[shard.number % len(lanes)][shard.keys.inbox] = shard
        for lane, its_streams in zip(lanes, streams, strict=True):
            await lane.set_streams(its_streams)

    def caught_up(self) -> None:
        """The owner has taken messages out of memory."""
        self._caught_up.set()

    def buffered(self) -> int:
        """Messages in memory that no batch has collected yet."""
        return sum(len(shard.inbox) for shard in self._shards.values())

    def note_size(self, count: int, size: int) -> None:
        """An answer had so many messages with so many bytes."""
        self._has_large = size * HIGH_WATER > count * HIGH_WATER_BYTES

    def _is_above_limit(self) -> bool:
        starts = self.starts
        if self.buffered() > HIGH_WATER or len(starts.held) > 4 * HIGH_WATER or starts.size > HIGH_WATER_BYTES:
            return True
        if not self._has_large:
            return False
        size = sum(len(message.body) for shard in self._shards.values() for message in shard.inbox)
        return size > HIGH_WATER_BYTES

    async def wait_for_capacity(self) -> None:
        """Wait until fewer messages than the limit are in memory, and fewer bytes."""
        while self._is_above_limit():
            if self._caught_up.is_set():  # otherwise another lane already waits for the same event
                self._caught_up = anyio.Event()
            await self._caught_up.wait()


class Lane:
    """Some of the shards, and the connection that reads them."""

    def __init__(
        self,
        reader: InboxReader,
        connection: InboxConnection,
        on_messages: Callable[[OwnedShard], None],
        on_group_gone: Callable[[OwnedShard], None],
    ) -> None:
        self._reader = reader
        self._connection = connection
        self._on_messages = on_messages
        self._on_group_gone = on_group_gone
        self._streams: dict[str, OwnedShard] = {}
        self._reading: dict[str, OwnedShard] = {}
        """The streams of the running read; differs from `_streams` when an interruption came too early."""
        self._changed = anyio.Event()
        self._check_pending = False
        self._count = COUNT

    async def set_streams(self, streams: dict[str, OwnedShard]) -> None:
        if streams != self._streams:
            self._streams = streams
            # The answer to a running read may be for a shard that was dropped and acquired again meanwhile.
            self._check_pending = True
            self._changed.set()
            self._changed = anyio.Event()
        if self._reading is not self._streams:
            await self._connection.interrupt()

    async def run(self) -> None:
        self._read_again()  # what ended the loop before may have lost an answer
        await retry_forever(self._read_or_find_gone, _log, "could not read inboxes", on_failure=self._read_again)

    def _read_again(self) -> None:
        """A lost answer may have carried entries: read the pending ones before new ones."""
        self._check_pending = True

    async def _read_or_find_gone(self) -> None:
        try:
            await self.run_once()
        except GroupGone as error:
            _log.info("a consumer group of this daemon is gone, checking which shards were lost: %s", error)
            self._read_again()
            await self._find_gone()

    async def _find_gone(self) -> None:
        """Another daemon acquired a shard, or its inbox was deleted or damaged: read the inboxes one by one to find
        which, so that reading the others can continue."""
        for stream, shard in self._streams.items():
            try:
                if not shard.dropped:
                    await self._connection.read([stream], 1, pending=True)
            except GroupGone:
                self._on_group_gone(shard)
            except StoreError:
                return  # the next read fails and is retried

    async def run_once(self) -> None:
        """One read: of new entries or, after an error, of pending ones."""
        if not self._streams:
            await self._changed.wait()
            return
        await self._reader.wait_for_capacity()
        self._reading = self._streams
        # A dropped shard may have been acquired again: its entries are for the new `OwnedShard`.
        streams = {stream: shard for stream, shard in self._streams.items() if not shard.dropped}
        if not streams:
            await self._changed.wait()
        elif self._check_pending:
            await self._read_pending(streams)
        else:
            entries = await self._connection.read(list(streams), self._count, pending=False)
            self._count = _next_count(entries, self._count, self._buffer(streams, entries))
            if entries:
                await anyio.sleep(READ_PAUSE)

    async def _read_pending(self, streams: dict[str, OwnedShard]) -> None:
        """Read entries again that were delivered and not committed, except those that are in memory."""
        self._check_pending = False  # before the read: a request from now on needs another one
        for shard in streams.values():
            shard.rereading(True)
        try:
            self._buffer(streams, await self._connection.read(list(streams), HIGH_WATER, pending=True))
        finally:
            for shard in streams.values():
                shard.rereading(False)

    def _buffer(self, streams: dict[str, OwnedShard], entries: list[Entry]) -> int:
        """Returns the bytes of the messages."""
        starts = self._reader.starts
        size = 0
        for stream, entry_id, fields in entries:
            shard = streams[stream]
            if shard.dropped:
                self._check_pending = True
                continue
            if entry_id in shard.known:
                continue
            shard.known.add(entry_id)
            fields = fields or {}
            body = fields.get(b"body", b"")
            size += len(body)
            kind = fields.get(b"kind", b"").decode(errors="replace")
            run_id = fields.get(b"run", b"").decode(errors="replace")
            message = InboxMessage(entry_id, kind, run_id, body, fields.get(b"header", b""))
            if kind == "waiting":
                shard.waits = True
                starts.look_for_more()
            elif (kind == "start" or run_id in starts.held) and starts.offer(shard, message):
                continue
            shard.inbox.append(message)
            self._on_messages(shard)
        self._reader.note_size(len(entries), size)
        return size


def _next_count(entries: list[Entry], count: int, size: int) -> int:
    """How many entries of a shard the next answer may have: more than usual if a few shards had that many, fewer if
    they were large. `count`: how many this one could have; `size`: its bytes."""
    if size > ANSWER_BYTES:
        return max(1, min(count, COUNT) * ANSWER_BYTES // size)
    if count < COUNT:
        return min(COUNT, 2 * count)
    if len(entries) < COUNT:
        return COUNT
    full = sum(n >= COUNT for n in Counter(stream for stream, _, _ in entries).values())
    return max(COUNT, HOT_COUNT // full) if full and size < HOT_BYTES else COUNT
