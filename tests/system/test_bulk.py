"""An action in bulk: the runs that were chosen, no others, each once, also if it is killed in the middle."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import anyio
import pytest

import streamflow as sf
from streamflow import actions
from streamflow.actions.pace import Pace
from streamflow.actions.targets import AnyAction, Tally, TargetFile
from streamflow.embedded.server import EmbeddedServer
from streamflow.errors import NamespaceMismatch, StoreError, UsageError
from streamflow.events import RunRetried, SignalReceived
from streamflow.store.connection import Call
from tests.support.waiting import events_of, status_of, until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

up: set[str] = set()


@pytest.fixture(autouse=True)
def down() -> None:
    up.clear()


app = sf.App()


@app.step(retry=sf.NO_RETRY)
async def fetch(n: int) -> int:
    if "api" not in up:
        raise ConnectionError(f"api.example:443 of {n}")
    return n


@app.workflow
async def enrich(n: int) -> int:
    sf.set_attributes(customer="acme" if n % 2 else "zeta")
    return await fetch(n)


@app.workflow
async def other(n: int) -> int:
    return await fetch(n)


@app.workflow
async def listens(n: int) -> list[Any]:
    return [await sf.signal("go"), await sf.signal("end")]


@app.workflow
async def cleans_up(n: int) -> None:
    try:
        await sf.signal("never")
    finally:
        await sf.sleep(3600)


async def begin(client: sf.Client, workflow: Any, prefix: str, count: int, status: sf.Status) -> list[str]:
    ids = [f"{prefix}-{number}" for number in range(count)]
    for run in await client.start_many(workflow, [(number,) for number in range(count)], ids=ids):
        await status_of(run, status)
    return ids


async def headers(client: sf.Client, ids: list[str]) -> list[Any]:
    namespace = await client.read_namespace()
    keys = [client.keys.shard(namespace.shard_of(run_id)).run(run_id) for run_id in ids]
    return [await client.store.one(Call.plain("LRANGE", key, 0, -1)) for key in keys]


async def signals_of(client: sf.Client, ids: list[str]) -> list[list[str]]:
    events = [await events_of(client.run(run_id)) for run_id in ids]
    return [[event.name for event in one if isinstance(event, SignalReceived)] for one in events]


async def every(client: sf.Client, **filters: Any) -> set[str]:
    within = frozenset(sf.Status)
    return {run.id async for found in client._every(within, **filters) for run in found}


async def test_failed_runs_are_mended_and_no_others_touched(serve: Serve, tmp_path: Path) -> None:
    async with serve(app) as (client, _):
        ids = await begin(client, enrich, "e", 40, sf.Status.FAILED)
        others = await begin(client, other, "o", 10, sf.Status.FAILED)
        before = await headers(client, others + ids[::2])
        up.add("api")
        file = tmp_path / "targets"
        outcome = await actions.bulk(
            client,
            actions.Retry(reason="it is back"),
            file=file,
            rate=0,
            by="kim@desk",
            workflow="enrich",
            attributes={"customer": "acme"},
            error="api.example",
        )
        assert (outcome.targets, outcome.done, outcome.already, outcome.failed, outcome.left) == (20, 20, 0, 0, 0)
        assert sum(outcome.now.values()) == 20
        assert "failed" not in outcome.now
        assert not file.exists()
        for run_id in ids[1::2]:
            assert await client.run(run_id, int).result(timeout=10) == int(run_id[2:])
            (retried,) = [event for event in await events_of(client.run(run_id)) if isinstance(event, RunRetried)]
            assert (retried.by, retried.reason) == ("kim@desk", "it is back")
        assert await headers(client, others + ids[::2]) == before


async def test_the_targets_are_those_of_the_start(serve: Serve, tmp_path: Path) -> None:
    async with serve(app) as (client, _):
        await begin(client, listens, "a", 12, sf.Status.RUNNING)
        frozen = await actions.freeze(client, actions.Cancel(), tmp_path / "t", workflow="listens")
        assert len(frozen.sample) == 5
        late = await begin(client, listens, "late", 3, sf.Status.RUNNING)
        before = await headers(client, late)
        for name in ("go", "end"):
            await client.run("a-3").signal(name)  # it ends meanwhile
        await client.run("a-3").result(timeout=10)
        outcome = await frozen.run(rate=0)
        frozen.close()
        assert (outcome.targets, outcome.done, outcome.already, outcome.failed) == (12, 11, 1, 0)
        assert outcome.reasons == {"already: run … has ended: it accepts no cancel any more": 1}
        assert outcome.now == {"cancelled": 11, "completed": 1}
        assert await headers(client, late) == before


async def test_a_new_run_of_a_target_s_id_is_left_alone(serve: Serve, tmp_path: Path) -> None:
    async with serve(app) as (client, _):
        up.add("api")
        await begin(client, other, "a", 3, sf.Status.COMPLETED)
        frozen = await actions.freeze(client, actions.Forget(), tmp_path / "t", workflow="other")
        await client.forget("a-1")
        run = await client.start(other, 7, id="a-1")
        await run.result(timeout=10)
        outcome = await frozen.run(rate=0)
        frozen.close()
        assert (outcome.done, outcome.already) == (2, 1)
        assert outcome.now == {"gone": 3}
        assert await client.run("a-1", int).result(timeout=10) == 7


@contextlib.asynccontextmanager
async def killed(
    client: sf.Client, url: str, file: Path, action: AnyAction, done: int, **filters: Any
) -> AsyncGenerator[Path]:
    """The file as it was when a bulk was killed, which had done it to `done` runs or more."""
    async with sf.connect(url, namespace=client.namespace) as dying:
        frozen = await actions.freeze(dying, action, file, **filters)
        reached = asyncio.Event()

        def on_progress(tally: Tally) -> None:
            if tally.next >= done:
                reached.set()

        task = asyncio.create_task(frozen.run(rate=200, on_progress=on_progress))
        with anyio.fail_after(20):
            await reached.wait()
        left = file.with_suffix(".killed")
        shutil.copy(file, left)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, StoreError):
            await task
        frozen.close()
        yield left


async def test_no_run_gets_a_signal_twice_when_a_killed_bulk_goes_on(
    serve: Serve, embedded_server: EmbeddedServer, tmp_path: Path
) -> None:
    async with serve(app) as (client, _):
        ids = await begin(client, listens, "a", 60, sf.Status.RUNNING)
        others = await begin(client, cleans_up, "o", 5, sf.Status.RUNNING)
        before = await headers(client, others)
        action = actions.Signal.of("go", 1)
        async with killed(client, embedded_server.url, tmp_path / "t", action, 25, workflow="listens") as left:
            got = sum(bool(signals) for signals in await signals_of(client, ids))
            frozen = await actions.open_file(client, left)
            assert frozen.tally.next < got < 60
            outcome = await frozen.run(rate=0)
            frozen.close()
        assert (outcome.targets, outcome.done, outcome.left) == (60, 60, 0)

        async def all_have_it() -> bool:
            return await signals_of(client, ids) == [["go"]] * 60

        await until(all_have_it)
        assert await headers(client, others) == before


async def test_a_killed_bulk_of_cancels_disturbs_no_clean_up(
    serve: Serve, embedded_server: EmbeddedServer, tmp_path: Path
) -> None:
    """A second cancel would interrupt it."""
    async with serve(app) as (client, _):
        await begin(client, cleans_up, "a", 30, sf.Status.RUNNING)
        filters = {"workflow": "cleans_up"}
        async with killed(client, embedded_server.url, tmp_path / "t", actions.Cancel(), 10, **filters) as left:
            frozen = await actions.open_file(client, left)
            outcome = await frozen.run(rate=0)
            frozen.close()
        assert (outcome.done, outcome.now) == (30, {"running": 30})


async def test_a_retry_that_was_killed_goes_on_with_those_that_are_left(
    serve: Serve, embedded_server: EmbeddedServer, tmp_path: Path
) -> None:
    async with serve(app) as (client, _):
        ids = await begin(client, enrich, "e", 40, sf.Status.FAILED)
        up.add("api")
        async with killed(client, embedded_server.url, tmp_path / "t", actions.Retry(), 10, status="failed") as left:
            frozen = await actions.open_file(client, left)
            outcome = await frozen.run(rate=0)
            frozen.close()
        assert (outcome.targets, outcome.failed, outcome.left) == (40, 0, 0)
        assert outcome.done + outcome.already == 40
        for run_id in ids:
            await client.run(run_id).result(timeout=10)
            assert sum(isinstance(event, RunRetried) for event in await events_of(client.run(run_id))) == 1


async def test_it_stops_when_it_is_told_to_and_goes_on_later(serve: Serve, tmp_path: Path) -> None:
    async with serve(app) as (client, _):
        ids = await begin(client, listens, "a", 30, sf.Status.RUNNING)
        frozen = await actions.freeze(client, actions.Signal.of("go"), tmp_path / "t", workflow="listens")
        outcome = await frozen.run(rate=100, on_progress=lambda tally: frozen.stop() if tally.next == 10 else None)
        frozen.close()
        assert 10 <= outcome.done < 20
        assert (outcome.left, outcome.now, outcome.file) == (30 - outcome.done, {}, str(tmp_path / "t"))
        again = await actions.open_file(client, tmp_path / "t")
        assert again.tally.next == outcome.done
        outcome = await again.run(rate=0)
        again.close()
        assert (outcome.done, outcome.left, outcome.file) == (30, 0, "")
        assert not (tmp_path / "t").exists()
        assert await signals_of(client, ids) == [["go"]] * 30


async def test_the_rate_is_kept(serve: Serve, tmp_path: Path) -> None:
    """By a clock that only the pace's sleeps move."""
    now = 0.0
    begun: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        await asyncio.sleep(0)

    class Watched(Pace):
        async def turn(self) -> None:
            await super().turn()
            begun.append(now)

    async with serve(app) as (client, _):
        await begin(client, listens, "a", 30, sf.Status.RUNNING)
        frozen = await actions.freeze(client, actions.Signal.of("go"), tmp_path / "t", workflow="listens")
        await frozen.run(pace=Watched(50, lambda: now, sleep))
        frozen.close()
    assert begun == pytest.approx([number / 50 for number in range(30)])


