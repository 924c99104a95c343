"""Hostile surroundings: what faults of the server, its clock, its line and its other tenants do to innocent runs.

Owns: the load, what is measured before, during and after each surrounding, and what counts as lost, said and normal.
Must not: do the faults (`surrounding_kinds.py`), or print. Called by: `surroundings_command.py`, tests.

Each surrounding has a server, two daemons and a load of its own. After a calm stretch the fault is done, which takes as
long as it takes; its window ends `after` seconds behind its end. Besides the innocent runs with their five steps, runs
that sleep for a second show whether timers keep their time. At the end the server is asked what became of every run
whose start it had acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

import streamflow as sf
from streamflow.daemon.rollup import rebuild_views
from streamflow.embedded.server import EmbeddedServer
from streamflow.errors import NamespaceMissing, RunNotFound, StreamflowError
from streamflow.model.record import decode_header
from streamflow.store.connection import Call
from streamflow.store.kernel import Kernel

from .faults import Line, ShiftedClock, line_to
from .isolation import APP, SHARDS, Journal, Supervisor, quantile
from .poisons import innocent, naps, right_result
from .rig import Deployment, deployment, rig

NAP = 1.0
"""Seconds that the runs sleep which show whether timers keep their time."""
NAPS = 4.0
"""Of these so many are started in a second."""
WARM = 2.0
"""The first seconds of a daemon are not calm."""
SLICE = 1.0
"""Seconds of a slice: the smallest stretch that is called slow or normal."""
NOISE = 0.05
"""Seconds: a slice is never called slow for less, because other work of the machine does as much."""
NORMAL_WITHIN = 5.0
"""Seconds after the end of the fault in which all has to be normal again."""
BEFORE = 1.0
"""Runs that were due so many seconds before the fault count, too: it may reach them."""
REST = 8.0
"""Seconds in which views have to come to rest."""
CHUNK = 500


@dataclass
class Plan:
    """The options. `rate`: innocent runs a second. `calm`: seconds before the fault. `seconds`: how long a fault lasts
    that can be of any length; `limit`: the longest that one may take which ends by itself. `after`: seconds that are
    measured behind its end; `patience`: seconds that open runs have then. `scale`: of the largest faults, which are
    100,000 starts, 100 × 2,000 children and 2 × 76 MB."""

    surroundings: Sequence[Surrounding]
    rate: float = 40.0
    calm: float = 4.0
    seconds: float = 3.0
    limit: float = 400.0
    after: float = 7.0
    patience: float = 15.0
    scale: float = 1.0


@dataclass
class World:
    """What a fault may touch. `url`: where daemons and clients connect."""

    plan: Plan
    folder: Path
    server: EmbeddedServer
    url: str
    system: Deployment
    line: Line | None = None
    replica: EmbeddedServer | None = None
    clock: ShiftedClock | None = None
    prepared: Any = None
    """What `prepare` has left for `strike`."""

    @property
    def client(self) -> sf.Client:
        return self.system.client

    def scaled(self, number: int) -> int:
        return max(1, round(number * self.plan.scale))


@dataclass(frozen=True)
class Surrounding:
    """`strike` does the fault, and returns when it is over, with a proof that it took place (empty: it did not).

    `loses`: the server loses what it had acknowledged, and `refuses`: it may refuse starts, both by its own promise.
    `timers`: the goal for them, seconds. `line`, `replica`, `clock`, `memory`: what it needs.
    """

    name: str
    what: str
    strike: Callable[[World], Awaitable[str]]
    prepare: Callable[[World], Awaitable[Any]] | None = None
    loses: bool = False
    refuses: bool = False
    timers: float | None = None
    rate: float | None = None
    """Innocent runs a second, if fewer than usual: what the line can carry."""
    line: bool = False
    replica: bool = False
    clock: bool = False
    memory: bool = True
    """Without an append-only file."""

    @property
    def is_possible(self) -> bool:
        return not self.clock or ShiftedClock.is_possible()


# --- innocent runs ----------------------------------------------------------------------------------------------------


@dataclass
class Sample:
    """One run of the load. `due`: when it had to start (monotonic s). `latency`: until its result, None while open."""

    run_id: str
    due: float
    latency: float | None = None
    acknowledged: bool = False
    refused: str = ""
    """Why its start raised, or the wait for it in a namespace that was gone."""
    told: bool = False
    """Its client learned that it is gone."""
    problem: str = ""


class Load:
    """Starts runs at a steady rate, and follows each. `start` starts one, `check` says what is wrong with a result."""

    def __init__(
        self, prefix: str, rate: float, start: Callable[[int, str], Awaitable[sf.Run[Any]]], right: Callable[[int], Any]
    ) -> None:
        self._prefix = prefix
        self._pause = 1.0 / rate
        self._start = start
        self._right = right
        self.samples: list[Sample] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        due = time.monotonic()
        for number in itertools.count():
            due += self._pause
            await asyncio.sleep(max(due - time.monotonic(), 0.0))
            sample = Sample(f"{self._prefix}-{number}", due)
            self.samples.append(sample)
            task = asyncio.create_task(self._follow(number, sample))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _follow(self, number: int, sample: Sample) -> None:
        try:
            run = await self._start(number, sample.run_id)
        except StreamflowError as error:
            sample.refused = f"{type(error).__name__}: {error}"
        else:
            sample.acknowledged = True
            try:
                result = await run.result()
                if result != self._right(number):
                    sample.problem = f"gave {result}, not {self._right(number)}"
            except RunNotFound:
                sample.told = True
            except NamespaceMissing as error:  # its data were deleted a moment ago, and the run began after that
                sample.refused = f"{type(error).__name__}: {error}"
            except StreamflowError as error:
                sample.problem = f"{type(error).__name__}: {error}"
        sample.latency = time.monotonic() - sample.due

    def between(self, begin: float, end: float) -> list[Sample]:
        return [sample for sample in self.samples if begin <= sample.due < end]

    async def settled(self, samples: Sequence[Sample], patience: float) -> None:
        until = time.monotonic() + patience
        while any(sample.latency is None for sample in samples) and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _loads(client: sf.Client, rate: float) -> tuple[Load, Load]:
    return (
        Load("innocent", rate, lambda number, run_id: client.start(innocent, number, id=run_id), right_result),
        Load("nap", NAPS, lambda _, run_id: client.start(naps, NAP, id=run_id), lambda _: None),
    )


# --- one surrounding --------------------------------------------------------------------------------------------------


@dataclass
class Trial:
    """What was measured of one surrounding. Seconds."""

    kind: Surrounding
    undisturbed: float = 0.0
    """p99 of the calm stretch."""
    proof: str = ""
    lasted: float = 0.0
    runs: int = 0
    """Those of the load that were due in the window, those that sleep included."""
    right: int = 0
    """Those of them that completed with the right result."""
    refused: int = 0
    refusal: str = ""
    latencies: list[float] = field(default_factory=list[float])
    """Of innocent runs that completed."""
    problems: list[str] = field(default_factory=list[str])
    """Of runs that failed, did not end, had a wrong result, or that got an error which nothing explains."""
    lost: list[str] = field(default_factory=list[str])
    """Runs whose start was acknowledged, and that the server doesn't have."""
    unsaid: list[str] = field(default_factory=list[str])
    """Those of them that no log names, and whose client didn't learn it."""
    set_back: int = 0
    """Runs that a log says were set back."""
    early: float = 0.0
    late: float = 0.0
    """The earliest and the latest end of a run that sleeps, against its time."""
    again: int = 0
    """Steps that ran more than once."""
    ends: int = 0
    """Ends of daemons that nobody had asked for."""
    views: str = ""
    """What a recount of the views has changed."""
    normal_after: float = 0.0
    """Seconds from the end of the fault until the last slow slice has ended."""

    @property
    def worst(self) -> float:
        return max(self.latencies, default=0.0)

    def quantile(self, share: float) -> float:
        return quantile(self.latencies, share)

    def faults(self) -> list[str]:
        """Which goals were missed, in words for the table."""
        kind = self.kind
        timers = max(-self.early, self.late) > kind.timers if kind.timers is not None else -self.early > NOISE
        checks = [
            (not self.proof, "the fault"),
            (bool(self.problems), f"{len(self.problems)} runs"),
            (bool(self.refused) and not (kind.refuses or kind.loses), f"{self.refused} refused"),
            (bool(self.lost) and not kind.loses, f"{len(self.lost)} lost"),
            (bool(self.unsaid), f"{len(self.unsaid)} unsaid"),
            (timers, "timers"),
            (self.again > 0 and not kind.loses, "twice"),
            (bool(self.views), "views"),
            (self.ends > 0, "daemon ended"),
            (self.normal_after > NORMAL_WITHIN, "normal"),
        ]
        return [text for missed, text in checks if missed]


