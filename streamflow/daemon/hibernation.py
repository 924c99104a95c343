"""Moves runs out of the server's memory that have only waited for long: their records go to storage.

Owns: which runs go, and in which order storage and server are written. Must not: wake runs (`waking.py` does), or move
a run of which anything is under way. Called by: the daemon (runs the loop).

A run goes in three steps: its object is written, and durable; one verb compares its header and the owner's token, takes
all of it out of memory and notes where it is; what this daemon has of it in memory is dropped. A daemon that dies in
between leaves an object to which nothing leads (`parked_objects.py` deletes it), and a run that is where it was.

A shard is looked at when the first of its runs may have waited for long enough, and not before: each look says when the
next one is due, and a commit says that it may be earlier. So a shard at rest costs nothing. After a deploy its runs are
checked before they go (`deploy_check.py`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Sequence
from typing import NamedTuple

from streamflow.archive.format import ParkedRun
from streamflow.daemon.context import Context
from streamflow.daemon.owner import Owner
from streamflow.daemon.parked_objects import ParkedObjects
from streamflow.daemon.shard import OwnedShard
from streamflow.daemon.whole_records import whole_records
from streamflow.errors import ArchiveError, StoreError
from streamflow.events import decode_recorded
from streamflow.loops import retry_forever
from streamflow.machine.snapshot import waits_in
from streamflow.model.codec import DECODE_ERRORS
from streamflow.model.record import Header, Status, decode_header
from streamflow.model.references import has_mark
from streamflow.model.waits import waits_of
from streamflow.store.connection import Call
from streamflow.store.kernel import Reply

_log = logging.getLogger("streamflow.hibernation")

LOOK_EVERY = 60.0
"""Seconds between two looks at one shard at least, or a tenth of `hibernate_after`."""
PAGE = 100
"""Runs of one listing that are looked at at once."""
PORTION = 4 * 1024 * 1024
"""Bytes of records that are read at once."""
TOGETHER = 50
"""Runs that one call moves."""
WAITS = frozenset({"signal", "question", "message", "child", "timer"})
"""What a run may wait for that goes."""
NOT_MOVED = "is not written, so runs that wait for long stay in memory"


class Candidate(NamedTuple):
    """A run that may go: its header, and what the server has of it."""

    run_id: str
    header: Header
    record: list[bytes]


class Hibernation:
    def __init__(self, context: Context, owner: Owner, objects: ParkedObjects) -> None:
        self.after_ms = round(context.settings.hibernate_after * 1000)
        self._context = context
        self._store = context.store
        self._kernel = context.kernel
        self._clock = context.clock
        self._troubles = context.troubles
        self._owner = owner
        self.objects = objects

    async def run(self) -> None:
        if self.after_ms:
            every = min(LOOK_EVERY, max(0.2, self.after_ms / 5000))
            await retry_forever(self.run_once, _log, "could not move runs out of memory", every=every)

    async def run_once(self) -> int:
        """Move what has waited for long enough, in all shards where something may. Returns how many runs."""
        now = self._clock.now_ms()
        shards = [
            shard
            for shard in self._owner.shards.values()
            if shard.hibernate_at <= now and shard.is_checked and not shard.is_going
        ]
        moved = 0
        if self.after_ms and shards:
            try:
                for shard in shards:
                    moved += await self._look_at(shard)
            except ArchiveError as error:  # of all runs: with the next look it is tried again
                self._troubles.failed("archive", NOT_MOVED, error, stops=False, kept=1.5 * LOOK_EVERY)
            else:
                self._troubles.works("archive", NOT_MOVED)
        await self.objects.collect_once()
        return moved

    async def _look_at(self, shard: OwnedShard) -> int:
        now = self._clock.now_ms()
        following, moved = math.inf, 0
        shard.hibernate_at = math.inf  # a commit that is accepted from now on changes it
        try:
            for name in sorted(shard.workflows):
                key, kept = shard.keys.index(Status.RUNNING, name), 0
                while not shard.is_going:
                    found: list[bytes] = await self._store.one(
                        Call.plain("ZRANGEBYSCORE", key, "-inf", "+inf", "WITHSCORES", "LIMIT", kept, PAGE)
                    )
                    young = next((float(at) for at in found[1::2] if float(at) > now - self.after_ms), None)
                    run_ids = [
                        run_id.decode(errors="replace")
                        for run_id, at in zip(found[::2], found[1::2], strict=True)
                        if float(at) <= now - self.after_ms
                    ]
                    gone, later = await self._move_some(shard, run_ids, now)
                    moved += gone
                    kept += len(run_ids) - gone
                    following = min(following, later)
                    if young is not None:
                        following = min(following, young + self.after_ms)
                    if young is not None or len(found) < 2 * PAGE:
                        break
        except BaseException:
            shard.hibernate_at = 0.0
            raise
        gap = max(LOOK_EVERY * 1000, self.after_ms / 10) if self.after_ms >= LOOK_EVERY * 1000 else self.after_ms / 10
        shard.hibernate_at = min(shard.hibernate_at, max(following, now + gap))
        return moved

    async def _move_some(self, shard: OwnedShard, run_ids: Sequence[str], now: int) -> tuple[int, float]:
        """Of these runs, how many were moved, and when the first of the others may be (ms)."""
        following, moved = math.inf, 0
        quiet = [run_id for run_id in run_ids if self._owner.is_quiet(shard, run_id)]
        if len(quiet) < len(run_ids):
            following = now + self.after_ms
        waiting: list[Candidate] = []
        async for some in whole_records(self._context, shard.number, quiet, PORTION):
            for run_id, record in some:
                if isinstance(record, StoreError):
                    _log.error("run %s of shard %d can't be read, so it stays: %s", run_id, shard.number, record)
                    continue
                try:
                    header, since = _waits_since(record)
                except DECODE_ERRORS:
                    continue  # its owner finds out what is wrong with it
                if header is None:
                    following = min(following, now + self.after_ms)
                elif since > now - self.after_ms:
                    following = min(following, since + self.after_ms)
                else:
                    waiting.append(Candidate(run_id, header, record))
            if len(waiting) >= TOGETHER:
                gone, later = await self._move(shard, waiting, now)
                moved += gone
                following = min(following, later)
                waiting = []
        gone, later = await self._move(shard, waiting, now)
        return moved + gone, min(following, later)

    async def _move(self, shard: OwnedShard, runs: list[Candidate], now: int) -> tuple[int, float]:
        """Those whose time to wait isn't nearly over: the object, and then the server."""
        if not runs:
            return 0, math.inf
        scores = [Call[bytes | None].plain("ZSCORE", shard.keys.agenda, run.run_id) for run in runs]
        published = [Call[dict[bytes, bytes]].plain("HGETALL", shard.keys.published(run.run_id)) for run in runs]
        answers = await self._store.send([*scores, *published])
        following = math.inf
        going: list[tuple[Candidate, ParkedRun, str]] = []
        for run, score, values in zip(runs, answers[: len(runs)], answers[len(runs) :], strict=True):
            if isinstance(score, StoreError) or isinstance(values, StoreError):
                continue  # a key of another type, which `retention` reports
            if score is not None and not float(score) - now >= self.after_ms:  # also -1: its steps are in flight
                following = min(following, now + self.after_ms)
                continue
            if any(has_mark(element) for element in (*run.record, *values.values())):
                following = min(following, now + self.after_ms)
                continue  # it may refer to large payloads, which are kept for what is on the server or archived
            named = {name.decode(errors="replace"): value for name, value in values.items()}
            line, state, *transitions = run.record
            parked = ParkedRun(run.run_id, now, line, state, transitions, named)
            going.append((run, parked, secrets.token_hex(4)))
        storage = await self.objects.current() if going else None
        if storage is None:
            return 0, following
        writes = [asyncio.ensure_future(storage.put(parked, random)) for _, parked, random in going]
        try:
            await asyncio.gather(*writes)
        finally:
            for write in writes:
                write.cancel()
            await asyncio.gather(*writes, return_exceptions=True)
        moved = 0
        for first in range(0, len(going), TOGETHER):
            some = [one for one in going[first : first + TOGETHER] if self._owner.let_go(shard, one[0].run_id)]
            if some:
                moved += await self._forget(shard, some)
        return moved, following if moved == len(going) else min(following, now + self.after_ms)

    async def _forget(self, shard: OwnedShard, some: list[tuple[Candidate, ParkedRun, str]]) -> int:
        asked = [(run.run_id, run.header, random) for run, _, random in some]
        # Counted before, and never less for it: if an answer is lost, and the call sent again, the server says that it
        # has not moved them. One too many costs a look at a bucket now and then, one too few would lose messages.
        shard.asleep += len(asked)
        self._owner.lost_writes.moved_out(shard.number, {run_id for run_id, _, _ in asked})
        code, gone = await self._store.one(self._kernel.hibernate_runs(shard.number, shard.token, asked))
        if code is Reply.FENCED:
            self._owner.lost(shard)
            return 0
        self._owner.hibernated += sum(gone)
        return sum(gone)


def _waits_since(record: Sequence[bytes]) -> tuple[Header | None, int]:
    """The header of a run that only waits, and since when (ms): that of its last transition. None: it doesn't, or not
    for something that may take long. Raises `DECODE_ERRORS`."""
    if len(record) < 3:
        return None, 0
    header = decode_header(record[0])
    if header.status != Status.RUNNING:
        return None, 0
    transitions = [decode_recorded(element) for element in record[2:]]
    waits = waits_of(transitions)
    if record[1]:
        waits = waits_in(record[1], waits)
    if any(wait.kind not in WAITS for wait in waits):
        return None, 0
    return header, transitions[-1].at
