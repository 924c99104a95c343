"""The ceiling: a bare loop that writes what the runs of a workload write, without workflow code.

Owns: learning the sizes from real records, and the loop. Must not: use anything of streamflow's to send.
Called by: chain, fanout.

One process, one connection, redis-py with its C packer and parser, pipelines as large as the daemon's. For each run, in
the order in which its daemon writes: the start (record, inbox, listing), then for each transition the header and the
transition, its share of a log entry and of the owner's hash; agenda, listings, acknowledgement and notification where
the run's life has them. All as plain commands: no script, no reading of inboxes, no reducing, no waiting for steps.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
from redis import Redis

from .rig import Deployment

PIPELINE = 1000
"""Runs in one pipeline: `RUNS` of the daemon's owner loop."""
SAMPLE = 100

Command = tuple[Any, ...]


@dataclass
class Shape:
    """What a run's record looks like: its header's size, and the size of each of its transitions."""

    header: int
    transitions: list[int]
    runs_per_commit: float
    input: int
    shards: int


async def shape_of(deployment: Deployment, run_ids: list[str], commits: int, transitions: int) -> Shape:
    """From the records of some ended runs. `commits` and `transitions`: how many there were while they ran."""
    namespace = await deployment.client.read_namespace()
    records: list[list[bytes]] = []
    for run_id in run_ids[:: max(len(run_ids) // SAMPLE, 1)]:
        keys = deployment.client.keys.shard(namespace.shard_of(run_id))
        records.append(await deployment.rig.redis.lrange(keys.run(run_id), 0, -1))
    # The record in the middle stands for all: a fan-out's transitions fall as the batches happened to fall.
    records.sort(key=lambda record: (len(record), sum(map(len, record))))
    middle = records[len(records) // 2]
    return Shape(
        len(middle[0]), [len(one) for one in middle[2:]], max(transitions / max(commits, 1), 1.0), 12, deployment.shards
    )


async def ceiling(url: str, shape: Shape, runs: int) -> float:
    """Seconds for so many runs."""
    return await anyio.to_thread.run_sync(_loop, url, shape, runs)


def _loop(url: str, shape: Shape, runs: int) -> float:
    namespace = f"bench-{secrets.token_hex(4)}"
    with Redis.from_url(url) as redis:
        for shard in range(shape.shards):
            redis.xgroup_create(f"sf:{{{namespace}.{shard}}}:inbox", "session", "0", mkstream=True)
        places = [_Place(namespace, number, shape.shards) for number in range(runs)]
        began = time.perf_counter()
        for first in range(0, runs, PIPELINE):
            _send(redis, (command for place in places[first : first + PIPELINE] for command in _start(place, shape)))
        for number in range(len(shape.transitions)):
            for first in range(0, runs, PIPELINE):
                # A shard's runs follow one another, as they do in its commits.
                going = sorted(places[first : first + PIPELINE], key=lambda place: place.shard)
                _send(redis, _commits(going, shape, number))
        seconds = time.perf_counter() - began
        for key in redis.scan_iter(match=f"sf:{{{namespace}.*}}:*", count=5000):
            redis.unlink(key)
    return seconds


class _Place:
    """Where a run's keys are."""

    __slots__ = ("id", "message", "prefix", "run", "shard")

    def __init__(self, namespace: str, number: int, shards: int) -> None:
        self.id = f"{number:032x}"
        self.shard = number % shards
        self.prefix = f"sf:{{{namespace}.{self.shard}}}:"
        self.run = f"{self.prefix}run:{self.id}"
        self.message = f"1-{number + 1}"


def _start(place: _Place, shape: Shape) -> Iterator[Command]:
    header = b"h" * shape.header
    yield ("RPUSH", place.run, header, b"")
    yield (
        *("XADD", f"{place.prefix}inbox", place.message, "kind", "start", "run", place.id),
        *("body", b"b" * shape.input, "header", header),
    )
    yield ("ZADD", f"{place.prefix}index:running:chain", 1_700_000_000_000, place.id)


def _commits(places: list[_Place], shape: Shape, number: int) -> Iterator[Command]:
    """One transition of each run; the log and the owner are written once a commit."""
    first, last = number == 0, number == len(shape.transitions) - 1
    header = b"h" * shape.header
    transition = b"t" * shape.transitions[number]
    size = max(math.floor(shape.runs_per_commit), 1)
    entry: list[Any] = []
    for at, place in enumerate(places):
        prefix = place.prefix
        yield ("LSET", place.run, 0, header)
        yield ("RPUSH", place.run, transition)
        if first:
            yield ("XACK", f"{prefix}inbox", "session", place.message)
            yield ("XDEL", f"{prefix}inbox", place.message)
            yield ("ZADD", f"{prefix}agenda", -1, place.id)
        if last:
            yield ("ZREM", f"{prefix}agenda", place.id)
            yield ("ZREM", f"{prefix}index:running:chain", place.id)
            yield ("ZADD", f"{prefix}index:completed:chain", 1_700_000_000_000, place.id)
        entry += (place.id, transition)
        if at + 1 == len(places) or places[at + 1].shard != place.shard or len(entry) >= 2 * size:
            yield ("XADD", f"{prefix}log", "*", *entry)
            yield (
                *("HSET", f"{prefix}owner", "commit", "aaaaaaaaaaaaaaaa.123456", "clock", 1_700_000_000_000),
                *("committed", 1_700_000_000_000, "log", "1700000000000-0"),
            )
            if last:
                yield ("SPUBLISH", f"{prefix}done", b"".join(map(_bytes, entry)))
            entry = []


def _bytes(part: str | bytes) -> bytes:
    return part.encode() if isinstance(part, str) else part


def _send(redis: Redis, commands: Iterator[Command]) -> None:
    pipeline = redis.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)
    pipeline.execute()
