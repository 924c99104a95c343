"""Published values: what a run lets others read while it goes on, without being disturbed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

import streamflow as sf
from streamflow.events import SignalReceived
from tests.guide.conftest import Serve
from tests.support.waiting import happened, names_of, reduced

pytestmark = pytest.mark.anyio

app = sf.App()


class Progress(msgspec.Struct):
    done: int
    of: int


@app.step
async def load(part: int) -> int:
    return part


@app.workflow
async def importing(parts: int) -> int:
    sf.publish("progress", Progress(0, parts))
    for part in range(parts):
        await sf.signal("next")
        await load(part)
        sf.publish("progress", Progress(part + 1, parts))
        sf.publish("last", f"part {part}")
    return parts


@app.reducer
def counter(state: int, event: sf.Event) -> sf.Decision:
    match event:
        case sf.Signal(name="stop"):
            sf.publish("count", "done")
            return sf.Decision(state, [sf.Complete(state)])
        case sf.Signal():
            sf.publish("count", state + 1)
            return sf.Decision(state + 1)
        case _:
            return sf.Decision(state)


@app.workflow
async def clumsy() -> str:
    try:
        sf.publish("thing", object())
    except sf.PayloadInvalid as error:
        return str(error)
    return "published"


async def test_what_a_run_publishes_can_be_read_while_it_waits(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(importing, 3, id="i")
        await reduced(client, "i")
        assert await run.read("progress", Progress) == Progress(0, 3)
        assert await run.read("progress") == {"done": 0, "of": 3}
        assert await run.published() == {"progress": {"done": 0, "of": 3}}
        assert (await run.describe()).version == 1, "reading adds no event"


async def test_the_newest_value_counts_and_other_keys_stay(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(importing, 2)
        for _ in range(2):
            await run.signal("next")
        assert await run.result(10) == 2
        assert await run.published() == {"last": "part 1", "progress": {"done": 2, "of": 2}}


async def test_a_key_that_was_never_published_reads_as_the_default(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(importing, 1, id="i")
        await reduced(client, "i")
        assert await run.read("other") is None
        assert await run.read("other", int, 7) == 7
        assert await (await client.start(clumsy)).published() == {}
        with pytest.raises(sf.RunNotFound):
            await client.run("nothing").read("progress")
        with pytest.raises(sf.RunNotFound):
            await client.run("nothing").published()
        with pytest.raises(sf.InvalidName):
            await run.read("no spaces")
        with pytest.raises(sf.PayloadInvalid, match="published value progress of run i"):
            await run.read("progress", int)


async def test_publishing_adds_no_event_to_the_history(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(clumsy)
        assert "published value thing can't be encoded" in await run.result(10)
        counting = await client.start(counter)
        await counting.signal("stop")
        await counting.result(10)
        assert await names_of(counting) == ["RunStarted", "SignalReceived", "RunCompleted"]
        assert await counting.read("count") == "done", "the transition that ends the run publishes, too"


async def test_values_survive_the_death_of_a_daemon(serve: Serve) -> None:
    async with serve(app, crash=True) as client:
        run, counting = await client.start(importing, 2, id="i"), await client.start(counter, id="c")
        await run.signal("next")
        await counting.signal("up")
        await happened(run, SignalReceived)
        await happened(counting, SignalReceived)
    assert await counting.read("count") == 1
    async with serve(app):
        await counting.signal("up")
        await run.signal("next")
        assert await run.result(10) == 2
        await happened(counting, SignalReceived, 2)
    assert await run.read("progress", Progress) == Progress(2, 2)
    assert await counting.read("count") == 2


async def test_values_are_kept_after_the_end_until_the_run_is_forgotten(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(counter, id="c")
        await run.signal("stop")
        await run.result(10)
        assert await run.read("count") == "done"
        assert await client.forget("c")
        again: sf.Run[Any] = await client.start(counter, id="c")
        assert await again.published() == {}


async def test_publish_and_set_attributes_are_refused_outside_a_workflow() -> None:
    with pytest.raises(sf.UsageError, match=r"sf\.publish\(\) was called outside a workflow"):
        sf.publish("key", 1)
    with pytest.raises(sf.UsageError, match=r"sf\.set_attributes\(\) was called outside a workflow"):
        sf.set_attributes(key=1)
