"""Rings: channels on which nothing is said but that there is something new to read.

Owns: one subscription for all channels that callers listen to. Must not: read anything, know what the rings are of.
Called by: `streams.py`. It is another one than that of `waiting.py`, which every `result()` uses: a run that emits
rings a hundred times a second.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from streamflow.errors import StoreError
from streamflow.store.cluster_subscription import open_subscription
from streamflow.store.connection import Store
from streamflow.store.subscription import Subscription


class Rings:
    """Connects when somebody listens first."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._bells: dict[bytes, set[asyncio.Event]] = {}
        self._subscription: Subscription | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @contextlib.asynccontextmanager
    async def of(self, channel: str) -> AsyncGenerator[asyncio.Event]:
        """An event that every ring on the channel sets from now on, and a lost connection, too. Raises `StoreError`."""
        if self._closed:
            raise StoreError("the client is closed")
        bell = asyncio.Event()
        name = channel.encode()
        self._bells.setdefault(name, set()).add(bell)
        subscription = self._subscribed()
        try:
            await subscription.add(channel)
            yield bell
        finally:
            bells = self._bells[name]
            bells.discard(bell)
            if not bells:
                del self._bells[name]
                if not self._closed:
                    await subscription.remove(channel)

    def _subscribed(self) -> Subscription:
        if self._subscription is None:
            self._subscription = open_subscription(self._store, self._rang, self._lost)
            self._task = asyncio.create_task(self._subscription.run())
        return self._subscription

    def _rang(self, channel: bytes, _: bytes) -> None:
        for bell in self._bells.get(channel, ()):
            bell.set()

    def _lost(self) -> None:
        for bells in self._bells.values():
            for bell in bells:
                bell.set()

    async def close(self) -> None:
        """End the subscription. Who listens is rung once more."""
        self._closed = True
        if self._task is not None and self._subscription is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._subscription.close()
        self._lost()
