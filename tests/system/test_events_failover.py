"""Groups and views of apps while a server restarts, or another one is promoted that lacks the newest writes."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import streamflow as sf
from bench.faults import Backup
from streamflow.embedded.server import EmbeddedServer
from tests.support.lines import line_to, port_of
from tests.support.serving import running_daemon
from tests.support.waiting import DEADLINE, until
from tests.system.test_failover import replicated, tell

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]

NAMESPACE = "failing"
SLOW_BEAT: dict[str, Any] = {"beat": 1.0, "dead_after": 6.0, "shards": 4}
"""So that daemons keep what they have committed until the server has lost it."""

app = sf.App()
app.view(sf.total("cents"), name="paid")


@app.step
async def add(number: int) -> int:
    return number + 1


@app.workflow
async def paying(cents: int) -> int:
    sf.record("cents", await add(cents))
    return cents


@app.workflow
async def nothing() -> None: ...


Histories = dict[str, list[sf.CommittedEvent]]


@asynccontextmanager
async def reading(client: sf.Client) -> AsyncGenerator[tuple[Histories, asyncio.Task[None]]]:
    """What a consumer of a group has got of each run, while it reads."""
    found: Histories = defaultdict(list)
    async with client.events("billing", dead_after=2.0) as subscription:

        async def read() -> None:
            async for event in subscription:
                found[event.run_id].append(event)

        task = asyncio.create_task(read())

        async def daemons_know() -> bool:
            """Events that were logged before they know of the group have other ids when they are logged again."""
            run = await client.start(nothing)
            await run.result()

            async def is_delivered() -> bool:
                return run.id in found

            await until(is_delivered)
            first = found[run.id][0]
            return first.offset not in first.id

        try:
            await until(daemons_know)
            yield found, task
        finally:
            task.cancel()
            await asyncio.wait([task])


async def check_all_was_delivered(client: sf.Client, found: Histories, ids: list[str]) -> None:
    """Each event of each run at least once, and the first deliveries in the order of the run."""

    async def has_all() -> bool:
        return all(any(event.kind == "RunCompleted" for event in found[run_id]) for run_id in ids)

    await until(has_all)
    for run_id in ids:
        assert await client.run(run_id).result(DEADLINE) == 1
        committed = [event async for _, event in client.run(run_id).events()]
        first = list({event.id: event for event in found[run_id]}.values())
        assert [event.event for event in first] == committed, run_id

    async def all_is_acknowledged() -> bool:
        return (await client.group("billing")).waiting == 0

    await until(all_is_acknowledged)


async def check_each_is_counted_once(client: sf.Client, runs: int, total: int) -> None:
    async def has_counted() -> bool:
        return "paid" in await client.views() and (await client.view("paid")).events >= runs

    await until(has_counted)
    view = await client.view("paid")
    assert (view.events, view.sum()) == (runs, total)
    assert view.missed is None


async def pay(client: sf.Client, prefix: str, count: int) -> list[str]:
    runs = [await client.start(paying, 1, id=f"{prefix}-{number}") for number in range(count)]
    for run in runs:
        assert await run.result(DEADLINE) == 1
    return [run.id for run in runs]


@asynccontextmanager
async def paying_all_the_time(client: sf.Client, ids: list[str]) -> AsyncGenerator[Callable[[int], Awaitable[None]]]:
    """Adds runs to `ids` as they end, until the block is left; gives what waits until there are so many more."""
    over = False

    async def go_on() -> None:
        while not over:
            ids.extend(await pay(client, f"run-{len(ids)}", 5))

    async def more(count: int) -> None:
        wanted = len(ids) + count

        async def there_are() -> bool:
            return len(ids) >= wanted or task.done()

        await until(there_are)

    task = asyncio.create_task(go_on())
    try:
        yield more
    finally:
        over = True
        await task


async def test_a_server_that_restarts_under_a_group_and_a_view(tmp_path: Path) -> None:
    async with (
        EmbeddedServer(tmp_path / "data", appendfsync="always") as server,
        running_daemon(app, server, NAMESPACE, crash=False, **SLOW_BEAT),
        sf.connect(server.url, namespace=NAMESPACE) as client,
        reading(client) as (found, task),
    ):
        ids: list[str] = []
        async with paying_all_the_time(client, ids) as more:
            for _ in range(3):
                await more(10)
                await server.kill()
                await asyncio.sleep(0.1)
                await server.start()
            await more(10)
        await check_all_was_delivered(client, found, ids)
        await check_each_is_counted_once(client, len(ids), 2 * len(ids))
        assert not task.done()


async def test_a_server_that_has_lost_its_newest_writes(tmp_path: Path) -> None:
    async with (
        EmbeddedServer(tmp_path / "data", appendfsync="everysec") as server,
        running_daemon(app, server, NAMESPACE, crash=False, **SLOW_BEAT),
        sf.connect(server.url, namespace=NAMESPACE) as client,
        reading(client) as (found, task),
    ):
        ids = await pay(client, "before", 20)
        backup = Backup(server)
        ids += await pay(client, "lost", 20)
        await check_all_was_delivered(client, found, ids)
        await check_each_is_counted_once(client, len(ids), 2 * len(ids))
        assert await backup.restore() > 0, "something was lost"
        ids += await pay(client, "after", 20)
        await check_all_was_delivered(client, found, ids)
        await check_each_is_counted_once(client, len(ids), 2 * len(ids))
        assert not task.done()


async def test_who_has_nothing_to_acknowledge_reads_again_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Entries that another server logs may have ids before those that were read: its clock may be behind."""
    async with (
        EmbeddedServer(tmp_path / "data", appendfsync="always") as server,
        running_daemon(app, server, NAMESPACE, crash=False, **SLOW_BEAT),
        sf.connect(server.url, namespace=NAMESPACE) as client,
        reading(client) as (found, _),
    ):
        await check_all_was_delivered(client, found, await pay(client, "before", 5))
        await server.kill()
        await server.start()

        async def is_said() -> bool:
            return "has another history, so its events are read again" in caplog.text

        await until(is_said)


async def test_a_replica_that_lacks_the_newest_writes_is_promoted() -> None:
    quick = ("--repl-diskless-sync-delay", "0")
    async with (
        EmbeddedServer(memory=True, extra=quick) as former,
        EmbeddedServer(memory=True, extra=quick) as new,
        line_to(former.url) as line,
        sf.connect(line.url, namespace=NAMESPACE) as client,
        running_daemon(app, line, NAMESPACE, crash=False, **SLOW_BEAT),  # type: ignore[arg-type]
        reading(client) as (found, task),
    ):
        ids = await pay(client, "before", 10)
        await tell(new.url, "REPLICAOF", "127.0.0.1", port_of(former.url))
        await replicated(former.url)

        async def has_all() -> bool:
            return await tell(new.url, "DBSIZE") == await tell(former.url, "DBSIZE")

        await until(has_all)
        await tell(new.url, "REPLICAOF", "NO", "ONE")
        ids += await pay(client, "lost", 20)
        await check_all_was_delivered(client, found, ids)
        delivered = sum(len(events) for events in found.values())
        line.target = port_of(new.url)
        await tell(former.url, "REPLICAOF", "127.0.0.1", port_of(new.url))
        ids += await pay(client, "after", 10)
        await check_all_was_delivered(client, found, ids)
        await check_each_is_counted_once(client, len(ids), 2 * len(ids))
        assert sum(len(events) for events in found.values()) > delivered + 10 * 5, "what was lost came again"
        assert not task.done()
