"""A signal with start, and the quarantine of deliveries, on a real cluster: all keys of a call are in one slot."""

from __future__ import annotations

import asyncio
import secrets

import pytest

import streamflow as sf
from streamflow.embedded.cluster import EmbeddedCluster
from streamflow.triggers.quarantine import DeliveryQuarantine
from streamflow.workflow.trigger import Received
from tests.support.serving import running_daemon

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]

app = sf.App()


@app.workflow
async def collect(name: str) -> list[int]:
    found: list[int] = []
    while len(found) < 3:
        found.append(await sf.signal("add", int))
    return found


async def test_signals_that_start_their_runs_come_once_on_a_cluster(shared_cluster: EmbeddedCluster) -> None:
    namespace = f"c{secrets.token_hex(6)}"
    async with (
        running_daemon(app, shared_cluster, namespace, crash=False),
        sf.connect(shared_cluster.url, namespace=namespace) as client,
    ):

        async def send(run_id: str, number: int) -> None:
            for _ in range(2):
                key = f"click-{number}"
                await client.signal_with_start(
                    collect, run_id, id=run_id, signal="add", value=number, idempotency_id=key
                )

        for round_of in range(2):  # the second one replaces the runs that have ended
            ids = [f"run-{number}" for number in range(20)]
            numbers = range(3 * round_of, 3 * round_of + 3)
            await asyncio.gather(*(send(run_id, number) for run_id in ids for number in numbers))
            assert [sorted(await client.run(run_id).result(20)) for run_id in ids] == [list(numbers)] * 20
        quarantine = DeliveryQuarantine(client)
        kept = await quarantine.put("clicked", Received(id="d1", body=b"x"), "no reason")
        assert [one.id for one in await quarantine.list()] == [kept]
        assert await quarantine.drop(kept)
