"""Sources whose process is killed between the start of runs and the acknowledgement: each delivery starts one run, also
of a consumer group that is left with one member."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import anyio.to_thread
import psycopg
import pytest
from redis import Redis

import streamflow as sf
from streamflow.embedded.server import EmbeddedServer
from streamflow.triggers.postgres_outbox import ddl
from tests.process.faults import ROOT, until
from tests.support.kafka import committed, mock_brokers, produce
from tests.support.postgres import PostgresServer, postgres_of_this_process
from tests.support.serving import running_daemon

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

SCRIPT = Path(__file__).with_name("trigger_killing.py")
COUNT = 20
DELIVERIES = [json.dumps({"number": number}) for number in range(COUNT)]

app = sf.App()


@app.workflow
async def order(number: int) -> int:
    return number


Left = Callable[[], int]
Check = Callable[[str, str, Left], Awaitable[None]]
Serve = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def serve(embedded_server: EmbeddedServer, namespace: str) -> Iterator[Serve]:
    """Starts the script with these arguments; what it has started is ended afterwards."""
    started: list[subprocess.Popen[bytes]] = []

    def serve(*words: str, **environ: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, SCRIPT, embedded_server.url, namespace, *words]
        started.append(subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environ}))
        return started[-1]

    yield serve
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def each_starts_one_run(serve: Serve, embedded_server: EmbeddedServer, namespace: str) -> Check:
    """`await each_starts_one_run(kind, place, left)`, where `left()` is the number that isn't acknowledged: serves the
    source in a process that is killed, then in another one."""

    async def check(kind: str, place: str, left: Left) -> None:
        async with (
            running_daemon(app, embedded_server, namespace, crash=False),
            sf.connect(embedded_server.url, namespace=namespace) as client,
        ):
            first = serve(kind, place, "die")
            assert await anyio.to_thread.run_sync(first.wait, 30) == -signal.SIGKILL
            assert len(await client.runs(limit=1000)) > 0, "it has started some"
            assert left() == COUNT, "and has acknowledged none"
            serve(kind, place)

            async def none_left() -> bool:
                return await anyio.to_thread.run_sync(left) == 0

            await until(none_left, "the other one has acknowledged all", 40.0)
            results = [await client.run(run.id).result(20) for run in await client.runs(limit=1000)]
            assert sorted(results) == list(range(COUNT))

    return check


async def test_each_element_of_a_list_starts_one_run(
    each_starts_one_run: Check, embedded_server: EmbeddedServer, namespace: str
) -> None:
    key = f"orders-{namespace}"
    with Redis.from_url(embedded_server.url) as redis:
        redis.rpush(key, *DELIVERIES)

        def left() -> int:
            return int(redis.llen(key)) + int(redis.hlen(f"{{{key}}}:streamflow:ordered:taken"))  # type: ignore[arg-type]

        await each_starts_one_run("list", key, left)


@pytest.fixture(scope="module")
def postgres_server() -> Iterator[PostgresServer]:
    yield from postgres_of_this_process()


async def test_each_row_of_postgres_starts_one_run(each_starts_one_run: Check, postgres_server: PostgresServer) -> None:
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute(ddl().encode())
        for delivery in DELIVERIES:
            connection.execute("INSERT INTO streamflow_outbox (channel, payload) VALUES ('orders', %s)", (delivery,))

        def left() -> int:
            [count] = connection.execute("SELECT count(*) FROM streamflow_outbox").fetchone() or (0,)
            return int(count)

        await each_starts_one_run("postgres", postgres_server.url, left)


async def test_each_record_of_kafka_starts_one_run(each_starts_one_run: Check) -> None:
    with mock_brokers() as brokers:
        produce(brokers, "killed", *((None, delivery.encode()) for delivery in DELIVERIES))

        def left() -> int:
            return COUNT - committed(brokers, "killed", "ordered")

        await each_starts_one_run("kafka", brokers, left)


class Received(NamedTuple):
    """A line of the journal."""

    pid: int
    partition: int
    number: int


async def test_a_member_takes_over_the_partitions_of_one_that_is_killed(
    serve: Serve, embedded_server: EmbeddedServer, namespace: str, journal: Path, tmp_path: Path
) -> None:
    produced = 0

    def produce_some(count: int) -> None:
        nonlocal produced
        numbers = range(produced, produced + count)
        produce(brokers, "shared", *((f"{one}", json.dumps({"number": one}).encode()) for one in numbers))
        produced += count

    def received() -> list[Received]:
        return [Received(*map(int, line.split())) for line in journal.read_text().splitlines()]

    async def all_committed() -> bool:
        return await anyio.to_thread.run_sync(committed, brokers, "shared", "ordered") == produced

    async def until_both_have_some() -> None:
        """Each has received what was produced last in some partitions."""
        for _ in range(60):
            before = len(received())
            produce_some(COUNT)
            await until(all_committed, "the group has committed all", 40.0)
            if {one.pid for one in received()[before:]} == {survivor.pid, victim.pid}:
                return
        raise AssertionError("one of them has no partition")

    with mock_brokers() as brokers:
        dies = tmp_path / "dies"
        produce_some(1)  # which makes the topic
        async with (
            running_daemon(app, embedded_server, namespace, crash=False),
            sf.connect(embedded_server.url, namespace=namespace) as client,
        ):
            survivor = serve("shared-topic", brokers, JOURNAL=str(journal))
            victim = serve("shared-topic", brokers, "die-when", str(dies), JOURNAL=str(journal))
            await until_both_have_some()
            dies.touch()
            seen = len(received())
            produce_some(COUNT)
            assert await anyio.to_thread.run_sync(victim.wait, 40) == -signal.SIGKILL
            lost = [one for one in received()[seen:] if one.pid == victim.pid]
            assert lost, "it has started runs, and has committed nothing of them"
            produce_some(COUNT)
            await until(all_committed, "the other one has committed all", 60.0)
            again = {one.number: one for one in received() if one.pid == survivor.pid}
            assert {one.number for one in lost} <= again.keys(), "it has received these, too"
            assert {again[one.number].partition for one in lost} == {one.partition for one in lost}
            runs = await client.runs(limit=1000)
            assert sorted([await client.run(run.id).result(20) for run in runs]) == list(range(produced))
