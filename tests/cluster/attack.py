"""A cluster of servers, daemons and a worker under random faults, and the judgement of what is left."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import anyio
from redis.asyncio import RedisCluster

import streamflow as sf
from streamflow import errors
from streamflow.embedded.cluster import ClusterNode, EmbeddedCluster
from streamflow.events import ChildStarted
from streamflow.store.keys import NamespaceKeys
from tests.cluster import attack_flows
from tests.process.faults import Audit, ServingProcess, audit, until
from tests.support.cluster import frozen, move_slot, move_slots_at_once, slot_of

T = TypeVar("T")

FLOWS = Path(attack_flows.__file__)
SHARDS = 24
EVERY = 0.25
"""Seconds between two starts."""
DAEMONS = 3
AGAIN = 3.0
"""Seconds after which an unanswered question is asked again, and a signal given again."""
LIMIT = 60.0
"""Seconds that a run may take after the last fault."""
ALARMS = ('"level":"error"', '"level":"critical"', "Traceback", "never retrieved", "never awaited")
"""What no process may log, unless it says that a server has lost writes."""
LOSSES = '"logger":"streamflow.lost"'
SERVER_FAULTS = (
    "kill primary",
    "kill primary for a moment",
    "freeze primary",
    "freeze primary",
    "freeze replica",
    "kill replica",
    "plan failover",
    "move slot",
    "move slots at once",
    "cut normal",
    "cut pubsub",
)
PROCESS_FAULTS = ("kill daemon", "freeze daemon", "end daemon", "kill worker", "freeze worker")


class Attack:
    """Its processes, its load, its faults, and what it has seen."""

    def __init__(self, cluster: EmbeddedCluster, namespace: str, directory: Path) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.daemons: list[ServingProcess] = []
        self.worker: ServingProcess | None = None
        self.logs: list[Path] = []
        self._directory = directory
        self.started = 0
        self.ended: dict[str, int] = {}
        """Run -> its number."""
        self.wrong: list[str] = []
        self.refused = 0
        """Calls of the client that could not be served in time, and were made again."""
        self.late = 0
        """Questions that were not answered in time, and were asked again."""
        self.slowest = 0.0
        self.open: dict[str, str] = {}
        """Runs that have not ended, and what is waited for."""
        self.faults: list[str] = []

    # --- processes ----------------------------------------------------------------------------------------------------

    def _spawn(self, *words: str) -> ServingProcess:
        log = self._directory / f"{words[0]}-{len(self.logs)}.log"
        self.logs.append(log)
        return ServingProcess(*words, "--app", f"{FLOWS}:app", url=self.cluster.url, namespace=self.namespace, log=log)

    def start_daemon(self) -> None:
        self.daemons.append(self._spawn("daemon", "--shards", str(SHARDS), "--dead-after", "3"))

    def start_worker(self) -> None:
        self.worker = self._spawn("worker", "--queue", "far", "--concurrency", "8")

    async def end(self) -> None:
        for process in [*self.daemons, *([self.worker] if self.worker else [])]:
            await process.end()

    # --- load ---------------------------------------------------------------------------------------------------------

    async def load(self, client: sf.Client, stopped: anyio.Event) -> None:
        async with anyio.create_task_group() as tasks:
            while not stopped.is_set():
                tasks.start_soon(self._one, client, self.started)
                self.started += 1
                await anyio.sleep(EVERY)

    async def _one(self, client: sf.Client, number: int) -> None:
        began, run_id = time.monotonic(), f"run-{number}"
        self.open[run_id] = "start"
        run = await self._again(lambda: client.start("mixed", number, id=run_id))
        self.open[run_id] = "signal"
        await self._signal(run)
        self.open[run_id] = "answer"
        answer = await self._answer(run)
        if answer not in (None, attack_flows.asked(number)):
            self.wrong.append(f"{run_id} answered {answer}, not {attack_flows.asked(number)}")
        self.open[run_id] = "result"
        result = await self._again(run.result)
        if result != attack_flows.right(number):
            self.wrong.append(f"{run_id} ended with {result}, not {attack_flows.right(number)}")
        del self.open[run_id]
        self.ended[run_id] = number
        self.slowest = max(self.slowest, time.monotonic() - began)

    async def _again(self, call: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await call()
            except (errors.StoreUnavailable, errors.NamespaceMissing):
                self.refused += 1
            await anyio.sleep(0.1)

    async def _answer(self, run: sf.Run[object]) -> object:
        """None for a run that has ended meanwhile. The signal, or the question, may have been lost with a server."""
        while True:
            try:
                return await self._again(lambda: run.ask("value", 1, timeout=AGAIN))
            except TimeoutError:
                self.late += 1
                await self._signal(run)
            except (errors.RunEnded, sf.AskRefused):
                return None

    async def _signal(self, run: sf.Run[object]) -> None:
        with contextlib.suppress(errors.RunEnded):  # it had one before
            await self._again(lambda: run.signal("extra", 100))

    async def serves(self) -> bool:
        return bool(self.ended)

    async def explain(self, client: sf.Client) -> None:
        """Print where each open run is, and its children."""
        for run_id, what in self.open.items():
            print(f"{run_id} waits for its {what}")
            await self._print(client, run_id)

    async def _print(self, client: sf.Client, run_id: str) -> None:
        with anyio.move_on_after(10):
            try:
                history = await client.run(run_id).history()
            except sf.StreamflowError as error:
                print(f"  {run_id}: {error!r}")
                return
            for transition in history:
                for event in transition.events:
                    print(f"  {run_id} {transition.at} {event}")
                    if isinstance(event, ChildStarted):
                        await self._print(client, event.run_id)

    # --- faults -------------------------------------------------------------------------------------------------------

    async def disturb_servers(self, rng: random.Random, until_: float) -> None:
        while time.monotonic() < until_:
            await anyio.sleep(rng.uniform(0.2, 1.5))
            fault = rng.choice(SERVER_FAULTS)
            try:
                await self.server_fault(rng, fault)
                await self.cluster.wait_ready(30)
            except (errors.StoreError, AssertionError, TimeoutError) as error:
                self.say(f"  {fault}: {error!r}"[:200])
                await self.settle()

    async def disturb_processes(self, rng: random.Random, until_: float) -> None:
        while time.monotonic() < until_:
            await anyio.sleep(rng.uniform(1.0, 5.0))
            await self.process_fault(rng, rng.choice(PROCESS_FAULTS))

    def say(self, text: str) -> None:
        self.faults.append(text)
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

    async def settle(self) -> None:
        for node in self.cluster.nodes:
            if node.running:
                os.kill(node.pid, signal.SIGCONT)
            else:
                await node.start()
        await self.cluster.wait_ready(60)

    def _a_slot(self, rng: random.Random) -> int:
        return slot_of(NamespaceKeys(self.namespace).shard(rng.randrange(SHARDS)).owner)

    async def server_fault(self, rng: random.Random, fault: str) -> None:
        slot = self._a_slot(rng)
        primary = await self.cluster.owner(slot)
        replicas = await self.cluster.replicas(primary)
        seconds = rng.choice((0.1, 0.7, 2.5, 5.0))
        self.say(f"{fault} ({primary.name}, slot {slot}, {seconds} s)")
        match fault:
            case "kill primary":
                await primary.kill()
                if replicas:
                    await self.cluster.wait_for_failover(primary, slot, 30)
                await anyio.sleep(rng.uniform(0, 2))
                await primary.start()
            case "kill primary for a moment":
                await primary.kill()
                await primary.start()
            case "freeze primary":
                with frozen(primary):
                    await anyio.sleep(seconds)
            case "freeze replica" if replicas:
                with frozen(replicas[0]):
                    await anyio.sleep(seconds)
            case "kill replica" if replicas:
                await replicas[0].kill()
                await anyio.sleep(seconds)
                await replicas[0].start()
            case "plan failover" if replicas:
                await replicas[0].command("CLUSTER", "FAILOVER")
                await self.cluster.wait_for_failover(primary, slot, 30)
            case "move slot":
                await move_slot(self.cluster, slot, await self._another(rng, primary))
            case "move slots at once":
                first = max(0, slot - 200)
                if await self.cluster.owner(first) is primary:
                    await move_slots_at_once(self.cluster, first, slot, await self._another(rng, primary))
            case "cut normal":
                await primary.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            case "cut pubsub":
                await primary.command("CLIENT", "KILL", "TYPE", "pubsub")
            case _:
                pass

    async def _another(self, rng: random.Random, primary: ClusterNode) -> ClusterNode:
        return rng.choice([node for node in await self.cluster.masters() if node is not primary])

    async def process_fault(self, rng: random.Random, fault: str) -> None:
        seconds = rng.choice((0.5, 2.0, 6.0))
        daemon = rng.choice(self.daemons)
        self.say(f"{fault} ({seconds} s)")
        assert self.worker is not None
        match fault:
            case "kill daemon":
                await daemon.end()
                self.daemons.remove(daemon)
                self.start_daemon()
            case "end daemon":
                daemon.send(signal.SIGTERM)
                with contextlib.suppress(Exception):
                    await daemon.wait(30)
                await daemon.end()
                self.daemons.remove(daemon)
                self.start_daemon()
            case "freeze daemon":
                daemon.send(signal.SIGSTOP)
                await anyio.sleep(seconds)
                daemon.send(signal.SIGCONT)
            case "kill worker":
                await self.worker.end()
                self.start_worker()
            case _:
                self.worker.send(signal.SIGSTOP)
                await anyio.sleep(seconds)
                self.worker.send(signal.SIGCONT)

    # --- judgement ----------------------------------------------------------------------------------------------------

    async def owned(self) -> dict[int, int]:
        """Shards by the pid of the owner."""
        count: dict[int, int] = {}
        async with RedisCluster.from_url(self._plain_url(), decode_responses=True) as redis:
            for shard in range(SHARDS):
                holder = await redis.hget(NamespaceKeys(self.namespace).shard(shard).owner, "holder")
                if holder:
                    pid = int(str(holder).rsplit("-", 2)[1])
                    count[pid] = count.get(pid, 0) + 1
        return count

    def _plain_url(self) -> str:
        return next(node.url for node in self.cluster.nodes if node.running)

    async def judge(self) -> Audit:
        async def all_owned() -> bool:
            owned = await self.owned()
            return set(owned) == {daemon.pid for daemon in self.daemons} and sum(owned.values()) == SHARDS

        await until(all_owned, "the daemons own all shards", 30)
        for daemon in [*self.daemons, self.worker]:
            assert daemon is not None
            assert daemon.process.poll() is None, f"a process has ended: {daemon.log}"
        async with RedisCluster.from_url(self._plain_url()) as redis:
            return await audit(redis, self.namespace, SHARDS, attack_flows.app)

    def alarms(self) -> list[str]:
        return [
            f"{log.name}: {line[:3000]}"
            for log in self.logs
            for line in log.read_text(errors="replace").splitlines()
            if any(word in line for word in ALARMS) and LOSSES not in line
        ]


@asynccontextmanager
async def attacked(cluster: EmbeddedCluster, namespace: str, directory: Path) -> AsyncGenerator[Attack]:
    """Daemons and a worker that serve."""
    attack = Attack(cluster, namespace, directory)
    try:
        for _ in range(DAEMONS):
            attack.start_daemon()
        attack.start_worker()
        yield attack
    finally:
        await attack.end()
