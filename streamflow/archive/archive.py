"""An archive of one namespace: ended runs are stored in it, found by their ids, listed, and deleted.

Owns: in which order objects are written, read and deleted. Must not: know a server, or decide which runs go.
Called by: the daemon's retention (stores), the client (all of it).

    store     the objects of the runs, at the same time; then one index object that names them
    find      list the run's folder; read its newest object
    entries   list the days, the newest first; read their index objects, the newest first
    remove    take the run out of the index object that it names; delete its object

A run is archived when its index object is written: who dies before writes them again, at worst into a second index
object. Readers know a run by its id and `created`, so they see it once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from typing import Any, TypeVar, Unpack

from streamflow.archive import layout
from streamflow.archive.format import (
    ArchivedRun,
    Entry,
    entry_of,
    pack_index,
    pack_run,
    unpack_index,
    unpack_run,
)
from streamflow.archive.layout import RunObject
from streamflow.archive.storage import Guard, Objects, Options
from streamflow.archive_url import NONE
from streamflow.errors import ArchiveDamaged
from streamflow.model.record import incarnation_of

T = TypeVar("T")

_log = logging.getLogger("streamflow.archive")

READ_AHEAD = 8
"""Index objects that are read at the same time."""


class Archive(Objects):
    """Runs that have ended, and their listing."""

    def __init__(self, url: str, namespace: str, **options: Unpack[Options]) -> None:
        super().__init__(url, namespace, **options)
        self._rewriting = asyncio.Lock()

    async def store(self, runs: Sequence[ArchivedRun], at_ms: int | None = None) -> None:
        """Return when all of these runs, which have ended, are durable and listed. `at_ms`: now, by any clock that
        goes forward; it is the place in the listing. After an error any of them may be there."""
        if not runs:
            return
        now = time.time_ns() // 1_000_000 if at_ms is None else at_ms
        index = layout.index_object(now, os.urandom(6).hex())
        ordered = sorted(runs, key=lambda run: int(run.header.split(b" ", 5)[4]), reverse=True)
        await _all(self._put(_listed_in(run, index)) for run in ordered)
        await self._storage.put(f"{self._index}/{index}", lambda: pack_index([entry_of(run) for run in ordered]))

    async def _put(self, run: ArchivedRun) -> None:
        name = f"{self._folder(run.run_id)}/{layout.run_object(run.header)}"
        await self._storage.put(name, lambda: pack_run(run))

    async def find(self, run_id: str, created: int = 0) -> ArchivedRun | None:
        """The run as it was archived last; without `created` (ms) the last one that had the id. One listing and one
        read, however many runs there are. Raises `ArchiveDamaged`."""
        found = [one for one in await self._objects(run_id) if created in (0, one.created)]
        for newest in sorted(found, reverse=True):
            if (run := await self._read(run_id, newest)) is not None:
                return run
        return None

    async def run_folders(self, digits: str) -> list[str]:
        """The names of the folders of runs, 1/256 of all: those whose digests begin with these two hex digits."""
        return await self._storage.names(layout.folder_of_runs(self._namespace, digits))

    async def read_folders(self, digits: str, names: Sequence[str]) -> list[list[ArchivedRun]]:
        """Of each of these folders the runs in it, one for each incarnation, as it was archived last. What is damaged
        is named in the log and left out."""
        folder = layout.folder_of_runs(self._namespace, digits)
        return await _all(self._read_folder(f"{folder}/{name}") for name in names)

    async def _read_folder(self, folder: str) -> list[ArchivedRun]:
        found: dict[tuple[str, int], tuple[RunObject, ArchivedRun]] = {}
        for name in await self._storage.names(folder):
            if (one := layout.parse_run_object(name)) is None:
                continue
            path = f"{folder}/{name}"
            try:
                run = await self._storage.get(path, lambda data, path=path: unpack_run(data, f"{self.shown}/{path}"))
            except ArchiveDamaged as error:
                _log.warning("%s: it is left out", error)
                continue
            if run is None:
                continue
            known = found.get((run.run_id, one.created))
            if known is None or known[0] < one:
                found[run.run_id, one.created] = one, run
        return [run for _, run in found.values()]

    async def incarnations(self, run_id: str) -> list[int]:
        """`created` of all runs that had the id, ms, the last one first."""
        return sorted({one.created for one in await self._objects(run_id)}, reverse=True)

    async def remove(self, run_id: str, created: int = 0) -> int:
        """Delete a run from the archive, all that had the id if `created` is 0. Returns the number of objects. What is
        damaged is deleted, too."""
        found = [one for one in await self._objects(run_id) if created in (0, one.created)]
        for one in found:
            try:
                run = await self._read(run_id, one)
            except ArchiveDamaged as error:
                _log.warning("%s; what the archive's listing has of it stays: %s", run_id, error)
                run = None
            if run is not None and run.index:
                await self._unlist(run.index, run_id, one.created)
            await self._storage.remove(f"{self._folder(run_id)}/{one.name}")
        return len(found)

    async def entries(self, before: str = "") -> AsyncGenerator[tuple[str, list[Entry]]]:
        """What was archived, the last first: index objects by their names, each with its runs. `before`: a name that
        was given before; behind it, it goes on. A damaged one is named in the log and left out."""
        day_before = before.partition("/")[0]
        days = sorted(filter(layout.is_day, await self._storage.names(self._index)), reverse=True)
        for day in days:
            if before and day > day_before:
                continue
            found = await self._storage.names(f"{self._index}/{day}")
            names = sorted((f"{day}/{name}" for name in found if layout.is_index_object(name)), reverse=True)
            names = [name for name in names if not before or name < before]
            for first in range(0, len(names), READ_AHEAD):
                some = names[first : first + READ_AHEAD]
                for name, entries in zip(some, await _all(self._read_index(name) for name in some), strict=True):
                    if entries:
                        yield name, entries

    async def read_index(self, name: str) -> list[Entry]:
        """The runs of one index object; none if it isn't there."""
        return await self._read_index(name)

    async def payloads(self) -> AsyncGenerator[bytes]:
        """The references to large payloads that archived runs have, of one index object after the other. Raises
        `ArchiveDamaged`: then it isn't known which are needed."""
        for day in filter(layout.is_day, await self._storage.names(self._index)):
            for name in filter(layout.is_index_object, await self._storage.names(f"{self._index}/{day}")):
                path = f"{self._index}/{day}/{name}"
                what = f"{self.shown}/{path}"
                entries = await self._storage.get(path, lambda data, what=what: unpack_index(data, what)) or []
                yield b"".join(entry.payloads for entry in entries)

    @property
    def _index(self) -> str:
        return layout.index_folder(self._namespace)

    def _folder(self, run_id: str) -> str:
        return layout.run_folder(self._namespace, run_id)

    async def _objects(self, run_id: str) -> list[RunObject]:
        names = await self._storage.names(self._folder(run_id))
        return [found for name in names if (found := layout.parse_run_object(name)) is not None]

    async def _read(self, run_id: str, one: RunObject) -> ArchivedRun | None:
        """None if it is gone meanwhile, or another run's: names of files may be the same but for upper case."""
        name = f"{self._folder(run_id)}/{one.name}"
        run = await self._storage.get(name, lambda data: unpack_run(data, f"{self.shown}/{name}"))
        return run if run is not None and run.run_id == run_id else None

    async def _read_index(self, name: str) -> list[Entry]:
        path = f"{self._index}/{name}"
        try:
            return await self._storage.get(path, lambda data: unpack_index(data, f"{self.shown}/{path}")) or []
        except ArchiveDamaged as error:
            _log.warning("%s: the runs in it are left out of listings, and found by their ids", error)
            return []

    async def _unlist(self, name: str, run_id: str, created: int) -> None:
        async with self._rewriting:
            entries = await self._read_index(name)
            left = [one for one in entries if (one.run_id, incarnation_of(one.header)) != (run_id, created)]
            if len(left) == len(entries):
                return
            if left:
                await self._storage.put(f"{self._index}/{name}", lambda: pack_index(left))
            else:
                await self._storage.remove(f"{self._index}/{name}")


def open_archive(url: str, namespace: str, guard: Guard | None = None) -> Archive | None:
    """None if there is none. Nothing is sent. Raises `UsageError` for a URL that can't be."""
    return None if url in ("", NONE) else Archive(url, namespace, guard=guard)


def _listed_in(run: ArchivedRun, index: str) -> ArchivedRun:
    return ArchivedRun(run.run_id, run.header, run.state, run.transitions, run.published, index)


async def _all(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results, in order. With the first error the others end: a storage that is down is not asked for each."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
