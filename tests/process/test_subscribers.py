"""Consumers that are killed or stopped: every event at least once, in the order of each run, and no zombie counts.

Everything that the consumers print is put into one list, in the order in which it arrives here.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

import streamflow as sf
from streamflow.embedded.server import EmbeddedServer
from tests.support.serving import running_daemon
from tests.support.waiting import DEADLINE, until

pytestmark = pytest.mark.anyio

app = sf.App()

RUNS = 12
EVENTS = 8
"""Of each run: it starts, three steps are scheduled and completed, it ends."""


@app.step
async def add(n: int) -> int:
    return n + 1


@app.workflow
async def chain(length: int) -> int:
    n = 0
    for _ in range(length):
        n = await add(n)
    return n


class Consumers:
    def __init__(self, url: str, namespace: str) -> None:
        self.seen: list[tuple[str, str, str]] = []
        """Consumer, run and event's id, as they came."""
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self._words = [sys.executable, "-m", "tests.process.subscriber", url, namespace]
        self._readers: list[asyncio.Task[None]] = []

    async def begin(self, dead_after: float, pause: float) -> str:
        words = [*self._words, str(dead_after), str(pause)]
        process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        try:
            with anyio.fail_after(DEADLINE):
                name: str = json.loads(await process.stdout.readline())["consumer"]
        except BaseException:
            process.kill()
            raise
        self.processes[name] = process
        self._readers.append(asyncio.create_task(self._read(name, process.stdout)))
        return name

    async def _read(self, name: str, lines: asyncio.StreamReader) -> None:
        async for line in lines:
            event = json.loads(line)
            self.seen.append((name, event["run"], event["id"]))

    def of(self, name: str) -> list[str]:
        return [event for consumer, _, event in self.seen if consumer == name]

    def send(self, name: str, number: signal.Signals) -> None:
        self.processes[name].send_signal(number)

    async def end(self) -> None:
        for process in self.processes.values():
            if process.returncode is None:
                os.kill(process.pid, signal.SIGKILL)
            await process.wait()
        await asyncio.gather(*self._readers)


@asynccontextmanager
async def consumers(server: EmbeddedServer, namespace: str) -> AsyncGenerator[tuple[sf.Client, Consumers]]:
    async with running_daemon(app, server, namespace, crash=False, shards=8):
        started = Consumers(server.url, namespace)
        async with sf.connect(server.url, namespace=namespace) as client:
            try:
                yield client, started
            finally:
                await started.end()


def all_were_delivered(histories: dict[str, list[str]], seen: list[tuple[str, str, str]]) -> bool:
    return {event for ids in histories.values() for event in ids} <= {event for _, _, event in seen}


def assert_order(histories: dict[str, list[str]], seen: list[tuple[str, str, str]]) -> None:
    """Each event came first when all before it in its run had come, and each consumer got those of a run in order."""
    firsts: dict[str, list[str]] = {run: [] for run in histories}
    for _, run, event in seen:
        if event not in firsts[run]:
            firsts[run].append(event)
    assert firsts == histories
    for name in {consumer for consumer, _, _ in seen}:
        for run, ids in histories.items():
            places = [ids.index(event) for consumer, of, event in seen if (consumer, of) == (name, run)]
            assert places == sorted(places), (name, run)


async def expected(client: sf.Client, group: str = "control") -> dict[str, list[str]]:
    """The ids of the events of each run, as a group of its own gets them."""
    found: dict[str, list[str]] = {}
    async with client.events(group, from_="oldest") as subscription:
        count = 0
        async for event in subscription:
            if event.run_id.startswith("run-"):
                found.setdefault(event.run_id, []).append(event.id)
                count += 1
            if count == RUNS * EVENTS:
                break
    await client.remove_group(group)
    return found


