"""Bursts of starts: they wait outside the daemon's memory, and hold up neither what is under way nor other tenants."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import streamflow as sf
from streamflow.client.quarantine import Quarantine
from streamflow.daemon.admission import FETCH_BYTES
from streamflow.daemon.daemon import Daemon
from streamflow.daemon.starts import ALONE, ENOUGH_BYTES
from streamflow.store.connection import Call
from tests.support.waiting import events_of, names_of, reduced, status_of, until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

STRAIGHT, SHARE = 64, 16
"""Starts of a shard that join its inbox, and those of a tenant that join a longer one (`lua/shared/open_run.lua`)."""


class Gate:
    """What the steps of these runs wait for. `begun`: the steps that have started, in order."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.begun: list[int] = []


gate: Gate
app = sf.App()


@app.step(timeout=None)
async def gated(number: int) -> int:
    gate.begun.append(number)
    await gate.open.wait()
    return number


@app.workflow
async def job(number: int) -> int:
    return await gated(number)


@app.workflow
async def wide(width: int) -> int:
    return sum(await sf.gather(*(gated(number) for number in range(width))))


plain_gate = threading.Event()


@app.step(timeout=None)
def plain() -> None:
    plain_gate.wait(60)


@app.workflow
async def slow_plain() -> None:
    await plain()


@app.step
async def plus_one(number: int) -> int:
    return number + 1


@app.workflow
async def chain(length: int) -> int:
    value = 0
    for _ in range(length):
        value = await plus_one(value)
    return value


@app.workflow
async def signalled(number: int) -> int:
    return number + await sf.signal("more", int)


@app.workflow
async def measure(data: bytes) -> int:
    return len(data)


@app.workflow
async def fan(width: int) -> int:
    return sum(await sf.gather(*(child(number) for number in range(width))))


@app.workflow
async def child(number: int) -> int:
    return await plus_one(number) - 1


@app.step
async def produce(size: int) -> bytes:
    return b"x" * size


@app.workflow
async def producing(size: int) -> int:
    parts = await sf.gather(*(produce(size) for _ in range(3)))
    return sum(len(part) for part in parts) // 3


@app.workflow
async def keeping(data: bytes) -> int:
    await sf.signal("go", int)
    return len(data)


@app.reducer
def adding(state: int, event: sf.Event) -> sf.Decision:
    match event:
        case sf.Started(input=number):
            return sf.Decision(number)
        case sf.Signal(value=number):
            return sf.Decision(state + number, [sf.Complete(state + number)] if number < 0 else [])
        case _:
            return sf.Decision(state)


@pytest.fixture(autouse=True)
def closed_gate() -> None:
    global gate
    gate = Gate()


async def left(client: sf.Client, shards: int = 1, key: str = "waiting") -> int:
    keys = client.keys
    return sum(await client.store.send([Call.plain("ZCARD", getattr(keys.shard(n), key)) for n in range(shards)]))


async def full(client: sf.Client, daemon: Daemon) -> None:
    """Wait until the daemon has begun what it begins now: its steps take all slots, and more wait."""

    async def settled() -> bool:
        return bool(daemon.owner.crowding())

    await until(settled)


async def test_a_backlog_stays_on_the_server_and_goes_through_in_the_end(serve: Serve) -> None:
    count = 1500
    async with serve(app, shards=2, concurrency=8) as (client, daemon):
        runs = await client.start_many(job, [(number,) for number in range(count)], tenant="acme")
        await full(client, daemon)
        await asyncio.sleep(0.5)
        assert daemon.owner.live < 500, "runs in memory"
        assert len(daemon.owner.starts.held) <= 2 * (STRAIGHT + SHARE) + 8 * ALONE
        assert await left(client, 2) > 0

        async def shown() -> bool:
            return daemon._beat().starts > count // 2

        await until(shown)
        gate.open.set()
        assert await asyncio.gather(*(run.result(60) for run in runs)) == list(range(count))
        assert sorted(gate.begun) == list(range(count)), "each step ran once"
        assert await left(client, 2) == 0
        assert all(not shard.waits and not shard.fetched for shard in daemon.owner.shards.values())


