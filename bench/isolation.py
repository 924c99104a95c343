"""Workload isolation: what each kind of poison does to innocent runs beside it.

Owns: the load, the supervisor of the daemons, and what is measured. Must not: print, or say what is right (`kinds.py`).
Called by: `isolation_command.py`, tests.

Two daemons, which are started again when they end, serve a steady load of innocent runs; each run starts at its time,
whether or not those before it have ended, and its latency counts from that time. After a calm stretch one poison is
started. Its window ends when the poison has ended, at the earliest after `seconds`, at the latest after `limit`: then
it is terminated. What is measured belongs to the innocent runs of the window.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import streamflow as sf
from streamflow.client.run import Run
from streamflow.embedded.daemon_process import DaemonProcess
from streamflow.errors import Failure, StreamflowError
from streamflow.events import RunStuck
from streamflow.process import RESTART
from streamflow.watch.watch import GIVES_UP

from .kinds import Harm, Kind
from .poisons import innocent, line_is_in, right_result
from .rig import Deployment, Rig, deployment

APP = f"{Path(__file__).with_name('poisons.py')}:app"
SHARDS = 64
SLICE = 0.5
"""Seconds of a slice: the smallest stretch that is called disturbed or normal."""
CALLERS = 32
"""Callers by whom the rate is found: each starts a run when its last one has ended. More of them would share commits,
and find a rate at which a steady load takes all of the processor."""
SHARE = 5
"""The load is one part in so many of what these callers get."""
UNTOUCHED = 0.3
"""Seconds before a poison in which innocent runs may be so late that it meets them: they count nowhere."""
ENDS_WITHIN = 3.0
"""Seconds that a terminated poison has to end."""
OPEN = ("pending", "running")


@dataclass
class Plan:
    """The options. `rate`: innocent runs a second, None: a fifth of what the machine can do. `seconds`, `limit`: the
    least and the greatest length of a poison's window. `calm`: seconds without poison before each. `patience`: seconds
    after the window that innocent runs have to end. `calibration`: seconds of it. `harm`: seconds that a poison takes
    which doesn't give way. `interrupt`: the setting of the daemons."""

    kinds: Sequence[Kind]
    rate: float | None = None
    seconds: float = 3.0
    limit: float = 20.0
    calm: float = 1.3
    patience: float = 6.0
    calibration: float = 3.0
    harm: float = 8.0
    interrupt: float = 5.0


# --- innocent runs ----------------------------------------------------------------------------------------------------


@dataclass
class Sample:
    """One innocent run. `due`: when it had to start (monotonic s). `latency`: until its result, None while open."""

    run_id: str
    value: int
    due: float
    latency: float | None = None
    problem: str = ""
    """Why it did not complete with the right result."""


