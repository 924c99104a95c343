"""What a sink answers at /health, /ready and /metrics.

Owns: which facts these are. Must not: change anything, ask the server or the target, run code of users: all of it is
called in the thread of the HTTP server, beside the event loop. Called by: the command `sink` (makes it),
`http/pages.py`.
"""

from __future__ import annotations

import time

from streamflow.health import Health
from streamflow.http import catalog
from streamflow.http.figures import Figures, Names
from streamflow.http.loop_lag import LoopLag
from streamflow.http.pages import Part
from streamflow.sinks.health import health_of, warnings_of
from streamflow.sinks.runner import SinkRunner

DEAD_LETTERS = "dead_letters"
"""By this name a sink counts the events that its receiver has refused to the end."""


class SinkMetrics:
    def __init__(self, runner: SinkRunner, namespace: str, lag: LoopLag) -> None:
        self._runner = runner
        self._namespace = namespace
        self._lag = lag
        self._names = Names(())

    @property
    def part(self) -> Part:
        return Part(self.health, self.unready, self.add_figures, self.close)

    def health(self) -> Health:
        return health_of(self._runner, self._namespace)

    def unready(self) -> list[str]:
        """Why this sink doesn't write events."""
        runner = self._runner
        if runner.is_stopping:
            return ["it is draining"]
        if not runner.is_serving:
            return ["it does not take events yet", *warnings_of(runner)]
        return warnings_of(runner)

    async def add_figures(self, figures: Figures) -> None:
        runner = self._runner
        counted = runner.figures
        labels = counted.sink, counted.group
        self._lag.add_figures(figures)
        figures.set(catalog.DRAINING, runner.is_stopping)
        figures.set(catalog.SINK_EVENTS, counted.events, *labels)
        figures.set(catalog.SINK_BATCHES, counted.batches, *labels)
        figures.set(catalog.SINK_RETRIES, runner.failures, *labels)
        figures.set(catalog.SINK_TARGET_DOWN, bool(warnings_of(runner)), *labels)
        figures.set(catalog.SINK_WRITING, runner.writing_seconds, *labels)
        if runner.written_at:
            figures.set(catalog.SINK_WRITE_AGE, time.monotonic() - runner.written_at, *labels)
        for name, value in counted.own.items():
            if name == DEAD_LETTERS:
                figures.set(catalog.SINK_DEAD_LETTERS, value, *labels)
            else:
                figures.set(catalog.SINK_OTHERS, value, *labels, self._names.label(name))

    async def close(self) -> None:
        """It has nothing to close."""
