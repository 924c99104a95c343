"""What waits and runs in each queue, and how many workers serve it, read from the server.

Owns: the reads, and what their answers mean. Must not: change anything.
Called by: the status, a daemon's metrics, workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import msgspec

from streamflow.errors import StoreError
from streamflow.model.sharding import QUEUE_PARTITIONS
from streamflow.store.connection import Call, Store
from streamflow.store.kernel import WORKERS
from streamflow.store.keys import NamespaceKeys, QueueKeys
from streamflow.store.servers import send_to_each
from streamflow.store.workers import live_workers

OLDEST = 32
"""Entries that are read at once to learn their age: each may be large."""


class QueueFigures(msgspec.Struct, kw_only=True):
    name: str
    waiting: int = 0
    """Attempts that no worker has claimed."""
    running: int = 0
    """Attempts that workers have."""
    workers: int = 0
    """Workers that live and take attempts."""
    oldest: int | None = None
    """When the oldest that waits was put in, by the server's clock (ms); None: none waits, or it wasn't asked."""


async def read_queues(
    store: Store, keys: NamespaceKeys, names: Sequence[str], patience: float, *, oldest: bool = False
) -> list[QueueFigures]:
    """In the order of the names. A queue that can't be read counts as empty. Raises `StoreError`."""
    partitions = [keys.queue(name, number) for name in names for number in range(QUEUE_PARTITIONS)]
    if not partitions:
        return []
    calls: list[tuple[str, Call[Any]]] = [
        (keys.workers, Call.plain("TIME", near=keys.workers)),
        (keys.workers, Call.plain("HGETALL", keys.workers)),
    ]
    for stream in (partition.stream for partition in partitions):
        calls.append((stream, Call.plain("XLEN", stream)))
        calls.append((stream, Call.plain("XINFO", "CONSUMERS", stream, WORKERS)))
    time, members, *answers = await send_to_each(store, calls, patience)
    queues = [QueueFigures(name=name) for name in names]
    waiting: list[tuple[QueueFigures, QueueKeys]] = []
    for position, (entries, consumers) in enumerate(zip(answers[::2], answers[1::2], strict=True)):
        queue = queues[position // QUEUE_PARTITIONS]
        running = 0
        for facts in [] if isinstance(consumers, StoreError) else _rows(consumers):
            running += facts[b"pending"]
        queue.running += running
        if not isinstance(entries, StoreError) and entries > running:
            queue.waiting += entries - running
            waiting.append((queue, partitions[position]))
    if not isinstance(time, StoreError) and not isinstance(members, StoreError):
        serving = [worker for worker in live_workers(members, clock_of(time)) if not worker.draining]
        for queue in queues:
            queue.workers = sum(queue.name in worker.queues for worker in serving)
    if oldest:
        await _read_oldest(store, waiting, patience)
    return queues


async def partitions_claimed_by(
    store: Store, keys: NamespaceKeys, partitions: Sequence[tuple[str, int]], worker: str
) -> list[tuple[str, int]]:
    """Those (queue, number) in which this worker has claims. Raises `StoreError`."""
    calls = [Call.plain("XINFO", "CONSUMERS", keys.queue(*partition).stream, WORKERS) for partition in partitions]
    answers = await store.send(calls)
    return [
        partition
        for partition, answer in zip(partitions, answers, strict=True)
        if not isinstance(answer, StoreError)  # it is not there any more
        and any(facts[b"name"] == worker.encode() and facts[b"pending"] for facts in _rows(answer))
    ]


async def _read_oldest(store: Store, waiting: Sequence[tuple[QueueFigures, QueueKeys]], patience: float) -> None:
    """The first entry of a partition that was never delivered: those before it are claimed, or were."""
    for first in range(0, len(waiting), OLDEST):
        chunk = waiting[first : first + OLDEST]
        streams = [keys.stream for _, keys in chunk]
        groups = await send_to_each(store, [(one, Call.plain("XINFO", "GROUPS", one)) for one in streams], patience)
        calls = [
            (one, Call.plain("XRANGE", one, _behind(answer), "+", "COUNT", 1))
            for one, answer in zip(streams, groups, strict=True)
        ]
        for (queue, _), entries in zip(chunk, await send_to_each(store, calls, patience), strict=True):
            if not isinstance(entries, StoreError) and entries:
                since = int(entries[0][0].partition(b"-")[0])
                queue.oldest = since if queue.oldest is None else min(queue.oldest, since)


def _behind(groups: list[list[Any]] | StoreError) -> str:
    """Where the entries begin that no worker has read; all of them if no worker was ever there."""
    for facts in [] if isinstance(groups, StoreError) else _rows(groups):
        if facts[b"name"] == WORKERS.encode():
            return f"({facts[b'last-delivered-id'].decode()}"
    return "-"


def clock_of(time: Any) -> int:
    """What TIME answers, in ms."""
    return int(time[0]) * 1000 + int(time[1]) // 1000


def _rows(answer: Any) -> list[dict[bytes, Any]]:
    """What XINFO answers: names and values in turn."""
    return [dict(zip(row[::2], row[1::2], strict=True)) for row in cast("list[list[Any]]", answer)]
