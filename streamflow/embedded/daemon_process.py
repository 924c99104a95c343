"""A `streamflow daemon` or `worker` in a child process, for the demo and the benchmarks.

Owns: its command line, its log file, and that it never outlives this process.
Must not: restart it, or inspect what it does. Called by: demo, bench, the command `dev`.

When this process dies without `end`, by SIGKILL too, a watchdog ends the daemon: a shell that waits for the end of a
pipe which only this process holds. Otherwise the daemon would wait forever for a server that is gone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import anyio

from streamflow.embedded.child import own_environ, start_python

__all__ = ["DaemonProcess", "own_environ"]

_STOP_SECONDS = 15.0
_POLL_SECONDS = 0.01
_WATCHDOG = 'read -r _ || kill -9 "$1" 2>/dev/null'
"""A line disarms it; the end of its input ends the daemon."""

_NOTHING: Mapping[str, object] = {}


class DaemonProcess:
    """A daemon or worker in a child process. The constructor starts it.

    `app`: as for `--app`. `log`: the file to which its output is appended; None: it goes where that of this process
    does. `settings`: fields of `Settings`, which override the environment; they have no settings file unless `config`
    names one, or is empty for that of the directory: what demo and bench do doesn't depend on where they are started.
    Nor do they take a port for HTTP or a log file that the environment names for another process. `arguments`: command
    and options. `source`: the directory of another streamflow that it runs, to compare them.
    """

    def __init__(
        self,
        app: str,
        url: str,
        namespace: str,
        log: Path | None,
        settings: Mapping[str, object] = _NOTHING,
        arguments: Sequence[str] = ("daemon",),
        source: Path | None = None,
    ) -> None:
        self.log = Path(os.devnull) if log is None else log
        words = ["-m", "streamflow", *arguments, "--app", app, "--namespace", namespace]
        given = {"config": os.devnull, "http": "", "log_file": "", **settings}
        self.process = start_python(words, log, {**given, "redis": url}, source)
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
        """Whether a member id (`<host>-<pid>-<session>`) is that of this daemon."""
        return f"-{self.pid}-" in member

    async def end(self, kill: bool = False, within: float = _STOP_SECONDS) -> None:
        """Send SIGTERM and wait until it has drained, for so many seconds, or send SIGKILL. Ending twice does
        nothing."""
        with anyio.CancelScope(shield=True):
            if self._watchdog.returncode is None:
                self._watchdog.communicate(b"\n")
            if not self.running:
                return
            self.process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            deadline = time.monotonic() + within
            while self.process.poll() is None:
                if time.monotonic() > deadline:
                    self.process.kill()
                await anyio.sleep(_POLL_SECONDS)

    def log_tail(self, lines: int = 5) -> str:
        """The last lines of its log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])
