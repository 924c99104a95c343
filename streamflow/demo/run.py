"""`streamflow demo`: map a real source tree with three daemons, kill one midway, and check the result.

Owns: the server of the demo, the kills, what is measured, and that nothing is left behind.
Must not: know how a status is drawn or a step is run; the app is in `flows.py`. Called by: the command line, tests.

    server or cluster, -> survey started -> 40 % parsed -> SIGKILL of the busiest daemon -> recovered -> result
    3 daemons                                              (and the busiest master)
                                                          facts from the histories, and a direct count to compare with
"""

from __future__ import annotations

import asyncio
import platform
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
from rich.console import Console

from streamflow.client.client import Client, Run, connect
from streamflow.demo import report as demo_report
from streamflow.demo.fleet import POLL_SECONDS, Fleet, fleet_of, holders
from streamflow.demo.flows import Survey, executions, files_of, packages_in, parse_file, survey
from streamflow.demo.report import Facts, MasterFacts
from streamflow.embedded.child import own_environ
from streamflow.embedded.cluster import ClusterNode, EmbeddedCluster
from streamflow.embedded.server import EmbeddedServer
from streamflow.errors import RunNotFound, StoreError, UsageError
from streamflow.events import ENDINGS, AnyEvent, ChildStarted, RunCompleted, StepCompleted, StepScheduled, Transition
from streamflow.interpreter import python_command
from streamflow.model.record import decode_header
from streamflow.screen.live import watch
from streamflow.status.collector import StatusCollector
from streamflow.status.model import NamespaceStatus
from streamflow.store.topology import slot_of

NAMESPACE = "demo"
KILL_AT = 0.4
"""Share of the files that are parsed when a daemon (and a master) is killed."""
MASTERS = 3
"""Of a cluster, each with a replica."""
TIMEOUT_SECONDS = 600.0
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
    master: MasterFacts | None


async def run_demo(
    path: Path | None, *, as_json: bool, console: Console, daemons: int = 3, cluster: bool = False
) -> int:
    """Run the demo on `path`, by default on the interpreter's standard library. 0 when the totals are equal, else 1.

    `cluster`: on a cluster of three masters with a replica each, one of which is killed, too, instead of one server.

    Raises `UsageError` when the tree has no Python files, `TimeoutError` after ten minutes, and other
    `StreamflowError`s with the end of a daemon's log. However it ends, it leaves no server and no daemons running.
    """
    root = str((path or Path(sysconfig.get_path("stdlib"))).expanduser().resolve())
    files = await anyio.to_thread.run_sync(_count_files, root)
    progress = _Progress(None if as_json else console)
    progress(f"{root}: {files:,} files")
    try:
        with anyio.fail_after(TIMEOUT_SECONDS):
            facts = await _perform(root, files, progress, daemons, cluster)
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
    """Prints lines of progress; nothing without a console. While a live screen is shown, its second line ends with the
    newest one, and all of them are printed when it is gone."""

    def __init__(self, console: Console | None) -> None:
        self.console = console
        self._began = time.monotonic()
        self._held: list[tuple[float, str]] | None = None

    def __call__(self, line: str) -> None:
        if self._held is not None:
            self._held.append((time.monotonic() - self._began, line))
        elif self.console is not None:
            demo_report.print_progress(self.console, time.monotonic() - self._began, line)

    @property
    def has_screen(self) -> bool:
        return self.console is not None and self.console.is_terminal

    async def watch(self, collector: StatusCollector, finished: anyio.Event) -> None:
        """The live screen, until the demo has finished."""
        assert self.console is not None
        held: list[tuple[float, str]] = []
        self._held = held

        async def fetch() -> NamespaceStatus:
            status = await collector.collect()
            status.warnings.extend(line for _, line in held[-1:])
            return status

        try:
            await watch(fetch, self.console, 0.5, finished)
        finally:
            self._held = None
            for seconds, line in held:
                demo_report.print_progress(self.console, seconds, line)


async def _perform(root: str, files: int, progress: _Progress, daemons: int, is_cluster: bool) -> Facts:
    with tempfile.TemporaryDirectory(prefix="streamflow-demo-") as folder:
        journal = Path(folder, "journal")
        async with (
            _server(Path(folder, "data"), progress, is_cluster) as server,
            fleet_of(server.url, NAMESPACE, Path(folder), DAEMON) as fleet,
            connect(server.url, namespace=NAMESPACE) as client,
        ):
            fleet.start(f"{parse_file.function.__module__}:app", daemons)
            collector = StatusCollector(client, shards=True)
            shards = await fleet.balanced(client)
            product = (await collector.collect()).server
            cluster = server if isinstance(server, EmbeddedCluster) else None
            where = "" if cluster is None else f" on {MASTERS} masters with a replica each"
            killed = "one daemon" if cluster is None else "one daemon and one master"
            progress(f"{daemons} daemons share {shards} shards{where}; kill -9 of {killed} at {KILL_AT:.0%}")
            began = time.monotonic()
            run = await client.start(survey, root, str(journal))
            result = asyncio.create_task(_timed(run, began))
            finished = anyio.Event()
            display = asyncio.create_task(_show_progress(progress, collector, journal, files, finished))
            try:
                await fleet.wait_for(result, lambda: executions(journal) >= KILL_AT * files)
                recovery = await _kill_busiest(client, run, fleet, cluster, progress) if daemons > 1 else None
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
        masters=MASTERS if is_cluster else None,
        killed_master=recovery and recovery.master,
        wall_s=round(wall, 3),
        direct_s=round(time.monotonic() - began, 3),
        equal=merged == direct,
        result=merged,
        direct=direct,
    )


