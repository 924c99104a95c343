"""Daemons of two versions side by side: replaced one by one under load, in both directions, and refused by the schema.

The other version is this one with another version string: what daemons of two releases agree on (records, messages,
heartbeats) may only grow from release to release, and is tested where it is defined.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

import streamflow as sf
from streamflow.embedded.server import EmbeddedServer
from streamflow.status.collector import StatusCollector
from streamflow.store.kernel import SCHEMA
from streamflow.version import __version__
from tests.process.chaos_flows import chain, mixed
from tests.process.faults import ROOT, Cluster, DaemonProcess, audit, cluster
from tests.process.test_faults import STEPS

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

RUNS = 300
OTHER = "99.0.0"


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def start_of_version(made: Cluster, version: str) -> DaemonProcess:
    """A daemon whose version is this one, set before anything has read it."""
    return start_with(made, f"import streamflow.version\nstreamflow.version.__version__ = {version!r}\n")


def start_with(made: Cluster, code: str) -> DaemonProcess:
    """A daemon in whose process `code` runs first."""
    directory = made.directory / f"before-{len(made.daemons)}"
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(code)
    return made.start(PYTHONPATH=os.pathsep.join([str(directory), str(ROOT)]))


@pytest.mark.parametrize(
    ("before", "after"), [(__version__, OTHER), (OTHER, __version__)], ids=["upgrade", "downgrade"]
)
async def test_a_rolling_restart_under_load_runs_nothing_twice(
    embedded_server: EmbeddedServer, namespace: str, tmp_path: Path, journal: Path, before: str, after: str
) -> None:
    async with (
        cluster(embedded_server.url, namespace, tmp_path) as made,
        sf.connect(embedded_server.url, namespace=namespace) as client,
    ):
        former = [start_of_version(made, before) for _ in range(2)]
        await made.shared_by(*former)
        serving = list(former)
        running: list[asyncio.Task[int]] = []
        is_replaced = asyncio.Event()

        async def run_one(number: int) -> int:
            run = await client.start(mixed, str(journal), number, id=f"mixed-{number}")
            await run.signal("extra", 0)
            return await run.result(timeout=60)

        async def load() -> None:
            """A run each few ms, until all daemons are of the other version."""
            while not is_replaced.is_set() or len(running) < RUNS:
                running.append(asyncio.create_task(run_one(len(running))))
                await asyncio.sleep(0.01)

        loading = asyncio.create_task(load())
        for old in former:
            serving.append(start_of_version(made, after))
            await made.shared_by(*serving)
            status = await StatusCollector(client).settled()
            assert {row.heartbeat.version for row in status.daemons} == {before, after}, "side by side"
            old.send(signal.SIGTERM)
            assert await old.wait() == 0
            serving.remove(old)
            await made.shared_by(*serving)
        is_replaced.set()
        await loading
        results = await asyncio.gather(*running)
        assert results == [number + STEPS for number in range(len(running))]
        status = await StatusCollector(client).settled()
        assert {row.heartbeat.version for row in status.daemons} == {after}
        seen = await audit(embedded_server.url, namespace, made.shards)
        assert seen.recorded_steps == len(running) * STEPS
        assert journal.stat().st_size == len(running) * (STEPS + 1), "each step once, and each first stumble"
        assert seen.poison == 0


async def test_a_daemon_of_another_schema_is_refused_and_changes_nothing(
    embedded_server: EmbeddedServer, namespace: str, tmp_path: Path, journal: Path
) -> None:
    async with (
        cluster(embedded_server.url, namespace, tmp_path) as made,
        sf.connect(embedded_server.url, namespace=namespace) as client,
    ):
        serving = made.start()
        await made.shared_by(serving)
        other = start_with(made, f"import streamflow.store.kernel\nstreamflow.store.kernel.SCHEMA = {SCHEMA + 1}\n")
        assert await other.wait() == 1
        assert other.logged(f"has schema {SCHEMA}, and this version of streamflow uses schema {SCHEMA + 1}")
        await made.shared_by(serving)
        run = await client.start(chain, str(journal), 3)
        assert await run.result(timeout=20) == 3
        assert not serving.logged('"level":"error"')
