"""Processes that serve triggers, and are killed between what a delivery is for and its acknowledgement."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import signal
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from click.testing import CliRunner
from redis import Redis

import streamflow as sf
from streamflow.cli import cli
from streamflow.embedded.server import EmbeddedServer
from streamflow.triggers.quarantine import DeliveryQuarantine
from streamflow.workflow.trigger import Received
from tests.process import faults
from tests.process.faults import ServingProcess
from tests.process.trigger_flows import app
from tests.support.serving import running_daemon
from tests.support.shell import Shell

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

FLOWS = Path(__file__).with_name("trigger_flows.py")
SECRET = "s3cret-of-the-tests"
Start = Callable[..., ServingProcess]


@pytest.fixture
async def start(embedded_server: EmbeddedServer, namespace: str, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts `streamflow trigger …`; all end with the test."""
    started: list[ServingProcess] = []

    def start(*words: str) -> ServingProcess:
        log = tmp_path / f"{len(started)}.log"
        command = ["trigger", *words, "--app", f"{FLOWS}:app"]
        environ = {"HOOK_SECRET": SECRET, "ORDERS": f"orders-{namespace}"}
        started.append(ServingProcess(*command, url=embedded_server.url, namespace=namespace, log=log, **environ))
        return started[-1]

    yield start
    for process in started:
        await process.end()
    with Redis.from_url(embedded_server.url) as redis:
        redis.delete(f"orders-{namespace}")


@asynccontextmanager
async def daemon(server: EmbeddedServer, namespace: str) -> AsyncGenerator[sf.Client, None]:
    async with (
        running_daemon(app, server, namespace, crash=False),
        sf.connect(server.url, namespace=namespace) as client,
    ):
        yield client


