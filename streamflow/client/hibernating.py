"""Runs that were moved out of the server's memory, as one client sees them: found by id, described, listed, counted.

Owns: which object of the storage belongs to what the server has left of a run, and the order of their listing.
Must not: wake a run (its owner does, when something comes for it), know a storage (`archive/` does).
Called by: client, listing.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime

import msgspec

from streamflow.archive.format import ParkedRun
from streamflow.archive.parked import ParkedRuns, open_parked
from streamflow.client.pipelines import Batcher, settled
from streamflow.errors import ArchiveError, StoreError, UsageError
from streamflow.model.sleeping import Sleeper, decode_sleeper
from streamflow.store.connection import Call
from streamflow.store.keys import BUCKETS, NamespaceKeys

KEPT = 4
"""Runs that are kept in memory after they were read: who follows one reads it again and again."""
KEPT_BYTES = 1024 * 1024
"""A larger run is not."""
_PLACE = re.compile(r"[0-9]{5}\.[0-9a-f]{2}")
AT_ONCE = 64
"""Buckets, or shards, that are read in one pipeline."""


class HibernatingRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run in the listing of those that hibernate: what the server knows of it. Times are aware, in UTC. `due`: when
    it goes on by itself, None if it waits for a message or child. `workflow`: empty if its name is too long to be
    kept."""

    id: str
    workflow: str
    created: datetime
    due: datetime | None
    version: int


class HibernatingPage(list[HibernatingRun]):
    """The runs of one page. `after` is for the next page, empty if there are no more runs."""

    def __init__(self, runs: list[HibernatingRun], after: str = "") -> None:
        super().__init__(runs)
        self.after = after


class HibernatingRuns:
    """`archive`: the URL where the client reads the namespace's archive, if not where the daemons write it."""

    def __init__(self, batcher: Batcher, keys: NamespaceKeys, archive: str = "") -> None:
        self._batcher = batcher
        self._keys = keys
        self._archive = archive
        self._storage: ParkedRuns | None = None
        self._kept: OrderedDict[tuple[str, bytes], ParkedRun] = OrderedDict()

    async def find(self, shard: int, run_id: str, created: int = 0) -> ParkedRun | None:
        """The run, with its history; None if it doesn't hibernate. Raises `ArchiveError`."""
        sleeper = await self.line(shard, run_id)
        if sleeper is None or created not in (0, sleeper.created):
            return None
        key = (run_id, sleeper.line)
        found = self._kept.get(key)
        if found is None:
            storage = await self._current()
            if storage is None:
                raise ArchiveError(f"run {run_id} hibernates, and the namespace has no archive any more")
            try:
                found = await storage.get(run_id, sleeper)
            except ArchiveError:
                if await self.line(shard, run_id) == sleeper:
                    raise
                return None  # it was woken meanwhile
            if sum(map(len, found.record)) <= KEPT_BYTES:
                self._kept[key] = found
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
        return found

    async def line(self, shard: int, run_id: str) -> Sleeper | None:
        """What the server has of a run that hibernates. Raises `StoreError`."""
        line = await self._batcher.call(Call.plain("HGET", self._keys.shard(shard).asleep(run_id), run_id))
        return None if line is None else _decoded(run_id, line)

    async def counts(self, shards: Sequence[int]) -> dict[int, int]:
        """How many hibernate in each of these shards. Raises `StoreError`."""
        found: dict[int, int] = {}
        for first in range(0, len(shards), AT_ONCE):
            some = shards[first : first + AT_ONCE]
            calls = [self._batcher.call(Call.plain("HGET", self._keys.shard(one).owner, "asleep")) for one in some]
            for number, count in zip(some, await settled(calls), strict=True):
                if isinstance(count, StoreError):
                    raise count
                found[number] = int(count) if count and count.isdigit() else 0
        return found

    async def page(self, shards: Sequence[int], workflow: str | None, limit: int, after: str) -> HibernatingPage:
        """At most `limit` runs behind `after`, of a workflow if one is named. Raises `StoreError`, `UsageError`."""
        place, _, last = after.partition("/")
        if after and not (_PLACE.fullmatch(place) and last):
            raise UsageError(f"after={after!r} is not where a page of hibernating runs has ended")
        found, ended = HibernatingPage([]), ""
        async with aclosing(self.every(shards, place)) as every:
            async for at, runs in every:
                for run in runs:
                    if (at == place and run.id <= last) or (workflow and run.workflow not in ("", workflow)):
                        continue
                    if len(found) == limit:
                        found.after = f"{ended}/{found[-1].id}"
                        return found
                    found.append(run)
                    ended = at
        return found

    async def every(self, shards: Sequence[int], after: str = "") -> AsyncGenerator[tuple[str, list[HibernatingRun]]]:
        """All of them, a bucket at a time: its place in this listing, at which it can begin (`after`), and its runs
        by id. What comes and goes meanwhile may be missing, or be there although it is awake."""
        counts = await self.counts(shards)
        for number, count in sorted(counts.items()):
            buckets = [f"{bucket:02x}" for bucket in range(BUCKETS)] if count else []
            places = [(f"{number:05d}.{bucket}", bucket) for bucket in buckets]
            wanted = [(place, bucket) for place, bucket in places if place >= after]
            for first in range(0, len(wanted), AT_ONCE):
                some = wanted[first : first + AT_ONCE]
                keys = [self._keys.shard(number).bucket(bucket) for _, bucket in some]
                answers = await settled([self._batcher.call(Call.plain("HGETALL", key)) for key in keys])
                for (place, _), lines in zip(some, answers, strict=True):
                    if isinstance(lines, StoreError):
                        raise lines
                    found = [_listed(field.decode(errors="replace"), line) for field, line in sorted(lines.items())]
                    if runs := [run for run in found if run is not None]:
                        yield place, runs

    async def _current(self) -> ParkedRuns | None:
        url = self._archive
        if not url:
            [stored] = await self._batcher.call(Call.plain("HMGET", self._keys.meta, "archive"))
            url = (stored or b"").decode(errors="replace")
        if self._storage is None or self._storage.url != url:
            self._storage = open_parked(url, self._keys.namespace)
        return self._storage


def _decoded(run_id: str, line: bytes) -> Sleeper:
    try:
        return decode_sleeper(line)
    except ValueError:
        raise ArchiveError(f"run {run_id} hibernates, and what the server has of it can't be read") from None


def _listed(run_id: str, line: bytes) -> HibernatingRun | None:
    try:
        one = decode_sleeper(line)
    except ValueError:
        return None
    due = _instant(one.due) if one.due else None
    return HibernatingRun(id=run_id, workflow=one.workflow, created=_instant(one.created), due=due, version=one.version)


def _instant(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
