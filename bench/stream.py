"""Workload stream: how soon a chunk that a step emits is at a reader, and what ten thousand a second cost other runs.

Owns: the load, and what is compared. Must not: print. Called by: the command.

First one run emits a chunk every 20 ms, and nothing else happens. Then short runs are started at a steady pace, in
turns: alone, and beside one run that emits 10,000 chunks a second, which a reader in another process follows.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import time
from collections.abc import Sequence
from functools import partial
from itertools import chain as joined
from subprocess import DEVNULL

import anyio

from streamflow.interpreter import python_command

from .flows import chain, chatter
from .report import Figure, Report
from .rig import Deployment, Options, Rig, deployment

CHUNKS = 200
PAUSE = 0.02
RATE = 10_000
"""Chunks per second of the loud run."""
BURST_SECONDS = 0.01
TURN_SECONDS = 6.0
STARTS = 25
"""Runs per second whose latency is measured."""
STEPS = 3


async def bench_stream(rig: Rig, options: Options, report: Report) -> None:
    async with deployment(rig, options.shards, options.daemons) as system:
        await _short_runs(system, 1.0)
        latencies = await _latencies(system, options.scaled(CHUNKS))
        report.add(Figure("stream.latency", statistics.median(latencies), "ms", "emit to reader", at_most=50))
        report.add(Figure("stream.latency_p99", _p99(latencies), "ms", f"of {len(latencies)} chunks"))
        quiet, loud, rates = list[list[float]](), list[list[float]](), list[float]()
        for turn in range(options.repeat):
            report.progress(f"stream: turn {turn + 1} of {options.repeat}")
            quiet.append(await _short_runs(system, TURN_SECONDS))
            measured, rate = await _beside_a_loud_run(system, rig.url)
            loud.append(measured)
            rates.append(rate)
    alone, beside = [_p99(one) for one in quiet], [_p99(one) for one in loud]
    what = f"p99 of {STARTS} runs/s of {STEPS} steps, start to result"
    report.add(Figure("stream.rate", statistics.median(rates), "chunks/s", "of one run, stored, with a reader"))
    report.add(Figure("stream.alone", statistics.median(alone), "ms", f"{what}; {_spread(alone)}"))
    report.add(Figure("stream.beside", statistics.median(beside), "ms", f"beside that run; {_spread(beside)}"))
    all_alone, all_beside = [*joined(*quiet)], [*joined(*loud)]
    middle = statistics.median(all_beside) / statistics.median(all_alone)
    report.add(Figure("stream.others_p50", middle, "", "median beside / alone, of all turns"))
    ratio = _p99(all_beside) / _p99(all_alone)
    report.add(Figure("stream.others", ratio, "", "p99 beside / alone, of all turns", at_most=1.1))


async def _latencies(system: Deployment, chunks: int) -> list[float]:
    """Milliseconds from `emit` to the reader, one clock for both."""
    run = await system.client.start(chatter, 1, chunks, PAUSE)
    found = [(time.time() - chunk.value) * 1000 async for chunk in run.stream(float)]
    assert len(found) == chunks
    return found


async def _short_runs(system: Deployment, seconds: float) -> list[float]:
    """Start runs at a steady pace, and wait for each: ms from before the start until the result."""

    async def one(at: float) -> float:
        await asyncio.sleep(at - time.perf_counter())
        begun = time.perf_counter()
        run = await system.client.start(chain, STEPS)
        await run.result(timeout=30)
        return (time.perf_counter() - begun) * 1000

    begin = time.perf_counter()
    return await asyncio.gather(*(one(begin + n / STARTS) for n in range(round(seconds * STARTS))))


async def _beside_a_loud_run(system: Deployment, url: str) -> tuple[list[float], float]:
    """The same beside a run that emits, and how many of its chunks a second were stored."""
    bursts = round((TURN_SECONDS + 1) / BURST_SECONDS)
    run = await system.client.start(chatter, round(RATE * BURST_SECONDS), bursts, BURST_SECONDS)
    words = ("-m", "streamflow", "tail", "--stream", run.id, "--json", "--redis", url)
    namespace = system.client.namespace
    command = python_command(*words, "--namespace", namespace)
    with await anyio.to_thread.run_sync(partial(subprocess.Popen, command, stdout=DEVNULL, stderr=DEVNULL)) as reader:
        try:
            await asyncio.sleep(1.0)  # until the reader reads
            before, begin = await run.stream_facts(), time.perf_counter()
            measured = await _short_runs(system, TURN_SECONDS - 1)
            after, seconds = await run.stream_facts(), time.perf_counter() - begin
            await run.result(timeout=60)
        finally:
            reader.kill()
    assert before is not None
    assert after is not None
    return measured, (after.emitted - before.emitted) / seconds


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[max(0, round(len(values) * 0.99) - 1)]


def _spread(values: Sequence[float]) -> str:
    return f"{min(values):.1f} to {max(values):.1f}"
