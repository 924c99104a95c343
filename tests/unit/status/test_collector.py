"""What the collector finds: who is alive, who owns what, rates that are as of now."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from streamflow.client.client import Client, connect
from streamflow.embedded.server import EmbeddedServer
from streamflow.errors import NamespaceMissing
from streamflow.model.blocked import BlockedLine
from streamflow.model.reports import StepBeat
from streamflow.model.sharding import Partition
from streamflow.status.collector import FRESH_SECONDS, StatusCollector, rates_at
from streamflow.status.model import Queue
from streamflow.store.connection import Call
from streamflow.store.kernel import WORKERS, Attempt, Batch
from streamflow.wire import Heartbeat, StorageWait
from tests.conftest import clean_keys

pytestmark = pytest.mark.anyio

SHARDS = 4
UNTIL = 1_700_000_000
RATES: dict[str, Any] = {
    "until": UNTIL,
    "starts": list(range(60)),
    "average": {"starts": 54.5},
}


def test_rates_that_were_merged_just_now_are_shown_as_they_are() -> None:
    assert rates_at(RATES, (UNTIL + 1 + FRESH_SECONDS) * 1000) == RATES


def test_rates_that_nobody_merges_any_more_continue_with_zeros() -> None:
    moved = rates_at(RATES, (UNTIL + 1 + 8) * 1000)
    assert moved["starts"] == [*range(8, 60), *[0] * 8]
    assert moved["average"] == {"starts": (58 + 59) / 10}
    assert moved["until"] == UNTIL + 8


def test_rates_of_long_ago_are_zero() -> None:
    moved = rates_at(RATES, (UNTIL + 1_000_000) * 1000)
    assert moved["starts"] == [0] * 60
    assert moved["average"] == {"starts": 0}


@pytest.fixture
async def client(embedded_server: EmbeddedServer, namespace: str) -> AsyncIterator[Client]:
    async with connect(embedded_server.url, namespace=namespace) as client:
        yield client
    await clean_keys(embedded_server.url, namespace)


async def create_namespace(client: Client) -> None:
    await client.store.one(client.kernel.open_namespace(SHARDS, Partition.RUN))


async def heartbeat(client: Client, member: str, number: int, **facts: Any) -> None:
    fields = {"beat": number, "name": member, "started": 1, "shards": [], **facts}
    await client.store.one(client.kernel.heartbeat(member, msgspec.json.encode(fields)))


async def own(client: Client, shard: int, member: str) -> None:
    await client.store.one(Call.plain("HSET", client.keys.shard(shard).owner, "holder", member))


async def test_without_a_namespace_there_is_no_status(client: Client) -> None:
    with pytest.raises(NamespaceMissing):
        await StatusCollector(client).collect()


async def test_an_empty_namespace(client: Client) -> None:
    await create_namespace(client)
    status = await StatusCollector(client).settled()
    assert (status.shards_total, status.shards_unowned, status.daemons, status.views) == (SHARDS, SHARDS, [], {})
    assert status.server is not None
    assert (status.server.product, status.server.aof) == ("valkey", "off")
    assert status.as_of > UNTIL * 1000


async def test_a_daemon_whose_heartbeat_changes_owns_its_shards(client: Client) -> None:
    await create_namespace(client)
    await own(client, 1, "a")
    await heartbeat(client, "a", 1, steps=100)
    collector = StatusCollector(client)
    first = await collector.collect()
    assert (first.daemons[0].beat_age, first.daemons[0].steps_per_s) == (None, None)
    await heartbeat(client, "a", 2, steps=200)
    second = await collector.collect()
    assert second.daemons[0].beat_age == pytest.approx(0, abs=1)
    assert second.daemons[0].steps_per_s
    assert [shard.owner for shard in second.shards] == ["", "a", "", ""]
    assert second.shards_unowned == 3


async def test_every_field_of_a_heartbeat_is_in_the_row(client: Client) -> None:
    await create_namespace(client)
    examples: dict[object, Any] = {int: 7, float: 1.5, str: "x", bool: True, list[int]: [2], dict[str, str]: {"2": "x"}}
    examples[list[BlockedLine]] = [BlockedLine("step crawl", "x.py:1", 600.0, 1, 2.0, "r")]
    examples[list[StepBeat]] = [StepBeat("r", 1, 1, "crawl", 700.0, True)]
    examples[list[StorageWait]] = [StorageWait(2, "r", "payload", 7.5, "away")]
    sent = Heartbeat(**{field.name: examples[field.type] for field in msgspec.structs.fields(Heartbeat)})
    await client.store.one(client.kernel.heartbeat("a", msgspec.json.encode(sent)))
    [daemon] = (await StatusCollector(client).collect()).daemons
    assert daemon.heartbeat == sent


async def test_silent_steps_are_those_of_daemons_and_workers_that_live(client: Client) -> None:
    await create_namespace(client)
    beats = [["r1", 1, 1, "crawl", 700.0, True]]
    await heartbeat(client, "dead", 1, silent=beats, silent_steps=1)
    collector = StatusCollector(client, dead_after=0.3)
    await collector.settled()
    await heartbeat(client, "a", 1, silent=[["r2", 2, 3, "model", 900.0, True]], silent_steps=1)
    worker: dict[str, Any] = {"name": "w", "timeout": 60.0, "silent_steps": 1}
    worker["beats"] = [["r3", 1, 1, "train", 800.0, True], ["r4", 1, 1, "train", 1.0, False]]
    keys = client.keys
    await client.store.one(client.kernel.heartbeat("w", msgspec.json.encode(worker), members=keys.workers))
    now = (await collector.collect()).as_of
    live = msgspec.json.encode(worker | {"sent": now})
    await client.store.one(client.kernel.heartbeat("w", live, members=keys.workers))
    status = await collector.collect()
    found = [(step.name, step.run_id, step.attempt, step.kind, step.holder) for step in status.silent]
    assert found == [("model", "r2", 3, "daemon", "a"), ("train", "r3", 1, "worker", "w")]
    assert status.silent_steps == 2


async def test_now_is_by_the_daemons_clocks(client: Client) -> None:
    """So ages and rates are right while the server's clock is an hour behind."""
    await create_namespace(client)
    hour = 3_600_000
    await heartbeat(client, "old", 1)
    before = (await StatusCollector(client).collect()).as_of
    for member, ahead in (("a", hour - 20), ("b", hour), ("c", 2 * hour)):
        await heartbeat(client, member, 1, clock=1, ahead=ahead)
    assert (await StatusCollector(client).collect()).as_of == pytest.approx(before + hour, abs=10_000)


