"""Channels that follow their slots, also while the server that has them is unknown or silent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, cast

import anyio
import pytest

from streamflow.errors import StoreUnavailable
from streamflow.store import cluster_subscription
from streamflow.store.cluster_subscription import ClusterSubscription
from streamflow.store.router import Cluster

pytestmark = pytest.mark.anyio


class Part:
    """The subscription of one server, which confirms at once unless it is silent."""

    on_moved: Any = None
    on_broken: Any = None

    def __init__(self, node: str, *_: Any) -> None:
        self.silent = node.startswith("silent")
        self.added: set[str] = set()

    @property
    def channels(self) -> list[str]:
        return list(self.added)

    def __contains__(self, channel: str) -> bool:
        return channel in self.added

    def is_confirmed(self, channel: str) -> bool:
        return channel in self.added and not self.silent

    async def add_all(self, channels: Iterable[str]) -> None:
        self.added.update(channels)
        if self.silent:
            await anyio.sleep_forever()

    def forget(self, channels: Iterable[str]) -> None:
        self.added.difference_update(channels)

    async def run(self) -> None:
        await anyio.sleep_forever()


class FakeCluster:
    patience = 5.0

    def __init__(self, **homes: str) -> None:
        self.homes: dict[str, str | None] = dict(homes)
        self.on_moved: list[Callable[[], None]] = []
        self.refused = 0
        self.refused_often = anyio.Event()

    def move(self, channel: str, home: str | None) -> None:
        self.homes[channel] = home
        for tell in self.on_moved:
            tell()

    async def node_of(self, channel: str) -> str:
        home = self.homes[channel]
        if home is None or home == "refuses":
            self.refused += 1
            if self.refused == 3:
                self.refused_often.set()
            raise StoreUnavailable("no server")
        return home

    def known_node_of(self, channel: str) -> str | None:
        return self.homes[channel]

    def nodes(self) -> list[str]:
        return [home for home in self.homes.values() if home]

    def look_if_due(self) -> None:
        pass

    def suspect(self) -> None:
        pass


class Bench:
    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.lost = anyio.Event()
        self.subscription = ClusterSubscription(cast("Cluster", cluster), lambda *_: None, lambda: self.lost.set())

    async def lost_and_back(self) -> None:
        with anyio.fail_after(5):
            await self.lost.wait()
        self.lost = anyio.Event()


@pytest.fixture
async def it(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(cluster_subscription, "NodeSubscription", Part)
    monkeypatch.setattr(cluster_subscription, "FOLLOW", 0.05)
    monkeypatch.setattr(cluster_subscription, "TRY_AGAIN", 0.01)
    bench = Bench(FakeCluster(a="one", b="one"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.subscription.run)
        await bench.subscription.add_all(["a", "b"])
        yield bench
        tasks.cancel_scope.cancel()


async def test_a_channel_follows_its_slot(it: Bench) -> None:
    it.cluster.move("a", "two")
    await it.lost_and_back()
    assert it.subscription.is_confirmed("a")
    assert it.subscription.is_confirmed("b")


async def test_a_channel_that_nobody_has_for_a_while_is_not_forgotten(it: Bench) -> None:
    it.cluster.move("a", "refuses")
    with anyio.fail_after(5):
        await it.cluster.refused_often.wait()
    assert not it.subscription.is_confirmed("a")
    it.cluster.move("a", None)
    await anyio.wait_all_tasks_blocked()
    it.cluster.move("a", "two")
    await it.lost_and_back()
    assert it.subscription.is_confirmed("a")


async def test_a_silent_server_does_not_keep_channels_from_following(it: Bench) -> None:
    it.cluster.patience = 60.0
    it.cluster.move("a", "silent")
    await anyio.wait_all_tasks_blocked()
    it.cluster.move("b", "two")
    await it.lost_and_back()
    assert it.subscription.is_confirmed("b")
    it.cluster.move("a", "three")
    await it.lost_and_back()
    assert it.subscription.is_confirmed("a")
