"""Large payloads are in storage, and nothing on the server has more than a reference to them."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

import streamflow as sf
from streamflow.actions import Cancel, perform
from streamflow.archive.storage import Files
from streamflow.client.histories import read_history, replay
from streamflow.daemon import put_off
from streamflow.daemon.daemon import Daemon
from streamflow.model.references import WEEK_MS
from streamflow.store.connection import Call
from tests.support.waiting import events_of, happened, status_of, until
from tests.system.conftest import Serve, Work

pytestmark = pytest.mark.anyio

app = sf.App()
LARGE = 8192
TEXT = "".join(f"{n:08d}" for n in range(2500))
"""20,000 bytes."""


@app.step
async def load(name: str) -> str:
    return name + TEXT


@app.step
async def measure(text: str) -> int:
    return len(text)


@app.step(queue="gpu")
async def upper(text: str) -> str:
    return text.upper()


@app.workflow
async def pipeline(name: str) -> str:
    text = await load(name)
    for _ in range(3):
        await measure(text)
    return text


@app.workflow
async def takes(text: str) -> str:
    sf.publish("text", text)
    more = await sf.signal("more", str)
    return text + more


@app.workflow
async def splits(count: int) -> int:
    return sum(await sf.gather(*(takes_part(f"{n}" * LARGE) for n in range(count))))


@app.workflow
async def takes_part(text: str) -> int:
    return len(text)


@app.workflow
async def repeats(text: str, times: int) -> int:
    if times:
        raise sf.ContinueAs(text, times - 1)
    return len(text)


@app.workflow
async def queued(text: str) -> str:
    return await upper(text)


def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/archive"


def objects(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "archive").rglob("*.pay"))


def stores(tmp_path: Path, **others: Any) -> dict[str, Any]:
    return {"archive": url(tmp_path), "large_payload": LARGE, "shards": 2, **others}


async def largest_on_server(client: sf.Client, run_id: str) -> int:
    shard = client.keys.shard((await client.read_namespace()).shard_of(run_id))
    record: list[bytes] = await client.store.one(Call.plain("LRANGE", shard.run(run_id), 0, -1))
    published: dict[bytes, bytes] = await client.store.one(Call.plain("HGETALL", shard.published(run_id)))
    return max(map(len, [*record, *published.values()]))


async def test_a_result_that_is_handed_on_is_stored_once(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, **stores(tmp_path)) as (client, _):
        run = await client.start(pipeline, "a", id="a")
        assert await run.result(10) == "a" + TEXT
        [stored] = objects(tmp_path)
        assert await largest_on_server(client, "a") < 2000
        events = await events_of(run)
        [loaded] = [event for event in events if isinstance(event, sf.events.StepCompleted) and event.name == "load"]
        assert len(bytes(loaded.result)) > len(TEXT), "who reads the history gets the payload"
        assert [event async for _, event in run.events()] == events
        assert (await run.describe()).result == "a" + TEXT
        replay(app, await read_history(client, "a"))
        assert stored.stat().st_size < len(TEXT), "compressed"


async def test_inputs_signals_and_published_values_are_stored(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, **stores(tmp_path)) as (client, _):
        run = await client.start(takes, "b" + TEXT, id="b")
        await happened(run, sf.events.RunStarted)
        assert await run.read("text") == "b" + TEXT
        await run.signal("more", "c" + TEXT)
        assert await run.result(10) == f"b{TEXT}c{TEXT}"
        assert await largest_on_server(client, "b") < 2000
        assert len(objects(tmp_path)) == 3


async def test_what_a_workflow_makes_itself_is_stored_before_it_is_committed(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, **stores(tmp_path)) as (client, _):
        run = await client.start(splits, 3, id="s")
        assert await run.result(10) == 3 * LARGE
        assert await largest_on_server(client, "s") < 2000
        assert len(objects(tmp_path)) == 3
        children = [event for event in await events_of(run) if isinstance(event, sf.events.ChildStarted)]
        for child in children:
            assert await largest_on_server(client, child.run_id) < 2000


async def test_a_worker_fetches_arguments(serve: Serve, work: Work, tmp_path: Path) -> None:
    async with serve(app, **stores(tmp_path)) as (client, _), work(app, "gpu"):
        run = await client.start(queued, "abc" * LARGE, id="q")
        assert await run.result(10) == "ABC" * LARGE
        assert await largest_on_server(client, "q") < 2000


async def test_a_new_owner_replays_from_storage(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, crash=True, **stores(tmp_path)) as (client, _):
        run = await client.start(takes, "d" + TEXT, id="d")
        await happened(run, sf.events.RunStarted)
    async with serve(app, **stores(tmp_path)) as (client, _):
        run = client.run("d")
        await run.signal("more", "!")
        assert await run.result(10) == f"d{TEXT}!"


async def test_a_fork_and_the_next_generation_have_the_payloads(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, **stores(tmp_path)) as (client, _):
        run = await client.start(repeats, "m" + TEXT, 2, id="m")
        assert await run.result(10) == len("m" + TEXT)
        assert len(objects(tmp_path)) == 1
        run = await client.start(pipeline, "n", id="n")
        await run.result(10)
        fork = await run.fork(at=5)
        assert await fork.result(10) == "n" + TEXT
        assert await largest_on_server(client, fork.id) < 4000
        assert len(objects(tmp_path)) == 2


async def test_storage_that_is_down_holds_up_those_runs_only(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(put_off, "LONGEST_PAUSE", 0.05)
    down = True
    put = Files.put

    def fails(self: Files, name: str, data: bytes) -> None:
        if down:
            raise OSError("no space left")
        put(self, name, data)

    monkeypatch.setattr(Files, "put", fails)
    async with serve(app, **stores(tmp_path)) as (client, _):
        run = await client.start(pipeline, "e", id="e")
        other = await client.start(takes_part, "small")
        assert await other.result(10) == 5

        async def waits() -> bool:
            return any(wait.kind == "storage" and "no space" in wait.why for wait in (await run.describe()).waits_for)

        await until(waits)
        sent = await client.start(takes_part, "f" + TEXT, id="f")  # the client sends it, and the owner waits
        down = False
        assert await run.result(10) == "e" + TEXT
        assert await sent.result(10) == len(TEXT) + 1
        assert await largest_on_server(client, "f") < 2000


async def test_a_terminate_ends_what_waits_for_payloads_and_a_cancel_waits(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(put_off, "LONGEST_PAUSE", 0.02)

    def away(*_: object) -> bytes:
        raise OSError("the bucket is away")

    async with serve(app, crash=True, **stores(tmp_path)) as (client, _):
        fetched, cancelled = [await client.start(takes, name + TEXT, id=name) for name in ("fetched", "cancelled")]
        for run in (fetched, cancelled):
            await happened(run, sf.events.RunStarted)
    monkeypatch.setattr(Files, "get", away)
    monkeypatch.setattr(Files, "put", away)
    async with serve(app, **stores(tmp_path)) as (client, daemon):
        stored = await client.start(pipeline, "stored", id="stored")

        async def all_fail() -> bool:
            entries = {key: entry for shard in daemon.owner.shards.values() for key, entry in shard.put_off.items()}
            return len(entries) == 3 and all(entry.tries for entry in entries.values())

        await fetched.signal("more", "!")
        await cancelled.cancel("too late")
        await until(all_fail)
        for run in (fetched, stored):
            await run.terminate("storage is gone")
            with pytest.raises(sf.RunCancelled, match="storage is gone"):
                await run.result(10)

        async def is_said() -> bool:
            return any("away" in wait.why for wait in (await cancelled.describe()).waits_for)

        await until(is_said)
        done = await perform(client, Cancel(), "cancelled")
        assert "its clean-up code needs that" in done.text
        assert "the bucket is away" in done.text
        monkeypatch.undo()
        with pytest.raises(sf.RunCancelled, match="too late"):
            await cancelled.result(10)


async def test_storage_that_hangs_while_its_daemon_is_killed_loses_nothing(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, hangs = threading.Event(), threading.Event()
    put = Files.put

    def waits(self: Files, name: str, data: bytes) -> None:
        hangs.set()
        assert goes_on.wait(30)
        put(self, name, data)

    monkeypatch.setattr(Files, "put", waits)
    async with serve(app, crash=True, **stores(tmp_path)) as (client, _):
        run = await client.start(pipeline, "l", id="l")
        await until(lambda: asyncio.to_thread(hangs.is_set))
        assert await (await client.start(takes_part, "small")).result(10) == 5
        names = [type(event).__name__ for event in await events_of(run)]
        assert names == ["RunStarted", "StepScheduled"], "no reference is committed before the payload is stored"
    goes_on.set()
    async with serve(app, **stores(tmp_path)) as (client, _):
        assert await client.run("l").result(10) == "l" + TEXT
        assert len(objects(tmp_path)) == 1


@pytest.mark.parametrize("harm", ["damaged", "deleted"])
async def test_a_payload_that_isnt_what_was_stored_parks_its_run_until_a_retry(
    serve: Serve, tmp_path: Path, harm: str
) -> None:
    async with serve(app, crash=True, **stores(tmp_path)) as (client, _):
        await happened(await client.start(takes, "g" + TEXT, id="g"), sf.events.RunStarted)
    [stored] = objects(tmp_path)
    content = stored.read_bytes()
    if harm == "deleted":
        stored.unlink()
    else:
        stored.write_bytes(content[:-9] + b"x" * 9)
    async with serve(app, **stores(tmp_path)) as (client, _):
        run = client.run("g")
        await run.signal("more", "!")
        await status_of(run, sf.Status.STUCK)
        assert stored.name in (await run.describe()).reason
        stored.write_bytes(content)
        await run.retry()
        assert await run.result(10) == f"g{TEXT}!"


async def test_an_archived_run_keeps_its_payloads_and_a_forgotten_one_doesnt(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, **stores(tmp_path)) as (client, daemon):
        for name in ("kept", "gone"):
            await (await client.start(pipeline, name, id=name)).result(10)
        await client.purge("kept")
        assert await client.run("kept").result(5) == "kept" + TEXT
        await client.forget("gone")
        assert len(objects(tmp_path)) == 2
        await swept(daemon)
        assert len(objects(tmp_path)) == 2, "their week isn't over"
        later(daemon, 2)
        await swept(daemon)
        [left] = objects(tmp_path)
        assert await client.run("kept").result(5) == "kept" + TEXT
        await client.forget("kept")
        await swept(daemon)
        assert not left.exists()


async def test_what_runs_messages_and_queues_refer_to_is_kept(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, **stores(tmp_path)) as (client, daemon):
        await happened(await client.start(takes, "h" + TEXT, id="h"), sf.events.RunStarted)
        await happened(await client.start(queued, "i" + TEXT, id="i"), sf.events.StepScheduled)
        await client.start(takes, "j" + TEXT, id="j", delay=3600)
        await client.start("unknown", "k" + TEXT, id="k")
        await status_of(client.run("k"), sf.Status.STUCK)
        await daemon.rollup.run_once()
        assert len(objects(tmp_path)) == 4
        later(daemon, 2)
        await swept(daemon)
        assert len(objects(tmp_path)) == 4
        assert daemon.payload_sweep.deleted == 0


def later(daemon: Daemon, weeks: int) -> None:
    """For the sweep: it is so much later."""
    sweep, now = daemon.payload_sweep, daemon.payload_sweep._clock.now_ms

    class Later:
        def now_ms(self) -> int:
            return now() + weeks * WEEK_MS

    sweep._clock = Later()  # pyright: ignore[reportAttributeAccessIssue]


async def swept(daemon: Daemon) -> None:
    for _ in range(2):
        await daemon.payload_sweep.run_once()


async def test_a_message_whose_payload_is_gone_parks_its_run_until_a_retry(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve(app, **stores(tmp_path)) as (client, _):
        run = await client.start(takes, "m", id="m")
        await happened(run, sf.events.RunStarted)
        get = Files.get
        monkeypatch.setattr(Files, "get", lambda self, name: None if name.endswith(".pay") else get(self, name))
        await run.signal("more", TEXT)
        await status_of(run, sf.Status.STUCK)
        assert "somebody has deleted it" in (await run.describe()).reason
        monkeypatch.undo()
        await run.retry()
        assert await run.result(10) == "m" + TEXT


async def test_a_run_that_waits_for_a_storage_goes_on_with_another_one(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(put_off, "LONGEST_PAUSE", 0.02)
    (tmp_path / "wrong").write_text("no directory")
    async with serve(app, **stores(tmp_path, archive=f"file://{tmp_path}/wrong")) as (client, daemon):
        run = await client.start(pipeline, "n", id="n")

        async def waits() -> bool:
            return any(entry.tries for shard in daemon.owner.shards.values() for entry in shard.put_off.values())

        await until(waits)
        await client.store.one(Call.plain("HSET", client.keys.meta, "archive", url(tmp_path)))
        await status_of(run, sf.Status.COMPLETED)
        assert len(objects(tmp_path)) == 1


async def test_a_daemon_reads_references_before_it_knows_that_there_are_some(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, **stores(tmp_path, large_payload=0)) as (client, daemon):
        daemon.owner.follow = lambda archive, large_payload: None  # its heartbeats are late
        await client.store.one(Call.plain("HSET", client.keys.meta, "large_payload", LARGE))
        async with sf.connect(client.store.url, namespace=client.namespace) as other:
            run = await other.start(takes, "p" + TEXT, id="p")
            await happened(run, sf.events.RunStarted)
            assert len(objects(tmp_path)) == 1
            await run.signal("more", "!")
            assert await run.result(10) == f"p{TEXT}!"