async def test_a_member_whose_heartbeat_does_not_change_owns_nothing(client: Client) -> None:
    await create_namespace(client)
    await own(client, 1, "dead")
    await heartbeat(client, "dead", 7)
    status = await StatusCollector(client, dead_after=0.3).settled()
    assert status.shards_unowned == SHARDS
    assert status.daemons[0].beat_age is not None
    assert status.daemons[0].beat_age > 0.3


async def test_a_member_that_left_is_forgotten(client: Client) -> None:
    await create_namespace(client)
    await heartbeat(client, "a", 1)
    collector = StatusCollector(client)
    await collector.collect()
    await client.store.one(client.kernel.heartbeat("a", b""))
    assert (await collector.collect()).daemons == []


async def test_inboxes_are_counted_and_the_lag_where_it_is_asked_for(client: Client) -> None:
    await create_namespace(client)
    keys = client.keys.shard(2)
    entry = b""
    for _ in range(3):
        await client.store.one(Call.plain("XADD", keys.inbox, "*", "kind", "x"))
        entry = await client.store.one(Call.plain("XADD", keys.log, "*", "run", "x"))
    await client.store.one(Call.plain("HSET", keys.owner, "log", entry))
    assert [(s.inbox, s.lag) for s in (await StatusCollector(client).collect()).shards][2] == (3, 0)
    assert [(s.inbox, s.lag) for s in (await StatusCollector(client, shards=True).collect()).shards][2] == (3, 3)
    await client.store.one(Call.plain("HSET", keys.views, "offset", entry))
    assert (await StatusCollector(client, shards=True).collect()).shards[2].lag == 0


async def test_queues_show_what_waits_what_runs_and_who_works(client: Client) -> None:
    await create_namespace(client)
    assert (await StatusCollector(client).collect()).queues == []
    await client.store.one(Call.plain("HSET", client.keys.queues, "idle", 1, "gpu", 1))
    for number in range(3):
        attempts = [Attempt("gpu", f"r{number}/{n}", "7 1", b"x") for n in (1, 2)]
        await client.store.one(client.kernel.acquire_shard(number, "", "nonce", "member", 1))
        await client.store.one(client.kernel.commit(number, "1:nonce", Batch("c", attempts=attempts), 1))
        stream = client.keys.queue("gpu", number).stream
        for consumer in ("one", "two")[: number + 1]:
            await client.store.one(
                Call.plain("XREADGROUP", "GROUP", WORKERS, consumer, "COUNT", 1, "STREAMS", stream, ">")
            )
    [seconds, _] = await client.store.one(Call.plain("TIME"))
    for name, facts in (("one", {}), ("two", {}), ("gone", {"sent": 1}), ("ends", {"draining": True})):
        heartbeat = {"name": name, "queues": ["gpu"], "timeout": 10.0, "sent": 1000 * int(seconds)} | facts
        await client.store.one(Call.plain("HSET", client.keys.workers, name, msgspec.json.encode(heartbeat)))
    await client.store.one(Call.plain("HSET", client.keys.workers, "garbage", "?"))
    status = await StatusCollector(client).collect()
    assert [worker.name for worker in status.workers] == ["ends", "one", "two"]
    assert status.queues == [
        Queue(name="gpu", waiting=1, running=5, workers=2),
        Queue(name="idle"),
    ]


async def test_garbage_in_views_and_heartbeats_is_left_out(client: Client) -> None:
    await create_namespace(client)
    await client.store.one(Call.plain("SET", client.keys.view("runs"), b"\xff\xfe"))
    await client.store.one(Call.plain("SET", client.keys.view("rates"), b"[]"))
    await client.store.one(Call.plain("HSET", client.keys.members, "odd", b"\xff"))
    status = await StatusCollector(client).collect()
    assert status.views == {}
    assert [daemon.name for daemon in status.daemons] == ["odd"]
