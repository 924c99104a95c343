"""A whole streamflow in this process: an embedded server and a daemon, for examples, scripts and tests.

Owns: the order of their start and end. Must not: be used in production, where daemons are processes of their own.
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
"""How long steps may go on after the block has ended."""


@contextlib.asynccontextmanager
async def local(
    app: App, *, directory: Path | None = None, shards: int = 16, **settings: Any
) -> AsyncGenerator[Client]:
    """Serve `app` for the length of the block; gives a client of it.

    Steps of queues run, too: a worker serves all queues that the app's steps name. Runs end with the block, unless
    `directory` keeps them for the next time. `settings` are those of a daemon (`concurrency`, `threads`, …). Needs the
    `embedded` extra, or a server on PATH: `UsageError` otherwise.

    >>> async with sf.local(app) as client:
    ...     run = await client.start(digest, ["https://example.org"])
    ...     print(await run.result())
    """
    # Here, because `import streamflow` is also what every client and every command begins with.
    from streamflow.daemon.daemon import Daemon
    from streamflow.embedded.server import EmbeddedServer
    from streamflow.worker.worker import Worker

    async with EmbeddedServer(directory) as server:
        offered: dict[str, Any] = {"redis": server.url, "shards": shards, "grace": GRACE_SECONDS, **settings}
        daemon = Daemon(app, Settings(**offered))
        # A task of its own, not a task group: an error in the block stays that error.
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
