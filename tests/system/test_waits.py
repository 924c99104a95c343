"""What runs wait for and who has them, as `describe`, listings and the status say it of runs on a server."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import msgspec
import pytest

import streamflow as sf
from streamflow.client import waits as reading
from streamflow.client.client import Client
from streamflow.status.collector import StatusCollector
from streamflow.store.connection import Call
from tests.support.waiting import until
from tests.system.conftest import Serve, Work

pytestmark = pytest.mark.anyio

app = sf.App()
go = anyio.Event()


class Approval(msgspec.Struct):
    ok: bool


@app.step
async def charge(n: int) -> int:
    sf.heartbeat({"page": n})
    await go.wait()
    return n


@app.step(retry=sf.Retry(initial=600, jitter=0))
async def flaky() -> None:
    raise ConnectionError("api:443 refused")


@app.step(queue="gpu")
async def render(n: int) -> int:
    sf.heartbeat(n)
    await go.wait()
    return n


@app.workflow
async def approving(timeout: float | None) -> bool:
    return (await sf.signal("approve", Approval, timeout=timeout)).ok


@app.workflow
async def charging(n: int) -> int:
    return await charge(n)


@app.workflow
async def failing() -> None:
    await flaky()


@app.workflow
async def rendering(n: int) -> int:
    return await render(n)


@app.workflow
async def parent() -> None:
    await failing.options(id="kid")()


@app.workflow
async def long(n: int) -> None:
    await sf.start(failing)
    for _ in range(n):
        with sf.timeout(3600):
            await sf.signal("more", str)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    global go
    go = anyio.Event()


async def waits(client: Client, run_id: str) -> list[sf.Wait]:
    return (await client.run(run_id).describe()).waits_for


async def the_wait(client: Client, run_id: str) -> sf.Wait:
    [wait] = await waits(client, run_id)
    return wait


async def test_an_awaited_signal_has_its_type_and_its_time_out(serve: Serve) -> None:
    async with serve(app) as (client, daemon):
        await client.start(approving, None, id="ever")
        await client.start(approving, 3600, id="hour")
        await until(lambda: _is_known(client, "ever", "signal"))
        await until(lambda: _is_known(client, "hour", "signal"))
        ever, hour = await the_wait(client, "ever"), await the_wait(client, "hour")
        assert (ever.kind, ever.name, ever.type, ever.until) == ("signal", "approve", "Approval", None)
        assert hour.since is not None
        assert hour.until is not None
        assert 3500 < (hour.until - hour.since).total_seconds() < 3700
        owner = (await client.run("ever").describe()).owner
        assert owner is not None
        assert owner.daemon == daemon.member
        await client.run("ever").signal("approve", {"ok": True})
        assert await client.run("ever").result(10) is True
        ended = await client.run("ever").describe()
        assert (ended.waits_for, ended.owner) == ([], None)


async def _is_known(client: Client, run_id: str, kind: str) -> bool:
    return [wait.kind for wait in await waits(client, run_id)] == [kind]


async def test_a_step_has_its_process_and_what_it_has_reported_when(serve: Serve) -> None:
    async with serve(app) as (client, daemon):
        run = await client.start(charging, 7, id="charge")

        async def reported() -> bool:
            return (await the_wait(client, "charge")).details is not None

        await until(reported)
        wait = await the_wait(client, "charge")
        assert (wait.kind, wait.name, wait.attempt, wait.details) == ("step", "charge", 1, {"page": 7})
        assert wait.reported is not None
        assert wait.since is not None
        assert abs((wait.reported - wait.since).total_seconds()) < 30  # by two clocks
        assert wait.holder is not None
        assert (wait.holder.kind, wait.holder.name) == ("daemon", daemon.member)
        assert daemon.member.startswith(f"{wait.holder.host}-{wait.holder.pid}-")
        assert (await client.run("charge").describe(waits=False)).waits_for == []
        go.set()
        assert await run.result(10) == 7


async def test_a_retry_has_its_time_and_its_error_also_through_children(serve: Serve) -> None:
    async with serve(app) as (client, _):
        await client.start(parent, id="top")

        async def retrying() -> bool:
            found = await client.runs(waits=True)
            return any(wait.attempt == 2 for run in found for wait in run.waits_for)

        await until(retrying)
        wait = await the_wait(client, "kid")
        assert (wait.kind, wait.attempt, wait.why) == ("step", 2, "ConnectionError: api:443 refused")
        assert wait.until is not None
        assert wait.holder is None, "nobody has it until then"
        child = await the_wait(client, "top")
        assert (child.kind, child.name, child.run_id) == ("child", "failing", "kid")
        listed = {run.id: [one.kind for one in run.waits_for] for run in await client.runs(waits=True)}
        assert listed == {"top": ["child"], "kid": ["step"]}
        assert all(run.waits_for == [] for run in await client.runs())


async def test_a_step_in_a_queue_has_a_place_and_then_a_worker(serve: Serve, work: Work) -> None:
    async with serve(app) as (client, _):
        run: sf.Run[Any] = await client.start(rendering, 5, id="render")
        await until(lambda: _waits_in_queue(client))
        wait = await the_wait(client, "render")
        assert (wait.kind, wait.queue, wait.holder) == ("step", "gpu", None)
        assert wait.place == sf.QueuePlace(before=0, waiting=1, workers=0)
        await client.pause_queue("gpu", by="kim@box", reason="new driver")
        wait = await the_wait(client, "render")
        assert wait.place == sf.QueuePlace(before=0, waiting=1, workers=0, paused="by kim@box: new driver")
        await client.resume_queue("gpu")
        async with work(app, "gpu"):

            async def has_worker() -> bool:
                wait = await the_wait(client, "render")
                return wait.holder is not None and wait.details == 5

            await until(has_worker)
            wait = await the_wait(client, "render")
            assert wait.holder is not None
            assert (wait.holder.kind, wait.place) == ("worker", None)
            assert wait.holder.pid > 0
            go.set()
            assert await run.result(10) == 5


async def _waits_in_queue(client: Client) -> bool:
    found = await waits(client, "render")
    return bool(found) and found[0].place is not None and found[0].place.before is not None


async def test_a_run_is_described_without_what_another_server_knows(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a cluster the namespace's keys are on one server, which may be down while the run's is not."""
    async with serve(app) as (client, daemon):
        await client.start(rendering, 5, id="render")
        await until(lambda: _waits_in_queue(client))
        batcher: Any = client.wait_reader._batcher  # pyright: ignore[reportPrivateUsage]
        call = batcher.call

        def call_but_for_workers(sent: Call[Any]) -> Any:
            away = sent.args[:2] in (["HGETALL", client.keys.workers], ["HGET", client.keys.members])
            return asyncio.get_running_loop().create_future() if away else call(sent)

        monkeypatch.setattr(batcher, "call", call_but_for_workers)
        monkeypatch.setattr(reading, "PATIENCE", 0.05)
        described = await client.run("render").describe()
        [wait] = described.waits_for
        assert (wait.name, wait.place) == ("render", sf.QueuePlace(before=0, waiting=1, workers=None))
        assert described.owner is not None
        assert (described.owner.daemon, described.owner.beat_age) == (daemon.member, None)


