"""A failover to a replica that keeps all connections to the former primary open, as operators and load balancers do."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from redis.asyncio import Redis

import streamflow as sf
from streamflow.daemon.daemon import Daemon
from streamflow.embedded.server import EmbeddedServer
from streamflow.events import StepCompleted
from streamflow.settings import Settings
from streamflow.worker.worker import Worker
from tests.support.lines import line_to, port_of
from tests.support.serving import FAST
from tests.support.waiting import DEADLINE, happened, until

pytestmark = pytest.mark.anyio

app = sf.App()


@app.step(queue="gpu")
async def double(number: int) -> int:
    return 2 * number


@app.workflow
async def waits(number: int) -> int:
    return await double(number) + await sf.signal("more", int)


async def tell(url: str, *words: Any) -> Any:
    async with Redis.from_url(url) as redis:
        return await redis.execute_command(*words)


async def replicated(url: str) -> None:
    """Wait until a replica has all that was written up to now."""
    async with Redis.from_url(url, single_connection_client=True) as redis:
        await redis.set("mark", "x")
        assert await redis.wait(1, int(DEADLINE * 1000)) == 1


async def test_daemon_worker_and_clients_go_on_at_the_new_primary() -> None:
    quick = ("--repl-diskless-sync-delay", "0")
    async with (
        EmbeddedServer(memory=True, extra=quick) as former,
        EmbeddedServer(memory=True, extra=quick) as new,
        line_to(former.url) as line,
        sf.connect(line.url) as client,
        anyio.create_task_group() as tasks,
    ):
        chosen: dict[str, Any] = FAST | {"dead_after": 2.0}
        settings = Settings(redis=line.url, **chosen)
        daemon, worker = Daemon(app, settings), Worker(app, settings, ("gpu",))
        tasks.start_soon(daemon.run)
        tasks.start_soon(worker.run)
        with anyio.fail_after(DEADLINE):
            await daemon.ready.wait()
            await worker.ready.wait()
        await tell(new.url, "REPLICAOF", "127.0.0.1", port_of(former.url))
        run = await client.start(waits, 1, id="before")
        results: list[int] = []

        async def wait_for_result() -> None:
            results.append(await run.result(DEADLINE))

        tasks.start_soon(wait_for_result)
        await happened(run, StepCompleted)
        await replicated(former.url)

        line.target = port_of(new.url)
        await tell(new.url, "REPLICAOF", "NO", "ONE")
        await tell(former.url, "REPLICAOF", "127.0.0.1", port_of(new.url))
        with anyio.fail_after(DEADLINE):
            await run.signal("more", 10)
            other = await client.start(waits, 2, id="after")
            await other.signal("more", 20)
            assert await other.result() == 24
            while not results:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        assert results == [12]

        async def only_who_asks_is_connected() -> bool:
            connected: list[dict[str, str]] = await tell(former.url, "CLIENT LIST")
            return len([one for one in connected if one["flags"] != "M"]) == 1

        await until(only_who_asks_is_connected)
        daemon.stop()
        worker.stop()
