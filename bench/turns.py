"""What daemons of this tree cost beside those of another one, in bursts that take turns.

Owns: the turns, and how sure their ratio is. Must not: print. Called by: `turns_command.py`.

Figures of two runs of a benchmark differ by more than what most changes make. Here two daemons of each tree wait on the
same server, and in each round each of the four has one burst, in random order: a slow moment, and what the others do
while they wait, hits both trees. The two daemons of one tree are compared in the same way, which says what the
measurement is worth. The client is that of this tree.
"""

from __future__ import annotations

import contextlib
import math
import random
import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .queue import CONCURRENCY, burst_of_queued
from .report import Figure, Report
from .rig import Deployment, Rig, Spent, Stopwatch, cpu_seconds, deployment
from .signals import burst_of_signals
from .throughput import burst_of_runs

MOST = 1.02
WARM_UP = 2
"""Bursts of each daemon before the first round."""
_MEDIAN = 0.93
"""The standard error of a median, times the square root of the number, in quartile distances of a normal
distribution."""


@dataclass(frozen=True)
class Load:
    """`units`: how many steps or signals a burst has."""

    burst: Callable[[Deployment], Awaitable[Spent]]
    unit: str
    units: int
    queue: str = ""


async def _chain(system: Deployment) -> Spent:
    return (await burst_of_runs(system, "chain", 3000, 5))[0].spent


async def _fanout(system: Deployment) -> Spent:
    return (await burst_of_runs(system, "fanout", 100, 100))[0].spent


async def _queue(system: Deployment) -> Spent:
    watch = await Stopwatch.start(system)
    await burst_of_queued(system, 2000)
    return await watch.stop()


async def _signals(system: Deployment) -> Spent:
    return (await burst_of_signals(system, 20_000))[0]


LOADS = {
    "chain": Load(_chain, "step", 15_000),
    "fanout": Load(_fanout, "step", 10_000),
    "queue": Load(_queue, "step", 10_000, queue="bench"),
    "signals": Load(_signals, "signal", 20_000),
}


@dataclass
class _Side:
    """One daemon. `spent`: CPU seconds of each burst, by process."""

    system: Deployment
    spent: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    async def burst(self, load: Load) -> None:
        before = self._workers()
        spent = await load.burst(self.system)
        self.note("daemon", spent.daemon)
        self.note("server", spent.server)
        if load.queue:
            self.note("worker", self._workers() - before)

    def note(self, process: str, seconds: float) -> None:
        self.spent.setdefault(process, []).append(seconds)

    def _workers(self) -> float:
        return sum(cpu_seconds(worker.pid) for worker in self.system.workers)


async def bench_turns(
    rig: Rig, other: Path, workloads: Sequence[str], rounds: int, shards: int, report: Report
) -> None:
    for name in workloads:
        load = LOADS[name]
        async with contextlib.AsyncExitStack() as stack:
            sides: list[_Side] = []
            for source in (None, other, None, other):
                system = await stack.enter_async_context(deployment(rig, shards, source=source))
                if load.queue:
                    system.add_worker(load.queue, CONCURRENCY)
                sides.append(_Side(system))
            report.progress(f"{name}: {rounds} rounds of four bursts")
            for _ in range(WARM_UP):
                for side in sides:
                    await side.burst(load)
            for side in sides:
                side.spent.clear()
            for _ in range(rounds):
                for side in random.sample(sides, len(sides)):
                    await side.burst(load)
            for process in sides[0].spent:
                report.add(_figure(name, load, process, [side.spent[process] for side in sides]))


def _figure(name: str, load: Load, process: str, spent: Sequence[Sequence[float]]) -> Figure:
    """`spent`: seconds of each burst of this tree, the other one, this one and the other one again."""
    ratio, error = ratio_of(_sums(spent[0], spent[2]), _sums(spent[1], spent[3]))
    same, _ = ratio_of(_sums(spent[0], spent[1]), _sums(spent[2], spent[3]))
    this, other = (
        statistics.median(_sums(spent[first], spent[first + 2])) / 2 / load.units * 1e6 for first in range(2)
    )
    measured = f"{ratio:.3f} ± {error * 100:.1f} %; {this:.1f} and {other:.1f} µs a {load.unit}"
    return Figure(
        f"{name}.{process}",
        ratio,
        "this / other",
        f"{measured}; the same trees compared: {same:.3f}",
        at_most=MOST if process != "server" else None,
    )


def _sums(*columns: Sequence[float]) -> list[float]:
    return [sum(row) for row in zip(*columns, strict=True)]


def ratio_of(these: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """The median of the ratios of the rounds, and its standard error; infinite for a single round."""
    ratios = [this / other for this, other in zip(these, others, strict=True)]
    if len(ratios) < 2:
        return statistics.median(ratios), math.inf
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return middle, _MEDIAN * (high - low) / math.sqrt(len(ratios))
