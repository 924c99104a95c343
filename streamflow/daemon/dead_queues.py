"""The queues in which steps wait and that no worker reads, for the view `attention`.

Owns: how often the leading daemon looks, and what that costs. Must not: count queues that have workers (the status and
the metrics do). Called by: the rollup.

    each look            names of queues                                   (one read)
    if there are queues  heartbeats of workers                             (one more)
    if some have none    what waits in those, of each shard                (one pipeline to each server)
"""

from __future__ import annotations

from streamflow.daemon.context import Context
from streamflow.daemon.looks import Looks
from streamflow.store.connection import Call
from streamflow.store.queues import PATIENCE, clock_of, read_queues
from streamflow.store.workers import live_workers
from streamflow.views.attention import DeadQueue

LOOK_EVERY = 10.0
"""Seconds between two looks."""
MAX_READ = 20
"""Queues without workers, the first by name, of which it is read what waits: anybody may make queues."""


class DeadQueues:
    def __init__(self, context: Context) -> None:
        self._store = context.store
        self._keys = context.kernel.keys
        self._shards = context.namespace.shards
        self._looks = Looks("queues without workers are", LOOK_EVERY, context.settings.rollup)
        self.found: list[DeadQueue] | None = None
        """As of the last look; None before the first one."""

    def forget(self) -> None:
        """Another daemon leads: if this one leads again, it looks at once."""
        self._looks.forget()
        self.found = None

    async def look(self) -> bool:
        """Look, if it is time to; returns whether anything has changed. Raises `StoreUnavailable`."""
        found = await self._looks.take(self._read)
        if found is None:
            return False
        changed = found != self.found
        self.found = found
        return changed

    async def _read(self) -> list[DeadQueue]:
        keys = self._keys
        names = [name.decode(errors="replace") for name in await self._store.one(Call.plain("HKEYS", keys.queues))]
        if not names:
            return []
        heartbeats = await self._store.one(Call.plain("HGETALL", keys.workers))
        clock = clock_of(await self._store.one(Call.plain("TIME", near=keys.workers)))
        live = [worker for worker in live_workers(heartbeats, clock) if not worker.draining]
        served = {queue for worker in live for queue in worker.queues}
        unserved = sorted(set(names) - served)[:MAX_READ]
        queues = await read_queues(self._store, keys, unserved, self._shards, PATIENCE)
        return [
            DeadQueue(queue.name, queue.waiting, queue.oldest or 0)
            for queue in queues
            if queue.waiting and not queue.workers
        ]