async def test_a_burst_of_one_tenant_does_not_hold_up_another(serve: Serve) -> None:
    async with serve(app, shards=4, admission=8) as (client, _):
        burst = await client.start_many(chain, [(5,)] * 4000, tenant="acme")
        for _ in range(5):
            other = await client.start(chain, 5, tenant="globex")
            assert await other.result(30) == 5
        waiting = await left(client, 4)
        assert waiting > 1000, f"{waiting} of the burst waited when the others were through"
        assert await asyncio.gather(*(run.result(90) for run in burst)) == [5] * 4000


async def test_while_steps_wait_for_slots_each_tenant_still_gets_on(serve: Serve) -> None:
    """Runs that need no slot are not stopped by those that do."""
    async with serve(app, shards=1, concurrency=4) as (client, daemon):
        await client.start_many(job, [(number,) for number in range(400)], tenant="acme")
        await full(client, daemon)
        other = await client.start(signalled, 1, tenant="globex")
        await other.signal("more", 2)
        assert await other.result(30) == 3
        gate.open.set()


async def test_other_tenants_begin_while_runs_of_one_crowd_the_slots(serve: Serve) -> None:
    """Those of the other tenant need slots, too: one is kept free for runs that have none."""
    async with serve(app, shards=1, concurrency=16) as (client, daemon):
        await client.start_many(slow_plain, [()] * 400, tenant="acme")
        await full(client, daemon)
        others = [await client.start(chain, 5, tenant="globex") for _ in range(40)]
        assert await asyncio.gather(*(run.result(30) for run in others)) == [5] * 40
        assert daemon.owner.crowding() == {b"t/acme"}, "the steps of acme's runs still wait"
        plain_gate.set()


async def test_the_many_steps_of_one_run_hold_up_no_other_run(serve: Serve) -> None:
    async with serve(app, shards=1, concurrency=16) as (client, daemon):
        run = await client.start(wide, 1000)

        async def crowded() -> bool:
            return daemon.executor.waiting > 500

        await until(crowded)
        others = [await client.start(chain, 5) for _ in range(40)]
        assert await asyncio.gather(*(other.result(30) for other in others)) == [5] * 40
        assert daemon.executor.waiting > 500
        gate.open.set()
        assert await run.result(60) == sum(range(1000))


async def test_results_that_wait_for_their_commits_hold_back_other_steps(serve: Serve) -> None:
    """The commits are slow: the results in memory stay within a part of the budget, and a step's of each slot."""
    count, slots, size = 60, 4, 500_000
    async with serve(app, shards=1, memory=4, concurrency=slots) as (client, daemon):
        runs = await client.start_many(producing, [(size,)] * count)
        most = 0
        process = daemon.owner.process

        async def slow(batches: Any) -> None:
            nonlocal most
            await asyncio.sleep(0.02)
            most = max(most, daemon.owner._count_results())
            await process(batches)

        daemon.owner.process = slow
        assert await asyncio.gather(*(run.result(60) for run in runs)) == [size] * count
        assert size < most <= (1 << 20) + 2 * slots * size
        assert not daemon.executor.crowded


async def test_runs_in_memory_have_a_budget_in_bytes(serve: Serve) -> None:
    """Idle runs leave memory above it, and come back for their signals."""
    async with serve(app, shards=2, memory=1) as (client, daemon):
        runs = [await client.start(keeping, b"x" * 300_000) for _ in range(12)]
        for run in runs:
            await status_of(run, sf.Status.RUNNING)

        async def small() -> bool:
            return sum(live.size for shard in daemon.owner.shards.values() for live in shard.live.values()) <= 1 << 20

        await until(small)
        assert daemon.owner.live < 12
        for run in runs:
            await run.signal("go", 1)
        assert [await run.result(30) for run in runs] == [300_000] * 12


