"""A bulk with a client that only notes what it gets: what may be under way, and what comes behind what."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection
from pathlib import Path
from typing import Any

import pytest

import streamflow as sf
import streamflow.testing as sft
from streamflow import actions
from streamflow.actions import many
from streamflow.actions.many import Bulk
from streamflow.actions.targets import Target, TargetFile
from streamflow.client.listing import RunSummary
from streamflow.client.pipelines import Origin
from streamflow.client.run import NumberedRun, Run
from streamflow.errors import StoreUnavailable
from streamflow.model.record import Header, Status
from streamflow.model.sharding import Partition
from streamflow.model.waits import Wait
from streamflow.store.namespace import Namespace

pytestmark = pytest.mark.anyio

SHARDS = 4


class Noting:
    """`posts`: the numbers that arrived, by shard. A run in `hangs` answers when it is set; one in `dies` raises."""

    def __init__(self) -> None:
        self.namespace = "ns"
        self.meta = Namespace(SHARDS, Partition.RUN)
        self.posts: dict[int, list[int]] = {shard: [] for shard in range(SHARDS)}
        self.hangs: dict[str, asyncio.Event] = {}
        self.dies: set[str] = set()
        self.under_way = self.most_under_way = 0

    async def read_namespace(self) -> Namespace:
        await asyncio.sleep(0)
        return self.meta

    def run(self, run_id: str, /) -> Run[Any]:
        raise NotImplementedError

    def _numbered(self, run_id: str, created: int, origin: Origin) -> Run[Any]:
        return NumberedRun(self, run_id, None, False, created, origin)  # pyright: ignore[reportArgumentType]

    async def _post(self, kind: str, run_id: str, created: int, body: bytes, origin: Origin) -> None:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if run_id in self.hangs:
                await self.hangs[run_id].wait()
            await asyncio.sleep(0)
            if run_id in self.dies:
                raise StoreUnavailable("no answer")
            self.posts[self.meta.shard_of(run_id)].append(origin[1])
        finally:
            self.under_way -= 1

    async def _header(self, run_id: str, created: int) -> tuple[Header, bytes]:
        raise sf.RunNotFound("", run_id)

    async def _forget(self, run_id: str, created: int) -> bool:
        raise NotImplementedError

    async def _purge(self, run_id: str, created: int) -> bool:
        raise NotImplementedError

    async def _restore(self, run_id: str, created: int) -> Run[Any]:
        raise NotImplementedError

    async def _storage_wait(self, run_id: str) -> tuple[Wait | None, bool]:
        raise NotImplementedError

    async def _every_archived(self, **filters: Any) -> AsyncGenerator[list[RunSummary]]:
        raise NotImplementedError
        yield []

    async def _every_hibernating(self, *, workflow: str | None = None) -> AsyncGenerator[list[RunSummary]]:
        raise NotImplementedError
        yield []

    async def _every(self, within: Collection[Status], **filters: Any) -> AsyncGenerator[list[RunSummary]]:
        raise NotImplementedError
        yield []


def frozen(client: Noting, path: Path, count: int) -> Bulk:
    file = TargetFile.create(path, actions.Cancel(), {"workflow": "w"}, "ns", "", "kim")
    file.add(Target(f"r{number}", 1) for number in range(1, count + 1))
    file.complete()
    return Bulk(client, file, [], "kim")


async def settle(turns: int = 2000) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


async def test_messages_to_a_shard_keep_the_order_of_the_file(tmp_path: Path) -> None:
    client = Noting()
    bulk = frozen(client, tmp_path / "t", 1000)
    outcome = await bulk.run(rate=0)
    bulk.close()
    assert outcome.done == 1000
    assert sum(len(numbers) for numbers in client.posts.values()) == 1000
    assert all(numbers == sorted(numbers) for numbers in client.posts.values())
    assert client.most_under_way <= SHARDS


async def test_order_is_kept_when_the_namespace_is_read_again_meanwhile(tmp_path: Path) -> None:
    """As after a restart of the server: who asked first is answered, and others have asked since and don't wait."""

    class Reading(Noting):
        asked = 0

        async def read_namespace(self) -> Namespace:
            self.asked += 1
            for _ in range(5 if self.asked % 10 == 0 else 0):
                await asyncio.sleep(0)
            return self.meta

    client = Reading()
    bulk = frozen(client, tmp_path / "t", 1000)
    outcome = await bulk.run(rate=0)
    bulk.close()
    assert outcome.done == 1000
    assert all(numbers == sorted(numbers) for numbers in client.posts.values())


