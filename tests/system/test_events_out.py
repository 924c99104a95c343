"""Groups of subscribers: everything at least once, in order of each run, whatever dies."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgspec
import pytest

import streamflow as sf
from streamflow.client import log_reader
from streamflow.events import RunCompleted, RunForked, RunStarted, StepCompleted
from streamflow.model.logged import decode_subscribed
from streamflow.store.connection import Call
from streamflow.wire import stream_order
from tests.support.waiting import until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()


@app.step
async def add(n: int) -> int:
    return n + 1


@app.workflow
async def chain(length: int) -> int:
    n = 0
    for _ in range(length):
        n = await add(n)
    return n


@app.step
async def large(size: int) -> str:
    return "x" * size


@app.workflow
async def report(size: int) -> int:
    return len(await large(size))


@app.workflow
async def approval() -> str:
    return await sf.signal("go", str)


async def take(subscription: Any, count: int) -> list[sf.CommittedEvent]:
    found: list[sf.CommittedEvent] = []
    async for event in subscription:
        found.append(event)
        if len(found) == count:
            break
    return found


async def test_a_group_gets_each_event_of_a_run_in_order(serve: Serve) -> None:
    async with serve(app) as (client, _), client.events("billing") as subscription:
        run = await client.start(chain, 3, id="chain-1")
        assert await run.result() == 3
        history = [event async for _, event in run.events()]
        async with asyncio.timeout(10):
            found = await take(subscription, len(history))
        assert [event.event for event in found] == history
        assert {event.run_id for event in found} == {"chain-1"}
        assert {event.workflow for event in found} == {"chain"}
        assert len({event.id for event in found}) == len(found)
        assert found[0].kind == "RunStarted"


async def test_waits_for_signals_are_delivered_and_forks_with_what_they_share(serve: Serve) -> None:
    async with serve(app) as (client, _), client.events("billing") as subscription:
        run = await client.start(approval, id="a-1")
        await run.signal("go", "x")
        assert await run.result(10) == "x"
        history = [event async for _, event in run.events()]
        fork = await run.fork(2, id="a-2")
        await fork.terminate()
        async with asyncio.timeout(10):
            found = await take(subscription, len(history) + 2)
        assert [event.event for event in found if event.run_id == "a-1"] == history
        begun = next(event.event for event in found if event.run_id == "a-2")
        assert isinstance(begun, RunForked)
        assert [event for one in begun.history for event in one.events] == history[: begun.shared]


async def test_a_consumer_goes_on_behind_what_was_acknowledged(serve: Serve) -> None:
    async with serve(app) as (client, _):
        async with client.events("billing", kinds=[RunStarted, RunCompleted]) as subscription:
            await (await client.start(chain, 1, id="one")).result()
            found = await take(subscription, 2)
        await (await client.start(chain, 1, id="two")).result()
        async with client.events("billing", kinds=["RunStarted", "RunCompleted"]) as subscription:
            found += await take(subscription, 2)
        assert [(event.run_id, event.kind) for event in found] == [
            ("one", "RunStarted"),
            ("one", "RunCompleted"),
            ("two", "RunStarted"),
            ("two", "RunCompleted"),
        ]


KINDS = ["RunStarted", "RunCompleted"]


async def daemons_know(client: sf.Client) -> None:
    """Wait until the daemons log whole transitions, because there is a group."""

    async def is_whole() -> bool:
        run = await client.start(chain, 0)
        await run.result()
        log = client.keys.shard((await client.read_namespace()).shard_of(run.id)).log
        entries: Any = await client.store.one(Call.plain("XREVRANGE", log, "+", "-", "COUNT", 1))
        return decode_subscribed(next(iter(entries[0][1].values()))).origin is not None

    await until(is_whole)


async def test_events_have_their_payloads_also_of_runs_that_were_forgotten(serve: Serve) -> None:
    async with serve(app) as (client, _):
        async with client.events("billing", kinds=[StepCompleted]):
            await daemons_know(client)
        run = await client.start(report, 5000, id="report-1")
        assert await run.result() == 5000
        assert await client.forget(run.id)
        async with client.events("billing", workflows=[report], kinds=[StepCompleted]) as subscription:
            [event] = await take(subscription, 1)
        assert isinstance(event.event, StepCompleted)
        assert msgspec.msgpack.decode(event.event.result) == "x" * 5000
        assert (event.workflow, event.run_id) == ("report", "report-1")


async def test_what_was_logged_before_the_first_group_is_joined_from_the_records(serve: Serve) -> None:
    async with serve(app) as (client, _):
        run = await client.start(report, 5000, id="report-1", tenant="acme")
        await run.result()
        created = (await run.describe()).created
        async with client.events(
            "billing", from_="oldest", workflows=["report"], kinds=[StepCompleted]
        ) as subscription:
            [event] = await take(subscription, 1)
        assert isinstance(event.event, StepCompleted)
        assert msgspec.msgpack.decode(event.event.result) == "x" * 5000
        assert (event.workflow, event.tenant) == ("report", "acme")
        assert event.created == round(created.timestamp() * 1000)


async def test_ids_stay_when_events_are_delivered_again(serve: Serve) -> None:
    async with serve(app) as (client, _):
        async with client.events("billing"):
            await daemons_know(client)
        run = await client.start(chain, 3)
        await run.result()
        found: list[list[str]] = []
        for _ in range(2):
            async with client.events("billing", workflows=[chain]) as subscription:
                ids: list[str] = []
                async for event in subscription:
                    ids += [event.id] if event.run_id == run.id else []
                    if len(ids) == 5:
                        break
                found.append(ids)
            await client.reset_group("billing", "oldest")
        assert found[0] == found[1]


async def test_the_position_moves_over_what_is_not_wanted(serve: Serve) -> None:
    async with serve(app) as (client, _), client.events("billing", workflows=["no-such-workflow"]) as subscription:
        reading = asyncio.create_task(take(subscription, 1))
        await (await client.start(chain, 3)).result()

        async def nothing_waits() -> bool:
            return (await client.group("billing")).waiting == 0

        await until(nothing_waits)
        reading.cancel()


async def test_batches_have_events_of_one_shard_and_are_acknowledged_one_by_one(serve: Serve) -> None:
    async with serve(app, shards=4) as (client, _), client.events("billing", kinds=KINDS) as subscription:
        for run in await client.start_many(chain, [(1,)] * 20):
            await run.result()
        offsets: dict[int, list[tuple[int, int]]] = {}
        count = 0
        async for batch in subscription.batches(max_events=4, max_wait=0.0):
            assert {event.shard for event in batch} == {batch.shard}
            assert batch.offset == batch[-1].offset
            assert await batch.ack()
            offsets.setdefault(batch.shard, []).append(stream_order(batch.offset))
            count += len(batch)
            if count == 40:
                break
        assert all(of_shard == sorted(of_shard) for of_shard in offsets.values())
        group = await client.group("billing")
        assert {shard.shard: stream_order(shard.offset) for shard in group.shards if shard.shard in offsets} == {
            shard: of_shard[-1] for shard, of_shard in offsets.items()
        }


async def test_a_block_that_ends_with_an_exception_acknowledges_nothing_of_it(serve: Serve) -> None:
    async with serve(app, shards=1) as (client, _):
        async with client.events("billing", kinds=KINDS):
            pass
        await (await client.start(chain, 0, id="one")).result()

        async def fail() -> None:
            async with client.events("billing", kinds=KINDS) as subscription:
                async for _ in subscription:
                    raise RuntimeError("boom")

        with pytest.raises(RuntimeError, match="boom"):
            await fail()
        async with client.events("billing", kinds=KINDS) as subscription:
            assert [event.run_id for event in await take(subscription, 1)] == ["one"]


async def test_who_stores_offsets_goes_on_behind_them(serve: Serve) -> None:
    async with serve(app, shards=1) as (client, _):
        stored: dict[int, str] = {}
        seen: list[str] = []

        async def offset(shard: int) -> str | None:
            return stored.get(shard)

        async with client.events("billing", kinds=KINDS):
            pass
        for name in ("one", "two"):
            await (await client.start(chain, 1, id=name)).result()
        for _ in range(2):
            with contextlib.suppress(RuntimeError):
                async with client.events("billing", kinds=KINDS, resume=offset) as subscription:
                    async for batch in subscription.batches(1, 0.0):
                        seen += [f"{event.run_id} {event.kind}" for event in batch]
                        stored[batch.shard] = batch.offset
                        if len(seen) in (2, 4):
                            raise RuntimeError("the database has it, and the group doesn't know")
        assert seen == ["one RunStarted", "one RunCompleted", "two RunStarted", "two RunCompleted"]


async def test_consumers_share_the_shards_and_go_on_where_others_stopped(serve: Serve) -> None:
    async with serve(app) as (client, _):
        async with client.events("billing", dead_after=1.0) as one:

            async def one_has(count: int) -> bool:
                return len(one.shards) == count

            reading = asyncio.create_task(take(one, 10_000))
            await until(lambda: one_has(8))
            async with client.events("billing", dead_after=1.0) as two:

                async def shared() -> bool:
                    return sorted([*one.shards, *two.shards]) == list(range(8)) and bool(one.shards and two.shards)

                await until(shared)
            await until(lambda: one_has(8))
            reading.cancel()
        group = await client.group("billing")
        assert {shard.consumer for shard in group.shards} == {""}
        assert group.consumers == []


async def test_a_reset_fences_who_reads_and_a_removal_ends_it(serve: Serve) -> None:
    async with serve(app, shards=1) as (client, _):
        async with client.events("billing", kinds=KINDS, dead_after=1.0) as subscription:
            await (await client.start(chain, 1, id="one")).result()
            found = await take(subscription, 2)
            more = asyncio.create_task(take(subscription, 2))

            async def all_is_acknowledged() -> bool:
                return (await client.group("billing")).waiting == 0

            await until(all_is_acknowledged)  # so the consumer has no reason to ask
            await client.reset_group("billing", "oldest")
            found += await more
            assert [event.id for event in found[:2]] == [event.id for event in found[2:]]
            assert await client.remove_group("billing")
            with pytest.raises(sf.GroupRemoved):
                await take(subscription, 1)
        assert not await client.remove_group("billing")
        assert await client.groups() == []


async def test_a_log_that_a_group_holds_is_not_trimmed_within_the_limits(serve: Serve) -> None:
    async with serve(app, shards=1, log_bytes=2000) as (client, _):
        async with client.events("billing", kinds=["RunCompleted"]):
            pass
        names = [f"run-{number}" for number in range(60)]
        for name in names:
            await (await client.start(chain, 2, id=name)).result()

        async def is_held() -> bool:
            return bool(await client.store.one(Call.plain("HGET", client.keys.shard(0).views, "trimming")))

        await until(is_held)
        async with client.events("billing", kinds=["RunCompleted"]) as subscription:
            assert [event.run_id for event in await take(subscription, 60)] == names
            assert subscription.lost == []

        async def is_trimmed() -> bool:
            return await client.store.one(Call.plain("XLEN", client.keys.shard(0).log)) < 60

        await until(is_trimmed)


async def test_beyond_the_limits_it_is_said_what_a_group_has_lost(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(app, shards=1, log_bytes=2000, group_bytes=0) as (client, _):
        async with client.events("billing", kinds=["RunCompleted"]):
            pass
        lost = 0

        async def some_are_lost() -> bool:
            nonlocal lost
            await (await client.start(chain, 2)).result()
            lost = (await client.group("billing")).lost
            return bool(lost)

        await until(some_are_lost)
        async with client.events("billing", kinds=["RunCompleted"]) as subscription:
            await take(subscription, 1)
            assert sum(one.entries for one in subscription.lost) >= lost
        assert "group billing has lost the events of" in caplog.text
        await client.reset_group("billing", "now")
        assert (await client.group("billing")).lost == 0


async def test_when_a_daemon_dies_the_next_one_goes_on_logging_for_groups(serve: Serve) -> None:
    async with serve(app) as (client, _), client.events("billing"):
        await daemons_know(client)
    async with serve(app, crash=True) as (client, _):
        pass
    async with serve(app) as (client, _):
        run = await client.start(chain, 3, id="after")
        await run.result()
        async with client.events("billing") as subscription:
            found: list[sf.CommittedEvent] = []
            async for event in subscription:
                found += [event] if event.run_id == "after" else []
                if event.run_id == "after" and event.kind == "RunCompleted":
                    break
        assert [event.event for event in found] == [event async for _, event in run.events()]
        assert all(event.id.count(":") == 2 for event in found)


async def test_a_slow_consumer_reads_ahead_only_so_much(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_reader, "READ_AHEAD", 20_000)
    monkeypatch.setattr(log_reader, "PORTION", 5000)
    monkeypatch.setattr(log_reader, "LEAST", 5000)
    async with serve(app, shards=2) as (client, _):
        async with client.events("billing"):
            await daemons_know(client)
        for _ in range(50):
            await (await client.start(report, 3000)).result()
        async with client.events("billing", kinds=["RunCompleted"]) as subscription:
            most = 0
            found: list[str] = []
            async for event in subscription:
                await asyncio.sleep(0)
                most = max(most, subscription._reader.bytes)  # pyright: ignore[reportPrivateUsage]
                found += [event.run_id] if event.workflow == "report" else []
                if len(found) == 50:
                    break
        assert len(set(found)) == 50
        assert 5000 < most < 40_000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"kinds": ["RunCompletd"]}, "there is no event 'RunCompletd'"),
        ({"kinds": "RunCompleted"}, "kinds is a list"),
        ({"workflows": [7]}, "neither a workflow"),
        ({"from_": "yesterday"}, "from_="),
        ({"kinds": []}, "wants no event"),
        ({"workflows": []}, "wants no event"),
        ({"kinds": 5}, "kinds is a list"),
        ({"resume": 5}, "resume=5"),
        ({"dead_after": "10"}, "dead_after"),
        ({"dead_after": float("inf")}, "dead_after"),
        ({"dead_after": 0.0}, "dead_after"),
    ],
)
async def test_mistakes_are_refused_before_anything_is_sent(words: dict[str, Any], message: str) -> None:
    async with sf.connect("redis://127.0.0.1:1", namespace="n") as client:
        with pytest.raises(sf.UsageError, match=message):
            client.events("billing", **words)
