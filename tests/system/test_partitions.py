"""On which shards runs live, by the partition of their namespace."""

from __future__ import annotations

import pytest

import streamflow as sf
from streamflow.model.sharding import Partition
from tests.support.serving import view
from tests.support.waiting import until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio


app = sf.App()


@app.workflow
async def leaf(n: int) -> int:
    return n


@app.workflow
async def tree(n: int) -> list[int]:
    return await sf.gather(*(leaf(number) for number in range(n)))


async def test_by_run_the_runs_of_a_tenant_are_spread_over_all_shards(serve: Serve) -> None:
    async with serve(app) as (client, _):
        runs = await client.start_many(leaf, [(n,) for n in range(100)], tenant="acme")
        shard_of = (await client.read_namespace()).shard_of
        assert {shard_of(run.id) for run in runs} == set(range(8))
        assert [await run.result(10) for run in runs] == list(range(100))
        assert len(await client.runs(tenant="acme", limit=1000)) == 100


async def test_by_tenant_a_tenants_runs_share_a_shard_and_a_prefix(serve: Serve) -> None:
    async with serve(app, partition=Partition.TENANT) as (client, _):
        run = await client.start(tree, 20, id="invoice-17", tenant="acme")
        assert run.id == "acme/invoice-17"
        assert await run.result(10) == list(range(20))
        ids = [found.id for found in await client.runs(tenant="acme", limit=1000)]
        assert len(ids) == 21
        assert len({(await client.read_namespace()).shard_of(run_id) for run_id in ids}) == 1


async def test_by_workflow_each_workflow_has_its_shard_and_children_go_to_theirs(serve: Serve) -> None:
    async with serve(app, partition=Partition.WORKFLOW) as (client, _):
        run = await client.start(tree, 10, id="t")
        assert run.id == "tree/t"
        assert await run.result(10) == list(range(10))
        leaves = [found.id for found in await client.runs(workflow="leaf", limit=1000)]
        assert {leaf.partition("~")[0] for leaf in leaves} == {f"leaf/t.{seq}" for seq in range(1, 11)}
        assert len({(await client.read_namespace()).shard_of(run_id) for run_id in leaves}) == 1


@pytest.mark.parametrize("partition", Partition)
async def test_views_span_all_shards_however_runs_are_spread(serve: Serve, partition: Partition) -> None:
    async with serve(app, partition=partition) as (client, _):
        for tenant in ("acme", "globex"):
            await (await client.start(tree, 5, tenant=tenant)).result(10)

        async def counted() -> bool:
            runs = await view(client, "runs")
            return bool(runs and runs["status"]["completed"] == 12)

        await until(counted)
        runs = await view(client, "runs")
        assert {name: counts["completed"] for name, counts in runs["tenants"].items()} == {"acme": 6, "globex": 6}
        assert {name: counts["completed"] for name, counts in runs["workflows"].items()} == {"leaf": 10, "tree": 2}


async def test_children_live_on_other_shards_than_their_parent(serve: Serve) -> None:
    async with serve(app) as (client, _):
        run = await client.start(tree, 40)
        assert await run.result(10) == list(range(40))
        children = await client.runs(workflow="leaf", limit=100)
        shard_of = (await client.read_namespace()).shard_of
        assert {child.parent for child in children} == {run.id}
        assert len({shard_of(child.id) for child in children}) > 4, "by chance one may have none"
