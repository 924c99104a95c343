"""Carries messages between shards: delivers what commits have put into outboxes.

Owns: the messages that wait for delivery, and their order. Must not: decide anything; effects leave only after the
commit that decided them, so this loop sees nothing earlier. Called by: the owner (hands messages over after a commit),
takeover (those that the last owner left), the daemon (runs the loop).

A target is a shard's inbox. Each (source, target) pair is in order and has one delivery in flight;
`lua/deliver_messages.lua` drops messages that it has accepted before.

An entry of the outbox is deleted when its messages are as safe at their targets as the namespace's durability asks for,
and in a cluster, where servers fail apart, some seconds later, if they still have the same histories.
A target that has lost some, because a failover has set it back, refuses the next delivery (`GAP`), or the wait for that
safety notices it: then the whole outbox is read and delivered again (decision 37).

Memory is bounded: above `most` bytes, targets with much to deliver keep only what one delivery takes. The rest of their
messages, and at a takeover all but the beginning of an outbox, is read from the server when it is needed (`unread.py`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import anyio

from streamflow.daemon.clock import DaemonClock
from streamflow.daemon.shard import OwnedShard
from streamflow.daemon.troubles import Troubles, shard_name
from streamflow.daemon.unread import Order, Reading, Target, Unread
from streamflow.errors import StoreError, Unconfirmed
from streamflow.model.codec import DECODE_ERRORS
from streamflow.store.connection import Call, OtherHistory, Store
from streamflow.store.kernel import Delivery, Kernel, Reply, StreamEntry, asks_for_buckets
from streamflow.wire import OutboxMessage, decode_outbox, stream_order, to_delivery

if TYPE_CHECKING:
    from streamflow.store.durability import Confirmation

_log = logging.getLogger("streamflow.relay")

MESSAGES = 200
BYTES = 1024 * 1024
"""Limits of one delivery, so that a script stays short."""
PIPELINE_BYTES = 4 * 1024 * 1024
"""Bytes after which a pipeline has no more deliveries; the others follow, each pair in its turn."""
REFUSES = "takes no messages"
NOT_READ = "has an outbox that can't be read"
"""What may be wrong with a single target or source (`Troubles`). Other targets don't wait for one that refuses."""
RETRY_PAUSE = 1.0
"""Seconds between two rounds while some target has refused a delivery, or an outbox can't be read."""
MOST = 32 * 1024 * 1024
"""Bytes of messages in memory, about."""
FIRST: Order = (0, 1)
"""Not behind any message."""
OVERHEAD = 500
"""Bytes that a message takes in memory besides its body, about."""
KEPT = 2.0
"""Seconds after which servers are asked whether they still have what they have accepted: one that was replaced while it
was frozen knows it by then."""
SOURCES = 4
"""Outboxes that are read in one pipeline, each..."""
PAGE_BYTES = 1024 * 1024
"""...about so many bytes, and one entry."""


class OutboxEntry:
    """An entry of an outbox. `number` is that of its last message; those before have the numbers before. It is deleted
    when all have been delivered; `left`: how many have not. `generation`: the store's, of the servers' histories, when
    the first one was sent that a target has accepted. `targets`: those that have, if they may be on several servers."""

    __slots__ = ("generation", "left", "messages", "number", "targets")

    def __init__(self, number: str, messages: list[OutboxMessage]) -> None:
        self.number = number
        self.messages = messages
        self.left = len(messages)
        self.generation = -1
        self.targets: tuple[Target, ...] = ()


Waiting = tuple[Delivery, OutboxEntry]
Accepted = tuple[OwnedShard, OutboxEntry]


