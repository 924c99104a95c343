"""What waits and runs in each queue, and how many workers serve it, read from the server.

Owns: the reads, and what their answers mean. Must not: change anything.
Called by: the status, a daemon's metrics, workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import msgspec

from streamflow.errors import StoreError, StoreUnavailable
from streamflow.store.connection import Call, Store
from streamflow.store.kernel import WORKERS, Kernel
from streamflow.store.keys import NamespaceKeys
from streamflow.store.servers import send_to_each
from streamflow.store.workers import live_workers

PATIENCE = 2.0
"""Seconds for which a server is waited for while others have answered."""


class QueueFigures(msgspec.Struct, kw_only=True):
    name: str
    waiting: int = 0
    """Attempts that no worker has claimed."""
    running: int = 0
    """Attempts that workers have."""
    workers: int = 0
    """Workers that live and take attempts."""
    oldest: int | None = None
    """When the oldest that waits was put in, by the server's clock (ms); None: none waits."""


async def read_queues(
    store: Store, keys: NamespaceKeys, names: Sequence[str], shards: int, patience: float
) -> list[QueueFigures]:
    """In the order of the names. A queue that can't be read counts as empty. Raises `StoreError`."""
    if not names:
        return []
    kernel = Kernel(keys)
    calls: list[tuple[str, Call[Any]]] = [
        (keys.workers, Call.plain("TIME", near=keys.workers)),
        (keys.workers, Call.plain("HGETALL", keys.workers)),
    ]
    calls += [(keys.shard(shard).owner, kernel.peek_queues(shard, names)) for shard in range(shards)]
    time, members, *answers = await send_to_each(store, calls, patience)
    queues = [QueueFigures(name=name) for name in names]
    for answer in answers:
        for queue, found in zip(queues, [] if isinstance(answer, StoreError) else answer, strict=False):
            queue.waiting += max(0, found.waiting)
            queue.running += found.claimed
            if found.first:
                since = int(found.first.partition("-")[0])
                queue.oldest = since if queue.oldest is None else min(queue.oldest, since)
    if not isinstance(time, StoreError) and not isinstance(members, StoreError):
        serving = [worker for worker in live_workers(members, clock_of(time)) if not worker.draining]
        for queue in queues:
            queue.workers = sum(queue.name in worker.queues for worker in serving)
    return queues


async def partitions_claimed_by(
    store: Store, keys: NamespaceKeys, partitions: Sequence[tuple[str, int]], worker: str
) -> tuple[list[tuple[str, int]], bool]:
    """Those (queue, number) in which this worker has claims, and whether all servers have answered. Raises
    `StoreError`."""
    streams = [keys.queue(*partition).stream for partition in partitions]
    calls = [(stream, Call.plain("XINFO", "CONSUMERS", stream, WORKERS)) for stream in streams]
    answers = await send_to_each(store, calls, PATIENCE)
    claimed = [
        partition
        for partition, answer in zip(partitions, answers, strict=True)
        if not isinstance(answer, StoreError)  # it is not there
        and any(facts[b"name"] == worker.encode() and facts[b"pending"] for facts in _rows(answer))
    ]
    return claimed, not any(isinstance(answer, StoreUnavailable) for answer in answers)


def clock_of(time: Any) -> int:
    """What TIME answers, in ms."""
    return int(time[0]) * 1000 + int(time[1]) // 1000


def _rows(answer: Any) -> list[dict[bytes, Any]]:
    """What XINFO answers: names and values in turn."""
    return [dict(zip(row[::2], row[1::2], strict=True)) for row in cast("list[list[Any]]", answer)]