@contextlib.asynccontextmanager
async def world_of(kind: Surrounding, plan: Plan, folder: Path) -> AsyncGenerator[tuple[World, Journal]]:
    """A server with two daemons, and what the surrounding needs besides."""
    quick = ("--repl-diskless-sync-delay", "0")
    async with contextlib.AsyncExitStack() as stack:
        data = None if kind.memory else folder / "data"
        server = EmbeddedServer(data, memory=kind.memory, appendfsync="everysec", extra=quick)
        clock = ShiftedClock(folder) if kind.clock else None
        stack.push_async_callback(server.stop)
        await (server.start() if clock is None else clock.start(server))
        replica = await stack.enter_async_context(EmbeddedServer(memory=True, extra=quick)) if kind.replica else None
        line = await stack.enter_async_context(line_to(server.url)) if kind.line or kind.replica else None
        url = line.url if line is not None else server.url
        journal = Journal(folder / "journal")
        settings = {"bench_journal": journal.path, "cache": 64}
        place = await stack.enter_async_context(rig(url))
        system = await stack.enter_async_context(deployment(place, SHARDS, 2, APP, settings, keep=True))
        yield World(plan, folder, server, url, system, line, replica, clock), journal


async def measure(kind: Surrounding, plan: Plan, folder: Path) -> Trial:
    """Do one fault beside the load, and measure it."""
    trial = Trial(kind)
    async with world_of(kind, plan, folder) as (world, journal):
        supervisor = Supervisor(world.system)
        for daemon in world.system.daemons:
            supervisor.watch(daemon, world.system.add_daemon)
        if kind.prepare is not None:
            world.prepared = await kind.prepare(world)
        loads = _loads(world.client, min(plan.rate, kind.rate or plan.rate))
        tasks = [asyncio.create_task(load.run()) for load in loads]
        watching = asyncio.create_task(supervisor.run())
        try:
            await asyncio.sleep(WARM)
            calm_from = time.monotonic()
            await asyncio.sleep(plan.calm)
            journal.repeated()
            struck = time.monotonic()
            with contextlib.suppress(TimeoutError):
                trial.proof = await asyncio.wait_for(kind.strike(world), plan.limit)
            over = time.monotonic()
            await asyncio.sleep(plan.after)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            finished = time.monotonic()
            window = [load.between(struck - BEFORE, finished) for load in loads]
            for load, samples in zip(loads, window, strict=True):
                await load.settled(samples, plan.patience)
            trial.lasted = over - struck
            calm = [sample.latency for sample in loads[0].between(calm_from, struck - BEFORE)]
            trial.undisturbed = quantile([latency for latency in calm if latency is not None], 0.99)
            await _judge(trial, world, *window)
            trial.normal_after = _normal_after(loads[0].between(over, finished), over, trial.undisturbed)
            trial.again = len(journal.repeated())
            trial.ends = len(supervisor.ends)
            trial.views = await _recount(world)
        finally:
            for task in (*tasks, watching):
                task.cancel()
            await asyncio.gather(*tasks, watching, return_exceptions=True)
            for load in loads:
                await load.close()
    return trial


