"""Events a second of each sink: `python -m bench.sinks`, with the extras `kafka`, `parquet`, `postgres` and `webhook`.

Owns: its load and its targets. Must not: be one of the workloads of `streamflow bench`, which need no extras.

A server and a daemon in this process make the events: chains of five no-op steps. Then each sink gets all of them, one
after the other, in this process: to files in a temporary directory, to the mock brokers of librdkafka, to an HTTP
server that only answers 200, and to the PostgreSQL of STREAMFLOW_SINK_POSTGRES, if that is set, into a schema that is
deleted at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

import anyio

import streamflow as sf
from streamflow import sinks

SCHEMA = "streamflow_bench"

app = sf.App()


@app.step
async def nothing(number: int) -> int:
    return number


@app.workflow
async def chain(steps: int) -> int:
    for number in range(steps):
        await nothing(number)
    return steps


class Nowhere(sinks.Sink):
    """What reading, joining and acknowledging take."""

    async def write(self, batch: sf.EventBatch) -> None:
        pass


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    writer.close()


async def receive() -> None:
    """Another process: it would take half of this one's time."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def http_server() -> Generator[str]:
    command = [sys.executable, "-m", "bench.sinks", "receive"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.terminate()


async def measure(client: sf.Client, name: str, sink: sinks.Sink, kinds: list[str] | None = None) -> None:
    began = time.perf_counter()
    figures = await sinks.run(client, sink, group=f"bench-{name}", kinds=kinds, once=True)
    seconds = time.perf_counter() - began
    batch = figures.events / max(figures.batches, 1)
    print(f"{name:10} {figures.events:8,} events {figures.events / seconds:8,.0f} a second, {batch:,.0f} in a batch")


async def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000
    with tempfile.TemporaryDirectory() as folder, http_server() as url:
        async with sf.local(app) as client:
            async with client.events("keep", from_="oldest"):
                pass
            for run in [await client.start(chain, 5) for _ in range(runs)]:
                await run.result()
            await measure(client, "nowhere", Nowhere())
            await measure(client, "jsonl", sinks.Jsonl(str(Path(folder) / "events.jsonl")))
            await measure(client, "parquet", sinks.Parquet(str(Path(folder) / "lake")))
            if server := os.environ.get("STREAMFLOW_SINK_POSTGRES"):
                await measure(client, "postgres", sinks.Postgres(server, into=SCHEMA))
                import psycopg

                async with await psycopg.AsyncConnection.connect(server, autocommit=True) as connection:
                    await connection.execute(f"DROP SCHEMA {SCHEMA} CASCADE".encode())
            import confluent_kafka

            owner = confluent_kafka.Producer({"test.mock.num.brokers": 3, "log_level": 0})
            brokers = ",".join(f"{one.host}:{one.port}" for one in owner.list_topics(timeout=10).brokers.values())
            await measure(client, "kafka", sinks.Kafka(brokers))
            letters = str(Path(folder) / "letters.jsonl")
            await measure(
                client,
                "webhook",
                sinks.Webhook(url, dead_letters=letters, unsigned=True),
                ["RunStarted", "RunCompleted"],
            )


if __name__ == "__main__":
    anyio.run(receive if sys.argv[1:] == ["receive"] else main, backend_options={"use_uvloop": True})
