"""Workload burst: one tenant starts very many runs at once. How late is another tenant's run, and what does it cost?

Owns: the burst and the samples beside it. Must not: print. Called by: the command.

Each sample is one five-step run at a time, from `start` to the result, as in `idle`. The burst is accepted before the
first sample, so the client does nothing else meanwhile; the samples end when a twentieth of the burst is left.
"""

from __future__ import annotations

import time

import anyio

from .flows import chain
from .report import Figure, Report
from .rig import Deployment, Options, Rig, deployment, resident_bytes

RUNS = 60_000
CHUNK = 5000
STEPS = 5
SAMPLES = 200
PAUSE = 0.02
MB = 1024 * 1024


async def bench_burst(rig: Rig, options: Options, report: Report) -> None:
    runs = options.scaled(RUNS)
    async with deployment(rig, options.shards, options.daemons) as system:
        await anyio.sleep(2.0)
        idle = sorted([await _sample(system) for _ in range(SAMPLES)])
        before = resident_bytes(system.daemons[0].pid)
        began = time.perf_counter()
        for first in range(0, runs, CHUNK):
            await system.client.start_many(chain, [(STEPS,)] * min(CHUNK, runs - first), tenant="burst")
        report.progress(f"burst: {runs:,} runs accepted in {time.perf_counter() - began:.1f} s")
        times: list[float] = []
        peak = before
        left = runs
        while left > runs // 20 or not times:
            for _ in range(20):
                times.append(await _sample(system))
                await anyio.sleep(PAUSE)
            peak = max(peak, resident_bytes(system.daemons[0].pid))
            left = await system.total("XLEN", "inbox") + await system.total("ZCARD", "waiting")
        rate = STEPS * (runs - left) / (time.perf_counter() - began)
    times.sort()
    alone, beside = idle[len(idle) // 2], times[len(times) // 2]
    what = f"{len(times)} five-step runs of another tenant, one at a time, during {runs:,} of one"
    report.add(Figure("burst.alone", alone, "ms", "p50 of such runs before the burst"))
    report.add(Figure("burst.p50", beside, "ms", what))
    report.add(Figure("burst.p99", times[int(len(times) * 0.99)], "ms", "the same"))
    report.add(Figure("burst.ratio", beside / alone, "", "p50 during the burst / alone", at_most=3.0))
    report.add(Figure("burst.rate", rate, "steps/s", "of the burst, its acceptance included"))
    report.add(Figure("burst.memory", (peak - before) / MB, "MB", "by which the daemon grew", at_most=64.0))


async def _sample(system: Deployment) -> float:
    """Ms from start to result."""
    began = time.perf_counter()
    run = await system.client.start(chain, STEPS, tenant="other")
    await run.result()
    return 1000 * (time.perf_counter() - began)
