"""A `streamflow daemon` or `worker` in a process of its own, for the demo and the benchmarks.

Owns: its command line, its log file, and that it never outlives this process.
Must not: restart it, or look at what it does. Called by: demo, bench.

When this process dies without `end`, by SIGKILL too, a watchdog ends the daemon: a shell that waits for the end of a
pipe which only this process holds. Otherwise the daemon would wait for ever for a server that is gone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import anyio

import streamflow

_STOP_SECONDS = 15.0
_POLL_SECONDS = 0.01
_WATCHDOG = 'read -r _ || kill -9 "$1" 2>/dev/null'
"""A line disarms it; the end of its input ends the daemon."""

_NOTHING: Mapping[str, object] = {}


def own_environ() -> dict[str, str]:
    """The environment of a process that imports this very streamflow, however this one was started."""
    above = str(Path(streamflow.__file__).parent.parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (above, os.environ.get("PYTHONPATH", ""))))}


class DaemonProcess:
    """Started by the constructor. `settings` are fields of `Settings`, and go before what the environment says.
    `words` are the command and its own options."""

    def __init__(
        self,
        app: str,
        url: str,
        namespace: str,
        log: Path,
        settings: Mapping[str, object] = _NOTHING,
        words: Sequence[str] = ("daemon",),
    ) -> None:
        self.log = log
        command = [sys.executable, "-m", "streamflow", *words, "--app", app, "--redis", url, "--namespace", namespace]
        environ = own_environ()
        for name, value in settings.items():
            environ[f"STREAMFLOW_{name.upper()}"] = str(value)
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environ,
                start_new_session=True,  # Ctrl-C is for this process, which ends its daemons itself
            )
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "streamflow-watchdog", str(self.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def is_member(self, member: str) -> bool:
        """Whether a member's id (`<host>-<pid>-<session>`) is this daemon's."""
        return f"-{self.pid}-" in member

    async def end(self, *, kill: bool = False) -> None:
        """SIGTERM and wait for the drain, or SIGKILL. Ending twice does nothing."""
        with anyio.CancelScope(shield=True):
            if self._watchdog.returncode is None:
                self._watchdog.communicate(b"\n")
            if not self.running:
                return
            self.process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            deadline = time.monotonic() + _STOP_SECONDS
            while self.process.poll() is None:
                if time.monotonic() > deadline:
                    self.process.kill()
                await anyio.sleep(_POLL_SECONDS)

    def said(self, lines: int = 5) -> str:
        """The end of its log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])