class Load:
    """Starts innocent runs at a steady rate."""

    def __init__(self, client: sf.Client, rate: float) -> None:
        self._client = client
        self._pause = 1.0 / rate
        self.samples: list[Sample] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        due = time.monotonic()
        for value in itertools.count():
            due += self._pause
            await asyncio.sleep(max(due - time.monotonic(), 0.0))
            sample = Sample(f"innocent-{value}", value, due)
            self.samples.append(sample)
            task = asyncio.create_task(self._follow(sample))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _follow(self, sample: Sample) -> None:
        try:
            run = await self._client.start(innocent, sample.value, id=sample.run_id)
            result = await run.result()
            if result != right_result(sample.value):
                sample.problem = f"gave {result}, not {right_result(sample.value)}"
        except StreamflowError as error:
            sample.problem = f"{type(error).__name__}: {error}"
        sample.latency = time.monotonic() - sample.due

    def between(self, begin: float, end: float) -> list[Sample]:
        return [sample for sample in self.samples if begin <= sample.due < end]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Journal:
    """The file to which each execution of an innocent step adds a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        self._read = 0
        self._executed: defaultdict[str, list[int]] = defaultdict(list)

    def repeated(self) -> list[list[int]]:
        """The pids of all executions of each step that ran again since the last call."""
        with self.path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data.rpartition(b"\n")[0]
        self._read += len(whole) + 1 if whole else 0
        again: dict[str, list[int]] = {}
        for line in whole.decode().splitlines():
            key, _, pid = line.partition(" ")
            self._executed[key].append(int(pid))
            if len(self._executed[key]) > 1:
                again[key] = self._executed[key]
        return list(again.values())


# --- daemons ----------------------------------------------------------------------------------------------------------


@dataclass
class End:
    """The end of a process that nobody had asked for."""

    pid: int
    code: int
    gave_up: bool = False
    """On code that blocked its event loop and could not be interrupted: nothing that was under way there could report
    any more, as after a death. With the same code it may end because of threads that hang: then it drains before."""

    @property
    def clean(self) -> bool:
        return self.code in (0, RESTART) and not self.gave_up


class Supervisor:
    """Starts a new daemon or worker when one of its own has ended: what a service manager does."""

    def __init__(self, system: Deployment) -> None:
        self._system = system
        self._serving: list[tuple[DaemonProcess, int, Callable[[], DaemonProcess]]] = []
        """Each with the size of its log when it was started: workers share one."""
        self.ends: list[End] = []

    def watch(self, process: DaemonProcess, again: Callable[[], DaemonProcess]) -> None:
        self._serving.append((process, process.log.stat().st_size, again))

    async def run(self) -> None:
        while True:
            for position, (process, logged, again) in enumerate(self._serving):
                if not process.running:
                    self.ends.append(End(process.pid, process.process.returncode, has_given_up(process.log, logged)))
                    await process.end()  # its watchdog must not end a later process of the same pid
                    self._serving[position] = (again(), process.log.stat().st_size, again)
            await asyncio.sleep(0.1)


def has_given_up(log: Path, begin: int) -> bool:
    """Whether the last process that writes into this log, from that byte on, has given up."""
    with log.open("rb") as file:
        file.seek(begin)
        return GIVES_UP.encode() in file.read()


@dataclass
class Scene:
    """A deployment under load."""

    system: Deployment
    load: Load
    journal: Journal
    supervisor: Supervisor

    @property
    def place(self) -> tuple[str, str]:
        return self.system.rig.url, self.system.namespace


@contextlib.asynccontextmanager
async def scene(rig: Rig, rate: float, plan: Plan) -> AsyncGenerator[Scene]:
    """Two daemons and the load, until the end of the block."""
    journal = Journal(rig.folder / f"journal-{time.monotonic_ns()}")
    async with deployment(rig, SHARDS, 2, APP, _settings(journal, plan)) as system:
        supervisor = Supervisor(system)
        for daemon in system.daemons:
            supervisor.watch(daemon, system.add_daemon)
        load = Load(system.client, rate)
        tasks = [asyncio.create_task(load.run()), asyncio.create_task(supervisor.run())]
        try:
            yield Scene(system, load, journal, supervisor)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await load.close()


def _settings(journal: Journal, plan: Plan) -> dict[str, object]:
    return {
        "bench_journal": journal.path,
        "bench_harm": plan.harm,
        "interrupt": plan.interrupt,
        "interrupt_steps": plan.interrupt,
        "cache": 64,  # so small that runs which wait are replayed
        "worker_timeout": 1.0,
    }


async def capacity(rig: Rig, plan: Plan) -> float:
    """Innocent runs a second that `CALLERS` callers get."""
    journal = Journal(rig.folder / "journal-capacity")
    async with deployment(rig, SHARDS, 2, APP, _settings(journal, plan)) as system:
        await _call(system, 1.0)
        return await _call(system, plan.calibration) / plan.calibration


async def _call(system: Deployment, seconds: float) -> int:
    until = time.monotonic() + seconds
    ended = 0

    async def caller() -> None:
        nonlocal ended
        while time.monotonic() < until:
            await (await system.client.start(innocent, 1)).result()
            ended += 1

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return ended


# --- one poison -------------------------------------------------------------------------------------------------------


@dataclass
class Trial:
    """What was measured of one poison. Seconds."""

    kind: Kind
    interrupt: float
    innocents: int = 0
    latencies: list[float] = field(default_factory=list[float])
    problems: list[str] = field(default_factory=list[str])
    """Of innocent runs that failed, or did not end, or had a wrong result."""
    twice: int = 0
    """Innocent steps that ran again though nothing had happened to the process in which they had begun."""
    again: int = 0
    """Innocent steps that ran again because their process had died, or had given up on code that blocked it."""
    ends: list[End] = field(default_factory=list[End])
    """Of daemons and workers."""
    ended: str = ""
    """How the poison ended: completed, failed, stuck; open if it had to be terminated."""
    right: bool = False
    reason: str = ""
    named: bool = True
    """Whether the reason names a line of the poison, if it ended failed or stuck."""
    terminated: bool = True
    """Whether it could be terminated, if it had to be."""
    seconds: float = 0.0
    normal_after: float = 0.0
    """Seconds from the poison's start until the last slice in which innocent runs were slow."""
    disturbed: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])

    @property
    def p50(self) -> float:
        return quantile(self.latencies, 0.5)

    @property
    def p99(self) -> float:
        return quantile(self.latencies, 0.99)

    @property
    def worst(self) -> float:
        return max(self.latencies, default=0.0)

    def limit(self, undisturbed: float) -> float:
        return 1.5 * undisturbed if self.kind.harm is Harm.NONE else self.interrupt + 1.0

    def faults(self, undisturbed: float) -> list[str]:
        """Which goals were missed, in words for the table."""
        checks = [
            (bool(self.problems), f"{len(self.problems)} innocent"),
            (self.p99 > self.limit(undisturbed), "p99"),
            (self.twice > 0, "twice"),
            (not self.right, "its end"),
            (not self.named, "line"),
            (not self.terminated, "terminate"),
        ]
        return [text for missed, text in checks if missed]


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


