"""Workloads chain, fanout and shards: durable steps per second, and their ratio to the ceiling.

Owns: the bursts. Must not: print. Called by: the command.

A burst is the whole way: the client starts N runs at once, the daemon runs them, the client gets every result.
"""

from __future__ import annotations

import asyncio
import statistics
from dataclasses import dataclass

import anyio

from .ceiling import Shape, ceiling, shape_of
from .flows import chain, fanout
from .report import Figure, Report
from .rig import Deployment, Options, Rig, Spent, Stopwatch, deployment

CHAIN_STEPS = 5
CHAIN_RUNS = 5000
FANOUT_STEPS = 100
FANOUT_RUNS = 250
SIZED_RUNS = 2000
"""So few that the server doesn't rewrite its append-only file meanwhile."""
SETTLE_SECONDS = 3.0
"""For checkpoints of the views."""


@dataclass
class Burst:
    steps: int
    spent: Spent

    @property
    def rate(self) -> float:
        return self.steps / self.spent.wall

    def micros(self, seconds: float) -> float:
        return seconds / self.steps * 1e6


async def bench_chain(rig: Rig, options: Options, report: Report) -> None:
    runs = options.scaled(CHAIN_RUNS)
    rate = await _with_ceiling("chain", rig, options, report, runs, CHAIN_STEPS)
    report.remember("chain", rate)
    await _sizes(rig, options, report, min(runs, SIZED_RUNS))


async def _sizes(rig: Rig, options: Options, report: Report, runs: int) -> None:
    """What a run that has ended keeps, and what it writes: figures of the worksheet in docs/operations.md."""
    async with deployment(rig, options.shards, options.daemons) as system:
        await burst_of_runs(
            system, "chain", runs, CHAIN_STEPS
        )  # lists that are as long for any number of runs are full
        await anyio.sleep(SETTLE_SECONDS)
        before = (await rig.used_memory(), await system.log_bytes(), await rig.appended())
        await burst_of_runs(system, "chain", runs, CHAIN_STEPS)
        await anyio.sleep(SETTLE_SECONDS)
        after = (await rig.used_memory(), await system.log_bytes(), await rig.appended())
    memory, log, appended = (new - old for new, old in zip(after, before, strict=True))
    what = f"of an ended run of {CHAIN_STEPS} steps, small payloads"
    report.add(Figure("chain.memory", (memory - log) / runs, "bytes/run", f"{what}; its entries in the log are apart"))
    report.add(Figure("chain.log", log / runs, "bytes/run", "of the logs, if runs come in bursts"))
    if appended > 0:  # there is an append-only file, and it wasn't rewritten meanwhile
        report.add(Figure("chain.aof", appended / runs, "bytes/run", "appended to the server's file"))


async def bench_fanout(rig: Rig, options: Options, report: Report) -> None:
    runs = options.scaled(FANOUT_RUNS)
    await _with_ceiling("fanout", rig, options, report, runs, FANOUT_STEPS)


async def bench_shards(rig: Rig, options: Options, report: Report) -> None:
    """The same chains with one shard and with many. Bursts alternate, so that a slow moment hits both."""
    runs = options.scaled(CHAIN_RUNS)
    many_rates: list[float] = []
    one_rates: list[float] = []
    async with (
        deployment(rig, 1, options.daemons) as single,
        deployment(rig, options.shards, options.daemons) as sharded,
    ):
        for bursts in range(options.repeat + 1):
            for system, rates in ((single, one_rates), (sharded, many_rates)):
                burst, _ = await burst_of_runs(system, "chain", runs if bursts else runs // 4, CHAIN_STEPS)
                if bursts:  # the first burst warms up
                    rates.append(burst.rate)
    rate_one, rate_many = statistics.median(one_rates), statistics.median(many_rates)
    report.add(Figure("shards.one", rate_one, "steps/s", "1 shard"))
    report.add(Figure("shards.many", rate_many, "steps/s", f"{options.shards} shards"))
    report.add(Figure("shards.ratio", rate_many / rate_one, "", "many / one", at_least=0.75))


async def _with_ceiling(name: str, rig: Rig, options: Options, report: Report, runs: int, width: int) -> float:
    bursts: list[Burst] = []
    ceilings: list[float] = []
    async with deployment(rig, options.shards, options.daemons) as system:
        _, shape = await burst_of_runs(system, name, max(runs // 4, 1), width)
        before = await rig.commands()
        for _ in range(options.repeat):
            report.progress(f"{name}: {runs:,} runs of {width} steps")
            burst, shape = await burst_of_runs(system, name, runs, width)
            bursts.append(burst)
            if len(rig.servers) == 1:
                ceilings.append(burst.steps / await ceiling(rig.url, shape, runs))
        shares = [after - old for after, old in zip(await rig.commands(), before, strict=True)]
    middle = sorted(bursts, key=lambda burst: burst.rate)[len(bursts) // 2]
    rate = statistics.median(burst.rate for burst in bursts)
    spread = f"{min(b.rate for b in bursts):,.0f} to {max(b.rate for b in bursts):,.0f}"
    floor = report.recalled("chain") if name == "fanout" else 12_000
    report.add(Figure(f"{name}.rate", rate, "steps/s", f"{runs:,} runs × {width}, {spread}", at_least=floor))
    commits = f"{len(shape.transitions)} transitions a run, {shape.runs_per_commit:.1f} runs a commit"
    if ceilings:
        top = statistics.median(ceilings)
        report.add(Figure(f"{name}.ceiling", top, "steps/s", commits))
        report.add(Figure(f"{name}.ratio", rate / top, "", "rate / ceiling", at_least=0.5 if name == "chain" else None))
    else:
        busiest = max(shares) * len(shares) / sum(shares)
        what = f"commands of the busiest of {len(shares)} masters / fair share; {commits}"
        report.add(Figure(f"{name}.busiest", busiest, "", what, at_most=1.3))
    report.add(Figure(f"{name}.daemon_cpu", middle.micros(middle.spent.daemon), "µs/step", "all daemons"))
    report.add(Figure(f"{name}.server_cpu", middle.micros(middle.spent.server), "µs/step", "all threads"))
    report.add(Figure(f"{name}.client_cpu", middle.micros(middle.spent.client), "µs/step", "starts and results"))
    cpu = statistics.median(one.micros(one.spent.daemon + one.spent.server + one.spent.client) for one in bursts)
    report.add(Figure(f"{name}.cpu", cpu, "µs/step", "all processes"))
    return rate


async def burst_of_runs(system: Deployment, name: str, runs: int, width: int) -> tuple[Burst, Shape]:
    workflow = {"chain": chain, "fanout": fanout}[name]
    logged = await system.total("XLEN", "log")
    watch = await Stopwatch.start(system)
    started = await system.client.start_many(workflow, [(width,)] * runs)
    results = await asyncio.gather(*(run.result() for run in started))
    spent = await watch.stop()
    expected = width if name == "chain" else sum(range(1, width + 1))
    assert set(results) == {expected}, f"{name} gave {set(results)}, not {expected}"
    commits = await system.total("XLEN", "log") - logged
    ids = [run.id for run in started]
    headers = await asyncio.gather(*(run.describe() for run in started[:: max(runs // 100, 1)]))
    transitions = statistics.mean(header.version for header in headers) * runs
    return Burst(runs * width, spent), await shape_of(system, ids, commits, round(transitions))
