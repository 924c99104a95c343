"""The objects of runs that were moved out of memory, as a daemon sees them: where they are, and which may go.

Owns: the storage that the namespace has now, and the deletion of objects that nobody needs. Must not: move runs, or
wake them. Called by: hibernation (writes, and asks to collect), waking (reads).

An object is needed as long as the server's bucket names it. One whose run is awake again goes some minutes later: a
failover may have lost that, and it is needed again. What a daemon that died has left is found by a search, a folder at
a time, and goes if it was found twice, an hour apart. No object gets the name of another one, so what nothing leads to
is never needed again but by a server that is set back.
"""

from __future__ import annotations

import logging
import time
from collections import deque

from streamflow.archive.layout import ParkedObject, parked_folders
from streamflow.archive.parked import ParkedRuns, open_parked
from streamflow.archive_url import shown_archive
from streamflow.daemon.context import Context
from streamflow.daemon.owner import Owner
from streamflow.errors import ArchiveError, StoreError, UsageError
from streamflow.model.sleeping import decode_sleeper
from streamflow.store.connection import Call

_log = logging.getLogger("streamflow.hibernation")

KEPT = 900.0
"""Seconds for which the object of a run that was woken stays."""
SEARCH_EVERY = 60.0
"""Seconds between two folders of the search: it is through after some hours."""
TWICE = 3600.0
"""Seconds between the two times that an object is found to which nothing leads."""
MOST_FOUND = 100_000
PIPELINE = 500
SEARCHER = 0
"""The owner of this shard searches."""


class ParkedObjects:
    def __init__(self, context: Context, owner: Owner) -> None:
        self._store = context.store
        self._kernel = context.kernel
        self._namespace = context.namespace
        self._settings = context.settings
        self._owner = owner
        self._guard = context.guard
        self._storage: ParkedRuns | None = None
        self._woken: deque[tuple[float, str]] = deque()
        """Objects of runs that are awake again, and when they go (monotonic s)."""
        self._found: dict[str, float] = {}
        """Objects to which nothing leads, and when they were found first."""
        self._folder = 0
        self._searched = -SEARCH_EVERY

    async def current(self) -> ParkedRuns | None:
        """The storage that the namespace has now; None if it has none. Raises `ArchiveError` if it can't be one."""
        url: bytes | None = await self._store.one(Call.plain("HGET", self._kernel.keys.meta, "archive"))
        text = (url or b"").decode(errors="replace")
        if self._storage is None or self._storage.url != text:
            try:
                self._storage = open_parked(text, self._settings.namespace, self._guard)
            except UsageError as error:
                raise ArchiveError(f"{shown_archive(text)}: {error}") from None
        return self._storage

    def woken(self, name: str) -> None:
        """The run of this object is awake."""
        self._woken.append((time.monotonic() + KEPT, name))

    async def collect_once(self) -> None:
        """Delete objects of runs that were woken a while ago, and search a folder if it is time. What storage refuses
        is tried again, or found by a later search."""
        now = time.monotonic()
        try:
            while self._woken and self._woken[0][0] <= now:
                if (storage := await self.current()) is None:
                    break
                await storage.remove(self._woken[0][1])
                self._woken.popleft()
            if SEARCHER in self._owner.shards and now - self._searched >= SEARCH_EVERY:
                self._searched = now
                folders = parked_folders()
                await self.search(folders[self._folder])
                self._folder = (self._folder + 1) % len(folders)
        except ArchiveError as error:
            _log.warning("objects of runs that are awake again are not deleted now: %s", error)

    async def search(self, folder: str, twice: float = TWICE) -> int:
        """Look at the objects of one folder. Returns how many were deleted: those to which nothing leads, and that were
        found so `twice` seconds ago."""
        if (storage := await self.current()) is None:
            return 0
        objects = [(name, one) for name, one in await storage.objects(folder) if one.run_id]
        now, deleted = time.monotonic(), 0
        for first in range(0, len(objects), PIPELINE):
            some = objects[first : first + PIPELINE]
            lines: list[bytes | StoreError | None] = await self._store.send(
                [Call.plain("HGET", self._bucket(one.run_id), one.run_id) for _, one in some]
            )
            for (name, one), line in zip(some, lines, strict=True):
                if isinstance(line, StoreError) or _leads_to(line, one):
                    self._found.pop(name, None)
                elif now - self._found.setdefault(name, now) >= twice:
                    await storage.remove(name)
                    del self._found[name]
                    deleted += 1
        if len(self._found) > MOST_FOUND:
            self._found.clear()
        return deleted

    def _bucket(self, run_id: str) -> str:
        return self._kernel.keys.shard(self._namespace.shard_of(run_id)).asleep(run_id)


def _leads_to(line: bytes | None, one: ParkedObject) -> bool:
    """Whether what the server has of a run names this object. What can't be read may."""
    if line is None:
        return False
    try:
        sleeper = decode_sleeper(line)
    except ValueError:
        return True
    return (sleeper.created, sleeper.version, sleeper.random) == (one.created, one.version, one.random)