async def until(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    async def holds() -> bool:
        return condition()

    await faults.until(holds, what, seconds)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def listening(process: ServingProcess, port: int) -> None:
    def answers() -> bool:
        assert process.process.poll() is None, process.log.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    await until(answers, "it listens")


async def deliver(http: httpx.AsyncClient, port: int, number: int) -> int:
    """The status of the answer; 0 if there is none."""
    body = json.dumps({"number": f"order {number}"}).encode()
    signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    headers = {"X-Hub-Signature-256": f"sha256={signature}", "X-GitHub-Delivery": f"d{number}"}
    try:
        return (await http.post(f"http://127.0.0.1:{port}/order", content=body, headers=headers)).status_code
    except httpx.HTTPError:
        return 0


async def test_of_deliveries_whose_process_is_killed_each_starts_one_run(
    embedded_server: EmbeddedServer, namespace: str, start: Start
) -> None:
    async with daemon(embedded_server, namespace) as client, httpx.AsyncClient(timeout=20) as http:
        ports = [free_port(), free_port(), free_port()]
        processes = [start("http", "--listen", f"127.0.0.1:{port}") for port in ports[:2]]
        for process, port in zip(processes, ports[:2], strict=True):
            await listening(process, port)
        answers = [asyncio.create_task(deliver(http, ports[0], number)) for number in range(120)]

        def some_done() -> bool:
            return sum(answer.done() for answer in answers) >= 20

        await until(some_done, "some are answered")
        processes[0].send(signal.SIGKILL)
        codes = await asyncio.gather(*answers)
        assert 0 in codes, "it was killed with deliveries under way"
        assert codes.count(202) >= 20
        taken = {number for number, code in enumerate(codes) if code == 202}
        runs = await client.runs(limit=1000)
        assert len(runs) >= len(taken), "what was acknowledged is there"
        # The sender delivers again what wasn't acknowledged, and some that was, to another process.
        again = [number for number in range(120) if number not in taken or number % 2]
        assert set(await asyncio.gather(*(deliver(http, ports[1], number) for number in again))) == {202}
        runs = await client.runs(limit=1000)
        results = [await client.run(run.id).result(20) for run in runs]
        assert sorted(results) == sorted(f"order {number}" for number in range(120))


async def test_of_entries_whose_process_is_killed_each_starts_one_run(
    embedded_server: EmbeddedServer, namespace: str, start: Start
) -> None:
    key = f"orders-{namespace}"
    async with daemon(embedded_server, namespace) as client:
        with Redis.from_url(embedded_server.url, decode_responses=True) as redis:
            for number in range(150):
                redis.xadd(key, {"number": f"order {number}"})

            def left() -> tuple[int, int]:
                groups: Any = redis.xinfo_groups(key)
                return (groups[0]["pending"], groups[0]["lag"]) if groups else (0, 150)

            first = start("run")
            await until(lambda: left()[0] > 0, "it has taken some")
            first.send(signal.SIGKILL)
            await first.wait()
            pending, _ = left()
            assert pending > 0, "it was killed between a start and its acknowledgement"
            others = [start("run", "queued"), start("run")]
            await until(lambda: left() == (0, 0), "the others have acknowledged all", 60.0)
            await until(lambda: all(one.logged("receives from") for one in others), "the slower one has begun, too")
            for other in others:
                other.send(signal.SIGTERM)
            assert [await other.wait() for other in others] == [0, 0]
        results = [await client.run(run.id).result(20) for run in await client.runs(limit=1000)]
        assert sorted(results) == sorted(f"order {number}" for number in range(150))


async def test_a_real_server_answers_refuses_and_ends(
    embedded_server: EmbeddedServer, namespace: str, start: Start
) -> None:
    async with daemon(embedded_server, namespace), httpx.AsyncClient(timeout=20) as http:
        port = free_port()
        process = start("http", "--listen", f"127.0.0.1:{port}")
        await listening(process, port)
        url = f"http://127.0.0.1:{port}"
        assert (await http.get(f"{url}/order")).status_code == 405
        assert (await http.post(f"{url}/other")).status_code == 404
        assert (await http.post(f"{url}/order", content=b"x")).status_code == 401
        with socket.create_connection(("127.0.0.1", port), 10) as sender:  # says that it will send more than it may
            sender.sendall(b"POST /order HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
            assert b" 413 " in await anyio.to_thread.run_sync(sender.recv, 1000)
        assert await deliver(http, port, 1) == 202
        process.send(signal.SIGTERM)
        assert await process.wait() == 0
        assert SECRET not in process.log.read_text()


async def test_what_can_not_be_served_is_said_in_one_line(
    embedded_server: EmbeddedServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMFLOW_REDIS", embedded_server.url)
    monkeypatch.setenv("STREAMFLOW_NAMESPACE", namespace)

    async def said(*words: str) -> str:
        command = [sys.executable, "-m", "streamflow", "trigger", *words, "--app", f"{FLOWS}:app"]
        done = await anyio.run_process(command, check=False)
        assert done.returncode == 2, done.stderr
        assert b"Traceback" not in done.stderr
        return done.stderr.decode().splitlines()[-1]

    async with daemon(embedded_server, namespace):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            monkeypatch.delenv("HOOK_SECRET", raising=False)
            assert "HOOK_SECRET is empty or not set" in await said("http", "--listen", address)
            monkeypatch.setenv("HOOK_SECRET", SECRET)
            assert f"could not listen on {address}: is it in use?" in await said("http", "--listen", address)
        assert "the app has no trigger 'other'" in await said("run", "other")


async def test_the_commands_list_show_redrive_and_drop(
    embedded_server: EmbeddedServer, namespace: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_SECRET", SECRET)

    def run(*words: str, code: int = 0) -> Any:
        environ = {"STREAMFLOW_REDIS": embedded_server.url, "STREAMFLOW_NAMESPACE": namespace, "COLUMNS": "120"}
        result = CliRunner().invoke(cli, ["trigger", *words], env=environ)
        assert result.exit_code == code, result.output
        return json.loads(result.stdout) if "--json" in words else result.stdout

    async with daemon(embedded_server, namespace) as client:
        quarantine = DeliveryQuarantine(client)
        for name, body in (("d1", b'{"number":"mended"}'), ("d2", b"broken"), ("d3", b"broken")):
            await quarantine.put("ordered", Received(id=name, body=body, headers={"from": "a"}, at=1), f"why {name}")

        def in_thread(*words: str, code: int = 0) -> Any:
            return anyio.to_thread.run_sync(lambda: run(*words, code=code))

        listed = await in_thread("list", "--app", f"{FLOWS}:app", "--json")
        assert [(one["name"], one["kind"]) for one in listed] == [("ordered", "http"), ("queued", "stream")]
        kept = await in_thread("quarantine", "list", "--json")
        assert sorted(one["delivery"] for one in kept) == ["d1", "d2", "d3"]
        ids = {one["delivery"]: one["id"] for one in kept}
        shown = await in_thread("quarantine", "show", ids["d1"])
        assert "why d1" in shown
        assert '"mended"' in shown
        done = await in_thread("quarantine", "redrive", ids["d1"], ids["d2"], "--app", f"{FLOWS}:app", "--json", code=1)
        assert [one["outcome"] for one in done] == ["redriven", "stays"]
        assert await client.run(done[0]["runs"][0]).result(20) == "mended"
        await in_thread("quarantine", "drop", ids["d3"])
        assert [one["delivery"] for one in await in_thread("quarantine", "list", "--json")] == ["d2"]
        await quarantine.drop(ids["d2"])


async def test_a_trigger_that_nobody_knows_is_refused_with_those_that_exist(
    embedded_server: EmbeddedServer, namespace: str
) -> None:
    shell = Shell(embedded_server.url, namespace, "trigger", "quarantine")
    app = ("--app", f"{FLOWS}:app")
    async with daemon(embedded_server, namespace) as client:
        quarantine = DeliveryQuarantine(client)
        kept = await quarantine.put("ordered", Received(id="d", body=b"broken", headers={}, at=1), "why")
        known = "no process serves trigger order, and no delivery of it is quarantined; did you mean ordered?"
        assert f"{known} Known triggers: ordered\n" in await shell("list", "--trigger", "order", code=2)
        assert known in await shell("drop", "--trigger", "order", "--yes", code=2)
        assert f"{known} Known triggers: ordered, queued\n" in await shell(
            "redrive", "--trigger", "order", *app, code=2
        )
        none = "no deliveries of trigger queued are quarantined\n"
        assert await shell("redrive", "--trigger", "queued", *app) == none, "the app has it"
        assert await shell("drop", "--trigger", "ordered", "--yes") == f"{kept}: dropped\n"
        assert await shell("redrive", "--all", *app) == "no deliveries are quarantined\n"
        assert await shell.data("list") == []
