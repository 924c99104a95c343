"""Workload parked: the memory of a run that waits for a signal, on the server and in the daemon.

Owns: starting the runs. Must not: print. Called by: the command.
"""

from __future__ import annotations

import anyio

from .flows import park
from .report import Figure, Report
from .rig import Deployment, Options, Rig, deployment, resident_bytes

RUNS = 100_000
CHUNK = 5000
PARTS = 5
MB = 1024 * 1024


async def bench_parked(rig: Rig, options: Options, report: Report) -> None:
    runs = options.scaled(RUNS)
    part = max(runs // PARTS, 1)
    async with deployment(rig, options.shards, options.daemons) as system:
        await anyio.sleep(2.0)
        empty = await rig.used_memory()
        resident: list[int] = []
        for number in range(PARTS):
            # Parts of equal size: runs that are being started need memory too, and equally much in each part.
            await _fill(system, part)
            resident.append(resident_bytes(system.daemons[0].pid))
            report.progress(f"parked: {part * (number + 1):,} of {runs:,}, daemon {resident[-1] / MB:.1f} MB")
        early, late = resident[0], resident[-1]
        full = await rig.used_memory()
    report.add(
        Figure(
            "parked.bytes", (full - empty) / (part * PARTS), "bytes/run", f"{runs:,} runs on the server", at_most=900
        )
    )
    report.add(Figure("parked.rss_early", early / MB, "MB", f"of a daemon, {part:,} parked runs"))
    growth = late / early if early else 0.0
    what = f"of a daemon, {runs:,} parked runs"
    report.add(Figure("parked.rss_late", late / MB, "MB", what))
    report.add(Figure("parked.rss_growth", growth, "", "late / early: it does not grow", at_most=1.1))


async def _fill(system: Deployment, runs: int) -> None:
    """Start runs, and wait until each of them waits for its signal and the views count it."""
    for first in range(0, runs, CHUNK):
        await system.client.start_many(park, [(number,) for number in range(min(CHUNK, runs - first))])
    await system.reduced()
    await anyio.sleep(3.0)  # for the checkpoints of the views, and for memory that is freed
