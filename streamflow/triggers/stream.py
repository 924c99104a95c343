"""Deliveries from a stream of a Redis or Valkey server, which may be another one than streamflow's.

Owns: its consumer group, claiming what dead processes had taken, and acknowledging. Must not: delete or trim entries:
they are the producer's. Called by: user code (makes sources), `serving.py`.

An entry is acknowledged when what it is for is stored. One whose process has died is claimed by another one when it was
idle for `idle` seconds; if the first is alive after all, both do the same, which counts once.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from typing import TYPE_CHECKING, Any, cast

import anyio
import msgspec

from streamflow.errors import StoreError, UsageError
from streamflow.model.durations import seconds_of
from streamflow.server_url import redacted
from streamflow.triggers.pulled import PulledSource
from streamflow.triggers.receiver import Hung, Receiver, received_now
from streamflow.triggers.secret import Secret

if TYPE_CHECKING:
    from datetime import timedelta

    from redis.asyncio import Redis

BATCH = 64
BLOCK_SECONDS = 1.0
LEAVE_SECONDS = 2.0
PAUSE = 1.0
"""Seconds before entries that could not be stored are tried again."""
GONE_SECONDS = 3600.0
"""A consumer of the group that has read nothing for so long, and has nothing, is removed: its process has ended."""

Entry = tuple[bytes, dict[bytes, bytes] | None]


class Stream(PulledSource):
    """Made by `stream`."""

    kind = "stream"

    def __init__(self, key: str, url: str | Secret | None, group: str, field: str, idle: float) -> None:
        self.key = key
        self._url = url
        self._group = group
        self._field = field.encode()
        self._idle_ms = round(idle * 1000)

    @property
    def about(self) -> str:
        url = self._url
        where = "" if url is None else f" of {url!r}" if isinstance(url, Secret) else f" of {redacted(url)}"
        return f"stream {self.key}{where}"

    async def serve(self, receiver: Receiver) -> None:
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        url = self._url.read() if isinstance(self._url, Secret) else self._url or receiver.client.store.url
        group = self._group or receiver.trigger.name
        consumer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        redis: Redis = Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
            url, socket_timeout=BLOCK_SECONDS + 5, socket_connect_timeout=5, retry=Retry(NoBackoff(), 0)
        )
        try:
            await self._create_group(redis, group)
            await self._read(redis, receiver, group, consumer)
        finally:
            with anyio.move_on_after(LEAVE_SECONDS, shield=True):
                try:
                    await self._leave(redis, group, consumer)
                finally:
                    await redis.aclose()

    async def _create_group(self, redis: Redis, group: str) -> None:
        from redis.exceptions import ResponseError

        try:
            await redis.xgroup_create(self.key, group, "0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def _read(self, redis: Redis, receiver: Receiver, group: str, consumer: str) -> None:
        look = 0.0
        while True:
            entries: list[Entry] = []
            if time.monotonic() >= look:
                look = time.monotonic() + self._idle_ms / 2000
                entries = await self._claimed(redis, group, consumer)
            if not entries:
                found: Any = await redis.xreadgroup(
                    group, consumer, {self.key: ">"}, count=BATCH, block=round(BLOCK_SECONDS * 1000)
                )
                entries = [entry for _, some in _pairs(found) for entry in some]
            await self._process_all(redis, receiver, group, entries)

    async def _claimed(self, redis: Redis, group: str, consumer: str) -> list[Entry]:
        """What processes had taken that have ended, as far as it is read at once."""
        _, entries, *_ = await redis.xautoclaim(self.key, group, consumer, self._idle_ms, "0-0", count=BATCH)
        if not entries:
            for other in await redis.xinfo_consumers(self.key, group):
                if not other["pending"] and other["idle"] > GONE_SECONDS * 1000:
                    await redis.xgroup_delconsumer(self.key, group, other["name"])
        return entries

    async def _process_all(self, redis: Redis, receiver: Receiver, group: str, entries: list[Entry]) -> None:
        """Until all are acknowledged: those that can't be stored now are tried again."""
        while entries:
            left: list[Entry] = []

            async def process(entry: Entry, left: list[Entry] = left) -> None:
                if not await self._process(receiver, entry):
                    left.append(entry)
                    return
                await redis.xack(self.key, group, entry[0])

            async with anyio.create_task_group() as group_of_tasks:
                for entry in entries:
                    group_of_tasks.start_soon(process, entry)
            entries = left
            if entries:
                await anyio.sleep(PAUSE)

    async def _process(self, receiver: Receiver, entry: Entry) -> bool:
        """Whether it may be acknowledged."""
        entry_id, fields = entry
        if fields is None:  # deleted meanwhile
            return True
        texts = {name.decode(errors="replace"): value for name, value in fields.items()}
        body = fields.get(self._field)
        if body is None:
            body = msgspec.json.encode({name: value.decode(errors="replace") for name, value in texts.items()})
        field = self._field.decode()
        headers = {name.lower(): value.decode(errors="replace") for name, value in texts.items() if name != field}
        try:
            await receiver.receive(received_now(f"{self.key}/{entry_id.decode()}", body, headers))
        except (StoreError, Hung):
            return False
        return True

    async def _leave(self, redis: Redis, group: str, consumer: str) -> None:
        """A consumer that has nothing goes; what it has is claimed by others."""
        from redis.exceptions import RedisError

        with contextlib.suppress(RedisError):
            for one in await redis.xinfo_consumers(self.key, group):
                if one["name"] == consumer.encode() and not one["pending"]:
                    await redis.xgroup_delconsumer(self.key, group, consumer)


def _pairs(found: Any) -> Any:
    """What XREADGROUP answers, which is a dictionary in protocol 3."""
    if isinstance(found, dict):
        return [(key, some[0]) for key, some in cast("dict[bytes, Any]", found).items()]
    return found or []


def stream(
    key: str,
    /,
    *,
    url: str | Secret | None = None,
    group: str = "",
    field: str = "payload",
    idle: float | timedelta = 60.0,
) -> Stream:
    """Entries of a stream, from its first one on, through a consumer group.

    `url`: of its server, by default streamflow's; as `sf.triggers.secret(…)` if it has a password. `group`: by default
    the trigger's name. `field`: the field that is the payload; the others are the headers. Of an entry without it the
    payload is a JSON object of all fields. `idle`: seconds or a timedelta after which what a process has taken and not
    acknowledged goes to another one. Raises `UsageError`.
    """
    if not key:
        raise UsageError("a stream needs a key")
    if isinstance(url, str) and redacted(url) != url:
        raise UsageError("the url of a stream has a password: give it as sf.triggers.secret('VARIABLE')")
    seconds = seconds_of(idle) or 0.0
    if seconds <= 0:
        raise UsageError(f"idle must be more than 0 seconds, or a timedelta, got {idle!r}")
    return Stream(key, url, group, field, seconds)
