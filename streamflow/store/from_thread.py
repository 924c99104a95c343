"""A server for a thread that has no event loop: for what must be sent while the loop is blocked.

Owns: an event loop and a connection, from the first call to `close`. Must not: outlast its limits, share anything with
the loop that is blocked. Called by: the watch's thread, through daemon and worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from streamflow.errors import StoreUnavailable
from streamflow.server_url import redacted
from streamflow.store.connection import Store
from streamflow.store.router import open_store

T = TypeVar("T")


class ThreadStore:
    """Connects when it is first used. To be used from one thread at a time."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._runner: asyncio.Runner | None = None
        self._store: Store | None = None

    def call(self, function: Callable[[Store], Awaitable[T]], seconds: float) -> T:
        """`await function(store)`, for `seconds` at most. Raises `StoreError`."""
        if self._runner is None or self._store is None:
            self._runner = asyncio.Runner()
            self._store = open_store(self._url, connections=1, patience=seconds)
        return self._runner.run(self._limited(self._store, function, seconds))

    async def _limited(self, store: Store, function: Callable[[Store], Awaitable[T]], seconds: float) -> T:
        try:
            async with asyncio.timeout(seconds):
                return await function(store)
        except TimeoutError:
            raise StoreUnavailable(f"no answer from {redacted(self._url)} within {seconds:g} s") from None

    def close(self) -> None:
        runner, store, self._runner, self._store = self._runner, self._store, None, None
        if runner is not None and store is not None:
            runner.run(store.close())
            runner.close()
