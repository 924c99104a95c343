"""Deletes large payloads that nothing refers to any more.

Owns: finding out which are referred to, and which of the others may go. Must not: change anything on the server.
Called by: the daemon (runs the loop; the one that leads sweeps).

There are no counts that a crash could make wrong: all that a reference may be in is read, and searched for the bytes of
one. That is the whole namespace, without its large payloads, so it is done only if there are payloads of a week that
has been over for `GRACE_MS`, and not often. New references name the present week (`archive/payloads.py`), so to those
of such a week none is added any more. They only move, along the way of messages, in which order is read:

    outbox  ->  quarantine and inbox  ->  records, published values, queues, log  ->  index of the archive

A payload is deleted when two sweeps one after the other have found no reference to it: the first time it may have been
overlooked on a way back (a fork of a run that was just deleted, a redriven message). What can't be read ends the sweep,
and nothing is deleted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import msgspec

from streamflow.archive.archive import open_archive
from streamflow.archive.payloads import SWEEPING, open_payloads
from streamflow.daemon.context import Context
from streamflow.daemon.rollup import Rollup
from streamflow.daemon.whole_records import whole_records
from streamflow.errors import StoreError
from streamflow.loops import retry_forever
from streamflow.model.record import LISTED, OPEN
from streamflow.model.references import WEEK_MS, marked_in
from streamflow.store.connection import Call
from streamflow.store.kernel import StreamEntry

_log = logging.getLogger("streamflow.storage")

SWEEP_EVERY = 6 * 3600.0
"""Seconds between two sweeps."""
GRACE_MS = 24 * 3600 * 1000
"""Ms after the end of a week before its payloads may be deleted: clocks of daemons and clients differ by less, and no
message is on its way for longer without being in what is read."""
PAGE = 1024 * 1024
"""Bytes that are read from a shard at once."""
RUNS = 200
"""Runs that are read at once."""

Payload = tuple[int, bytes]
"""Week and digest."""


class _Counted(msgspec.Struct):
    workflows: dict[str, Any] = {}


class _RunsView(msgspec.Struct):
    value: _Counted = msgspec.field(default_factory=_Counted)


class PayloadSweep:
    def __init__(self, context: Context, rollup: Rollup) -> None:
        self.deleted = 0
        """Payloads that this daemon has deleted."""
        self._context = context
        self._store = context.store
        self._kernel = context.kernel
        self._clock = context.clock
        self._shards = context.namespace.shards
        self._namespace = context.settings.namespace
        self._guard = context.guard
        self._rollup = rollup
        self._url = ""
        self._condemned: set[Payload] = set()
        """What the last sweep has found no reference to."""

    async def run(self) -> None:
        await retry_forever(self._run_once, _log, "could not delete large payloads", every=SWEEP_EVERY)

    async def _run_once(self) -> None:
        if self._rollup.leading:
            await self.run_once()
        else:
            self._condemned.clear()

    async def run_once(self) -> None:
        """Raises `StoreError` if something can't be read."""
        archive, large = await self._store.one(Call.plain("HMGET", self._kernel.keys.meta, "archive", "large_payload"))
        url = (archive or b"").decode(errors="replace")
        if url != self._url:  # another storage: what is there was not looked at
            self._url, self._condemned = url, set()
        payloads = open_payloads(url, self._namespace, timeout=SWEEPING, guard=self._guard) if large else None
        if payloads is None:
            return
        now = self._clock.now_ms()
        weeks = [week for week in await payloads.weeks() if (week + 1) * WEEK_MS + GRACE_MS <= now]
        there = {(week, digest) for week in weeks for digest in await payloads.digests(week)}
        if not there:
            return
        async for data in self._all(url):
            there.difference_update((one.week, one.digest) for one in marked_in(data))
            await asyncio.sleep(0)
        doomed = there & self._condemned
        self._condemned = there - doomed
        for week, digest in doomed:
            await payloads.remove(week, digest)
            self.deleted += 1
        if doomed:
            _log.info("deleted %d large payloads that nothing refers to any more", len(doomed))

    async def _all(self, url: str) -> AsyncGenerator[bytes]:
        """All that references may be in, in the order in which they move."""
        shards = [self._kernel.keys.shard(number) for number in range(self._shards)]
        keys = self._kernel.keys
        queues = [name.decode(errors="replace") for name in await self._store.one(Call.plain("HKEYS", keys.queues))]
        for streams in (
            [shard.outbox for shard in shards],
            [shard.poison for shard in shards],
            [shard.inbox for shard in shards],
        ):
            for stream in streams:
                async for data in self._stream(stream):
                    yield data
        for number, shard in enumerate(shards):
            async for data in self._records(number):
                yield data
            for stream in (shard.log, shard.poison, *(keys.queue(name, number).stream for name in queues)):
                async for data in self._stream(stream):
                    yield data
        index = open_archive(url, self._namespace, self._guard)
        if index is not None:
            async for data in index.payloads():
                yield data

    async def _stream(self, key: str) -> AsyncGenerator[bytes]:
        after, more = "0-0", True
        while more:
            page: tuple[bool, list[StreamEntry]] = await self._store.one(self._kernel.read_stream(key, after, PAGE))
            more, entries = page
            for entry, fields in entries:
                after = entry.decode()
                for value in fields.values():
                    yield value
            more = more and bool(entries)

    async def _records(self, number: int) -> AsyncGenerator[bytes]:
        """Of each run of a shard its record and what it has published: of those that are listed, under any status, and
        of those whose starts wait. Open ones are asked for twice: a retry moves a run to the front."""
        shard = self._kernel.keys.shard(number)
        names = sorted(await self._workflows())
        listings = [shard.index(status, name) for status in LISTED for name in names]
        seen: set[bytes] = set()
        for listing in (shard.waiting, *listings, *(shard.index(status, name) for status in OPEN for name in names)):
            cursor = 0
            while True:
                page: tuple[int, list[tuple[bytes, float]]] = await self._store.one(
                    Call.plain("ZSCAN", listing, cursor, "COUNT", RUNS)
                )
                cursor, members = page
                fresh = [member for member, _ in members if member not in seen]
                seen.update(fresh)
                for first in range(0, len(fresh), RUNS):
                    ids = [member.decode(errors="replace") for member in fresh[first : first + RUNS]]
                    async for data in self._read(number, ids):
                        yield data
                if not int(cursor):
                    break

    async def _workflows(self) -> set[str]:
        """Those that are registered, and those of which runs have been counted: anybody can start runs of any name."""
        keys = self._kernel.keys
        registered, counted = await self._store.send(
            [Call.plain("HKEYS", keys.workflows), Call.plain("GET", keys.view("runs"))]
        )
        for answer in (registered, counted):
            if isinstance(answer, StoreError):
                raise answer
        view = msgspec.json.decode(counted, type=_RunsView) if counted else _RunsView()
        return {name.decode(errors="replace") for name in registered} | view.value.workflows.keys()

    async def _read(self, number: int, run_ids: Sequence[str]) -> AsyncGenerator[bytes]:
        shard = self._kernel.keys.shard(number)
        async for some in whole_records(self._context, number, run_ids, PAGE):
            for _, record in some:
                if isinstance(record, StoreError):
                    raise record
                for element in record:
                    yield element
        values: list[Any] = await self._store.send(
            [Call.plain("HGETALL", shard.published(run_id)) for run_id in run_ids]
        )
        for answer in values:
            if isinstance(answer, StoreError):
                raise answer
            for value in answer.values():
                yield value
