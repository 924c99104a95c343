"""Streaming: what steps emit while they run reaches readers at once, bounded and in order, and goes with the run."""

from __future__ import annotations

import contextlib
import threading
from contextlib import aclosing
from typing import Any

import anyio
import msgspec
import pytest

import streamflow as sf
import streamflow.testing as sft
from tests.guide import process_flows
from tests.guide.conftest import Serve, Work
from tests.support.waiting import DEADLINE, reduced, until

pytestmark = pytest.mark.anyio

POEM = ["An ", "old ", "silent ", "pond"]


class Progress(msgspec.Struct):
    done: int
    of: int


def poem_app(*, queue: str | None = None) -> sf.App:
    """A step that emits a word whenever the test lets it, and a run that waits for a signal behind it."""
    app = sf.App()

    @app.step(queue=queue, retry=sf.Retry(initial=0.01))
    async def write(words: list[str]) -> str:
        for word in words:
            sf.emit(word)
        return "".join(words)

    @app.workflow
    async def poem(words: list[str]) -> str:
        text = await write(words)
        await sf.signal("go")
        return text

    return app


async def values(run: sf.Run[Any], **options: Any) -> list[Any]:
    async with aclosing(run.stream(**options)) as chunks:
        return [chunk.value async for chunk in chunks]


async def test_a_reader_gets_what_a_step_emits_while_it_runs(serve: Serve) -> None:
    app = sf.App()
    go_on = anyio.Event()

    @app.step
    async def write() -> str:
        for word in POEM[:2]:
            sf.emit(word)
        await go_on.wait()  # it has not ended when the reader has the first words
        for word in POEM[2:]:
            sf.emit(word)
        return "".join(POEM)

    @app.workflow
    async def poem() -> str:
        return await write()

    async with serve(app) as client:
        run = await client.start(poem)
        seen: list[str] = []
        with anyio.fail_after(DEADLINE):
            async for chunk in run.stream(str):
                assert (chunk.step, chunk.seq, chunk.attempt) == ("write", 1, 1)
                assert (chunk.restarted, chunk.missed) == (False, 0)
                seen.append(chunk.value)
                if seen == POEM[:2]:
                    go_on.set()
        assert seen == POEM, "the stream ends with the run, and has all of it"
        assert await run.result() == "".join(POEM)
        assert await values(run) == POEM, "it is there for a while"


@pytest.mark.parametrize("kind", ["thread", "process", "worker"])
async def test_steps_emit_wherever_they_run(serve: Serve, work: Work, kind: str) -> None:
    if kind == "process":
        app, words = process_flows.app, [{"done": n, "of": 3} for n in range(3)]
        async with serve(app) as client:
            run = await client.start(process_flows.counting, 3)
            with anyio.fail_after(DEADLINE):
                assert await values(run) == words
            assert await run.result() == 3
        return
    app = poem_app(queue="gpu") if kind == "worker" else sf.App()
    if kind == "thread":

        @app.step
        def write(words: list[str]) -> str:
            for word in words:
                sf.emit(word)
            return "".join(words)

        @app.workflow
        async def poem(words: list[str]) -> str:
            return await write(words)

    async with serve(app) as client, work(app, "gpu"):
        run = await client.start("poem", POEM)
        if kind == "worker":
            await run.signal("go")
        with anyio.fail_after(DEADLINE):
            assert await values(run) == POEM


async def test_a_reader_goes_on_behind_the_last_chunk_that_it_has(serve: Serve) -> None:
    app = poem_app()
    async with serve(app) as client:
        run = await client.start("poem", POEM)
        offsets: list[str] = []
        with anyio.fail_after(DEADLINE):
            async with aclosing(run.stream()) as chunks:
                async for chunk in chunks:
                    offsets.append(chunk.offset)
                    if len(offsets) == len(POEM):
                        break  # a browser that has gone
            for seen, offset in enumerate(offsets, 1):
                assert await values(run, after=offset, follow=False) == POEM[seen:]
            await run.signal("go")
            assert await values(run, after=offsets[1]) == POEM[2:]
        with pytest.raises(sf.UsageError, match="offset of a chunk"):
            run.stream(after="17")


async def test_a_retried_attempt_says_that_it_begins_again(serve: Serve) -> None:
    app = sf.App()

    @app.step(retry=sf.Retry(initial=0.01))
    async def write() -> int:
        sf.emit("old ")
        if sf.step_info().attempt == 1:
            raise ConnectionError("the model is away")
        sf.emit("pond")
        return sf.step_info().attempt

    @app.workflow
    async def poem() -> int:
        return await write()

    async with serve(app) as client:
        run = await client.start(poem)
        shown = ""
        marks: list[tuple[int, bool]] = []
        with anyio.fail_after(DEADLINE):
            async for chunk in run.stream(str):
                shown = chunk.value if chunk.restarted else shown + chunk.value
                marks.append((chunk.attempt, chunk.restarted))
        assert shown == "old pond"
        assert marks == [(1, False), (2, True), (2, False)]


