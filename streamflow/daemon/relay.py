"""Carries messages between shards and to queues: delivers what commits have put into outboxes.

Owns: the messages that wait for delivery, and their order. Must not: decide anything; effects leave only after the
commit that decided them, so this loop sees nothing earlier. Called by: the owner (hands messages over after a commit),
takeover (those that the last owner left), the daemon (runs the loop).

A target is a shard's inbox, or a partition of a queue. Each (source, target) pair is in order and has one delivery in
flight; `lua/deliver_messages.lua` and `lua/enqueue_attempts.lua` drop messages that they have accepted before.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any

import anyio

from streamflow.daemon.clock import DaemonClock
from streamflow.daemon.shard import OwnedShard
from streamflow.errors import StoreError
from streamflow.model.codec import DECODE_ERRORS
from streamflow.model.sharding import QUEUE_PARTITIONS
from streamflow.store.connection import Call, Store
from streamflow.store.kernel import Delivery, Kernel, Offer
from streamflow.store.namespace import register_queues
from streamflow.wire import OutboxMessage, to_delivery, to_offer

_log = logging.getLogger("streamflow.relay")

MESSAGES = 200
BYTES = 1024 * 1024
"""Limits of one delivery, so that a script stays short."""
PIPELINE_BYTES = 4 * 1024 * 1024
"""Bytes after which a pipeline has no more deliveries; the others follow, each pair in its turn."""
RETRY_PAUSE = 1.0
"""Seconds until a target that refused a delivery gets it again; other targets don't wait for it."""

Target = int | tuple[str, int]
"""A shard, or a queue and its partition."""


class OutboxEntry:
    """An entry of an outbox. `number` is that of its last message; those before have the numbers before. It is deleted
    when all have been delivered; `left`: how many have not."""

    __slots__ = ("left", "messages", "number")

    def __init__(self, number: str, messages: list[OutboxMessage]) -> None:
        self.number = number
        self.messages = messages
        self.left = len(messages)


Waiting = tuple[Delivery | Offer, OutboxEntry]


class Relay:
    def __init__(self, store: Store, kernel: Kernel, clock: DaemonClock) -> None:
        self._store = store
        self._kernel = kernel
        self._clock = clock
        self._waiting: dict[tuple[int, Target], tuple[OwnedShard, list[Waiting]]] = {}
        self._refused: dict[tuple[int, Target], float] = {}
        """When (monotonic s) a pair whose target refused its messages is tried again."""
        self._known_queues: set[str] = set()
        self._has_messages = anyio.Event()

    @property
    def waiting(self) -> int:
        return sum(len(deliveries) for _, deliveries in self._waiting.values())

    def heads(self) -> Iterator[tuple[tuple[int, Target], str]]:
        """The first message of each line that waits: source and target, and its number."""
        for pair, (source, waiting) in self._waiting.items():
            if waiting and not source.dropped:
                yield pair, waiting[0][0].number

    def hand_over(self, source: OwnedShard, entries: Iterable[OutboxEntry]) -> None:
        """Entries of `source`'s outbox, in order."""
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
                pair = (source.number, destination)
                if pair not in self._waiting or self._waiting[pair][0] is not source:  # the shard was acquired again
                    self._waiting[pair] = (source, [])
                self._waiting[pair][1].append((message, entry))
            if not entry.left:
                source.sent.append(entry.number)
        self._has_messages.set()

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
        for pair, (source, deliveries) in list(self._waiting.items()):
            if source.dropped:  # the next owner finds them in the outbox
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
            return not self._refused
        try:
            await self._register_queues(target for (_, target), _, _ in batches)
            answers = await self._store.send(calls, same_history=True)
        except StoreError as error:
            _log.warning(
                "could not deliver %d batches of messages to shards and queues, will retry: %s", len(calls), error
            )
            return False
        for (pair, source, chunk), answer in zip(batches, answers, strict=True):
            if isinstance(answer, Exception):
                _log.error(
                    "%s refused %d messages from shard %d, will retry in %g s: %s",
                    _name_of(pair[1]),
                    len(chunk),
                    pair[0],
                    RETRY_PAUSE,
                    answer,
                )
                self._refused[pair] = time.monotonic() + RETRY_PAUSE
                continue
            if pair not in self._waiting or self._waiting[pair][0] is not source:
                continue  # acquired again meanwhile: the outbox was read again, and targets drop repeated messages
            queue = self._waiting[pair][1]
            for _, entry in chunk:
                entry.left -= 1
                if not entry.left:
                    source.sent.append(entry.number)
            del queue[: len(chunk)]
            del self._waiting[pair]
            if queue:
                self._waiting[pair] = source, queue  # behind the others
                self._has_messages.set()
        return not self._refused

    def _call(self, target: Target, source: OwnedShard, chunk: list[Waiting]) -> Call[str]:
        """All messages of a pair have one type: deliveries for a shard, offers for a queue."""
        messages: list[Any] = [message for message, _ in chunk]
        if isinstance(target, int):
            return self._kernel.deliver_messages(target, source.number, messages, self._clock.now_ms())
        return self._kernel.enqueue_attempts(*target, source.number, messages)

    def forget_queues(self) -> None:
        """Register each queue again: the list of them was deleted."""
        self._known_queues.clear()

    async def _register_queues(self, targets: Iterable[Target]) -> None:
        """Register queues to which this daemon sends for the first time, so that `status` can list them."""
        new = {target[0] for target in targets if not isinstance(target, int)} - self._known_queues
        if new:
            [answer] = await self._store.send([register_queues(self._kernel, new)])
            if isinstance(answer, StoreError):  # messages don't wait for a key that only `status` reads
                _log.error("%s can't be registered, so `status` doesn't list them: %s", ", ".join(sorted(new)), answer)
            self._known_queues |= new


def _addressed(number: str, sent: OutboxMessage) -> tuple[Delivery | Offer, Target]:
    """Raises one of `DECODE_ERRORS`."""
    target = sent.target
    if target < 0:
        raise ValueError("it names no target")
    if sent.kind in ("step", "revoke"):
        queue, offer = to_offer(number, sent.kind, sent.run_id, sent.body)
        if target >= QUEUE_PARTITIONS:
            raise ValueError(f"partition {target} of queue {queue} does not exist: there are {QUEUE_PARTITIONS}")
        return offer, (queue, target)
    return to_delivery(number, sent.kind, sent.run_id, sent.body), target


def _name_of(target: Target) -> str:
    return f"shard {target}" if isinstance(target, int) else f"partition {target[1]} of queue {target[0]}"


def _first_chunk(waiting: list[Waiting]) -> tuple[list[Waiting], int]:
    """What one delivery takes of the messages that wait, and its bytes."""
    total = 0
    for count, (message, _) in enumerate(waiting):
        size = len(message.body)
        if count == MESSAGES or (count and total + size > BYTES):
            return waiting[:count], total
        total += size
    return waiting[:], total
