"""What runs decide together is divided among calls of bounded size; what one decides alone has a limit."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

import streamflow as sf
from streamflow.daemon import deploy_check, takeover
from streamflow.daemon.batch import BYTES, LARGEST, WRITES
from streamflow.daemon.shard import OwnedShard
from streamflow.store.connection import Call
from streamflow.store.node import Node
from streamflow.wire import decode_outbox
from tests.support.fakes import counts_of, runs_of
from tests.support.waiting import reduced, status_of
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()


@app.workflow
async def leaf(n: int) -> int:
    return n


@app.workflow
async def wide(width: int) -> int:
    await sf.signal("go", int)
    return sum(await sf.gather(*(leaf(n) for n in range(width))))


@app.step
async def blob(size: int) -> bytes:
    return b"x" * size


@app.step
async def length(data: bytes) -> int:
    return len(data)


@app.workflow
async def collecting(size: int) -> int:
    parts = [await blob(size) for _ in range(5)]
    await sf.signal("go", int)
    return sum(len(part) for part in parts)


@app.workflow
async def waiting(n: int) -> int:
    return await sf.signal("go", int)


@app.workflow
async def spreading(width: int, size: int) -> int:
    return sum(await sf.gather(*(length(b"x" * size) for _ in range(width))))


@app.workflow
async def together(width: int, size: int) -> int:
    return sum(len(part) for part in await sf.gather(*(blob(size) for _ in range(width))))


DETAILS = 500_000
"""Bytes that each step of `reporting` reports."""

reported: dict[int, bytes | None] = {}
"""What each step of it got from the attempt before."""


@app.step
async def report(n: int) -> int:
    reported[n] = sf.step_info().details
    sf.heartbeat(bytes([n]) * DETAILS)
    if reported[n] is None:
        await asyncio.sleep(1000)
    return n


@app.workflow
async def reporting(width: int) -> int:
    return sum(await sf.gather(*(report(n) for n in range(width))))


class Traffic:
    """Sizes of what this process sends to the server and gets from it, by verb: the largest, and the largest pipeline
    of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: dict[str, int] = {}
        self.replies: dict[str, int] = {}
        self.pipelines: dict[str, int] = {}
        self.outbox: list[int] = []
        """Messages of each commit."""
        send = Node.send

        async def counted(
            store: Node, calls: Sequence[Call[Any]], patience: float | None = None, **options: bool
        ) -> list[Any]:
            total = 0
            for call in calls:
                name = call.script or str(call.args[0])
                size = sum(len(word) for word in call.args if isinstance(word, bytes | str))
                total += size
                self.requests[name] = max(self.requests.get(name, 0), size)
                self.pipelines[name] = max(self.pipelines.get(name, 0), total)
                if name == "commit":
                    self.outbox.append(messages_of(call))
            answers = await send(store, calls, patience, **options)
            for call, answer in zip(calls, answers, strict=True):
                name = call.script or str(call.args[0])
                self.replies[name] = max(self.replies.get(name, 0), size_of(answer))
            return answers

        monkeypatch.setattr(Node, "send", counted)


def messages_of(commit: Call[Any]) -> int:
    """How many messages its entries for the outbox have."""
    counts = counts_of(commit)
    first = 6 + 3 * len(runs_of(commit)) + counts.acks + 2 * counts.plans + 4 * counts.moves
    return sum(len(decode_outbox(entry)) for entry in commit.args[first + 1 : first + 2 * counts.sends : 2])


def size_of(answer: Any) -> int:
    if isinstance(answer, dict):
        return sum(map(size_of, answer.items()))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if isinstance(answer, list | tuple):
        return sum(map(size_of, answer))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return len(answer) if isinstance(answer, bytes | str) else 0


@pytest.fixture
def traffic(monkeypatch: pytest.MonkeyPatch) -> Traffic:
    return Traffic(monkeypatch)


async def test_fan_outs_of_many_runs_at_once_are_many_commits(serve: Serve, traffic: Traffic) -> None:
    runs, width = 20, 300
    async with serve(app, shards=1) as (client, _):
        fans = await client.start_many(wide, [(width,)] * runs)
        for fan in fans:
            await reduced(client, fan.id)
        await asyncio.gather(*(fan.signal("go", 1) for fan in fans))
        assert [await fan.result(60) for fan in fans] == [sum(range(width))] * runs
    assert sum(traffic.outbox) == 2 * runs * width, "each child's start, and its outcome"
    assert max(traffic.outbox) < WRITES + width


