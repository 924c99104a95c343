"""Runs that wait for storage: put off, while the other runs of their shard go on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import streamflow as sf
from streamflow.daemon import put_off
from streamflow.daemon.daemon import Daemon
from streamflow.daemon.put_off import Need
from streamflow.daemon.shard import OwnedShard, RunWork
from streamflow.errors import ArchiveDamaged, ArchiveError
from streamflow.machine.transition import Due, Outcome
from streamflow.status.collector import StatusCollector
from streamflow.status.words import health, needs_a_person
from streamflow.store.connection import Call
from tests.support.waiting import happened, names_of, status_of, until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()
RAN: list[str] = []


@app.step
async def note(name: str) -> str:
    RAN.append(name)
    return name


@app.workflow
async def collects(count: int) -> list[int]:
    return [await sf.signal("n", int) for _ in range(count)]


@app.workflow
async def steps(name: str) -> str:
    first = await note(f"{name}-1")
    await sf.signal("go")
    return first + await note(f"{name}-2")


@app.workflow
async def sleeps(seconds: float) -> str:
    await sf.sleep(seconds)
    return "awake"


HANGS = asyncio.Event()


@app.step
async def hangs() -> None:
    HANGS.set()
    await asyncio.Event().wait()


@app.workflow
async def two_steps() -> None:
    await sf.gather(note("quick"), hangs())


class Shelf:
    """A storage that has something of some runs, and gives it when `open`, or fails with `error`."""

    least = 0.0

    def __init__(self, *runs: str, kind: type | None = None) -> None:
        self.runs = set(runs)
        self.kind = kind
        """Only if there is such an input."""
        self.open = asyncio.Event()
        self.error: Exception | None = None
        self.asked = 0

    async def fetch(self) -> dict[Any, Any]:
        self.asked += 1
        if self.error is not None:
            raise self.error
        await self.open.wait()
        return {"shelf": True}

    def _need(self, shard: OwnedShard, run_id: str, work: RunWork) -> Need | None:
        if self.kind is not None and not any(isinstance(one, self.kind) for one in work.inputs):
            return None
        wanted = run_id in self.runs and "shelf" not in work.found and run_id not in shard.parked
        return Need("its box", self.fetch) if wanted else None

    def record(self, shard: OwnedShard, run_id: str, work: RunWork, record: list[bytes]) -> list[bytes] | Need:
        return self._need(shard, run_id, work) or record

    def inputs(self, shard: OwnedShard, run_id: str, work: RunWork) -> Need | None:
        return self._need(shard, run_id, work)


def shelf_of(daemon: Daemon, *runs: str, kind: type | None = None) -> Shelf:
    shelf = Shelf(*runs, kind=kind)
    daemon.owner.put_off.suppliers.append(shelf)
    return shelf


async def is_put_off(daemon: Daemon, run_id: str, count: int = 0) -> None:
    """Until the run waits, with at least so many messages behind it."""

    async def waits() -> bool:
        entries = [shard.put_off.get(run_id) for shard in daemon.owner.shards.values()]
        return any(len(entry.later.messages) >= count for entry in entries if entry)

    await until(waits)


async def kept_in_inbox(client: sf.Client) -> int:
    shards = (await client.read_namespace()).shards
    return sum([await client.store.one(Call.plain("XLEN", client.keys.shard(n).inbox)) for n in range(shards)])


async def test_a_run_waits_while_others_of_its_shard_go_on(serve: Serve) -> None:
    async with serve(app, shards=1) as (client, daemon):
        shelf = shelf_of(daemon, "late")
        late = await client.start(collects, 3, id="late")
        await is_put_off(daemon, "late")
        for n in range(3):
            await late.signal("n", n)
        other = await client.start(collects, 1, id="other")
        await other.signal("n", 7)
        assert await other.result(10) == [7]
        await is_put_off(daemon, "late", 3)
        assert await kept_in_inbox(client) == 4, "nothing of it is acknowledged"
        shelf.open.set()
        assert await late.result(10) == [0, 1, 2], "in their order"
        assert shelf.asked > 0


async def test_a_due_time_and_an_outcome_wait_too(serve: Serve) -> None:
    async with serve(app, shards=1, cache=1) as (client, daemon):
        due = shelf_of(daemon, "sleeper", kind=Due)
        outcome = shelf_of(daemon, "stepper", kind=Outcome)
        sleeper = await client.start(sleeps, 0.05, id="sleeper")
        stepper = await client.start(steps, "s", id="stepper")
        await is_put_off(daemon, "sleeper")
        await is_put_off(daemon, "stepper")
        await stepper.signal("go")
        others = [await client.start(sleeps, 0.0) for _ in range(3)]
        assert [await other.result(10) for other in others] == ["awake"] * 3
        due.open.set()
        outcome.open.set()
        assert await sleeper.result(10) == "awake"
        assert await stepper.result(10) == "s-1s-2"


async def test_runs_that_wait_are_not_asked_for_as_due_again_and_again(serve: Serve) -> None:
    async with serve(app, shards=1, cache=1) as (client, daemon):
        shelf = shelf_of(daemon, "r0", "r1", "r2", kind=Due)
        runs = [await client.start(sleeps, 0.05, id=f"r{n}") for n in range(3)]
        for run in runs:
            await is_put_off(daemon, run.id)
        await (await client.start(sleeps, 0.1)).result(10)  # it is due behind them, and they are read with it
        agenda = client.keys.shard(0).agenda

        async def postponed() -> bool:
            found: list[Any] = await client.store.one(Call.plain("ZRANGE", agenda, 0, -1, "WITHSCORES"))
            return len(found) == 6 and min(float(score) for score in found[1::2]) > daemon._clock.now_ms() + 30_000

        await until(postponed)
        shelf.open.set()
        assert [await run.result(10) for run in runs] == ["awake"] * 3
        assert await client.store.one(Call.plain("EXISTS", agenda)) == 0


async def test_storage_that_fails_is_asked_again_and_it_is_said(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(put_off, "FIRST_PAUSE", 0.01)
    async with serve(app, shards=1) as (client, daemon):
        shelf = shelf_of(daemon, "late")
        shelf.error = ArchiveError("the bucket is away")
        late = await client.start(collects, 0, id="late")
        found = await until(lambda: _waits_of(late))
        assert (found.kind, found.name, found.why) == ("storage", "its box", "the bucket is away")
        status = await StatusCollector(client).collect()
        assert [wait.run_id for wait in status.storage_waits] == ["late"]
        assert any("waiting for storage" in one.text and "bucket is away" in one.text for one in health(status))
        assert needs_a_person(health(status))
        shelf.error = None
        shelf.open.set()
        assert await late.result(10) == []
        assert "run late of shard 0 waits for its box" in caplog.text


async def _waits_of(run: sf.Run[Any]) -> Any:
    found = [wait for wait in (await run.describe()).waits_for if wait.kind == "storage"]
    return found[0] if found else None


async def test_what_storage_has_damaged_parks_the_run_until_a_retry(serve: Serve) -> None:
    async with serve(app, shards=1) as (client, daemon):
        shelf = shelf_of(daemon, "late")
        shelf.error = ArchiveDamaged("box 7 is damaged")
        late = await client.start(collects, 1, id="late")
        await status_of(late, sf.Status.STUCK)
        assert "box 7 is damaged" in (await late.describe()).reason
        await late.signal("n", 5)
        shelf.error = None
        shelf.open.set()
        await late.retry()
        assert await late.result(10) == [5]


async def test_the_next_owner_gets_what_was_put_off(serve: Serve) -> None:
    RAN.clear()
    async with serve(app, shards=1, crash=True) as (client, daemon):
        run = await client.start(steps, "t", id="stepper")
        await happened(run, sf.events.StepCompleted)
        shelf_of(daemon, "stepper")
        await run.signal("go")
        await is_put_off(daemon, "stepper")
    async with serve(app, shards=1) as (client, daemon):
        assert await client.run("stepper").result(10) == "t-1t-2"
        names = await names_of(client.run("stepper"))
        assert names.count("SignalReceived") == 1
    assert RAN == ["t-1", "t-2"]


async def test_a_drain_hands_over_an_outcome_that_was_put_off(serve: Serve) -> None:
    RAN.clear()
    async with serve(app, shards=1) as (client, daemon):
        shelf_of(daemon, "stepper", kind=Outcome)
        await client.start(steps, "d", id="stepper")
        await is_put_off(daemon, "stepper")
    async with serve(app, shards=1) as (client, daemon):
        await client.run("stepper").signal("go")
        assert await client.run("stepper").result(10) == "d-1d-2"


async def test_messages_beyond_the_limit_are_read_again_in_order(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(put_off, "MOST_BYTES", 2_000)
    monkeypatch.setattr(put_off, "PORTION", 1_500)
    async with serve(app, shards=1) as (client, daemon):
        shelf = shelf_of(daemon, "late")
        late = await client.start(collects, 60, id="late")
        await is_put_off(daemon, "late")
        for n in range(30):
            await late.signal("n", n)

        async def spilled() -> bool:
            entry = daemon.owner.shards[0].put_off["late"]
            return entry.spilled_to != "" and daemon.owner.shards[0].position == entry.spilled_to

        await until(spilled)
        assert daemon.owner.put_off.bytes < 4_000
        shelf.open.set()
        for n in range(30, 60):
            await late.signal("n", n)
        assert await late.result(10) == list(range(60))
        assert daemon.owner.put_off.bytes == 0
        assert await kept_in_inbox(client) == 0


async def test_what_a_supplier_can_not_read_parks_its_run_and_no_other(serve: Serve) -> None:
    async with serve(app, shards=1) as (client, daemon):
        strange = await client.start(collects, 1, id="strange")
        await happened(strange, sf.events.RunStarted)
        shelf = shelf_of(daemon)

        def inputs(shard: OwnedShard, run_id: str, work: RunWork) -> Need | None:
            if run_id == "strange" and run_id not in shard.parked:
                raise RecursionError("nested too deeply")
            return None

        shelf.inputs = inputs  # pyright: ignore[reportAttributeAccessIssue]
        await strange.signal("n", 7)
        await status_of(strange, sf.Status.STUCK)
        assert "nested too deeply" in (await strange.describe()).reason
        assert await (await client.start(collects, 0)).result(10) == []
        daemon.owner.put_off.suppliers.remove(shelf)
        await strange.retry()
        assert await strange.result(10) == [7]


async def test_a_terminate_ends_a_run_without_what_it_waits_for(serve: Serve) -> None:
    async with serve(app, shards=1) as (client, daemon):
        shelf = shelf_of(daemon, "late")
        late = await client.start(collects, 3, id="late")
        await is_put_off(daemon, "late")
        await late.signal("n", 1)
        await late.terminate("no use")
        with pytest.raises(sf.RunCancelled, match="no use"):
            await late.result(10)
        names = await names_of(late)
        assert names == [
            "RunStarted",
            "RunStuck",
            "SignalReceived",
            "RunResumed",
            "CancelRequested",
            "RunCancelled",
        ], "what has come before is recorded, and no code has run"
        assert not shelf.open.is_set()
        assert await kept_in_inbox(client) == 0
        assert daemon.owner.put_off.bytes == 0
        [shard] = daemon.owner.shards.values()
        assert (shard.put_off, shard.without_storage, shard.parked) == ({}, set(), {})
        again = await client.start(collects, 0, id="late", on_existing="new")
        shelf.open.set()
        assert await again.result(10) == [], "the next run of its id is an ordinary one"


async def test_a_terminate_that_comes_with_the_start_does_not_wait(serve: Serve) -> None:
    async with serve(app, crash=True, shards=1) as (client, daemon):
        shelf_of(daemon, "late")
        late = await client.start(collects, 1, id="late")
        await is_put_off(daemon, "late")
    await late.terminate()
    async with serve(app, shards=1) as (client, daemon):
        shelf = shelf_of(daemon, "late")
        with pytest.raises(sf.RunCancelled):
            await late.result(10)
        assert not shelf.open.is_set()


async def test_a_terminate_ends_a_run_in_memory_whose_step_runs(serve: Serve) -> None:
    async with serve(app, shards=1) as (client, daemon):
        outcome = shelf_of(daemon, "both", kind=Outcome)
        run = await client.start(two_steps, id="both")
        await is_put_off(daemon, "both")
        await until(lambda: asyncio.sleep(0, HANGS.is_set()))
        began = daemon.executor.started
        await run.terminate()
        with pytest.raises(sf.RunCancelled):
            await run.result(10)
        assert not outcome.open.is_set()
        assert daemon.executor.started == began, "no attempt has begun twice"

        async def is_stopped() -> bool:
            return daemon.executor.running == 0

        await until(is_stopped)


async def test_a_terminate_ends_a_run_though_messages_are_only_in_the_inbox(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(put_off, "MOST_BYTES", 2_000)
    monkeypatch.setattr(put_off, "PORTION", 1_500)
    async with serve(app, shards=1) as (client, daemon):
        shelf = shelf_of(daemon, "late")
        late = await client.start(collects, 40, id="late")
        await is_put_off(daemon, "late")
        for n in range(20):
            await late.signal("n", n)
        await until(lambda: asyncio.sleep(0, bool(daemon.owner.shards[0].put_off["late"].spilled)))
        await late.terminate()
        with pytest.raises(sf.RunCancelled):
            await late.result(10)
        assert not shelf.open.is_set()
        names = await names_of(late)
        assert names.count("SignalReceived") == 20, "in its turn, behind what came before"
        assert names[-1] == "RunCancelled"
