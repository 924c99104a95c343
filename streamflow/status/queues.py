"""What waits and runs in each queue, and how many workers serve it, for a status.

Owns: the rows of a status. Must not: draw, change anything. Called by: `collector.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from streamflow.client.client import Client
from streamflow.status.model import Queue
from streamflow.store.pauses import Pause
from streamflow.store.queues import read_queues


async def queues_of(
    client: Client, names: Sequence[str], paused: Mapping[str, Pause], shards: int, patience: float
) -> list[Queue]:
    """Read in one pipeline, sorted by name. A queue that can't be read counts as empty. Raises `StoreError`."""
    queues = await read_queues(client.store, client.keys, sorted(names), shards, patience)
    return [
        Queue(
            name=queue.name,
            waiting=queue.waiting,
            running=queue.running,
            workers=queue.workers,
            paused=paused.get(queue.name),
        )
        for queue in queues
    ]