async def test_records_of_many_runs_are_read_in_portions(serve: Serve, traffic: Traffic) -> None:
    runs, size = 60, 50_000
    async with serve(app, shards=2) as (client, _):
        large = await client.start_many(collecting, [(size,)] * runs)
        for run in large:
            while (await run.describe()).version < 6:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    async with serve(app, shards=2) as (client, _):
        await asyncio.gather(*(run.signal("go", 1) for run in large))
        assert [await run.result(60) for run in large] == [5 * size] * runs
    assert traffic.replies["read_runs"] < BYTES + size + 1000
    assert traffic.pipelines["commit"] < 3 * BYTES


async def test_the_check_after_a_deploy_reads_in_portions(serve: Serve, traffic: Traffic) -> None:
    """Runs that fit, runs that don't, and one whose record is larger than a portion."""
    size = 50_000
    async with serve(app, shards=1) as (client, _):
        runs = [*await client.start_many(collecting, [(size,)] * 30), await client.start(collecting, 1_000_000)]
        gone = await client.start_many(waiting, [(n,) for n in range(3)])
        for run in runs:
            while (await run.describe(waits=False)).version < 6:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        for run in gone:
            await reduced(client, run.id)
    traffic.replies.clear()
    later = sf.App()
    later.steps["blob"], later.workflows["collecting"] = blob, collecting
    async with serve(later, shards=1) as (client, daemon):
        for run in gone:
            await status_of(run, sf.Status.STUCK)
        shard = daemon.owner.shards[0]
        code = Call.plain("HGET", shard.keys.owner, "code")
        while await client.store.one(code) != daemon.deploy_check.fingerprint.encode():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert {(await run.describe(waits=False)).status for run in runs} == {sf.Status.RUNNING}
    assert traffic.replies["read_runs"] < deploy_check.BYTES + 1_000_000 + 1000
    assert traffic.replies.get("LRANGE", 0) < size, "only that of who asks why a run is stuck"


async def test_details_of_steps_are_read_in_portions_at_a_takeover(
    serve: Serve, traffic: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    width = 60
    reported.clear()
    async with serve(app, shards=1, crash=True) as (client, daemon):
        run = await client.start(reporting, width)
        stored = Call.plain("HLEN", daemon.owner.shards[0].keys.details)
        while await client.store.one(stored) < width:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    traffic.replies.clear()
    kept: list[int] = []
    acquire = takeover.Takeover.acquire

    async def acquiring(self: takeover.Takeover, wanted: dict[int, tuple[str, str]]) -> list[OwnedShard]:
        owned = await acquire(self, wanted)
        records = [record for shard in owned for of_run in shard.records.values() for record in of_run.values()]
        kept.extend(len(record.details) for record in records if record.unread)
        return owned

    monkeypatch.setattr(takeover.Takeover, "acquire", acquiring)
    async with serve(app, shards=1):
        assert await run.result(60) == sum(range(width))
    assert kept == [0] * width, "they are read with their run"
    assert reported == {n: bytes([n]) * DETAILS for n in range(width)}
    assert DETAILS < traffic.replies["read_hash"] <= takeover.BYTES
    assert max(traffic.replies.values()) <= takeover.BYTES


async def test_a_fan_out_that_no_commit_takes_fails_alone(serve: Serve, traffic: Traffic) -> None:
    async with serve(app, shards=1) as (client, daemon):
        huge = await client.start(spreading, 30, 1_000_000)
        others = await client.start_many(leaf, [(n,) for n in range(20)])
        with pytest.raises(sf.RunFailed) as failed:
            await huge.result(30)
        assert failed.value.failure.kind == "TransitionTooLarge"
        assert "decided 28.6 MB at once, and the limit is 8 MB" in failed.value.failure.message
        assert [await other.result(30) for other in others] == list(range(20))
        assert daemon.executor.running == 0, "nothing of it was begun"
    assert traffic.requests["commit"] < LARGEST


async def test_large_results_that_come_together_fail_nothing(serve: Serve, traffic: Traffic) -> None:
    width, size = 12, 1_500_000
    async with serve(app, shards=1) as (client, _):
        run = await client.start(together, width, size)
        assert await run.result(60) == width * size
    assert traffic.requests["commit"] < LARGEST
