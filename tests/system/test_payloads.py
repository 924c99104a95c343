"""Large payloads are stored once, in the run's record; who follows a run or the log gets them from there."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgspec
import pytest

import streamflow as sf
from streamflow import events
from streamflow.cli.commands.tail import LogLine, merged, with_payloads
from streamflow.daemon.rollup import rebuild_views
from streamflow.events import gone_bytes
from streamflow.store.connection import Call
from tests.support.serving import view
from tests.support.waiting import until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()

SIZE = 20_000
BODY = SIZE + 3
"""Bytes of such a text as a payload."""


def text(mark: str) -> str:
    return mark + "x" * (SIZE - len(mark))


@app.step
async def produce(mark: str) -> str:
    return text(mark)


@app.step(retry=sf.Retry(attempts=1))
async def fail(size: int) -> None:
    raise ValueError("m" * size)


@app.workflow
async def produces(marks: list[str]) -> str:
    """Waits for a signal before each."""
    last = ""
    for mark in marks:
        await sf.signal("go")
        last = await produce(mark)
    return last


@app.workflow
async def generations(body: str, left: int) -> str:
    extra = await sf.signal("extra", str)
    if left:
        raise sf.ContinueAs(extra, left - 1)
    return body[:1]


class Kept(msgspec.Struct):
    count: int = 0


@app.reducer
def keeps(state: Kept, event: sf.Event) -> sf.Decision:
    match event:
        case sf.Signal(name="add"):
            state.count += 1
        case sf.Signal(name="end"):
            return sf.Decision(state, [sf.Complete(state.count)])
        case _:
            pass
    return sf.Decision(state)


@app.workflow
async def fails(size: int) -> None:
    await fail(size)


# --- what is read -----------------------------------------------------------------------------------------------------


async def log_lines(client: sf.Client, shards: int = 1) -> list[LogLine]:
    """All that the log has, as it is read, without the payloads that it doesn't have."""
    async with contextlib.aclosing(merged(client, range(shards), float("inf"))) as found:
        return await asyncio.wait_for(anext(found), 10)


async def joined(client: sf.Client, lines: list[LogLine]) -> list[Any]:
    return [line.event async for line in with_payloads(client, lines)]


async def raw_log(client: sf.Client) -> bytes:
    entries = await client.store.one(Call.plain("XRANGE", client.keys.shard(0).log, "-", "+"))
    return b"".join(value for _, fields in entries for value in fields.values())


def results(found: list[Any]) -> list[str]:
    completed = [event for event in found if isinstance(event, events.StepCompleted)]
    return [msgspec.msgpack.decode(event.result)[:2] for event in completed if not gone_bytes(event.result)]


# --- tests ------------------------------------------------------------------------------------------------------------


async def test_followers_of_a_run_get_whole_results_that_the_log_does_not_have(serve: Serve) -> None:
    async with serve(app, shards=1) as (client, _):
        run = await client.start(produces, ["a1", "b2", "c3"])
        await run.signal("go")
        seen: list[Any] = []
        async with contextlib.aclosing(run.events(follow=True)) as following:
            async for _, event in following:
                seen.append(event)
                if isinstance(event, events.StepCompleted) and len(results(seen)) < 3:
                    await run.signal("go")
        recorded = [event for transition in await run.history() for event in transition.events]
        assert seen == recorded
        assert results(seen) == ["a1", "b2", "c3"]
        assert b"xxxxxxxx" not in await raw_log(client)
        assert "xxxxxxxx" in await run.result(5)


