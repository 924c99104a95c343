"""Heartbeats for a daemon whose event loop is blocked: blocked is not dead.

Owns: a thread with an event loop and a connection of its own. Must not: beat while the daemon's loop does, or for a
daemon that stays blocked. Called by: the daemon (starts and stops it).

A step or workflow that blocks the loop for some seconds would otherwise make the others take the daemon's shards, run
its steps a second time, and perhaps be blocked by the same code.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time

from streamflow.daemon.membership import Membership
from streamflow.errors import StoreError
from streamflow.settings import Settings
from streamflow.store.connection import Store

_log = logging.getLogger("streamflow.pulse")

LONGEST = 60.0
"""Seconds for which a blocked loop is spoken for: then the other daemons take over."""


class Pulse:
    def __init__(self, membership: Membership, settings: Settings) -> None:
        self._membership = membership
        self._settings = settings
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        self._spoken_for = False

    def start(self) -> None:
        threading.Thread(target=self._run, name="streamflow-pulse", daemon=True).start()

    def stop(self) -> None:
        """No heartbeat is sent from now on but one that is under way."""
        self._stopped = True
        loop, task = self._loop, self._task
        if loop is not None and task is not None and not loop.is_closed():
            loop.call_soon_threadsafe(task.cancel)

    def _run(self) -> None:
        try:
            asyncio.run(self._beat_when_late())
        except asyncio.CancelledError:
            pass
        except Exception:
            _log.exception("the heartbeat thread ended: a blocked event loop looks dead from now on")

    async def _beat_when_late(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        settings = self._settings
        store = Store(settings.redis, connections=1, patience=settings.dead_after / 2)
        try:
            late = 0.0
            while not self._stopped:
                # Longer than a heartbeat that waits for the server: `Membership` gives up on it at half of dead_after.
                limit = max(1.5 * settings.beat, 0.55 * settings.dead_after)
                await asyncio.sleep(max(limit - late, settings.beat / 2))
                late = time.monotonic() - self._membership.turned
                if late < limit:
                    self._spoken_for = False
                elif late < LONGEST:
                    await self._beat(store, late)
                elif self._spoken_for:
                    self._spoken_for = False
                    _log.error(
                        "the event loop has been blocked for %.0f s: no more heartbeats are sent for it; other daemons "
                        "take over after dead_after",
                        late,
                    )
        finally:
            await store.close()

    async def _beat(self, store: Store, late: float) -> None:
        if not self._spoken_for:
            self._spoken_for = True
            _log.warning("the event loop has been blocked for %.1f s: its heartbeats are sent from a thread", late)
        try:
            await self._membership.heartbeat_for_blocked_loop(store)
        except StoreError as error:
            _log.warning("heartbeat from the thread failed, will retry: %s", error)
