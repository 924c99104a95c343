"""Failovers that lose what was acknowledged: owners and clients that live have it, and nothing of it is lost.

`make chaos OF=cluster/test_mending.py ROUNDS=200`: a round takes some seconds.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest

import streamflow as sf
from streamflow.client.recent_starts import RecentStarts
from streamflow.daemon.daemon import Daemon
from streamflow.embedded.cluster import ClusterNode, EmbeddedCluster
from streamflow.events import StepCompleted
from streamflow.store.keys import NamespaceKeys
from streamflow.store.topology import slot_of
from tests.cluster.mending import (
    EXPECTED,
    LIMIT,
    STEPS,
    Load,
    app,
    bring_back,
    decided,
    executed,
    fail_over,
    happens,
    persistent,
    start_until,
)
from tests.support.serving import running_daemon

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

NAMESPACE = "mending"
SHARDS = 24
PATIENT: dict[str, Any] = {"dead_after": 6.0, "beat": 0.2, "shards": SHARDS}
ROUNDS = int(os.environ.get("STREAMFLOW_CHAOS", "0"))
SEED = int(os.environ.get("STREAMFLOW_CHAOS_SEED") or time.time())


@pytest.fixture
async def cluster() -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(replicas=1, memory=True) as cluster:
        yield cluster


def recent_of(client: sf.Client) -> RecentStarts:
    return client._sessions.here().recent


class Counts:
    """What a round has brought back."""

    def __init__(self, daemon: Daemon, client: sf.Client) -> None:
        self._commits, self._recent = daemon.owner.recent_commits, recent_of(client)
        self._before = self._now()

    def _now(self) -> tuple[int, int, int]:
        return self._commits.transitions, self._recent.again, self._recent.posts.again

    def __str__(self) -> str:
        transitions, starts, messages = (now - before for now, before in zip(self._now(), self._before, strict=True))
        return f"{transitions} transitions, {starts} starts, {messages} messages again"

    @property
    def transitions(self) -> int:
        return self._commits.transitions - self._before[0]


async def play(cluster: EmbeddedCluster, daemon: Daemon, client: sf.Client, rng: random.Random, name: str) -> None:
    """One failover under load: a client that lives, and one that dies before the server."""
    executed.clear()
    counts, load, doomed = Counts(daemon, client), Load(client, name), list[str]()
    over, dead, lacks = anyio.Event(), anyio.Event(), 0
    primary = rng.choice(await persistent(cluster.masters))
    homes = {number: await persistent(lambda n=number: home_of(cluster, n)) for number in range(SHARDS)}
    shard_of = daemon.owner._namespace.shard_of

    async def start_and_die() -> None:
        async with sf.connect(cluster.url, namespace=NAMESPACE) as other:
            await start_until(over, other, f"{name}-doomed", doomed)
        dead.set()

    async def lose() -> None:
        await anyio.sleep(rng.uniform(0.1, 1.5))
        await decided(lambda run_id: homes[shard_of(run_id)] is primary)
        over.set()
        await dead.wait()
        await happens(lambda: all(executed[run_id, "first 0"] for run_id in doomed))  # their owner has read them

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(load.run)
        tasks.start_soon(start_and_die)
        await happens(lambda: min(len(doomed), len(load.acknowledged)) > 5)
        lacks = await fail_over(cluster, primary, lose)
        await anyio.sleep(0.3)
        load.stopped = True
        tasks.cancel_scope.deadline = anyio.current_time() + LIMIT
    print(f"{name}: {lacks:,} bytes missing; {counts}; {len(load.ended)} + {len(doomed)} runs", flush=True)
    assert lacks > 0, "writes are missing"
    assert counts.transitions > 0, "decisions are missing, and were committed again"
    assert not load.open, "runs hang"
    assert load.ended == dict.fromkeys(load.acknowledged, EXPECTED), "each signal is taken once, in order"
    with anyio.fail_after(LIMIT):
        results = [await client.run(run_id).result() for run_id in doomed]
    assert results == doomed, "a start is not lost when its client dies, but its owner has read it"
    assert not daemon.owner.lost_writes.total, "nothing is gone nor set back"
    await check_histories(client, load, rng)
    again = [what for what, times in executed.items() if times > 1]
    innocent = [what for what in again if homes[shard_of(what[0].split("/")[0])] is not primary]
    of_others = [what for what in innocent if "/" not in what[0]]
    assert not of_others, "steps of runs on other servers don't run again"
    if again:
        print(f"{len(again)} of {len(executed)} steps were executed again: {again[:5]}")


async def home_of(cluster: EmbeddedCluster, number: int) -> ClusterNode:
    return await cluster.owner(slot_of(NamespaceKeys(NAMESPACE).shard(number).owner))


async def check_histories(client: sf.Client, load: Load, rng: random.Random) -> None:
    """No run has two pasts: each step is recorded once."""
    for run_id in rng.sample(load.acknowledged, min(20, len(load.acknowledged))):
        history = await client.run(run_id).history()
        completed = [event for one in history for event in one.events if isinstance(event, StepCompleted)]
        assert len(completed) == STEPS + len(EXPECTED) - 1, run_id
        assert len({event.seq for event in completed}) == len(completed), run_id


async def test_nothing_is_lost_while_its_owner_or_client_lives(cluster: EmbeddedCluster) -> None:
    rng = random.Random(1)
    async with (
        running_daemon(app, cluster, NAMESPACE, crash=False, **PATIENT) as daemon,
        sf.connect(cluster.url, namespace=NAMESPACE) as client,
    ):
        await play(cluster, daemon, client, rng, "once")


async def test_starts_survive_the_death_of_their_owner(cluster: EmbeddedCluster) -> None:
    await lose_owner(cluster, random.Random(2), "owner")


async def lose_owner(cluster: EmbeddedCluster, rng: random.Random, name: str) -> None:
    """The daemon dies with the server: what it had committed last is gone, but the client has what that came from."""
    over, lacks = anyio.Event(), 0
    primary = rng.choice(await persistent(cluster.masters))
    started: list[str] = []
    async with sf.connect(cluster.url, namespace=NAMESPACE) as client:
        async with anyio.create_task_group() as tasks, AsyncExitStack() as life:
            daemon = await life.enter_async_context(running_daemon(app, cluster, NAMESPACE, crash=True, **PATIENT))
            shards = [n for n in range(SHARDS) if await persistent(lambda n=n: home_of(cluster, n)) is primary]
            shard_of = daemon.owner._namespace.shard_of

            async def lose() -> None:
                await anyio.sleep(rng.uniform(0.1, 1.0))
                first = len(started) + 1  # one may have been under way
                await happens(lambda: any(shard_of(run_id) in shards for run_id in started[first:]))
                over.set()
                await life.aclose()  # now: what it has would be stored again as soon as there is a new primary

            tasks.start_soon(start_until, over, client, name, started)
            await happens(lambda: len(started) > 5)
            lacks = await fail_over(cluster, primary, lose)
        async with running_daemon(app, cluster, NAMESPACE, crash=False, **PATIENT):
            with anyio.fail_after(LIMIT):
                assert [await client.run(run_id).result() for run_id in started] == started
        assert lacks > 0
        assert recent_of(client).again > 0, "starts were missing"


@pytest.mark.skipif(not ROUNDS, reason="some seconds a round: `make chaos OF=cluster/test_mending.py`")
@pytest.mark.timeout(60 * (ROUNDS + 1))
async def test_nothing_is_lost_in_many_failovers(cluster: EmbeddedCluster) -> None:
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    async with (
        running_daemon(app, cluster, NAMESPACE, crash=False, **PATIENT) as daemon,
        sf.connect(cluster.url, namespace=NAMESPACE) as client,
    ):
        for number in range(ROUNDS):
            await play(cluster, daemon, client, rng, f"{SEED}-{number}")
            down = next(node for node in cluster.nodes if not node.running)
            await bring_back(cluster, down)
