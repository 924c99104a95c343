"""Reports on the health of a daemon or worker, for `streamflow health` and /health: its loops, its threads.

Owns: what counts as a problem at both, which of them the absence of the server explains, and when a report is written.
Must not: know ownership or claims (daemon and worker add what they know). Called by: the watch, in its thread; the HTTP
server, in its own.

While the server is away, loops fail or wait because of it, in all processes: restarting them would help nobody, and
would lose what they have in memory. So that is kept apart from what is wrong with the process itself.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Literal

from streamflow.archive.storage import hung_threads
from streamflow.health import STALE, Health, HealthFile
from streamflow.loops import HEARTBEATS, Supervisor
from streamflow.steps.executor import StepExecutor

_log = logging.getLogger("streamflow.watch")


def _none() -> list[str]:
    return []


class HealthReport:
    """`outside` and `warnings` add what only a daemon or a worker knows. `is_away`: whether the server doesn't answer.
    `in_file`: for `streamflow health`."""

    def __init__(
        self,
        kind: Literal["daemon", "worker"],
        name: str,
        namespace: str,
        executor: StepExecutor,
        loops: Supervisor,
        outside: Callable[[], list[str]] = _none,
        warnings: Callable[[], list[str]] = _none,
        *,
        is_away: Callable[[], bool] = lambda: False,
        in_file: bool = True,
    ) -> None:
        self._kind: Literal["daemon", "worker"] = kind
        self._name = name
        self._namespace = namespace
        self._executor = executor
        self._loops = loops
        self._outside = outside
        self._is_away = is_away
        self._warnings = warnings
        self._file = HealthFile(name)
        self._closed = not in_file
        self._blocked = ""
        self._looked = time.monotonic()
        """When the watch has looked last."""
        self._lock = threading.Lock()

    def report(self, blocked: str) -> None:
        """Write it down when it is time to. `blocked`: what blocks the event loop, or empty."""
        self._blocked, self._looked = blocked, time.monotonic()
        with self._lock:
            if self._closed or not self._file.is_due:
                return
            try:
                self._file.write(self.health(blocked))
            except OSError as error:
                self._closed = True
                _log.warning(
                    "`streamflow health` will find no report of this process, its file can't be written, set TMPDIR to "
                    "a directory that can: %s",
                    error,
                )

    def now(self) -> Health:
        """By what the watch has seen last."""
        health = self.health(self._blocked)
        silent = time.monotonic() - self._looked
        if silent > STALE:
            health.problems.insert(0, f"nothing has looked after the event loop for {silent:.0f} s")
        return health

    def health(self, blocked: str) -> Health:
        executor = self._executor
        problems = [f"the event loop is blocked by {blocked}"] if blocked else []
        outside = list(self._outside())
        for name, error in self._loops.failing.items():
            of_server = name in self._loops.unserved
            (outside if of_server else problems).append(f"the loop {name!r} fails: {error}")
        for name, seconds in self._loops.hanging.items():
            waits = name != HEARTBEATS and self._is_away()
            (outside if waits else problems).append(f"the loop {name!r} hangs: its turn has taken {seconds:.0f} s")
        warnings = ["it is draining"] if executor.draining else []
        if executor.exhausted:
            problems.append(
                f"{executor.hung} threads hang, no more can be added, plain steps wait: only a restart helps"
            )
        elif executor.hung:
            warnings.append(f"{executor.hung} of the {executor.most_hung} threads hang that may")
        if hung := hung_threads():
            warnings.append(f"{hung} threads hang in calls of the archive, others have taken their places")
        return Health(
            kind=self._kind,
            name=self._name,
            namespace=self._namespace,
            pid=os.getpid(),
            at=time.monotonic(),
            problems=problems,
            outside=outside,
            warnings=warnings + self._warnings(),
        )

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._file.close()
