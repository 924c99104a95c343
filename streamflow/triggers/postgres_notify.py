"""Deliveries from NOTIFY of PostgreSQL alone, without a table: at most once.

Owns: which process listens, and what a notification is as a delivery. Must not: keep what it has heard. Called by: user
code (makes sources), `serving.py`.

PostgreSQL gives a notification to all who listen at that moment, without an id, and keeps it for nobody. So of the
processes that serve a trigger one listens, whose session holds an advisory lock; what comes while none does is lost.
"""

from __future__ import annotations

import hashlib
import uuid
from contextlib import aclosing
from typing import Any

import anyio

from streamflow.triggers.postgres_connection import checked_channel, checked_url, listen, open_connection
from streamflow.triggers.pulled import STORE_PAUSE, PulledSource, is_stored
from streamflow.triggers.receiver import Receiver, received_now
from streamflow.triggers.secret import Secret

LOCK = 0x73660052
"""Class of the advisory locks: the second number is made of namespace and trigger."""
LOOK_SECONDS = 1.0
"""Seconds between two looks whether the process that listens is gone."""


class PostgresNotify(PulledSource):
    """Made by `postgres_notify`."""

    kind = "postgres-notify"

    def __init__(self, channel: str, url: str | Secret) -> None:
        self.channel = channel
        self._url = url

    @property
    def about(self) -> str:
        where = f" of {self._url!r}" if isinstance(self._url, Secret) else ""
        return f"notifications on {self.channel}{where}"

    async def serve(self, receiver: Receiver) -> None:
        who = f"{receiver.client.namespace}\n{receiver.trigger.name}"
        number = int.from_bytes(hashlib.sha256(who.encode()).digest()[:4], signed=True)
        async with open_connection(self._url) as connection:
            receiver.problem = ""
            await _until_it_is_mine(connection, number)
            await listen(connection, self.channel)
            receiver.problem = ""
            async with aclosing(connection.notifies()) as notifications:
                async for notification in notifications:
                    await self._process(receiver, notification.payload.encode())

    async def _process(self, receiver: Receiver, payload: bytes) -> None:
        received = received_now(f"{self.channel}/{uuid.uuid4()}", payload)
        while not await is_stored(receiver.receive(received)):  # noqa: ASYNC110 (nobody says when the server is back)
            await anyio.sleep(STORE_PAUSE)


async def _until_it_is_mine(connection: Any, number: int) -> None:
    """Until the lock is that of this session: the process that had it is gone."""
    while True:
        cursor = await connection.execute("SELECT pg_try_advisory_lock(%s::int, %s::int)", (LOCK, number))
        [locked] = await cursor.fetchone()
        if locked:
            return
        await anyio.sleep(LOOK_SECONDS)


def postgres_notify(channel: str, /, *, url: str | Secret = "") -> PostgresNotify:
    """Notifications on a channel of PostgreSQL, whose payload is the payload: `NOTIFY orders, '{"number": 7}'`, of at
    most 8,000 bytes.

    **At most once**: what comes while no process listens is lost, as when the one that listens dies and another one
    takes its place (about a second), or while the database can't be reached. Use `postgres` for what must not be lost.
    `url`: as there. Raises `UsageError`.
    """
    return PostgresNotify(checked_channel(channel), checked_url(url))