async def test_the_log_of_all_runs_is_joined_in_its_order(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """In portions: one reply has room for two such results of a shard at most."""
    monkeypatch.setattr("streamflow.client.joining.PORTION", 7)
    monkeypatch.setattr("streamflow.client.joining.PORTION_BYTES", 2 * SIZE)
    async with serve(app, shards=3) as (client, _):
        marks = [[f"{run}{step}" for step in range(6)] for run in range(5)]
        runs = [await client.start(produces, its, id=f"r{number}") for number, its in enumerate(marks)]
        for run in runs:
            for _ in range(6):
                await run.signal("go")
        await asyncio.gather(*(run.result(20) for run in runs))
        lines = await log_lines(client, shards=3)
        whole = [line async for line in with_payloads(client, lines)]
        assert [(line.at, line.run_id, type(line.event)) for line in whole] == [
            (line.at, line.run_id, type(line.event)) for line in lines
        ]
        for run in runs:
            recorded = [event for transition in await run.history() for event in transition.events]
            assert [line.event for line in whole if line.run_id == run.id] == recorded
        assert any(
            gone_bytes(line.event.result) == BODY for line in lines if isinstance(line.event, events.StepCompleted)
        )


async def test_what_was_forgotten_before_it_is_read_is_gone_with_its_size(serve: Serve) -> None:
    async with serve(app, shards=1) as (client, _):
        run = await client.start(produces, ["a1"], id="r")
        await run.signal("go")
        await run.result(10)
        lines = await log_lines(client)
        assert results(await joined(client, lines)) == ["a1"]
        await client.forget("r")
        again = await client.start(produces, ["b2"], id="r")
        await again.signal("go")
        await again.result(10)
        found = await joined(client, lines)
        assert [type(event) for event in found] == [type(line.event) for line in lines]
        [completed] = [event for event in found if isinstance(event, events.StepCompleted)]
        assert gone_bytes(completed.result) == BODY, "the result of the next run of that id is another one"
        [ended] = [event for event in found if isinstance(event, events.RunCompleted)]
        assert gone_bytes(ended.result) == BODY


async def test_a_new_generation_leaves_only_sizes_of_the_one_before(serve: Serve) -> None:
    async with serve(app, shards=1) as (client, _):
        run = await client.start(generations, text("a"), 2)
        for number, mark in enumerate("bcd"):
            await run.signal("extra", text(mark))

            async def is_taken(number: int = number) -> bool:
                kinds = [line.event for line in await log_lines(client)]
                return sum(isinstance(event, events.SignalReceived) for event in kinds) > number

            await until(is_taken)
        await run.result(10)
        found = await joined(client, await log_lines(client))
        sizes = [
            (type(event).__name__, gone_bytes(payload))
            for event in found
            for payload in [getattr(event, "input", None) or getattr(event, "value", None)]
            if payload is not None
        ]
        assert [kind for kind, _ in sizes].count("RunContinued") == 2
        last = max(number for number, (kind, _) in enumerate(sizes) if kind == "RunContinued")
        first_of_last = last - 1  # the signal that it was decided by is in the same transition
        assert all(size > SIZE for _, size in sizes[:first_of_last])
        assert all(size == 0 for _, size in sizes[first_of_last:]), "those of the record are whole"
        recorded = [event for transition in await run.history() for event in transition.events]
        assert found[-len(recorded) :] == recorded


async def test_of_a_reducer_the_newest_payloads_are_there(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamflow.cli.commands.tail.READ_ENTRIES", 10_000)
    async with serve(app, shards=1) as (client, _):
        run = await client.start(keeps, id="r")
        while (await run.describe()).version <= 410:  # a record is trimmed when it has 400
            await run.signal("add", "x" * 600)
        await run.signal("end")
        await run.result(10)
        recorded = [event for transition in await run.history() for event in transition.events]
        found = await joined(client, await log_lines(client))
        assert found[-len(recorded) :] == recorded
        older = [event for event in found[: -len(recorded)] if isinstance(event, events.SignalReceived)]
        assert older
        assert {gone_bytes(event.value) for event in older} == {603}


async def test_a_long_error_is_in_the_views_and_whole_in_the_run(serve: Serve) -> None:
    async with serve(app, shards=1) as (client, _):
        run = await client.start(fails, 3000)
        with pytest.raises(sf.RunFailed) as caught:
            await run.result(10)
        assert caught.value.failure.traceback

        async def shown() -> Any:
            failures = await view(client, "failures")
            return failures and failures["latest"]

        before = await until(shown)
        assert before[0]["message"].endswith("m" * 100)
        found = [line.event for line in await log_lines(client)]
        [ended] = [event for event in found if isinstance(event, events.RunFailed)]
        assert ended.failure.traceback == ""
        assert len(await raw_log(client)) < 3000
        [whole] = [
            event for event in await joined(client, await log_lines(client)) if isinstance(event, events.RunFailed)
        ]
        assert whole.failure == caught.value.failure
    await client.store.one(Call.plain("DEL", client.keys.shard(0).views))
    await rebuild_views(client.store, client.kernel, 1, 0)
    assert (await view(client, "failures"))["latest"] == before, "counted again from the log"
