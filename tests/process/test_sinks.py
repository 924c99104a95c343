"""Sinks as processes: killed at any moment of a batch, ended by a signal, and as commands."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import psycopg
import pyarrow.parquet  # pyright: ignore[reportMissingTypeStubs]
import pytest

import streamflow as sf
from streamflow.embedded.server import EmbeddedServer
from tests.support.kafka import consume, mock_brokers
from tests.support.postgres import PostgresServer, postgres_of_this_process
from tests.support.receiver import Receiver
from tests.support.serving import running_daemon
from tests.support.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "process" / "sink_killing.py"
RUNS = 24
EVENTS = 4 * RUNS
SECONDS = 60.0

app = sf.App()


@app.step
async def charge(cents: int) -> int:
    return cents


@app.workflow
async def order(cents: int) -> int:
    return await charge(cents)


@pytest.fixture
async def events(embedded_server: EmbeddedServer, namespace: str, client: sf.Client) -> list[str]:
    """The ids of what was committed, all of which the groups `sink` and `jsonl` still have to get."""
    async with running_daemon(app, embedded_server, namespace, crash=False):
        async with client.events("sink", from_="oldest"), client.events("jsonl", from_="oldest"):
            pass
        for run in [await client.start(order, number, id=f"order-{number}") for number in range(RUNS)]:
            await run.result()
        found: list[str] = []
        async with client.events("test", from_="oldest") as subscription:
            async for event in subscription:
                found.append(event.id)
                if len(found) == EVENTS:
                    break
    return found


Killed = Callable[..., Awaitable[None]]


@pytest.fixture
def killed(embedded_server: EmbeddedServer, namespace: str, tmp_path: Path) -> Killed:
    """`await killed(sink, target, point…)` starts the sink once for each point, where it is killed, and once more."""

    def run(name: str, target: str, *points: str) -> None:
        journal = tmp_path / "journal"
        journal.touch()
        command = [sys.executable, SCRIPT, embedded_server.url, namespace, name, target, journal, *points]
        for code in [-signal.SIGKILL] * len(points) + [0]:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
            assert done.returncode == code, done.stderr
        assert journal.read_text().splitlines() == list(points)

    async def killed(*words: str) -> None:
        await anyio.to_thread.run_sync(lambda: run(*words))

    return killed


@pytest.fixture(scope="module")
def postgres_server() -> Iterator[PostgresServer]:
    yield from postgres_of_this_process()


async def test_postgres_has_each_event_exactly_once(
    events: list[str], killed: Killed, postgres_server: PostgresServer
) -> None:
    await killed("postgres", postgres_server.url, "uncommitted", "after")
    with psycopg.connect(postgres_server.url) as connection:
        found = connection.execute("SELECT id FROM streamflow.events").fetchall()
        assert sorted(one for (one,) in found) == sorted(events)
        runs = connection.execute("SELECT status, events, steps FROM streamflow.runs").fetchall()
        assert runs == [("completed", 4, 1)] * RUNS
        written = connection.execute("SELECT sum(events) FROM streamflow.positions").fetchall()
        assert written == [(EVENTS,)]


@pytest.mark.parametrize("target", ["events.jsonl", "events/"])
async def test_lines_are_whole_and_no_event_is_there_twice(
    events: list[str], killed: Killed, tmp_path: Path, target: str
) -> None:
    await killed("jsonl", f"{tmp_path}/{target}", "torn", "after")
    found = [json.loads(line)["id"] for file in tmp_path.rglob("*.jsonl") for line in file.read_text().splitlines()]
    assert sorted(found) == sorted(events)


async def test_parquet_files_are_whole_and_no_event_is_there_twice(
    events: list[str], killed: Killed, tmp_path: Path
) -> None:
    await killed("parquet", str(tmp_path / "lake"), "unnamed", "after")
    files = (tmp_path / "lake").rglob("events-*.parquet")
    found = [one for file in files for one in pyarrow.parquet.read_table(file).column("id").to_pylist()]
    assert sorted(found) == sorted(events)


async def test_a_webhook_gets_each_event_again_under_the_same_id(events: list[str], killed: Killed) -> None:
    receiver = Receiver()
    try:
        await killed("webhook", receiver.url, "half", "after")
    finally:
        receiver.close()
    ids = [request.headers["webhook-id"] for request in receiver.received]
    assert len(set(ids)) == len(events) < len(ids)
    assert set(receiver.taken) == set(events)
    kinds: dict[str, list[str]] = {}
    for request in receiver.received:
        kinds.setdefault(request.data["run_id"], []).append(request.data["kind"])
    for of_run in kinds.values():  # in order for each run, when what came again is left out
        assert list(dict.fromkeys(of_run)) == ["RunStarted", "StepScheduled", "StepCompleted", "RunCompleted"]


async def test_kafka_has_each_event_at_least_once(events: list[str], killed: Killed) -> None:
    with mock_brokers() as brokers:
        await killed("kafka", brokers, "after")
        records = await anyio.to_thread.run_sync(consume, brokers, "killed", set(events))
    counted = Counter(dict(record.headers())["id"].decode() for record in records)
    assert set(counted) == set(events)
    assert max(counted.values()) == 2


# --- commands ---------------------------------------------------------------------------------------------------------


def sink(server: EmbeddedServer, namespace: str, *words: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "streamflow", "sink", *words, "--redis", server.url, "--namespace", namespace]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "NO_COLOR": "1", **options},
    )  # fmt: skip
    _started.append(process)
    return process


_started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def each_sink_ends_with_its_test() -> Iterator[None]:
    yield
    while _started:
        process = _started.pop()
        if process.poll() is None:
            process.kill()
            process.communicate()


async def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    return await anyio.to_thread.run_sync(lambda: process.communicate(timeout=SECONDS))


async def test_once_writes_what_is_there_and_prints_figures(
    events: list[str], embedded_server: EmbeddedServer, namespace: str
) -> None:
    printed, _ = await ended(sink(embedded_server, namespace, "jsonl", "-", "--once", "--kind", "RunCompleted"))
    assert [json.loads(line)["kind"] for line in printed.splitlines()] == ["RunCompleted"] * RUNS


async def test_a_signal_ends_a_sink_when_its_batch_is_written(
    events: list[str], embedded_server: EmbeddedServer, namespace: str, tmp_path: Path
) -> None:
    path = tmp_path / "events.jsonl"
    process = sink(embedded_server, namespace, "jsonl", str(path), "--json")
    until = time.monotonic() + SECONDS
    while not path.exists() or path.read_bytes().count(b"\n") < EVENTS:
        assert time.monotonic() < until
        assert process.poll() is None
        await anyio.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    printed, log = await ended(process)
    assert process.returncode == 0, log
    figures = json.loads(printed)
    assert (figures["sink"], figures["group"], figures["events"], figures["failures"]) == ("jsonl", "jsonl", EVENTS, 0)
    again, _ = await ended(sink(embedded_server, namespace, "jsonl", str(path), "--json", "--once"))
    assert json.loads(again)["events"] == 0


async def test_with_http_a_sink_answers_probes_and_prometheus(
    events: list[str], embedded_server: EmbeddedServer, namespace: str, tmp_path: Path
) -> None:
    path = tmp_path / "events.jsonl"
    process = sink(embedded_server, namespace, "jsonl", str(path), "--http", "127.0.0.1:0", "--log-format", "json")
    assert process.stderr is not None
    try:
        line = await anyio.to_thread.run_sync(process.stderr.readline)
        [url] = re.findall(r"http://127.0.0.1:[0-9]+", line)

        async def fetch(page: str) -> str:
            def get() -> str:
                with urllib.request.urlopen(f"{url}/{page}", timeout=SECONDS) as response:
                    return response.read().decode()

            return await anyio.to_thread.run_sync(get)

        async def has_written_all() -> bool:
            written = re.search(r"^streamflow_sink_events_total{.*} (.*)$", await fetch("metrics"), re.MULTILINE)
            return written is not None and float(written[1]) == EVENTS

        await until(has_written_all)
        assert json.loads(await fetch("ready")) == {"ready": True, "reasons": []}
        assert json.loads(await fetch("health"))["kind"] == "sink"
    finally:
        process.send_signal(signal.SIGTERM)
        await ended(process)
    assert process.returncode == 0


async def test_a_password_in_the_arguments_is_refused(embedded_server: EmbeddedServer, namespace: str) -> None:
    process = sink(embedded_server, namespace, "postgres", "postgresql://etl:geheim@db/x", "--once")
    _, said = await ended(process)
    assert process.returncode == 2
    assert "geheim" not in said
    assert "STREAMFLOW_SINK_POSTGRES" in said
