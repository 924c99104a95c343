"""The processes of `dev` beside its server, and its log.

Owns: which processes there are, where their output and their log go, ending them, printing the log as it grows.
Must not: know what a daemon does, draw the screen. Called by: `dev`.

They are processes of their own, so that their work and their output can't disturb the screen, and log into one file:
without a screen `dev` prints what is added to it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import anyio
import click

from streamflow import search_path
from streamflow.cli.log_reading import DEV_LOG, Reader, text_of
from streamflow.embedded.daemon_process import DaemonProcess
from streamflow.embedded.server import EmbeddedServer
from streamflow.errors import StoreUnavailable
from streamflow.settings import CONFIG, Settings

POLL_SECONDS = 0.1
MAX_OUTPUT = 4 * 1024 * 1024
"""Bytes of what processes have printed, not logged, after which the file is removed before the next one begins."""
END_SECONDS = 5.0
"""For how long a process may outlast its grace."""
LAST_LINES = 15


class DevProcesses:
    """The daemon. `screen`: what it prints goes to a file in the server's directory, else to this terminal."""

    def __init__(self, app_target: str, server: EmbeddedServer, settings: Settings, screen: bool) -> None:
        self._app = app_target
        self._server = server
        self._settings = settings
        self._screen = screen
        self._running: dict[str, DaemonProcess] = {}
        self.log = server.directory / DEV_LOG

    def start(self) -> None:
        self._start("daemon")

    def _start(self, name: str, *options: str) -> None:
        settings: Mapping[str, object] = {
            "log_file": self.log,
            "path": os.pathsep.join(search_path.added()),
            "config": os.environ.get(CONFIG, ""),
        }
        output = self._server.directory / f"{name}.log" if self._screen else None
        if output is not None and output.exists() and output.stat().st_size > MAX_OUTPUT:
            output.unlink()
        self._running[name] = DaemonProcess(
            self._app, self._server.url, self._settings.namespace, output, settings, (name, *options)
        )

    async def one_ended(self) -> None:
        """Wait until a process has ended by itself."""
        while not self._ended():  # noqa: ASYNC110 (the end of a process sets no event)
            await anyio.sleep(POLL_SECONDS)

    def check(self) -> None:
        """Raises `StoreUnavailable` if a process has ended by itself."""
        for name, process in self._ended():
            code = process.process.returncode
            text = f"the {name} exited unexpectedly with code {code}"
            if self._screen:
                lines = [*self._last_lines(), *process.log_tail(LAST_LINES).splitlines()]
                text += "; the last lines of its log and its output:\n" + "\n".join(lines)
            raise StoreUnavailable(text)

    def kill(self) -> None:
        for process in self._running.values():
            process.process.kill()

    async def end(self) -> None:
        """SIGTERM to all, and wait until they have drained. Ending twice does nothing."""
        ending = list(self._running.values())
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as group:
                for process in ending:
                    group.start_soon(process.end, False, self._settings.grace + END_SECONDS)
        self._running.clear()

    def _ended(self) -> list[tuple[str, DaemonProcess]]:
        return [(name, process) for name, process in self._running.items() if not process.running]

    def _last_lines(self) -> list[str]:
        reader = Reader(self.log)
        try:
            return [text_of(fields) for fields in reader.read()][-LAST_LINES:]
        finally:
            reader.close()


class LogPrinter:
    """Prints on stderr what is added to the log from now on."""

    def __init__(self, log: Path) -> None:
        self._reader = Reader(log, from_end=True)

    async def run(self) -> None:
        while True:
            self.print_new()
            await anyio.sleep(POLL_SECONDS)

    def print_new(self) -> None:
        for line in self._lines():
            click.echo(line, err=True)

    def skip(self) -> None:
        """Not what was added until now."""
        for _ in self._reader.read():
            pass

    def close(self) -> None:
        self.print_new()
        self._reader.close()

    def _lines(self) -> Iterator[str]:
        return (text_of(fields) for fields in self._reader.read())
