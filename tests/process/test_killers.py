"""Code that ends its own process harms itself: it is found by the second death and given up after the third."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import streamflow as sf
from streamflow.embedded.server import EmbeddedServer
from streamflow.loops import wait_until
from streamflow.steps.executor import FORKED
from tests.process import killing_flows as flows
from tests.process.faults import ServingProcess, has_reported, until
from tests.process.killing_flows import executions

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

FLOWS = Path(flows.__file__)
SHARDS = 64
"""So many that each of two daemons wins some of them, whatever their names are."""
NAMES = [f"i{n}" for n in range(8)]
OPTIONS = ["--app", f"{FLOWS}:app"]
DAEMON = ["daemon", *OPTIONS, "--shards", f"{SHARDS}", "--beat", "0.2", "--dead-after", "1.0"]
WORKER = ["worker", *OPTIONS, "--queue", "killers", "--worker-timeout", "1.0"]


class Fleet:
    """Processes that are started again when they end, as a service manager does."""

    def __init__(self, url: str, namespace: str, directory: Path) -> None:
        self._url = url
        self._namespace = namespace
        self._directory = directory
        self.deaths = 0
        self.processes: list[ServingProcess] = []
        self._tasks: list[asyncio.Task[None]] = []

    def serve(self, *words: str) -> None:
        self._tasks.append(asyncio.create_task(self._keep_running(words)))

    def start(self, *words: str) -> ServingProcess:
        log = self._directory / f"{words[0]}-{len(self.processes)}.log"
        process = ServingProcess(*words, url=self._url, namespace=self._namespace, log=log)
        self.processes.append(process)
        return process

    async def _keep_running(self, words: tuple[str, ...]) -> None:
        while True:
            process = self.start(*words)
            await wait_until(lambda process=process: process.process.poll() is not None, 0.05)
            self.deaths += 1

    async def check_deaths(self, count: int) -> None:
        """The fault took place, so many times. A death may be known to the others before it is here."""
        await wait_until(lambda: self.deaths >= count, 0.05)
        assert self.deaths == count

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        for process in self.processes:
            await process.end()


@pytest.fixture
async def fleet(
    embedded_server: EmbeddedServer, namespace: str, tmp_path: Path, client: sf.Client
) -> AsyncIterator[Fleet]:
    fleet = Fleet(embedded_server.url, namespace, tmp_path)
    try:
        yield fleet
    finally:
        await fleet.stop()


async def ready(client: sf.Client) -> None:
    async def exists() -> bool:
        with contextlib.suppress(sf.NamespaceMissing):
            await client.read_namespace()
            return True
        return False

    await until(exists, "the first daemon has created the namespace")


@pytest.mark.parametrize(("after", "most"), [(0.0, 3), (0.6, 10)])
async def test_a_step_that_kills_its_daemon_fails_after_three(
    fleet: Fleet, client: sf.Client, journal: Path, after: float, most: int
) -> None:
    """At once, it is found by the second death; later, by as many as it takes to tell it from the others."""
    for _ in range(2):
        fleet.serve(*DAEMON)
    await ready(client)
    path = str(journal)
    innocents = [await client.start(flows.innocent, path, name, 2.0) for name in NAMES]
    await until_all(journal, 8)
    bad = await client.start(flows.killer, path, after)
    with pytest.raises(sf.RunFailed, match=r"died while it ran the step|died or sent no heartbeat"):
        await bad.result(timeout=60)
    assert [await run.result(timeout=30) for run in innocents] == NAMES
    kills = executions(journal)["kill"]
    assert 3 <= kills <= most
    await fleet.check_deaths(kills)


async def test_code_that_kills_is_found_also_if_its_start_has_waited(
    fleet: Fleet, client: sf.Client, journal: Path
) -> None:
    """Which starts its daemon had read when it died is known by the turn that it had reached."""
    path = str(journal)
    fleet.serve(*DAEMON, "--shards", "1")
    await ready(client)
    runs = await client.start_many(flows.innocent, [(path, f"i{n}", 0.0) for n in range(500)], tenant="acme")
    bad = await client.start(flows.killing_code, path, False, tenant="acme")
    assert (await bad.describe()).status == "pending"

    async def is_parked() -> bool:
        return (await bad.describe()).status == "stuck"

    await until(is_parked, "the run is parked", 90)
    assert executions(journal)["kill"] == 3
    await fleet.check_deaths(3)
    assert [await run.result(timeout=60) for run in runs] == [f"i{n}" for n in range(500)]


async def test_the_only_step_beside_code_that_kills_does_not_fail(
    fleet: Fleet, client: sf.Client, journal: Path
) -> None:
    """It is in its trial when it is that code's turn."""
    for _ in range(2):
        fleet.serve(*DAEMON, "--shards", "1")
    await ready(client)
    innocent = await client.start(flows.innocent, str(journal), "first", 4.0, id="a")
    await until_all(journal, 1)
    bad = await client.start(flows.killing_code, str(journal), False, id="z")

    async def is_parked() -> bool:
        return (await bad.describe()).status == "stuck"

    await until(is_parked, "the run is parked", 60)
    assert await innocent.result(timeout=30) == "first"
    assert executions(journal)["kill"] == 3, "whatever the two daemons hand to each other meanwhile"
    await bad.terminate()


