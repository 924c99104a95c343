"""A second process that sends a daemon's heartbeats while code in C holds on to the daemon's interpreter.

Owns: that process, and what is written to it. Must not: decide when it beats (`store/heartbeat_child.py` does).
Called by: the daemon (starts and stops it), membership (each heartbeat that was confirmed).

Only for a daemon with a process of its own, on Linux: the other process has to see whether that is stopped.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import time
from pathlib import Path

from streamflow.interpreter import python_command
from streamflow.settings import Settings
from streamflow.store import heartbeat_child
from streamflow.store.kernel import Kernel
from streamflow.store.scripts import load_scripts
from streamflow.watch.watch import LONGEST

_log = logging.getLogger("streamflow.membership")


RESTART_PAUSE = 60.0
"""The least seconds between two starts: where it can't run, a daemon must not start one with each heartbeat."""


class HeartbeatProcess:
    def __init__(self, kernel: Kernel, settings: Settings, member: str) -> None:
        self._kernel = kernel
        self._settings = settings
        self._member = member
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        """When it was started last (monotonic s)."""
        self._stopped = not Path("/proc/self/stat").exists()

    def start(self) -> None:
        if self._stopped:
            return
        settings = self._settings
        self._started = time.monotonic()
        self._process = process = subprocess.Popen(
            python_command(heartbeat_child.__file__),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        self._write(
            json.dumps(
                {
                    "url": settings.redis,
                    "script": load_scripts()["heartbeat"].source,
                    "key": self._kernel.keys.members,
                    "member": self._member,
                    "parent": os.getpid(),
                    "every": settings.beat,
                    # Later than the thread that beats for a blocked event loop, which suffices in most cases.
                    "limit": max(1.75 * settings.beat, 0.65 * settings.dead_after),
                    "longest": LONGEST,
                }
            ).encode()
        )

    def sent(self, heartbeat: bytes) -> None:
        """This daemon has sent a heartbeat (JSON) itself."""
        process = self._process
        if process is not None and process.poll() is not None and time.monotonic() - self._started > RESTART_PAUSE:
            _log.warning(
                "the process for heartbeats ended (%d) and is started again: without it, code in C that holds the "
                "interpreter makes this daemon look dead",
                process.returncode,
            )
            self.start()
        self._write(heartbeat)

    def stop(self) -> None:
        """Before this daemon deregisters: no heartbeat of it comes later."""
        self._stopped = True
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()

    def _write(self, line: bytes) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):  # it has ended, or doesn't read
                os.write(self._process.stdin.fileno(), line + b"\n")
