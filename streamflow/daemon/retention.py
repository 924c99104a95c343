"""Deletes ended runs whose retention is over, the post numbers of clients that are gone, and settled identities.

Owns: the sweep over owned shards, in bounded steps. Must not: delete an open run (`forget_runs` checks its header).
A damaged key harms its run or shard, and is named; now and then it looks whether any shard has such a key.
Called by: the daemon (runs the loop).
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import aclosing

import anyio

from streamflow.daemon.archiving import Archiving, Due
from streamflow.daemon.context import Context
from streamflow.daemon.owner import Owner
from streamflow.daemon.shard import OwnedShard
from streamflow.daemon.sources import NOBODY, SETTLED_MS, Source, accepted_of, posted_at, source_of
from streamflow.daemon.troubles import shard_name
from streamflow.errors import ArchiveError, StoreError, StoreUnavailable
from streamflow.loops import retry_forever
from streamflow.model.codec import DECODE_ERRORS
from streamflow.model.record import LISTED, Header, decode_header
from streamflow.model.retention import ENDED
from streamflow.store.connection import Call

_log = logging.getLogger("streamflow.retention")

SWEEP_EVERY = 60.0
"""Seconds between two checks for ended runs whose retention is over."""
SWEEP_RUNS = 200
"""Runs of one listing that are looked at at once."""
FORGET = 50
"""Runs that one call deletes."""
LONGEST_SWEEP = 300.0
"""Seconds after which a sweep ends although there is more: an archive may be slow, and logs are to be trimmed."""
CHECK_EVERY = 5
"""Sweeps between two checks whether each shard's keys have their types: most are used rarely, and a shard whose keys
somebody has overwritten is to be seen before it matters, which may be a takeover."""
LOOK_AGAIN = 60
"""Sweeps between two looks at all listings of ended runs, also where nothing was committed."""
NOT_WRITTEN = "is not written, so ended runs stay on the server"
PIPELINE = 64
"""Listings or shards in one pipeline."""
SCAN = 500
"""Fields of a hash that are read at once, about."""
SOURCES = 100
"""Clients whose post numbers a shard keeps, however old they are."""
SOURCE_AGE_MS = 3_600_000
"""Age from which the post numbers of other clients are deleted."""
LOST_MS = 86_400_000
"""For so long a target remembers a message that its source has lost, and may decide again when what it waits for has
come again: a step that runs for hours, say."""
FIELDS_OF_SHARD = 2
"""In a target's `seen`."""


