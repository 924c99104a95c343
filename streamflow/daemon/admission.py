"""Reads the starts that wait on the server, when those in memory get few: so a backlog costs a daemon no memory.

Owns: which shards are asked for how many. Must not: decide where a start waits (`lua/shared/open_run.lua` does) or when
it begins (`Starts`). Called by: the daemon (runs the loop).
"""

from __future__ import annotations

import logging
import math
import time

import anyio

from streamflow.daemon.context import Context
from streamflow.daemon.owner import Owner
from streamflow.daemon.shard import OwnedShard
from streamflow.errors import StoreError
from streamflow.loops import retry_forever
from streamflow.store.connection import Call
from streamflow.store.kernel import NextStarts, Reply
from streamflow.wire import InboxMessage

_log = logging.getLogger("streamflow.admission")

FETCH = 32
"""Starts that wait of one shard that are read at once..."""
FETCH_SHARDS = 8
"""...of so many shards."""
LOOK_SECONDS = 0.05
LOOK = 4
LOOK_MOST = 8
"""So often this many are read although there are enough, of shards of which no more than so many are in memory: they
may be of tenants whose turn it is."""
COUNT_SECONDS = 1.0
"""Seconds between two counts of those that wait."""
FETCH_BYTES = 2 * 1024 * 1024
"""Bytes of inputs that are read at once, about: of each shard one start at least."""


class Admission:
    """The loop that reads starts which wait on the server, when those in memory get few."""

    def __init__(self, context: Context, owner: Owner) -> None:
        self._store = context.store
        self._kernel = context.kernel
        self._owner = owner
        self._counted = 0.0
        self._last = -1
        """The shard that was asked last: the others come first."""

    async def run(self) -> None:
        await retry_forever(self.run_once, _log, "could not read the starts that wait")

    async def run_once(self) -> None:
        """Read some, as soon as there may be some and there is room."""
        starts = self._owner.starts
        if starts.is_short and not self._owner.is_full and (shards := self._next_shards(math.inf)):
            await self._fetch(shards, FETCH)
            return
        starts.more = any(shard.waits for shard in self._owner.shards.values())
        starts.wanted = anyio.Event()
        with anyio.move_on_after(LOOK_SECONDS if starts.more else math.inf) as timer:
            await starts.wanted.wait()
        if not timer.cancelled_caught:
            return
        if time.monotonic() - self._counted > COUNT_SECONDS:
            await self._count()
        most = math.inf if starts.may_look else LOOK_MOST
        if not self._owner.is_full and (shards := self._next_shards(most)):
            await self._fetch(shards, LOOK)

    def waiting(self) -> int:
        """How many starts wait, on the server as far as that was read, and in memory."""
        fetched = sum(len(shard.fetched) for shard in self._owner.active.values())
        left = sum(shard.left for shard in self._owner.active.values())
        return max(left - fetched, 0) + len(self._owner.starts.held)

    async def _count(self) -> None:
        """Find out how many wait, for the heartbeats."""
        self._counted = time.monotonic()
        shards = [shard for shard in self._owner.shards.values() if shard.waits]
        counts: list[int | StoreError] = await self._store.send(
            [Call.plain("ZCARD", shard.keys.waiting) for shard in shards]
        )
        for shard, count in zip(shards, counts, strict=True):
            if not isinstance(count, StoreError):
                shard.left = count
                self._owner.touch(shard)

    def _next_shards(self, most: float) -> list[OwnedShard]:
        """Those with no more than `most` starts that were read."""
        shards = [
            shard
            for shard in self._owner.shards.values()
            if shard.waits and not shard.is_going and not shard.broken and len(shard.fetched) <= most
            # Those that are read already leave with their commits; then it is seen whether there are more.
            if not shard.fetched or shard.left > len(shard.fetched)
        ]
        shards.sort(key=lambda shard: (shard.number <= self._last, shard.number))
        return shards[:FETCH_SHARDS]

    async def _fetch(self, shards: list[OwnedShard], count: int) -> None:
        calls = [self._kernel.next_starts(shard.number, shard.token, len(shard.fetched) + count) for shard in shards]
        answers: list[NextStarts | StoreError] = await self._store.send(calls)
        self._last = shards[-1].number
        found: list[tuple[OwnedShard, str]] = []
        for shard, answer in zip(shards, answers, strict=True):
            if shard.dropped:
                continue
            if isinstance(answer, StoreError):
                self._owner.refused(shard, answer)
            elif answer.code is Reply.FENCED:
                self._owner.lost(shard)
            else:
                found += [(shard, run_id) for run_id in self._new_ones(shard, answer)]
        await self._hold(found)

    def _new_ones(self, shard: OwnedShard, answer: NextStarts) -> list[str]:
        if shard.reached is None:
            shard.reached = answer.reached
        shard.left = answer.left
        self._owner.touch(shard)
        if not answer.left:
            shard.waits = False
            shard.fetched.clear()
        if shard.has_suspects:  # the former owner had these in hand when it ended
            for run_id, turn in answer.runs:
                if turn <= shard.reached:
                    shard.careful.setdefault(run_id, set())
        return [run_id for run_id, _ in answer.runs if run_id not in shard.fetched]

    async def _hold(self, found: list[tuple[OwnedShard, str]]) -> None:
        """Read the inputs of runs, as many as fit into one answer, and let these starts wait for their turns in memory.
        The others are found again by the next read, and so are those of a shard that can't be read now."""
        by_shard: dict[OwnedShard, list[str]] = {}
        for shard, run_id in found:
            by_shard.setdefault(shard, []).append(run_id)
        if not by_shard:
            return
        limit = FETCH_BYTES // len(by_shard)
        calls = [
            self._kernel.read_runs(shard.number, [(run_id, 0) for run_id in run_ids], limit)
            for shard, run_ids in by_shard.items()
        ]
        answers: list[list[tuple[int | None, list[bytes]] | StoreError] | StoreError] = await self._store.send(calls)
        for (shard, run_ids), answer in zip(by_shard.items(), answers, strict=True):
            if isinstance(answer, StoreError):
                self._owner.refused(shard, answer)
                continue
            for run_id, record in zip(run_ids, answer, strict=True):
                if not shard.dropped and run_id not in shard.fetched:
                    self._hold_one(shard, run_id, record)
        self._owner.wake_up()

    def _hold_one(self, shard: OwnedShard, run_id: str, record: tuple[int | None, list[bytes]] | StoreError) -> None:
        elements: list[bytes] = []
        if isinstance(record, StoreError):  # somebody has put another key in its place
            _log.error("run %s, whose start waits, can't begin, its record can't be read: %s", run_id, record)
        else:
            following, elements = record
            if following is not None and len(elements) < 2:  # header and input: there was no room for it
                return
        header, body = (*elements, b"", b"")[:2]  # of one that has gone nothing is left: a commit removes its start
        shard.fetched.add(run_id)
        self._owner.starts.hold(shard, InboxMessage(shard.next_waited(), "start", run_id, body, header))
