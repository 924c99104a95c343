"""What large payloads cost: a result of 1 MB that is handed through ten steps, on the server and in storage.

    python -m bench.large_payloads [--runs 10] [--size 1000000]

Owns: the load: runs one after the other, and the memory of the server that they leave. Must not: be taken for
throughput. Called by: hand; the figures are in docs/operations.md.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path

import anyio

import streamflow as sf
from streamflow.daemon.daemon import Daemon
from streamflow.embedded.server import EmbeddedServer
from streamflow.settings import Settings
from streamflow.store.connection import Call

app = sf.App()
STEPS = 10


@app.step
async def load(size: int) -> str:
    return os.urandom(size // 2).hex()


@app.step
async def use(text: str) -> int:
    return len(text)


@app.workflow
async def hands_on(size: int) -> str:
    text = await load(size)
    for _ in range(STEPS):
        await use(text)
    return text


def sizes_of(directory: Path) -> list[int]:
    return [path.stat().st_size for path in directory.rglob("*.pay")]


async def measure(what: str, runs: int, size: int, large: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        await measure_in(directory, what, runs, size, large)


async def measure_in(directory: str, what: str, runs: int, size: int, large: int) -> None:
    async with EmbeddedServer() as server:
        archive = f"file://{directory}"
        settings = Settings(redis=server.url, shards=1, archive=archive, large_payload=large)
        daemon = Daemon(app, settings)
        async with anyio.create_task_group() as loops, sf.connect(server.url) as client:
            loops.start_soon(daemon.run)
            await daemon.ready.wait()
            before = (await client.store.one(Call.plain("INFO", "memory")))["used_memory"]
            began = time.perf_counter()
            for _ in range(runs):
                await (await client.start(hands_on, size)).result(60)
            took = time.perf_counter() - began
            after = (await client.store.one(Call.plain("INFO", "memory")))["used_memory"]
            stored = sizes_of(Path(directory))
            memory = (after - before) / runs / 1e6
            print(
                f"{what:12} {1000 * took / runs:8.0f} ms a run   server {memory:6.2f} MB a run   "
                f"storage {len(stored) / runs:.1f} objects, {sum(stored) / runs / 1e6:.2f} MB a run"
            )
            daemon.stop()


async def main(runs: int, size: int) -> None:
    await measure("on server", runs, size, 0)
    await measure("in storage", runs, size, 262_144)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--size", type=int, default=1_000_000)
    options = parser.parse_args()
    asyncio.run(main(options.runs, options.size))
