"""A cluster grows from three masters to six, and shrinks again, while daemons and their load go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

import streamflow as sf
from streamflow.embedded.cluster import EmbeddedCluster
from streamflow.store import router
from streamflow.store.topology import slot_of
from tests.cluster.test_failover import NAMESPACE, PATIENT, Load, app, loaded
from tests.support.cluster import move_slot, move_slots_at_once, remove_node
from tests.support.serving import running_daemon
from tests.support.waiting import DEADLINE

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

SHARDS = 48


def slowest_second(load: Load) -> float:
    """The 99th percentile of the runs that began in the same second, where it is highest, in s."""
    seconds: dict[int, list[float]] = {}
    for run in load.ended:
        seconds.setdefault(int(run.began), []).append(load.took(run))
    return max(sorted(times)[len(times) * 99 // 100] for times in seconds.values())


async def becomes(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(DEADLINE):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.01)


async def test_masters_are_added_and_removed_under_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "READ_EVERY", 0.5)  # the ten seconds for which operations.md says to wait
    async with EmbeddedCluster(memory=True) as cluster:
        former = cluster.nodes
        async with (
            running_daemon(app, cluster, NAMESPACE, crash=False, shards=SHARDS, **PATIENT) as daemon,
            running_daemon(app, cluster, NAMESPACE, crash=False, shards=SHARDS, **PATIENT) as second,
            sf.connect(cluster.url, namespace=NAMESPACE) as client,
        ):
            await becomes(lambda: len(daemon.owner.shards) + len(second.owner.shards) == SHARDS)
            await becomes(lambda: bool(daemon.owner.shards and second.owner.shards))
            owned = {n: shard.token for one in (daemon, second) for n, shard in one.owner.shards.items()}
            keys = daemon.owner._kernel.keys

            stores: list[Any] = [daemon.owner._store, second.owner._store, client.store]

            async with loaded(client) as load:
                added = [await cluster.add_node() for _ in former]
                ids = {node.id for node in added}
                await becomes(lambda: all(ids <= store._map.servers.keys() for store in stores))
                for source, target in zip(former, added, strict=True):
                    [part] = (await source.view())[source.id].slots
                    middle = (part.start + part.stop) // 2
                    theirs = (slot_of(keys.shard(number).owner) for number in range(SHARDS))
                    for slot in [slot for slot in theirs if part.start <= slot < middle][:2]:
                        await move_slot(cluster, slot, target)
                    await move_slots_at_once(cluster, middle, part.stop - 1, target)
            assert not load.wrong
            assert slowest_second(load) < load.slow(1.0)
            homes = {(await cluster.owner(slot_of(keys.shard(number).owner))).id for number in range(SHARDS)}
            assert homes == {node.id for node in cluster.nodes}, "all six have shards"
            tokens = {n: shard.token for one in (daemon, second) for n, shard in one.owner.shards.items()}
            assert tokens == owned, "no daemon was restarted, and none has dropped a shard"

            async with loaded(client) as load:
                leaving = added[0]
                for part in (await leaving.view())[leaving.id].slots:
                    await move_slots_at_once(cluster, part.start, part.stop - 1, former[0])
                await remove_node(cluster, leaving)
            assert not load.wrong
            assert slowest_second(load) < load.slow(1.0)
