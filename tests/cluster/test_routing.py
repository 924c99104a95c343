"""Calls to a real cluster: dealt to its servers, answered in order, redirected, and sent again only where needed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis

from streamflow.embedded.cluster import SLOTS, EmbeddedCluster
from streamflow.embedded.server import EmbeddedServer
from streamflow.errors import StoreError, StoreMisconfigured, StoreUnavailable
from streamflow.loops import wait_until
from streamflow.model.record import decode_header
from streamflow.server_url import cluster_of
from streamflow.store.cluster_subscription import open_subscription
from streamflow.store.connection import Call
from streamflow.store.kernel import WORKERS, Kernel, Message, Start
from streamflow.store.keys import NamespaceKeys
from streamflow.store.node import Node
from streamflow.store.queue_reads import GroupGone, open_queue_reads
from streamflow.store.router import Cluster, open_store
from streamflow.store.topology import slot_of
from tests.support.cluster import SlotMove, frozen, key_in, move_slot, move_slots_at_once
from tests.support.cluster import slot_of as slot_by_server
from tests.support.secure import free_port
from tests.support.waiting import DEADLINE

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]


async def wait_for(condition: Callable[[], object]) -> None:
    with anyio.fail_after(DEADLINE):
        await wait_until(lambda: bool(condition()), 0.01)


@pytest.fixture
async def movable() -> AsyncIterator[tuple[EmbeddedCluster, Cluster]]:
    """A cluster of the test's own, whose slots it may move."""
    # A frozen server is only silent: without a replica the others would refuse everything once it counts as failed.
    async with EmbeddedCluster(memory=True, node_timeout=20.0) as cluster:
        store = Cluster(cluster.url, patience=10.0)
        yield cluster, store
        await store.close()


async def count_of(cluster: EmbeddedCluster, command: str) -> int:
    """How often all servers together have executed a command."""
    total = 0
    for node in cluster.nodes:
        stats = await node.command("INFO", "commandstats")
        for line in stats.splitlines():
            if line.startswith(f"cmdstat_{command}:"):
                total += int(line.partition("calls=")[2].partition(",")[0])
    return total


def test_slots_are_computed_as_the_servers_do() -> None:
    for key in ("", "a", "{ns/1}:log", "sf:{ns/17}:run:a{b}", "{}x", "x{", "{a}{b}", "sf:{größe}:x"):
        assert slot_of(key) == slot_by_server(key), key


async def test_replies_come_in_the_order_of_the_calls(store: Cluster) -> None:
    keys = [f"order:{n}" for n in range(60)]
    assert len({store.server_of(key) for key in keys if await store.node_of(key)}) == 3
    await store.send([Call.plain("SET", key, key) for key in keys])
    calls = [Call.plain("GET", key) for key in keys]
    calls.insert(7, Call.plain("TIME"))
    calls.insert(30, Call.plain("LPUSH", keys[3], "x"))
    replies = await store.send(calls)
    assert isinstance(replies.pop(30), StoreError)
    replies.pop(7)
    assert replies == [key.encode() for key in keys]


async def test_scripts_are_loaded_on_each_server_and_refusals_concern_one_call(store: Cluster, namespace: str) -> None:
    kernel = Kernel(NamespaceKeys(namespace))
    starts = [kernel.start_runs(n, [Start(f"run-{n}", "flow", "", b"\x90")]) for n in range(24)]
    assert len({store.server_of(call.keys[0]) for call in starts if await store.node_of(call.keys[0])}) == 3
    for [header] in await store.send(starts):
        assert header[:1] == b"+"
        assert decode_header(header[1:]).version == 0
    await store.one(Call.plain("SET", kernel.keys.shard(5).inbox, "not a stream"))
    posts = [kernel.post_messages(n, "client", 1, [Message("signal", f"run-{n}", b"")]) for n in range(24)]
    replies = await store.send(posts)
    assert [n for n, reply in enumerate(replies) if isinstance(reply, StoreError)] == [5]
    assert {reply for n, reply in enumerate(replies) if n != 5} == {"a"}


async def test_a_moved_slot_is_found_and_only_its_calls_are_sent_again(
    movable: tuple[EmbeddedCluster, Cluster],
) -> None:
    cluster, store = movable
    slots = [100, 200, 6000, 7000, 12000]
    keys = [key_in(slot) for slot in slots]
    await store.send([Call.plain("SET", key, "0") for key in keys])
    first, second, _ = cluster.nodes
    await move_slot(cluster, 100, second)
    before = await count_of(cluster, "incr")
    assert await store.send([Call.plain("INCR", key) for key in keys], same_history=True) == [1] * 5
    calls = await count_of(cluster, "incr") - before
    assert calls == 5, "a refused call is not executed, and no other one is sent twice"
    assert await (await store.node_of(keys[0])).one(Call.plain("GET", keys[0])) == b"1"
    assert store.server_generation == 0, "its data have moved with it"
    await move_slots_at_once(cluster, 6000, 7000, first)
    assert await store.send([Call.plain("INCR", key) for key in keys], same_history=True) == [2] * 5
    assert store.server_generation == 0


