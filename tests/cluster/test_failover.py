"""Servers of a cluster are killed, frozen and moved under load: runs end right, and those of other servers go on."""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import anyio
import pytest

import streamflow as sf
from streamflow.embedded.cluster import ClusterNode, EmbeddedCluster
from streamflow.store.keys import NamespaceKeys
from streamflow.store.topology import slot_of
from tests.support.cluster import frozen, move_slots_at_once
from tests.support.serving import running_daemon

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

NAMESPACE = "failover"
PATIENT: dict[str, Any] = {"dead_after": 6.0, "beat": 0.2}
STEPS = 5
EVERY = 0.02
"""Seconds between two starts."""
PAUSE = 0.2
"""Seconds for which a process that works doesn't stand still by itself."""

app = sf.App()


@app.step
async def add(total: int, number: int) -> int:
    return total + number


@app.workflow
async def chain(number: int) -> int:
    total = 0
    for step in range(STEPS):
        total = await add(total, number + step)
    return total


@app.workflow
async def parent(number: int) -> int:
    """Its child is mostly on another server, and so is its answer."""
    return await chain(number) + await add(number, 1)


def right(number: int) -> int:
    return STEPS * number + sum(range(STEPS))


class Ended(NamedTuple):
    run_id: str
    began: float
    seconds: float


class Load:
    """Runs that were started at a steady pace. `pauses`: from when until when this process had no turn for it, though
    it was time: what a run takes doesn't count then."""

    def __init__(self, client: sf.Client, workflow: str) -> None:
        self._client = client
        self._workflow = workflow
        self.ended: list[Ended] = []
        self.wrong: list[object] = []
        self.pauses: list[tuple[float, float]] = []
        self.stopped = False

    async def run(self) -> None:
        async with anyio.create_task_group() as tasks:
            number = 0
            while not self.stopped:
                tasks.start_soon(self._one, number)
                number += 1
                due = time.monotonic() + EVERY
                await anyio.sleep(EVERY)
                if (now := time.monotonic()) > due + PAUSE:
                    self.pauses.append((due, now))

    def took(self, run: Ended) -> float:
        over = run.began + run.seconds
        return run.seconds - sum(max(0.0, min(over, end) - max(run.began, due)) for due, end in self.pauses)

    def slow(self, seconds: float) -> float:
        """What only a run that was held up takes: so many seconds, and more on a machine where all take long."""
        return seconds + 10 * statistics.median(map(self.took, self.ended))

    async def _one(self, number: int) -> None:
        began = time.monotonic()
        run = await self._client.start(self._workflow, number)
        expected = right(number) + (number + 1 if self._workflow == "parent" else 0)
        if (result := await run.result()) != expected:
            self.wrong.append((run.id, result, expected))
        self.ended.append(Ended(run.id, began, time.monotonic() - began))


@asynccontextmanager
async def loaded(client: sf.Client, workflow: str = "chain") -> AsyncGenerator[Load]:
    """While the body runs, runs are started; at its end all have ended."""
    load = Load(client, workflow)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(load.run)
        await anyio.sleep(0.5)
        yield load
        load.stopped = True


@pytest.fixture
async def cluster() -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(replicas=1, memory=True) as cluster:
        yield cluster


def a_slot_of(node: ClusterNode, homes: dict[int, ClusterNode]) -> int:
    """The slot of a shard that is on this server."""
    keys = NamespaceKeys(NAMESPACE)
    return next(slot_of(keys.shard(number).owner) for number, home in homes.items() if home is node)


