"""What a sink's process reports on its health, for `streamflow health` on the same machine.

Owns: what is wrong with a sink. Must not: end it. Called by: the command `sink`.
"""

from __future__ import annotations

import logging
import os
import time

import anyio

from streamflow.health import EVERY, Health, HealthFile
from streamflow.sinks.runner import SinkRunner

_log = logging.getLogger("streamflow.sinks")


async def report_health(runner: SinkRunner, namespace: str) -> None:
    """Write a report every two seconds until this is cancelled. A target that is down is a warning: no restart helps
    against that, and a daemon on the same machine is none the worse for it."""
    name = f"{runner.figures.sink}-{runner.figures.group}-{os.getpid()}"
    file = HealthFile(name)
    try:
        while True:
            problem = runner.problem
            file.write(
                Health(
                    kind="sink",
                    name=name,
                    namespace=namespace,
                    pid=os.getpid(),
                    at=time.monotonic(),
                    warnings=[f"its target is down: {problem}"] if problem else [],
                )
            )
            await anyio.sleep(EVERY)
    except OSError as error:
        _log.warning("no reports for `streamflow health`: %s", error)
    finally:
        file.close()