def _server(folder: Path, progress: _Progress, is_cluster: bool) -> EmbeddedServer | EmbeddedCluster:
    if not is_cluster:
        return EmbeddedServer(folder, private=True)
    progress(f"starting a cluster of {MASTERS} masters with a replica each")
    return EmbeddedCluster(folder, masters=MASTERS, replicas=1, private=True)


async def _timed(run: Run[Survey], began: float) -> tuple[Survey, float]:
    return await run.result(), time.monotonic() - began


async def count_in_process(root: str) -> Survey:
    """`count_directly` in a process of its own, which ends with this call."""
    command = python_command("-m", "streamflow.demo.flows", root)
    done = await anyio.run_process(command, env=own_environ())
    return msgspec.json.decode(done.stdout, type=Survey)


# --- the kill ---------------------------------------------------------------------------------------------------------


async def _kill_busiest(
    client: Client, run: Run[Survey], fleet: Fleet, cluster: EmbeddedCluster | None, progress: _Progress
) -> Recovery:
    """SIGKILL the daemon with the most open steps, and of a cluster the master with the most; wait until the shards
    have owners and a run of each has advanced."""
    namespace = await client.read_namespace()
    before = await holders(client)
    work = await _open_work(client, run)
    open_steps: dict[int, int] = dict.fromkeys((daemon.pid for daemon in fleet.alive), 0)
    for number, steps in work:
        owner = fleet.of(before[number])
        if owner is not None:
            open_steps[owner.pid] += steps
    victim = max(fleet.alive, key=lambda daemon: (open_steps[daemon.pid], sum(map(daemon.is_member, before))))
    lost = {number for number, holder in enumerate(before) if victim.is_member(holder)}
    master = None if cluster is None else await _Master.busiest(cluster, client, work, namespace.shards)

    killed = time.monotonic()
    await victim.end(kill=True)
    histories = await _histories(client, run)
    versions = {run_id: len(history) for run_id, history in histories.items() if not _ended(history)}
    """Of runs that aren't done, the number of their transitions."""
    halted = {run_id: version for run_id, version in versions.items() if namespace.shard_of(run_id) in lost}
    """Those that only the next owner can advance."""
    owned = advanced = 0.0
    async with anyio.create_task_group() as waiting:
        if master is not None:
            master.killed = time.monotonic()
            await master.node.kill()
            progress(f"killed a daemon that owned {len(lost)} shards, and the master {master.node.address}")
            waiting.start_soon(master.wait_for_replica)
        while not owned or not advanced or (master is not None and not master.advanced_s):
            if not owned and all(fleet.of(holder) for holder in await holders(client)):
                owned = time.monotonic() - killed
            if not advanced and (not halted or await _any_advanced(client, halted)):
                advanced = time.monotonic() - killed
            if master is not None and not master.advanced_s and master.promoted_s:
                its = {id_: version for id_, version in versions.items() if namespace.shard_of(id_) in master.shards}
                if not its or await _any_advanced(client, its):
                    master.advanced_s = time.monotonic() - master.killed
            fleet.check()
            await anyio.sleep(POLL_SECONDS)
    if master is not None:
        progress(f"all goes on: {master.promoted} was promoted after {master.promoted_s:.1f} s")
    recorded = sum(_recorded_files(history) for history in histories.values())
    return Recovery(recorded, len(lost), owned, max(owned, advanced), None if master is None else master.facts())


class _Master:
    """The master that is killed, and the shards that it has. `promoted`: the address of the node that has them then."""

    def __init__(self, cluster: EmbeddedCluster, node: ClusterNode, shards: dict[int, int]) -> None:
        self._cluster = cluster
        self.node = node
        self.shards = shards
        """Number of a shard -> its slot."""
        self.killed = 0.0
        """When (monotonic s)."""
        self.promoted = ""
        self.promoted_s = 0.0
        self.advanced_s = 0.0

    @classmethod
    async def busiest(
        cls, cluster: EmbeddedCluster, client: Client, work: Iterable[tuple[int, int]], shards: int
    ) -> _Master:
        steps = dict(work)
        slots = {number: slot_of(client.keys.shard(number).owner) for number in range(shards)}
        found: list[tuple[int, _Master]] = []
        for node in await cluster.masters():
            own = (await node.view())[node.id]
            its = {number: slot for number, slot in slots.items() if own.has(slot)}
            if its:
                found.append((sum(steps.get(number, 0) for number in its), cls(cluster, node, its)))
        return max(found, key=lambda pair: pair[0])[1]

    async def wait_for_replica(self) -> None:
        promoted = await self._cluster.wait_for_failover(self.node, next(iter(self.shards.values())))
        self.promoted, self.promoted_s = promoted.address, time.monotonic() - self.killed

    def facts(self) -> MasterFacts:
        return MasterFacts(
            address=self.node.address,
            shards=len(self.shards),
            promoted=self.promoted,
            promoted_s=round(self.promoted_s, 3),
            recovery_s=round(self.advanced_s, 3),
        )


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
    if progress.has_screen:
        await progress.watch(collector, finished)
        return
    while not finished.is_set():
        with anyio.move_on_after(PROGRESS_SECONDS):
            await finished.wait()
        progress(f"{min(executions(journal), files):,} of {files:,} files")
