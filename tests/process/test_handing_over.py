"""A planned hand-over: shards move within a second, and no step that can end within the grace runs twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

import streamflow as sf
from streamflow.embedded.server import EmbeddedServer
from tests.process import killing_flows as flows
from tests.process.faults import ServingProcess, has_reported, until
from tests.process.killing_flows import executions

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

FLOWS = Path(flows.__file__)
NAMES = [f"s{n}" for n in range(12)]
THREADS = [f"t{n}" for n in range(12)]
PROBES = [f"probe{n}" for n in range(32)]


class Daemons:
    def __init__(self, url: str, namespace: str, directory: Path) -> None:
        self._url = url
        self._namespace = namespace
        self._directory = directory
        self.all: list[ServingProcess] = []

    async def start(self, *options: str) -> ServingProcess:
        """Wait until it owns shards."""
        log = self._directory / f"daemon-{len(self.all)}.log"
        words = ["daemon", "--app", f"{FLOWS}:app", "--shards", "32", "--beat", "0.2", "--dead-after", "1.0", *options]
        daemon = ServingProcess(*words, url=self._url, namespace=self._namespace, log=log)
        self.all.append(daemon)

        async def owns() -> bool:
            return daemon.logged("acquired")

        await until(owns, "it owns shards")
        return daemon


@pytest.fixture
async def daemons(embedded_server: EmbeddedServer, namespace: str, tmp_path: Path) -> AsyncIterator[Daemons]:
    daemons = Daemons(embedded_server.url, namespace, tmp_path)
    try:
        yield daemons
    finally:
        for daemon in daemons.all:
            await daemon.end()


async def begun(journal: Path, count: int) -> None:
    async def all_run() -> bool:
        return executions(journal).total() >= count

    await until(all_run, f"{count} steps run")


async def test_steps_in_flight_report_to_the_new_owner_and_run_once(
    daemons: Daemons, client: sf.Client, journal: Path
) -> None:
    first = await daemons.start()
    runs = [await client.start(flows.waiting, str(journal), name) for name in NAMES]
    runs += [await client.start(flows.holding, str(journal), name) for name in THREADS]
    await begun(journal, 24)
    await daemons.start()

    async def moved() -> bool:
        return first.logged("released")

    await until(moved, "shards have moved")
    probes = [await client.start(flows.innocent, str(journal), name, 0.0) for name in PROBES]
    await asyncio.gather(*(run.result(timeout=20) for run in probes))
    flows.released(journal).touch()  # not before: nothing waits for the steps in flight
    assert [await run.result(timeout=20) for run in runs] == NAMES + THREADS
    assert set(executions(journal).values()) == {1}
    assert not first.logged("; 0 steps of theirs go on here"), "steps were in flight"


async def test_a_rolling_deploy_runs_no_step_twice(daemons: Daemons, client: sf.Client, journal: Path) -> None:
    old = [await daemons.start() for _ in range(2)]
    runs = [await client.start(flows.innocent, str(journal), name, 5.0) for name in NAMES]
    await begun(journal, len(NAMES))
    for daemon in old:
        await daemons.start()
        daemon.process.terminate()
        assert await daemon.wait() == 0
    assert [await run.result(timeout=20) for run in runs] == NAMES
    assert set(executions(journal).values()) == {1}


async def test_steps_longer_than_the_grace_begin_again_with_their_details(
    daemons: Daemons, client: sf.Client, journal: Path
) -> None:
    old = await daemons.start("--grace", "1", "--dead-after", "5")
    run = await client.start(flows.counting, str(journal), 10_000)
    await begun(journal, 1)
    await daemons.start("--dead-after", "5")
    await until(lambda: has_reported(client, 10), "what it has counted is on the server")
    old.process.terminate()
    assert await old.wait() == 0
    await begun(journal, 2)
    flows.released(journal).touch()
    continued = await run.result(timeout=20)
    assert continued >= 10
    assert executions(journal) == {"from 0": 1, f"from {continued}": 1}


async def test_steps_of_a_host_that_dies_begin_again(daemons: Daemons, client: sf.Client, journal: Path) -> None:
    host = await daemons.start()
    runs = [await client.start(flows.waiting, str(journal), name) for name in NAMES]
    await begun(journal, len(NAMES))
    await daemons.start()

    async def moved() -> bool:
        return host.logged("steps of theirs go on here")

    await until(moved, "steps are lent")
    host.process.kill()
    await begun(journal, 2 * len(NAMES))
    flows.released(journal).touch()
    assert [await run.result(timeout=20) for run in runs] == NAMES
    assert set(executions(journal).values()) == {2}


async def test_a_cancelled_run_stops_its_step_at_the_former_owner(
    daemons: Daemons, client: sf.Client, journal: Path
) -> None:
    host = await daemons.start()
    runs = [await client.start(flows.innocent, str(journal), name, 60.0) for name in NAMES]
    await begun(journal, len(NAMES))
    await daemons.start()

    async def moved() -> bool:
        return host.logged("steps of theirs go on here")

    await until(moved, "steps are lent")
    await asyncio.gather(*(run.cancel("not needed") for run in runs))
    for run in runs:
        with pytest.raises(sf.RunCancelled):
            await run.result(timeout=10)

    async def stopped() -> bool:
        return host.logged("is no longer needed and is stopped")

    await until(stopped, "the host has stopped them")
    host.process.terminate()
    assert await host.wait(30.0) == 0, "it waits for no step: they take a minute"


async def test_a_last_daemon_returns_what_it_still_runs_in_time(
    daemons: Daemons, client: sf.Client, journal: Path
) -> None:
    """Its shards and its steps have one grace together, not one after the other: then nothing is taken for lost."""
    last = await daemons.start("--grace", "6")
    run = await client.start(flows.counting, str(journal), 80)
    await begun(journal, 1)
    last.process.terminate()
    assert await last.wait() == 0
    assert last.logged("drained")
    await daemons.start()
    continued = await run.result(timeout=20)
    assert continued > 30, "six seconds, less what the machine does besides"
    assert "WorkerLost" not in str([event async for _, event in run.events()])


async def test_a_server_that_is_silent_for_a_moment_costs_no_grace(
    embedded_server: EmbeddedServer, daemons: Daemons, client: sf.Client, journal: Path
) -> None:
    """A heartbeat of the draining daemon fails meanwhile."""
    last = await daemons.start("--dead-after", "4")
    runs = [await client.start(flows.innocent, str(journal), name, 5.0) for name in NAMES]
    await begun(journal, len(NAMES))
    async with Redis.from_url(embedded_server.url) as redis:
        await redis.execute_command("CLIENT", "PAUSE", 3000)
    last.process.terminate()
    assert await last.wait() == 0
    assert last.logged("a heartbeat or a release failed while draining"), "the fault took place"
    assert last.logged("drained")
    await daemons.start()
    assert [await run.result(timeout=20) for run in runs] == NAMES
    assert set(executions(journal).values()) == {1}
