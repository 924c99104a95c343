"""The processes of `dev` beside its server, and its log.

Owns: which processes there are, where their output and their log go, ending them, printing the log as it grows.
Must not: know what a daemon does, draw the screen. Called by: `dev`.

They are processes of their own, so that their work and their output can't disturb the screen, and log into one file:
without a screen `dev` prints what is added to it.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
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
FIRST_PORT, PORTS = 8080, 20
"""Of webhooks: the first one that is tried, and how many are."""
TRIGGERS = "trigger"
"""The command of the process that serves triggers."""

_log = logging.getLogger("streamflow.dev")


class DevProcesses:
    """The daemon, a worker if there are `queues`, and what serves triggers if there is an address for `webhooks`.
    `screen`: what they print goes to files in the server's directory, else to this terminal."""

    def __init__(
        self,
        app_target: str,
        server: EmbeddedServer,
        settings: Settings,
        screen: bool,
        queues: Sequence[str] = (),
        webhooks: str = "",
    ) -> None:
        self._app = app_target
        self._server = server
        self._settings = settings
        self._screen = screen
        self._queues = queues
        self._webhooks = webhooks
        self._running: dict[str, DaemonProcess] = {}
        self._one_at_a_time = anyio.Lock()
        self._ending = False
        self.is_stopping = False
        """This is the end of `dev`: `restart` starts nothing any more."""
        self.log = server.directory / DEV_LOG

    def start(self) -> None:
        self._start("daemon")
        if self._queues:
            self._start("worker", *(word for queue in self._queues for word in ("--queue", queue)))
        if self._webhooks:
            self._start(TRIGGERS, "serve", "--listen", self._webhooks)

    async def restart(self) -> None:
        """End all, and start them again. What their steps were doing at the end of the grace is done again."""
        await self.end()
        if not self.is_stopping:
            self.start()

    @property
    def environ(self) -> Mapping[str, object]:
        """Of the processes, as fields of `Settings` and options of the log."""
        return {
            "redis": self._server.url,
            "namespace": self._settings.namespace,
            "grace": self._settings.grace,
            "log_file": self.log,
            "path": os.pathsep.join(search_path.added()),
            "config": os.environ.get(CONFIG, ""),
        }

    def _start(self, name: str, *options: str) -> None:
        output = self._server.directory / f"{name}.log" if self._screen else None
        if output is not None and output.exists() and output.stat().st_size > MAX_OUTPUT:
            output.unlink()
        self._running[name] = DaemonProcess(
            self._app, self._server.url, self._settings.namespace, output, self.environ, (name, *options)
        )

    async def one_ended(self) -> None:
        """Wait until a process has ended by itself. Without the one that serves triggers, runs go on."""
        while all(name == TRIGGERS for name, _ in self._ended()):  # noqa: ASYNC110 (the end of a process sets no event)
            await anyio.sleep(POLL_SECONDS)

    async def say_ends(self, mended_by: str, *, of: str = "") -> None:
        """Log each end of a process by itself, or only of one, and what starts it again."""
        said: set[int] = set()
        while True:
            for name, process in self._ended():
                if process.pid not in said and of in ("", name):
                    said.add(process.pid)
                    _log.error("%s; %s starts it again", self._how(name, process), mended_by)
            await anyio.sleep(POLL_SECONDS)

    @property
    def notice(self) -> str:
        """Which process isn't there; one line."""
        return "; ".join(self._how(name, process) for name, process in self._ended())

    @staticmethod
    def _how(name: str, process: DaemonProcess) -> str:
        what = "process that serves triggers" if name == TRIGGERS else name
        return f"the {what} exited unexpectedly with code {process.process.returncode}"

    def check(self) -> None:
        """Raises `StoreUnavailable` if a process has ended by itself."""
        for name, process in self._ended():
            if name == TRIGGERS:
                continue
            text = self._how(name, process)
            if self._screen:
                lines = [*self._last_lines(), *process.log_tail(LAST_LINES).splitlines()]
                text += "; the last lines of its log and its output:\n" + "\n".join(lines)
            raise StoreUnavailable(text)

    def kill(self) -> None:
        for process in self._running.values():
            process.process.kill()

    async def end(self) -> None:
        """SIGTERM to all, and wait until they have drained. Ending twice does nothing: a second SIGTERM would end
        them at once."""
        with anyio.CancelScope(shield=True):
            async with self._one_at_a_time, anyio.create_task_group() as group:
                self._ending = True
                for process in self._running.values():
                    group.start_soon(process.end, False, self._settings.grace + END_SECONDS)
            self._running.clear()
            self._ending = False

    def _ended(self) -> list[tuple[str, DaemonProcess]]:
        if self._ending:
            return []
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


def free_port(first: int = FIRST_PORT) -> int:
    """The first one that nobody listens on, on the loopback interface: from `first` on, else any."""
    for port in [*range(first, first + PORTS), 0]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server that will listen
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise StoreUnavailable("no port is free on the loopback interface")
