"""Workload enqueue: how fast runs are started, through the client and through `enqueue --file`.

Owns: the file. Must not: print. Called by: the command.

A daemon runs and reduces what is started at the same time, as in production.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import anyio

from streamflow.client.client import NewRun, encode_input
from streamflow.embedded.daemon_process import own_environ

from .flows import park
from .report import Figure, Report
from .rig import Deployment, Options, Rig, deployment

RUNS = 50_000
CHUNK = 4000
PARALLEL_CHUNKS = 3
"""As in `enqueue --file`: while one chunk is sent, the next one is encoded."""


async def bench_enqueue(rig: Rig, options: Options, report: Report) -> None:
    runs = options.scaled(RUNS)
    by_client: list[float] = []
    by_file: list[float] = []
    by_process: list[float] = []
    async with deployment(rig, options.shards, options.daemons) as system:
        await _by_client(system, runs // 10, "warm")
        for number in range(options.repeat):
            by_client.append(runs / await _by_client(system, runs, f"client{number}"))
            rate, wall = await _by_file(system, runs, number)
            by_file.append(rate)
            by_process.append(runs / wall)
    what = f"{runs:,} runs, a daemon reduces them at the same time"
    report.add(Figure("enqueue.client", statistics.median(by_client), "runs/s", f"start_payloads: {what}"))
    report.add(Figure("enqueue.file", statistics.median(by_file), "runs/s", "enqueue --file", at_least=10_000))
    report.add(Figure("enqueue.process", statistics.median(by_process), "runs/s", "the same with the process's start"))


async def _by_client(system: Deployment, runs: int, prefix: str) -> float:
    began = time.perf_counter()
    chunks = iter(range(0, runs, CHUNK))

    async def load() -> None:
        for first in chunks:
            new = [
                NewRun(park.name, encode_input(number), f"{prefix}-{number}")
                for number in range(first, min(first + CHUNK, runs))
            ]
            for run in await system.client.start_payloads(new):
                if isinstance(run, Exception):
                    raise run

    async with anyio.create_task_group() as group:
        for _ in range(PARALLEL_CHUNKS):
            group.start_soon(load)
    seconds = time.perf_counter() - began
    await system.reduced()
    return seconds


async def _by_file(system: Deployment, runs: int, number: int) -> tuple[float, float]:
    """Runs per second according to the command, and its total time in seconds."""
    file = system.rig.folder / f"runs-{number}.jsonl"
    await anyio.to_thread.run_sync(_write, file, runs, number)
    command = [sys.executable, "-m", "streamflow", "enqueue", park.name, "--file", str(file), "--json"]
    command += ["--redis", system.rig.url, "--namespace", system.namespace]
    began = time.perf_counter()
    done = await anyio.run_process(command, env=own_environ())
    wall = time.perf_counter() - began
    output = json.loads(done.stdout)
    assert output["created"] == runs, f"{output['created']} of {runs} runs were created"
    await system.reduced()
    return float(output["runs_per_s"]), wall


def _write(file: Path, runs: int, number: int) -> None:
    with file.open("w") as lines:
        for at in range(runs):
            lines.write(json.dumps({"id": f"file{number}-{at}", "input": at}) + "\n")
