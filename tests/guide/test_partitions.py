"""What decides a run's shard: its whole id, its tenant, or its workflow. The id alone finds it, always."""

from __future__ import annotations

import pytest

import streamflow as sf
from tests.guide.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()


@app.workflow
async def leaf(n: int) -> int:
    return n


@app.workflow
async def for_another_tenant() -> int:
    return await leaf.options(tenant="globex", id="theirs")(7)


@app.workflow
async def waits() -> str:
    return await sf.signal("go", str)


async def test_by_tenant_every_call_finds_the_run_by_its_whole_id(serve: Serve) -> None:
    async with serve(app, partition="tenant") as client:
        await client.start(waits, id="w", tenant="acme")
        run = client.run("acme/w", str)
        await run.signal("go", "found")
        assert await run.result(10) == "found"
        assert (await run.describe()).tenant == "acme"
        again = await client.start(waits, id="acme/w", tenant="acme")
        assert not again.created


async def test_by_tenant_a_child_may_belong_to_another_tenant(serve: Serve) -> None:
    async with serve(app, partition="tenant") as client:
        assert await (await client.start(for_another_tenant, tenant="acme")).result(10) == 7
        theirs = await client.run("globex/theirs").describe()
        assert (theirs.tenant, theirs.workflow) == ("globex", "leaf")


async def test_by_tenant_runs_without_a_tenant_share_the_default_one(serve: Serve) -> None:
    async with serve(app, partition="tenant") as client:
        run = await client.start(leaf, 1, id="x")
        assert run.id == "default/x"
        assert await run.result(10) == 1


async def test_another_partition_than_the_namespaces_is_refused(serve: Serve) -> None:
    async with serve(app):
        pass
    with pytest.RaisesGroup(pytest.RaisesExc(sf.NamespaceMismatch, match="8 shards by run, but 8 by tenant")):
        async with serve(app, partition="tenant"):
            pass
