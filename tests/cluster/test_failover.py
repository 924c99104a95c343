"""Servers of a cluster are killed, frozen and moved under load: runs end right, and those of other servers go on."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import NamedTuple

import anyio
import pytest

import streamflow as sf
from streamflow.daemon.daemon import Daemon
from streamflow.embedded.cluster import ClusterNode, EmbeddedCluster
from streamflow.store.topology import slot_of
from tests.support.cluster import frozen, move_slots_at_once
from tests.support.serving import running_daemon

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

STEPS = 4
EVERY = 0.02
"""Seconds between two starts."""

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
    """Starts runs at a steady pace until it is stopped, and waits for all results."""

    def __init__(self, client: sf.Client, *, parents: bool = False) -> None:
        self._client = client
        self._parents = parents
        self.ended: list[Ended] = []
        self.wrong: list[object] = []
        self.stopped = False

    async def run(self) -> None:
        async with anyio.create_task_group() as tasks:
            number = 0
            while not self.stopped:
                tasks.start_soon(self._one, number)
                number += 1
                await anyio.sleep(EVERY)

    async def _one(self, number: int) -> None:
        began = time.monotonic()
        run = await self._client.start("parent" if self._parents else "chain", number)
        expected = right(number) + (number + 1 if self._parents else 0)
        if (result := await run.result()) != expected:
            self.wrong.append((run.id, result, expected))
        self.ended.append(Ended(run.id, began, time.monotonic() - began))


@pytest.fixture
async def cluster() -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(replicas=1, memory=True) as cluster:
        yield cluster


async def home_of(cluster: EmbeddedCluster, daemon: Daemon, run_id: str) -> ClusterNode:
    """The server that has a run."""
    kernel = daemon.membership._kernel
    shard = daemon.owner._namespace.shard_of(run_id)
    return await cluster.owner(slot_of(kernel.keys.shard(shard).owner))


async def test_a_primary_that_is_killed_costs_time_only_its_own_runs(cluster: EmbeddedCluster) -> None:
    lost = cluster.nodes[0]
    async with (
        running_daemon(app, cluster, "failover", crash=False, shards=24, dead_after=4.0, beat=0.2) as daemon,
        sf.connect(cluster.url, namespace="failover") as client,
    ):
        load = Load(client)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(load.run)
            await anyio.sleep(1.0)
            homes = {n: await cluster.owner(slot_of(shard.keys.owner)) for n, shard in daemon.owner.shards.items()}
            shard_of = daemon.owner._namespace.shard_of
            killed = time.monotonic()
            await lost.kill()
            heir = await cluster.wait_for_failover(
                lost,
                slot_of(
                    daemon.membership._kernel.keys.shard(next(n for n, home in homes.items() if home is lost)).owner
                ),
            )
            over = time.monotonic()
            await anyio.sleep(1.0)
            load.stopped = True
        assert heir is not lost
        assert not load.wrong
        during = [run for run in load.ended if killed - 0.05 < run.began < over]
        own = [run.seconds for run in during if homes[shard_of(run.run_id)] is lost]
        others = sorted(run.seconds for run in during if homes[shard_of(run.run_id)] is not lost)
        assert len(own) > 5, "runs were started on the server that was away"
        assert max(own) > 0.5, "and had to wait for the failover"
        assert len(others) > 20
        assert others[len(others) * 9 // 10] < 0.5, "a server that is away is no trouble of the others' runs"
        assert len(daemon.owner.shards) == 24


async def test_children_and_their_parents_survive_every_primary_in_turn(cluster: EmbeddedCluster) -> None:
    async with (
        running_daemon(app, cluster, "turns", crash=False, shards=16, dead_after=4.0, beat=0.2),
        sf.connect(cluster.url, namespace="turns") as client,
    ):
        load = Load(client, parents=True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(load.run)
            for node in cluster.nodes[:2]:
                await anyio.sleep(0.5)
                slot = next(iter((await node.view())[node.id].slots)).start
                await node.kill()
                await cluster.wait_for_failover(node, slot)
                await node.start()
                await cluster.wait_ready()
            load.stopped = True
        assert not load.wrong
        assert len(load.ended) > 100


async def test_a_primary_that_was_frozen_comes_back_as_a_replica_and_writes_nothing(cluster: EmbeddedCluster) -> None:
    node = cluster.nodes[1]
    async with (
        running_daemon(app, cluster, "frozen", crash=False, shards=16, dead_after=6.0, beat=0.2),
        sf.connect(cluster.url, namespace="frozen") as client,
    ):
        load = Load(client)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(load.run)
            await anyio.sleep(0.5)
            slot = next(iter((await node.view())[node.id].slots)).start
            with frozen(node):
                await cluster.wait_for_failover(node, slot)
                await anyio.sleep(0.5)
            await cluster.wait_ready()
            await anyio.sleep(0.5)
            load.stopped = True
        assert not load.wrong


async def test_slots_that_move_under_load_cost_no_run_and_no_shard(cluster: EmbeddedCluster) -> None:
    first, second, _ = cluster.nodes[:3]
    async with (
        running_daemon(app, cluster, "moving", crash=False, shards=24, dead_after=4.0, beat=0.2) as daemon,
        sf.connect(cluster.url, namespace="moving") as client,
    ):
        load = Load(client, parents=True)
        lost = daemon.owner.shards_lost
        tokens = {n: shard.token for n, shard in daemon.owner.shards.items()}
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(load.run)
            await anyio.sleep(0.5)
            await move_slots_at_once(cluster, 0, 5460, second)
            await anyio.sleep(0.5)
            await move_slots_at_once(cluster, 0, 5460, first)
            await anyio.sleep(0.5)
            load.stopped = True
        assert not load.wrong
        assert daemon.owner.shards_lost == lost
        assert {n: shard.token for n, shard in daemon.owner.shards.items()} == tokens, "nobody has dropped a shard"
        assert sorted(run.seconds for run in load.ended)[len(load.ended) * 99 // 100] < 1.0
