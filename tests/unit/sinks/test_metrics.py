"""What a sink answers at /health, /ready and /metrics, also while its own code blocks or its target is down."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest

from streamflow.client.subscription import EventBatch
from streamflow.http import catalog
from streamflow.http.figures import Figures
from streamflow.http.loop_lag import LoopLag
from streamflow.sinks import TargetError, runner
from streamflow.sinks.metrics import SinkMetrics
from streamflow.sinks.sink import Sink
from tests.support.sink_events import FakeClient, step_done

pytestmark = pytest.mark.anyio

OWN = "held", "billing"


class Held(Sink):
    """Its `write` returns when `goes_on` is set, and raises `failure` if there is one."""

    def __init__(self) -> None:
        self.began, self.goes_on = anyio.Event(), anyio.Event()
        self.failure: Exception | None = None
        self.counted = {"dead_letters": 0, "requests": 0}

    @property
    def figures(self) -> dict[str, int]:
        return self.counted

    async def write(self, batch: EventBatch) -> None:
        self.began.set()
        await self.goes_on.wait()
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> Held:
    monkeypatch.setattr(runner, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(runner, "FIRST_PAUSE", 1000.0)
    return Held()


@asynccontextmanager
async def running(sink: Sink, client: FakeClient) -> AsyncGenerator[tuple[runner.SinkRunner, SinkMetrics]]:
    served = runner.SinkRunner(client, sink, group="billing")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(served.run)
        with anyio.fail_after(15):
            yield served, SinkMetrics(served, "shop", LoopLag())
        served.stop()
        tasks.cancel_scope.cancel()


async def figures_of(metrics: SinkMetrics) -> Figures:
    figures = Figures()
    await metrics.add_figures(figures)
    return figures


async def test_what_was_written_is_counted_with_its_age(sink: Held) -> None:
    async with running(sink, FakeClient([step_done(1), step_done(2)], [step_done(3)])) as (served, metrics):
        await sink.began.wait()
        found = (await figures_of(metrics)).values
        assert found[catalog.SINK_EVENTS][OWN] == 0
        assert found[catalog.SINK_WRITING][OWN] > 0
        assert catalog.SINK_WRITE_AGE not in found  # nothing was written yet
        sink.counted = {"dead_letters": 1, "requests": 5}
        sink.goes_on.set()
        while served.figures.events < 3 or served.figures.own != sink.counted:
            await anyio.lowlevel.checkpoint()
        found = (await figures_of(metrics)).values
        assert (found[catalog.SINK_EVENTS][OWN], found[catalog.SINK_BATCHES][OWN]) == (3, 2)
        assert found[catalog.SINK_WRITING][OWN] == 0
        assert found[catalog.SINK_WRITE_AGE][OWN] >= 0
        assert found[catalog.SINK_DEAD_LETTERS][OWN] == 1
        assert found[catalog.SINK_OTHERS] == {(*OWN, "requests"): 5}


async def test_a_target_that_is_down_makes_it_unready_and_is_a_warning(sink: Held) -> None:
    sink.failure = TargetError("connection refused")
    async with running(sink, client := FakeClient([step_done(1)])) as (served, metrics):
        await sink.began.wait()
        assert metrics.unready() == []
        sink.goes_on.set()
        while not served.figures.problem:
            await anyio.lowlevel.checkpoint()
        assert metrics.unready() == metrics.health().warnings == ["its target is down: connection refused"]
        assert metrics.health().healthy  # no restart helps
        found = (await figures_of(metrics)).values
        assert found[catalog.SINK_TARGET_DOWN][OWN] == found[catalog.SINK_RETRIES][OWN] == 1
        while client.trouble != "connection refused":  # who looks at the group sees it
            await anyio.lowlevel.checkpoint()


async def test_a_write_that_does_not_return_is_said_to_who_looks_at_the_group(
    sink: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "SLOW_SECONDS", 0.0)
    async with running(sink, client := FakeClient([step_done(1)])) as (served, metrics):
        while not client.trouble:
            await anyio.lowlevel.checkpoint()
        assert client.trouble.startswith("write() has not returned for ")
        assert "until it does, or this process ends, its shard waits" in client.trouble
        assert metrics.unready() != []
        sink.goes_on.set()
        while served.figures.events < 1:
            await anyio.lowlevel.checkpoint()
        assert served.hangs == served.problem == ""


async def test_it_is_not_ready_before_it_takes_events_and_while_it_drains(sink: Held) -> None:
    served = runner.SinkRunner(FakeClient(), sink, group="billing")
    metrics = SinkMetrics(served, "shop", LoopLag())
    assert metrics.unready() == ["it does not take events yet"]
    served.stop()
    assert metrics.unready() == ["it is draining"]
    assert (await figures_of(metrics)).values[catalog.DRAINING][()] == 1
