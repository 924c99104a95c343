"""Views of apps on a cluster: parts lie with their shards, on several servers, and the merged view on one of them."""

from __future__ import annotations

import pytest

import streamflow as sf
from streamflow.embedded.cluster import EmbeddedCluster
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
