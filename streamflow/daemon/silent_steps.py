"""The steps that may hang, for the view `attention`: as the heartbeats of the daemons and workers that run them say.

Owns: how often the leading daemon looks, and which heartbeats count. Must not: decide when a step is silent
(`steps/silence.py` does, where it runs). Called by: the rollup.

    each look   heartbeats of daemons, of workers, the server's clock    (three reads)
"""

from __future__ import annotations

from streamflow.daemon.context import Context
from streamflow.daemon.looks import Looks
from streamflow.model.reports import StepBeat
from streamflow.store.connection import Call
from streamflow.store.queues import clock_of
from streamflow.store.workers import live_workers
from streamflow.views.attention import Silent
from streamflow.wire import decode_heartbeat

LOOK_EVERY = 10.0
"""Seconds between two looks."""
MAX_NAMED = 50
"""Those that have been silent longest."""


class SilentSteps:
    def __init__(self, context: Context) -> None:
        self._store = context.store
        self._keys = context.kernel.keys
        self._settings = context.settings
        self._looks = Looks("steps that are silent are", LOOK_EVERY, context.settings.rollup)
        self.found: list[Silent] = []
        """As of the last look."""

    def forget(self) -> None:
        """Another daemon leads: if this one leads again, it looks at once."""
        self._looks.forget()
        self.found = []

    async def look(self) -> bool:
        """Look, if it is time to; returns whether anything has changed. Raises `StoreUnavailable`."""
        found = await self._looks.take(self._read)
        if found is None:
            return False
        changed = [one[:3] for one in found] != [one[:3] for one in self.found]
        self.found = found
        return changed

    async def _read(self) -> list[Silent]:
        keys = self._keys
        members = await self._store.one(Call.plain("HGETALL", keys.members))
        workers = await self._store.one(Call.plain("HGETALL", keys.workers))
        clock = clock_of(await self._store.one(Call.plain("TIME", near=keys.workers)))
        found: list[Silent] = []
        alive = 1000 * max(self._settings.dead_after, 2 * self._settings.beat)
        for raw in members.values():
            one = decode_heartbeat(raw)
            if abs(clock + one.ahead - one.clock) <= alive:
                found += [_silent(beat, f"daemon {one.name}", one.clock) for beat in one.silent]
        for worker in live_workers(workers, clock):
            found += [_silent(beat, f"worker {worker.name}", worker.sent) for beat in worker.beats if beat.silent]
        return sorted(found, key=lambda step: (step.since, step.run_id))[:MAX_NAMED]


def _silent(beat: StepBeat, holder: str, sent: int) -> Silent:
    return Silent(beat.name, beat.run_id, beat.attempt, sent - round(1000 * beat.age), holder)