async def test_a_slot_that_is_half_moved_is_asked_for_at_both_servers(
    movable: tuple[EmbeddedCluster, Cluster],
) -> None:
    cluster, store = movable
    slot = 300
    tag = key_in(slot)
    keys = [f"{tag}:{n}" for n in range(8)]
    assert {slot_of(key) for key in keys} == {slot}
    await store.send([Call.plain("SET", key, "0") for key in keys[:6]])
    move = await SlotMove.begin(cluster, slot, cluster.nodes[1])
    assert await move.keys(3) == 3
    without_patience = await store.send([Call.plain("GET", key) for key in keys], patience=0.0)
    assert without_patience == [b"0"] * 6 + [None] * 2, "a queue is read so, also while its slot is half moved"
    assert await store.send([Call.plain("SET", key, "1") for key in keys]) == [True] * 8, "there, here, and new ones"
    answers: list[Any] = []
    async with anyio.create_task_group() as tasks:

        async def read_both() -> None:
            # Keys of which one is there and one is here: the servers answer TRYAGAIN until all have moved.
            answers.append(await store.one(Call.plain("MGET", *keys)))

        tasks.start_soon(read_both)
        await anyio.sleep(0.3)
        assert not answers
        await move.keys()
        await move.end()
    assert answers == [[b"1"] * 8]