class Retention:
    def __init__(self, context: Context, owner: Owner) -> None:
        self._app = context.app
        self._store = context.store
        self._kernel = context.kernel
        self._clock = context.clock
        self._rules = context.settings.ended_rules
        self._archiving = Archiving(context)
        self._shards = context.namespace.shards
        """As many of the sources in a shard's `seen` are shards, which are never dropped."""
        self._owner = owner
        self._troubles = context.troubles
        self._sweeps = 0
        self._until = math.inf
        """When a sweep leaves the rest to the next one (monotonic s)."""
        self._forgetting = anyio.Lock()
        """Two calls at once would archive a run twice, and the archive would list it twice."""

    async def run(self) -> None:
        await retry_forever(self.run_once, _log, "could not delete ended runs", every=SWEEP_EVERY)

    async def run_once(self) -> None:
        """Delete everything that is due: first post numbers of clients, then runs."""
        if self._sweeps % CHECK_EVERY == 0:
            await self.check_types()
        self._sweeps += 1
        await self.drop_sources()
        await self.drop_workflows()
        await self.resume_trimming()
        if not self._rules:
            return
        kept: dict[str, int] = {}
        if self._sweeps % LOOK_AGAIN == 0:
            self._look_again()
        await self.look_for_ended()
        self._until = time.monotonic() + LONGEST_SWEEP
        try:
            while await self.forget_once(kept):
                pass
        finally:
            self._until = math.inf

    def _look_again(self) -> None:
        """Ask the listings of shards, too, that had no ended runs, and in which nothing was committed since: some may
        have been restored from the archive there."""
        for shard in self._owner.shards.values():
            if shard.forget_at == math.inf:
                shard.forget_at = 0.0

    async def check_types(self) -> None:
        """Report the shards whose keys have another type than they should have."""
        owned = list(self._owner.shards.values())
        for first in range(0, len(owned), PIPELINE):
            calls: list[tuple[OwnedShard, Call[int]]] = []
            for shard in owned[first : first + PIPELINE]:
                keys = shard.keys
                hashes = (keys.owner, keys.seen, keys.steps, keys.details, keys.views)
                sorted_sets = (keys.agenda, keys.waiting, keys.turns)
                streams = (keys.inbox, keys.log, keys.outbox, keys.poison)
                for command, names in (("HLEN", hashes), ("ZCARD", sorted_sets), ("XLEN", streams)):
                    calls += [(shard, Call.plain(command, name)) for name in names]
            answers: list[int | StoreError] = await self._store.send([call for _, call in calls])
            for (shard, _), answer in zip(calls, answers, strict=True):
                if isinstance(answer, StoreError):
                    self._failed(shard, "has a key that somebody has overwritten", answer, CHECK_EVERY)

    async def drop_sources(self) -> None:
        """Drop the post numbers of clients that haven't posted for a while: they send none of their posts again. Their
        times are the server's, so none is dropped while its clock may have been another one then. And drop the
        identities of messages whose sources can't forget any more that they have sent them."""
        owned = list(self._owner.shards.values())
        for first in range(0, len(owned), PIPELINE):
            shards = owned[first : first + PIPELINE]
            sizes = await self._store.send([Call.plain("HLEN", shard.keys.seen) for shard in shards])
            for shard, size in zip(shards, sizes, strict=True):
                try:
                    if isinstance(size, StoreError):
                        raise size
                    if size > FIELDS_OF_SHARD * self._shards + SOURCES:
                        await self._drop_sources_of(shard)
                except StoreUnavailable:
                    raise
                except StoreError as error:
                    self._failed(shard, "keeps the post numbers of clients that have gone", error)

    def _failed(self, shard: OwnedShard, what: str, error: StoreError, sweeps: int = 1) -> None:
        """`sweeps`: after so many it is tried again."""
        self._troubles.failed(shard_name(shard.number), what, error, stops=False, kept=(sweeps + 0.5) * SWEEP_EVERY)

    async def _drop_sources_of(self, shard: OwnedShard) -> None:
        is_sure = self._clock.since_jump * 1000 >= SOURCE_AGE_MS
        before = self._clock.server_ms() - SOURCE_AGE_MS if is_sure else 0
        sources: dict[int, Source] = {}
        cursor = 0
        while True:
            cursor, seen = await self._store.one(Call.plain("HSCAN", shard.keys.seen, cursor, "COUNT", SCAN))
            old = [
                source for source, last in seen.items() if source.startswith(b"client:") and posted_at(last) < before
            ]
            old += await self._settled(seen, sources)
            for first in range(0, len(old), SCAN):
                await self._store.one(Call.plain("HDEL", shard.keys.seen, *old[first : first + SCAN]))
            if not cursor:
                return

    async def _settled(self, seen: dict[bytes, bytes], sources: dict[int, Source]) -> list[bytes]:
        """Of the fields of a `seen`, the identities of messages that their sources can't forget any more. `sources`: by
        shard, as far as they were read. A source that is down stands still, and so do its identities."""
        now = self._clock.now_ms()
        accepted = {field: accepted_of(value) for field, value in seen.items() if field.startswith(b"m:")}
        aged = {field: one for field, one in accepted.items() if one.at < now - SETTLED_MS}
        unread = sorted({one.source for one in aged.values() if 0 <= one.source < self._shards} - sources.keys())
        for first in range(0, len(unread), PIPELINE):
            portion = unread[first : first + PIPELINE]
            calls = [
                Call.plain("HMGET", self._kernel.keys.shard(number).owner, "token", "committed", "sent")
                for number in portion
            ]
            for number, facts in zip(portion, await self._store.send(calls), strict=True):
                sources[number] = Source() if isinstance(facts, StoreError) else source_of(*facts)
        return [
            field
            for field, one in aged.items()
            if one.at < now - LOST_MS or sources.get(one.source, NOBODY).has_settled(one.number, one.at)
        ]

    async def drop_workflows(self) -> None:
        """Drop names that this daemon's app doesn't have, and of which a shard has no runs any more: anybody can start
        runs of any name."""
        unknown = [
            (shard, name)
            for shard in self._owner.shards.values()
            for name in sorted(shard.workflows - self._app.workflows.keys())
        ]
        for first in range(0, len(unknown), PIPELINE):
            portion = unknown[first : first + PIPELINE]
            sizes = await self._store.send(
                [Call.plain("ZCARD", shard.keys.index(status, name)) for shard, name in portion for status in LISTED]
            )
            for position, (shard, name) in enumerate(portion):
                if not any(sizes[position * len(LISTED) : (position + 1) * len(LISTED)]):
                    shard.workflows.discard(name)

    async def resume_trimming(self) -> None:
        """Have logs trimmed from which a client's `forget` has more to remove than one call does, if nothing is
        committed there since: the owner doesn't learn of it otherwise."""
        owned = list(self._owner.shards.values())
        for first in range(0, len(owned), PIPELINE):
            shards = owned[first : first + PIPELINE]
            calls = [Call.plain("HMGET", shard.keys.views, "trimming", "forget") for shard in shards]
            for shard, marks in zip(shards, await self._store.send(calls), strict=True):
                if not isinstance(marks, StoreError) and any(marks):
                    shard.trim_again = 0
                    self._owner.touch(shard)

    async def look_for_ended(self) -> None:
        """Find out when the first ended run of each shard is due: until then its listings are not asked again. Runs
        that end later are due later, and `Owner` notes when something is committed in a shard that had none."""
        now = self._clock.now_ms()
        unknown = [shard for shard in self._owner.shards.values() if shard.forget_at <= now]
        for shard in unknown:
            shard.forget_at = math.inf  # a commit that is accepted from now on changes it
        listings = self._listings(unknown)
        for first in range(0, len(listings), PIPELINE):
            portion = listings[first : first + PIPELINE]
            oldest_of = [Call.plain("ZRANGE", key, 0, 0, "WITHSCORES") for _, key, _ in portion]
            try:
                oldest = await self._store.send(oldest_of)
            except StoreError:
                for shard, _, _ in listings[first:]:
                    shard.forget_at = 0.0
                raise
            for (shard, _, seconds), found in zip(portion, oldest, strict=True):
                if isinstance(found, StoreError):
                    shard.forget_at = 0.0  # `forget_once` reports it
                elif found:
                    shard.forget_at = min(shard.forget_at, float(found[1]) + seconds * 1000)

    def _listings(self, shards: Iterable[OwnedShard]) -> list[tuple[OwnedShard, str, float]]:
        """Those of ended runs that aren't kept forever, and for how many seconds they are."""
        return [
            (shard, shard.keys.index(status, name), seconds)
            for shard in shards
            for name in shard.workflows
            for status in ENDED
            if (seconds := self._rules.seconds(name, status))
        ]

    async def forget_once(self, kept: dict[str, int] | None = None) -> bool:
        """Delete ended runs of owned shards whose retention is over, once they are in the archive if there is one.
        Returns whether there are more.

        `kept`: by listing, how many at its beginning can't be deleted, from the calls before in this sweep.
        """
        async with self._forgetting:
            return await self._forget_due({} if kept is None else kept)

    async def _forget_due(self, kept: dict[str, int]) -> bool:
        now = self._clock.now_ms()
        listings = self._listings(shard for shard in self._owner.shards.values() if shard.forget_at <= now)
        if not listings:
            return False
        try:
            more = False
            for first in range(0, len(listings), PIPELINE):
                if time.monotonic() >= self._until:
                    return False
                more = await self._forget_portion(listings[first : first + PIPELINE], now, kept) or more
        except ArchiveError as error:  # of all runs: with the next sweep it is tried again
            self._troubles.failed("archive", NOT_WRITTEN, error, stops=False, kept=1.5 * SWEEP_EVERY)
            return False
        self._troubles.works("archive", NOT_WRITTEN)
        return more

    async def _forget_portion(
        self,
        portion: list[tuple[OwnedShard, str, float]],
        now: int,
        kept: dict[str, int],
    ) -> bool:
        answers = await self._store.send(
            [
                Call.plain(
                    "ZRANGEBYSCORE", key, "-inf", now - int(seconds * 1000), "LIMIT", kept.get(key, 0), SWEEP_RUNS
                )
                for _, key, seconds in portion
            ]
        )
        archive = await self._archiving.current() if any(answers) else None
        left: Counter[str] = Counter()
        full: set[str] = set()
        later: list[Due] = []

        def count(key: str, gone: int, harmed: int) -> None:
            left[key] += gone + harmed
            if harmed:
                kept[key] = kept.get(key, 0) + harmed

        for (shard, key, _), listed in zip(portion, answers, strict=True):
            if isinstance(listed, StoreError):
                self._failed(shard, "keeps ended runs, because a listing can't be read", listed)
                continue
            if len(listed) == SWEEP_RUNS:
                full.add(key)
            for first in range(0, len(listed), FORGET):
                ended, gone, harmed = await self._look(shard, key, listed[first : first + FORGET])
                count(key, gone, harmed)
                if ended and archive is not None:
                    later.append(Due(shard, key, ended))
                elif ended:
                    count(key, *await self._forget(shard, ended))
        if archive is not None and later:
            async with aclosing(self._archiving.archived(archive, later)) as archived:
                async for due, harmed in archived:
                    count(due.listing, 0, harmed)
                    if due.runs:
                        count(due.listing, *await self._forget(due.shard, due.runs))
        return any(left[key] for key in full)

    async def _look(
        self, shard: OwnedShard, key: str, members: list[bytes]
    ) -> tuple[list[tuple[str, Header]], int, int]:
        """Runs of one listing. Returns those that have ended, how many others have left the listing, and how many stay
        because somebody has damaged their keys."""
        gone = harmed = 0
        run_ids = [member.decode(errors="replace") for member in members]
        headers = await self._store.send([Call.plain("LINDEX", shard.keys.run(run_id), 0) for run_id in run_ids])
        ended: list[tuple[str, Header]] = []
        wrongly_listed: list[bytes] = []
        for run_id, member, data in zip(run_ids, members, headers, strict=True):
            try:
                header = _header(data)
            except DECODE_ERRORS as error:
                harmed += 1
                _log.error(
                    "the record of the ended run %s of shard %d can't be read, so it stays: %s",
                    run_id,
                    shard.number,
                    error,
                )
                continue
            if header is None or header.is_open:  # it would be found by every sweep forever
                wrongly_listed.append(member)
            else:
                ended.append((run_id, header))
        if wrongly_listed:
            gone += await self._store.one(Call.plain("ZREM", key, *wrongly_listed))
        return ended, gone, harmed

    async def _forget(self, shard: OwnedShard, ended: list[tuple[str, Header]]) -> tuple[int, int]:
        """Returns how many are deleted, and how many can't be."""
        [answer] = await self._store.send([self._kernel.forget_runs(shard.number, ended)])
        if not isinstance(answer, StoreError):
            return answer, 0
        deleted = refused = 0  # a key of at least one of them has another type: the others go without it
        answers = await self._store.send([self._kernel.forget_runs(shard.number, [run]) for run in ended])
        for (run_id, _), answer in zip(ended, answers, strict=True):
            if isinstance(answer, StoreError):
                refused += 1
                _log.error("the ended run %s of shard %d stays, because of a key: %s", run_id, shard.number, answer)
            else:
                deleted += answer
        return deleted, refused


def _header(data: bytes | StoreError | None) -> Header | None:
    """Of the first element of a record, None if there is none. Raises one of `DECODE_ERRORS`."""
    if isinstance(data, StoreError):
        raise ValueError(str(data))
    return None if data is None else decode_header(data)
