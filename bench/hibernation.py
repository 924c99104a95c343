"""What hibernation saves and costs: bytes of a waiting run on the server, and how fast runs go and come.

    python -m bench.hibernation [--runs 100000] [--shards 64] [--directory DIRECTORY]

Owns: the load: runs that wait for a signal, moved out by one daemon, and woken by signals. Called by: hand; the figures
are in docs/decisions/0057 and docs/operations.md.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import streamflow as sf
from streamflow.embedded.daemon_process import DaemonProcess
from streamflow.embedded.server import EmbeddedServer
from streamflow.store.connection import Call

from .flows import park

NAMESPACE = "bench"
CHUNK = 5000
SIGNALS = 2000
"""Runs that are woken by signals."""
SETTLED = 4.0
"""Seconds for the checkpoints of the views, and for memory that is freed."""


async def measure(directory: Path, runs: int, shards: int) -> None:
    base: dict[str, Any] = {"shards": shards, "log_level": "warning", "log_bytes": 1_000_000, "cache": 4096}
    base["archive"] = f"file://{directory}/archive"
    async with EmbeddedServer(directory / "server") as server, sf.connect(server.url, namespace=NAMESPACE) as client:
        daemon = DaemonProcess("bench.flows:app", server.url, NAMESPACE, None, base)
        try:
            await _ready(client)
            empty = await _used(client)
            began = time.monotonic()
            for first in range(0, runs, CHUNK):
                await client.start_many(park, [(number,) for number in range(min(CHUNK, runs - first))])
            await _reduced(client)
            await asyncio.sleep(SETTLED)
            inside = await _used(client) - empty
            print(
                f"{runs:,} runs started in {time.monotonic() - began:.0f} s: {inside / runs:.0f} bytes each in memory"
            )
        finally:
            await daemon.end()
        settings = {**base, "hibernate_after": 1.0}
        began = time.monotonic()
        daemon = DaemonProcess("bench.flows:app", server.url, NAMESPACE, None, settings)
        try:
            while (asleep := await client.hibernating()) < runs:
                print(f"  {asleep:,} moved out", end="\r", flush=True)
                await asyncio.sleep(1.0)
            took = time.monotonic() - began
            await asyncio.sleep(SETTLED)
            outside = await _used(client) - empty
            print(f"moved out in {took:.0f} s ({runs / took:,.0f} a second): {outside / runs:.0f} bytes each in memory")
            page = await client.hibernating_runs(limit=SIGNALS)
            began = time.monotonic()
            handles = [client.run(run.id) for run in page]
            await asyncio.gather(*(run.signal("go", 1) for run in handles))
            await asyncio.gather(*(run.result(120) for run in handles))
            took = time.monotonic() - began
            print(f"{len(page):,} woken by signals, and ended, in {took:.1f} s ({len(page) / took:,.0f} a second)")
            latencies: list[float] = []
            for run in await client.hibernating_runs(limit=100):
                began = time.monotonic()
                await client.run(run.id).signal("go", 1)
                await client.run(run.id).result(60)
                latencies.append(time.monotonic() - began)
            print(f"one after the other: {1000 * sorted(latencies)[len(latencies) // 2]:.1f} ms from signal to result")
        finally:
            await daemon.end(kill=True)


async def _ready(client: sf.Client) -> None:
    while True:
        try:
            await client.read_namespace()
            return
        except sf.StreamflowError:
            await asyncio.sleep(0.1)


async def _reduced(client: sf.Client) -> None:
    inboxes = [client.keys.shard(number).inbox for number in range((await client.read_namespace()).shards)]
    left = 1
    while left:
        await asyncio.sleep(0.2)
        left = sum(await client.store.send([Call.plain("XLEN", inbox) for inbox in inboxes]))


async def _used(client: sf.Client) -> int:
    info = await client.store.one(Call.plain("INFO", "memory"))
    return int(info["used_memory"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--directory", type=Path, default=None, help="where; a temporary one, which is removed")
    given = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="hibernation-", dir=given.directory))
    try:
        asyncio.run(measure(directory, given.runs, given.shards))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
