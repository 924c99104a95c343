"""Workload signals: how many signals per second a single run receives, each exactly once.

Owns: the load and its check. Must not: print. Called by: the command.

A hot run is in one shard, with one owner and one record, so its work is not distributed: it is fast only because many
messages are reduced in one transition. The time is measured from the first call until the run has counted all.
"""

from __future__ import annotations

import asyncio
import statistics

import anyio

from .flows import tally
from .report import Figure, Report
from .rig import Deployment, Options, Rig, Spent, Stopwatch, deployment

SIGNALS = 50_000
CALLS = 4000
"""Concurrent calls of one client."""
POLL_SECONDS = 0.02


async def bench_signals(rig: Rig, options: Options, report: Report) -> None:
    signals = options.scaled(SIGNALS)
    rates: list[float] = []
    spents: list[Spent] = []
    transitions = 0
    async with deployment(rig, options.shards, options.daemons) as system:
        await burst_of_signals(system, max(signals // 10, 1))
        for _ in range(options.repeat):
            report.progress(f"signals: {signals:,} into one run")
            spent, transitions = await burst_of_signals(system, signals)
            rates.append(signals / spent.wall)
            spents.append(spent)
    middle = spents[rates.index(statistics.median_low(rates))]
    spread = f"{signals:,} into one run, {min(rates):,.0f} to {max(rates):,.0f}"
    report.add(Figure("signals.rate", statistics.median(rates), "signals/s", spread, at_least=10_000))
    report.add(Figure("signals.fold", signals / transitions, "", "signals a transition"))
    for name, seconds in (("daemon", middle.daemon), ("server", middle.server), ("client", middle.client)):
        report.add(Figure(f"signals.{name}_cpu", seconds / signals * 1e6, "µs/signal"))


async def burst_of_signals(system: Deployment, signals: int) -> tuple[Spent, int]:
    """Send the numbers 1 to `signals`, and wait until the run has counted them. Also gives the transitions."""
    run = await system.client.start(tally)
    await system.reduced()
    before = (await run.describe()).version
    watch = await Stopwatch.start(system)
    numbers = iter(range(1, signals + 1))

    async def send() -> None:
        for number in numbers:
            await run.signal("add", number)

    await asyncio.gather(*(send() for _ in range(CALLS)))
    while (await run.read("count", int, 0)) < signals:  # noqa: ASYNC110 (another process's doing sets no event)
        await anyio.sleep(POLL_SECONDS)
    spent = await watch.stop()
    transitions = (await run.describe()).version - before
    await run.signal("end")
    counted = await run.result(timeout=30)
    expected = {"count": signals, "total": signals * (signals + 1) // 2}
    assert counted == expected, f"{signals} signals were sent: {counted}"
    return spent, transitions