@pytest.mark.parametrize("step_first", [False, True])
async def test_a_run_whose_code_kills_its_daemon_is_parked_after_three(
    fleet: Fleet, client: sf.Client, journal: Path, step_first: bool
) -> None:
    for _ in range(2):
        fleet.serve(*DAEMON)
    await ready(client)
    path = str(journal)
    innocents = [await client.start(flows.innocent, path, name, 1.0) for name in NAMES]
    await until_all(journal, 8)
    bad = await client.start(flows.killing_code, path, step_first, id="bad")

    async def is_parked() -> bool:
        return (await bad.describe()).status == "stuck"

    await until(is_parked, "the run is parked", 60)
    assert [await run.result(timeout=30) for run in innocents] == NAMES
    assert executions(journal)["kill"] == 3
    await fleet.check_deaths(3)
    reason = (await bad.describe()).reason
    assert "has ended the process of its daemon 3 times" in reason
    assert "killing_flows.py:" in reason
    for process in [process for process in fleet.processes if process.process.poll() is None]:
        process.process.terminate()  # both are started again, and take over its shard
        await process.wait()
        await fresh(fleet)
    assert executions(journal)["kill"] == 3, "a restart with the same code doesn't try it again"
    assert (await bad.describe()).status == "stuck"
    await bad.terminate()


async def test_a_step_that_kills_its_worker_fails_after_three(fleet: Fleet, client: sf.Client, journal: Path) -> None:
    fleet.serve(*DAEMON)
    await ready(client)
    fleet.serve(*WORKER)
    path = str(journal)
    innocents = [await client.start(flows.innocent_of_queue, path, name, 3.0) for name in NAMES]
    await until_all(journal, 8)
    bad = await client.start(flows.killer_of_workers, path, 0.0)
    with pytest.raises(sf.RunFailed, match=r"died while it ran the step|died or sent no heartbeat"):
        await bad.result(timeout=90)
    assert [await run.result(timeout=60) for run in innocents] == NAMES
    assert executions(journal)["kill"] == 3
    await fleet.check_deaths(3)


async def test_a_copy_of_the_daemon_that_a_step_forks_ends_with_it(
    fleet: Fleet, client: sf.Client, journal: Path
) -> None:
    daemon = fleet.start(*DAEMON)
    await ready(client)
    run = await client.start(flows.forks, str(journal))
    assert await run.result(timeout=30) == [FORKED, FORKED]
    assert executions(journal) == {"child": 2}
    assert await (await client.start(flows.innocent, str(journal), "after", 0.0)).result(timeout=10) == "after"
    assert daemon.logged("a process that a step has forked returned from the step")


async def test_what_a_step_has_reported_survives_its_daemon(fleet: Fleet, client: sf.Client, journal: Path) -> None:
    first = fleet.start(*DAEMON)
    await ready(client)
    run = await client.start(flows.counting, str(journal), 10_000)
    await until(lambda: has_reported(client, 6), "what it has counted is on the server")
    first.process.kill()
    fleet.start(*DAEMON)
    await until_all(journal, 2)
    flows.released(journal).touch()
    began = await run.result(timeout=30)
    assert began > 5
    assert executions(journal) == {"from 0": 1, f"from {began}": 1}


async def fresh(fleet: Fleet) -> None:
    """The process that was started last owns shards."""
    count = sum(process.process.poll() is not None for process in fleet.processes) + 2

    async def owns() -> bool:
        return len(fleet.processes) >= count and fleet.processes[-1].logged("acquired")

    await until(owns, "a new daemon owns shards")


async def until_all(journal: Path, count: int) -> None:
    async def all_run() -> bool:
        return len(executions(journal)) >= count

    await until(all_run, "all innocent steps run")
