"""Deliveries that could not be processed: kept with their reason until somebody redrives or drops them.

Owns: what is kept, and how much of it at most. Must not: map or do a delivery. Called by: the receiver (keeps), the
command `trigger quarantine`.

One hash of the namespace has them, by trigger and a digest of the delivery's id: one that its sender delivers again
isn't kept twice. When it is full, no more are taken, and so nothing is acknowledged: a sender keeps what it has.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

import msgspec

from streamflow.client.client import Client
from streamflow.errors import StoreFull
from streamflow.store.connection import Call
from streamflow.store.kernel import Put
from streamflow.triggers.actions import digest_of
from streamflow.workflow.trigger import Received

MOST = 1000
"""Deliveries that are kept; a few more when several processes put one there at the same moment."""
MOST_BYTES = 2 * 1024 * 1024
"""Of the body of one: the limit of all payloads."""
BEGINNING_BYTES = 4096
"""What is kept of a body that is longer."""
PAGE = 20


class _Stored(msgspec.Struct, array_like=True):
    trigger: str
    delivery: str
    body: bytes
    headers: dict[str, str]
    received: int
    reason: str
    whole_size: int = 0


class UndoneDelivery(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery in the quarantine. `id`: `<trigger>/<digest>`; `delivery_id`: the sender's; `at`: when it was
    received; `size`: bytes of its body, of which only the beginning is kept if it was too long."""

    id: str
    trigger: str
    delivery_id: str
    at: datetime
    reason: str
    size: int
    received: Received

    @property
    def body(self) -> bytes:
        return self.received.body


class DeliveryQuarantine:
    """The quarantine of a client's namespace. Its methods raise the errors of the client."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def put(self, trigger: str, received: Received, reason: str) -> str:
        """Keep a delivery, or what is new of one that is there; returns its id. Raises `StoreFull` when no more are
        taken."""
        quarantined = f"{trigger}/{digest_of(trigger, received.id)}"
        key = self._client.keys.undelivered
        send = self._client.store.send
        count, known = await send([Call.plain("HLEN", key), Call.plain("HEXISTS", key, quarantined)])
        for reply in (count, known):
            if isinstance(reply, Exception):
                raise reply
        if count >= MOST and not known:
            raise StoreFull(
                f"the quarantine of deliveries is full, it has {count:,}: redrive or drop some with "
                "`streamflow trigger quarantine`"
            )
        body, whole_size = received.body, received.whole_size
        if len(body) > MOST_BYTES:
            body, whole_size = body[:BEGINNING_BYTES], len(body)
        stored = _Stored(trigger, received.id, body, received.headers, received.at, reason, whole_size)
        call = self._client.kernel.store_records([Put(key, quarantined, msgspec.msgpack.encode(stored))])
        await self._client.store.one(call)
        return quarantined

    async def count(self) -> int:
        return int(await self._client.store.one(Call.plain("HLEN", self._client.keys.undelivered)))

    async def list(self, trigger: str = "") -> list[UndoneDelivery]:
        """All of them, or those of one trigger, the newest first."""
        found: dict[str, UndoneDelivery] = {}
        cursor = 0
        while True:
            call = Call.plain("HSCAN", self._client.keys.undelivered, cursor, "COUNT", PAGE)
            cursor, fields = await self._client.store.one(call)
            for field, value in pairs_of(fields):
                one = _read(field.decode(errors="replace"), value)
                if not trigger or one.trigger == trigger:
                    found[one.id] = one
            cursor = int(cursor)
            if not cursor:
                return sorted(found.values(), key=lambda one: (-one.at.timestamp(), one.id))

    async def find(self, quarantined: str) -> UndoneDelivery | None:
        value = await self._client.store.one(Call.plain("HGET", self._client.keys.undelivered, quarantined))
        return None if value is None else _read(quarantined, value)

    async def drop(self, quarantined: str) -> bool:
        """Delete one. False if it wasn't there."""
        return bool(await self._client.store.one(Call.plain("HDEL", self._client.keys.undelivered, quarantined)))


def pairs_of(reply: Any) -> list[tuple[bytes, bytes]]:
    """Fields and values of a page of HSCAN."""
    if isinstance(reply, dict):
        return list(cast("dict[bytes, bytes]", reply).items())
    return list(zip(reply[::2], reply[1::2], strict=True))


def _read(quarantined: str, value: bytes) -> UndoneDelivery:
    try:
        stored = msgspec.msgpack.decode(value, type=_Stored)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        stored = _Stored(quarantined.partition("/")[0], "", value, {}, 0, f"it can't be read any more: {error}")
    return UndoneDelivery(
        id=quarantined,
        trigger=stored.trigger,
        delivery_id=stored.delivery,
        at=datetime.fromtimestamp(stored.received / 1000, UTC),
        reason=stored.reason,
        size=stored.whole_size or len(stored.body),
        received=Received(
            id=stored.delivery,
            body=stored.body,
            headers=stored.headers,
            at=stored.received,
            whole_size=stored.whole_size,
        ),
    )
