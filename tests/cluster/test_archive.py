"""The archive of a namespace in a cluster: its runs are in slots of three servers."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

import streamflow as sf
from streamflow.embedded.cluster import EmbeddedCluster
from tests.support.serving import running_daemon
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

app = sf.App()


@app.workflow
async def order(name: str) -> str:
    sf.publish("stage", "done")
    sf.set_attributes(customer=name)
    return f"ordered {name}"


async def test_runs_of_all_slots_are_archived_and_restored(shared_cluster: EmbeddedCluster, tmp_path: Path) -> None:
    namespace = f"t{uuid.uuid4().hex[:12]}"
    ids = [f"o{n}" for n in range(12)]
    async with (
        running_daemon(
            app, shared_cluster, namespace, crash=False, retention=0.001, archive=f"file://{tmp_path}/archive"
        ) as daemon,
        sf.connect(shared_cluster.url, namespace=namespace) as client,
    ):
        runs = await client.start_many(order, [(run_id,) for run_id in ids], ids=ids, tenant="acme")
        for run in runs:
            await run.result(10)

        async def gone() -> bool:
            for shard in daemon.owner.shards.values():
                shard.forget_at = 0.0
            await daemon.retention.forget_once()
            return not await client.runs(tenant="acme")

        await until(gone)
        assert {run.id for run in await client.archived_runs(limit=100)} == set(ids)
        for run_id in ids:
            await client.restore(run_id)
            assert await client.run(run_id).published() == {"stage": "done"}
        assert {run.id for run in await client.runs(attributes={"customer": "o7"})} == {"o7"}
        assert len(await client.runs(tenant="acme", limit=100)) == len(ids)


@app.workflow
async def sums(parts: int) -> int:
    return sum(await sf.gather(*(length(f"{n}" * 8192) for n in range(parts))))


@app.workflow
async def length(text: str) -> int:
    return len(text)


async def test_large_payloads_go_from_slot_to_slot(shared_cluster: EmbeddedCluster, tmp_path: Path) -> None:
    namespace = f"t{uuid.uuid4().hex[:12]}"
    archive = f"file://{tmp_path}/archive"
    async with (
        running_daemon(app, shared_cluster, namespace, crash=False, archive=archive, large_payload=8192) as daemon,
        sf.connect(shared_cluster.url, namespace=namespace) as client,
    ):
        assert await (await client.start(sums, 6, id="s")).result(15) == 6 * 8192
        assert len(list(tmp_path.rglob("*.pay"))) == 6
        await daemon.payload_sweep.run_once()
        assert len(list(tmp_path.rglob("*.pay"))) == 6
