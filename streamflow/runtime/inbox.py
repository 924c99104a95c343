"""Reads the inboxes of all owned shards with one blocking command.

Owns: which inboxes are read, and when pending entries are read again. Must not: decode messages or acknowledge them (the
commit does both). Called by: the daemon (runs the loop), membership (says when the set of shards changes).

All shards of a daemon use the same group name, which is this session's: `lua/take.lua` destroys the last owner's group
and makes this one from the first entry, so all that was never committed is read again. After an error, entries that a
lost answer carried are pending; only reading from `0` shows them again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import anyio

from streamflow.pure.errors import StoreError
from streamflow.runtime.shard import InboxMessage, OwnedShard
from streamflow.store.reader import GroupGone, InboxConnection

_log = logging.getLogger("streamflow.inbox")

BLOCK_MS = 5000
COUNT = 64
"""Entries of one shard in one answer."""
HIGH_WATER = 10_000
"""Messages in memory at which reading pauses until the owner has caught up."""


class InboxReader:
    """`shards` is the daemon's table of owned shards; `on_messages(shard)` is called when one has new messages;
    `on_group_gone()` asks membership to look which shards are still ours."""

    def __init__(
        self,
        connection: InboxConnection,
        shards: dict[int, OwnedShard],
        on_messages: Callable[[OwnedShard], None],
        on_group_gone: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._shards = shards
        self._on_messages = on_messages
        self._on_group_gone = on_group_gone
        self._changed = anyio.Event()
        self._check_pending = False
        self._streams: dict[str, OwnedShard] = {}
        self.drained = anyio.Event()

    async def shards_changed(self) -> None:
        """Call when shards may have been taken or lost: if so, the running read goes on with the new set."""
        streams = {
            shard.keys.inbox: shard for shard in self._shards.values() if not shard.draining and not shard.broken
        }
        if streams == self._streams:
            return
        self._streams = streams
        self._changed.set()
        self._changed = anyio.Event()
        await self._connection.interrupt()

    async def run(self) -> None:
        while True:
            try:
                await self.run_once()
            except GroupGone as error:
                # Somebody took a shard from us, or its keys vanished: membership finds out which.
                _log.info("an inbox is no longer ours: %s", error)
                self._on_group_gone()
                changed = self._changed
                with anyio.move_on_after(1.0):
                    await changed.wait()
                self._check_pending = True
            except StoreError as error:
                _log.warning("%s", error)
                self._check_pending = True
                await anyio.sleep(0.2)

    async def run_once(self) -> None:
        if not self._streams:
            await self._changed.wait()
            return
        while self.buffered() > HIGH_WATER:
            self.drained = anyio.Event()
            await self.drained.wait()
        streams = self._streams
        pending = self._check_pending
        entries = await self._connection.read(list(streams), COUNT if not pending else HIGH_WATER, pending=pending)
        self._check_pending = False
        for stream, entry_id, fields in entries:
            shard = streams[stream]
            if shard.dropped or entry_id in shard.known:
                continue
            shard.known.add(entry_id)
            fields = fields or {}
            shard.inbox.append(
                InboxMessage(
                    entry_id,
                    fields.get(b"kind", b"").decode(errors="replace"),
                    fields.get(b"run", b"").decode(errors="replace"),
                    fields.get(b"body", b""),
                    fields.get(b"header", b""),
                )
            )
            self._on_messages(shard)

    def buffered(self) -> int:
        return sum(len(shard.inbox) for shard in self._shards.values())
