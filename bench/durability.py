"""Workload durability: what each level of a namespace's durability costs, in turns on one machine.

Owns: the servers, the samples and the bursts. Must not: print. Called by: the command.

Each level has a server and a daemon of its own, all of them up at the same time: their samples alternate, so that a
slow moment hits all. With `replicas:1` the replica is on the same machine: what the network adds is not in it. With
`--cluster` each level has a cluster of three masters, and with `replicas:1` a replica of each.
"""

# pyright: reportUnknownMemberType=false
# redis-py types its clients and their commands only in part.

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import anyio
from redis.asyncio import Redis

from streamflow.embedded.cluster import EmbeddedCluster
from streamflow.embedded.server import EmbeddedServer

from .flows import chain
from .report import Figure, Report
from .rig import Deployment, Options, Rig, Spent, Stopwatch, cpu_seconds, deployment, rig

STEPS = 5
SAMPLES = 300
WARM_UP = 20
RUNS = 2000
LEVELS = {"server": "everysec", "disk": "always", "replicas:1": "everysec"}
"""With `appendfsync` of each server."""


@dataclass
class _Level:
    name: str
    system: Deployment
    replicas: list[int]
    """Their processes."""
    starts: list[float] = field(default_factory=list[float])
    """Ms from the call until the start is acknowledged..."""
    runs: list[float] = field(default_factory=list[float])
    """...and until the run's result is there."""
    bursts: list[tuple[Spent, float]] = field(default_factory=list[tuple[Spent, float]])
    """With the CPU seconds of the replicas."""

    async def sample(self, *, counts: bool) -> None:
        began = time.perf_counter()
        run = await self.system.client.start(chain, STEPS)
        started = time.perf_counter()
        await run.result()
        if counts:
            self.starts.append(1000 * (started - began))
            self.runs.append(1000 * (time.perf_counter() - began))

    async def burst(self, runs: int) -> None:
        watch = await Stopwatch.start(self.system)
        before = self._replicas_cpu()
        started = await self.system.client.start_many(chain, [(STEPS,)] * runs)
        await asyncio.gather(*(run.result() for run in started))
        self.bursts.append((await watch.stop(), self._replicas_cpu() - before))

    def _replicas_cpu(self) -> float:
        return sum(map(cpu_seconds, self.replicas))


async def bench_durability(_: Rig, options: Options, report: Report) -> None:
    samples, runs = options.scaled(SAMPLES), options.scaled(RUNS)
    async with contextlib.AsyncExitStack() as stack:
        levels = [await stack.enter_async_context(_level(name, options)) for name in LEVELS]
        report.progress(f"durability: {samples:,} runs of {STEPS} steps of each level, one at a time")
        for number in range(WARM_UP + samples):
            for level in levels:
                await level.sample(counts=number >= WARM_UP)
        for repeat in range(options.repeat + 1):
            report.progress(f"durability: {runs:,} runs of {STEPS} steps of each level at once")
            for level in levels:
                await level.burst(runs if repeat else max(runs // 4, 1))
                if not repeat:
                    level.bursts.clear()  # it warms up
    for level in levels:
        _report(level, runs * STEPS, report)


def _report(level: _Level, steps: int, report: Report) -> None:
    name = f"durability.{level.name}"
    what = f"appendfsync {LEVELS[level.name]}" + (", one replica each on this machine" if level.replicas else "")
    for figure, times, of in (("start", level.starts, what), ("run", level.runs, f"{STEPS} steps, start to result")):
        cuts = statistics.quantiles(times, n=100, method="inclusive")
        report.add(Figure(f"{name}.{figure}", cuts[49], "ms", f"{of}; p90 {cuts[89]:.2f}, p99 {cuts[98]:.2f}"))
    spent, replicas = sorted(level.bursts, key=lambda burst: burst[0].wall)[len(level.bursts) // 2]
    cpu = [spent.daemon, spent.server, spent.client, replicas]
    parts = ", ".join(
        f"{who} {seconds / steps * 1e6:.1f}"
        for who, seconds in zip(("daemon", "server", "client", "replicas"), cpu, strict=True)
        if seconds
    )
    report.add(Figure(f"{name}.rate", steps / spent.wall, "steps/s", f"{steps // STEPS:,} runs at once"))
    report.add(Figure(f"{name}.cpu", sum(cpu) / steps * 1e6, "µs/step", parts))


@contextlib.asynccontextmanager
async def _level(name: str, options: Options) -> AsyncGenerator[_Level]:
    async with contextlib.AsyncExitStack() as stack:
        has_replicas = name == "replicas:1"
        replicas: list[int] = []
        if options.cluster:
            made = EmbeddedCluster(replicas=int(has_replicas), appendfsync=LEVELS[name])
            cluster = await stack.enter_async_context(made)
            masters = await cluster.masters()
            replicas += (node.pid for node in cluster.nodes if node not in masters)
            url = cluster.url
        else:
            server = await stack.enter_async_context(EmbeddedServer(appendfsync=LEVELS[name]))
            url = server.url
            if has_replicas:
                host_and_port = ("127.0.0.1", url.rpartition(":")[2].partition("/")[0])
                replica = await stack.enter_async_context(EmbeddedServer(extra=("--replicaof", *host_and_port)))
                await _attached(server)
                replicas.append(replica.pid)
        own = await stack.enter_async_context(rig(url))
        system = await stack.enter_async_context(
            deployment(own, options.shards, options.daemons, settings={"durability": name})
        )
        yield _Level(name, system, replicas)


async def _attached(server: EmbeddedServer) -> None:
    """Wait until the replica has received everything."""
    async with Redis.from_url(server.url) as redis:
        with anyio.fail_after(30):
            await redis.set("attached", 1)
            while await redis.wait(1, 1000) < 1:  # pyright: ignore[reportGeneralTypeIssues]
                pass
            await redis.delete("attached")
