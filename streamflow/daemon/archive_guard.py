"""Whether the storage that the namespace names as its archive is that archive, before a daemon uses it.

Owns: the marker in the storage, and what the server knows of it. Must not: know what else is stored. Called by: every
call of the storage (`Threads`), before it begins; the daemon (runs the loop); the command `archive`.

    the server knows of no marker in this storage, and none is there     it is written, and the server notes it
    one is there, with the key that the server has                       it is used
    none is there, or one with another key                               it is refused: nothing of it counts as lost

So a directory that isn't mounted, and what another server writes, is neither read nor written. It is looked at again
every `RIGHT_FOR` seconds, if the storage is used, and before something counts as missing: not with each call.

The key is the identity of the namespace's data, until somebody takes the archive (`take`): then it is another one, and
other servers with a copy of these data are refused. A storage in memory has no marker: it ends with its process.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from typing import NamedTuple

from streamflow.archive.marker import Marker, marker_name, pack_marker, unpack_marker
from streamflow.archive.storage import Threads
from streamflow.archive_url import NONE, shown_archive
from streamflow.daemon.troubles import Troubles
from streamflow.errors import ArchiveError, UsageError
from streamflow.loops import retry_forever
from streamflow.store.connection import Call, Store
from streamflow.store.kernel import Kernel, Put

_log = logging.getLogger("streamflow.archive")

RIGHT_FOR = 300.0
"""Seconds for which a storage counts as the right one."""
LOOK_EVERY = 60.0
NOT_USED = "is not used"
IN_MEMORY = "memory:"


class Expected(NamedTuple):
    """What the server knows: the archive's URL, the key of its marker, and whether one was written there."""

    url: str
    key: str
    is_marked: bool


class ArchiveGuard:
    """Called with the `Threads` of an archive. Raises `ArchiveError` if that isn't the namespace's."""

    def __init__(self, store: Store, kernel: Kernel, namespace: str) -> None:
        self.url = ""
        """What the namespace's record says, with each heartbeat."""
        self._store = store
        self._kernel = kernel
        self._namespace = namespace
        self._right: dict[str, float] = {}
        """Until when a URL counts as the right one (monotonic s)."""
        self._looking = asyncio.Lock()

    async def __call__(self, threads: Threads, *, again: bool = False) -> None:
        """`again`: look now, whatever was known before."""
        asked = time.monotonic()
        if threads.url.startswith(IN_MEMORY) or (not again and asked < self._right.get(threads.url, -math.inf)):
            return
        async with self._looking:
            if self._right.get(threads.url, -math.inf) < (asked + RIGHT_FOR if again else asked):
                self._right.pop(threads.url, None)
                await self._look(threads)

    async def _look(self, threads: Threads) -> None:
        expected = await self._expected()
        if threads.url != expected.url:
            return  # who uses this one is about to use another one
        found = await self._read(threads)
        if found is None and expected.is_marked:
            raise ArchiveError(
                f"{threads.shown} is not the archive of namespace {self._namespace}: it has no {self._name}, which was "
                "written there. Is it mounted, and the right one? Nothing of it counts as lost. If it is right, "
                "`streamflow archive --take` writes another marker"
            )
        if found is not None and found.key != expected.key:
            raise ArchiveError(
                f"{threads.shown} is not the archive of these data of namespace {self._namespace}: by its "
                f"{self._name} another server has it, or had it before. Name another storage with --archive; if "
                "nobody else uses this one, `streamflow archive --take` makes it this server's"
            )
        if found is None:
            await self._write(threads, expected.key)
            _log.info("the archive %s is marked as that of namespace %s", threads.shown, self._namespace)
        if not expected.is_marked:
            await self._note({"archive_marked": expected.url})
        self._right[threads.url] = time.monotonic() + RIGHT_FOR

    async def take(self, threads: Threads) -> None:
        """Make the archive this server's, and no other's: others are refused from now on. Raises `StoreError`."""
        key = secrets.token_hex(16)
        await self._write(threads, key)
        await self._note({"archive_key": key, "archive_marked": threads.url})

    async def _expected(self) -> Expected:
        fields = ("archive", "archive_key", "archive_marked", "identity")
        found: list[bytes | None] = await self._store.one(Call.plain("HMGET", self._kernel.keys.meta, *fields))
        url, key, marked, identity = ((value or b"").decode(errors="replace") for value in found)
        return Expected(url, key or identity or self._namespace, marked == url)

    async def _note(self, fields: dict[str, str]) -> None:
        puts = [Put(self._kernel.keys.meta, name, value.encode()) for name, value in fields.items()]
        await self._store.one(self._kernel.store_records(puts))

    @property
    def _name(self) -> str:
        return marker_name(self._namespace)

    async def _read(self, threads: Threads) -> Marker | None:
        data = await threads.unguarded(lambda storage: storage.get(self._name))
        return None if data is None else unpack_marker(data)

    async def _write(self, threads: Threads, key: str) -> None:
        data = pack_marker(Marker(self._namespace, key))
        await threads.unguarded(lambda storage: storage.put(self._name, data))


class ArchiveWatch:
    """Looks also if nothing is stored or read, so that the status has it before somebody needs the archive."""

    def __init__(self, guard: ArchiveGuard, troubles: Troubles) -> None:
        self._guard = guard
        self._troubles = troubles

    async def run(self) -> None:
        await retry_forever(self.run_once, _log, "could not look at the archive", every=LOOK_EVERY)

    async def run_once(self) -> None:
        url = self._guard.url
        if url in ("", NONE):
            return
        try:
            await Threads(url, guard=self._guard).check()
        except UsageError as error:
            self._troubles.failed("archive", NOT_USED, ArchiveError(f"{shown_archive(url)}: {error}"), stops=False)
        except ArchiveError as error:
            self._troubles.failed("archive", NOT_USED, error, stops=False, kept=1.5 * LOOK_EVERY)
        else:
            self._troubles.works("archive", NOT_USED)
