"""Faults, injected one at a time into running daemons; afterwards nothing is lost, nothing happened twice.

Each test proves that its fault took place, and audits every record, log and view on the server at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sys
import time
from pathlib import Path

import pytest
from redis.asyncio import Redis

import streamflow as sf
from bench.faults import Backup
from streamflow.embedded.server import EmbeddedServer
from streamflow.store.scripts import load_scripts
from tests.process.chaos_flows import chain, mixed
from tests.process.faults import Cluster, Proxy, ServingProcess, audit, cluster, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

STEPS = 12
"""Steps that one `mixed` run records, those of its two children included."""


async def start_mixed(client: sf.Client, journal: Path, count: int) -> list[sf.Run[int]]:
    runs = await asyncio.gather(*(client.start(mixed, str(journal), i, id=f"mixed-{i}") for i in range(count)))
    await asyncio.gather(*(run.signal("extra", 0) for run in runs))
    return runs


async def finish_mixed(runs: list[sf.Run[int]], seconds: float = 60.0) -> None:
    results = await asyncio.gather(*(run.result(timeout=seconds) for run in runs))
    assert results == [number + STEPS for number in range(len(runs))]


async def recorded(client: sf.Client) -> int:
    """Runs that have ended."""
    return len(await client.runs(status="completed", limit=100_000))


async def check(made: Cluster, journal: Path, runs: int, server_url: str | None = None) -> None:
    seen = await audit(server_url or made.url, made.namespace, made.shards)
    assert len(seen.runs) == runs * 3, "every run and both children of each are there"
    assert {header.status for header in seen.runs.values()} == {"completed"}
    assert seen.recorded_steps == runs * STEPS
    # A first stumble that had no slot yet when its daemon died counts as lost, and was not executed.
    assert journal.stat().st_size >= runs * STEPS, "each step was executed at least once"
    assert seen.poison == 0


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


async def test_runs_go_on_when_daemons_are_killed(
    embedded_server: EmbeddedServer, namespace: str, tmp_path: Path, journal: Path
) -> None:
    async with cluster(embedded_server.url, namespace, tmp_path) as made:
        first, second = made.start(), made.start()
        await made.shared_by(first, second)
        async with sf.connect(embedded_server.url, namespace=namespace) as client:
            # At the same time as the kills, or a quick machine has done nearly everything before the first of them.
            starting = asyncio.create_task(start_mixed(client, journal, 300))
            for victim in (first, second):
                size = journal.stat().st_size if journal.exists() else 0
                await until(lambda size=size: _grown(journal, size + 100), "steps are being executed")
                victim.send(signal.SIGKILL)
                assert await victim.wait() == -signal.SIGKILL
                made.start()
            assert await recorded(client) < 900, "the kills came while runs were under way"
            await finish_mixed(await starting)
        await check(made, journal, 300)


async def _grown(journal: Path, size: int) -> bool:
    return journal.exists() and journal.stat().st_size >= size


@pytest.mark.skipif(sys.platform != "linux", reason="a death is seen in /proc")
async def test_the_death_of_a_daemon_is_reported_long_before_dead_after(
    embedded_server: EmbeddedServer, namespace: str, tmp_path: Path, journal: Path
) -> None:
    """The runs that it had in hand are taken over carefully, as after `dead_after`."""
    async with cluster(embedded_server.url, namespace, tmp_path) as made:
        slow = {"STREAMFLOW_DEAD_AFTER": "60"}
        first = made.start(**slow)
        await made.shared_by(first)
        second = made.start(**slow)
        await made.shared_by(first, second)
        async with sf.connect(embedded_server.url, namespace=namespace) as client:
            starting = asyncio.create_task(start_mixed(client, journal, 300))
            await until(lambda: _grown(journal, 100), "steps are being executed")
            first.send(signal.SIGKILL)
            assert await first.wait() == -signal.SIGKILL
            await made.shared_by(second, seconds=30)
            assert second.logged(" is gone")
            assert not second.logged("is considered dead")
            await finish_mixed(await starting)
        await check(made, journal, 300)


async def test_a_paused_daemon_loses_its_shards_and_drops_what_it_had(
    embedded_server: EmbeddedServer, namespace: str, tmp_path: Path, journal: Path
) -> None:
    async with cluster(embedded_server.url, namespace, tmp_path) as made:
        first, second = made.start(), made.start()
        await made.shared_by(first, second)
        async with sf.connect(embedded_server.url, namespace=namespace) as client:
            runs = await start_mixed(client, journal, 300)
            await until(lambda: _grown(journal, 100), "steps are being executed")
            first.send(signal.SIGSTOP)
            await made.shared_by(second)
            assert await recorded(client) < 900, "the pause came while runs were under way"
            first.send(signal.SIGCONT)
            await until(lambda: _says(first, "another owner"), "the paused daemon learned that it was replaced")
            await finish_mixed(runs)
            await made.shared_by(first, second)
        await check(made, journal, 300)


async def _says(daemon: object, text: str) -> bool:
    return daemon.logged(text)  # type: ignore[attr-defined]


async def _mended(*daemons: ServingProcess) -> bool:
    return any(daemon.logged("the server had lost") for daemon in daemons)


async def test_a_daemon_that_was_paused_without_work_learns_that_it_was_replaced(
    embedded_server: EmbeddedServer, namespace: str, tmp_path: Path, journal: Path
) -> None:
    async with cluster(embedded_server.url, namespace, tmp_path) as made:
        first, second = made.start(), made.start()
        await made.shared_by(first, second)
        first.send(signal.SIGSTOP)
        await made.shared_by(second)
        first.send(signal.SIGCONT)
        await made.shared_by(first, second)
        async with sf.connect(embedded_server.url, namespace=namespace) as client:
            await finish_mixed(await start_mixed(client, journal, 100))
        await check(made, journal, 100)


async def test_a_commit_that_arrives_after_the_takeover_is_refused(
    embedded_server: EmbeddedServer, namespace: str, tmp_path: Path, journal: Path
) -> None:
    port = int(embedded_server.url.rpartition(":")[2].rstrip("/"))
    proxy = Proxy(port, load_scripts()["commit"].sha)
    url = await proxy.start()
    try:
        async with cluster(embedded_server.url, namespace, tmp_path) as made:
            zombie = made.start(url)
            await made.shared_by(zombie)
            async with sf.connect(embedded_server.url, namespace=namespace) as client:
                runs = await start_mixed(client, journal, 50)
                proxy.hold()
                await proxy.holding.wait()
                zombie.send(signal.SIGSTOP)
                heir = made.start()
                await made.shared_by(heir)
                proxy.let_go()  # the commit reaches the server now, from a daemon that doesn't own the shard any more
                await until(lambda: _has(proxy.held_answers, b"FENCED"), "the server refused the late commit")
                zombie.send(signal.SIGCONT)
                await finish_mixed(runs)
            await check(made, journal, 50)
    finally:
        await proxy.stop()


async def _has(data: bytearray, text: bytes) -> bool:
    return text in data


async def test_a_commit_whose_answer_is_lost_takes_effect_once(
    embedded_server: EmbeddedServer, namespace: str, tmp_path: Path, journal: Path
) -> None:
    port = int(embedded_server.url.rpartition(":")[2].rstrip("/"))
    proxy = Proxy(port, load_scripts()["commit"].sha)
    url = await proxy.start()
    try:
        async with cluster(embedded_server.url, namespace, tmp_path) as made:
            daemon = made.start(url)
            await made.shared_by(daemon)
            async with sf.connect(embedded_server.url, namespace=namespace) as client:
                proxy.drop_replies(25)
                runs = await start_mixed(client, journal, 100)
                await finish_mixed(runs)
            assert proxy.dropped >= 10, "answers of commits were really lost"
            await check(made, journal, 100)
    finally:
        await proxy.stop()


async def test_a_killed_server_that_restarts_with_its_aof_loses_nothing(
    namespace: str, tmp_path: Path, journal: Path
) -> None:
    server = EmbeddedServer(tmp_path / "data", appendfsync="everysec")
    await server.start()
    try:
        async with cluster(server.url, namespace, tmp_path) as made:
            first, second = made.start(), made.start()
            await made.shared_by(first, second)
            async with sf.connect(server.url, namespace=namespace) as client:
                runs = await start_mixed(client, journal, 300)
                await until(lambda: _grown(journal, 100), "steps are being executed")
                await server.kill()
                await asyncio.sleep(0.3)
                await server.start()
                assert await recorded(client) < 900, "the kill came while runs were under way"
                await finish_mixed(runs)
                await until(lambda: _says(first, "read again"), "the daemons noticed the other history")
            await check(made, journal, 300)
    finally:
        await server.stop()


async def test_a_server_that_loses_its_newest_writes_keeps_the_rest_whole(
    namespace: str, tmp_path: Path, journal: Path
) -> None:
    """What it still has goes on, with children, timers and messages between shards, and views count what is there."""
    server = EmbeddedServer(tmp_path / "data", appendfsync="everysec")
    await server.start()
    try:
        async with cluster(server.url, namespace, tmp_path) as made:
            first, second = made.start(), made.start()
            await made.shared_by(first, second)
            async with sf.connect(server.url, namespace=namespace) as client:
                started: list[sf.Run[int]] = []
                enough = asyncio.Event()
                starting = asyncio.create_task(_start_until(enough, client, journal, started))
                for _ in range(2):
                    size = journal.stat().st_size if journal.exists() else 0
                    await until(lambda size=size: _grown(journal, size + 1000), "steps are being executed")
                    backup = Backup(server)
                    size = journal.stat().st_size
                    await until(lambda size=size: _grown(journal, size + 200), "some were decided since")
                    assert await backup.restore() > 0, "it has lost something"
                enough.set()
                await starting
                await until(lambda: _mended(first, second), "what was lost was committed or started again")
                for status in ("pending", "running"):
                    for found in await client.runs(status=status, workflow="mixed", limit=100_000):
                        with contextlib.suppress(sf.RunEnded):  # its signal may be gone
                            await client.run(found.id).signal("extra", 0)
                await until(lambda: _all_ended(client), "all that is left has ended")
            seen = await audit(server.url, namespace, made.shards)
            assert {header.status for header in seen.runs.values()} == {"completed"}
            parents = [run for run in seen.runs if run.startswith("mixed-") and "." not in run]
            assert len(parents) == len(started), "starts that were lost are there again, because their client lives"
            assert len(seen.runs) == 3 * len(parents), "each with both children"
            assert seen.recorded_steps == STEPS * len(parents)
    finally:
        await server.stop()


async def _start_until(enough: asyncio.Event, client: sf.Client, journal: Path, started: list[sf.Run[int]]) -> None:
    while not enough.is_set():
        number = len(started)
        with contextlib.suppress(sf.StreamflowError):
            run = await client.start(mixed, str(journal), number, id=f"mixed-{number}")
            started.append(run)
            await run.signal("extra", 0)


async def _all_ended(client: sf.Client) -> bool:
    return not (await client.runs(status="running", limit=1) or await client.runs(status="pending", limit=1))


async def test_a_flushed_script_cache_is_noticed_by_nobody(
    embedded_server: EmbeddedServer, namespace: str, tmp_path: Path, journal: Path
) -> None:
    async with cluster(embedded_server.url, namespace, tmp_path) as made:
        daemon = made.start()
        await made.shared_by(daemon)
        async with (
            sf.connect(embedded_server.url, namespace=namespace) as client,
            Redis.from_url(embedded_server.url) as redis,
        ):
            runs = await start_mixed(client, journal, 100)
            flushed = 0
            while await recorded(client) < 300:
                await redis.script_flush()
                flushed += 1
                await asyncio.sleep(0.05)
            await finish_mixed(runs)
            assert flushed > 1
        await check(made, journal, 100)


async def test_a_terminated_daemon_finishes_its_steps_and_hands_over_at_once(
    embedded_server: EmbeddedServer, namespace: str, tmp_path: Path, journal: Path
) -> None:
    async with cluster(embedded_server.url, namespace, tmp_path) as made:
        first, second = [made.start(STREAMFLOW_DEAD_AFTER="60") for _ in range(2)]
        await made.shared_by(first, second)
        async with sf.connect(embedded_server.url, namespace=namespace) as client:
            runs = await asyncio.gather(*(client.start(chain, str(journal), 50, id=f"c-{i}") for i in range(100)))
            await until(lambda: _grown(journal, 200), "steps are being executed")
            first.send(signal.SIGTERM)
            assert await first.wait() == 0
            await made.shared_by(second, seconds=10.0)
            assert await asyncio.gather(*(run.result(timeout=60) for run in runs)) == [50] * 100
        seen = await audit(embedded_server.url, namespace, made.shards)
        assert seen.recorded_steps == 5000
        assert journal.stat().st_size == 5000, "no step was executed twice: nothing was cut off"


async def test_random_faults_one_after_another_lose_nothing(
    embedded_server: EmbeddedServer, namespace: str, tmp_path: Path, journal: Path
) -> None:
    seed = int(time.time())
    rng = random.Random(seed)
    print(f"seed {seed}")
    async with cluster(embedded_server.url, namespace, tmp_path) as made:
        alive = [made.start(), made.start(), made.start()]
        await made.shared_by(*alive)
        async with sf.connect(embedded_server.url, namespace=namespace) as client:
            runs = await start_mixed(client, journal, 400)
            for _ in range(4):
                victim = rng.choice(alive)
                fault = rng.choice((signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM))
                victim.send(fault)
                if fault == signal.SIGSTOP:
                    await asyncio.sleep(rng.uniform(0.5, 3.0))
                    victim.send(signal.SIGCONT)
                else:
                    alive.remove(victim)
                    alive.append(made.start())
                await asyncio.sleep(rng.uniform(0.2, 1.0))
            await finish_mixed(runs)
        await check(made, journal, 400)
