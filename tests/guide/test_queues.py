"""Queues: `@app.step(queue=…)` runs in workers, wherever they are, and a worker may die at any time."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import pytest

import streamflow as sf
from streamflow.events import StepScheduled
from tests.guide.conftest import Serve, Work
from tests.support.waiting import DEADLINE, events_of, names_of

pytestmark = pytest.mark.anyio


NOW = sf.Retry(attempts=3, initial=0.0, jitter=0.0)


app = sf.App()


class Box(msgspec.Struct):
    width: int
    label: str


@app.step(queue="gpu")
async def widen(box: Box, by: int) -> Box:
    return Box(box.width + by, f"{box.label} in {sf.step_info().step}")


@app.step(queue="gpu")
def in_thread(text: str) -> str:
    return f"{text} on {threading.current_thread().name.rpartition('_')[0]}"


@app.step
async def local(text: str) -> str:
    return f"local {text}"


@app.workflow
async def boxes(count: int) -> list[Box]:
    return list(await sf.gather(*(widen(Box(n, "box"), by=10) for n in range(count))))


@app.workflow
async def mixed(text: str) -> list[str]:
    here = await local(text)
    there = await in_thread(text)
    elsewhere = await local.options(queue="cpu")(text)
    return [here, there, elsewhere]


async def test_typed_arguments_and_results_travel_through_the_queue(serve: Serve, work: Work) -> None:
    async with serve(app) as client, work(app):
        run = await client.start(boxes, 3)
        assert await run.result(timeout=DEADLINE) == [Box(n + 10, "box in widen") for n in range(3)]
        assert [event.queue for event in await events_of(run) if isinstance(event, StepScheduled)] == ["gpu"] * 3


async def test_a_plain_function_runs_in_a_thread_of_the_worker(serve: Serve, work: Work) -> None:
    """A call may name another queue than its step."""
    async with serve(app) as client, work(app, "gpu"), work(app, "cpu"):
        run = await client.start(mixed, "hi")
        assert await run.result(timeout=DEADLINE) == ["local hi", "hi on streamflow-step", "local hi"]


async def test_a_retry_finds_the_heartbeat_details_of_the_attempt_before(serve: Serve, work: Work) -> None:
    local_app = sf.App()
    seen: list[Any] = []

    async def climb() -> int:
        info = sf.step_info()
        seen.append(info.details)
        sf.heartbeat({"height": info.attempt})
        if info.attempt < 3:
            raise ValueError("slipped")
        return info.attempt

    queued = local_app.step(queue="gpu", retry=NOW, name="queued")(climb)
    here = local_app.step(retry=NOW, name="here")(climb)

    @local_app.workflow
    async def twice() -> list[int]:
        return [await queued(), await here()]

    async with serve(local_app) as client, work(local_app):
        run = await client.start(twice)
        assert await run.result(timeout=DEADLINE) == [3, 3]
        assert seen == [None, {"height": 1}, {"height": 2}] * 2
        assert (await names_of(run)).count("StepRetrying") == 4


class Busy(ValueError): ...


@app.step(queue="gpu", retry=sf.Retry(attempts=3, initial=0.0, never=(ValueError,)))
async def strict() -> None:
    raise Busy


@app.step(queue="gpu", retry=NOW)
def lenient() -> None:
    raise Busy


@app.workflow
async def attempts_by_options() -> list[int]:
    calls = [
        strict(),
        strict.options(retry=NOW)(),
        lenient(),
        lenient.options(retry=sf.Retry(attempts=3, initial=0.0, never=(ValueError,)))(),
        lenient.options(queue=None, retry=sf.Retry(attempts=3, initial=0.0, never="Busy"))(),
    ]
    failures = await sf.gather(*calls, return_exceptions=True)
    return [failure.attempt for failure in failures if isinstance(failure, sf.StepFailed)]


async def test_the_retry_policy_of_a_call_counts_wherever_it_runs(serve: Serve, work: Work) -> None:
    async with serve(app) as client, work(app):
        assert await (await client.start(attempts_by_options)).result(timeout=DEADLINE) == [1, 3, 3, 1, 1]


async def test_details_that_cannot_be_recorded_are_an_error_of_the_step(serve: Serve) -> None:
    bad = sf.App()

    @bad.step(retry=sf.NO_RETRY)
    async def tells() -> None:
        sf.heartbeat(object())

    @bad.workflow
    async def flow() -> None:
        await tells()

    async with serve(bad) as client:
        with pytest.raises(sf.RunFailed, match="heartbeat details of step tells"):
            await (await client.start(flow)).result(timeout=DEADLINE)