async def _judge(trial: Trial, world: World, innocents: Sequence[Sample], nappers: Sequence[Sample]) -> None:
    """Compare what the clients have seen with what the server has."""
    samples = [*innocents, *nappers]
    text = "\n".join(daemon.log.read_text(errors="replace") for daemon in set(world.system.daemons))
    gone = {run_id for line in re.findall("runs that are gone: (.*)", text) for run_id in line.split(", ")}
    trial.set_back = len(re.findall(r"\(from transition \d+ to \d+\)", text))
    statuses = await _statuses(world.client, [sample.run_id for sample in samples])
    trial.runs = len(samples)
    trial.right = sum(_has_completed(sample) and statuses[sample.run_id] == "completed" for sample in samples)
    for sample in samples:
        status = statuses[sample.run_id]
        if sample.refused:
            trial.refused += 1
            trial.refusal = trial.refusal or sample.refused
        elif sample.acknowledged and status is None:
            trial.lost.append(sample.run_id)
            if not (sample.told or sample.run_id in gone):
                trial.unsaid.append(sample.run_id)
        elif sample.problem:
            trial.problems.append(f"{sample.run_id} {sample.problem}")
        elif sample.told or status != "completed" or sample.latency is None:
            seen = "its client got RunNotFound" if sample.told else "its client waits"
            trial.problems.append(f"{sample.run_id} is {status}, {seen if status == 'completed' else 'not completed'}")
    completed = [sample for sample in innocents if _has_completed(sample)]
    trial.latencies = [sample.latency for sample in completed if sample.latency is not None]
    slept = [sample.latency - NAP for sample in nappers if _has_completed(sample) and sample.latency is not None]
    trial.early, trial.late = min(slept, default=0.0), max(slept, default=0.0)


