"""A list on a cluster as the source of a trigger: what is beside it is in its slot."""

from __future__ import annotations

import secrets

import pytest

from streamflow.embedded.cluster import EmbeddedCluster
from streamflow.store.connection import Call
from streamflow.store.foreign_list import open_list
from streamflow.store.router import Cluster

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]


@pytest.mark.parametrize("shape", ["orders-{}", "shop:{{{}}}:orders", "other {}"])
async def test_elements_of_a_list_on_a_cluster_are_taken(
    shared_cluster: EmbeddedCluster, store: Cluster, shape: str
) -> None:
    key = shape.format(secrets.token_hex(6))
    async with open_list(shared_cluster.url, key, "ordered", end="right", idle_ms=60_000, longest=3) as source:
        await store.one(Call.plain("LPUSH", key, "one", "two", "three"))
        taken = await source.take()
        assert [element.value for element in taken] == [b"one", b"two", b"three"]
        await source.wait()
        await source.done(taken)
        assert await source.take() == []
        await store.one(Call.plain("DEL", source.long))
