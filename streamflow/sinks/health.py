"""What a sink's process reports on its health: for `streamflow health` on the same machine, and at /health.

Owns: what is wrong with a sink. Must not: end it. Called by: the command `sink`, `serving.py`.
"""

from __future__ import annotations

import logging
import os
import time

import anyio

from streamflow.health import EVERY, Health, HealthFile
from streamflow.sinks.runner import SinkRunner

_log = logging.getLogger("streamflow.sinks")


def name_of(runner: SinkRunner) -> str:
    return f"{runner.figures.sink}-{runner.figures.group}-{os.getpid()}"


def health_of(runner: SinkRunner, namespace: str) -> Health:
    """A target that is down is a warning: no restart helps against that, and a daemon on the same machine is none the
    worse for it. Runs no code of the sink: any thread may ask."""
    return Health(
        kind="sink",
        name=name_of(runner),
        namespace=namespace,
        pid=os.getpid(),
        at=time.monotonic(),
        warnings=warnings_of(runner),
    )


def warnings_of(runner: SinkRunner) -> list[str]:
    """Why nothing is written, as of a second ago."""
    if hangs := runner.hangs:
        return [hangs]
    return [f"its target is down: {runner.figures.problem}"] if runner.figures.problem else []


async def report_health(runner: SinkRunner, namespace: str) -> None:
    """Write a report every two seconds until this is cancelled."""
    file = HealthFile(name_of(runner))
    try:
        while True:
            file.write(health_of(runner, namespace))
            await anyio.sleep(EVERY)
    except OSError as error:
        _log.warning("no reports for `streamflow health`: %s", error)
    finally:
        file.close()
