"""Reads the inboxes of all owned shards: those for which the doorbell has rung.

Owns: which inboxes are read, and when. Must not: decode messages or remove them from an inbox (the commit does both).
Called by: the daemon (runs the loops), membership (reports that the set of shards has changed).

Who adds a message to an inbox of which the owner has read all rings on the shard's channel (`lua/shared/inbox.lua`),
and one connection listens to the channels of all shards. What rang is read in one pipeline that doesn't block. No
message waits forever, because

- the server keeps how many messages of an inbox were read, so what stays there has no part in whether one rings,
- an inbox is read until a reply says that there are no more, also when a reply was lost,
- rings may be lost before a channel is subscribed: each inbox is looked at *after* that, also after a reconnection.

`tests/unit/daemon/test_doorbell_model.py` goes through all orders of events, and shows that none of these can be left
out. A message that somebody has added who may not publish is found by the round, once a minute.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import anyio

from streamflow.daemon.shard import OwnedShard
from streamflow.daemon.starts import Starts
from streamflow.errors import StoreError
from streamflow.loops import Supervisor, retry_forever
from streamflow.machine.sealed import hide
from streamflow.store.cluster_subscription import open_subscription
from streamflow.store.connection import Store
from streamflow.store.kernel import InboxPage, Kernel, Reply, StreamEntry
from streamflow.wire import InboxMessage, stream_order

_log = logging.getLogger("streamflow.inbox")

RETRY = 0.5
"""Seconds after which a server that could not be read is read again, while others are."""
READ_PAUSE = 0.001
"""Seconds between two reads: entries are committed, and more inboxes ring, before the next one."""
SHARDS = 256
"""Inboxes that are read in one pipeline, and fewer after larger replies than..."""
COUNT = 64
"""Messages of one shard in one reply, if many are read; if few, this many of all together: a hot run's messages become
one transition if they come together."""
HOT_COUNT = 2048
REPLY_BYTES = 4 * 1024 * 1024
"""...this, which each inbox has its part of; but one message of each is read, however large."""
HIGH_WATER = 10_000
HIGH_WATER_BYTES = 32 * 1024 * 1024
"""Messages in memory, and their bytes, at which reading pauses until the owner has caught up."""
SILENCE = 5.0
"""Seconds without a ring after which it is asked whether the connection is there, and after as many more given up."""
ROUND_EVERY = 10.0
ROUNDS = 6
"""Every so many seconds one of so many parts of the inboxes is read although nothing has rung."""


class InboxReader:
    """`shards` is the daemon's table of owned shards, `active` that of those which may have something in memory;
    `starts` takes the starts that have to wait; `on_messages(shard)` is called when one has new messages;
    `on_lost(shard)` when its inbox can't be read, because another daemon owns it or its keys are damaged."""

    def __init__(
        self,
        store: Store,
        kernel: Kernel,
        shards: dict[int, OwnedShard],
        active: dict[int, OwnedShard],
        starts: Starts,
        on_messages: Callable[[OwnedShard], None],
        on_lost: Callable[[OwnedShard], None],
    ) -> None:
        self.starts = starts
        self._store = store
        self._kernel = kernel
        self._shards = shards
        self._active = active
        self._on_messages = on_messages
        self._on_lost = on_lost
        self._bell = open_subscription(store, self._rung, self.look_everywhere, SILENCE)
        self._heard: dict[int, OwnedShard] = {}
        """The shards whose channels were subscribed before they were read for the first time."""
        self._numbers: dict[bytes, int] = {}
        """Their channels."""
        self._changed = anyio.Event()
        self._unread: dict[int, OwnedShard] = {}
        """The shards whose inboxes have to be read."""
        self._work = anyio.Event()
        self._unasked: set[int] = set()
        """Those of them that are read only because it is their turn in the round..."""
        self._unannounced: dict[int, int] = {}
        """...which has found so many messages there, whose ring has not come yet."""
        self._reading: dict[int, asyncio.Task[None]] = {}
        """Pipelines under way, by server, if there are several."""
        self._asked: set[OwnedShard] = set()
        """The shards that are read by them. A slot may have another server before its shard's reply is there: read from
        both, messages would come twice."""
        self._width = SHARDS
        """How many of them the next pipeline may read."""
        self._round = 0
        self._caught_up = anyio.Event()
        self._at_most = 0
        """Messages in memory; more, until they are counted."""
        self._has_large = False
        """The last replies had messages of which fewer than `HIGH_WATER` are too much."""

    async def run(self, supervisor: Supervisor) -> None:
        async with anyio.create_task_group() as loops:
            loops.start_soon(supervisor.run, "doorbell", self._bell.run)
            loops.start_soon(supervisor.run, "inbox subscriptions", self._subscribe)
            loops.start_soon(supervisor.run, "inbox", self._read)
            loops.start_soon(supervisor.run, "inbox round", self._go_round)

    def shards_changed(self) -> None:
        """Call when shards may have been acquired or lost, or are to be read again."""
        self._changed.set()
        if self._unread:
            self._work.set()

    def caught_up(self) -> None:
        """The owner has taken messages out of memory."""
        self._caught_up.set()

    def buffered(self) -> int:
        """Messages in memory that no batch has collected yet."""
        return sum(len(shard.inbox) for shard in self._active.values())

    # --- which inboxes are to be read ---------------------------------------------------------------------------------

    def _rung(self, channel: bytes, _: bytes) -> None:
        number = self._numbers.get(channel)
        shard = None if number is None else self._shards.get(number)
        if shard is not None:
            self._unasked.discard(shard.number)
            self._unannounced.pop(shard.number, None)
            self._ask(shard)

    def _ask(self, shard: OwnedShard) -> None:
        self._unread[shard.number] = shard
        self._work.set()

    def look_everywhere(self) -> None:
        """Read all inboxes: the channels are subscribed again, or refused, and what came meanwhile has not been heard.
        Or other daemons may have acquired shards: then a read is refused."""
        for number, shard in list(self._heard.items()):
            if not self._bell.is_confirmed(shard.keys.inbox):
                del self._heard[number]
                self._changed.set()
        self._unasked.clear()
        self._unannounced.clear()
        for shard in self._shards.values():
            self._ask(shard)

    async def _subscribe(self) -> None:
        self._changed.set()
        await retry_forever(self.subscribe_once, _log, "could not subscribe to inboxes", on_failure=self._changed.set)

    async def subscribe_once(self) -> None:
        """Wait for a change of the shards; subscribe to the channels of those that are new, then let them be read."""
        await self._changed.wait()
        self._changed = anyio.Event()
        for number in [number for number in self._heard if number not in self._shards]:
            channel = self._heard.pop(number).keys.inbox
            del self._numbers[channel.encode()]
            await self._bell.remove(channel)
        new = [shard for shard in self._shards.values() if self._heard.get(shard.number) is not shard]
        if not new:
            return
        for shard in new:
            self._numbers[shard.keys.inbox.encode()] = shard.number
        await self._bell.add_all([shard.keys.inbox for shard in new])
        for shard in new:
            self._heard[shard.number] = shard
            if not shard.dropped:
                self._ask(shard)

    async def _go_round(self) -> None:
        while True:
            await anyio.sleep(ROUND_EVERY)
            self.begin_round()

    def begin_round(self) -> None:
        """Let the next part of the inboxes be read, and report what the one before has found."""
        for number, count in self._unannounced.items():
            _log.warning(
                "%d messages in the inbox of shard %d were found late, because no ring has announced them: does "
                "everybody who adds messages have the right to publish? `streamflow check` tells",
                count,
                number,
            )
        self._unannounced.clear()
        self._round = (self._round + 1) % ROUNDS
        for number, shard in self._shards.items():
            if number % ROUNDS == self._round and number not in self._unread:
                self._unasked.add(number)
                self._ask(shard)

    # --- reading ------------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            await retry_forever(self.run_once, _log, "could not read inboxes")
        finally:
            for reading in list(self._reading.values()):
                reading.cancel()

    async def run_once(self) -> None:
        """Wait until something is to be read, and read it: in one pipeline from each server."""
        await self._work.wait()
        await self.wait_for_capacity()
        shards = self._take()
        if not shards:
            return
        if self._store.is_single:
            await self._read_from(shards)
            return
        by_server: dict[int, list[OwnedShard]] = {}
        for shard in shards:
            by_server.setdefault(self._store.server_of(shard.keys.owner), []).append(shard)
        for server, some in by_server.items():  # one that doesn't answer must not hold up the others
            self._reading[server] = reading = asyncio.create_task(self._read_apart(server, some))
            hide(reading)

    async def _read_apart(self, server: int, shards: list[OwnedShard]) -> None:
        """`_read_from` one server in a task of its own."""
        try:
            await self._read_from(shards)
        except StoreError as error:
            _log.warning("could not read inboxes, will retry: %s", error)
            await anyio.sleep(RETRY)
        finally:
            del self._reading[server]
            self._work.set()

    async def _read_from(self, shards: list[OwnedShard]) -> None:
        count = max(COUNT, HOT_COUNT // len(shards))
        limit = REPLY_BYTES // len(shards)
        calls = [self._kernel.read_inbox(shard.number, shard.token, shard.position, count, limit) for shard in shards]
        self._asked.update(shards)
        try:
            messages = self._received(shards, await self._store.send(calls))
        except BaseException:
            for shard in shards:  # a reply that was lost may have carried messages
                self._ask(shard)
            raise
        finally:
            self._asked.difference_update(shards)
        if messages:
            await anyio.sleep(READ_PAUSE)

    def _received(self, shards: list[OwnedShard], pages: list[InboxPage | StoreError]) -> int:
        """Returns the number of messages."""
        messages = size = 0
        for shard, page in zip(shards, pages, strict=True):
            if shard.dropped:
                continue
            if isinstance(page, StoreError) or page.code is Reply.FENCED:
                _log.warning(
                    "the inbox of shard %d can't be read, checking who owns it: %s",
                    shard.number,
                    page if isinstance(page, StoreError) else "another daemon has acquired it",
                )
                self._on_lost(shard)
                continue
            messages += len(page.entries)
            size += self._buffer(shard, page.entries)
            if page.more:
                self._ask(shard)
            else:
                shard.delivered = None
        if messages:
            self._at_most += messages
            self._has_large = size * HIGH_WATER > messages * HIGH_WATER_BYTES
        if size > REPLY_BYTES:
            self._width = max(1, len(shards) * REPLY_BYTES // size)
        elif self._width < SHARDS:
            self._width = min(SHARDS, 2 * self._width)
        return messages

    def _take(self) -> list[OwnedShard]:
        """The shards to read now. One that rings from now on is read again."""
        self._work = anyio.Event()
        taken: list[OwnedShard] = []
        for shard in list(self._unread.values()):
            if shard.dropped or self._shards.get(shard.number) is not shard:
                del self._unread[shard.number]
            elif not shard.draining and not shard.broken and not self._is_being_read(shard):
                if len(taken) == self._width:
                    self._work.set()
                    break
                del self._unread[shard.number]
                taken.append(shard)
        return taken

    def _is_being_read(self, shard: OwnedShard) -> bool:
        """Whether a pipeline is under way to its server, or with it to the one before."""
        if not self._reading:
            return False
        return shard in self._asked or self._store.server_of(shard.keys.owner) in self._reading

    def _buffer(self, shard: OwnedShard, entries: list[StreamEntry]) -> int:
        """Returns the bytes of the messages."""
        starts = self.starts
        size = 0
        if shard.number in self._unasked:
            self._unasked.discard(shard.number)
            if entries:
                self._unannounced[shard.number] = len(entries)
        kind = run_id = ""
        last_kind = last_run = b""
        has_come = False
        for entry, fields in entries:
            body = fields.get(b"body", b"")
            size += len(body)
            if (one := fields.get(b"kind", b"")) != last_kind:
                last_kind, kind = one, one.decode(errors="replace")
            if (one := fields.get(b"run", b"")) != last_run:  # else one str for all messages of a hot run
                last_run, run_id = one, one.decode(errors="replace")
            header, identity = fields.get(b"header", b""), fields.get(b"from", b"")
            message = InboxMessage(entry.decode(), kind, run_id, body, header, identity)
            shard.position = message.id
            if shard.delivered is not None:
                self._suspect(shard, message)
            if kind == "waiting":
                shard.waits = True
                starts.look_for_more()
            elif (kind == "start" or run_id in starts.held) and starts.offer(shard, message):
                continue
            shard.inbox.append(message)
            has_come = True
        if has_come:
            self._on_messages(shard)
        return size

    @staticmethod
    def _suspect(shard: OwnedShard, message: InboxMessage) -> None:
        """A former owner had messages in hand up to `delivered` when its process ended: their runs are suspect."""
        if shard.delivered is not None and stream_order(message.id) > shard.delivered:
            shard.delivered = None
        elif message.is_for_run:
            shard.careful.setdefault(message.run_id, set())

    # --- back-pressure ------------------------------------------------------------------------------------------------

    def _is_above_limit(self) -> bool:
        starts = self.starts
        if len(starts.held) > 4 * HIGH_WATER or starts.size > HIGH_WATER_BYTES:
            return True
        if self._at_most > HIGH_WATER:
            buffered = self.buffered()
            self._at_most = buffered + len(starts.held)
            if buffered > HIGH_WATER:
                return True
        if not self._has_large:
            return False
        size = sum(len(message.body) for shard in self._active.values() for message in shard.inbox)
        return size > HIGH_WATER_BYTES

    async def wait_for_capacity(self) -> None:
        """Wait until fewer messages than the limit are in memory, and fewer bytes."""
        while self._is_above_limit():
            self._caught_up = anyio.Event()
            await self._caught_up.wait()
