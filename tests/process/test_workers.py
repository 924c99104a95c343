"""Real `streamflow worker` processes: steps run there, and go on elsewhere when one is killed, paused or stopped."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import streamflow as sf
from streamflow.daemon.daemon import Daemon
from streamflow.embedded.server import EmbeddedServer
from streamflow.events import StepCompleted, StepRetrying
from streamflow.settings import Settings
from streamflow.status.collector import StatusCollector
from streamflow.store.connection import Call
from streamflow.store.queues import read_queues
from tests.process import queue_flows as flows
from tests.process.faults import ServingProcess, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

FLOWS = Path(__file__).with_name("queue_flows.py")
Start = Callable[..., ServingProcess]


@pytest.fixture
async def start_worker(embedded_server: EmbeddedServer, namespace: str, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts `streamflow worker --queue gpu`; all end with the test."""
    started: list[ServingProcess] = []

    def start(*words: str, app: Path = FLOWS, timeout: float = 1.0) -> ServingProcess:
        command = ("worker", "--app", f"{app}:app", "--queue", "gpu", "--worker-timeout", str(timeout), *words)
        log = tmp_path / f"worker-{len(started)}.log"
        started.append(ServingProcess(*command, url=embedded_server.url, namespace=namespace, log=log))
        return started[-1]

    yield start
    for worker in started:
        await worker.end()


@asynccontextmanager
async def daemon(server: EmbeddedServer, namespace: str, app: sf.App = flows.app) -> AsyncGenerator[sf.Client]:
    """A daemon in this process, and a client."""
    one = Daemon(app, Settings(redis=server.url, namespace=namespace, shards=4))
    serving = asyncio.create_task(one.run())
    try:
        await asyncio.wait_for(one.ready.wait(), 20)
        async with sf.connect(server.url, namespace=namespace) as client:
            yield client
    finally:
        one.stop()
        await serving


def who_runs(file: Path) -> set[int]:
    """Pids of the workers that began the step."""
    return {int(path.suffix[1:]) for path in file.parent.glob(f"{file.name}.*") if path.suffix[1:].isdigit()}


async def begun(file: Path, count: int = 1) -> set[int]:
    async def enough() -> bool:
        return len(who_runs(file)) >= count

    await until(enough, f"{count} workers began the step")
    return who_runs(file)


async def there(file: Path) -> bool:
    return file.exists()


async def events_of(run: sf.Run[Any], kind: type[Any]) -> list[Any]:
    return [event for transition in await run.history() for event in transition.events if isinstance(event, kind)]


async def test_steps_run_in_worker_processes_with_the_console_script_and_a_file(
    embedded_server: EmbeddedServer, namespace: str, start_worker: Start
) -> None:
    worker = start_worker("--processes", "1")
    async with daemon(embedded_server, namespace) as client:
        assert await (await client.start(flows.asks_who)).result(timeout=30) == worker.pid
        total, pid = await (await client.start(flows.computes, [1, 2, 3])).result(timeout=30)
        assert total == 6
        assert pid not in (os.getpid(), worker.pid)


async def test_a_file_named_like_another_module_can_have_steps_in_processes(
    embedded_server: EmbeddedServer, namespace: str, tmp_path: Path, start_worker: Start
) -> None:
    file = tmp_path / "types.py"  # the standard library has one
    file.write_text(FLOWS.read_text())
    start_worker("--processes", "1", app=file)
    async with daemon(embedded_server, namespace) as client:
        total, _ = await (await client.start(flows.computes, [4, 5])).result(timeout=30)
        assert total == 9


async def test_a_step_of_a_killed_worker_runs_again_with_its_heartbeat_details(
    embedded_server: EmbeddedServer, namespace: str, tmp_path: Path, start_worker: Start
) -> None:
    file = tmp_path / "step"
    victim = start_worker()
    async with daemon(embedded_server, namespace) as client:
        run = await client.start(flows.waits, str(file))
        assert await begun(file) == {victim.pid}
        await until(lambda: _details_are_stored(client), "a heartbeat has carried the step's details")
        victim.send(signal.SIGKILL)
        assert await victim.wait() == -signal.SIGKILL
        other = start_worker()
        assert await begun(file, 2) == {victim.pid, other.pid}
        (tmp_path / "step.go").touch()
        assert await run.result(timeout=30) == [other.pid, 2, 10]
        [lost] = await events_of(run, StepRetrying)
        assert (lost.failure.kind, f"-{victim.pid}-" in lost.failure.message) == ("WorkerLost", True)


