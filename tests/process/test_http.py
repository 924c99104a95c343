"""Daemons and workers as probes see them: while code blocks them, while they drain, and when their port is taken."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import streamflow as sf
from streamflow.embedded.server import EmbeddedServer
from tests.process.blocking_flows import blocks, spins
from tests.process.faults import ServingProcess, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

FLOWS = Path(__file__).with_name("blocking_flows.py")
Start = Callable[..., ServingProcess]


@pytest.fixture
async def start(embedded_server: EmbeddedServer, namespace: str, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts a command that serves; all end with the test."""
    started: list[ServingProcess] = []

    def start(*words: str, **environ: str) -> ServingProcess:
        log = tmp_path / f"{len(started)}.log"
        command = [*words, "--app", f"{FLOWS}:app"]
        process = ServingProcess(*command, url=embedded_server.url, namespace=namespace, log=log, **environ)
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


async def test_a_port_that_is_taken_ends_the_command_at_once(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        for words in (("daemon", "--shards", "4"), ("worker", "--queue", "gpu", "--force")):
            process = start(*words, "--http", place)
            assert await process.wait() == 2
            assert process.logged(f"can't listen at {place} (--http): Address already in use")
            assert not process.logged("serves")