async def test_what_was_not_answered_is_sent_again_until_a_frozen_server_is_back(
    movable: tuple[EmbeddedCluster, Cluster],
) -> None:
    cluster, store = movable
    keys = [key_in(slot) for slot in (1, SLOTS // 2, SLOTS - 1)]
    await store.send([Call.plain("SET", key, "0") for key in keys])
    answers: list[Any] = []

    async def send() -> None:
        answers.extend(await store.send([Call.plain("INCR", key) for key in keys], patience=30.0))

    async with anyio.create_task_group() as tasks:
        with frozen(cluster.nodes[2]):
            healthy = await store.send([Call.plain("INCR", key) for key in keys[:2]])
            assert healthy == [1, 1], "a server that is silent is nobody else's trouble"
            tasks.start_soon(send)
            await anyio.sleep(0.5)
            assert await store.send([Call.plain("GET", key) for key in keys[:2]]) == [b"2", b"2"]
            assert not answers
    assert answers == [2, 2, 1], "what was answered is not sent again"


async def test_a_server_that_restarts_without_data_voids_its_own_slots_only(
    movable: tuple[EmbeddedCluster, Cluster],
) -> None:
    cluster, store = movable
    changes: list[int] = []
    keys = [key_in(slot) for slot in (1, SLOTS // 2, SLOTS - 1)]
    store.on_other_history = lambda: changes.append(store.server_generation)
    await store.send([Call.plain("SET", key, "before") for key in keys])
    before = [store.history_of(key) for key in keys]
    await cluster.nodes[1].kill()
    await cluster.nodes[1].start()
    await cluster.wait_ready()
    replies = await store.send([Call.plain("SET", key, "decided") for key in keys], 20.0, same_history=True)
    assert replies[0] == replies[2] is not None
    assert isinstance(replies[1], StoreError)
    assert "another history" in str(replies[1])
    assert changes
    after = [store.history_of(key) for key in keys]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
    assert await store.one(Call.plain("GET", keys[1])) != b"decided"
    assert (await store.send([Call.plain("SET", keys[1], "since")], same_history=True))[0] is not None


async def test_channels_are_heard_on_all_servers_and_follow_their_slots(
    movable: tuple[EmbeddedCluster, Cluster],
) -> None:
    cluster, store = movable
    messages: list[tuple[bytes, bytes]] = []
    losses: list[int] = []
    bell = open_subscription(store, lambda *message: messages.append(message), lambda: losses.append(len(messages)))
    channels = [key_in(slot) for slot in (100, SLOTS // 2, SLOTS - 1)]

    async def ring(text: str) -> None:
        for channel in channels:
            await store.one(Call.plain("SPUBLISH", channel, text))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bell.run)
        await bell.add_all(channels)
        await ring("1")
        await wait_for(lambda: len(messages) == 3)
        await move_slot(cluster, 100, cluster.nodes[2])
        await wait_for(lambda: losses)
        await bell.add(channels[0])
        assert all(bell.is_confirmed(channel) for channel in channels)
        await ring("2")
        await wait_for(lambda: len(messages) == 6)
        assert {channel for channel, _ in messages[3:]} == {channel.encode() for channel in channels}
        await bell.remove(channels[1])
        await ring("3")
        await wait_for(lambda: len(messages) == 8)
        tasks.cancel_scope.cancel()
    bell.close()


async def test_a_queue_is_read_from_the_servers_of_its_partitions(store: Cluster, namespace: str) -> None:
    """With one connection each: a read is one pipeline to each server."""
    kernel = Kernel(NamespaceKeys(namespace))
    streams = [kernel.keys.queue("gpu", n).stream for n in range(8)]
    await store.send([kernel.create_group("gpu", n) for n in range(8)])
    reads = open_queue_reads(store, WORKERS, "worker")
    await store.send([Call.plain("XADD", stream, "1-0", "run", stream) for stream in streams])
    page = await reads.read(streams, 1)
    assert sorted(stream for stream, _, _ in page.entries) == sorted(streams)
    assert len((await reads.read(streams, 10, pending=True)).entries) == 8
    assert (await reads.read(streams, 1)).entries == []
    with pytest.raises(GroupGone) as gone:
        await reads.read([streams[0], kernel.keys.queue("cpu", 0).stream], 1)
    assert kernel.keys.queue("cpu", 0).stream in gone.value.streams


async def test_a_queue_goes_on_without_the_partitions_of_a_server_that_is_away(
    movable: tuple[EmbeddedCluster, Cluster], namespace: str
) -> None:
    cluster, store = movable
    kernel = Kernel(NamespaceKeys(namespace))
    streams = [kernel.keys.queue("gpu", n).stream for n in range(12)]
    await store.send([kernel.create_group("gpu", n) for n in range(12)])
    reads = open_queue_reads(store, WORKERS, "worker")
    await reads.read(streams, 1)
    away = [stream for stream in streams if await cluster.owner(slot_of(stream)) is cluster.nodes[2]]
    there = [stream for stream in streams if stream not in away]
    assert away
    assert there
    found: list[Any] = []
    with frozen(cluster.nodes[2]), anyio.fail_after(DEADLINE):
        for number in range(1, 4):
            await store.one(Call.plain("XADD", there[0], f"{number}-0", "run", "x"))
            unread: set[str] = set()
            while len(found) < number:  # at once, if the others answer in time
                page = await reads.read(streams, 1)
                found += page.entries
                unread |= {*page.unread}
            assert number == 1 or unread >= {*away}, "those are under way"
            assert reads.is_waiting
    assert [stream for stream, _, _ in found] == [there[0]] * 3
    await store.one(Call.plain("XADD", away[0], "1-0", "run", "y"))
    with anyio.fail_after(DEADLINE):
        while len(found) < 4:
            found += (await reads.read(streams, 1)).entries
            await anyio.sleep(0.05)
    assert found[-1][0] == away[0]


async def test_logs_of_all_servers_are_read(store: Cluster, namespace: str) -> None:
    keys = [NamespaceKeys(namespace).shard(n).log for n in range(9)]
    await store.send([Call.plain("XADD", key, f"{n + 1}-0", "a", "b") for n, key in enumerate(keys)])
    found = await store.read_logs(dict.fromkeys(keys, "0-0"), 1000)
    assert found == {key: [(f"{n + 1}-0", {b"a": b"b"})] for n, key in enumerate(keys)}
    behind = {key: f"{n + 1}-0" for n, key in enumerate(keys)}
    assert await store.read_logs(behind, 150) == {}


async def test_slots_without_a_server_are_counted_with_what_to_do(tmp_path: Path) -> None:
    """As on the way from a single server: it has the slots of its keys only, and the others are missing."""
    options = ["--cluster-enabled", "yes", "--cluster-config-file", str(tmp_path / "nodes.conf")]
    options += ["--cluster-port", str(free_port())]  # the default is 10,000 above the other one, which may be too high
    async with EmbeddedServer(tmp_path / "data", extra=options) as server:
        async with Redis.from_url(server.url) as redis:
            await redis.execute_command("CLUSTER ADDSLOTS", 1)
        store = Cluster(server.url.replace("redis://", "redis+cluster://"), patience=2.5)
        try:
            with pytest.raises(StoreUnavailable, match=r"16383 of 16384 slots have no server.*--cluster fix HOST:PORT"):
                await store.one(Call.plain("GET", "{a}"))
        finally:
            await store.close()


async def test_wrong_urls_are_refused_with_what_to_use(shared_cluster: EmbeddedCluster, embedded_server: Any) -> None:
    address = embedded_server.url.partition("://")[2]
    if not embedded_server.url.startswith("unix"):
        single = open_store(f"redis+cluster://{address}")
        with pytest.raises(StoreMisconfigured, match="not part of a cluster: use redis://"):
            await single.send([Call.plain("GET", "a")], patience=0.3)
        await single.close()
    nowhere = open_store("redis+cluster://127.0.0.1:1")
    with pytest.raises(StoreUnavailable, match="Check that the cluster's servers are running"):
        await nowhere.send([Call.plain("GET", "a")], patience=0.3)
    await nowhere.close()
    addressed = cluster_of(shared_cluster.url)
    assert addressed is not None
    assert isinstance(open_store(addressed.node(*addressed.addresses[0])), Node)
