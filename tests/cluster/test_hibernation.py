"""Hibernation in a cluster: runs, their buckets and their parents are in slots of three servers."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

import streamflow as sf
from streamflow.embedded.cluster import EmbeddedCluster
from tests.support.serving import running_daemon
from tests.system.test_hibernation import AFTER, app, moved_out, objects, order, parent, reminder, sleeping, url, waits

pytestmark = pytest.mark.anyio


async def test_runs_of_all_slots_sleep_and_wake(shared_cluster: EmbeddedCluster, tmp_path: Path) -> None:
    namespace = f"t{uuid.uuid4().hex[:12]}"
    ids = [f"o{n}" for n in range(12)]
    async with (
        running_daemon(
            app, shared_cluster, namespace, crash=False, hibernate_after=AFTER, archive=url(tmp_path)
        ) as daemon,
        sf.connect(shared_cluster.url, namespace=namespace) as client,
    ):
        runs = await client.start_many(order, [(n,) for n in range(12)], ids=ids)
        above = await client.start(parent, "child", id="above")
        timed = await client.start_many(reminder, [(2.0,)] * 6)
        for run in [*runs, client.run("child")]:
            await waits(client, run)
        await moved_out(daemon, 20)
        assert len(objects(tmp_path)) == 20
        assert {run.id for run in await client.hibernating_runs(workflow="order")} == {*ids, "child"}
        for run in [*runs, client.run("child")]:
            await run.signal("approve", "ann")
        assert [await run.result(20) for run in runs] == [f"{n} approved by ann" for n in range(12)]
        assert await above.result(20) == "parent of: 7 approved by ann"
        assert [await run.result(20) for run in timed] == ["reminded"] * 6
        assert await sleeping(daemon) == 0
