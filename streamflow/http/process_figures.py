"""The metrics that every daemon and worker has about itself.

Owns: which these are. Must not: change anything: it is called in the thread of the HTTP server. Called by: daemon and
worker.
"""

from __future__ import annotations

from streamflow.archive.storage import hung_threads
from streamflow.http import catalog
from streamflow.http.figures import Figures
from streamflow.http.loop_lag import LoopLag
from streamflow.loops import Supervisor
from streamflow.steps.executor import StepExecutor


def add_process_figures(figures: Figures, executor: StepExecutor, loops: Supervisor, lag: LoopLag) -> None:
    lag.add_figures(figures)
    figures.set(catalog.LOOP_FAILURES, loops.errors)
    figures.set(catalog.STEPS_STARTED, executor.started)
    figures.set(catalog.STEPS_RUNNING, executor.running)
    figures.set(catalog.STEPS_WAITING, executor.waiting)
    if executor.chunks is not None:
        figures.set(catalog.CHUNKS, executor.chunks.stored)
        figures.set(catalog.CHUNKS_MISSED, executor.chunks.missed)
    figures.set(catalog.THREADS_HUNG, executor.hung + hung_threads())
