"""The embedded cluster: real nodes, which fail over, move slots, and never outlive what started them."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import anyio
import pytest
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

from streamflow.embedded.cluster import SLOTS, ClusterNode, EmbeddedCluster
from streamflow.errors import StoreError, StoreUnavailable, UsageError
from streamflow.server_url import check_url, cluster_of
from tests.support.cluster import SlotMove, frozen, key_in, move_slot, move_slots_at_once, remove_node, slot_of
from tests.support.waiting import DEADLINE

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


async def test_each_node_takes_writes_and_names_the_owner_of_other_slots(tmp_path: Path) -> None:
    async with EmbeddedCluster(tmp_path, memory=True, private=True) as cluster:
        check_url(cluster.url)
        addressed = cluster_of(cluster.url)
        assert addressed is not None
        assert addressed.addresses == tuple((node.host, node.port) for node in cluster.nodes)
        assert await cluster.masters() == [*cluster.nodes]
        views = [list((await node.view()).values()) for node in cluster.nodes]
        assert {view.id for view in views[0]} == {node.id for node in cluster.nodes}
        assert sum(len(part) for view in views[0] for part in view.slots) == SLOTS
        keys = [key_in(slot) for slot in (0, SLOTS // 2, SLOTS - 1)]
        for node, key in zip(cluster.nodes, keys, strict=True):
            assert await cluster.owner(slot_of(key)) is node
            assert await node.command("SET", key, node.name) == "OK"
            for other in cluster.nodes:
                if other is not node:
                    with pytest.raises(StoreError, match=f"MOVED {slot_of(key)} {node.address}"):
                        await other.command("GET", key)
        async with RedisCluster.from_url(addressed.node(*addressed.addresses[0]), decode_responses=True) as redis:
            assert [await redis.get(key) for key in keys] == [node.name for node in cluster.nodes]
        for node in cluster.nodes:
            assert node.url == addressed.node(node.host, node.port)
            stranger = ClusterNode(node.name, node.server, node.port, node.bus_port, password="")
            with pytest.raises(StoreError, match="NOAUTH"):
                await stranger.command("GET", keys[0])
        pids = [node.pid for node in cluster.nodes]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_a_replica_is_promoted_and_the_former_master_follows() -> None:
    async with EmbeddedCluster(replicas=1) as cluster:
        (first, second, third), replicas = await cluster.masters(), cluster.nodes[3:]
        assert [await cluster.replicas(node) for node in (first, second, third)] == [[node] for node in replicas]
        await first.command("SET", key_in(0), "kept")
        await first.command("WAIT", 1, 0)
        await first.kill()
        with pytest.raises(StoreUnavailable, match="no running master has slot 0"):
            await cluster.owner(0)
        promoted = await cluster.wait_for_failover(first, 0, DEADLINE)
        assert promoted is replicas[0]
        assert await promoted.command("GET", key_in(0)) == "kept"
        await promoted.command("SET", key_in(0), "newer")

        address = first.address
        await first.start()
        await cluster.wait_ready(DEADLINE)
        assert first.address == address
        assert await cluster.replicas(promoted) == [first]
        assert await cluster.owner(0) is promoted

        with frozen(second):
            assert await cluster.wait_for_failover(second, SLOTS // 2, DEADLINE) is replicas[1]
        await cluster.wait_ready(DEADLINE)
        assert await cluster.replicas(replicas[1]) == [second]


async def test_slots_move_in_both_ways_to_a_new_master_and_back() -> None:
    async with EmbeddedCluster(memory=True, private=True) as cluster:
        source, others = cluster.nodes[0], cluster.nodes[1:]
        added = await cluster.add_node()
        assert added not in await cluster.masters()
        keys = [f"{key_in(0)}:{i}" for i in range(250)]
        async with Redis.from_url(source.url) as redis:
            await redis.mset(dict.fromkeys(keys, "value"))

        move = await SlotMove.begin(cluster, 0, added)
        assert await move.keys(120) == 120
        with pytest.raises(StoreError, match="TRYAGAIN"):
            await source.command("MGET", *keys)
        with pytest.raises(StoreError, match=f"ASK 0 {added.address}"):
            await source.command("GET", f"{key_in(0)}:new")
        assert await move.keys() == 130
        await move.end()
        await cluster.wait_ready(DEADLINE)
        assert await cluster.owner(0) is added
        assert await added.command("EXISTS", *keys) == len(keys)

        await move_slots_at_once(cluster, 1, 9, added)
        assert {await cluster.owner(slot) for slot in range(1, 10)} == {added}
        assert await cluster.owner(10) is source
        await move_slots_at_once(cluster, 0, 9, source)
        assert await source.command("EXISTS", *keys) == len(keys)
        assert await move_slot(cluster, 0, others[0]) == len(keys)
        assert await others[0].command("EXISTS", *keys) == len(keys)

        await remove_node(cluster, added)
        assert len(await source.view()) == len(cluster.nodes) == 3


async def test_what_is_not_ready_is_named(tmp_path: Path) -> None:
    (tmp_path / "something").touch()
    with pytest.raises(UsageError, match="isn't empty"):
        await EmbeddedCluster(tmp_path).start()
    with pytest.raises(StoreUnavailable, match="no-such-option"):
        await EmbeddedCluster(extra=("--no-such-option", "1")).start()
    with pytest.raises(UsageError, match="needs a master"):
        EmbeddedCluster(masters=0)
    cluster = EmbeddedCluster(masters=1, memory=True, timeout=0.5)  # a master waits for two seconds
    with pytest.raises(StoreUnavailable, match=r"isn't ready after 0\.5 s: node-1 says cluster_state:fail"):
        await cluster.start()
    assert cluster.nodes == ()


async def test_all_nodes_die_with_the_process_that_started_them(tmp_path: Path) -> None:
    program = (
        "import anyio, sys; from pathlib import Path; from streamflow.embedded.cluster import EmbeddedCluster\n"
        "async def main():\n"
        "    cluster = EmbeddedCluster(Path(sys.argv[1]), replicas=1); await cluster.start()\n"
        "    print(*(node.pid for node in cluster.nodes), flush=True)\n"
        "    await anyio.sleep(60)\n"
        "anyio.run(main)"
    )
    owner = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    with owner.stdout:
        pids = [int(pid) for pid in owner.stdout.readline().split()]
    for pid in pids:
        os.kill(pid, 0)
    owner.kill()
    owner.wait()
    locks = sorted(tmp_path.glob("node-*/server.lock"))
    assert len(locks) == len(pids) == 6
    with anyio.fail_after(DEADLINE):
        for path in locks:  # which go with the last process that has them: a node's
            with path.open() as lock:
                while not is_free(lock):  # noqa: ASYNC110
                    await anyio.sleep(0.02)


def is_free(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
