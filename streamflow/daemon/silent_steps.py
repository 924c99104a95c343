"""The steps that may hang, for the view `attention`: as the heartbeats of the daemons and workers that run them say.

Owns: which heartbeats count. Must not: read anything (membership reads those of daemons, `fleet.py` those of workers),
or decide when a step is silent (`steps/silence.py` does, where it runs). Called by: the rollup, with each look at the
fleet.
"""

from __future__ import annotations

from collections.abc import Iterable

from streamflow.daemon.fleet import Fleet
from streamflow.model.reports import StepBeat
from streamflow.settings import Settings
from streamflow.views.attention import Silent
from streamflow.wire import Heartbeat

MAX_NAMED = 50
"""Those that have been silent longest."""


class SilentSteps:
    def __init__(self, settings: Settings) -> None:
        self._alive = 1000 * max(settings.dead_after, 2 * settings.beat)
        """Ms for which a daemon counts as alive after it has sent a heartbeat."""
        self.found: list[Silent] = []
        """As of the last look."""

    def forget(self) -> None:
        """Another daemon leads."""
        self.found = []

    def look(self, fleet: Fleet, daemons: Iterable[Heartbeat]) -> bool:
        """`daemons`: the newest heartbeat of each. Returns whether anything has changed."""
        found: list[Silent] = []
        for one in daemons:
            if one.silent and abs(fleet.clock + one.ahead - one.clock) <= self._alive:
                found += [_silent(beat, f"daemon {one.name}", one.clock) for beat in one.silent]
        for worker in fleet.workers:
            found += [_silent(beat, f"worker {worker.name}", worker.sent) for beat in worker.beats if beat.silent]
        found = sorted(found, key=lambda step: (step.since, step.run_id))[:MAX_NAMED]
        changed = [one[:3] for one in found] != [one[:3] for one in self.found]
        self.found = found
        return changed


def _silent(beat: StepBeat, holder: str, sent: int) -> Silent:
    return Silent(beat.name, beat.run_id, beat.attempt, sent - round(1000 * beat.age), holder)
