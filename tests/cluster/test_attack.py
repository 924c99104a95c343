"""Random faults of servers, daemons and workers at the same time: each run ends right, and nothing is left behind."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import anyio
import pytest

import streamflow as sf
from streamflow.embedded.cluster import EmbeddedCluster
from tests.cluster.attack import LIMIT, attacked
from tests.cluster.attack_flows import RECORDED
from tests.process.faults import until

pytestmark = pytest.mark.anyio

ROUNDS = int(os.environ.get("STREAMFLOW_CHAOS", "0"))
SECONDS = 60.0
"""Of a round, in which there are faults."""


@pytest.mark.skipif(not ROUNDS, reason="takes two minutes a round: `make chaos OF=cluster/test_attack.py`")
@pytest.mark.timeout(240 * (ROUNDS + 1))
async def test_a_cluster_survives_random_faults(tmp_path: Path) -> None:
    seed = int(os.environ.get("STREAMFLOW_CHAOS_SEED") or time.time())
    for number in range(seed, seed + ROUNDS):
        (directory := tmp_path / str(number)).mkdir()
        print(f"seed {number}, logs in {directory}", flush=True)
        await play(number, directory)


async def play(seed: int, directory: Path) -> None:
    """One round. The faults of a seed are the same each time, their moments are not."""
    servers, processes = random.Random(f"servers {seed}"), random.Random(f"processes {seed}")
    namespace = f"attack-{seed}"
    async with (
        EmbeddedCluster(replicas=1) as cluster,
        attacked(cluster, namespace, directory) as attack,
        sf.connect(cluster.url, namespace=namespace) as client,
    ):
        stopped, quiet = anyio.Event(), 0.0
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(attack.load, client, stopped)
                await until(attack.serves, "the first run has ended", 30)
                over = time.monotonic() + SECONDS
                async with anyio.create_task_group() as faults:
                    faults.start_soon(attack.disturb_servers, servers, over)
                    faults.start_soon(attack.disturb_processes, processes, over)
                await attack.settle()
                stopped.set()
                quiet = time.monotonic()
                tasks.cancel_scope.deadline = anyio.current_time() + LIMIT
        finally:
            with anyio.CancelScope(shield=True):
                await attack.explain(client)
            print(f"{len(attack.ended)} of {attack.started} ended, {attack.refused} refused, {attack.late} asked again")
            print(f"slowest {attack.slowest:.1f} s; alarms: {attack.alarms()[:5]}")
        assert not attack.open, f"runs hang {time.monotonic() - quiet:.0f} s after the last fault: {attack.open}"
        assert not attack.wrong
        found = await attack.judge()
        missing = attack.ended.keys() - found.runs.keys()
        assert not missing, f"runs whose clients had their results are missing: {sorted(missing)[:9]}"
        assert found.poison == 0
        assert found.recorded_steps == RECORDED * len(attack.ended)
        assert not attack.alarms()
