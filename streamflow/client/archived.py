"""Runs in the namespace's archive, as one client sees them: found, described, listed, put there, and brought back.

Owns: what of the archive is shown (nothing that is on the server), and how many runs get one index object.
Must not: know a storage (`archive/` does), decide when the archive is asked. Called by: client.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import NamedTuple

import msgspec

from streamflow.archive.archive import Archive
from streamflow.archive.format import ArchivedRun, Entry
from streamflow.client.listing import (
    MAX_SCANNED,
    STUCK_PAGE,
    Filters,
    RunDescription,
    RunPage,
    RunSummary,
    describe,
    failure_in,
    instant,
    summarize,
)
from streamflow.client.paging import Cursor, Position, cursor_text
from streamflow.client.pipelines import Batcher, settled
from streamflow.errors import StoreError
from streamflow.events import AnyEvent, decode_history
from streamflow.model.causes import attempts_before
from streamflow.model.codec import DECODE_ERRORS
from streamflow.model.record import decode_header, incarnation_of
from streamflow.store.namespace import Namespace

GATHER_SECONDS = 0.05
"""Runs that are archived one by one within this time get one index object."""


class Found(NamedTuple):
    """A run of the archive's listing, and its place there."""

    place: Position
    run: RunSummary


class ArchivedRuns:
    """`shard_of` is the namespace's."""

    def __init__(self, archive: Archive, batcher: Batcher) -> None:
        self.archive = archive
        self._batcher = batcher
        self._gathered: list[ArchivedRun] = []
        self._storing: asyncio.Task[None] | None = None

    async def page(self, namespace: Namespace, filters: Filters, limit: int, after: Position | None) -> RunPage:
        """As `Client.archived_runs`."""
        found: list[RunSummary] = []
        looked_at = 0
        async with aclosing(self._scan(namespace, filters, after)) as scan:
            async for some, begin, end in scan:
                for one in some:
                    found.append(one.run)
                    if len(found) == limit:
                        looked_at += round(one.place.score - begin.score)
                        return RunPage(found, _cursor(one.place, filters), looked_at)
                looked_at += round(end.score - begin.score)
                if looked_at >= MAX_SCANNED:
                    return RunPage(found, _cursor(end, filters), looked_at)
        return RunPage(found, "", looked_at)

    async def every(self, namespace: Namespace, filters: Filters) -> AsyncGenerator[list[RunSummary]]:
        """All that match, some at a time, each once."""
        async with aclosing(self._scan(namespace, filters, None)) as scan:
            async for some, _, _ in scan:
                if some:
                    yield [one.run for one in some]

    async def _scan(
        self, namespace: Namespace, filters: Filters, after: Position | None
    ) -> AsyncGenerator[tuple[list[Found], Position, Position]]:
        """Those that match, those that were archived last first; and from where to where in the listing it was looked.
        A place is the name of an index object, and a number in it."""
        seen: set[int] = set()
        async with aclosing(self._entries(after)) as entries:
            async for name, first, page in entries:
                some: list[Found] = []
                for number, entry in enumerate(page, first + 1):
                    summary = _summary(entry)
                    if summary is None or not (filters.match(summary) and filters.match_error(summary)):
                        continue
                    identity = hash((entry.run_id, incarnation_of(entry.header)))
                    if identity not in seen:
                        seen.add(identity)
                        some.append(Found(Position(number, name), summary))
                yield await self._not_here(namespace, some), Position(first, name), Position(first + len(page), name)

    async def _entries(self, after: Position | None) -> AsyncGenerator[tuple[str, int, list[Entry]]]:
        """Index objects by name, each with its runs from a number on."""
        if after is not None:
            rest = (await self.archive.read_index(after.run_id))[round(after.score) :]
            if rest:
                yield after.run_id, round(after.score), rest
        async with aclosing(self.archive.entries("" if after is None else after.run_id)) as more:
            async for name, page in more:
                yield name, 0, page

    async def _not_here(self, namespace: Namespace, found: list[Found]) -> list[Found]:
        """Without those that are on the server: restored, or not deleted yet."""
        peeks = [self._batcher.peek(namespace.shard_of(one.run.id), one.run.id) for one in found]
        left: list[Found] = []
        for one, answer in zip(found, await settled(peeks), strict=True):
            line = b"" if isinstance(answer, StoreError) else answer[0]
            if not line or incarnation_of(line) != created_ms(one.run.created):
                left.append(one)
        return left

    async def add(self, run: ArchivedRun) -> None:
        """Return when it is durable there, with those that were added at about the same time."""
        self._gathered.append(run)
        if self._storing is None:
            self._storing = asyncio.create_task(self._store_soon())
        await asyncio.shield(self._storing)

    async def _store_soon(self) -> None:
        await asyncio.sleep(GATHER_SECONDS)
        runs, self._gathered, self._storing = self._gathered, [], None
        await self.archive.store(runs)


def describe_archived(run: ArchivedRun) -> RunDescription:
    found = describe(run.run_id, run.header, run.last)
    if found.cause is not None and found.cause.step and found.cause.run_id == run.run_id:
        try:
            attempts = attempts_before(decode_history(run.transitions[-STUCK_PAGE:]), found.cause)
        except DECODE_ERRORS:
            attempts = []
        found = msgspec.structs.replace(found, attempts=attempts)
    return msgspec.structs.replace(found, archived=True)


def events_of(run: ArchivedRun) -> list[tuple[datetime, AnyEvent]]:
    return [
        (instant(transition.at), event) for transition in decode_history(run.transitions) for event in transition.events
    ]


def created_ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)


def listing_name(filters: Filters) -> str:
    """Another one for each listing, but for its times."""
    return f"archived {filters.name}"


def _cursor(place: Position, filters: Filters) -> str:
    return cursor_text(Cursor(place, filters.since, filters.until), listing_name(filters))


def _summary(entry: Entry) -> RunSummary | None:
    """None for what can't be read: it harms no other run of a listing."""
    try:
        failure = failure_in(entry.last) if entry.last else None
        summary = summarize(entry.run_id, decode_header(entry.header), failure=failure)
    except DECODE_ERRORS:
        return None
    return msgspec.structs.replace(summary, archived=True)
