"""Daemons that count a view are killed while they do: each event counts once."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

import streamflow as sf
from streamflow.embedded.server import EmbeddedServer
from tests.process.faults import ROOT, ServingProcess, until
from tests.process.view_flows import agent

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

RUNS, ROUNDS = 120, 30


async def test_each_event_counts_once_when_daemons_are_killed(
    embedded_server: EmbeddedServer, namespace: str, tmp_path: Path
) -> None:
    daemons: list[ServingProcess] = []

    def start() -> ServingProcess:
        words = ("daemon", "--app", str(ROOT / "tests/process/view_flows.py") + ":app", "--shards", "8")
        log = tmp_path / f"{len(daemons)}.log"
        more = {"STREAMFLOW_ROLLUP": "0.05", "STREAMFLOW_DEAD_AFTER": "1"}
        daemon = ServingProcess(*words, url=embedded_server.url, namespace=namespace, log=log, **more)
        daemons.append(daemon)
        return daemon

    async def counted() -> int:
        return (await client.view("all")).events if "all" in await client.views() else 0

    try:
        first, second = start(), start()
        async with sf.connect(embedded_server.url, namespace=namespace) as client:

            async def is_there() -> bool:
                try:
                    await client.read_namespace()
                except sf.NamespaceMissing:
                    return False
                return True

            await until(is_there, "the namespace is there")
            starting = asyncio.create_task(start_all(client))
            at = 0
            for victim in (first, second):

                async def has_grown(more: int = at + 50) -> bool:
                    return await counted() >= more

                await until(has_grown, "a view has counted more")
                victim.send(signal.SIGKILL)
                assert await victim.wait() == -signal.SIGKILL
                at = await counted()
                assert at < 3 * RUNS * ROUNDS, "it was killed while events were counted"
                start()
            for run in await starting:
                assert await run.result(timeout=60) == ROUNDS

            async def is_complete() -> bool:
                return await counted() == 3 * RUNS * ROUNDS

            await until(is_complete, "everything is counted")
            kinds = {row.key["kind"]: row.value for row in (await client.view("all")).rows}
            assert kinds == {"Recorded": 2 * RUNS * ROUNDS, "StepCompleted": RUNS * ROUNDS}

            async def has_all() -> bool:
                return (await client.view("cost")).events == RUNS * ROUNDS

            await until(has_all, "the cost is counted")
            assert (await client.view("cost")).sum() == RUNS * sum(range(1, ROUNDS + 1))
    finally:
        for daemon in daemons:
            await daemon.end()


async def start_all(client: sf.Client) -> list[sf.Run[int]]:
    return await asyncio.gather(*(client.start(agent, ROUNDS, id=f"agent-{n}") for n in range(RUNS)))