async def start(client: sf.Client) -> dict[str, list[str]]:
    await client.reset_group("billing", "now")  # it exists, so what follows is logged whole, with ids that stay
    await until(lambda: whole(client))
    for run in await client.start_many(chain, [(3,)] * RUNS, ids=[f"run-{n}" for n in range(RUNS)]):
        await run.result(timeout=DEADLINE)
    return await expected(client)


async def whole(client: sf.Client) -> bool:
    """Whether the daemon knows of the group."""
    run = await client.start(chain, 0)
    await run.result(timeout=DEADLINE)
    found = ""
    async with client.events("probe", from_="oldest") as subscription:
        async for event in subscription:
            if event.run_id == run.id:
                found = event.id.replace(f":{event.offset}:", "")
                break
    await client.remove_group("probe")
    return ":" in found


async def wait(condition: Callable[[], Any]) -> None:
    async def asked() -> bool:
        await asyncio.sleep(0.01)
        return bool(condition())

    await until(asked)


async def test_others_get_what_a_killed_consumer_had_not_acknowledged(
    embedded_server: EmbeddedServer, namespace: str
) -> None:
    async with consumers(embedded_server, namespace) as (client, started):
        async with client.events("billing"):
            pass
        histories = await start(client)
        await client.reset_group("billing", "oldest")
        doomed = await started.begin(1.0, 3600.0)  # it never acknowledges
        await wait(lambda: started.of(doomed))
        started.send(doomed, signal.SIGKILL)
        await started.processes[doomed].wait()
        other = await started.begin(1.0, 0.0)
        await wait(lambda: all_were_delivered(histories, started.seen))
        had = set(started.of(doomed))
        assert had, "it was killed between delivery and acknowledgement"
        assert had <= set(started.of(other))
        of_runs = [row for row in started.seen if row[1] in histories]
        assert_order(histories, of_runs)


async def test_consumers_killed_in_the_middle_of_a_rebalance_lose_nothing(
    embedded_server: EmbeddedServer, namespace: str
) -> None:
    async with consumers(embedded_server, namespace) as (client, started):
        async with client.events("billing"):
            pass
        histories = await start(client)
        await client.reset_group("billing", "oldest")
        first = await started.begin(1.0, 0.1)
        await wait(lambda: len(started.of(first)) > 5)
        second = await started.begin(1.0, 0.1)  # which takes shards from it...
        await wait(lambda: started.of(second))
        started.send(first, signal.SIGKILL)
        third = await started.begin(1.0, 0.0)
        started.send(second, signal.SIGKILL)  # ...and gets others, or not any more
        await wait(lambda: all_were_delivered(histories, started.seen))
        assert started.of(third)
        assert_order(histories, [row for row in started.seen if row[1] in histories])


async def test_a_consumer_that_was_stopped_acknowledges_nothing_any_more(
    embedded_server: EmbeddedServer, namespace: str
) -> None:
    async with consumers(embedded_server, namespace) as (client, started):
        async with client.events("billing"):
            pass
        histories = await start(client)
        await client.reset_group("billing", "oldest")
        zombie = await started.begin(0.6, 0.05)
        await wait(lambda: len(started.of(zombie)) > 3)
        started.send(zombie, signal.SIGSTOP)
        before = len(started.of(zombie))
        other = await started.begin(0.6, 0.0)
        await wait(lambda: all_were_delivered(histories, started.seen))

        async def acknowledged() -> bool:
            return (await client.group("billing")).waiting == 0

        await until(acknowledged)
        positions = {shard.shard: shard.offset for shard in (await client.group("billing")).shards}
        started.send(zombie, signal.SIGCONT)

        async def is_back() -> bool:
            group = await client.group("billing")
            return {shard.consumer for shard in group.shards} == {zombie, other}

        await until(is_back)
        assert {shard.shard: shard.offset for shard in (await client.group("billing")).shards} == positions
        entries = {event.split(":")[1] for event in started.of(zombie)[before - 1 :]}
        assert len(entries) == 1, "it had one log entry in hand, and got no other that was acknowledged"
        assert_order(histories, [row for row in started.seen if row[1] in histories])
