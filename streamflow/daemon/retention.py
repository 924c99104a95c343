"""Deletes ended runs whose retention is over, and the post numbers of clients that are gone.

Owns: the sweep over owned shards, in bounded steps. Must not: delete an open run (`forget_runs` checks its header).
Called by: the daemon (runs the loop), the `forget` command.
"""

from __future__ import annotations

import logging

from streamflow.daemon.context import Context
from streamflow.daemon.owner import Owner
from streamflow.errors import StoreError
from streamflow.loops import retry_forever
from streamflow.model.record import Status, decode_header
from streamflow.store.connection import Call, Store
from streamflow.store.kernel import Kernel

_log = logging.getLogger("streamflow.retention")

SWEEP_EVERY = 60.0
"""Seconds between two checks for ended runs whose retention is over."""
SWEEP_RUNS = 200
"""Runs of one listing that are deleted at once."""
SOURCES = 100
"""Clients whose post numbers a shard keeps, however old they are."""
SOURCE_AGE_MS = 3_600_000
"""Age from which the post numbers of other clients are deleted."""


class Retention:
    def __init__(self, context: Context, owner: Owner) -> None:
        self._store = context.store
        self._kernel = context.kernel
        self._clock = context.clock
        self._settings = context.settings
        self._shards = context.namespace.shards
        """As many of the sources in a shard's `seen` are shards, which are never dropped."""
        self._owner = owner

    async def run(self) -> None:
        await retry_forever(self.run_once, _log, "could not delete ended runs", every=SWEEP_EVERY)

    async def run_once(self) -> None:
        """Delete everything that is due: first post numbers of clients, then runs."""
        await self.drop_sources()
        while self._settings.retention and await self.forget_once():
            pass

    async def drop_sources(self) -> None:
        """Drop the post numbers of clients that haven't posted for a while: they send none of their posts again."""
        owned = list(self._owner.shards.values())
        sizes = await self._store.send([Call.plain("HLEN", shard.keys.seen) for shard in owned])
        crowded = [shard for shard, size in zip(owned, sizes, strict=True) if size > self._shards + SOURCES]
        before = self._clock.now_ms() - SOURCE_AGE_MS
        for shard in crowded:
            seen: dict[bytes, bytes] = await self._store.one(Call.plain("HGETALL", shard.keys.seen))
            old = [source for source, last in seen.items() if source.startswith(b"client:") and _posted(last) < before]
            if old:
                await self._store.one(Call.plain("HDEL", shard.keys.seen, *old[:5000]))

    async def forget_once(self) -> bool:
        """Delete ended runs of owned shards whose retention is over. Returns whether there are more."""
        before = self._clock.now_ms() - int(self._settings.retention * 1000)
        listings = [
            (shard, self._kernel.keys.shard(shard.number).index(status, name))
            for shard in self._owner.shards.values()
            for name in shard.workflows
            for status in (Status.COMPLETED, Status.FAILED, Status.CANCELLED)
        ]
        answers = await self._store.send(
            [Call.plain("ZRANGEBYSCORE", key, "-inf", before, "LIMIT", 0, SWEEP_RUNS) for _, key in listings]
        )
        more = False
        for (shard, key), listed in zip(listings, answers, strict=True):
            if isinstance(listed, StoreError) or not listed:
                continue
            run_ids = [run_id.decode(errors="replace") for run_id in listed]
            deleted = await forget_runs(self._store, self._kernel, shard.number, run_ids)
            if not deleted:  # listed without a record: they would be found by every sweep forever
                deleted = await self._store.one(Call.plain("ZREM", key, *listed))
            more = more or (deleted > 0 and len(listed) == SWEEP_RUNS)
        return more


async def forget_runs(store: Store, kernel: Kernel, shard: int, run_ids: list[str]) -> int:
    """Delete ended runs of one shard; open ones stay. Returns the number of deleted runs."""
    peeked = await store.one(kernel.peek_runs(shard, run_ids))
    headers = [(run_id, decode_header(header)) for run_id, (header, _) in zip(run_ids, peeked, strict=True) if header]
    return await store.one(kernel.forget_runs(shard, headers)) if headers else 0


def _posted(last: bytes) -> int:
    """When a client posted last (ms), from `<number> <ms> <answers>`."""
    parts = last.split(b" ")
    return int(parts[1]) if len(parts) == 3 and parts[1].isdigit() else 0