async def test_what_fails_is_counted_and_named_and_the_others_go_on(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "streamflow.audit")
    async with serve(app) as (client, _):
        await begin(client, enrich, "e", 6, sf.Status.FAILED)
        frozen = await actions.freeze(client, actions.Retry(reason="why"), tmp_path / "t", by="kim@h", status="failed")
        damaged = client.keys.shard((await client.read_namespace()).shard_of("e-2")).run("e-2")
        await client.store.one(Call.plain("SET", damaged, "not a run"))
        up.add("api")
        outcome = await frozen.run(rate=0)
        frozen.close()
        await client.store.one(Call.plain("DEL", damaged))
    assert (outcome.targets, outcome.done, outcome.already, outcome.failed) == (6, 5, 0, 1)
    (reason,) = [reason for reason in outcome.reasons if reason.startswith("failed: ")]
    assert "WRONGTYPE" in reason
    assert '"run_id":"e-2","outcome":"failed"' in (tmp_path / "t").read_text()
    audit = [record.__dict__ for record in caplog.records if record.name == "streamflow.audit"]
    lines = {line["run_id"]: line for line in audit}
    assert len(lines) == 6
    assert {name: lines["e-2"][name] for name in ("action", "by", "reason", "outcome", "namespace")} == {
        "action": "retry",
        "by": "kim@h",
        "reason": "why",
        "outcome": "failed",
        "namespace": client.namespace,
    }
    assert lines["e-1"]["outcome"] == "done"