@pytest.mark.parametrize("size", [10, 5000, 900_000])
async def test_inputs_of_any_size_arrive(serve: Serve, size: int) -> None:
    async with serve(app, shards=1) as (client, _):
        run = await client.start(measure, b"x" * size)
        assert await run.result(30) == size
        assert (await names_of(run))[0] == "RunStarted"
        assert await left(client) == 0


async def test_large_inputs_that_wait_are_read_by_and_by(serve: Serve) -> None:
    size, count = 900_000, 60
    async with serve(app, shards=1, concurrency=4) as (client, daemon):
        await client.start_many(job, [(number,) for number in range(200)], tenant="acme")
        await full(client, daemon)
        runs = [await client.start(measure, b"x" * size, tenant="globex") for _ in range(count)]
        gate.open.set()
        most = 0
        while not all([(await run.describe()).status is sf.Status.COMPLETED for run in runs]):
            most = max(most, daemon.owner.starts.size)
            await asyncio.sleep(0.005)
        assert most < ENOUGH_BYTES + FETCH_BYTES + size
        assert daemon.owner.starts.size == 0


async def test_a_signal_never_passes_its_runs_start(serve: Serve) -> None:
    """Of runs whose starts wait: the signal is there when they begin, whichever way they do."""
    async with serve(app, shards=1, concurrency=4) as (client, daemon):
        await client.start_many(job, [(number,) for number in range(300)], tenant="acme")
        await full(client, daemon)
        late = await client.start_many(signalled, [(number,) for number in range(40)], tenant="acme")
        waiting = [run for run in late if (await run.describe()).status is sf.Status.PENDING]
        assert len(waiting) == 40
        await asyncio.gather(*(run.signal("more", 100) for run in late))
        assert [await run.result(30) for run in late] == [100 + number for number in range(40)]
        for run in late[:3]:
            assert (await names_of(run))[:2] == ["RunStarted", "SignalReceived"]
        gate.open.set()


async def test_a_reducers_start_that_waits_is_not_its_state(serve: Serve) -> None:
    async with serve(app, shards=1, concurrency=4) as (client, daemon):
        await client.start_many(job, [(number,) for number in range(300)], tenant="acme")
        await full(client, daemon)
        runs = await client.start_many(adding, [(number,) for number in range(20)], tenant="acme")
        for number in (5, -1):
            await asyncio.gather(*(run.signal("add", number) for run in runs))
        assert [await run.result(30) for run in runs] == [number + 4 for number in range(20)]
        gate.open.set()


async def test_runs_whose_starts_wait_can_be_cancelled_and_terminated(serve: Serve) -> None:
    async with serve(app, shards=1, concurrency=4) as (client, daemon):
        await client.start_many(job, [(number,) for number in range(300)], tenant="acme")
        await full(client, daemon)
        cancelled, terminated = await client.start_many(job, [(1000,), (1001,)], tenant="acme")
        await cancelled.cancel("not needed")
        await terminated.terminate("at once")
        await status_of(cancelled, sf.Status.CANCELLED)
        await status_of(terminated, sf.Status.CANCELLED)
        assert not {1000, 1001} & set(gate.begun)
        gate.open.set()


async def test_a_crash_loses_no_start_that_waits(serve: Serve) -> None:
    count = 800
    async with serve(app, crash=True, shards=2, concurrency=4, dead_after=1.0, beat=0.1) as (client, daemon):
        runs = await client.start_many(job, [(number,) for number in range(count)], tenant="acme")
        await full(client, daemon)
        assert await left(client, 2) > 0
    gate.open.set()
    async with serve(app, shards=2, dead_after=1.0, beat=0.1) as (client, _):
        assert await asyncio.gather(*(run.result(60) for run in runs)) == list(range(count))
        assert await left(client, 2) == 0