@pytest.mark.skipif(sys.platform != "linux", reason="a death is seen in /proc")
async def test_the_death_of_a_worker_is_reported_long_before_its_time_out(
    embedded_server: EmbeddedServer, namespace: str, tmp_path: Path, start_worker: Start
) -> None:
    file = tmp_path / "step"
    victim, other = start_worker("--concurrency", "1", timeout=120.0), start_worker("--concurrency", "1", timeout=120.0)
    async with daemon(embedded_server, namespace) as client:
        runs = [await client.start(flows.waits, str(file)) for _ in range(2)]
        assert await begun(file, 2) == {victim.pid, other.pid}
        await until(lambda: _workers(client, 2), "both have sent heartbeats")
        victim.send(signal.SIGKILL)
        assert await victim.wait() == -signal.SIGKILL
        await until(lambda: _logged(other, "has died: what it had claimed is reported"), "its death was reported")
        await until(lambda: _workers(client, 1), "it is counted no more")
        (tmp_path / "step.go").touch()
        results: list[Any] = [await run.result(timeout=60) for run in runs]
        assert [pid for pid, *_ in results] == [other.pid, other.pid]
        assert sorted(attempt for _, attempt, _ in results) == [1, 2]
        [lost] = [event for run in runs for event in await events_of(run, StepRetrying)]
        assert lost.failure.kind == "WorkerLost"
        assert f"-{victim.pid}-" in lost.failure.message
        assert "died while it ran the step" in lost.failure.message


@pytest.mark.skipif(sys.platform != "linux", reason="whether a process is stopped is seen in /proc")
async def test_a_worker_whose_interpreter_is_held_loses_no_claim(
    embedded_server: EmbeddedServer, namespace: str, tmp_path: Path, start_worker: Start
) -> None:
    file = tmp_path / "step"
    workers = [start_worker("--concurrency", "1", timeout=2.0) for _ in range(2)]
    async with daemon(embedded_server, namespace) as client:
        await until(lambda: _workers(client, 2), "both have sent heartbeats")
        run = await client.start(flows.holds_interpreter, str(file), 8)
        assert await run.result(timeout=60) == 1
        assert len(who_runs(file)) == 1, "it ran once"
        assert await events_of(run, StepRetrying) == []
        assert any(worker.logged("code in C holds its interpreter; others wait") for worker in workers), "they looked"
        await until(lambda: _workers(client, 2), "both serve")


async def test_an_idle_worker_is_counted_until_it_ends(
    embedded_server: EmbeddedServer, namespace: str, start_worker: Start
) -> None:
    worker = start_worker("--concurrency", "3", timeout=40.0)
    async with daemon(embedded_server, namespace) as client:
        await until(lambda: _workers(client, 1), "it serves")
        [found] = (await StatusCollector(client).settled()).workers
        assert (found.pid, found.queues, found.concurrency, found.running) == (worker.pid, ["gpu"], 3, 0)
        worker.send(signal.SIGTERM)
        assert await worker.wait() == 0
        assert await _workers(client, 0)
        keys = client.keys.workers, client.keys.ended
        left: Any = await client.store.send([Call.plain("HLEN", key) for key in keys])
        assert left == [0, 0], "it was not a death"


async def _workers(client: sf.Client, count: int) -> bool:
    [queue] = await read_queues(client.store, client.keys, ["gpu"], 8, 5.0)
    return queue.workers == count


async def test_a_paused_worker_is_considered_dead_and_its_late_outcome_dropped(
    embedded_server: EmbeddedServer, namespace: str, tmp_path: Path, start_worker: Start
) -> None:
    file = tmp_path / "step"
    paused = start_worker("--concurrency", "1")
    async with daemon(embedded_server, namespace) as client:
        run = await client.start(flows.waits, str(file))
        assert await begun(file) == {paused.pid}
        paused.send(signal.SIGSTOP)
        other = start_worker("--concurrency", "1")
        assert await begun(file, 2) == {paused.pid, other.pid}
        (tmp_path / "step.go").touch()
        assert (await run.result(timeout=30))[:2] == [other.pid, 2]
        paused.send(signal.SIGCONT)
        # It finds that its step was given up, and goes on serving.
        other.send(signal.SIGKILL)
        await other.wait()
        assert await (await client.start(flows.asks_who)).result(timeout=30) == paused.pid
        [lost] = await events_of(run, StepRetrying)
        assert (lost.failure.kind, f"-{paused.pid}-" in lost.failure.message) == ("WorkerLost", True)
        assert [event.attempt for event in await events_of(run, StepCompleted)] == [2]
        assert not paused.logged("Traceback")


async def _details_are_stored(client: sf.Client) -> bool:
    keys = [client.keys.queue("gpu", number).details for number in range((await client.read_namespace()).shards)]
    stored = await client.store.send([Call.plain("HKEYS", key) for key in keys])
    return any(set(found) - {b"clock"} for found in stored)


async def _logged(worker: ServingProcess, text: str) -> bool:
    return worker.logged(text)


