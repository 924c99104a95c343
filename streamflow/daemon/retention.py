"""Forgetting: ended runs whose retention is over, and the post numbers of clients that went away.

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
"""Seconds between two looks for ended runs whose retention is over."""
SWEEP_RUNS = 200
SOURCES = 100
"""Clients whose post numbers a shard keeps, however old they are."""
SOURCE_AGE_MS = 3_600_000


class Retention:
    def __init__(self, context: Context, owner: Owner) -> None:
        self._store = context.store
        self._kernel = context.kernel
        self._clock = context.clock
        self._settings = context.settings
        self._shards = context.namespace.shards
        """As many sources of posts are other shards, which stay."""
        self._owner = owner

    async def run(self) -> None:
        await retry_forever(self.run_once, _log, "ended runs not deleted", every=SWEEP_EVERY)

    async def run_once(self) -> None:
        """Forget all that is due: first what clients posted, then runs."""
        await self.drop_sources()
        while self._settings.retention and await self.forget_once():
            pass

    async def drop_sources(self) -> None:
        """Drop the post numbers of clients that haven't posted for a while: nothing of theirs is sent again."""
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
        """Forget ended runs of owned shards whose retention is over. Whether there are more."""
        before = self._clock.now_ms() - int(self._settings.retention * 1000)
        places = [
            (shard, self._kernel.keys.shard(shard.number).index(status, name))
            for shard in self._owner.shards.values()
            for name in shard.workflows
            for status in (Status.COMPLETED, Status.FAILED, Status.CANCELLED)
        ]
        listings = await self._store.send(
            [Call.plain("ZRANGEBYSCORE", key, "-inf", before, "LIMIT", 0, SWEEP_RUNS) for _, key in places]
        )
        more = False
        for (shard, key), listing in zip(places, listings, strict=True):
            if isinstance(listing, StoreError) or not listing:
                continue
            run_ids = [run_id.decode(errors="replace") for run_id in listing]
            gone = await forget_runs(self._store, self._kernel, shard.number, run_ids)
            if not gone:  # listed, and not there: they would be looked at for ever
                gone = await self._store.one(Call.plain("ZREM", key, *listing))
            more = more or (gone > 0 and len(listing) == SWEEP_RUNS)
        return more


async def forget_runs(store: Store, kernel: Kernel, shard: int, run_ids: list[str]) -> int:
    """Delete ended runs of one shard; open ones stay. Gives their number."""
    peeked = await store.one(kernel.peek_runs(shard, run_ids))
    headers = [(run_id, decode_header(header)) for run_id, (header, _) in zip(run_ids, peeked, strict=True) if header]
    return await store.one(kernel.forget_runs(shard, headers)) if headers else 0


def _posted(last: bytes) -> int:
    """When a client posted last: `<number> <ms> <answers>`."""
    words = last.split(b" ")
    return int(words[1]) if len(words) == 3 and words[1].isdigit() else 0
