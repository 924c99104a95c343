"""What a thread does for a daemon whose event loop is blocked: heartbeats, and in the end handing everything over.

Owns: when a heartbeat is due in the loop's place, and the record of the culprit. Must not: beat while the daemon's loop
does, or for a daemon that stays blocked. Called by: the watch, in its thread.

A step or workflow that blocks the loop for some seconds would otherwise make the others take the daemon's shards, run
its steps a second time, and perhaps be blocked by the same code.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from streamflow.daemon.context import Context
from streamflow.daemon.membership import Membership
from streamflow.errors import StoreError
from streamflow.store.connection import Call, Store
from streamflow.store.from_thread import ThreadStore
from streamflow.watch.last_note import last_note
from streamflow.watch.watch import LONGEST, RUN_GIVES_WAY, STEP_GIVES_WAY, Culprit

_log = logging.getLogger("streamflow.watch")


class StandIn:
    def __init__(self, context: Context, membership: Membership) -> None:
        settings = context.settings
        self._context = context
        self._membership = membership
        self._store = ThreadStore(settings.redis)
        self._patience = settings.dead_after / 4
        self._beat = settings.beat
        # Longer than a heartbeat that waits for the server: `Membership` gives up on it at half of dead_after.
        self._limit = max(1.5 * settings.beat, 0.55 * settings.dead_after)
        self._longest = max(LONGEST, settings.interrupt + RUN_GIVES_WAY, settings.interrupt_steps + STEP_GIVES_WAY)
        """Seconds for which a blocked loop is spoken for: then the other daemons take over."""
        self._beaten = 0.0
        self._spoken_for = False
        self._silent = False

    def on_late(self, _: float) -> None:
        """Repeat the daemon's last heartbeat when the next one is overdue."""
        now = time.monotonic()
        late = now - self._membership.turned
        if late < self._limit or now - self._beaten < self._beat:
            return
        if late >= self._longest:
            if not self._silent:
                self._silent = True
                _log.error(
                    "the event loop has been blocked for %.0f s: no more heartbeats are sent for it; other daemons "
                    "take over after dead_after",
                    late,
                )
            return
        self._beaten = now
        if not self._spoken_for:
            self._spoken_for = True
            _log.warning("the event loop has been blocked for %.1f s: its heartbeats are sent from a thread", late)
        try:
            self._store.call(self._membership.heartbeat_for_blocked_loop, self._patience)
        except StoreError as error:
            _log.warning("heartbeat from the thread failed, will retry: %s", error)

    def on_answer(self) -> None:
        """The loop turns again, and sends its heartbeats itself."""
        self._spoken_for = self._silent = False
        self._store.close()

    def give_up(self, culprit: Culprit) -> None:
        """Record who has done it, and deregister, so that others need not wait for `dead_after`."""
        self._membership.on_leave()
        self._store.call(lambda store: self._hand_over(store, culprit), max(1.0, self._context.settings.dead_after))

    async def _hand_over(self, store: Store, culprit: Culprit) -> None:
        kernel, member = self._context.kernel, self._context.member
        calls: list[Call[Any]] = [kernel.heartbeat(member, b"")]
        if culprit.run_id:
            shard = self._context.namespace.shard_of(culprit.run_id)
            calls.insert(0, last_note(kernel, member, shard, culprit))
        for answer in await store.send(calls):
            if isinstance(answer, StoreError):
                raise answer