class Relay:
    """`most`: bytes of messages in memory, about, and some deliveries more."""

    def __init__(
        self, store: Store, kernel: Kernel, clock: DaemonClock, most: int = MOST, troubles: Troubles | None = None
    ) -> None:
        self._troubles = Troubles() if troubles is None else troubles
        self._store = store
        self._kernel = kernel
        self._clock = clock
        self._waiting: dict[tuple[int, Target], tuple[OwnedShard, list[Waiting]]] = {}
        self._refused: dict[tuple[int, Target], float] = {}
        """When (monotonic s) a pair whose target refused its messages is tried again."""
        self._unread: dict[int, Unread] = {}
        """By source: where its outbox is read on, if not all of it is in memory."""
        self._most = most
        self._held = 0
        """Bytes of the messages in memory."""
        self._has_messages = anyio.Event()
        self.on_sent: Callable[[OwnedShard], None] = lambda _: None
        """Called when a commit of the shard may delete another entry of its outbox."""
        self._asleep: set[Target] = set()
        """Shards of which some runs were moved out of memory."""
        self._after: dict[tuple[int, Target], tuple[str, str]] = {}
        """By source and target: the source's token, and the last message of which a reply says that it was accepted."""
        self._accepted: list[Accepted] = []
        """Entries whose messages were all accepted, and that aren't safe yet, with the history of the server then."""
        self._confirming: list[Accepted] = []
        """Those of them for which it is waited now."""
        self._has_accepted = anyio.Event()
        self._keeps = not store.is_single
        """Whether sources and targets may be on servers that fail apart: what a target loses, its source still has."""
        self._doubtful: set[Target] = set()
        """Those that have accepted messages since the last look whether their servers go on."""

    @property
    def is_full(self) -> bool:
        return self._held >= self._most

    @property
    def waiting(self) -> int:
        """Messages in memory: of a long backlog only its beginning."""
        return sum(len(deliveries) for _, deliveries in self._waiting.values())

    def heads(self) -> Iterator[tuple[tuple[int, Target], str]]:
        """The first message of each line that waits: source and target, and its number."""
        for pair, (source, waiting) in self._waiting.items():
            if waiting and not source.dropped:
                yield pair, waiting[0][0].number
        for number, unread in self._unread.items():
            for target, (epoch, first) in unread.positions.items():
                if not unread.source.dropped and (number, target) not in self._waiting:
                    yield (number, target), f"{epoch}-{first}"

    def hand_over(self, source: OwnedShard, entries: Iterable[OutboxEntry]) -> None:
        """Entries of `source`'s outbox, in order."""
        unread = self._unread.get(source.number) if self._unread else None
        if unread is not None and unread.source is not source:  # the shard was acquired again
            del self._unread[source.number]
            unread = None
        for entry in entries:
            epoch, _, last = entry.number.partition("-")
            number = int(last) - len(entry.messages)
            for sent in entry.messages:
                number += 1
                try:
                    message, destination = _addressed(f"{epoch}-{number}", sent)
                except DECODE_ERRORS as error:
                    _log.error(
                        "message %s-%d in the outbox of shard %d can't be read and is dropped: %s",
                        epoch,
                        number,
                        source.number,
                        error,
                    )
                    entry.left -= 1
                    continue
                if unread is not None and unread.first_of(destination) is not None:
                    unread.last = int(epoch), number  # behind others that are not in memory either
                    continue
                pair = (source.number, destination)
                if pair not in self._waiting or self._waiting[pair][0] is not source:  # the shard was acquired again
                    self._waiting[pair] = (source, [])
                self._waiting[pair][1].append((message, entry))
                self._held += len(message.body) + OVERHEAD
            if not entry.left:
                self._sent(source, entry.number)
        self._has_messages.set()

    def _sent(self, source: OwnedShard, number: str) -> None:
        source.sent.append(number)
        self.on_sent(source)

    def read_on(self, source: OwnedShard, after: str) -> None:
        """The outbox has more behind this entry, which is read when there is room for it."""
        unread = self._unread[source.number] = Unread(source)
        epoch, number = stream_order(after)
        unread.rest = epoch, number + 1
        self._has_messages.set()

    async def run_confirming(self) -> None:
        while True:
            await self._has_accepted.wait()
            self._has_accepted = anyio.Event()
            await self.confirm_once()

    async def confirm_once(self) -> None:
        """Wait until what was accepted is safe at its targets: then the next commits delete it from the outbox."""
        self._confirming, self._accepted = self._confirming + self._accepted, []
        try:
            unconfirmed = set[Target]()
            if self._store.confirmation is None:
                await self._targets_go_on()
            elif self._keeps:
                unconfirmed = await self._unconfirmed(self._store.confirmation)
            else:
                await self._store.confirmation.wait(math.inf)
        except BaseException:
            self._has_accepted.set()
            raise
        safe, self._confirming = self._confirming, []
        for source, entry in safe:
            if entry.generation != self._store.server_generation:
                self._begin_anew(source, "a server may have lost")
            elif unconfirmed.isdisjoint(entry.targets):
                self._sent(source, entry.number)
            else:
                self._accepted.append((source, entry))
                self._has_accepted.set()

    async def _unconfirmed(self, confirmation: Confirmation) -> set[Target]:
        """Of the targets that have accepted something, those whose servers don't confirm it soon. What was for others
        doesn't stay in the outbox for as long."""
        by_server: dict[int, list[Target]] = {}
        for target in {target for _, entry in self._confirming for target in entry.targets}:
            by_server.setdefault(self._store.server_of(self._key_of(target)), []).append(target)

        async def lacking(targets: list[Target]) -> list[Target]:
            try:
                await confirmation.wait(KEPT, *map(self._key_of, targets))
            except Unconfirmed:
                return targets
            return []

        return {target for part in await asyncio.gather(*map(lacking, by_server.values())) for target in part}

    async def _targets_go_on(self) -> None:
        """Without confirmations: until each server that has accepted something answers some seconds later. One that was
        frozen accepts messages before it learns that a replica has replaced it, and one that dies may have accepted
        some that its replicas lack: then this waits for the failover, and the server has another history."""
        targets, self._doubtful = self._doubtful, set()
        try:
            await anyio.sleep(KEPT)
            keys = {self._store.server_of(key): key for key in map(self._key_of, targets)}
            await self._store.send([Call.plain("HLEN", key) for key in keys.values()], patience=math.inf)
        except BaseException:
            self._doubtful |= targets
            raise

    def _key_of(self, target: Target) -> str:
        """A hash that is on its server."""
        return self._kernel.keys.shard(target).owner

    async def run(self) -> None:
        self._has_messages.set()  # there may be some from before an error
        while True:
            await self._has_messages.wait()
            self._has_messages = anyio.Event()
            if not await self.run_once():
                with anyio.move_on_after(RETRY_PAUSE):
                    await self._has_messages.wait()
                self._has_messages.set()

    async def run_once(self) -> bool:
        """Deliver waiting messages in one pipeline. False when some must be delivered again."""
        batches: list[tuple[tuple[int, Target], OwnedShard, list[Waiting]]] = []
        now = time.monotonic()
        total = 0
        self._refused = {pair: until for pair, until in self._refused.items() if until > now}
        if self.is_full:
            self._keep_less()
        is_read = not self._unread or await self._read_some()
        for pair, (source, deliveries) in list(self._waiting.items()):
            if source.dropped:  # the next owner finds them in the outbox
                self._held -= _size(deliveries)
                del self._waiting[pair]
                continue
            if pair in self._refused:
                continue
            if total >= PIPELINE_BYTES:
                self._has_messages.set()
                break
            chunk, size = _first_chunk(deliveries)
            total += size
            batches.append((pair, source, chunk))
        calls = [self._call(target, source, chunk) for (_, target), source, chunk in batches]
        if not calls:
            return self._ended_round(is_read=is_read)
        generation = self._store.server_generation
        try:
            answers = await self._store.send(calls, same_history=True)
        except StoreError as error:
            _log.warning("could not deliver %d batches of messages to shards, will retry: %s", len(calls), error)
            return False
        for (pair, source, chunk), answer in zip(batches, answers, strict=True):
            if isinstance(answer, OtherHistory):
                self._has_messages.set()  # the source was dropped, or its target may have forgotten: it says what
                continue
            if asks_for_buckets(answer):
                self._asleep.add(pair[1])
                self._has_messages.set()
                continue
            if answer == Reply.GAP:
                self._begin_anew(source, f"{shard_name(pair[1])} has lost")
                continue
            if isinstance(answer, Exception):
                self._refused[pair] = time.monotonic() + self._troubles.failed(
                    shard_name(pair[1]), REFUSES, answer, stops=False
                )
                continue
            if self._troubles:
                self._troubles.works(shard_name(pair[1]), REFUSES)
            if pair not in self._waiting or self._waiting[pair][0] is not source:
                continue  # acquired again meanwhile: the outbox was read again, and targets drop repeated messages
            self._after[pair] = source.token, chunk[-1][0].number
            queue = self._waiting[pair][1]
            if self._keeps:
                self._doubtful.add(pair[1])
            for _, entry in chunk:
                entry.left -= 1
                if self._keeps:
                    entry.targets = (*entry.targets, pair[1])
                if entry.generation < 0:
                    entry.generation = generation
                if not entry.left:
                    self._delivered(source, entry)
            self._held -= _size(chunk)
            del queue[: len(chunk)]
            del self._waiting[pair]
            if queue:
                self._waiting[pair] = source, queue  # behind the others
                self._has_messages.set()
        return self._ended_round(is_read=is_read)

    def _delivered(self, source: OwnedShard, entry: OutboxEntry) -> None:
        """All messages of an entry were accepted."""
        if self._store.confirmation is None and not self._keeps:
            self._sent(source, entry.number)
        else:
            self._accepted.append((source, entry))
            self._has_accepted.set()

    def _begin_anew(self, source: OwnedShard, what: str) -> None:
        """A target has lost messages of this source, or may have: read its outbox as after a takeover. Targets drop
        what they have."""
        unread = self._unread.get(source.number)
        if source.dropped or (unread is not None and unread.source is source and unread.rest == FIRST):
            return  # its next owner does so, or it has been said
        _log.warning(
            "%s messages that it had accepted from shard %d: what is left in the outbox is sent again",
            what,
            source.number,
        )
        for pair, (of, waiting) in list(self._waiting.items()):
            if of is source:
                self._held -= _size(waiting)
                del self._waiting[pair]
        self._after = {pair: known for pair, known in self._after.items() if known[0] != source.token}
        self._accepted = [one for one in self._accepted if one[0] is not source]
        self._confirming = [one for one in self._confirming if one[0] is not source]
        self.read_on(source, "0-0")

    # --- what is not in memory ----------------------------------------------------------------------------------------

    def _keep_less(self) -> None:
        """Leave messages to the server until half of what may be in memory is: the longest lines first, of which one
        delivery stays, and then whole lines, first of those that are refused."""
        self._held = sum(_size(waiting) for _, waiting in self._waiting.values())
        enough = self._most // 2
        for keep_chunk in (True, False):
            by_size = sorted(
                ((pair not in self._refused, -_size(waiting), pair) for pair, (_, waiting) in self._waiting.items()),
                key=lambda item: (0, item[1]) if keep_chunk else item[:2],
            )
            for _, _, pair in by_size:
                if self._held <= enough:
                    return
                source, waiting = self._waiting[pair]
                kept = _first_chunk(waiting)[0] if keep_chunk else []
                if len(kept) == len(waiting):
                    continue
                unread = self._unread.get(source.number)
                if unread is None or unread.source is not source:
                    unread = self._unread[source.number] = Unread(source)
                unread.stop(pair[1], stream_order(waiting[len(kept)][0].number))
                self._held -= _size(waiting[len(kept) :])
                del waiting[len(kept) :]
                if not waiting:
                    del self._waiting[pair]

    def _ended_round(self, *, is_read: bool) -> bool:
        if is_read and any(unread.rest is not None or self._ready(unread) for unread in self._unread.values()):
            self._has_messages.set()
        return is_read and not self._refused

    def _ready(self, unread: Unread) -> list[Target]:
        """The targets that have got all of their messages that are in memory."""
        pairs = ((unread.source.number, target) for target in unread.positions)
        return [pair[1] for pair in pairs if not (pair in self._refused or pair in self._waiting)]

    async def _read_some(self) -> bool:
        """Read on in some outboxes, as far as there is room. False when one can't be read."""
        readings: list[tuple[Unread, Reading, Call[tuple[bool, list[StreamEntry]]]]] = []
        for number, unread in list(self._unread.items()):
            if unread.source.dropped or not unread:
                del self._unread[number]
                continue
            if self.is_full or len(readings) == SOURCES:
                continue
            reading = unread.begin(self._ready(unread))
            if reading is not None and reading.after is not None:
                call = self._kernel.read_stream(unread.source.keys.outbox, reading.after, PAGE_BYTES)
                readings.append((unread, reading, call))
                self._unread[number] = self._unread.pop(number)  # behind the others
        if not readings:
            return True
        try:
            answers = await self._store.send([call for _, _, call in readings])
        except StoreError as error:
            _log.warning("could not read %d outboxes, will retry: %s", len(readings), error)
            return False
        is_read = True
        for (unread, reading, _), answer in zip(readings, answers, strict=True):
            source = unread.source
            if isinstance(answer, StoreError):
                self._troubles.failed(shard_name(source.number), NOT_READ, answer, stops=False)
                is_read = False
            elif not source.dropped and self._unread.get(source.number) is unread:
                more, entries = answer
                self._take(unread, reading, entries, more=more)
        return is_read

    def _take(self, unread: Unread, reading: Reading, entries: list[StreamEntry], *, more: bool) -> None:
        """What was read of an outbox."""
        source = unread.source
        known = {entry.number: entry for of, waiting in self._waiting.values() if of is source for _, entry in waiting}
        sizes: dict[Target, int] = {}
        end: Order = (0, 0)
        for entry_id, fields in entries:
            read = read_entry(source, entry_id, fields)
            epoch, last = end = stream_order(read.number)
            addressed: list[tuple[Order, Delivery, Target]] = []
            for number, sent in enumerate(read.messages, last - len(read.messages) + 1):
                try:
                    addressed.append(((epoch, number), *_addressed(f"{epoch}-{number}", sent)))
                except DECODE_ERRORS as error:
                    if reading.is_new((epoch, number)):
                        _log.error(
                            "message %d-%d in the outbox of shard %d can't be read and is dropped: %s",
                            *(epoch, number, source.number, error),
                        )
            entry = known.get(read.number)
            if entry is None:
                entry = read
                entry.left = sum(self._is_undelivered(unread, target, at) for at, _, target in addressed)
                if not entry.left and reading.is_new(end):
                    self._sent(source, entry.number)
            for at, message, target in addressed:
                if not reading.takes(target, at):
                    continue
                pair = (source.number, target)
                if pair not in self._waiting or self._waiting[pair][0] is not source:
                    self._waiting[pair] = (source, [])
                waiting = self._waiting[pair][1]
                if target not in sizes:
                    sizes[target] = sum(len(other.body) for other, _ in waiting)
                sizes[target] += len(message.body)
                if waiting and (len(waiting) >= MESSAGES or sizes[target] > BYTES):
                    reading.full(target, at)
                    continue
                waiting.append((message, entry))
                self._held += len(message.body) + OVERHEAD
        reading.end(end, more=more)

    def _is_undelivered(self, unread: Unread, target: Target, at: Order) -> bool:
        line = self._waiting.get((unread.source.number, target))
        first = stream_order(line[1][0][0].number) if line and line[1] else unread.first_of(target)
        return first is not None and at >= first

    def _call(self, target: Target, source: OwnedShard, chunk: list[Waiting]) -> Call[str]:
        messages = [message for message, _ in chunk]
        token, after = self._after.get((source.number, target), ("", ""))
        if token != source.token:  # the shard was acquired again
            after = ""
        return self._kernel.deliver_messages(
            target, source.number, messages, self._clock.now_ms(), after, asleep=target in self._asleep
        )


