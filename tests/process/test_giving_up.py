"""Steps and workflows that never give way: they are interrupted, or their process hands over and is started again."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

import streamflow as sf
from streamflow.embedded.server import EmbeddedServer
from streamflow.steps.suspects import Note, decode_note
from streamflow.store.connection import Call
from tests.process.blocking_flows import (
    adds_up_queued,
    calls,
    deadlocks,
    deadlocks_queued,
    innocent,
    spins,
    waits_queued,
)
from tests.process.faults import ServingProcess, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

FLOWS = Path(__file__).with_name("blocking_flows.py")
Start = Callable[..., Awaitable[ServingProcess]]


@pytest.fixture
async def start(embedded_server: EmbeddedServer, namespace: str, tmp_path: Path) -> AsyncIterator[Start]:
    """Daemons and workers that interrupt after a second."""
    started: list[ServingProcess] = []

    async def start(command: str, *options: str) -> ServingProcess:
        words = [command, "--app", f"{FLOWS}:app", "--interrupt-steps", "1"]
        words += ["--shards", "8", "--interrupt", "1"] if command == "daemon" else ["--queue", "gpu"]
        words += options
        log = tmp_path / f"{command}-{len(started)}.log"
        process = ServingProcess(*words, url=embedded_server.url, namespace=namespace, log=log, TMPDIR=str(tmp_path))
        started.append(process)

        async def serves() -> bool:
            return process.logged("acquired" if command == "daemon" else "serves")

        await until(serves, f"the {command} serves")
        return process

    yield start
    for process in started:
        await process.end()


async def last_note(client: sf.Client) -> Note:
    keys: Any = await client.store.one(Call.plain("KEYS", client.keys.suspects("*").replace("{", "\\{")))
    [key] = keys
    assert await client.store.one(Call.plain("TTL", key)) > 86_000
    return decode_note(await client.store.one(Call.plain("GET", key)))


async def members(client: sf.Client) -> int:
    count: Any = await client.store.one(Call.plain("HLEN", client.keys.members))
    return count


@pytest.mark.parametrize("step", ["spin", "backtrack_in_step"])
async def test_a_step_that_never_gives_way_fails_alone(start: Start, client: sf.Client, step: str) -> None:
    daemon = await start("daemon")
    bad = await client.start(calls, step)
    await until(lambda: logged_or_failed(daemon, bad, "blocked"), "the step blocks")
    other = await client.start(innocent, 1)
    assert await other.result(timeout=30) == 1
    with pytest.raises(sf.RunFailed, match="StepBlocked") as failed:
        await bad.result(timeout=30)
    assert "blocking_flows.py:" in str(failed.value)
    assert daemon.process.poll() is None


async def logged_or_failed(process: ServingProcess, run: sf.Run[Any], text: str) -> bool:
    return process.logged(text) or (await run.describe()).status == "failed"


@pytest.mark.parametrize("workflow", ["backtracks", "retries_at_once"])
async def test_a_workflow_that_never_gives_way_is_parked_with_its_line(
    start: Start, client: sf.Client, workflow: str
) -> None:
    daemon = await start("daemon", "--dead-after", "20")
    bad = await client.start(workflow)
    other = await client.start(innocent, 1)

    async def is_stuck() -> bool:
        return (await bad.describe()).status == "stuck"

    await until(is_stuck, "the run is parked")
    assert await other.result(timeout=30) == 1
    assert daemon.logged("did not give way for 1 s at")
    assert not daemon.logged("an unknown line")


async def test_a_step_of_a_worker_that_loops_fails_alone(start: Start, client: sf.Client) -> None:
    await start("daemon")
    worker = await start("worker")
    bad = await client.start(calls, "spin_queued")
    with pytest.raises(sf.RunFailed, match="blocked the event loop of its worker for 1 s"):
        await bad.result(timeout=60)
    assert worker.process.poll() is None


async def test_a_daemon_exits_when_workflow_code_can_not_be_interrupted(start: Start, client: sf.Client) -> None:
    daemon = await start("daemon")
    await client.start(deadlocks, id="bad")
    assert await daemon.wait(60) == 75
    assert await members(client) == 0
    code = (await last_note(client)).code
    assert code is not None
    assert (code.run_id, code.deaths) == ("bad", 2)
    assert "blocking_flows.py" in code.reason
    assert daemon.logged("run bad: its code has blocked its daemon")
    assert not daemon.logged("could not hand over")
    await start("daemon")

    async def is_stuck() -> bool:
        return (await client.run("bad").describe()).status == "stuck"

    await until(is_stuck, "the next daemon parks the run without running its code")
    assert "blocking_flows.py" in (await client.run("bad").describe()).reason


async def test_a_daemon_exits_when_a_step_can_not_be_interrupted(start: Start, client: sf.Client) -> None:
    daemon = await start("daemon")
    run = await client.start(calls, "deadlock_in_step")
    assert await daemon.wait(60) == 75
    assert (await last_note(client)).blames(run.id, 1)
    assert daemon.logged(f"step deadlock_in_step of run {run.id} has blocked its daemon")
    await start("daemon")
    with pytest.raises(sf.RunFailed, match=r"StepBlocked.*blocking_flows\.py"):
        await run.result(timeout=30)


@pytest.mark.parametrize("step", ["add_up_in_step", "lock_up_in_step", "add_up_in_plain", "lock_up_in_plain"])
async def test_a_step_that_holds_the_interpreter_fails_by_one_death(start: Start, client: sf.Client, step: str) -> None:
    """In C, and it never looks for signals: no code in Python can run any more."""
    daemon = await start("daemon")
    runs = await asyncio.gather(*(client.start(innocent, number) for number in range(16)))
    bad = await client.start(calls, step)
    more = await asyncio.gather(*(client.start(innocent, number) for number in range(16, 32)))
    assert await daemon.wait(60) == -signal.SIGPROF
    assert daemon.logged(f"in {step}"), "the traceback"
    assert (await last_note(client)).proof(bad.id, 1), (
        "it wasn't the timer of the operating system, which knows nothing"
    )
    await start("daemon")
    with pytest.raises(sf.RunFailed, match=r"StepBlocked.*blocking_flows\.py.*in C, and can't be interrupted"):
        await bad.result(timeout=15)
    assert await asyncio.gather(*(run.result(timeout=15) for run in (*runs, *more))) == list(range(32))


async def test_a_task_of_a_step_that_holds_the_interpreter_ends_its_daemon(start: Start, client: sf.Client) -> None:
    """Nobody can see whose it is: it fails when three have ended, as a step that is killed does."""
    daemon = await start("daemon")
    bad = await client.start(calls, "add_up_in_task")
    for number in range(3):
        daemon = await start("daemon") if number else daemon
        assert await daemon.wait(30) == -signal.SIGPROF
        assert daemon.logged("in add_up"), "the traceback"
    await start("daemon")
    with pytest.raises(sf.RunFailed, match=r"WorkerLost.*while it ran step add_up_in_task"):
        await bad.result(timeout=30)


async def test_a_worker_ends_when_a_step_holds_the_interpreter(start: Start, client: sf.Client) -> None:
    await start("daemon")
    first = await start("worker")
    bad = await client.start(adds_up_queued)
    assert await first.wait(60) == -signal.SIGPROF
    assert (await last_note(client)).proof(bad.id, 1)
    await start("worker")
    with pytest.raises(sf.RunFailed, match=r"StepBlocked.*has blocked its worker.*blocking_flows\.py"):
        await bad.result(timeout=15)


async def test_a_worker_exits_and_gives_its_other_steps_back(start: Start, client: sf.Client, tmp_path: Path) -> None:
    await start("daemon")
    first = await start("worker")
    waiting, bad = tmp_path / "waiting", tmp_path / "bad"
    run = await client.start(waits_queued, str(waiting))
    await until(lambda: exists(waiting), "the other step runs")
    await client.start(deadlocks_queued, str(bad))
    await until(lambda: exists(bad), "the step runs")
    second = await start("worker", "--worker-timeout", "60")
    assert await first.wait(60) == 75
    assert (await last_note(client)).last is not None
    assert await run.result(timeout=40) == "waited"
    assert waiting.read_text() == "begun\n" * 2, "it was begun again at once, by the other worker"
    assert second.process.poll() is None


async def exists(path: Path) -> bool:
    return path.exists()


async def test_health_says_that_a_loop_is_blocked_and_by_what(start: Start, client: sf.Client, tmp_path: Path) -> None:
    daemon = await start("daemon", "--interrupt", "60")

    async def check() -> tuple[int, dict[str, Any]]:
        command = [sys.executable, "-m", "streamflow", "health", "--json"]
        done = await anyio.run_process(command, check=False, env={**os.environ, "TMPDIR": str(tmp_path)})
        return done.returncode, msgspec.json.decode(done.stdout)

    async def healthy() -> bool:
        return (await check())[0] == 0

    await until(healthy, "the daemon is healthy")
    await client.start(spins, id="bad")

    async def blocked() -> bool:
        code, report = await check()
        return code == 1 and "blocked by the code of run bad" in str(report["processes"][0]["problems"])

    await until(blocked, "the check says what blocks it")
    await daemon.end()
    assert (await check()) == (1, {"healthy": False, "processes": []})