async def test_behind_one_that_may_be_lost_none_of_its_shard_is_sent(tmp_path: Path) -> None:
    """Its number would hide it: sent again, the first one would be taken for one that is there."""
    client = Noting()
    client.dies.add("r400")
    bulk = frozen(client, tmp_path / "t", 1000)
    with pytest.raises(StoreUnavailable):
        await bulk.run(rate=0)
    bulk.close()
    shard = client.meta.shard_of("r400")
    assert max(client.posts[shard]) < 400
    assert bulk.tally.next < 400
    client.dies.clear()
    again = await actions.open_file(client, tmp_path / "t")
    outcome = await again.run(rate=0)
    again.close()
    assert outcome.done == 1000
    assert {number for numbers in client.posts.values() for number in numbers} == set(range(1, 1001))


@pytest.mark.parametrize("way", ["stopped", "cancelled"])
async def test_one_that_hangs_holds_up_stopping_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(many, "GRACE_SECONDS", 0.05)
    client = Noting()
    client.hangs["r5"] = asyncio.Event()
    bulk = frozen(client, tmp_path / "t", 1000)
    task = asyncio.create_task(bulk.run(rate=0))
    await settle()
    if way == "stopped":
        bulk.stop()
        outcome = await task
        assert outcome.left == 996
    else:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    bulk.close()
    assert client.under_way == 0
    assert max(client.posts[client.meta.shard_of("r5")], default=0) < 5
    again = await actions.open_file(client, tmp_path / "t")
    assert again.tally.next == 4
    again.close()


async def test_what_is_under_way_and_what_is_remembered_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "AHEAD", 100)
    client = Noting()
    client.hangs["r1"] = asyncio.Event()
    bulk = frozen(client, tmp_path / "t", 5000)
    task = asyncio.create_task(bulk.run(rate=0))
    await settle()
    assert len(bulk._finished) <= 100
    assert bulk.tally.next == 0
    client.hangs["r1"].set()
    outcome = await task
    bulk.close()
    assert (outcome.done, outcome.now) == (5000, {"gone": 5000})


async def test_an_error_of_a_progress_bar_is_not_swallowed(tmp_path: Path) -> None:
    def on_progress(_: object) -> None:
        raise ZeroDivisionError

    bulk = frozen(Noting(), tmp_path / "t", 10)
    with pytest.raises(ZeroDivisionError):
        await bulk.run(rate=0, on_progress=on_progress)
    bulk.close()


# --- in a sandbox -----------------------------------------------------------------------------------------------------

app = sf.App()
up: set[str] = set()


@app.step(retry=sf.NO_RETRY)
async def fetch(n: int) -> int:
    if not up:
        raise ConnectionError("down")
    return n


@app.workflow
async def enrich(n: int) -> int:
    return await fetch(n)


@app.workflow
async def listens() -> list[str]:
    return [await sf.signal("go", str), await sf.signal("go", str)]


async def test_a_sandbox_takes_actions_as_a_server_does(tmp_path: Path) -> None:
    up.clear()
    async with sft.Sandbox(app) as sandbox:
        failed = [await sandbox.start(enrich, number) for number in range(5)]
        waiting = [await sandbox.start(listens) for _ in range(3)]
        up.add("api")
        outcome = await actions.bulk(sandbox, actions.Retry(), file=tmp_path / "a", rate=0, error="down")
        assert (outcome.done, outcome.now) == (5, {"completed": 5})
        assert [await run.result() for run in failed] == list(range(5))
        frozen = await actions.freeze(sandbox, actions.Signal.of("go", "x"), tmp_path / "b", workflow="listens")
        (tmp_path / "c").write_bytes((tmp_path / "b").read_bytes())
        await frozen.run(rate=0)
        frozen.close()
        again = await actions.open_file(sandbox, tmp_path / "c")  # as if it had been killed at once
        outcome = await again.run(rate=0)
        again.close()
        assert outcome.now == {"running": 3}
        outcome = await actions.bulk(sandbox, actions.Cancel(), file=tmp_path / "d", rate=0, status="running")
        assert outcome.now == {"cancelled": 3}
        assert (await waiting[0].describe()).status == "cancelled"
        await actions.perform(sandbox, actions.Forget(), waiting[0].id)
        with pytest.raises(sf.RunNotFound):
            await waiting[0].describe()
        with pytest.raises(sf.UsageError, match="this sandbox has no archive"):
            await actions.perform(sandbox, actions.Purge(), waiting[1].id)


async def test_a_sandbox_with_an_archive_purges_and_restores_many(tmp_path: Path) -> None:
    up.add("api")
    async with sft.Sandbox(app, archive=True) as sandbox:
        runs = [await sandbox.start(enrich, number) for number in range(5)]
        await actions.bulk(sandbox, actions.Purge(), file=tmp_path / "a", rate=0, workflow="enrich")
        assert not await sandbox.runs()
        assert len(await sandbox.archived_runs()) == 5
        outcome = await actions.bulk(sandbox, actions.Restore(), file=tmp_path / "b", rate=0, workflow="enrich")
        assert outcome.done == 5
        assert [await run.result() for run in runs] == list(range(5))
        assert [run.archived for run in await sandbox.runs()] == [False] * 5