def _addressed(number: str, sent: OutboxMessage) -> tuple[Delivery, Target]:
    """Raises one of `DECODE_ERRORS`."""
    target = sent.target
    if target < 0:
        raise ValueError("it names no target")
    return to_delivery(number, sent.kind, sent.run_id, sent.body, sent.identity), target


def _size(waiting: list[Waiting]) -> int:
    """Bytes that they take in memory, about."""
    return sum(len(message.body) for message, _ in waiting) + OVERHEAD * len(waiting)


def read_entry(source: OwnedShard, entry_id: bytes, fields: dict[bytes, bytes]) -> OutboxEntry:
    """An entry as the outbox has it: one without messages, which is deleted, if it can't be read."""
    number = entry_id.decode()
    try:
        messages = decode_outbox(fields.get(b"messages", b""))
        if not 0 < len(messages) <= int(number.partition("-")[2]):
            raise ValueError(f"it has {len(messages)} messages")
    except DECODE_ERRORS as error:
        _log.error("outbox entry %s of shard %d can't be read and is dropped: %s", number, source.number, error)
        messages = []
    return OutboxEntry(number, messages)


def _first_chunk(waiting: list[Waiting]) -> tuple[list[Waiting], int]:
    """What one delivery takes of the messages that wait, and its bytes."""
    total = 0
    for count, (message, _) in enumerate(waiting):
        size = len(message.body)
        if count == MESSAGES or (count and total + size > BYTES):
            return waiting[:count], total
        total += size
    return waiting[:], total
