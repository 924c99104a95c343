"""Workload queue: durable steps per second through a queue, a worker process and back.

Owns: the load. Must not: print. Called by: the command.

Each step is an entry in a partition that the commit adds, an outcome in the run's inbox, and a commit: two hops more
than a step that runs at the owner. So it is slower; the figure has no target.
"""

from __future__ import annotations

import asyncio
import statistics

from .flows import queued_chain
from .report import Figure, Report
from .rig import Deployment, Options, Rig, Spent, Stopwatch, cpu_seconds, deployment

RUNS = 2000
STEPS = 5
ALONE = 200
CONCURRENCY = 500


async def bench_queue(rig: Rig, options: Options, report: Report) -> None:
    runs = options.scaled(RUNS)
    bursts: list[tuple[Spent, float]] = []
    async with deployment(rig, options.shards, options.daemons) as system:
        worker = system.add_worker("bench", CONCURRENCY)
        await burst_of_queued(system, max(runs // 4, 1))  # the first burst also waits for the worker to start
        for _ in range(options.repeat):
            report.progress(f"queue: {runs:,} runs of {STEPS} steps")
            before = cpu_seconds(worker.pid)
            watch = await Stopwatch.start(system)
            await burst_of_queued(system, runs)
            spent = await watch.stop()
            bursts.append((spent, cpu_seconds(worker.pid) - before))
        alone: list[float] = []
        for _ in range(options.scaled(ALONE)):
            watch = await Stopwatch.start(system)
            await burst_of_queued(system, 1)
            alone.append((await watch.stop()).wall / STEPS * 1000)
    rates = [runs * STEPS / spent.wall for spent, _ in bursts]
    spread = f"{runs:,} runs × {STEPS}, {min(rates):,.0f} to {max(rates):,.0f}"
    report.add(Figure("queue.rate", statistics.median(rates), "steps/s", spread))
    report.add(Figure("queue.alone", statistics.median(alone), "ms/step", "one run at a time"))
    spent, working = bursts[-1]
    for name, seconds in (("worker", working), ("daemon", spent.daemon), ("server", spent.server)):
        report.add(Figure(f"queue.{name}_cpu", seconds / (runs * STEPS) * 1e6, "µs/step", "the last burst"))


async def burst_of_queued(system: Deployment, runs: int) -> None:
    started = await system.client.start_many(queued_chain, [(STEPS,)] * runs)
    results = set(await asyncio.gather(*(run.result(timeout=60) for run in started)))
    assert results == {STEPS}, f"queue gave {results}, not {STEPS}"
