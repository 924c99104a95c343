"""A list that somebody else fills, maybe on another server than streamflow's: elements are taken, and get identities.

Owns: its own connections, and the keys beside the list: what is taken. Must not: know what elements mean. Called by:
`triggers/redis_list.py`.

An element of a list has no id, so one script takes it from the list, gives it one, and notes both with the time: it is
in the list or noted, whatever dies. What was taken longer ago than `idle` is given out again, under the same id.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import AsyncGenerator, Sequence
from typing import Any, NamedTuple

import anyio

from streamflow.store.connection import Call, Store
from streamflow.store.router import open_store

BATCH = 64
BLOCK_SECONDS = 1.0
BEGINNING_BYTES = 4096
"""What is given of an element that is too long."""
CLOSE_SECONDS = 2.0
_TAG = re.compile(r"\{[^}]+\}")

_TAKE = """#!lua
-- KEYS   list, taken (hash: id, element), times (sorted set: id, when it was taken), long (list)
-- ARGV   idle (ms), count, prefix of new ids, longest (bytes), end of the list, beginning (bytes)
-- RETURNS id, element, ...; the beginning of one that is longer, which then is in `long`
local list, taken, times, long = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local idle, count, prefix, longest = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local beginning = tonumber(ARGV[6])
local pop = ARGV[5] == 'left' and 'LPOP' or 'RPOP'
redis.call('LLEN', list) -- a key of another type is an error here, before anything is written
redis.call('HLEN', taken)
redis.call('LLEN', long)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local found = {}
local function give(id, element)
    found[#found + 1] = id
    found[#found + 1] = element
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', times, '-inf', now - idle, 'LIMIT', 0, count)) do
    local element = redis.call('HGET', taken, id)
    if element then
        redis.call('ZADD', times, now, id)
        give(id, element)
    else
        redis.call('ZREM', times, id)
    end
end
local missing = count - #found / 2
if missing > 0 then
    for number, element in ipairs(redis.call(pop, list, missing) or {}) do
        local id = prefix .. number .. ':' .. #element
        if #element > longest then
            redis.call('RPUSH', long, element)
            element = string.sub(element, 1, beginning)
        end
        redis.call('HSET', taken, id, element)
        redis.call('ZADD', times, now, id)
        give(id, element)
    end
end
return found
"""


class Element(NamedTuple):
    """`size`: bytes; more than `value` has if it is too long."""

    id: str
    value: bytes
    size: int


class ForeignList:
    """Made by `open_list`. All methods raise `StoreError`."""

    def __init__(self, store: Store, key: str, group: str, end: str, idle_ms: int, longest: int) -> None:
        beside = f"{_tagged(key)}:streamflow:{group}"
        self.long = f"{beside}:long"
        """Where elements are put that are too long."""
        self._store = store
        self._key = key
        self._taken, self._times = f"{beside}:taken", f"{beside}:times"
        self._end = end
        self._idle_ms = idle_ms
        self._longest = longest
        self._session = secrets.token_hex(8)
        self._calls = 0

    async def take(self) -> list[Element]:
        """What others had taken and have not done within `idle`, then new elements; `BATCH` at most."""
        self._calls += 1
        keys = [self._key, self._taken, self._times, self.long]
        prefix = f"{self._session}:{self._calls}:"
        arguments = [self._idle_ms, BATCH, prefix, self._longest, self._end, BEGINNING_BYTES]
        return await self._store.one(
            Call.plain("EVAL", _TAKE, len(keys), *keys, *arguments, near=self._key, parse=_elements)
        )

    async def wait(self) -> None:
        """Until the list has elements, at most `BLOCK_SECONDS`. Nothing is taken: one is put back where it was."""
        side = self._end.upper()
        await self._store.one(Call.plain("BLMOVE", self._key, self._key, side, side, BLOCK_SECONDS))

    async def done(self, elements: Sequence[Element]) -> None:
        ids = [element.id for element in elements]
        # In this order: an id without an element is removed when it is found, an element without an id never is.
        for reply in await self._store.send(
            [Call.plain("HDEL", self._taken, *ids), Call.plain("ZREM", self._times, *ids)]
        ):
            if isinstance(reply, Exception):
                raise reply


@contextlib.asynccontextmanager
async def open_list(
    url: str, key: str, group: str, *, end: str, idle_ms: int, longest: int
) -> AsyncGenerator[ForeignList]:
    """`end`: "left" or "right", where elements are taken. `longest`: bytes of an element that is given as it is."""
    store = open_store(url, connections=1)
    try:
        yield ForeignList(store, key, group, end, idle_ms, longest)
    finally:
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            await store.close()


def _tagged(key: str) -> str:
    """The key, or with a hash tag: what is beside it is on the same server of a cluster."""
    return key if _TAG.search(key) else f"{{{key}}}"


def _elements(reply: Any) -> list[Element]:
    pairs = zip(reply[::2], reply[1::2], strict=True)
    return [Element(name.decode(), value, int(name.rpartition(b":")[2])) for name, value in pairs]
