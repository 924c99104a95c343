"""Failovers that lose what was acknowledged: the load, the fault, and the judgement of what became of it.

A replica is cut off from its primary for a while, and then the primary is killed: the replica is promoted without what
was written meanwhile. Runs have steps, signals from their client, and a child that is mostly on another server.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio

import streamflow as sf
from streamflow import errors
from streamflow.embedded.cluster import ClusterNode, EmbeddedCluster

T = TypeVar("T")

STEPS = 3
VALUES = 4
"""Signals that a run gets from its client, before the one that ends it."""
EXPECTED = [*range(VALUES), 7]
EVERY = 0.02
"""Seconds between two starts."""
AGAIN = 5
LIMIT = 30.0
"""Seconds that a run may take after its failover, or what is waited for before it."""

app = sf.App()
executed: Counter[tuple[str, str]] = Counter()
"""How often each step of each run was executed: (run, what)."""


@app.step
async def note(run_id: str, what: str) -> str:
    executed[run_id, what] += 1
    return what


@app.workflow
async def leaf(parent: str, number: int) -> int:
    await note(f"{parent}/leaf", str(number))
    return number


@app.workflow
async def busy(name: str) -> list[int]:
    """Returns the values of its signals, in order, and its child's result."""
    for number in range(STEPS):
        await note(name, f"first {number}")
    child = await leaf(name, 7)
    values: list[int] = []
    while (value := await sf.signal("value", int)) >= 0:
        values.append(value)
        await note(name, f"value {value}")
    return [*values, child]


@app.workflow
async def chain(name: str) -> str:
    for number in range(STEPS):
        await note(name, f"first {number}")
    return name


class Load:
    """Runs that one client starts and signals, and waits for."""

    def __init__(self, client: sf.Client, prefix: str) -> None:
        self._client = client
        self._prefix = prefix
        self.acknowledged: list[str] = []
        self.ended: dict[str, Any] = {}
        self.open: dict[str, str] = {}
        """Runs that have not ended, and what their client waits for."""
        self.stopped = False

    async def run(self) -> None:
        async with anyio.create_task_group() as tasks:
            number = 0
            while not self.stopped:
                tasks.start_soon(self._one, f"{self._prefix}-{number}")
                number += 1
                await anyio.sleep(EVERY)

    async def _one(self, name: str) -> None:
        self.open[name] = "start"
        run = await self._client.start("busy", name, id=name)
        self.acknowledged.append(name)
        for value in range(VALUES):
            self.open[name] = f"signal {value}"
            await run.signal("value", value)
            await anyio.sleep(random.uniform(0, 0.2))
        self.open[name] = "end"
        await run.signal("value", -1)
        self.ended[name] = await run.result()
        del self.open[name]


async def start_until(over: anyio.Event, client: sf.Client, prefix: str, acknowledged: list[str]) -> None:
    """Start short runs, and note those that were acknowledged."""
    while not over.is_set():
        name = f"{prefix}-{len(acknowledged)}"
        await client.start("chain", name, id=name)
        acknowledged.append(name)
        await anyio.sleep(EVERY)


async def happens(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(LIMIT):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.01)


async def decided(is_lost: Callable[[str], bool] = lambda _: True) -> None:
    """Wait until a run whose record the server will lose has decided something from now on: of two steps that it
    executes, the second is decided when the first has ended."""
    before = executed.copy()

    def has_decided() -> bool:
        runs = Counter(run_id for run_id, _ in executed - before if "/" not in run_id and is_lost(run_id))
        return any(steps > 1 for steps in runs.values())

    await happens(has_decided)


async def persistent(ask: Callable[[], Awaitable[T]]) -> T:
    """On a machine that is busy, a server may answer late."""
    for _ in range(AGAIN):
        try:
            return await ask()
        except (errors.StoreError, OSError, TimeoutError):
            await anyio.sleep(0.5)
    return await ask()


async def cut_off(primary: ClusterNode, replica: ClusterNode) -> None:
    """From now on the replica gets nothing of what is written."""
    await persistent(lambda: replica.command("CONFIG", "SET", "masterauth", "a password that nobody has"))
    await persistent(lambda: primary.command("CLIENT", "KILL", "TYPE", "replica"))


async def offset(node: ClusterNode) -> int:
    """How many bytes of the replication stream a server has written, or received."""
    info = await persistent(lambda: node.command("INFO", "replication"))
    if not isinstance(info, dict):
        text = info.decode() if isinstance(info, bytes) else str(info)
        info = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return int(info["slave_repl_offset" if info["role"] == "slave" else "master_repl_offset"])


async def slot_at(node: ClusterNode) -> int:
    view = await persistent(node.view)
    return next(iter(view[node.id].slots)).start


async def fail_over(cluster: EmbeddedCluster, primary: ClusterNode, meanwhile: Callable[[], Awaitable[None]]) -> int:
    """Kill a primary whose replica has received nothing `meanwhile`. Returns how many bytes of its writes the promoted
    server lacks."""
    slot = await slot_at(primary)
    (replica,) = await persistent(lambda: cluster.replicas(primary))
    await cut_off(primary, replica)
    await meanwhile()
    written, received = await offset(primary), await offset(replica)
    await primary.kill()
    assert await persistent(lambda: cluster.wait_for_failover(primary, slot, 30)) is replica
    await persistent(lambda: replica.command("CONFIG", "SET", "masterauth", ""))
    return written - received


async def bring_back(cluster: EmbeddedCluster, node: ClusterNode) -> None:
    await node.start()
    await persistent(lambda: cluster.wait_ready(30))