async def test_sigterm_returns_steps_that_do_not_finish_in_time_to_the_queue(
    embedded_server: EmbeddedServer, namespace: str, tmp_path: Path, start_worker: Start
) -> None:
    file = tmp_path / "step"
    leaving = start_worker("--grace", "0.2", timeout=600)
    async with daemon(embedded_server, namespace) as client:
        run = await client.start(flows.waits, str(file))
        assert await begun(file) == {leaving.pid}
        leaving.send(signal.SIGTERM)
        assert await leaving.wait() == 0
        assert leaving.logged("running steps requeued for other workers: 1")
        other = start_worker(timeout=600)
        assert await begun(file, 2) == {leaving.pid, other.pid}
        (tmp_path / "step.go").touch()
        assert await run.result(timeout=30) == [other.pid, 1, 10]
        assert await events_of(run, StepRetrying) == []


async def test_sigterm_ends_a_worker_whose_thread_never_comes_back(
    embedded_server: EmbeddedServer, namespace: str, start_worker: Start
) -> None:
    leaving = start_worker("--grace", "0.2")
    async with daemon(embedded_server, namespace) as client:
        with pytest.raises(sf.RunFailed, match=r"took longer than 0\.2 s"):
            await (await client.start(flows.hangs)).result(timeout=30)
        leaving.send(signal.SIGTERM)
        assert await leaving.wait() == 0
        assert leaving.logged("running steps requeued for other workers: 0")


async def test_cancelling_a_run_reaches_a_thread_of_a_worker_process(
    embedded_server: EmbeddedServer, namespace: str, tmp_path: Path, start_worker: Start
) -> None:
    file = tmp_path / "step"
    start_worker()
    async with daemon(embedded_server, namespace) as client:
        run = await client.start(flows.polls, str(file))
        await until(lambda: there(tmp_path / "step.begun"), "the step began")
        await run.cancel()
        await until(lambda: there(tmp_path / "step.stopped"), "the step noticed")


async def test_a_worker_survives_a_server_that_lost_everything(namespace: str, tmp_path: Path) -> None:
    """Before that it waits for a namespace that does not exist yet."""
    async with EmbeddedServer(memory=True) as server:
        log = tmp_path / "worker.log"
        command = ("worker", "--app", f"{FLOWS}:app", "--queue", "gpu")
        worker = ServingProcess(*command, url=server.url, namespace=namespace, log=log)
        try:
            await until(lambda: _logged(worker, "waiting for its first daemon"), "the worker waits")
            async with daemon(server, namespace) as client:
                assert await (await client.start(flows.asks_who)).result(timeout=30) == worker.pid
                shards = (await client.read_namespace()).shards
                keys = [client.keys.queue("gpu", number).stream for number in range(shards)]
                await client.store.one(Call.plain("DEL", *keys))
                assert await (await client.start(flows.asks_who)).result(timeout=30) == worker.pid
                await client.store.one(Call.plain("DEL", *keys))
                for key in keys:  # a stream without the group of workers
                    await client.store.one(Call.plain("XGROUP", "CREATE", key, "others", "0", "MKSTREAM"))
                assert await (await client.start(flows.asks_who)).result(timeout=30) == worker.pid
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            assert any("consumer group of a queue is missing, creating it" in line["message"] for line in lines)
            assert worker.process.poll() is None
        finally:
            await worker.end()


async def test_workers_are_not_considered_dead_after_a_long_server_outage(namespace: str, tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "data", appendfsync="everysec")
    await server.start()
    command = ("worker", "--app", f"{FLOWS}:app", "--queue", "gpu", "--worker-timeout", "1")
    workers = [ServingProcess(*command, url=server.url, namespace=namespace, log=tmp_path / f"{n}.log") for n in "abc"]
    try:
        async with daemon(server, namespace) as client:
            files = [tmp_path / f"step{n}" for n in range(4)]
            runs = [await client.start(flows.waits, str(file)) for file in files]
            began = [await begun(file) for file in files]
            await asyncio.sleep(0.5)  # a heartbeat or two
            await server.kill()
            await asyncio.sleep(2.5)  # longer than the time-out: nobody could send a heartbeat
            await server.start()
            noticed = time.monotonic()
            for worker in workers:
                await until(lambda worker=worker: _logged(worker, "read again"), "the worker noticed")
            await asyncio.sleep(max(0.0, noticed + 2.0 - time.monotonic()))  # some looks for dead ones
            for file in files:
                file.with_name(f"{file.name}.go").touch()
            results = [await run.result(timeout=30) for run in runs]
            assert [({pid}, attempt) for pid, attempt, _ in results] == [(pids, 1) for pids in began]
            # One that does die now is noticed all the same.
            file = tmp_path / "last"
            run = await client.start(flows.waits, str(file))
            [pid] = await begun(file)
            victim = next(worker for worker in workers if worker.pid == pid)
            victim.send(signal.SIGKILL)
            await victim.wait()
            (tmp_path / "last.go").touch()
            assert (await run.result(timeout=30))[1] == 2
    finally:
        for worker in workers:
            await worker.end()
        await server.stop()
