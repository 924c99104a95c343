"""The queues in which steps wait and that no worker reads, for the view `attention`.

Owns: which queues these are, and what it costs to know. Must not: count queues that have workers (the status and the
metrics do). Called by: the rollup, with each look at the fleet.

    if some have no workers  what waits in those, of each shard            (one pipeline to each server)
"""

from __future__ import annotations

import logging

from streamflow.daemon.context import Context
from streamflow.daemon.fleet import Fleet
from streamflow.errors import StoreError, StoreUnavailable
from streamflow.store.queues import PATIENCE, read_queues
from streamflow.views.attention import DeadQueue

_log = logging.getLogger("streamflow.rollup")

MAX_READ = 20
"""Queues without workers, the first by name, of which it is read what waits: anybody may make queues."""


class DeadQueues:
    def __init__(self, context: Context) -> None:
        self._store = context.store
        self._keys = context.kernel.keys
        self._shards = context.namespace.shards
        self.found: list[DeadQueue] | None = None
        """As of the last look; None before the first one."""

    def forget(self) -> None:
        """Another daemon leads."""
        self.found = None

    async def look(self, fleet: Fleet) -> bool:
        """Returns whether anything has changed. What can't be read because somebody has damaged a key stays as it is.
        Raises `StoreUnavailable`."""
        if fleet.queues is None:
            return False
        try:
            found = await self._read(fleet, fleet.queues)
        except StoreUnavailable:
            raise
        except StoreError as error:
            _log.warning("queues without workers are unknown, will look again: %s", error)
            return False
        changed = found != self.found
        self.found = found
        return changed

    async def _read(self, fleet: Fleet, names: list[str]) -> list[DeadQueue]:
        served = {queue for worker in fleet.workers if not worker.draining for queue in worker.queues}
        unserved = sorted(set(names) - served)[:MAX_READ]
        if not unserved:
            return []
        queues = await read_queues(self._store, self._keys, unserved, self._shards, PATIENCE)
        return [
            DeadQueue(queue.name, queue.waiting, queue.oldest or 0)
            for queue in queues
            if queue.waiting and not queue.workers
        ]
