"""The ceiling: a plain loop that writes what the runs of a workload write, without workflow code.

Owns: reading the sizes from real records, and the loop. Must not: use anything of streamflow's to send.
Called by: chain, fanout.

One process, one connection, redis-py with its C packer and parser, pipelines as large as the daemon's. For each run, in
the order in which its daemon writes: the start (record, inbox, listing), then for each transition the header and the
transition, its share of a log entry and of the owner's hash; agenda, listings, acknowledgement and notification when a
run starts or ends. All as plain commands: no script, no reading of inboxes, no reducing, no waiting for steps.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# redis-py types its clients and their commands only in part.

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import anyio.to_thread
from redis import Redis

from streamflow.store.connection import Call

from .rig import Deployment

PIPELINE = 1000
"""Runs in one pipeline: `RUNS` of the daemon's owner loop."""
SAMPLE = 100

Command = tuple[Any, ...]


@dataclass
class Shape:
    """The sizes of a run's record in bytes: its header, and each of its transitions."""

    header: int
    transitions: list[int]
    runs_per_commit: float
    input: int
    shards: int


async def shape_of(deployment: Deployment, run_ids: list[str], commits: int, transitions: int) -> Shape:
    """From the records of some ended runs. `commits` and `transitions`: the numbers of both while they ran."""
    namespace = await deployment.client.read_namespace()
    sample = run_ids[:: max(len(run_ids) // SAMPLE, 1)]
    keys = [deployment.client.keys.shard(namespace.shard_of(run_id)).run(run_id) for run_id in sample]
    calls = [Call.plain("LRANGE", key, 0, -1) for key in keys]
    records = cast("list[list[bytes]]", await deployment.client.store.send(calls))
    # The median record represents all: the transitions of a fan-out depend on how its outcomes were batched.
    records.sort(key=lambda record: (len(record), sum(map(len, record))))
    middle = records[len(records) // 2]
    return Shape(
        len(middle[0]),
        [len(transition) for transition in middle[2:]],
        max(transitions / max(commits, 1), 1.0),
        12,
        deployment.shards,
    )


async def ceiling(url: str, shape: Shape, runs: int) -> float:
    """Seconds for `runs` runs."""
    return await anyio.to_thread.run_sync(_loop, url, shape, runs)


def _loop(url: str, shape: Shape, runs: int) -> float:
    namespace = f"bench-{secrets.token_hex(4)}"
    with Redis.from_url(url) as redis:
        for shard in range(shape.shards):
            redis.xgroup_create(f"sf:{{{namespace}/{shard}}}:inbox", "session", "0", mkstream=True)
        all_runs = [_RunKeys(namespace, number, shape.shards) for number in range(runs)]
        began = time.perf_counter()
        for first in range(0, runs, PIPELINE):
            _send(redis, (command for run in all_runs[first : first + PIPELINE] for command in _start(run, shape)))
        for number in range(len(shape.transitions)):
            for first in range(0, runs, PIPELINE):
                # The runs of a shard are adjacent, as they are in its commits.
                batch = sorted(all_runs[first : first + PIPELINE], key=lambda run: run.shard)
                _send(redis, _commits(batch, shape, number))
        seconds = time.perf_counter() - began
        for key in redis.scan_iter(match=f"sf:{{{namespace}/*}}:*", count=5000):
            redis.unlink(key)
    return seconds


class _RunKeys:
    """One run of the loop, and its keys."""

    __slots__ = ("id", "message", "prefix", "record", "shard")

    def __init__(self, namespace: str, number: int, shards: int) -> None:
        self.id = f"{number:032x}"
        self.shard = number % shards
        self.prefix = f"sf:{{{namespace}/{self.shard}}}:"
        self.record = f"{self.prefix}run:{self.id}"
        self.message = f"1-{number + 1}"


def _start(run: _RunKeys, shape: Shape) -> Iterator[Command]:
    header = b"h" * shape.header
    yield ("RPUSH", run.record, header, b"")
    yield (
        *("XADD", f"{run.prefix}inbox", run.message, "kind", "start", "run", run.id),
        *("body", b"b" * shape.input, "header", header),
    )
    yield ("ZADD", f"{run.prefix}index:running:chain", 1_700_000_000_000, run.id)


def _commits(runs: list[_RunKeys], shape: Shape, number: int) -> Iterator[Command]:
    """One transition of each run; the log and the owner are written once for each commit."""
    first, last = number == 0, number == len(shape.transitions) - 1
    header = b"h" * shape.header
    transition = b"t" * shape.transitions[number]
    size = max(math.floor(shape.runs_per_commit), 1)
    entry: list[Any] = []
    for at, run in enumerate(runs):
        prefix = run.prefix
        yield ("LSET", run.record, 0, header)
        yield ("RPUSH", run.record, transition)
        if first:
            yield ("XACK", f"{prefix}inbox", "session", run.message)
            yield ("XDEL", f"{prefix}inbox", run.message)
            yield ("ZADD", f"{prefix}agenda", -1, run.id)
        if last:
            yield ("ZREM", f"{prefix}agenda", run.id)
            yield ("ZREM", f"{prefix}index:running:chain", run.id)
            yield ("ZADD", f"{prefix}index:completed:chain", 1_700_000_000_000, run.id)
        entry += (run.id, transition)
        if at + 1 == len(runs) or runs[at + 1].shard != run.shard or len(entry) >= 2 * size:
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
