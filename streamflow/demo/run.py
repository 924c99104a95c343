"""`streamflow demo`: map a real source tree with three daemons, kill one midway, and check the result.

Owns: the server and the daemons of the demo, the kill, what is measured, and that nothing is left behind.
Must not: know how a status is drawn or a step is run; the app is in `flows.py`. Called by: the command line, tests.

    server, 3 daemons -> survey started -> 40 % parsed -> SIGKILL of the busiest daemon -> recovered -> result
                                                          facts from the histories, and a direct count to compare with
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
import sysconfig
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
from rich.console import Console

from streamflow.client.client import Client, Run, connect
from streamflow.demo import report as demo_report
from streamflow.demo.flows import Survey, executions, files_of, packages_in, parse_file, survey
from streamflow.demo.report import Facts
from streamflow.embedded.child import own_environ
from streamflow.embedded.daemon_process import DaemonProcess
from streamflow.embedded.server import EmbeddedServer
from streamflow.errors import NamespaceMissing, RunNotFound, StoreError, StreamflowError, UsageError
from streamflow.events import ENDINGS, AnyEvent, ChildStarted, RunCompleted, StepCompleted, StepScheduled, Transition
from streamflow.interpreter import python_command
from streamflow.model.record import decode_header
from streamflow.screen.live import watch
from streamflow.status.collector import StatusCollector
from streamflow.store.connection import Call

NAMESPACE = "demo"
KILL_AT = 0.4
"""Share of the files that are parsed when a daemon is killed."""
TIMEOUT_SECONDS = 600.0
READY_SECONDS = 30.0
POLL_SECONDS = 0.02
PROGRESS_SECONDS = 1.0
DAEMON = {
    "threads": 2,  # parsing holds the interpreter lock, so more threads would only wait for it
    "rollup": 0.25,  # so that the screen changes often
    "grace": 1.0,
}


class Recovery(msgspec.Struct):
    recorded_at_kill: int
    shards: int
    owned_s: float
    advanced_s: float


async def run_demo(path: Path | None, *, as_json: bool, console: Console, daemons: int = 3) -> int:
    """Run the demo on `path`, by default on the interpreter's standard library. 0 when the totals are equal, else 1.

    Raises `UsageError` when the tree has no Python files, `TimeoutError` after ten minutes, and other
    `StreamflowError`s with the end of a daemon's log. However it ends, it leaves no server and no daemons running.
    """
    root = str((path or Path(sysconfig.get_path("stdlib"))).expanduser().resolve())
    files = await anyio.to_thread.run_sync(_count_files, root)
    progress = _Progress(None if as_json else console)
    progress(f"{root}: {files:,} files")
    try:
        with anyio.fail_after(TIMEOUT_SECONDS):
            facts = await _perform(root, files, progress, daemons)
    except TimeoutError as error:
        raise TimeoutError(f"the demo took longer than {TIMEOUT_SECONDS:g} s and was stopped") from error
    if as_json:
        console.file.write(msgspec.json.encode(facts).decode() + "\n")
    else:
        demo_report.print_result(facts, console)
    return 0 if facts.equal else 1


def _count_files(root: str) -> int:
    if not Path(root).is_dir():
        raise UsageError(f"{root} is not a directory: give one with Python files in it")
    files = sum(len(files_of(root, name)) for name in packages_in(root))
    if not files:
        raise UsageError(f"there are no Python files in {root}")
    return files


class _Progress:
    """Prints lines of progress; nothing without a console."""

    def __init__(self, console: Console | None) -> None:
        self.console = console
        self._began = time.monotonic()

    def __call__(self, line: str) -> None:
        if self.console is not None:
            demo_report.print_progress(self.console, time.monotonic() - self._began, line)

    @property
    def has_screen(self) -> bool:
        return self.console is not None and self.console.is_terminal


async def _perform(root: str, files: int, progress: _Progress, daemons: int) -> Facts:
    with tempfile.TemporaryDirectory(prefix="streamflow-demo-") as folder:
        journal = Path(folder, "journal")
        async with (
            EmbeddedServer(Path(folder, "data"), private=True) as server,
            _fleet(server.url, Path(folder), daemons) as fleet,
            connect(server.url, namespace=NAMESPACE) as client,
        ):
            collector = StatusCollector(client, shards=True)
            shards = await fleet.balanced(client)
            product = (await collector.collect()).server
            progress(f"{daemons} daemons share {shards} shards; kill -9 of one daemon at {KILL_AT:.0%}")
            began = time.monotonic()
            run = await client.start(survey, root, str(journal))
            result = asyncio.create_task(_timed(run, began))
            finished = anyio.Event()
            display = asyncio.create_task(_show_progress(progress, collector, journal, files, finished))
            try:
                await fleet.wait_for(result, lambda: executions(journal) >= KILL_AT * files)
                recovery = await _kill_busiest(client, run, fleet) if daemons > 1 else None
                await fleet.wait_for(result)
                finished.set()
                await asyncio.wait({display})
            finally:
                for task in (result, display):
                    task.cancel()
                with anyio.CancelScope(shield=True):  # the screen restores the terminal
                    await asyncio.wait({result, display})
            merged, wall = result.result()
            histories = await _histories(client, run)
            executed = executions(journal)
    progress("counting directly, in one process without streamflow")
    began = time.monotonic()
    direct = await count_in_process(root)
    events = [event for history in histories.values() for event in _events(history)]
    return Facts(
        tree=root,
        python=platform.python_version(),
        server=f"{product.product} {product.version}" if product else "",
        daemons=daemons,
        shards=shards,
        files=files,
        packages=merged.packages,
        runs_completed=sum(isinstance(event, RunCompleted) for event in events),
        steps_recorded=sum(isinstance(event, StepCompleted) for event in events),
        steps_executed=executed,
        files_recorded_at_kill=recovery and recovery.recorded_at_kill,
        killed_shards=recovery and recovery.shards,
        shards_recovered_s=recovery and round(recovery.owned_s, 3),
        recovery_s=recovery and round(recovery.advanced_s, 3),
        wall_s=round(wall, 3),
        direct_s=round(time.monotonic() - began, 3),
        equal=merged == direct,
        result=merged,
        direct=direct,
    )


async def _timed(run: Run[Survey], began: float) -> tuple[Survey, float]:
    return await run.result(), time.monotonic() - began


async def count_in_process(root: str) -> Survey:
    """`count_directly` in a process of its own, which ends with this call."""
    command = python_command("-m", "streamflow.demo.flows", root)
    done = await anyio.run_process(command, env=own_environ())
    return msgspec.json.decode(done.stdout, type=Survey)


# --- daemons ----------------------------------------------------------------------------------------------------------


class _Fleet:
    """The daemons of the demo."""

    def __init__(self, daemons: list[DaemonProcess]) -> None:
        self.daemons = daemons

    @property
    def alive(self) -> list[DaemonProcess]:
        return [daemon for daemon in self.daemons if daemon.running]

    def of(self, holder: str) -> DaemonProcess | None:
        """The running daemon that is this member."""
        return next((daemon for daemon in self.alive if daemon.is_member(holder)), None)

    def check(self) -> None:
        if not self.alive:
            raise StreamflowError(
                f"all daemons of the demo have ended; log of the last one:\n{self.daemons[-1].log_tail()}"
            )

    async def balanced(self, client: Client) -> int:
        """Wait until each daemon owns shards, and each shard has an owner. Returns the number of shards."""
        with anyio.move_on_after(READY_SECONDS):
            while True:
                for daemon in self.daemons:
                    if not daemon.running:
                        raise StreamflowError(f"a daemon of the demo ended right after its start:\n{daemon.log_tail()}")
                with contextlib.suppress(NamespaceMissing):
                    owners = [self.of(holder) for holder in await holders(client)]
                    if all(any(owner is daemon for owner in owners) for daemon in self.daemons) and all(owners):
                        return len(owners)
                await anyio.sleep(POLL_SECONDS)
        logs = "\n".join(daemon.log_tail() for daemon in self.daemons)
        raise StreamflowError(f"the daemons didn't share the shards within {READY_SECONDS:g} s; their logs:\n{logs}")

    async def wait_for(self, result: asyncio.Task[Any], condition: Callable[[], bool] | None = None) -> None:
        """Wait for the result or the condition, whichever comes first. Raises when all daemons have ended."""
        while not result.done() and not (condition and condition()):
            self.check()
            await asyncio.wait({result}, timeout=POLL_SECONDS)


@contextlib.asynccontextmanager
async def _fleet(url: str, folder: Path, count: int) -> AsyncGenerator[_Fleet]:
    fleet = _Fleet([])
    try:
        for number in range(1, count + 1):
            log = folder / f"daemon-{number}.log"
            fleet.daemons.append(DaemonProcess(f"{parse_file.function.__module__}:app", url, NAMESPACE, log, DAEMON))
        yield fleet
    finally:
        # The server is stopped as well, so there is nothing to hand over.
        for daemon in fleet.daemons:
            await daemon.end(kill=True)


async def holders(client: Client) -> list[str]:
    """The member that holds each shard, in order; empty for none. Raises `NamespaceMissing`."""
    namespace = await client.read_namespace()
    calls = [Call.plain("HGET", client.keys.shard(n).owner, "holder") for n in range(namespace.shards)]
    return [answer.decode() if isinstance(answer, bytes) else "" for answer in await client.store.send(calls)]


# --- the kill ---------------------------------------------------------------------------------------------------------


async def _kill_busiest(client: Client, run: Run[Survey], fleet: _Fleet) -> Recovery:
    """SIGKILL the daemon with the most open steps; wait until its shards have owners and a run of them has advanced."""
    namespace = await client.read_namespace()
    before = await holders(client)
    open_steps: dict[int, int] = dict.fromkeys((daemon.pid for daemon in fleet.alive), 0)
    for number, steps in await _open_work(client, run):
        owner = fleet.of(before[number])
        if owner is not None:
            open_steps[owner.pid] += steps
    victim = max(fleet.alive, key=lambda daemon: (open_steps[daemon.pid], sum(map(daemon.is_member, before))))
    lost = {number for number, holder in enumerate(before) if victim.is_member(holder)}

    killed = time.monotonic()
    await victim.end(kill=True)
    histories = await _histories(client, run)
    halted = {  # runs that only the next owner can advance, with the number of their transitions
        run_id: len(history)
        for run_id, history in histories.items()
        if namespace.shard_of(run_id) in lost and not _ended(history)
    }
    owned = 0.0
    while True:
        if not owned:
            if all(fleet.of(holder) for holder in await holders(client)):
                owned = time.monotonic() - killed
        elif not halted or await _any_advanced(client, halted):
            recorded = sum(_recorded_files(history) for history in histories.values())
            return Recovery(recorded, len(lost), owned, time.monotonic() - killed)
        fleet.check()
        await anyio.sleep(POLL_SECONDS)


async def _open_work(client: Client, run: Run[Survey]) -> list[tuple[int, int]]:
    """For each open run: its shard, and how many of its steps are scheduled and not done."""
    namespace = await client.read_namespace()
    return [
        (
            namespace.shard_of(run_id),
            sum(isinstance(event, StepScheduled) - isinstance(event, StepCompleted) for event in _events(history)),
        )
        for run_id, history in (await _histories(client, run)).items()
        if not _ended(history)
    ]


async def _any_advanced(client: Client, halted: dict[str, int]) -> bool:
    namespace = await client.read_namespace()
    answers = await client.store.send(
        [client.kernel.peek_runs(namespace.shard_of(run_id), [run_id]) for run_id in halted]
    )
    return any(
        not isinstance(answer, StoreError) and answer[0][0] and decode_header(answer[0][0]).version > version
        for answer, version in zip(answers, halted.values(), strict=True)
    )


# --- what is recorded -------------------------------------------------------------------------------------------------


async def _histories(client: Client, run: Run[Survey]) -> dict[str, list[Transition]]:
    """The histories of the survey and of its children that have begun, by run id."""
    own = await run.history()
    children = [event.run_id for event in _events(own) if isinstance(event, ChildStarted)]
    answers = await asyncio.gather(*(client.run(child).history() for child in children), return_exceptions=True)
    histories = {run.id: own}
    for child, history in zip(children, answers, strict=True):
        if isinstance(history, list):
            histories[child] = history
        elif not isinstance(history, RunNotFound):  # a child whose start has not reached its shard yet
            raise history
    return histories


def _events(history: Iterable[Transition]) -> Iterator[AnyEvent]:
    return (event for transition in history for event in transition.events)


def _ended(history: list[Transition]) -> bool:
    return bool(history) and isinstance(history[-1].events[-1], ENDINGS)


def _recorded_files(history: list[Transition]) -> int:
    return sum(isinstance(event, StepCompleted) and event.name == parse_file.name for event in _events(history))


# --- progress ---------------------------------------------------------------------------------------------------------


async def _show_progress(
    progress: _Progress, collector: StatusCollector, journal: Path, files: int, finished: anyio.Event
) -> None:
    """The live screen in a terminal, else a line every `PROGRESS_SECONDS`, until the demo has finished."""
    if progress.has_screen and progress.console is not None:
        await watch(collector.collect, progress.console, 0.5, finished)
        return
    while not finished.is_set():
        with anyio.move_on_after(PROGRESS_SECONDS):
            await finished.wait()
        progress(f"{min(executions(journal), files):,} of {files:,} files")