async def test_a_primary_that_is_killed_costs_time_only_its_own_runs(cluster: EmbeddedCluster) -> None:
    lost = cluster.nodes[0]
    async with (
        running_daemon(app, cluster, NAMESPACE, crash=False, shards=24, **PATIENT) as daemon,
        sf.connect(cluster.url, namespace=NAMESPACE) as client,
    ):
        homes = {n: await cluster.owner(slot_of(shard.keys.owner)) for n, shard in daemon.owner.shards.items()}
        async with loaded(client) as load:
            killed = time.monotonic()
            await lost.kill()
            assert await cluster.wait_for_failover(lost, a_slot_of(lost, homes)) is not lost
            over = time.monotonic()
            await anyio.sleep(1.0)
        assert not load.wrong
        at = [(homes[daemon.owner._namespace.shard_of(run.run_id)], run) for run in load.ended]
        during = [(home, load.took(run)) for home, run in at if killed - 0.05 < run.began < over]
        own = [seconds for home, seconds in during if home is lost]
        others = sorted(seconds for home, seconds in during if home is not lost)
        assert len(own) > 5, "runs were started on the server that was away"
        assert max(own) > 0.5, "and had to wait for the failover"
        assert len(others) > 20
        assert others[len(others) * 9 // 10] < load.slow(0.5), "a server that is away is no trouble of the others' runs"
        assert len(daemon.owner.shards) == 24


async def test_children_and_their_parents_survive_every_primary_in_turn(cluster: EmbeddedCluster) -> None:
    async with (
        running_daemon(app, cluster, NAMESPACE, crash=False, shards=16, **PATIENT),
        sf.connect(cluster.url, namespace=NAMESPACE) as client,
    ):
        async with loaded(client, "parent") as load:
            for node in cluster.nodes[:2]:
                slot = next(iter((await node.view())[node.id].slots)).start
                await node.kill()
                await cluster.wait_for_failover(node, slot)
                await node.start()
                await cluster.wait_ready()
        assert not load.wrong
        assert len(load.ended) > 100


async def test_a_primary_that_was_frozen_acknowledges_nothing_that_is_lost(cluster: EmbeddedCluster) -> None:
    node = cluster.nodes[1]
    async with (
        running_daemon(app, cluster, NAMESPACE, crash=False, shards=16, **PATIENT),
        sf.connect(cluster.url, namespace=NAMESPACE) as client,
    ):
        async with loaded(client) as load:
            slot = next(iter((await node.view())[node.id].slots)).start
            with frozen(node):
                await cluster.wait_for_failover(node, slot)
                await anyio.sleep(0.5)
            await cluster.wait_ready()
            await anyio.sleep(0.5)
        assert not load.wrong


async def test_slots_that_move_under_load_cost_no_run_and_no_shard(cluster: EmbeddedCluster) -> None:
    first, second, _ = cluster.nodes[:3]
    async with (
        running_daemon(app, cluster, NAMESPACE, crash=False, shards=24, **PATIENT) as daemon,
        sf.connect(cluster.url, namespace=NAMESPACE) as client,
    ):
        lost = daemon.owner.shards_lost
        tokens = {n: shard.token for n, shard in daemon.owner.shards.items()}
        async with loaded(client, "parent") as load:
            await move_slots_at_once(cluster, 0, 4000, second)
            await anyio.sleep(0.5)
            await move_slots_at_once(cluster, 0, 4000, first)
            await anyio.sleep(0.5)
        assert not load.wrong
        assert daemon.owner.shards_lost == lost
        assert {n: shard.token for n, shard in daemon.owner.shards.items()} == tokens, "nobody has dropped a shard"
        assert sorted(map(load.took, load.ended))[len(load.ended) * 99 // 100] < load.slow(1.0)


async def test_starts_that_a_failover_loses_are_there_again(cluster: EmbeddedCluster) -> None:
    """Of their client, or of the daemon that had begun them."""
    lost = cluster.nodes[0]
    async with (
        running_daemon(app, cluster, NAMESPACE, crash=False, shards=24, **PATIENT) as daemon,
        sf.connect(cluster.url, namespace=NAMESPACE) as client,
    ):
        homes = {n: await cluster.owner(slot_of(shard.keys.owner)) for n, shard in daemon.owner.shards.items()}
        first = await client.start("chain", 1)
        assert await first.result() == right(1)
        (replica,) = await cluster.replicas(lost)
        await replica.command("CONFIG", "SET", "masterauth", "a password that nobody has")
        await replica.command("CLIENT", "KILL", "TYPE", "primary")  # from now on it follows no more
        runs = [await client.start("chain", number) for number in range(40)]
        results = [await run.result() for run in runs]
        late = [await client.start("chain", number, id=f"late-{number}") for number in range(40)]
        shard_of = daemon.owner._namespace.shard_of
        there = [run for run in late if homes[shard_of(run.id)] is lost]
        assert len(there) > 5
        await lost.kill()
        assert await cluster.wait_for_failover(lost, a_slot_of(lost, homes)) is replica
        assert [await run.result() for run in late] == results == [right(number) for number in range(40)]
        again = client._sessions.here().recent.again + daemon.owner.recent_commits.runs
        assert again >= len(there), "they were missing on the server that was promoted"