async def measure(stage: Scene, kind: Kind, plan: Plan, calm: list[float]) -> Trial:
    """Run one poison, and measure it. Adds the latencies of the calm stretch before it to `calm`."""
    began = time.monotonic()
    await asyncio.sleep(plan.calm)
    if kind.queue is not None:
        await _start_worker(stage, kind.queue)
    poisoned = time.monotonic()
    earlier = len(stage.supervisor.ends)
    stage.journal.repeated()
    trial = Trial(kind, plan.interrupt)
    client = stage.system.client
    starts = kind.starts(stage.place)
    runs = [
        await client.start(workflow, *args, id=f"{kind.name}-{number}")
        for number, (workflow, args) in enumerate(starts)
    ]
    if kind.beside:
        await _compute(kind.beside)
    statuses = await _ends(runs, poisoned + kind.takes + plan.limit)
    trial.seconds = time.monotonic() - poisoned
    await asyncio.sleep(max(poisoned + plan.seconds - time.monotonic(), 0.0))
    for run, status in zip(runs, statuses, strict=True):
        if status in (*OPEN, "stuck"):
            with contextlib.suppress(StreamflowError):
                await run.terminate("the benchmark ends it")
    await _judge(trial, kind, runs, statuses)
    finished = time.monotonic()
    window = stage.load.between(poisoned, finished)
    patient_until = finished + (plan.patience if trial.ended != "open" else ENDS_WITHIN)
    while any(sample.latency is None for sample in window) and time.monotonic() < patient_until:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    await asyncio.sleep(SLICE)
    now = time.monotonic()
    trial.innocents = len(window)
    trial.latencies = [now - sample.due if sample.latency is None else sample.latency for sample in window]
    trial.problems = [await _problem(stage, sample) for sample in window if sample.problem or sample.latency is None]
    trial.ends = stage.supervisor.ends[earlier:]
    died = {end.pid for end in stage.supervisor.ends if not end.clean}
    for pids in stage.journal.repeated():
        if all(pid in died for pid in pids[:-1]):
            trial.again += 1
        else:
            trial.twice += 1
    undisturbed = stage.load.between(began, poisoned - UNTOUCHED)
    calm += [sample.latency for sample in undisturbed if sample.latency is not None]
    normal = 1.5 * quantile(calm, 0.99)
    trial.normal_after = _normal_after(stage.load.between(poisoned, now - SLICE / 2), poisoned, now, normal)
    return trial


async def _compute(seconds: float) -> None:
    """Processes that compute on all processors, for so long."""
    code = f"import time\nuntil = time.monotonic() + {seconds}\nwhile time.monotonic() < until: pass"
    processes = [await asyncio.create_subprocess_exec(sys.executable, "-c", code) for _ in range(os.cpu_count() or 1)]
    for process in processes:
        await process.wait()


async def _start_worker(stage: Scene, queue: str) -> None:
    def start() -> DaemonProcess:
        return stage.system.add_worker(queue, 4)

    stage.supervisor.watch(start(), start)
    await asyncio.sleep(1.0)


async def _ends(runs: Sequence[Run[object]], until: float) -> list[str]:
    """The status of each run when all have ended or are stuck, or at the time `until`."""
    statuses = [""] * len(runs)
    while True:
        for position, run in enumerate(runs):
            if statuses[position] in ("", *OPEN):
                with contextlib.suppress(StreamflowError):
                    statuses[position] = str((await run.describe()).status)
        if not any(status in ("", *OPEN) for status in statuses) or time.monotonic() > until:
            return statuses
        await asyncio.sleep(0.1)