async def test_an_attempt_that_a_dead_daemon_ran_begins_again_at_another(serve: Serve) -> None:
    app = sf.App()
    begun: list[int] = []
    emitted = anyio.Event()

    @app.step
    async def write() -> str:
        begun.append(sf.step_info().attempt)
        for word in POEM[:3]:
            sf.emit(word)
        if len(begun) == 1:
            emitted.set()
            await anyio.sleep_forever()
        return "done"

    @app.workflow
    async def poem() -> str:
        return await write()

    async with serve(app, crash=True) as client:
        run = await client.start(poem)
        await emitted.wait()

        async def stored() -> bool:
            return len(await values(run, follow=False)) == 3

        await until(stored)
    async with serve(app):
        with anyio.fail_after(DEADLINE):
            chunks = [chunk async for chunk in run.stream(str)]
    assert len(begun) == 2
    assert [chunk.value for chunk in chunks] == [*POEM[:3], *POEM[:3]]
    assert [number for number, chunk in enumerate(chunks) if chunk.restarted] == [3]


async def test_an_attempt_of_a_dead_worker_begins_again_at_another(serve: Serve, work: Work) -> None:
    app = sf.App()
    begun: list[int] = []
    emitted = anyio.Event()

    @app.step(queue="gpu")
    async def write() -> str:
        begun.append(sf.step_info().attempt)
        sf.emit(f"attempt {sf.step_info().attempt}")
        if len(begun) == 1:
            emitted.set()
            await anyio.sleep_forever()
        return "done"

    @app.workflow
    async def poem() -> str:
        return await write()

    async with serve(app) as client:
        run = await client.start(poem)
        async with work(app, "gpu", crash=True):
            await emitted.wait()

            async def stored() -> bool:
                return bool(await values(run, follow=False))

            await until(stored)
        async with work(app, "gpu"):
            with anyio.fail_after(2 * DEADLINE):
                chunks = [chunk async for chunk in run.stream(str)]
    assert begun == [1, 2]
    assert [(chunk.value, chunk.restarted) for chunk in chunks] == [("attempt 1", False), ("attempt 2", True)]


async def test_a_thread_that_was_given_up_emits_nothing_more(serve: Serve) -> None:
    app = sf.App()
    late, over = threading.Event(), threading.Event()

    @app.step(timeout=0.05, retry=sf.NO_RETRY)
    def hang() -> None:
        sf.emit("in time")
        late.wait(DEADLINE)
        sf.emit("too late")
        over.set()

    @app.workflow
    async def flow() -> str:
        try:
            await hang()
        except sf.StepFailed:
            await sf.signal("go")
        return "gone on"

    async with serve(app) as client:
        run = await client.start(flow)
        await until(lambda: _failed_step(run))
        late.set()
        assert await anyio.to_thread.run_sync(over.wait, DEADLINE)
        await run.signal("go")
        with anyio.fail_after(DEADLINE):
            assert await values(run) == ["in time"]


async def _failed_step(run: sf.Run[Any]) -> bool:
    return any([isinstance(event, sf.events.StepFailed) async for _, event in run.events()])


async def test_the_newest_are_kept_and_readers_are_told_what_is_gone(serve: Serve) -> None:
    app = sf.App()

    @app.step
    async def write(count: int) -> int:
        for number in range(count):
            sf.emit({"number": number, "text": "x" * 1000})
            if number % 50 == 0:
                await anyio.sleep(0.02)
        return count

    @app.workflow
    async def flow(count: int) -> int:
        return await write(count)

    async with serve(app, stream_bytes=100_000) as client:
        run = await client.start(flow, 300)
        await run.result(DEADLINE)
        chunks = [chunk async for chunk in run.stream()]
        facts = await run.stream_facts()
    numbers = [chunk.value["number"] for chunk in chunks]
    assert numbers == list(range(numbers[0], 300))
    assert 20 < len(numbers) < 300
    assert [chunk.missed for chunk in chunks] == [numbers[0], *[0] * (len(numbers) - 1)]
    assert facts is not None
    assert (facts.emitted, facts.kept, facts.step) == (300, len(numbers), "write")


async def test_what_was_emitted_goes_with_the_run(serve: Serve) -> None:
    app = poem_app()
    async with serve(app) as client:
        run = await client.start("poem", POEM, id="p")
        await run.signal("go")
        await run.result(DEADLINE)
        assert await client.forget("p")
        with pytest.raises(sf.RunNotFound):
            await values(run)
        again = await client.start("poem", ["new"], id="p")
        await again.signal("go")
        with anyio.fail_after(DEADLINE):
            assert await values(again) == ["new"]


