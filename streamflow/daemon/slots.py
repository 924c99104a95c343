"""How many batches may be under way at the same time: so many to each server.

Owns: the count. Must not: know what a batch does. Called by: the owner's loop.

One that is under way to a server which doesn't answer ends only when that is replaced. It takes no slot of a batch for
shards that are on other servers.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio

LOOK_EVERY = 1.0
"""Seconds after which it is looked again which servers are ignored."""


class Slots:
    """`width`: batches to one server at the same time."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._used: dict[int, int] = {}
        self._freed = anyio.Event()

    def is_free(self, server: int) -> bool:
        return self._used.get(server, 0) < self._width

    def all_taken(self) -> bool:
        """Whether all servers to which something is under way have as much as they may."""
        return bool(self._used) and all(count >= self._width for count in self._used.values())

    def take(self, server: int) -> None:
        self._used[server] = self._used.get(server, 0) + 1

    def free(self, server: int) -> None:
        left = self._used[server] - 1
        if left:
            self._used[server] = left
        else:
            del self._used[server]
        self._freed.set()

    async def freed(self) -> None:
        """Until the next slot is free."""
        self._freed = anyio.Event()
        await self._freed.wait()

    async def all_free(self, ignored: Callable[[int], bool]) -> None:
        """But those of servers of which this is true."""
        while any(not ignored(server) for server in self._used):
            with anyio.move_on_after(LOOK_EVERY):
                await self.freed()
