"""Workload takeover: how long runs stand still when their daemon gets SIGKILL.

Owns: the kills. Must not: print. Called by: the command.

Two daemons share the shards, and runs tick on all of them. One daemon is killed. The time is measured until the first
run of its shards moves, and until all its shards have an owner and a run of them has moved. Then a new daemon starts,
for the next kill.
"""

from __future__ import annotations

import statistics
import time

import anyio

from streamflow.model.record import decode_header
from streamflow.store.connection import Call

from .flows import tick
from .report import Figure, Report
from .rig import POLL_SECONDS, Deployment, Options, Rig, deployment

RUNS = 256
PAUSE = 0.2
KILLS = 5


async def bench_takeover(rig: Rig, options: Options, report: Report) -> None:
    runs = options.runs or RUNS
    kills = 1 if options.quick else max(KILLS, options.repeat)
    first: list[float] = []
    whole: list[float] = []
    async with deployment(rig, options.shards, 2) as system:
        started = await system.client.start_many(tick, [(1_000_000, PAUSE)] * runs)
        for number in range(kills):
            await system.ready()
            await anyio.sleep(2.0)
            first_moved, all_owned = await _kill(system, [run.id for run in started])
            report.progress(f"takeover {number + 1} of {kills}: {all_owned:.2f} s")
            first.append(first_moved)
            whole.append(all_owned)
            system.add_daemon()
    what = f"median of {kills}, SIGKILL of one of two daemons, {options.shards} shards, {runs} runs"
    report.add(Figure("takeover.first", statistics.median(first), "s", "until a run of a lost shard moved"))
    report.add(Figure("takeover.all", statistics.median(whole), "s", what, at_most=3.0))
    report.add(Figure("takeover.worst", max(whole), "s", f"of {kills}", at_most=3.0))


async def _kill(system: Deployment, run_ids: list[str]) -> tuple[float, float]:
    victim = next(daemon for daemon in system.daemons if daemon.running)
    others = [daemon for daemon in system.daemons if daemon.running and daemon is not victim]
    namespace = await system.client.read_namespace()
    lost = {number for number, holder in enumerate(await system.holders()) if victim.is_member(holder)}
    halted = [run_id for run_id in run_ids if namespace.shard_of(run_id) in lost]
    killed = time.perf_counter()
    await victim.end(kill=True)
    before = await _versions(system, halted)
    first = 0.0
    with anyio.fail_after(60):
        while True:
            if not first and any(now > then for now, then in zip(await _versions(system, halted), before, strict=True)):
                first = time.perf_counter() - killed
            if first and system.owned_by(await system.holders(), others):
                return first, time.perf_counter() - killed
            await anyio.sleep(POLL_SECONDS)


async def _versions(system: Deployment, run_ids: list[str]) -> list[int]:
    namespace = await system.client.read_namespace()
    keys = system.client.keys
    calls = [Call.plain("LINDEX", keys.shard(namespace.shard_of(run_id)).run(run_id), 0) for run_id in run_ids]
    return [decode_header(answer).version for answer in await system.client.store.send(calls)]
