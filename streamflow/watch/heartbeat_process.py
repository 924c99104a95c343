"""A second process beside a daemon or worker: sends its heartbeats while code in C holds on to its interpreter, and
reports its death.

Owns: that process, and what is written to it. Must not: decide when it beats (`store/heartbeat_child.py` does).
Called by: daemon and worker (start and stop it), membership and claims (each heartbeat that was confirmed).

Only for one with a process of its own, on Linux: the other process has to see whether that is stopped, or gone.
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
from streamflow.store import heartbeat_child
from streamflow.store.scripts import load_scripts
from streamflow.watch.watch import LONGEST

_log = logging.getLogger("streamflow.watch")


RESTART_PAUSE = 60.0
"""The least seconds between two starts: where it can't run, a daemon must not start one with each heartbeat."""


class HeartbeatProcess:
    """`members`: the key with the heartbeats, of which this is `member`, every `every` seconds. `timeout`: seconds
    without one after which it is considered dead. `ended`: the key in which its death is noted, if it is noted."""

    def __init__(
        self,
        url: str,
        members: str,
        member: str,
        *,
        every: float,
        timeout: float,
        longest: float = LONGEST,
        ended: str = "",
    ) -> None:
        self._settings = {
            "url": url,
            "script": load_scripts()["heartbeat"].source,
            "key": members,
            "member": member,
            "ended": ended,
            "parent": os.getpid(),
            "every": every,
            # Later than the thread that beats for a blocked event loop, which suffices in most cases.
            "limit": max(1.75 * every, 0.65 * timeout),
            "longest": longest,
            "patience": timeout,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        """When it was started last (monotonic s)."""
        self._stopped = not Path("/proc/self/stat").exists()

    def start(self) -> None:
        if self._stopped:
            return
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
        self._write(json.dumps(self._settings).encode())

    def sent(self, heartbeat: bytes) -> None:
        """The daemon or worker has sent a heartbeat (JSON) itself."""
        process = self._process
        if process is not None and process.poll() is not None and time.monotonic() - self._started > RESTART_PAUSE:
            _log.warning(
                "the process for heartbeats ended (%d) and is started again: without it, code in C that holds the "
                "interpreter makes this process look dead, and its death is noticed later",
                process.returncode,
            )
            self.start()
        self._write(heartbeat)

    def stop(self) -> None:
        """Before it deregisters: no heartbeat of it comes later, and its end is not reported as a death."""
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