async def test_a_chunk_that_is_too_large_and_one_in_a_workflow_are_refused() -> None:
    app = sf.App()

    @app.step(retry=sf.NO_RETRY)
    async def large() -> None:
        sf.emit("x" * 70_000)

    @app.workflow
    async def flow() -> str:
        with contextlib.suppress(sf.StepFailed):
            await large()
        sf.emit("here")
        return "never"

    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start(flow)
        with pytest.raises((sf.RunFailed, sft.Stalled)) as raised:
            await run.result()
        assert "sf.publish()" in str(raised.value) + "".join(getattr(raised.value, "__notes__", []))
        [refusal] = [
            event.failure for _, event in [e async for e in run.events()] if isinstance(event, sf.events.StepFailed)
        ]
        assert refusal.kind == "PayloadTooLarge"
        assert "smaller parts" in refusal.message


async def test_a_reader_waits_for_a_published_value(serve: Serve) -> None:
    app = sf.App()

    @app.workflow
    async def load(parts: int) -> int:
        for done in range(parts):
            sf.publish("progress", Progress(done, parts))
            await sf.signal("next")
        sf.publish("progress", Progress(parts, parts))
        return parts

    async with serve(app) as client:
        run = await client.start(load, 3)
        seen: list[int] = []
        with anyio.fail_after(DEADLINE):
            async for progress in run.watch("progress", Progress):
                seen.append(progress.done)
                if progress.done < 3:
                    await run.signal("next")
        assert seen == [0, 1, 2, 3], "each one, the last one, and the end"
        assert [value.done async for value in run.watch("progress", Progress)] == [3]
        assert [value async for value in run.watch("progress", Progress, after=Progress(3, 3))] == []


async def test_who_watches_is_woken_by_the_commit_and_not_by_a_sweep(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamflow.client.waiting.SWEEP_SECONDS", 3600.0)
    app = sf.App()

    @app.workflow
    async def flow() -> None:
        await sf.signal("go")
        sf.publish("key", 1)
        await sf.signal("end")

    async with serve(app) as client:
        run = await client.start(flow)
        await reduced(client, run.id)
        with anyio.fail_after(DEADLINE):
            async with anyio.create_task_group() as tasks, aclosing(run.watch("key")) as watched:
                tasks.start_soon(run.signal, "go")
                assert await anext(watched) == 1
                await run.signal("end")
                assert [value async for value in watched] == []


async def test_heartbeat_details_can_be_read_while_a_step_runs(serve: Serve) -> None:
    app = sf.App()
    go_on = anyio.Event()

    @app.step
    async def load() -> None:
        sf.heartbeat({"pages": 3})
        await go_on.wait()

    @app.workflow
    async def flow() -> None:
        await load()

    async with serve(app) as client:
        run = await client.start(flow)

        async def details() -> Any:
            return next((wait.details for wait in (await run.describe()).waits_for), None)

        assert await until(details) == {"pages": 3}
        go_on.set()
        await run.result(DEADLINE)


# --- tests without a server -------------------------------------------------------------------------------------------


async def test_a_step_that_is_called_as_a_function_shows_what_it_emits() -> None:
    app = sf.App()

    @app.step
    async def write(words: list[str]) -> int:
        for word in words:
            sf.emit(word)
        return len(words)

    assert await write(POEM) == 4, "without a test that looks, it is dropped"
    with sft.emitted() as chunks:
        await write(POEM)
    assert chunks == POEM


async def test_a_sandboxs_run_has_a_stream_and_its_clock_is_virtual() -> None:
    app = sf.App()

    @app.step(retry=sf.Retry(initial=60, jitter=0))
    async def write(words: list[str]) -> str:
        for word in words:
            sf.emit(word)
        if sf.step_info().attempt == 1:
            raise ConnectionError
        return "".join(words)

    @app.workflow
    async def poem(words: list[str]) -> str:
        sf.publish("state", "begun")
        await sf.sleep(3600)
        text = await write(words)
        sf.publish("state", "written")
        return text

    async with sft.Sandbox(app) as sandbox:
        begin = sandbox.now
        run = await sandbox.start(poem, POEM[:2])
        chunks = [chunk async for chunk in run.stream(str)]
        assert [(chunk.value, chunk.restarted) for chunk in chunks] == [
            ("An ", False), ("old ", False), ("An ", True), ("old ", False)
        ]  # fmt: skip
        assert [round((chunk.at - begin).total_seconds()) for chunk in chunks] == [3600, 3600, 3660, 3660]
        assert [chunk.value async for chunk in run.stream(after=chunks[2].offset)] == ["old "]
        other = await sandbox.start(poem, POEM[:1])
        assert [state async for state in other.watch("state", str)] == ["begun", "written"]
