"""Workload idle: how long one run takes when nothing else happens, and the CPU of a daemon without work.

Owns: the samples. Must not: print. Called by: the command.
"""

from __future__ import annotations

import time

import anyio

from .flows import chain
from .report import Figure, Report
from .rig import Options, Rig, deployment, scheduled_seconds

SAMPLES = 500
WARM_UP = 50
CPU_SECONDS = 10.0


async def bench_idle(rig: Rig, options: Options, report: Report) -> None:
    samples = options.runs or (100 if options.quick else SAMPLES)
    async with deployment(rig, options.shards, options.daemons) as system:
        await anyio.sleep(2.0)  # the first seconds of a daemon are not idle
        fresh = await _cpu_share(system.daemons[0].pid)
        times: list[float] = []
        for number in range(WARM_UP + samples):
            began = time.perf_counter()
            run = await system.client.start(chain, 5)
            await run.result()
            if number >= WARM_UP:
                times.append(1000 * (time.perf_counter() - began))
        await anyio.sleep(2.0)
        after = await _cpu_share(system.daemons[0].pid)
    times.sort()
    what = f"{samples} chains of 5 steps, one at a time, start to result"
    report.add(Figure("idle.p50", times[len(times) // 2], "ms", what, at_most=4.0))
    report.add(Figure("idle.p90", times[int(len(times) * 0.9)], "ms"))
    report.add(Figure("idle.p99", times[int(len(times) * 0.99)], "ms", "", at_most=12.0))
    report.add(Figure("idle.cpu", fresh, "%", f"of a core, {options.shards} shards, no runs", at_most=0.4))
    report.add(Figure("idle.cpu_after", after, "%", "the same after the samples: views are still merged", at_most=2.0))


async def _cpu_share(pid: int) -> float:
    before, began = scheduled_seconds(pid), time.perf_counter()
    await anyio.sleep(CPU_SECONDS)
    return 100 * (scheduled_seconds(pid) - before) / (time.perf_counter() - began)
