"""The kinds of hostile surroundings, and how each is done.

Owns: the table, and the faults' order of events with the proof that each took place. Must not: measure. Called by:
`surroundings_command.py`, tests.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# redis-py types its clients and their commands only in part.

from __future__ import annotations

import asyncio
import time
from typing import Any

from redis.asyncio import Redis

import streamflow as sf

from .faults import Backup, port_of
from .poisons import child, keeps_bytes, parks, starts_children
from .surroundings import Surrounding, World

HOUR = 3600
THIN = 200_000
"""Bytes a second."""
LOST = 0.3
"""Seconds of writes that are lost."""
PARENTS = 100
FAT_RUNS, FAT_STEPS, FAT_BYTES = 2, 40, 1_900_000
"""Runs of 76 MB."""
PARKED = 200
"""Runs that wait, so that those of 76 MB are evicted from the bench's small caches."""


async def tell(url: str, *words: Any) -> Any:
    async with Redis.from_url(url) as redis:
        return await redis.execute_command(*words)


# --- clocks -----------------------------------------------------------------------------------------------------------


async def _jump(world: World, seconds: int) -> str:
    assert world.clock is not None
    world.clock.shift(seconds)
    found, _ = await tell(world.server.url, "TIME")
    off = int(found) - time.time()
    await asyncio.sleep(world.plan.seconds)
    world.clock.shift(0)
    return f"the server's clock was {off:+.0f} s off" if abs(off - seconds) < 5 else ""


async def jump_ahead(world: World) -> str:
    return await _jump(world, HOUR)


async def jump_back(world: World) -> str:
    return await _jump(world, -HOUR)


# --- the server -------------------------------------------------------------------------------------------------------


async def fill_memory(world: World) -> str:
    url = world.server.url
    await tell(url, "CONFIG", "SET", "maxmemory", "1mb")
    refusal = ""
    try:
        await tell(url, "SET", "more", "x")
    except Exception as error:
        refusal = str(error)
    await asyncio.sleep(world.plan.seconds)
    await tell(url, "CONFIG", "SET", "maxmemory", "0")
    return f"it said: {refusal}" if "memory" in refusal else ""


async def attach_replica(world: World) -> None:
    assert world.replica is not None
    await tell(world.replica.url, "REPLICAOF", "127.0.0.1", port_of(world.server.url))
    async with Redis.from_url(world.server.url, single_connection_client=True) as redis:
        await redis.set("mark", "x")
        assert await redis.wait(1, 20_000) == 1


async def demote(world: World) -> str:
    """The line leads to the replica from now on; what is connected stays connected to the former primary."""
    assert world.replica is not None
    assert world.line is not None
    former, new = world.server.url, world.replica.url
    world.line.target = port_of(new)
    await tell(new, "REPLICAOF", "NO", "ONE")
    await tell(former, "REPLICAOF", "127.0.0.1", port_of(new))
    role = (await tell(former, "ROLE"))[0]
    return f"the former primary is a {role.decode()}" if role == b"slave" else ""


async def flush(world: World) -> str:
    before = int(await tell(world.server.url, "DBSIZE"))
    await tell(world.server.url, "FLUSHALL")
    return f"{before} keys were deleted" if before else ""


async def restart_empty(world: World) -> str:
    before = int(await tell(world.server.url, "DBSIZE"))
    await world.server.restart()
    return f"{before} keys were lost" if before else ""


async def lose_suffix(world: World) -> str:
    backup = Backup(world.server)
    await asyncio.sleep(LOST)
    lost = await backup.restore()
    return f"{lost:,} bytes of the append-only file were lost" if lost > 0 else ""


# --- the line ---------------------------------------------------------------------------------------------------------


async def thin_line(world: World) -> str:
    """With a result of 1 MB on it, in both directions."""
    assert world.line is not None
    line, began, before = world.line, time.monotonic(), sum(world.line.moved)
    line.rate = THIN
    run = await world.client.start(keeps_bytes, 1, 1_000_000, False)
    await run.result()
    await asyncio.sleep(world.plan.seconds)
    took, moved = time.monotonic() - began, sum(line.moved) - before
    line.rate = 0
    rate = moved / took
    return f"{moved / 1e6:.1f} MB in {took:.1f} s" if rate < 2.2 * THIN else ""


# --- other tenants ----------------------------------------------------------------------------------------------------


async def burst(world: World) -> str:
    """Over when all of them have ended."""
    count = world.scaled(100_000)
    async with sf.connect(world.url, namespace=world.system.namespace) as client:
        for first in range(0, count, 5000):
            numbers = range(first, min(first + 5000, count))
            await client.start_many(child, [(number,) for number in numbers], tenant="greedy")
        for status in ("pending", "running", "pending", "running"):  # one may begin between two looks
            while await client.runs(tenant="greedy", status=status, limit=1):  # noqa: ASYNC110
                await asyncio.sleep(0.5)
    return f"{count:,} starts of one tenant"


async def build_histories(world: World) -> list[sf.Run[int]]:
    client, steps = world.client, max(1, world.scaled(FAT_STEPS))
    runs = await client.start_many(keeps_bytes, [(steps, FAT_BYTES, True)] * FAT_RUNS)
    for run in runs:
        while (await run.describe()).version <= steps:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    await client.start_many(parks, [()] * PARKED)
    return runs


async def replay_histories(world: World) -> str:
    runs: list[sf.Run[int]] = world.prepared
    before = await _network_bytes(world.server.url)
    for run in runs:
        await run.signal("go")
    total = sum([await run.result() for run in runs])
    read = await _network_bytes(world.server.url) - before
    return f"{len(runs)} runs of {total / len(runs) / 1e6:.0f} MB; the server has sent {read / 1e6:.0f} MB"


async def _network_bytes(url: str) -> int:
    async with Redis.from_url(url) as redis:
        return int((await redis.info("stats"))["total_net_output_bytes"])


async def many_children(world: World) -> str:
    each = world.scaled(2000)
    async with sf.connect(world.url, namespace=world.system.namespace) as client:
        runs = await client.start_many(starts_children, [(each,)] * PARENTS)
        results = await asyncio.gather(*(run.result() for run in runs))
    return f"{PARENTS} parents with {each} children each" if results == [each] * PARENTS else ""


KINDS: tuple[Surrounding, ...] = (
    Surrounding(
        "clock-ahead", "the server's clock is an hour ahead, and right again", jump_ahead, timers=1.0, clock=True
    ),
    Surrounding(
        "clock-back", "the server's clock is an hour behind, and right again", jump_back, timers=1.0, clock=True
    ),
    Surrounding("memory", "the server is full", fill_memory, refuses=True),
    Surrounding(
        "demotion",
        "a replica is promoted; connections to the former primary stay",
        demote,
        attach_replica,
        loses=True,
        replica=True,
    ),
    Surrounding("flushall", "FLUSHALL", flush, loses=True),
    Surrounding("restart-empty", "the server restarts without its data", restart_empty, loses=True),
    Surrounding(
        "lost-suffix", "the server is killed, and has lost its last 300 ms", lose_suffix, loses=True, memory=False
    ),
    Surrounding("thin-line", "a line of 200 KB/s with a result of 1 MB on it", thin_line, rate=10.0, line=True),
    Surrounding("burst", "100,000 starts of one tenant", burst),
    Surrounding("histories", "two runs with histories of 76 MB are replayed", replay_histories, build_histories),
    Surrounding("children", "100 parents with 2,000 children each, at once", many_children),
)

BY_NAME = {kind.name: kind for kind in KINDS}
