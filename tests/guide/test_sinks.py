"""Sinks: committed events, written to where others read them. The target decides when an event is acknowledged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import streamflow as sf
import streamflow.testing as sft
from streamflow import sinks
from tests.guide.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()


@app.step
async def charge(cents: int) -> str:
    return f"charged {cents}"


@app.workflow
async def order(cents: int) -> str:
    return await charge(cents)


class InMemory(sinks.Sink):
    """A sink of one's own: `write` is all that it must have. `down`: how often its target is down before it works."""

    def __init__(self, down: int = 0) -> None:
        self.kinds: dict[str, list[str]] = {}
        self.seen: set[str] = set()
        self.down = down

    async def write(self, batch: sf.EventBatch) -> None:
        for event in batch.events:
            if event.id not in self.seen:  # a batch whose write has failed in the middle comes again as a whole
                self.seen.add(event.id)
                self.kinds.setdefault(event.run_id, []).append(event.kind)
            if self.down:
                self.down -= 1
                raise sinks.TargetError("nobody listens")


ONE_RUN = ["RunStarted", "StepScheduled", "StepCompleted", "RunCompleted"]


async def test_a_sink_of_ones_own_gets_every_event_in_order_of_its_run(serve: Serve) -> None:
    async with serve(app) as client:
        async with client.events("memory", from_="oldest"):
            pass  # from now on the logs keep what this group has not got
        for run in [await client.start(order, cents, id=f"order-{cents}") for cents in range(5)]:
            await run.result()
        sink = InMemory()
        figures = await sinks.run(client, sink, group="memory", once=True)
        assert sink.kinds == {f"order-{cents}": ONE_RUN for cents in range(5)}
        assert (figures.events, figures.failures) == (20, 0)


async def test_what_was_written_does_not_come_again(serve: Serve) -> None:
    async with serve(app) as client:
        await (await client.start(order, 7)).result()
        first = InMemory()
        await sinks.run(client, first, group="memory", once=True)
        await (await client.start(order, 8, id="another")).result()
        second = InMemory()
        await sinks.run(client, second, group="memory", once=True)
        assert second.kinds == {"another": ONE_RUN}


async def test_a_target_that_is_down_gets_the_batch_when_it_is_back(serve: Serve) -> None:
    async with serve(app) as client:
        await (await client.start(order, 7, id="order-7")).result()
        sink = InMemory(down=3)
        figures = await sinks.run(client, sink, group="memory", once=True)
        assert sink.kinds == {"order-7": ONE_RUN}
        assert figures.failures == 3


async def test_a_target_that_stays_down_is_an_error_after_the_patience(serve: Serve) -> None:
    async with serve(app) as client:
        await (await client.start(order, 7, id="order-7")).result()
        with pytest.raises(sinks.TargetError, match="nobody listens"):
            await sinks.run(client, InMemory(down=10**9), group="memory", once=True, patience=0.01)
        sink = InMemory()
        await sinks.run(client, sink, group="memory", once=True)
        assert sink.kinds == {"order-7": ONE_RUN}


async def test_a_file_has_a_line_for_each_event_that_is_wanted(serve: Serve, tmp_path: Path) -> None:
    async with serve(app) as client:
        await (await client.start(order, 7, id="order-7")).result()
        file = tmp_path / "events.jsonl"
        for _ in range(2):
            await sinks.run(
                client, sinks.Jsonl(str(file)), group="files", workflows=["order"], kinds=["StepCompleted"], once=True
            )
        [line] = file.read_text().splitlines()
        assert json.loads(line)["data"]["result"] == "charged 7"


async def test_a_sink_is_tested_with_a_sandbox_without_a_server() -> None:
    async with sft.Sandbox(app) as sandbox:
        await (await sandbox.start(order, 7, id="order-7")).result()
        sink = InMemory()
        await sinks.run(sandbox, sink, group="memory", once=True)
        assert sink.kinds == {"order-7": ONE_RUN}
