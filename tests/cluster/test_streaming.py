"""Streams and published values on a cluster: each run's are on its own server, and one client follows all."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

import streamflow as sf
from streamflow.embedded.cluster import EmbeddedCluster
from streamflow.store.topology import slot_of
from tests.support.serving import running_daemon, running_worker
from tests.support.waiting import DEADLINE

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

NAMESPACE = "streams"
COUNT = 50

app = sf.App()


@app.step
async def local(count: int) -> int:
    for number in range(count):
        sf.emit(number)
    return count


@app.step(queue="gpu")
def queued(count: int) -> int:
    for number in range(count):
        sf.emit(count + number)
    return count


@app.workflow
async def counts(count: int) -> int:
    total = await local(count)
    sf.publish("total", total)
    total += await queued(count)
    sf.publish("total", total)
    return total


async def test_streams_of_all_servers_are_followed_by_one_client(shared_cluster: EmbeddedCluster) -> None:
    async with (
        running_daemon(app, shared_cluster, NAMESPACE, crash=False, shards=16),  # type: ignore[arg-type]
        running_worker(app, shared_cluster, NAMESPACE, "gpu"),  # type: ignore[arg-type]
        sf.connect(shared_cluster.url, namespace=NAMESPACE) as client,
    ):
        runs = [await client.start(counts.options(id=f"s{number}"), COUNT) for number in range(16)]
        shard_of = (await client.read_namespace()).shard_of
        slots = {slot_of(client.keys.shard(shard_of(run.id)).owner) * 3 // 16384 for run in runs}
        assert len(slots) == 3, "each server has some of them"
        found: dict[str, list[int]] = {run.id: [] for run in runs}
        totals: dict[str, list[int]] = {}

        async def follow(run: sf.Run[Any]) -> None:
            async for chunk in run.stream(int):
                assert (chunk.restarted, chunk.missed) == (False, 0)
                found[run.id].append(chunk.value)

        async def watch(run: sf.Run[Any]) -> None:
            totals[run.id] = [total async for total in run.watch("total", int)]

        with anyio.fail_after(2 * DEADLINE):
            async with anyio.create_task_group() as readers:
                for run in runs:
                    readers.start_soon(follow, run)
                    readers.start_soon(watch, run)
        assert all(values == list(range(2 * COUNT)) for values in found.values())
        assert all(values[-1] == 2 * COUNT for values in totals.values())
