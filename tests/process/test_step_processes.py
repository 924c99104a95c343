"""Processes of `process=True` steps: they die with their parent, outlive its signals, and their death has a limit."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import streamflow as sf
from streamflow.embedded.server import EmbeddedServer
from streamflow.events import StepFailed, StepRetrying
from streamflow.steps.process_child import NICENESS
from tests.process import fault_flows as flows
from tests.process.fault_flows import begun
from tests.process.faults import ServingProcess, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

FLOWS = Path(__file__).with_name("fault_flows.py")


class Serving:
    """Daemons and workers of one test, and a client."""

    def __init__(self, url: str, namespace: str, directory: Path, client: sf.Client) -> None:
        self.url, self.namespace, self.directory, self.client = url, namespace, directory, client
        self.started: list[ServingProcess] = []

    def start(self, command: str, *words: str, **environ: str) -> ServingProcess:
        queue = ("--queue", "cpu", "--worker-timeout", "2") if command == "worker" else ("--shards", "4")
        words = (command, "--app", f"{FLOWS}:app", "--processes", "1", *queue, *words)
        log = self.directory / f"{command}-{len(self.started)}.log"
        self.started.append(ServingProcess(*words, url=self.url, namespace=self.namespace, log=log, **environ))
        return self.started[-1]

    async def act(self, step: str, *arguments: object) -> sf.Run[object]:
        """Start a run of one step, once there is a namespace."""
        found: list[sf.Run[object]] = []

        async def started() -> bool:
            with contextlib.suppress(sf.NamespaceMissing):
                found.append(await self.client.start(flows.act, step, list(arguments)))
            return bool(found)

        await until(started, "a daemon has created the namespace")
        return found[0]


@pytest.fixture
async def serving(embedded_server: EmbeddedServer, namespace: str, tmp_path: Path) -> AsyncIterator[Serving]:
    async with sf.connect(embedded_server.url, namespace=namespace) as client:
        made = Serving(embedded_server.url, namespace, tmp_path, client)
        yield made
        for process in made.started:
            await process.end()


async def step_began(file: Path, count: int = 1) -> list[int]:
    async def enough() -> bool:
        return len(begun(file)) >= count

    await until(enough, f"the step began {count} times")
    return begun(file)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def priority(pid: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, pid)


def among_sessions(pid: int) -> int | None:
    """What its whole session has where Linux shares processors among sessions; None where it doesn't."""
    try:
        return int(Path(f"/proc/{pid}/autogroup").read_text().split()[-1])
    except (OSError, IndexError):
        return None


async def gone(pid: int, seconds: float = 1.0) -> None:
    async def ended() -> bool:
        return is_gone(pid)

    await until(ended, f"process {pid} has ended", seconds)


async def of_kind(run: sf.Run[object], kind: type) -> list[object]:
    return [event for transition in await run.history() for event in transition.events if isinstance(event, kind)]


@pytest.mark.parametrize("step", ["compute", "compute-in-c"])
@pytest.mark.parametrize("command", ["daemon", "worker"])
async def test_a_steps_process_dies_within_a_second_of_its_parent(
    serving: Serving, tmp_path: Path, command: str, step: str
) -> None:
    """Also one that is busy in C code, where no thread of its own could notice. Until then its parent comes first."""
    serves = serving.start("daemon")
    if command == "worker":
        serves, step = serving.start("worker"), f"{step}-queued"
    await serving.act(step, str(tmp_path / "journal"))
    [pid] = await step_began(tmp_path / "journal")
    assert not is_gone(pid)
    assert priority(pid) == min(priority(serves.pid) + NICENESS, 19)
    assert among_sessions(pid) in (NICENESS, None)
    serves.send(signal.SIGKILL)
    await gone(pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", ["daemon", "worker"])
async def test_a_signal_to_all_processes_lets_a_step_finish(
    serving: Serving, tmp_path: Path, command: str, number: signal.Signals
) -> None:
    serves, step = serving.start("daemon"), "compute"
    if command == "worker":
        serves, step = serving.start("worker"), "compute-queued"
    file = tmp_path / "journal"
    run = await serving.act(step, str(file))
    [pid] = await step_began(file)
    serves.send_to_all(number, pid)
    await until(lambda: logged(serves, "draining"), "it drains")
    assert not is_gone(pid)
    (tmp_path / "journal.go").touch()
    assert await serves.wait() == 0
    if command == "daemon":
        serving.start("daemon")
    assert await run.result(timeout=30) == "computed"
    assert begun(file) == [pid]


async def logged(process: ServingProcess, text: str) -> bool:
    return process.logged(text)


@pytest.mark.parametrize("command", ["daemon", "worker"])
async def test_a_process_that_is_killed_while_its_parent_drains_is_no_failure(
    serving: Serving, tmp_path: Path, command: str
) -> None:
    serves, step = serving.start("daemon"), "compute"
    if command == "worker":
        serves, step = serving.start("worker"), "compute-queued"
    file = tmp_path / "journal"
    run = await serving.act(step, str(file))
    [pid] = await step_began(file)
    serves.send(signal.SIGTERM)
    await until(lambda: logged(serves, "draining"), "it drains")
    os.kill(pid, signal.SIGKILL)
    assert await serves.wait(8) == 0, "it doesn't wait for its whole grace"
    (tmp_path / "journal.go").touch()
    serving.start(command)
    assert await run.result(timeout=30) == "computed"
    assert len(begun(file)) == 2
    assert await of_kind(run, StepRetrying) == []


@pytest.mark.parametrize("step", ["end-process", "end-process-queued"])
async def test_a_step_that_ends_its_process_three_times_fails(serving: Serving, tmp_path: Path, step: str) -> None:
    """Like one whose workers die: `retry=` doesn't count these attempts."""
    serving.start("daemon")
    serving.start("worker")
    file = tmp_path / "journal"
    run = await serving.act(step, str(file))
    with pytest.raises(sf.RunFailed, match=r"WorkerLost.*exit status 7"):
        await run.result(timeout=30)
    assert len(begun(file)) == 3
    [failed] = await of_kind(run, StepFailed)
    assert isinstance(failed, StepFailed)
    assert (failed.attempt, failed.failure.kind) == (3, "WorkerLost")
