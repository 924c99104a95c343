"""What a daemon answers at /health, /ready and /metrics.

Owns: which facts these are. Must not: change anything: all of it is called in the thread of the HTTP server, beside the
event loop. Called by: the daemon (makes it), `http/pages.py`.

Facts that the loop changes are read as it has assigned them whole: numbers, and the heartbeat that it sends anyway.
"""

from __future__ import annotations

from streamflow.daemon.context import Context
from streamflow.daemon.figures import DaemonFigures
from streamflow.daemon.membership import Membership
from streamflow.daemon.namespace_figures import NamespaceFigures
from streamflow.daemon.owner import Owner
from streamflow.daemon.rollup import Rollup
from streamflow.http import catalog
from streamflow.http.figures import Figures
from streamflow.http.loop_lag import LoopLag
from streamflow.http.process_figures import add_process_figures
from streamflow.loops import Supervisor
from streamflow.settings import Settings
from streamflow.steps.executor import StepExecutor
from streamflow.text import plural

LACKING_AFTER = 1.0
"""Seconds for which a server may confirm nothing until it is named."""


class DaemonMetrics:
    def __init__(
        self,
        context: Context,
        owner: Owner,
        membership: Membership,
        executor: StepExecutor,
        loops: Supervisor,
        counted: DaemonFigures,
        lag: LoopLag,
        rollup: Rollup,
    ) -> None:
        self._settings: Settings = context.settings
        self._store = context.store
        self._troubles = context.troubles
        self._owner = owner
        self._membership = membership
        self._executor = executor
        self._loops = loops
        self._counted = counted
        self._lag = lag
        self._namespace = NamespaceFigures(
            context.settings.redis,
            context.kernel.keys,
            context.namespace.shards,
            context.app,
            context.clock,
            lambda: rollup.leading,
        )

    def unready(self) -> list[str]:
        """Why this daemon doesn't own its share of the shards."""
        membership = self._membership
        if membership.draining:
            return ["it is draining"]
        missing = membership.missing
        if missing is None:
            return ["it has not sent its first heartbeat yet"]
        if membership.unconfirmed > self._settings.dead_after:
            return [f"the server has confirmed no heartbeat for {membership.unconfirmed:.1f} s"]
        if missing:
            reasons = [
                f"it does not own {len(missing)} of the {plural(membership.desired, 'shard')} that it should own"
            ]
            return reasons + [f"{subject} {text}" for subject, text in self._troubles.current(stops=True).items()]
        return []

    async def add_figures(self, figures: Figures) -> None:
        membership, owner, counted = self._membership, self._owner, self._counted
        add_process_figures(figures, self._executor, self._loops, self._lag)
        figures.set(catalog.DRAINING, membership.draining)
        figures.set(catalog.HEARTBEAT_AGE, membership.unconfirmed)
        figures.set(catalog.SHARDS_WANTED, membership.desired)
        figures.set(catalog.SHARDS_STOPPED, len(self._troubles.current(stops=True)))
        figures.set(catalog.SHARDS_IMPAIRED, len(self._troubles.current(stops=False)))
        figures.set(catalog.SHARDS_LOST, owner.shards_lost)
        figures.set(catalog.RUNS_LOST, owner.lost_writes.total)
        figures.set(catalog.RUNS_HIBERNATED, owner.hibernated)
        figures.set(catalog.RUNS_WOKEN, owner.woken)
        for result, count in counted.commits.items():
            figures.set(catalog.COMMITS, count, result)
        figures.set_histogram(catalog.COMMIT_RUNS, counted.runs.counts, counted.runs.total)
        figures.set_histogram(catalog.COMMIT_DURATION, counted.round_trips.counts, counted.round_trips.total / 1e6)
        confirmation = self._store.confirmation  # another one when the namespace's durability has changed
        figures.set(catalog.UNCONFIRMED, 0.0 if confirmation is None else confirmation.overdue)
        for one in () if confirmation is None else confirmation.lacking(LACKING_AFTER):
            figures.set(catalog.CONFIRMATIONS_LACKING, one.missing, one.server)
        figures.set(catalog.OUTBOX_MESSAGES, counted.outbox)
        figures.set(catalog.OUTBOX_LAG, counted.outbox_lag)
        figures.set(catalog.VIEWS_LAG, counted.views_lag)
        own: list[int] = []
        if (last := membership.last) is not None:
            own = last.shards
            figures.set(catalog.SHARDS_OWNED, len(last.shards))
            figures.set(catalog.RUNS_LIVE, last.live)
            figures.set(catalog.RUNS_HIBERNATING, last.asleep)
            figures.set(catalog.STARTS_WAITING, last.starts)
            figures.set(catalog.VIEWS_ENTRIES, last.unfolded)
        await self._namespace.add_figures(figures, own)
        seen = figures.values.get(catalog.AGENDA_LAG, {}).get((), 0.0)
        figures.set(catalog.AGENDA_LAG, max(seen, counted.agenda_lag))

    async def close(self) -> None:
        await self._namespace.close()
