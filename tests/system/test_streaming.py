"""Streams through hand-overs and restarts: no reader is shown a chunk twice, or not told of one that is missing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import anyio
import pytest

import streamflow as sf
from streamflow.embedded.server import EmbeddedServer
from tests.support.serving import running_daemon
from tests.support.waiting import DEADLINE, until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

NAMESPACE = "streams"


class Counter:
    """An app with a step that emits numbers as far as the test lets it."""

    def __init__(self) -> None:
        self.app = app = sf.App()
        self.begun = 0
        self.limit = 0
        self.changed = anyio.Event()

        @app.step
        async def count(to: int) -> int:
            self.begun += 1
            for number in range(1, to + 1):
                while number > self.limit:
                    await self.changed.wait()
                sf.emit(number)
            return to

        @app.workflow
        async def counts(to: int) -> int:
            return await count(to)

        self.counts = counts

    def let(self, limit: int) -> None:
        self.limit = limit
        self.changed.set()
        self.changed = anyio.Event()


async def read(run: sf.Run[Any], into: list[sf.Chunk[int]]) -> None:
    async with aclosing(run.stream(int)) as chunks:
        async for chunk in chunks:
            into.append(chunk)  # noqa: PERF401 (others look at it meanwhile)


async def reached(chunks: list[sf.Chunk[int]], value: int) -> None:
    async def there() -> bool:
        return bool(chunks) and chunks[-1].value == value

    await until(there)


async def test_a_step_that_goes_on_at_its_former_owner_goes_on_emitting(serve: Serve) -> None:
    counter = Counter()
    counter.let(1)
    seen: list[list[sf.Chunk[int]]] = [[] for _ in range(12)]
    async with serve(counter.app, shards=8) as (client, first):
        runs = await client.start_many(counter.counts, [(3,)] * len(seen))
        async with anyio.create_task_group() as readers:
            for run, chunks in zip(runs, seen, strict=True):
                readers.start_soon(read, run, chunks)
            for chunks in seen:
                await reached(chunks, 1)
            async with serve(counter.app, shards=8):

                async def lends() -> bool:
                    return first.records.running > 0 and not first.records._releasing

                await until(lends)
                lent = first.records.running
                counter.let(2)
                for chunks in seen:
                    await reached(chunks, 2)
                assert first.records.running == lent, "they still run at their former owner"
                counter.let(3)
                assert [await run.result(DEADLINE) for run in runs] == [3] * len(runs)
    assert counter.begun == len(runs), "no step was run again"
    for chunks in seen:
        assert [(one.value, one.restarted, one.missed) for one in chunks] == [(n, False, 0) for n in (1, 2, 3)]


@pytest.fixture
async def own_server() -> AsyncIterator[EmbeddedServer]:
    async with EmbeddedServer(appendfsync="always") as server:
        yield server


async def test_a_reader_and_a_step_go_on_after_a_restart_of_the_server(own_server: EmbeddedServer) -> None:
    counter = Counter()
    counter.let(20)
    seen: list[sf.Chunk[int]] = []
    async with (
        running_daemon(counter.app, own_server, NAMESPACE, crash=False, dead_after=30.0),
        sf.connect(own_server.url, namespace=NAMESPACE) as client,
        anyio.create_task_group() as readers,
    ):
        run = await client.start(counter.counts, 60)
        readers.start_soon(read, run, seen)
        await reached(seen, 20)
        before = client.store.server_generation
        await own_server.kill()
        counter.let(40)  # emitted while there is no server
        await own_server.start()
        await reached(seen, 40)
        counter.let(60)
        assert await run.result(2 * DEADLINE) == 60
        assert client.store.server_generation > before
    executions: list[list[int]] = []
    for one in seen:
        if one.restarted or not executions:
            executions.append([])
        executions[-1].append(one.value)
        assert one.missed == 0
    assert executions[-1] == list(range(1, 61)), "the daemon has read its shards again, and run the step again"
    for values in executions:
        assert values == list(range(1, len(values) + 1)), "each in order from its beginning, which is marked"
    assert len(executions) <= counter.begun


async def test_a_reader_that_was_away_misses_nothing(serve: Serve) -> None:
    """Its process has ended; another one has the offset."""
    counter = Counter()
    counter.let(30)
    async with serve(counter.app) as (client, _):
        run = await client.start(counter.counts, 100)
        seen: list[int] = []
        offset = ""
        while len(seen) < 100:
            async with aclosing(run.stream(int, after=offset)) as chunks:
                async for chunk in chunks:
                    seen.append(chunk.value)
                    offset = chunk.offset
                    if chunk.value % 10 == 0:
                        counter.let(chunk.value + 30)
                        break
        assert seen == list(range(1, 101))
        assert await run.result(DEADLINE) == 100


async def test_who_reads_a_stream_while_its_run_is_deleted_is_told_so(serve: Serve) -> None:
    """A reader that has stopped at a chunk: by the time that it goes on, the run has ended and is gone."""
    counter = Counter()
    counter.let(1)
    async with serve(counter.app) as (client, _):
        run = await client.start(counter.counts, 3, id="counted")
        async with aclosing(run.stream(int)) as chunks:
            assert (await anext(chunks)).value == 1
            counter.let(3)
            assert await run.result(DEADLINE) == 3
            assert await client.forget(run.id)
            with pytest.raises(sf.RunNotFound, match="was deleted or archived before all of its stream was read"):
                async for _ in chunks:
                    pass
        with pytest.raises(sf.RunNotFound, match="no run"):
            async for _ in run.stream(int):
                pass