async def test_of_a_large_record_the_newest_part_is_read(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve(app) as (client, _):
        run: sf.Run[Any] = await client.start(long, 100, id="long")
        for _ in range(60):
            await run.signal("more", "x" * 200)

        async def all_taken() -> bool:
            return sum(len(one.events) for one in await run.history()) > 120

        await until(all_taken)
        whole = await run.describe()
        assert [wait.kind for wait in whole.waits_for] == ["signal", "child", "timer"]
        assert not whole.waits_more
        monkeypatch.setattr(reading, "FIRST_READ", 2)
        shard = (await client.read_namespace()).shard_of("long")
        waits, more = await client.wait_reader.waits(shard, "long", budget=400)
        assert more
        assert waits[0].name == "more"
        assert all(wait.kind != "child" for wait in waits), "that was long ago"
        length = (await run.describe()).version + 2
        for first in (length - 2, length - 1, length, length + 1):
            monkeypatch.setattr(reading, "FIRST_READ", first)
            waits, more = await client.wait_reader.waits(shard, "long", budget=1)
            assert (waits[0].name, more) == ("more", first < length)


async def test_a_run_that_no_daemon_has_taken_waits_for_its_start(serve: Serve) -> None:
    async with serve(app) as (client, _):
        pass
    await client.start(approving, None, id="new")
    described = await client.run("new").describe()
    assert [wait.kind for wait in described.waits_for] == ["start"]
    assert described.owner is not None
    assert described.owner.daemon == ""


async def test_the_status_says_what_the_oldest_runs_wait_for(serve: Serve) -> None:
    async with serve(app) as (client, _):
        await client.start(approving, None, id="old")
        collector = StatusCollector(client)

        async def shown() -> bool:
            status = await collector.collect()
            return [wait.name for wait in status.oldest_waits.get("old", [])] == ["approve"]

        await until(shown)
        await client.run("old").signal("other", 1)

        async def still_shown() -> bool:
            header = await client.store.one(Call.plain("LINDEX", client.keys.shard(number).run("old"), 0))
            return header.split()[1] == b"2" and await shown()

        number = (await client.read_namespace()).shard_of("old")
        await until(still_shown)