async def _judge(trial: Trial, kind: Kind, runs: Sequence[Run[object]], statuses: Sequence[str]) -> None:
    """Fill in how the poison ended, why, and whether it could be terminated."""
    left = [run for run, status in zip(runs, statuses, strict=True) if status in ("", *OPEN)]
    trial.ended = "open" if left else " ".join(sorted(set(statuses))) or "–"
    trial.right = set(statuses) <= kind.ends
    if left:
        trial.terminated = not any(
            status in ("", *OPEN) for status in await _ends(left, time.monotonic() + ENDS_WITHIN)
        )
    for run, status in zip(runs, statuses, strict=True):
        if status not in ("failed", "stuck"):
            continue
        text = await _reason(run, status)
        trial.reason = trial.reason or text.partition("\n")[0]
        if not line_is_in(text):
            trial.named = False
            trial.reason = text.partition("\n")[0]


async def _reason(run: Run[object], status: str) -> str:
    try:
        if status == "failed":
            failure = (await run.describe()).failure
            return _whole(failure) if failure is not None else ""
        events = [event for transition in await run.history() for event in transition.events]
    except StreamflowError as error:
        return f"its history can't be read: {error}"
    return next((event.reason for event in reversed(events) if isinstance(event, RunStuck)), "")


def _whole(failure: Failure) -> str:
    parts = [str(failure), failure.traceback]
    parts += [_whole(below) for below in (failure.cause, failure.context, *failure.members) if below is not None]
    return "\n".join(parts)


async def _problem(stage: Scene, sample: Sample) -> str:
    if sample.problem:
        return f"{sample.run_id} {sample.problem}"
    try:
        described = await stage.system.client.run(sample.run_id).describe()
    except StreamflowError as error:
        return f"{sample.run_id} did not end: {type(error).__name__}"
    return f"{sample.run_id} did not end: {described.status}"


def _normal_after(samples: Sequence[Sample], begin: float, end: float, normal: float) -> float:
    """A slice is slow if more than one in twenty of the runs that were due in it took longer than `normal`."""
    slices: defaultdict[int, list[float]] = defaultdict(list)
    for sample in samples:
        latency = end - sample.due if sample.latency is None else sample.latency
        slices[int((sample.due - begin) / SLICE)].append(latency)
    slow = [number for number, latencies in slices.items() if quantile(latencies, 0.95) > normal]
    return (max(slow) + 1) * SLICE if slow else 0.0


# --- all of them ------------------------------------------------------------------------------------------------------


@dataclass
class Results:
    rate: float
    capacity: float | None
    undisturbed: list[float] = field(default_factory=list[float])
    """Latencies of all calm stretches."""
    trials: list[Trial] = field(default_factory=list[Trial])

    @property
    def p99(self) -> float:
        return quantile(self.undisturbed, 0.99)

    @property
    def p50(self) -> float:
        return statistics.median(self.undisturbed) if self.undisturbed else 0.0


async def bench_isolation(rig: Rig, plan: Plan, progress: Callable[[str], None]) -> Results:
    """Measure all kinds of the plan, one after the other. A poison that soils its daemons, ends one, does not end or
    harms innocent runs is followed by new daemons in another namespace."""
    able = None if plan.rate is not None else await capacity(rig, plan)
    rate = able / SHARE if able is not None else plan.rate or 1.0
    results = Results(rate, able)
    progress(f"isolation: {rate:.0f} innocent runs a second")
    kinds = list(plan.kinds)
    while kinds:
        async with scene(rig, rate, plan) as stage:
            await asyncio.sleep(2.0)  # the first seconds of a daemon are not calm
            while kinds:
                kind = kinds.pop(0)
                trial = await measure(stage, kind, plan, results.undisturbed)
                results.trials.append(trial)
                progress(_summary(trial, results.p99))
                if kind.soils or kind.queue or trial.ends or trial.problems or trial.ended == "open":
                    break
    return results


def _summary(trial: Trial, undisturbed: float) -> str:
    faults = ", ".join(trial.faults(undisturbed))
    return (
        f"{trial.kind.name}: {trial.ended} after {trial.seconds:.1f} s, p99 {1000 * trial.p99:.0f} ms, "
        f"{'missed: ' + faults if faults else 'met'}"
    )