async def test_a_hand_over_leaves_what_waits_to_the_next_owner(serve: Serve) -> None:
    count = 600
    async with serve(app, shards=2, concurrency=4, grace=0.2) as (client, daemon):
        runs = await client.start_many(job, [(number,) for number in range(count)], tenant="acme")
        await full(client, daemon)
    gate.open.set()
    async with serve(app, shards=2) as (client, _):
        assert await asyncio.gather(*(run.result(60) for run in runs)) == list(range(count))


async def test_a_start_that_waits_is_found_again_by_its_id(serve: Serve) -> None:
    async with serve(app, shards=1, concurrency=4) as (client, daemon):
        await client.start_many(job, [(number,) for number in range(300)], tenant="acme")
        await full(client, daemon)
        first = await client.start(signalled, 1, id="twice", tenant="acme")
        again = await client.start(signalled, 2, id="twice", tenant="acme")
        await again.signal("more", 10)
        assert await first.result(30) == 11
        gate.open.set()


async def test_parents_whose_children_wait_do_not_block_them(serve: Serve) -> None:
    width, parents = 150, 8
    async with serve(app, shards=2, concurrency=16, admission=4) as (client, _):
        fans = await client.start_many(fan, [(width,)] * parents)
        assert [await run.result(60) for run in fans] == [sum(range(width))] * parents


async def test_a_start_that_waits_and_cannot_be_read_fails_alone(serve: Serve) -> None:
    """Somebody has changed the input in its record: the run fails, or its owner says why it can't be read."""
    async with serve(app, shards=1, concurrency=4) as (client, daemon):
        await client.start_many(job, [(number,) for number in range(300)], tenant="acme")
        await full(client, daemon)
        broken, whole = await client.start_many(job, [(1000,), (1001,)], tenant="acme")
        await client.store.one(Call.plain("LSET", client.keys.shard(0).run(broken.id), 1, b"\xc1"))
        gate.open.set()
        with pytest.raises(sf.RunFailed):
            await broken.result(60)
        assert await whole.result(60) == 1001
        assert await left(client) == 0


@pytest.mark.parametrize("workflow", [signalled, adding])
@pytest.mark.parametrize("then", ["runs", "evicted", "ended"])
async def test_a_start_that_is_read_too_late_begins_nothing(serve: Serve, workflow: Any, then: str) -> None:
    """The run began between the reads of the starts that wait and of its record, which has no input any more: that of a
    reducer has its state there."""
    name, last = ("more", 10) if workflow is signalled else ("add", -10)
    async with serve(app, shards=1, cache=1) as (client, daemon):
        begun = await client.start(workflow, 1)
        await reduced(client, begun.id)
        if then == "ended":
            await begun.signal(name, last)
            await begun.result(30)
        if then == "evicted":
            for number in range(5):
                await reduced(client, (await client.start(signalled, number)).id)

            async def evicted() -> bool:
                return begun.id not in daemon.owner.shards[0].live

            await until(evicted)
        before = await begun.history()
        await client.store.one(Call.plain("ZADD", client.keys.shard(0).waiting, 1, begun.id))
        daemon.owner.shards[0].waits = True
        daemon.owner.starts.wanted.set()

        async def taken() -> bool:
            return not await left(client)

        await until(taken)
        assert await begun.history() == before
        assert await Quarantine(client).messages() == []
        if then != "ended":
            await begun.signal(name, last)
        assert await begun.result(30) == 1 + last


async def test_the_history_begins_with_the_input_whichever_way_it_came(serve: Serve) -> None:
    async with serve(app, shards=1) as (client, _):
        large, small = await client.start(measure, b"x" * 5000), await client.start(measure, b"x" * 50)
        assert (await large.result(30), await small.result(30)) == (5000, 50)
        events: list[list[Any]] = [await events_of(large), await events_of(small)]
        assert [type(event).__name__ for event in events[0]] == [type(event).__name__ for event in events[1]]
        keys = client.keys.shard(0)
        records = [await client.store.one(Call.plain("LRANGE", keys.run(run.id), 1, 1)) for run in (large, small)]
        assert records == [[b""], [b""]], "no second copy of the input"
