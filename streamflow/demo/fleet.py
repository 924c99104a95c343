"""The daemons and workers of the demos: processes on one namespace.

Owns: starting them, which of them has which shards, that one that ends by itself is noticed, and that none is left.
Must not: know what they run. Called by: the demos.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import Any

import anyio

from streamflow.client.client import Client
from streamflow.embedded.daemon_process import DaemonProcess
from streamflow.errors import NamespaceMissing, StreamflowError
from streamflow.store.connection import Call

READY_SECONDS = 30.0
POLL_SECONDS = 0.02


class Fleet:
    """`settings`: of all daemons and workers; their logs are in `folder`."""

    def __init__(self, url: str, namespace: str, folder: Path, settings: Mapping[str, object]) -> None:
        self.daemons: list[DaemonProcess] = []
        self.workers: list[DaemonProcess] = []
        self._url = url
        self._namespace = namespace
        self._folder = folder
        self._settings = settings
        self._started = 0

    def start(self, app: str, count: int) -> None:
        """`app`: as for `--app`."""
        self.daemons += [self._start("daemon", app, ("daemon",)) for _ in range(count)]

    def start_worker(self, app: str, queue: str) -> None:
        self.workers.append(self._start("worker", app, ("worker", "--queue", queue)))

    def _start(self, kind: str, app: str, arguments: tuple[str, ...]) -> DaemonProcess:
        self._started += 1
        log = self._folder / f"{kind}-{self._started}.log"
        return DaemonProcess(app, self._url, self._namespace, log, self._settings, arguments)

    @property
    def alive(self) -> list[DaemonProcess]:
        return [daemon for daemon in self.daemons if daemon.running]

    def of(self, holder: str) -> DaemonProcess | None:
        """The running daemon that is this member."""
        return next((daemon for daemon in self.alive if daemon.is_member(holder)), None)

    def check(self) -> None:
        if not self.alive:
            raise StreamflowError(
                f"all daemons of the demo have ended; log of the last one:\n{self.daemons[-1].log_tail()}"
            )

    async def balanced(self, client: Client) -> int:
        """Wait until each daemon owns shards, and each shard has an owner. Returns the number of shards."""
        with anyio.move_on_after(READY_SECONDS):
            while True:
                for daemon in self.daemons:
                    if not daemon.running:
                        raise StreamflowError(f"a daemon of the demo ended right after its start:\n{daemon.log_tail()}")
                with contextlib.suppress(NamespaceMissing):
                    owners = [self.of(holder) for holder in await holders(client)]
                    if all(any(owner is daemon for owner in owners) for daemon in self.daemons) and all(owners):
                        return len(owners)
                await anyio.sleep(POLL_SECONDS)
        logs = "\n".join(daemon.log_tail() for daemon in self.daemons)
        raise StreamflowError(f"the daemons didn't share the shards within {READY_SECONDS:g} s; their logs:\n{logs}")

    async def wait_for(self, result: asyncio.Task[Any], condition: Callable[[], bool] | None = None) -> None:
        """Wait for the result or the condition, whichever comes first. Raises when all daemons have ended."""
        while not result.done() and not (condition and condition()):
            self.check()
            await asyncio.wait({result}, timeout=POLL_SECONDS)

    async def retire(self, daemons: list[DaemonProcess]) -> None:
        """Drain these daemons, one after the other: the others get their shards."""
        for daemon in daemons:
            self.daemons.remove(daemon)
            await daemon.end()

    async def kill(self) -> None:
        """End all. The server is stopped as well, so there is nothing to hand over."""
        for process in (*self.daemons, *self.workers):
            await process.end(kill=True)


@contextlib.asynccontextmanager
async def fleet_of(url: str, namespace: str, folder: Path, settings: Mapping[str, object]) -> AsyncGenerator[Fleet]:
    """An empty one, of which nothing is left at the end."""
    fleet = Fleet(url, namespace, folder, settings)
    try:
        yield fleet
    finally:
        await fleet.kill()


async def holders(client: Client) -> list[str]:
    """The member that holds each shard, in order; empty for none. Raises `NamespaceMissing`."""
    namespace = await client.read_namespace()
    calls = [Call.plain("HGET", client.keys.shard(n).owner, "holder") for n in range(namespace.shards)]
    return [answer.decode() if isinstance(answer, bytes) else "" for answer in await client.store.send(calls)]
