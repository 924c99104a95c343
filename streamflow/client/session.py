"""What a client has in one process and one event loop: connections, pipelines, a subscription, and who it is.

Owns: drawing all of that at the first use, and again where nothing of the former can be used: after a fork, and in a
new event loop once the former one is closed. Must not: share a connection, a number or a name between two of them.
Called by: client.

A child process has a copy of all memory: of two children that go on with the numbers of their parent, the server takes
the second one's messages for those of the first, sent again. And a connection belongs to the event loop in which it was
opened: in another one calls hang or fail somewhere in the middle.

    process   event loop of the first use
    same      same                           the session
    same      closed                         a new one; the old one's sockets are closed
    same      another that is still open     refused
    other     any                            a new one; the old one belongs to the parent, and is left untouched
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import TYPE_CHECKING

from streamflow.client.hibernating import HibernatingRuns
from streamflow.client.listing import Listings
from streamflow.client.pipelines import open_batcher
from streamflow.client.recent_starts import RecentStarts
from streamflow.client.rings import Rings
from streamflow.client.streams import StreamReader
from streamflow.client.waiting import ResultWaiter
from streamflow.errors import StoreError, UsageError
from streamflow.store.connection import Store
from streamflow.store.kernel import Kernel
from streamflow.store.keys import NamespaceKeys
from streamflow.store.namespace import Namespace
from streamflow.tracing.setup import find_tracing

if TYPE_CHECKING:
    from streamflow.client.archived import ArchivedRuns
    from streamflow.client.large_payloads import ClientPayloads
    from streamflow.tracing.spans import Tracing

_of_parents: list[Session] = []
"""Never finalised here: closing a connection of the parent's event loop would take it from the loop's poll, which a
parent and its children share."""

_lock = threading.Lock()


def _forget_lock() -> None:
    """In a child process: a thread that held the lock exists in the parent only."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)


class Session:
    """`meta` is the namespace's record, read when the server had `server_generation`; `reading` reads it. `archive`: as
    of `HibernatingRuns`."""

    def __init__(self, store: Store, kernel: Kernel, keys: NamespaceKeys, archive: str = "") -> None:
        self.pid = os.getpid()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.store = store
        self.recent = RecentStarts(store, kernel)
        store.on_other_history = self.recent.restore_soon
        self.batcher = open_batcher(store, kernel, self.recent)
        self.waiter = ResultWaiter(store, keys, self.batcher)
        self.hibernating = HibernatingRuns(self.batcher, keys, archive)
        self.listings = Listings(store, keys, self.batcher, self.hibernating)
        self.archived: ArchivedRuns | None = None
        """The namespace's archive, from when it is asked for the first time."""
        self.payloads: ClientPayloads | None = None
        """Large payloads in its storage."""
        self.rings = Rings(store)
        self.streams = StreamReader(kernel, self.batcher, self.rings)
        self.meta: Namespace | None = None
        self.server_generation = 0
        self.reading: asyncio.Task[Namespace] | None = None
        self.tracing: Tracing | None = None
        """Makes the spans of calls; decided at the first call in its event loop."""
        self.read_again_at = 0.0
        """When `meta` is read again while it is used (monotonic s)."""

    @property
    def namespace(self) -> Namespace | None:
        """`meta`, unless it is to be read again, or the server was restarted or replaced since it was read."""
        if time.monotonic() >= self.read_again_at or self.server_generation != self.store.server_generation:
            return None
        return self.meta


class Sessions:
    """The sessions of one client, one after the other."""

    def __init__(self, store: Store, kernel: Kernel, keys: NamespaceKeys, archive: str = "") -> None:
        self._archive = archive
        self._kernel = kernel
        self._keys = keys
        self._session = Session(store, kernel, keys, archive)
        self._closed = False

    def here(self) -> Session:
        """The session of this process and the running event loop; without a running one, that of the last call.

        Raises `UsageError` when the client belongs to another event loop, `StoreError` when it was closed before a
        fork or in an event loop that is closed.
        """
        session = self._session
        loop = _running_loop()
        if session.pid == os.getpid() and (session.loop is loop or loop is None):
            return session
        with _lock:
            return self._moved(loop)

    def _moved(self, loop: asyncio.AbstractEventLoop | None) -> Session:
        session = self._session  # another thread may have been here first
        forked = session.pid != os.getpid()
        if not forked and session.loop is None:
            session.loop = loop
            session.tracing = find_tracing()
        elif forked or (session.loop is not loop and session.loop is not None and session.loop.is_closed()):
            if self._closed:
                raise StoreError("the client is closed")
            if forked:
                _of_parents.append(session)
            else:
                session.store.abandon()
            self._session = session = Session(session.store.renewed(), self._kernel, self._keys, self._archive)
            session.loop = loop
            session.tracing = find_tracing()
        elif session.loop is not loop:
            raise UsageError(
                "this client belongs to another event loop, that of its first call, which is still open: connect a "
                "client in each event loop (`async with sf.connect() as client`), or close that loop first"
            )
        return session

    async def close(self) -> None:
        """Close the session of this process and event loop. One of another process, or of a closed event loop, has
        nothing that could be closed here."""
        self._closed = True
        session = self._session
        if session.pid != os.getpid():
            return
        if session.loop is not None and session.loop is not _running_loop() and session.loop.is_closed():
            session.store.abandon()
            return
        session = self.here()
        await session.waiter.close()
        await session.rings.close()
        await session.batcher.close()
        await session.recent.close()
        await session.store.close()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
