"""Views of apps on a cluster: parts lie with their shards, on several servers, and the merged view on one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import streamflow as sf
from streamflow.daemon import view_fill, view_folder
from streamflow.embedded.cluster import EmbeddedCluster
from streamflow.store.connection import Call
from tests.support.serving import running_daemon
from tests.support.waiting import until

pytestmark = pytest.mark.anyio


async def test_a_view_is_counted_and_read_as_on_one_server(shared_cluster: EmbeddedCluster, namespace: str) -> None:
    app = sf.App()

    @app.workflow
    async def paying(cents: int) -> int:
        sf.record("cents", cents, currency="eur" if cents % 2 else "usd")
        return cents

    app.view(sf.total("cents"), name="paid", by=["currency", "workflow"], window="hour")
    app.view(sf.count(), name="timers", kinds=[sf.events.StepCompleted, sf.events.TimerFired], by=["workflow"])
    async with (
        sf.connect(shared_cluster.url, namespace=namespace) as client,
        running_daemon(app, shared_cluster, namespace, crash=False, rollup=0.02),
    ):
        for cents in range(1, 21):
            await (await client.start(paying, cents)).result()

        async def is_counted() -> bool:
            return "paid" in await client.views() and (await client.view("paid")).events == 20

        await until(is_counted)
        assert {row.key["currency"]: row.value for row in (await client.view("paid")).rows} == {"eur": 100, "usd": 110}


async def test_a_new_view_is_filled_from_all_servers_and_the_archive(
    shared_cluster: EmbeddedCluster, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_folder, "CUT_MS", 1)
    monkeypatch.setattr(view_fill, "SETTLE_MS", 0)
    app = sf.App()

    @app.workflow
    async def paying(cents: int) -> int:
        sf.record("cents", cents)
        return cents

    settings: dict[str, Any] = {"crash": False, "rollup": 0.02, "archive": f"file://{tmp_path}"}
    async with sf.connect(shared_cluster.url, namespace=namespace) as client:
        async with running_daemon(app, shared_cluster, namespace, **settings):
            for cents in range(1, 21):
                await (await client.start(paying, cents, id=f"pay-{cents}")).result()
            for cents in range(1, 11):
                await client.purge(f"pay-{cents}")
        for number in range((await client.read_namespace()).shards):
            keys = client.keys.shard(number)
            entries = await client.store.one(Call.plain("XRANGE", keys.log, "-", "+"))
            if entries:
                await client.store.one(Call.plain("HSET", keys.views, "trim", entries[-1][0]))
                await client.store.one(Call.plain("XDEL", keys.log, *(entry for entry, _ in entries)))
        app.view(sf.total("cents"), name="paid", by=["workflow"])
        async with running_daemon(app, shared_cluster, namespace, **settings):

            async def is_filled() -> bool:
                return "paid" in await client.views() and (await client.view("paid")).earlier == 20

            await until(is_filled)
            assert (await client.view("paid")).sum() == 210
