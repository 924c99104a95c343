"""What waits and runs in each queue, and how many workers serve it, read from the server.

Owns: the reads, and what their answers mean. Must not: change anything. Called by: the status, a daemon's metrics.
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

QUIET_MS = 15_000
"""A worker reads from its queues, or extends its claims, every few seconds: one that was idle for longer is not
counted."""
OLDEST = 32
"""Entries that are read at once to learn their age: each may be large."""


class QueueFigures(msgspec.Struct, kw_only=True):
    name: str
    waiting: int = 0
    """Attempts that no worker has claimed."""
    running: int = 0
    """Attempts that workers have."""
    workers: int = 0
    oldest: int | None = None
    """When the oldest that waits was put in, by the server's clock (ms); None: none waits, or it wasn't asked."""


async def read_queues(
    store: Store, keys: NamespaceKeys, names: Sequence[str], patience: float, *, oldest: bool = False
) -> list[QueueFigures]:
    """In the order of the names. A queue that can't be read counts as empty. Raises `StoreError`."""
    partitions = [keys.queue(name, number) for name in names for number in range(QUEUE_PARTITIONS)]
    calls: list[Call[Any]] = []
    for partition in partitions:
        calls += (Call.plain("XLEN", partition.stream), Call.plain("XINFO", "CONSUMERS", partition.stream, WORKERS))
    answers = await store.send(calls, patience) if calls else []
    queues = [QueueFigures(name=name) for name in names]
    workers: list[set[object]] = [set() for _ in names]
    waiting: list[tuple[QueueFigures, QueueKeys]] = []
    for position, (entries, consumers) in enumerate(zip(answers[::2], answers[1::2], strict=True)):
        queue = queues[position // QUEUE_PARTITIONS]
        running = 0
        for facts in [] if isinstance(consumers, StoreError) else _rows(consumers):
            running += facts[b"pending"]
            if facts[b"idle"] <= QUIET_MS:
                workers[position // QUEUE_PARTITIONS].add(facts[b"name"])
        queue.running += running
        if not isinstance(entries, StoreError) and entries > running:
            queue.waiting += entries - running
            waiting.append((queue, partitions[position]))
    for queue, names_of_workers in zip(queues, workers, strict=True):
        queue.workers = len(names_of_workers)
    if oldest:
        await _read_oldest(store, waiting, patience)
    return queues


async def _read_oldest(store: Store, waiting: Sequence[tuple[QueueFigures, QueueKeys]], patience: float) -> None:
    """The first entry of a partition that was never delivered: those before it are claimed, or were."""
    for first in range(0, len(waiting), OLDEST):
        chunk = waiting[first : first + OLDEST]
        groups = await store.send([Call.plain("XINFO", "GROUPS", keys.stream) for _, keys in chunk], patience)
        calls = [
            Call.plain("XRANGE", keys.stream, _behind(answer), "+", "COUNT", 1)
            for (_, keys), answer in zip(chunk, groups, strict=True)
        ]
        for (queue, _), entries in zip(chunk, await store.send(calls, patience), strict=True):
            if not isinstance(entries, StoreError) and entries:
                since = int(entries[0][0].partition(b"-")[0])
                queue.oldest = since if queue.oldest is None else min(queue.oldest, since)


def _behind(groups: list[list[Any]] | StoreError) -> str:
    """Where the entries begin that no worker has read; all of them if no worker was ever there."""
    for facts in [] if isinstance(groups, StoreError) else _rows(groups):
        if facts[b"name"] == WORKERS.encode():
            return f"({facts[b'last-delivered-id'].decode()}"
    return "-"


def _rows(answer: Any) -> list[dict[bytes, Any]]:
    """What XINFO answers: names and values in turn."""
    return [dict(zip(row[::2], row[1::2], strict=True)) for row in cast("list[list[Any]]", answer)]
