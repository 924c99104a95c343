"""`dev`: a server, a daemon and the status screen in one command.

Owns: its options, and the order in which the three start and stop. Must not: know how any of them works.
Called by: the group in `cli`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from streamflow import search_path
from streamflow.cli.app_option import app_option, required_workflows
from streamflow.cli.connection import open_client
from streamflow.cli.event_loop import run_async
from streamflow.cli.options import settings_options
from streamflow.cli.output import make_console
from streamflow.errors import StoreUnavailable
from streamflow.server_url import FOLDER, default_url

if TYPE_CHECKING:
    from streamflow.embedded.server import EmbeddedServer
    from streamflow.workflow.app import App


@click.command()
@app_option
@click.option(
    "--dir", "directory", type=click.Path(file_okay=False, path_type=Path), default=Path(FOLDER),
    show_default=True, help="Directory of the server's data and its socket.",
)  # fmt: skip
@click.option("--memory", is_flag=True, help="Keep the data in memory only; it is lost at exit.")
@click.option(
    "--port", type=click.IntRange(1, 65535), metavar="PORT",
    help="Serve this port, too, on the loopback interface: every user of this machine can use it.",
)  # fmt: skip
@settings_options("namespace")
def dev(app_target: str | None, directory: Path, memory: bool, port: int | None, namespace: str | None) -> int:
    """Start a server, a daemon and the status screen in one command.

    The server listens on a socket in --dir, which only you can open: commands, daemons and clients in the same
    working directory find it, others need the URL that is printed. Without a terminal, the daemon's log is printed
    instead of the screen. Ctrl-C stops everything; the data stays in --dir for the next start.

    \b
    Example:
      streamflow dev --app flows:app
    """
    # Also here, so that a mistake in it is reported before anything starts.
    app = required_workflows(
        app_target, "streamflow.daemon.daemon", "streamflow.screen.live", "streamflow.embedded.server"
    )
    from streamflow.embedded.server import EmbeddedServer

    assert app_target is not None
    screen = make_console().is_terminal

    async def run() -> int:
        async with EmbeddedServer(None if memory else directory, port, memory, private=True) as server:
            options = "" if default_url() == server.url else f" --redis {server.url}"
            options += f" --namespace {namespace}" if namespace else ""
            storage = "in memory, nothing is kept" if memory else f"data in {server.directory}"
            click.echo(f"server: {server.url} ({storage})")
            click.echo(f"start a run: {_start_of_a_run(app, options)}")
            for queue in app.queues:
                click.echo(f"serve queue {queue}: streamflow worker --app {app_target} --queue {queue}{options}")
            if screen:
                return await _with_screen(app_target, server, namespace)
            await _with_log(app, server, namespace)
            return 0

    try:
        return run_async(run, fast=True, screen=screen)
    except KeyboardInterrupt:
        return 0


def _start_of_a_run(app: App, options: str) -> str:
    """The command for the app's first workflow, with its input to be filled in."""
    import msgspec

    from streamflow.cli.workflow_input import Arguments
    from streamflow.client.listing import WorkflowInfo
    from streamflow.daemon.registration import describe_workflow

    name, workflow = next(iter(app.workflows.items()))
    option, meaning = Arguments(name, msgspec.convert(describe_workflow(app, workflow), WorkflowInfo)).option()
    return f"streamflow enqueue {name}{option}{options}{meaning}"


async def _with_screen(app_target: str, server: EmbeddedServer, namespace: str | None) -> int:
    """The daemon runs in a separate process, so that its work and its output can't disturb the screen."""
    import anyio

    from streamflow.embedded.daemon_process import DaemonProcess
    from streamflow.screen.live import watch
    from streamflow.settings import CONFIG, load_settings
    from streamflow.status.collector import StatusCollector

    settings = load_settings({"namespace": namespace})
    log = server.directory / "daemon.log"
    inherited = {
        "log_format": "text",
        "path": os.pathsep.join(search_path.added()),
        "config": os.environ.get(CONFIG, ""),
    }
    daemon = DaemonProcess(app_target, server.url, settings.namespace, log, inherited)
    ended = anyio.Event()

    async def wait_for_exit() -> None:
        while daemon.running:  # noqa: ASYNC110 (the end of a process sets no event)
            await anyio.sleep(0.2)
        ended.set()

    try:
        async with open_client(server.url, settings.namespace) as client, anyio.create_task_group() as group:
            group.start_soon(wait_for_exit)
            collector = StatusCollector(client, dead_after=settings.dead_after)
            await watch(collector.collect, make_console(), until=ended)
            group.cancel_scope.cancel()
        raise StoreUnavailable(
            f"the daemon exited unexpectedly; the last lines of its log {log}:\n{daemon.log_tail(15)}"
        )
    finally:
        await daemon.end()


async def _with_log(app: App, server: EmbeddedServer, namespace: str | None) -> None:
    from streamflow.cli.logs import set_up
    from streamflow.daemon.daemon import Daemon
    from streamflow.settings import load_settings

    set_up("text", "info")
    await Daemon(app, load_settings({"redis": server.url, "namespace": namespace, "http": ""})).run(signals=True)
