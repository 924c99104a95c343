"""Daemons and workers as probes see them: while code blocks them, while they drain, and when their port is taken."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

import streamflow as sf
from streamflow.embedded.server import EmbeddedServer
from tests.process.blocking_flows import blocks, spins
from tests.process.faults import ROOT, ServingProcess, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

FLOWS = Path(__file__).with_name("blocking_flows.py")
Start = Callable[..., ServingProcess]


@pytest.fixture
async def start(embedded_server: EmbeddedServer, namespace: str, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts a command that serves; all end with the test."""
    started: list[ServingProcess] = []

    def start(*words: str, server: EmbeddedServer = embedded_server, **environ: str) -> ServingProcess:
        log = tmp_path / f"{len(started)}.log"
        command = [*words, "--app", f"{FLOWS}:app"]
        process = ServingProcess(*command, url=server.url, namespace=namespace, log=log, **environ)
        started.append(process)
        return process

    yield start
    for process in started:
        await process.end()


def ask(url: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(url, timeout=20) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


async def address(process: ServingProcess) -> str:
    """Where it says that it answers."""

    async def said() -> bool:
        return process.logged("answers at http://")

    await until(said, "it listens")
    match = re.search(r"answers at (http://[\d.:]+)/health", process.log.read_text())
    assert match is not None
    return match[1]


async def answers(url: str, status: int) -> Any:
    """Wait until the page has this status, and give what it says."""
    body: Any = None

    async def so() -> bool:
        nonlocal body
        got, body = await asyncio.to_thread(ask, url)
        return got == status

    await until(so, f"{url} answers {status}")
    return body


async def test_a_probe_is_answered_while_code_blocks_the_daemon(
    start: Start, client: sf.Client, tmp_path: Path
) -> None:
    daemon = start("daemon", "--shards", "4", "--interrupt", "4", "--http", "127.0.0.1:0")
    url = await address(daemon)
    assert (await answers(f"{url}/ready", 200)) == {"ready": True, "reasons": []}
    assert (await answers(f"{url}/health", 200))["pid"] == daemon.pid
    run = await client.start(blocks, str(tmp_path / "journal"), 4.0)
    [problem] = (await answers(f"{url}/health", 503))["problems"]
    assert problem.startswith(f"the event loop is blocked by step block of run {run.id} for ")
    assert "blocking_flows.py" in problem
    assert await run.result(timeout=30) == "done"
    await answers(f"{url}/health", 200)
    bad = await client.start(spins, id="bad")
    [problem] = (await answers(f"{url}/health", 503))["problems"]
    assert problem.startswith("the event loop is blocked by the code of run bad for ")
    await answers(f"{url}/health", 200)  # it was interrupted, and is parked
    await bad.terminate()


async def test_a_daemon_that_drains_lives_and_is_not_ready(start: Start, client: sf.Client, tmp_path: Path) -> None:
    daemon = start("daemon", "--shards", "4", "--grace", "20", STREAMFLOW_HTTP="127.0.0.1:0")
    url = await address(daemon)
    await answers(f"{url}/ready", 200)
    run = await client.start("waits", str(tmp_path / "journal"))

    async def begun() -> bool:
        return (tmp_path / "journal").exists()

    await until(begun, "the step has begun")
    daemon.send(signal.SIGTERM)
    assert await answers(f"{url}/ready", 503) == {"ready": False, "reasons": ["it is draining"]}
    status, health = await asyncio.to_thread(ask, f"{url}/health")
    assert (status, health["warnings"]) == (200, ["it is draining"])
    (tmp_path / "journal.go").touch()
    assert await daemon.wait() == 0
    assert (await run.describe()).status is sf.Status.COMPLETED


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_without_its_server_a_process_lives_and_is_not_ready(
    start: Start, namespace: str, tmp_path: Path, how: str
) -> None:
    """Else a probe would restart all of them, in every outage that is longer than its patience."""
    environ = {"TMPDIR": str(tmp_path), "STREAMFLOW_WORKER_TIMEOUT": "2"}

    async def health(process: ServingProcess, *words: str) -> tuple[int, Any]:
        command = [sys.executable, "-m", "streamflow", "health", "--pid", str(process.pid), "--json", *words]
        done = await anyio.run_process(command, env={**os.environ, **environ}, cwd=ROOT, check=False)
        return done.returncode, json.loads(done.stdout)["processes"][0]

    async with EmbeddedServer(tmp_path / "data") as server:
        own = {**environ, "STREAMFLOW_REDIS": server.url}
        daemon = start(
            "daemon", "--shards", "4", "--http", "127.0.0.1:0", "--interrupt-steps", "0", server=server, **own
        )
        where = await address(daemon)
        await answers(f"{where}/ready", 200)
        worker = start("worker", "--queue", "gpu", "--force", "--http", "127.0.0.1:0", server=server, **own)
        there = await address(worker)
        await answers(f"{there}/ready", 200)
        async with sf.connect(server.url, namespace=namespace) as client:
            await client.start(blocks, str(tmp_path / "journal"), 5.0)

        async def begun() -> bool:
            return (tmp_path / "journal").exists()

        await until(begun, "the step has begun")
        os.kill(server.pid, signal.SIGSTOP if how == "stopped" else signal.SIGKILL)
        try:
            [problem] = (await answers(f"{where}/health", 503))["problems"]
            assert problem.startswith("the event loop is blocked by step block")
            for process, url in ((daemon, where), (worker, there)):
                await answers(f"{url}/ready", 503)
                said = await answers(f"{url}/health", 200)
                assert said["problems"] == []
                assert any(
                    re.match("the server has (confirmed no heartbeat|answered nothing)", w) for w in said["warnings"]
                )

                async def silent(process: ServingProcess = process) -> bool:
                    code, whole = await health(process)  # as it was written last, perhaps while the step blocked
                    return code == 1 and [problem[:14] for problem in whole["problems"]] == ["the server has"]

                await until(silent, "the command says that the server is silent, and no more")
                code, live = await health(process, "--live")
                assert (code, live["problems"]) == (0, [])
        finally:
            if how == "stopped":
                os.kill(server.pid, signal.SIGCONT)
        if how == "stopped":
            for url in (where, there):
                await answers(f"{url}/ready", 200)


async def test_a_port_that_is_taken_ends_the_command_at_once(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        for words in (("daemon", "--shards", "4"), ("worker", "--queue", "gpu", "--force")):
            process = start(*words, "--http", place)
            assert await process.wait() == 2
            assert process.logged(f"can't listen at {place} (--http): Address already in use")
            assert not process.logged("serves")
