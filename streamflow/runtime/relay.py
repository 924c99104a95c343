"""Carries messages between shards: what a commit put into an outbox goes to its target's inbox.

Owns: the queue of messages that are on their way, and their order. Must not: decide anything; effects leave only after
the commit that decided them, so this loop sees nothing earlier. Called by: the owner (hands messages over after a
commit, and after a takeover those that the last owner left), the daemon (runs the loop).

Each (source, target) pair is in order and has one delivery in flight; `lua/deliver.lua` drops what it has seen.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import anyio

from streamflow.pure.codec import DECODE_ERRORS
from streamflow.pure.errors import StoreError
from streamflow.runtime.messages import to_delivery
from streamflow.runtime.shard import OwnedShard
from streamflow.store.connection import Call, Store
from streamflow.store.kernel import Delivery, Kernel

_log = logging.getLogger("streamflow.relay")

MESSAGES = 200
BYTES = 1024 * 1024
"""Limits of one delivery, so that a script stays short."""


class Relay:
    def __init__(self, store: Store, kernel: Kernel) -> None:
        self._store = store
        self._kernel = kernel
        self._waiting: dict[tuple[int, int], tuple[OwnedShard, list[Delivery]]] = {}
        self._some = anyio.Event()

    @property
    def waiting(self) -> int:
        return sum(len(deliveries) for _, deliveries in self._waiting.values())

    def hand_over(self, source: OwnedShard, messages: Iterable[tuple[str, int, str, str, bytes]]) -> None:
        """Messages of `source`'s outbox in order: (number, target shard, kind, run id, body)."""
        for number, target, kind, run_id, body in messages:
            try:
                if target < 0:
                    raise ValueError("it has no target")
                delivery = to_delivery(number, kind, run_id, body)
            except DECODE_ERRORS as error:
                _log.error("outbox entry %s of shard %d can't be read and is dropped: %s", number, source.number, error)
                source.sent.append(number)
                continue
            pair = (source.number, target)
            if pair not in self._waiting or self._waiting[pair][0] is not source:  # the shard was taken anew
                self._waiting[pair] = (source, [])
            self._waiting[pair][1].append(delivery)
        self._some.set()

    async def run(self) -> None:
        while True:
            await self._some.wait()
            self._some = anyio.Event()
            if not await self.run_once():
                await anyio.sleep(1.0)
                self._some.set()

    async def run_once(self) -> bool:
        """Deliver what waits, in one pipeline. False when something must be tried again."""
        going: list[tuple[tuple[int, int], OwnedShard, list[Delivery]]] = []
        for pair, (source, deliveries) in list(self._waiting.items()):
            if source.dropped:  # the next owner finds them in the outbox
                del self._waiting[pair]
                continue
            chunk = _first_chunk(deliveries)
            going.append((pair, source, chunk))
        calls: list[Call[str]] = [
            self._kernel.deliver(target, source.number, chunk) for (_, target), source, chunk in going
        ]
        if not calls:
            return True
        try:
            answers = await self._store.send(calls)
        except StoreError as error:
            _log.warning("messages between shards wait: %s", error)
            return False
        fine = True
        for (pair, source, chunk), answer in zip(going, answers, strict=True):
            if isinstance(answer, Exception):
                _log.error("shard %d doesn't take messages from shard %d: %s", pair[1], pair[0], answer)
                fine = False
                continue
            if pair not in self._waiting or self._waiting[pair][0] is not source:
                continue  # taken anew meanwhile: the outbox was read again, and its target drops what it has seen
            queue = self._waiting[pair][1]
            source.sent.extend(delivery.number for delivery in chunk)
            del queue[: len(chunk)]
            if queue:
                self._some.set()
            else:
                del self._waiting[pair]
        return fine


def _first_chunk(deliveries: list[Delivery]) -> list[Delivery]:
    size = 0
    for count, delivery in enumerate(deliveries):
        size += len(delivery.body)
        if count == MESSAGES or (count and size > BYTES):
            return deliveries[:count]
    return deliveries[:]
