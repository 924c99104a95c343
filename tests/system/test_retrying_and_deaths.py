"""Runs that fail again and again are retried, also twice at once and too late, while daemons die all the time."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import anyio
import msgspec
import pytest

import streamflow as sf
from streamflow.events import RunRetried, StepCompleted, StepScheduled
from streamflow.machine.factory import rehydrate
from streamflow.model.sharding import Partition
from tests.support.serving import view
from tests.support.waiting import events_of, until
from tests.system.conftest import Serve, Work

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

QUICK: dict[str, Any] = {"beat": 0.02, "dead_after": 0.1}
RUNS = 40
rng = random.Random()
app = sf.App()


@app.step(retry=sf.Retry(attempts=2, initial=0.01))
async def here(n: int) -> int:
    await anyio.sleep(rng.random() * 0.02)
    return fragile(n)


@app.step(queue="far", retry=sf.NO_RETRY)
async def far(n: int) -> int:
    return fragile(n)


def fragile(n: int) -> int:
    if rng.random() < 0.5:
        raise ValueError(n)
    return n


@app.workflow
async def flow(n: int) -> list[int]:
    first = await here(n)
    a, b, c, _ = await sf.gather(here(1), far(2), here(3), sf.sleep(0.05))
    try:
        last = await here(4)
    except sf.StepFailed:
        await sf.sleep(0.01)
        last = await far(4)
    return [first, a, b, c, last]


class Driver:
    """Retries a run until it completes."""

    def __init__(self, run: sf.Run[list[int]]) -> None:
        self.run = run
        self.accepted = self.unknown = 0

    async def drive(self) -> None:
        for _ in range(500):
            try:
                await self.run.result()
            except sf.RunFailed:
                for _ in range(rng.randint(1, 2)):
                    await self.retry()
            else:
                return
        raise AssertionError(f"{self.run} doesn't complete")

    async def retry(self) -> None:
        try:
            await self.run.retry(timeout=rng.choice([0.02, 10]), anyway=True)
        except TimeoutError:
            self.unknown += 1
        except sf.NotRetried as refused:
            if refused.failure.kind != "NotFailed":
                raise
        else:
            self.accepted += 1


async def test_each_request_takes_effect_at_most_once_and_each_run_completes(
    serve: Serve, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamflow.machine.run.MAX_WORKER_LOSSES", 1000)
    async with serve(app, **QUICK) as (client, _), work(app, "far"):
        drivers = [Driver(run) for run in await client.start_many(flow, [(n,) for n in range(RUNS)])]
        async with anyio.create_task_group() as deaths:

            async def die() -> None:
                while True:
                    async with serve(app, crash=True, **QUICK):
                        await anyio.sleep(rng.random() * 0.3)

            deaths.start_soon(die)
            async with anyio.create_task_group() as driving:
                for driver in drivers:
                    driving.start_soon(driver.drive)
            deaths.cancel_scope.cancel()
        total = 0
        for n, driver in enumerate(drivers):
            run, found = driver.run, await events_of(driver.run)
            assert await run.result() == [n, 1, 2, 3, 4]
            retried = sum(isinstance(event, RunRetried) for event in found)
            assert driver.accepted <= retried <= driver.accepted + driver.unknown
            total += retried
            for kind in (StepScheduled, StepCompleted):
                assert set(Counter(event.seq for event in found if isinstance(event, kind)).values()) == {1}
            header, _ = await client._header(run.id, 0)  # pyright: ignore[reportPrivateUsage]
            opened = msgspec.structs.replace(header, status=sf.Status.RUNNING, ended=0)
            machine = rehydrate(app, Partition.RUN, run.id, opened, b"", await run.history())
            assert machine.diverged is None
            machine.close()

        assert total >= RUNS // 4, "else nothing was tested"

        async def counted() -> bool:
            counts = (await view(client, "runs"))["status"]
            return (counts["completed"], counts["failed"], counts.get("retried", 0)) == (RUNS, 0, total)

        await until(counted)
        assert await client.runs(status="failed") == []
