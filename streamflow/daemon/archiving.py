"""Writes ended runs to the namespace's archive, before retention deletes them.

Owns: reading what the server has of them, and how many are written together. Must not: delete anything (retention does,
and only what comes out of here). Called by: retention.

A run comes out when its objects are durable. Whatever fails before leaves it on the server, to be tried again with the
next sweep: storage that is down delays these deletions, and nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from typing import NamedTuple

from streamflow.archive.archive import Archive, open_archive
from streamflow.archive.format import ArchivedRun
from streamflow.archive_url import shown_archive
from streamflow.daemon.context import Context
from streamflow.daemon.shard import OwnedShard
from streamflow.daemon.whole_records import whole_records
from streamflow.errors import ArchiveError, StoreError, UsageError
from streamflow.model.record import Header
from streamflow.store.connection import Call

_log = logging.getLogger("streamflow.retention")

RUNS = 500
"""Runs that get one index object together..."""
BYTES = 8 * 1024 * 1024
"""...or fewer, with so many bytes."""
PORTION = 4 * 1024 * 1024
"""Bytes of records that are read at once."""


class Due(NamedTuple):
    """Ended runs of one listing."""

    shard: OwnedShard
    listing: str
    runs: list[tuple[str, Header]]


class Archiving:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store
        self._kernel = context.kernel
        self._clock = context.clock
        self._namespace = context.settings.namespace
        self._guard = context.guard
        self._archive: Archive | None = None

    async def current(self) -> Archive | None:
        """The archive that the namespace has now: another daemon may have said another one. Raises `ArchiveError` if
        it can't be one."""
        url: bytes | None = await self._store.one(Call.plain("HGET", self._kernel.keys.meta, "archive"))
        text = (url or b"").decode(errors="replace")
        if self._archive is None or self._archive.url != text:
            try:
                self._archive = open_archive(text, self._namespace, self._guard)
            except UsageError as error:
                raise ArchiveError(f"{shown_archive(text)}: {error}") from None
        return self._archive

    async def archived(self, archive: Archive, due: list[Due]) -> AsyncGenerator[tuple[Due, int]]:
        """Those that are durable there, some at a time, and how many of their listing can't be read because of a
        damaged key. Runs that have changed meanwhile don't come out. Raises `ArchiveError`."""
        waiting: list[Due] = []
        records: list[ArchivedRun] = []
        size = 0
        for one in due:
            async for found, harmed in self._read(one):
                if harmed:
                    yield one._replace(runs=[]), harmed
                waiting.append(one._replace(runs=[run for run, _ in found]))
                records += [record for _, record in found]
                size += sum(_size(record) for _, record in found)
                if len(records) >= RUNS or size >= BYTES:
                    await archive.store(records, self._clock.now_ms())
                    for stored in waiting:
                        yield stored, 0
                    waiting, records, size = [], [], 0
        await archive.store(records, self._clock.now_ms())
        for stored in waiting:
            yield stored, 0

    async def _read(self, due: Due) -> AsyncGenerator[tuple[list[tuple[tuple[str, Header], ArchivedRun]], int]]:
        """The runs with what the server has of them, as many at a time as are read at once, and how many can't be."""
        headers = dict(due.runs)
        number = due.shard.number
        async for some in whole_records(self._context, number, headers, PORTION):
            calls = [Call.plain("HGETALL", due.shard.keys.published(run_id)) for run_id, _ in some]
            published = await self._store.send(calls) if calls else []
            found: list[tuple[tuple[str, Header], ArchivedRun]] = []
            harmed = 0
            for (run_id, record), values in zip(some, published, strict=True):
                header = headers[run_id]
                if isinstance(record, StoreError) or isinstance(values, StoreError):
                    harmed += self._harmed(number, run_id, record if isinstance(record, StoreError) else values)
                elif len(record) >= 2 and record[0] == header.encode():
                    named = {name.decode(errors="replace"): value for name, value in values.items()}
                    line, state, *transitions = record
                    found.append(((run_id, header), ArchivedRun(run_id, line, state, transitions, named)))
            yield found, harmed

    def _harmed(self, shard: int, run_id: str, error: StoreError) -> int:
        _log.error("the ended run %s of shard %d can't be archived, so it stays: %s", run_id, shard, error)
        return 1


def _size(run: ArchivedRun) -> int:
    return sum(map(len, run.record)) + sum(map(len, run.published.values()))
