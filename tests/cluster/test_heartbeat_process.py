"""The process beside a daemon, on a cluster: it finds the node that has the key, also after a failover or a move."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from streamflow.embedded.cluster import SLOTS, EmbeddedCluster
from streamflow.server_url import cluster_of
from streamflow.store import heartbeat_child
from tests.support.cluster import SlotMove, key_in, move_slots_at_once, slot_of
from tests.support.waiting import DEADLINE

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

LIMITS = {"socket_timeout": 0.5, "socket_connect_timeout": 1.0}
SCRIPT = "return redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])"
HOLDER = """
import sys, time
from streamflow.watch.heartbeat_process import HeartbeatProcess
url, members, ended = sys.argv[1:]
process = HeartbeatProcess(url, members, "me", every=0.1, timeout=2.0, ended=ended)
process.start()
process.sent(b'{"beat": 7, "sent": 1}')
print("started", flush=True)
time.sleep(600)  # as code in C that holds on to the interpreter: nothing is sent
"""


def client_of(cluster: EmbeddedCluster, *, first: int = 0) -> heartbeat_child.Cluster:
    """`first`: of the nodes, the one that the URL names first."""
    named = cluster_of(cluster.url)
    assert named is not None
    addresses = [*named.addresses[first:], *named.addresses[:first]]
    client = heartbeat_child.client_for({"every": 0.5, "url": cluster.url, "cluster": named._asdict()})
    assert isinstance(client, heartbeat_child.Cluster)
    return heartbeat_child.Cluster({**named._asdict(), "addresses": addresses}, LIMITS)


async def value(cluster: EmbeddedCluster, key: str, field: str) -> object:
    return await (await cluster.owner(slot_of(key))).command("HGET", key, field)


async def run(client: heartbeat_child.Cluster, slot: int, text: str) -> None:
    script = client.register_script(SCRIPT)
    await anyio.to_thread.run_sync(lambda: script(keys=[key_in(slot)], args=["a", text]))


async def test_a_script_reaches_the_node_that_has_its_key(tmp_path: Path) -> None:
    async with EmbeddedCluster(tmp_path, memory=True, private=True) as cluster:
        for first in range(3):
            client = client_of(cluster, first=first)
            for slot in (0, SLOTS // 2, SLOTS - 1):
                await run(client, slot, str(first))
                assert await value(cluster, key_in(slot), "a") == str(first)
            client.close()
        client = client_of(cluster)
        await run(client, 0, "it is known who has it")

        # A slot that is just being moved: its new key is with the target already, which takes it only if it is asked.
        move = await SlotMove.begin(cluster, 0, cluster.nodes[1])
        await move.keys()
        await run(client, 0, "while it moves")
        await move.end()
        assert await value(cluster, key_in(0), "a") == "while it moves"

        # Another server than the one that is known.
        await move_slots_at_once(cluster, 0, 0, cluster.nodes[2])
        await run(client, 0, "moved")
        assert await value(cluster, key_in(0), "a") == "moved"
        client.close()


async def test_heartbeats_and_the_death_arrive_although_the_node_failed_over() -> None:
    async with EmbeddedCluster(replicas=1, private=True) as cluster:
        members, ended = f"{key_in(0)}:members", f"{key_in(SLOTS // 2)}:ended"
        url = cluster.url
        process = await anyio.open_process(
            [sys.executable, "-c", HOLDER, url, members, ended],
            stdout=subprocess.PIPE, stderr=None, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        try:
            first = await cluster.owner(0)
            await first.command("HSET", members, "me", '{"beat": 7}')  # what isn't a member isn't made one
            before = await beat_after(cluster, members, 0)
            await first.command("WAIT", 1, 0)
            await first.kill()
            promoted = await cluster.wait_for_failover(first, 0, DEADLINE)
            assert promoted is not first
            assert await beat_after(cluster, members, before) < before
            process.send_signal(signal.SIGKILL)
            with anyio.fail_after(DEADLINE):
                while await value(cluster, members, "me") is not None:  # noqa: ASYNC110
                    await anyio.sleep(0.02)
            assert json.loads(str(await value(cluster, ended, "me")))["beat"] == 7
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def beat_after(cluster: EmbeddedCluster, members: str, before: int) -> int:
    """The next number: those of this process are negative, and go down."""
    with anyio.fail_after(DEADLINE):
        while True:
            found = json.loads(str(await value(cluster, members, "me")))["beat"]
            if found < before:
                return found
            await anyio.sleep(0.02)
