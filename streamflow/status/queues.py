"""What waits and runs in each queue, and how many workers serve it: read for a status.

Owns: the reads, and what their answers mean. Must not: draw, change anything. Called by: `collector.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from streamflow.client.client import Client
from streamflow.errors import StoreError
from streamflow.model.sharding import QUEUE_PARTITIONS
from streamflow.status.model import Queue
from streamflow.store.connection import Call
from streamflow.store.kernel import WORKERS

QUIET_MS = 15_000
"""A worker reads from its queues, or extends its claims, every few seconds: one that was idle for longer is not
counted."""


async def queues_of(client: Client, names: Sequence[str], patience: float) -> list[Queue]:
    """Read in one pipeline, sorted by name. A queue that can't be read counts as empty. Raises `StoreError`."""
    keys = [client.keys.queue(name, number) for name in names for number in range(QUEUE_PARTITIONS)]
    calls: list[Call[Any]] = []
    for partition in keys:
        calls += (
            Call.plain("XLEN", partition.stream),
            Call.plain("XINFO", "CONSUMERS", partition.stream, WORKERS),
        )
    answers = await client.store.send(calls, patience) if calls else []
    queues: list[Queue] = []
    for position, name in enumerate(names):
        queue = Queue(name=name)
        workers: set[object] = set()
        first = position * QUEUE_PARTITIONS * 2
        of_queue = answers[first : first + QUEUE_PARTITIONS * 2]
        for entries, consumers in zip(of_queue[::2], of_queue[1::2], strict=True):
            running = 0
            for consumer in () if isinstance(consumers, StoreError) else cast("list[list[Any]]", consumers):
                facts = dict(zip(consumer[::2], consumer[1::2], strict=True))
                running += facts[b"pending"]
                if facts[b"idle"] <= QUIET_MS:
                    workers.add(facts[b"name"])
            queue.running += running
            queue.waiting += 0 if isinstance(entries, StoreError) else max(0, entries - running)
        queue.workers = len(workers)
        queues.append(queue)
    return sorted(queues, key=lambda queue: queue.name)
