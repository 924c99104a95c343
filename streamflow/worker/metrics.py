"""What a worker answers at /health, /ready and /metrics.

Owns: which facts these are. Must not: change anything, ask the server: all of it is called in the thread of the HTTP
server, beside the event loop. Called by: the worker (makes it), `http/pages.py`.
"""

from __future__ import annotations

from streamflow.http import catalog
from streamflow.http.figures import Figures
from streamflow.http.loop_lag import LoopLag
from streamflow.http.process_figures import add_process_figures
from streamflow.loops import Supervisor
from streamflow.settings import Settings
from streamflow.steps.executor import StepExecutor
from streamflow.text import plural
from streamflow.worker.claims import Claims
from streamflow.worker.reader import QueueReader


class WorkerMetrics:
    def __init__(
        self,
        settings: Settings,
        claims: Claims,
        reader: QueueReader,
        executor: StepExecutor,
        loops: Supervisor,
        lag: LoopLag,
    ) -> None:
        self._timeout = settings.worker_timeout
        self._claims = claims
        self._reader = reader
        self._executor = executor
        self._loops = loops
        self._lag = lag

    def unready(self) -> list[str]:
        """Why this worker doesn't read its queues."""
        if self._executor.draining:
            return ["it is draining"]
        reasons: list[str] = []
        if not self._reader.reads:
            reasons.append("it does not read its queues")
        if broken := self._reader.broken:
            name, reason = next(iter(broken.items()))
            of = plural(len(self._claims.partitions), "partition")
            reasons.append(f"the server refuses {len(broken)} of the {of} of its queues, such as {name}: {reason}")
        if self._claims.unanswered > 1.5 * self._timeout:
            reasons.append(f"the server has answered nothing for {self._claims.unanswered:.0f} s")
        return reasons

    async def add_figures(self, figures: Figures) -> None:
        add_process_figures(figures, self._executor, self._loops, self._lag)
        claims = self._claims
        figures.set(catalog.DRAINING, self._executor.draining)
        figures.set(catalog.HEARTBEAT_AGE, claims.unanswered)
        figures.set(catalog.PARTITIONS_REFUSED, len(self._reader.broken))
        figures.set(catalog.CLAIMS, claims.running)
        figures.set(catalog.OUTCOMES_UNREPORTED, claims.unreported)
        figures.set(catalog.CLAIMS_EXPIRED, claims.expired)

    async def close(self) -> None:
        """It has nothing to close."""
