"""Sources whose process is killed between the start of runs and the acknowledgement: each delivery starts one run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

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


@pytest.fixture
async def each_starts_one_run(embedded_server: EmbeddedServer, namespace: str) -> AsyncIterator[Check]:
    """`await each_starts_one_run(kind, place, left)`, where `left()` is the number that isn't acknowledged: serves the
    source in a process that is killed, then in another one."""
    started: list[subprocess.Popen[bytes]] = []

    def serve(*words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, SCRIPT, embedded_server.url, namespace, *words]
        started.append(subprocess.Popen(command, cwd=ROOT))
        return started[-1]

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

    yield check
    for process in started:
        process.kill()
        process.wait()


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
