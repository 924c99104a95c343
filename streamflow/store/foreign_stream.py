"""A stream that somebody else writes, maybe on another server than streamflow's: read as one consumer of a group.

Owns: its own connection, which is closed whatever happens, the group, and claiming what dead consumers had taken. Must
not: know what entries mean, or delete or trim them. Called by: `triggers/stream.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Any, cast

import anyio
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

BLOCK_SECONDS = 1.0
BATCH = 64
"""Entries that are read or claimed at once."""
PATIENCE = 5.0
"""Seconds until it is connected, and beyond `BLOCK_SECONDS` until there is an answer."""
LEAVE_SECONDS = 2.0
"""Seconds for leaving the group, and for closing the connection, when the server doesn't answer any more."""
GONE_SECONDS = 3600.0
"""A consumer of the group that has read nothing for so long, and has nothing, is removed: its process has ended."""

Entry = tuple[bytes, dict[bytes, bytes] | None]
"""Id and fields; None for an entry that was deleted after somebody had taken it."""


class ForeignStream:
    """Made by `open_stream`. All methods raise redis-py's `RedisError`."""

    def __init__(self, redis: Redis, key: str, group: str, consumer: str) -> None:
        self._redis = redis
        self._key = key
        self._group = group
        self._consumer = consumer

    async def join(self) -> None:
        """Create the group unless there is one: it begins with the first entry."""
        try:
            await self._redis.xgroup_create(self._key, self._group, "0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def read(self) -> list[Entry]:
        """Entries that nobody in the group has had, after at most `BLOCK_SECONDS`."""
        found: Any = await self._redis.xreadgroup(
            self._group, self._consumer, {self._key: ">"}, count=BATCH, block=round(BLOCK_SECONDS * 1000)
        )
        return [entry for _, some in _pairs(found) for entry in some]

    async def claim(self, idle_ms: int) -> list[Entry]:
        """Entries that others took and have not acknowledged within that time, as far as they are read at once."""
        _, entries, *_ = await self._redis.xautoclaim(
            self._key, self._group, self._consumer, idle_ms, "0-0", count=BATCH
        )
        if not entries:
            for other in await self._redis.xinfo_consumers(self._key, self._group):
                if not other["pending"] and other["idle"] > GONE_SECONDS * 1000:
                    await self._redis.xgroup_delconsumer(self._key, self._group, other["name"])
        return entries

    async def acknowledge(self, entry: bytes) -> None:
        await self._redis.xack(self._key, self._group, entry)

    async def leave(self) -> None:
        """Remove this consumer from the group if it has nothing; what it has is claimed by others."""
        for one in await self._redis.xinfo_consumers(self._key, self._group):
            if one["name"] == self._consumer.encode() and not one["pending"]:
                await self._redis.xgroup_delconsumer(self._key, self._group, self._consumer)


@contextlib.asynccontextmanager
async def open_stream(url: str, key: str, group: str, consumer: str) -> AsyncGenerator[ForeignStream]:
    """Join the group, and leave it at the end of the block, also when the server is gone by then."""
    redis: Redis = Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
        url,
        socket_timeout=BLOCK_SECONDS + PATIENCE,
        socket_connect_timeout=PATIENCE,
        retry=Retry(NoBackoff(), 0),
    )
    stream = ForeignStream(redis, key, group, consumer)
    try:
        await stream.join()
        yield stream
    finally:
        with anyio.move_on_after(LEAVE_SECONDS, shield=True), contextlib.suppress(RedisError):
            await stream.leave()
        # A time limit of its own: when that of leaving has passed, nothing that is awaited in it is done any more.
        with anyio.move_on_after(LEAVE_SECONDS, shield=True):
            await redis.aclose()


def _pairs(found: Any) -> Any:
    """What XREADGROUP answers, which is a dictionary in protocol 3."""
    if isinstance(found, dict):
        return [(key, some[0]) for key, some in cast("dict[bytes, Any]", found).items()]
    return found or []