def _has_completed(sample: Sample) -> bool:
    return sample.latency is not None and sample.acknowledged and not (sample.told or sample.refused or sample.problem)


async def _statuses(client: sf.Client, ids: Sequence[str]) -> dict[str, str | None]:
    """What the server has: None for a run that it doesn't have."""
    namespace = await client.read_namespace()
    found: dict[str, str | None] = {}
    for first in range(0, len(ids), CHUNK):
        chunk = ids[first : first + CHUNK]
        keys = [client.keys.shard(namespace.shard_of(run_id)).run(run_id) for run_id in chunk]
        for run_id, line in zip(
            chunk, await client.store.send([Call.plain("LINDEX", key, 0) for key in keys]), strict=True
        ):
            found[run_id] = decode_header(line).status if isinstance(line, bytes) else None
    return found


def _normal_after(samples: Sequence[Sample], over: float, undisturbed: float) -> float:
    """A slice is slow if more than one in twenty of the runs that were due in it took longer than 1.5 × the undisturbed
    p99, or were refused."""
    slices: defaultdict[int, list[float]] = defaultdict(list)
    for sample in samples:
        slow = sample.latency is None or sample.refused
        slices[int((sample.due - over) / SLICE)].append(1e9 if slow else sample.latency or 0.0)
    limit = max(1.5 * undisturbed, undisturbed + NOISE)
    slow_ones = [number for number, latencies in slices.items() if quantile(latencies, 0.95) > limit]
    return (max(slow_ones) + 1) * SLICE if slow_ones else 0.0


async def _recount(world: World) -> str:
    """Whether the views, once at rest, are what a recount of the logs gives; in words what isn't."""
    until = time.monotonic() + REST
    while True:
        before = await _counts(world.client)
        await rebuild_views(world.client.store, Kernel(world.client.keys), SHARDS, 0)
        after = await _counts(world.client)
        wrong = [
            f"{name} was {before.get(name)}, is {after[name]}" for name in after if before.get(name) != after[name]
        ]
        if not wrong or time.monotonic() > until:
            return ", ".join(wrong)
        await asyncio.sleep(1.0)


async def _counts(client: sf.Client) -> dict[str, int]:
    """Of the stored views: how many runs are in each status, and how many steps have ended."""
    names = ("runs", "step_durations")
    values: list[dict[str, Any]] = [
        msgspec.json.decode(data)["value"] if isinstance(data, bytes) else {}
        for data in await client.store.send([Call.plain("GET", client.keys.view(name)) for name in names])
    ]
    runs, steps = values
    return {**runs.get("status", {}), **{f"step {name}": row["count"] for name, row in steps.items()}}


# --- all of them ------------------------------------------------------------------------------------------------------


async def bench_surroundings(plan: Plan, folder: Path, progress: Callable[[str], None]) -> list[Trial]:
    """Measure all surroundings of the plan that this machine can do, each with a server of its own."""
    trials: list[Trial] = []
    for kind in plan.surroundings:
        if not kind.is_possible:
            progress(f"{kind.name}: left out, it needs gcc")
            continue
        own = folder / kind.name
        own.mkdir()
        trial = await measure(kind, plan, own)
        trials.append(trial)
        missed = ", ".join(trial.faults())
        progress(
            f"{kind.name}: {trial.lasted:.1f} s, worst {1000 * trial.worst:.0f} ms, lost {len(trial.lost)}, normal "
            f"after {trial.normal_after:.0f} s, {'missed: ' + missed if missed else 'met'}; {trial.proof}"
        )
    return trials
