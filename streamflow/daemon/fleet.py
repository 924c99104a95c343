"""What the leading daemon reads of queues and workers, for what the view `attention` says of both.

Owns: how often it looks, and what that costs. Must not: judge what it reads (`dead_queues.py` and `silent_steps.py`
do). Called by: the rollup.

    each look   names of queues, heartbeats of workers, the server's clock    (one pipeline)
"""

from __future__ import annotations

import logging

import msgspec

from streamflow.daemon.context import Context
from streamflow.daemon.looks import Looks
from streamflow.errors import StoreError
from streamflow.store.connection import Call
from streamflow.store.queues import clock_of
from streamflow.store.workers import WorkerHeartbeat, live_workers

_log = logging.getLogger("streamflow.rollup")

LOOK_EVERY = 10.0
"""Seconds between two looks."""


class Fleet(msgspec.Struct, frozen=True):
    """`queues`: names; None if their key is damaged. `workers`: those that live. `clock`: the server's, ms."""

    queues: list[str] | None
    workers: list[WorkerHeartbeat]
    clock: int


class FleetLooks:
    def __init__(self, context: Context) -> None:
        self._store = context.store
        self._keys = context.kernel.keys
        self._looks = Looks("which workers live is", LOOK_EVERY, context.settings.rollup)

    def forget(self) -> None:
        """Another daemon leads: if this one leads again, it looks at once."""
        self._looks.forget()

    async def look(self) -> Fleet | None:
        """What is there, if it is time to look. Raises `StoreUnavailable`."""
        return await self._looks.take(self._read)

    async def _read(self) -> Fleet:
        keys = self._keys
        calls = [
            Call.plain("HKEYS", keys.queues),
            Call.plain("HGETALL", keys.workers),
            Call.plain("TIME", near=keys.workers),
        ]
        queues, workers, time = await self._store.send(calls)
        for answer in (workers, time):
            if isinstance(answer, StoreError):
                raise answer
        names: list[str] | None = None
        if isinstance(queues, StoreError):
            _log.warning("queues without workers are unknown, will look again: %s", queues)
        else:
            names = [name.decode(errors="replace") for name in queues]
        clock = clock_of(time)
        return Fleet(names, live_workers(workers, clock), clock)