async def test_a_server_that_is_gone_ends_it_and_it_can_go_on(serve: Serve, tmp_path: Path) -> None:
    async with serve(app) as (client, _):
        ids = await begin(client, listens, "a", 20, sf.Status.RUNNING)
        frozen = await actions.freeze(client, actions.Signal.of("go"), tmp_path / "t", workflow="listens")
        post, posts = client._batcher.post, 0

        def fails(*args: Any) -> asyncio.Future[str]:
            nonlocal posts
            posts += 1
            if posts <= 5:
                return post(*args)
            lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            lost.set_exception(sf.StoreUnavailable("gone"))
            return lost

        client._batcher.post = fails  # pyright: ignore[reportAttributeAccessIssue]
        with pytest.raises(sf.StoreUnavailable, match="gone"):
            await frozen.run(rate=0)
        frozen.close()
        client._batcher.post = post  # pyright: ignore[reportAttributeAccessIssue]
        again = await actions.open_file(client, tmp_path / "t")
        assert again.tally.done <= 5
        outcome = await again.run(rate=0)
        again.close()
        assert (outcome.done, outcome.left) == (20, 0)

        async def all_have_it() -> bool:
            return await signals_of(client, ids) == [["go"]] * 20

        await until(all_have_it)


async def test_filters_find_all_runs_and_each_once(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamflow.client.listing.PAGE", 7)
    monkeypatch.setattr("streamflow.client.listing.SHARDS_AT_ONCE", 3)
    monkeypatch.setattr("streamflow.client.listing.LISTINGS_AT_ONCE", 4)
    async with serve(app) as (client, _):
        failed = await begin(client, enrich, "e", 50, sf.Status.FAILED)
        waiting = await begin(client, listens, "a", 20, sf.Status.RUNNING)
        assert await every(client, workflow="enrich") == set(failed)
        assert await every(client) == {*failed, *waiting}
        assert await every(client, status="running") == set(waiting)
        assert await every(client, attributes={"customer": "acme"}) == set(failed[1::2])
        assert await every(client, error="of 7") == {"e-7"}
        found = [run.id async for page in client._every(frozenset(sf.Status)) for run in page]
        assert len(found) == 70


async def test_what_would_hit_everything_or_nothing_is_refused(serve: Serve, tmp_path: Path) -> None:
    async with serve(app) as (client, _):
        with pytest.raises(UsageError, match="cancel needs a filter"):
            await actions.bulk(client, actions.Cancel(), file=tmp_path / "t")
        with pytest.raises(
            UsageError, match="retry is for runs that are failed, stuck; with status running there are none"
        ):
            await actions.bulk(client, actions.Retry(), file=tmp_path / "t", status="running")
        with pytest.raises(UsageError, match="the filters are status, workflow"):
            await actions.bulk(client, actions.Retry(), file=tmp_path / "t", wrkflow="x")  # pyright: ignore[reportCallIssue]
        with pytest.raises(actions.ReadOnly, match="cancel is not allowed: this is read-only"):
            await actions.bulk(client, actions.Cancel(), file=tmp_path / "t", workflow="listens", read_only=True)
        assert list(tmp_path.iterdir()) == []


async def test_a_file_is_of_one_namespace(serve: Serve, tmp_path: Path) -> None:
    async with serve(app) as (client, _):
        file = TargetFile.create(tmp_path / "t", actions.Cancel(), {"workflow": "w"}, "elsewhere", "x", "kim")
        file.complete()
        file.close()
        with pytest.raises(NamespaceMismatch, match="is of namespace 'elsewhere'"):
            await actions.open_file(client, tmp_path / "t")


async def test_one_run_is_read_back(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "streamflow.audit")
    async with serve(app) as (client, _):
        await begin(client, listens, "a", 2, sf.Status.RUNNING)
        outcome = await actions.perform(client, actions.Cancel(reason="twice"), "a-0", by="kim", read_back=10)
        assert (outcome.text, outcome.took_effect) == ("asked a-0 to cancel", True)
        assert outcome.run is not None
        assert (outcome.run.status, outcome.run.reason) == ("cancelled", "twice")
        with pytest.raises(sf.RunEnded):
            await actions.perform(client, actions.Cancel(), "a-0", by="kim")
        outcome = await actions.perform(client, actions.Forget(), "a-0", read_back=0)
        assert (outcome.run, outcome.took_effect) == (None, True)
        with pytest.raises(actions.ReadOnly, match="cancel of run a-1 is not allowed: this is read-only"):
            await actions.perform(client, actions.Cancel(), "a-1", read_only=True)
        assert (await client.run("a-1").describe()).status == "running"
    lines = [record.__dict__ for record in caplog.records if record.name == "streamflow.audit"]
    assert [(line["action"], line["outcome"]) for line in lines] == [
        ("cancel", "done"),
        ("cancel", "already"),
        ("forget", "done"),
    ]
