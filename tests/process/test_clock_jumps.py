"""A server whose wall clock is set an hour ahead or back, and set right again, while runs wait for their timers.

The server process gets its clock through a preloaded shim, which adds what a file says.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
import pytest

import streamflow as sf
from bench.faults import ShiftedClock
from streamflow.embedded.server import EmbeddedServer
from streamflow.settings import Settings
from streamflow.store.connection import Call
from streamflow.worker.worker import Worker
from tests.support.serving import running_daemon
from tests.support.waiting import until

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not ShiftedClock.is_possible(), reason="the shim that shifts the server's clock needs gcc"),
]

HOUR = 3600
NAP, LONG = 0.3, 2.5
SLACK = 20.0
"""Seconds that a busy machine may take: a timer that follows the clock is late by an hour, or ends at once."""
SHARDS = 16
SETTINGS = {"shards": SHARDS, "beat": 0.2, "dead_after": 1.0, "rollup": 1.0}
Shift = Callable[[int], None]

app = sf.App()


@app.workflow
async def nap(seconds: float) -> None:
    await sf.sleep(seconds)


begun: Counter[str] = Counter()


@app.step(queue="slow")
async def slow_nap(name: str, seconds: float) -> None:
    begun[name] += 1
    await asyncio.sleep(seconds)


@app.step(retry=sf.Retry(initial=0.1, jitter=0.0))
async def local_nap(name: str, seconds: float) -> None:
    begun[name] += 1
    await asyncio.sleep(seconds)


@app.workflow
async def naps_at_its_owner(name: str, seconds: float) -> None:
    await local_nap(name, seconds)


@app.workflow
async def naps_in_queue(name: str, seconds: float) -> None:
    await slow_nap(name, seconds)


@pytest.fixture
async def shifted_server(tmp_path: Path) -> AsyncIterator[tuple[EmbeddedServer, Shift]]:
    """A server, and a function that sets its clock: by so many seconds ahead."""
    clock = ShiftedClock(tmp_path)
    server = EmbeddedServer(memory=True)
    await clock.start(server)
    try:
        yield server, clock.shift
    finally:
        await server.stop()


async def timed(run: sf.Run[None]) -> float:
    await run.result(timeout=60)
    return time.monotonic()


async def check_naps(client: sf.Client, count: int = 6) -> None:
    """Runs that are started now end on time."""
    began = time.monotonic()
    runs = await client.start_many(nap, [(NAP,)] * count)
    for ended in await asyncio.gather(*(timed(run) for run in runs)):
        assert NAP <= ended - began < NAP + SLACK


async def is_ahead(client: sf.Client, seconds: int) -> bool:
    """The server's clock was set."""
    answer, _ = await client.store.one(Call.plain("TIME"))
    return abs(int(answer) - time.time() - seconds) < 5


async def scripts_called(client: sf.Client) -> int:
    answer = await client.store.one(Call.plain("INFO", "commandstats"))
    return int(answer["cmdstat_evalsha"]["calls"])


