"""Groups of subscribers in a cluster: positions are with their shards, on all servers."""

from __future__ import annotations

import asyncio

import pytest

import streamflow as sf
from streamflow.embedded.cluster import EmbeddedCluster
from tests.support.serving import running_daemon

pytestmark = pytest.mark.anyio

app = sf.App()


@app.workflow
async def greet(name: str) -> str:
    return f"hello {name}"


async def test_a_group_gets_everything_from_all_servers(shared_cluster: EmbeddedCluster, namespace: str) -> None:
    async with (
        running_daemon(app, shared_cluster, namespace, crash=False, shards=12),
        sf.connect(shared_cluster.url, namespace=namespace) as client,
    ):
        async with client.events("billing", kinds=["RunCompleted"]):
            pass
        ids = {run.id for run in await client.start_many(greet, [(f"{number}",) for number in range(40)])}
        seen: set[str] = set()
        async with asyncio.timeout(20), client.events("billing", kinds=["RunCompleted"]) as subscription:
            async for batch in subscription.batches(max_events=5, max_wait=0.0):
                seen |= {event.run_id for event in batch}
                assert await batch.ack()
                if seen == ids:
                    break
        servers = {server_of(client, shard.shard) for shard in (await client.group("billing")).shards}
        assert len(servers) == 3
        await client.reset_group("billing", "oldest")
        assert await client.remove_group("billing")


def server_of(client: sf.Client, shard: int) -> int:
    return client.store.server_of(client.keys.shard(shard).positions)
