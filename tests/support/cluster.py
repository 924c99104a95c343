"""What tests do to an embedded cluster: freeze a node, move slots in both ways or half of one, remove a node."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Generator

import anyio
from redis.asyncio import Redis
from redis.crc import key_slot

from streamflow.embedded.cluster import ClusterNode, EmbeddedCluster
from tests.support.waiting import DEADLINE

KEYS_AT_ONCE = 100


def slot_of(key: str) -> int:
    return key_slot(key.encode())


def key_in(slot: int) -> str:
    """A key of this slot: one whose hash tag is a number."""
    return next(key for number in range(10_000_000) if slot_of(key := f"{{{number}}}") == slot)


@contextlib.contextmanager
def frozen(node: ClusterNode) -> Generator[None]:
    """SIGSTOP, and SIGCONT in the end: its connections stay open meanwhile, and nothing is answered."""
    os.kill(node.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if node.running:
            os.kill(node.pid, signal.SIGCONT)


class SlotMove:
    """Classic resharding of one slot, step by step. Between `begin` and `end` the source answers ASK for keys that it
    doesn't have any more, and TRYAGAIN for a command whose keys are partly there."""

    def __init__(self, cluster: EmbeddedCluster, slot: int, source: ClusterNode, target: ClusterNode) -> None:
        self._cluster = cluster
        self._slot = slot
        self.source = source
        self.target = target

    @classmethod
    async def begin(cls, cluster: EmbeddedCluster, slot: int, target: ClusterNode) -> SlotMove:
        source = await cluster.owner(slot)
        assert source is not target
        await target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        await source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        return cls(cluster, slot, source, target)

    async def keys(self, limit: int | None = None) -> int:
        """Move so many keys, or all; returns how many it were."""
        moved = 0
        async with Redis.from_url(self.source.url) as source:
            secret = source.connection_pool.connection_kwargs.get("password")
            login = ["AUTH", secret] if secret else []
            while limit is None or moved < limit:
                count = KEYS_AT_ONCE if limit is None else min(KEYS_AT_ONCE, limit - moved)
                keys = await source.execute_command("CLUSTER", "GETKEYSINSLOT", self._slot, count)
                if not keys:
                    break
                address = (self.target.host, self.target.port)
                await source.execute_command("MIGRATE", *address, "", 0, 5000, *login, "KEYS", *keys)
                moved += len(keys)
        return moved

    async def end(self) -> None:
        """The slot is the target's, which learns it first: were it the last one, the slot would be nobody's for a
        moment."""
        rest = [node for node in await self._cluster.masters() if node not in (self.target, self.source)]
        for node in (self.target, self.source, *rest):
            await node.command("CLUSTER", "SETSLOT", self._slot, "NODE", self.target.id)


async def move_slot(cluster: EmbeddedCluster, slot: int, target: ClusterNode) -> int:
    """Classic resharding of one slot, whose keys may be written meanwhile; returns how many keys were moved."""
    move = await SlotMove.begin(cluster, slot, target)
    moved = await move.keys()
    await move.end()
    await cluster.wait_ready()
    return moved


async def move_slots_at_once(cluster: EmbeddedCluster, first: int, last: int, target: ClusterNode) -> None:
    """Valkey 9's atomic migration of slots that one node has. Raises `AssertionError` when the server gives up."""
    source = await cluster.owner(first)
    known = await _migrations(source)
    await source.command("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", first, last, "NODE", target.id)
    with anyio.fail_after(DEADLINE):
        while True:
            (job,) = [job for name, job in (await _migrations(source)).items() if name not in known]
            if job["state"] == "success":
                break
            assert job["state"] not in ("failed", "cancelled"), job
            await anyio.sleep(0.02)
    await cluster.wait_ready()


async def _migrations(node: ClusterNode) -> dict[str, dict[str, str]]:
    """Jobs of atomic migrations by name."""
    jobs = [dict(zip(job[::2], job[1::2], strict=True)) for job in await node.command("CLUSTER", "GETSLOTMIGRATIONS")]
    return {job["name"]: job for job in jobs}


async def remove_node(cluster: EmbeddedCluster, node: ClusterNode) -> None:
    """Of a node without slots: it ends, and the others forget it."""
    assert node not in await cluster.masters()
    await node.kill()
    cluster.nodes = tuple(other for other in cluster.nodes if other is not node)
    for other in cluster.nodes:
        await other.command("CLUSTER", "FORGET", node.id)
    await node.server.stop()
    await cluster.wait_ready()