@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
async def test_a_jump_neither_runs_queued_steps_twice_nor_delays_lost_ones(
    shifted_server: tuple[EmbeddedServer, Shift], namespace: str, seconds: int
) -> None:
    """Claims are timed by the server's clock."""
    server, shift = shifted_server
    begun.clear()
    settings = Settings(redis=server.url, namespace=namespace, worker_timeout=1.0, dead_after=1.0, beat=0.2)
    connected = sf.connect(server.url, namespace=namespace)
    async with connected as client, running_daemon(app, server, namespace, crash=False, **SETTINGS):
        async with anyio.create_task_group() as workers:
            for _ in range(2):
                workers.start_soon(Worker(app, settings, ["slow"]).run)
            runs = await client.start_many(naps_in_queue, [(f"live {n}", 5.0) for n in range(4)])

            async def all_begun() -> bool:
                return len(begun) == 4

            await until(all_begun)
            await asyncio.sleep(1.0)
            shift(seconds)
            [await run.result(timeout=60) for run in runs]
            assert sorted(begun) == [f"live {n}" for n in range(4)]
            workers.cancel_scope.cancel()  # killed: neither reports nor returns anything
        run = await client.start(naps_in_queue, "dead", 2.0)
        async with anyio.create_task_group() as workers:
            workers.start_soon(Worker(app, settings, ["slow"]).run)

            async def has_begun() -> bool:
                return "dead" in begun

            await until(has_begun)
            workers.cancel_scope.cancel()
        async with anyio.create_task_group() as workers:
            successor = Worker(app, settings, ["slow"])
            workers.start_soon(successor.run)

            async def has_looked() -> bool:
                """For expired claims: from then on it notices that the clock is set."""
                return hasattr(successor, "claims") and successor.claims._server_clock is not None

            await until(has_looked)
            shift(0)
            await run.result(timeout=60)
            assert begun["dead"] == 2
            workers.cancel_scope.cancel()


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
async def test_the_first_look_of_a_new_worker_gets_through_a_jump(
    shifted_server: tuple[EmbeddedServer, Shift], namespace: str, jump: int
) -> None:
    """The clock is set while no worker is there: who comes next has never seen the former one."""
    server, shift = shifted_server
    begun.clear()
    settings = Settings(redis=server.url, namespace=namespace, worker_timeout=1.0, dead_after=1.0, beat=0.2)
    connected = sf.connect(server.url, namespace=namespace)
    async with connected as client, running_daemon(app, server, namespace, crash=False, **SETTINGS):
        run = await client.start(naps_in_queue, "dead", 3.0)
        async with anyio.create_task_group() as workers:
            workers.start_soon(Worker(app, settings, ["slow"]).run)
            noted = [
                Call.plain("HEXISTS", client.keys.queue("slow", number).details, "clock") for number in range(SHARDS)
            ]

            async def has_looked() -> bool:
                """For expired claims while there was one, which leaves the time on the server."""
                return "dead" in begun and any(await client.store.send(noted))

            await until(has_looked)
            workers.cancel_scope.cancel()  # killed: neither reports nor returns anything
        shift(jump)
        await until(lambda: is_ahead(client, jump))
        died = time.monotonic()
        async with anyio.create_task_group() as workers:
            workers.start_soon(Worker(app, settings, ["slow"]).run)
            await run.result(timeout=60)
            workers.cancel_scope.cancel()
        assert begun["dead"] == 2
        # Two time-outs, the pause of a retry and the nap; with the clock's own time it would be an hour.
        assert time.monotonic() - died < 20 + SLACK


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
async def test_the_first_look_of_a_new_owner_gets_through_a_jump(
    shifted_server: tuple[EmbeddedServer, Shift], namespace: str, jump: int
) -> None:
    """A daemon dies, the clock is set while none is there, and the next one takes over what it had in hand."""
    server, shift = shifted_server
    begun.clear()
    connected = sf.connect(server.url, namespace=namespace)
    async with connected as client:
        async with running_daemon(app, server, namespace, crash=True, **SETTINGS):
            began = time.monotonic()
            waits = await client.start(nap, LONG)
            interrupted = await client.start(naps_at_its_owner, "lost", 1.0)

            async def has_begun() -> bool:
                return "lost" in begun

            await until(has_begun)
        shift(jump)
        await until(lambda: is_ahead(client, jump))
        taken = time.monotonic()
        async with running_daemon(app, server, namespace, crash=False, **SETTINGS):
            ended = await timed(waits)
            assert LONG <= ended - began < LONG + 2 * SLACK
            await interrupted.result(timeout=60)
            assert begun["lost"] == 2
            assert time.monotonic() - taken < 10 + SLACK
            await check_naps(client)
            shift(0)
            await until(lambda: is_ahead(client, 0))
            await check_naps(client)


async def test_no_timer_follows_a_server_whose_clock_jumps_by_an_hour(
    shifted_server: tuple[EmbeddedServer, Shift], namespace: str
) -> None:
    server, shift = shifted_server
    connected = sf.connect(server.url, namespace=namespace)
    async with connected as client, running_daemon(app, server, namespace, crash=False, **SETTINGS):
        began = time.monotonic()
        long = asyncio.create_task(timed(await client.start(nap, LONG)))
        for seconds in (HOUR, 0, -HOUR, 0):
            shift(seconds)
            await until(lambda seconds=seconds: is_ahead(client, seconds))
            await check_naps(client)
        before = await scripts_called(client)
        ended = await long
        assert LONG <= ended - began < LONG + SLACK
        # Nothing but heartbeats and rollups, and what the end of the long nap takes.
        assert await scripts_called(client) - before < 100


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
async def test_a_daemon_that_starts_while_the_server_is_wrong_keeps_time(
    shifted_server: tuple[EmbeddedServer, Shift], namespace: str, jump: int
) -> None:
    server, shift = shifted_server
    async with sf.connect(server.url, namespace=namespace) as client:
        began = time.monotonic()
        async with running_daemon(app, server, namespace, crash=False, **SETTINGS):
            run = await client.start(nap, LONG)
            await check_naps(client, 1)
            shift(jump)
            await until(lambda: is_ahead(client, jump))
            async with running_daemon(app, server, namespace, crash=False, **SETTINGS) as second:
                await check_naps(client)
                assert second.owner.shards
        # Alone it has only the server, this host, and what the two have left.
        async with running_daemon(app, server, namespace, crash=False, **SETTINGS):
            assert LONG <= await timed(run) - began < LONG + SLACK
            shift(0)
            await check_naps(client)
