"""Workload payload: what large results cost the server, and how soon `forget` has freed it all.

Owns: the runs, and what is compared. Must not: print. Called by: the command.

Each result is in the run's record only; the log says that there was one, and how large it was. So the server's memory
grows by little more than the results, and forgetting the runs gives all of it back.
"""

from __future__ import annotations

import asyncio
import time

import anyio

from .flows import reports
from .report import Figure, Report
from .rig import Deployment, Options, Rig, Stopwatch, deployment

RUNS = 1000
STEPS = 5
SIZE = 50_000
"""Bytes of each result."""
CHUNK = 100
"""Runs at the same time."""
SETTLE_SECONDS = 3.0
"""For checkpoints of the views, and for memory that the server frees beside its work."""
FREED = 0.02
"""The part of the bytes of the results that may be left when all is freed: listings, and the server's own."""
LONGEST = 60.0
"""Seconds after which the wait for that is given up."""
POLL_SECONDS = 0.05
MB = 1024 * 1024


async def bench_payload(rig: Rig, options: Options, report: Report) -> None:
    runs = options.scaled(RUNS)
    results = runs * STEPS * SIZE
    async with deployment(rig, options.shards, options.daemons) as system:
        await _run(system, min(runs, CHUNK))
        await anyio.sleep(SETTLE_SECONDS)
        empty, logged = await rig.used_memory(), await system.log_bytes()
        report.progress(f"payload: {runs:,} runs of {STEPS} results of {SIZE:,} bytes, {results / MB:,.0f} MB")
        watch = await Stopwatch.start(system)
        ids: list[str] = []
        for first in range(0, runs, CHUNK):
            ids += await _run(system, min(CHUNK, runs - first))
        spent = await watch.stop()
        await anyio.sleep(SETTLE_SECONDS)
        full, log = await rig.used_memory(), await system.log_bytes() - logged
        began = time.perf_counter()
        for first in range(0, runs, CHUNK):
            await asyncio.gather(*(system.client.forget(run_id) for run_id in ids[first : first + CHUNK]))
        called = time.perf_counter()
        freed, left = await _until_freed(rig, empty + FREED * results)
    what = f"{runs:,} runs with {STEPS} results of {SIZE:,} bytes"
    ratio = (full - empty) / results
    report.add(Figure("payload.bytes", ratio, "", f"server memory / bytes of the results, {what}", at_most=1.1))
    report.add(Figure("payload.run", (full - empty) / runs, "bytes/run", f"results: {STEPS * SIZE:,}"))
    report.add(Figure("payload.log", log / runs, "bytes/run", "of the logs, included in it"))
    report.add(Figure("payload.rate", runs / spent.wall, "runs/s"))
    for name, seconds in (("daemon", spent.daemon), ("server", spent.server), ("client", spent.client)):
        report.add(Figure(f"payload.{name}_cpu", seconds / runs * 1e6, "µs/run"))
    report.add(Figure("payload.forget", called - began, "s", f"{runs:,} calls of `forget`"))
    rest = f"until the server has freed all but {(left - empty) / results:.1%} of it, after the last of them"
    report.add(Figure("payload.freed", freed - called, "s", rest, at_most=5.0))


async def _run(system: Deployment, runs: int) -> list[str]:
    """Start runs, and wait for their results; their ids."""
    started = await system.client.start_many(reports, [(STEPS, SIZE)] * runs)
    assert set(await asyncio.gather(*(run.result() for run in started))) == {STEPS * SIZE}
    return [run.id for run in started]


async def _until_freed(rig: Rig, most: float) -> tuple[float, int]:
    """When the server's memory was no more than that, or the time was over; and what it was then."""
    deadline = time.perf_counter() + LONGEST
    while True:
        used = await rig.used_memory()
        if used <= most or time.perf_counter() > deadline:
            return time.perf_counter(), used
        await anyio.sleep(POLL_SECONDS)
