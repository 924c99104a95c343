"""`dev`: a server, a daemon and the status screen in one command.

Owns: its options, its signals, and the order in which the three start and stop. Must not: know how any of them works.
Called by: the group in `cli`.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from msgspec import structs

from streamflow.cli.app_option import app_option, checked_queue, required_workflows
from streamflow.cli.connection import open_client
from streamflow.cli.event_loop import run_async
from streamflow.cli.options import settings_options
from streamflow.cli.output import make_console
from streamflow.server_url import FOLDER, default_url

if TYPE_CHECKING:
    import anyio
    from anyio.abc import TaskStatus

    from streamflow.cli.dev_processes import DevProcesses
    from streamflow.cli.reloading import Reloader
    from streamflow.embedded.server import EmbeddedServer
    from streamflow.settings import Settings
    from streamflow.workflow.app import App
    from streamflow.workflow.trigger import Trigger

RELOAD_GRACE = 2.0
"""Seconds that running steps get before the code is started again."""


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
@click.option(
    "--worker", "queues", multiple=True, metavar="QUEUE",
    help="Also run a worker, which serves this queue; may be repeated.",
)  # fmt: skip
@click.option(
    "--trigger-port", type=click.IntRange(1, 65535), metavar="PORT",
    help="Port of webhooks on the loopback interface.  [default: the first free one from 8080]",
)  # fmt: skip
@click.option(
    "--reload", is_flag=True,
    help="Start all but the server again when a Python file changes.  [needs: pip install 'streamflowd[reload]']",
)  # fmt: skip
@settings_options("namespace")
def dev(
    app_target: str | None,
    directory: Path,
    memory: bool,
    port: int | None,
    queues: tuple[str, ...],
    trigger_port: int | None,
    reload: bool,
    namespace: str | None,
) -> int:
    """Start a server, a daemon and the status screen in one command.

    The server listens on a socket in --dir, which only you can open: commands, daemons and clients in the same
    working directory find it, others need the URL that is printed. Without a terminal, the daemon's log is printed
    instead of the screen; `streamflow logs RUN` shows its lines of one run. Ctrl-C waits for running steps, as the log
    then says, and stops everything; on a second one it doesn't wait. The data stays in --dir for the next start.

    The app's triggers are served, too: webhooks on the loopback interface, at the addresses that are printed. One that
    can't begin is named in the log, and everything else goes on.

    With --reload, a change below the directories from which the app was imported starts daemon, worker and triggers
    again, and runs go on with the new code; steps get 2 seconds to finish, else they run again. While the new code
    can't be imported, the old one goes on.

    \b
    Example:
      streamflow dev --app flows:app
    """
    # Also here, so that a mistake in it is reported before anything starts.
    app = required_workflows(
        app_target, "streamflow.daemon.daemon", "streamflow.screen.live", "streamflow.embedded.server"
    )
    from streamflow.cli.dev_processes import DevProcesses, free_port
    from streamflow.cli.logs import set_up
    from streamflow.cli.reloading import Reloader, required_watcher, roots
    from streamflow.embedded.server import EmbeddedServer
    from streamflow.settings import load_settings

    assert app_target is not None
    for queue in queues:
        checked_queue(queue, app, app_target)
    if reload:
        required_watcher()
    screen = make_console().is_terminal

    async def run() -> int:
        async with EmbeddedServer(None if memory else directory, port, memory, private=True) as server:
            options = "" if default_url() == server.url else f" --redis {server.url}"
            options += f" --namespace {namespace}" if namespace else ""
            storage = "in memory, nothing is kept" if memory else f"data in {server.directory}"
            click.echo(f"server: {server.url} ({storage})")
            click.echo(f"start a run: {_start_of_a_run(app, options)}")
            for queue in sorted(set(app.queues) - set(queues)):
                click.echo(f"serve queue {queue}: streamflow worker --app {app_target} --queue {queue}{options}")
            settings = load_settings({"redis": server.url, "namespace": namespace})
            if reload:
                settings = structs.replace(settings, grace=min(settings.grace, RELOAD_GRACE))
            webhooks = f"127.0.0.1:{trigger_port or free_port()}" if app.triggers else ""
            for trigger in app.triggers.values():
                click.echo(f"trigger {trigger.name}: {_from_where(trigger, webhooks)}")
            processes = DevProcesses(app_target, server, settings, screen, queues, webhooks)
            reloader = Reloader(app_target, roots(), processes.restart, processes.environ) if reload else None
            if reloader is not None:
                click.echo(f"reloads: Python files in {', '.join(map(str, reloader.directories))}")
            click.echo(f"log: {processes.log} (of one run: streamflow logs RUN{_log_option(processes.log)})")
            set_up(None, "warning", file=str(processes.log))  # what this process has to say, too
            await _serve(server, processes, settings, screen, reloader)
            return 0

    try:
        return run_async(run, fast=True, screen=screen)
    except KeyboardInterrupt:
        return 0


def _from_where(trigger: Trigger[Any], webhooks: str) -> str:
    from streamflow.screen.sanitize import safe

    about = trigger.source.about
    return safe(about.replace("POST /", f"POST http://{webhooks}/", 1) if trigger.source.kind == "http" else about, 500)


def _log_option(log: Path) -> str:
    """What `logs` needs to find it."""
    from streamflow.cli.log_reading import DEV_LOG

    return "" if log == Path(FOLDER, DEV_LOG).resolve() else f" --log-file {log}"


def _start_of_a_run(app: App, options: str) -> str:
    """The command for the app's first workflow, with its input to be filled in."""
    import msgspec

    from streamflow.cli.workflow_input import Arguments
    from streamflow.client.listing import WorkflowInfo
    from streamflow.daemon.registration import describe_workflow

    name, workflow = next(iter(app.workflows.items()))
    option, meaning = Arguments(name, msgspec.convert(describe_workflow(app, workflow), WorkflowInfo)).option()
    return f"streamflow enqueue {name}{option}{options}{meaning}"


async def _serve(
    server: EmbeddedServer, processes: DevProcesses, settings: Settings, screen: bool, reloader: Reloader | None
) -> None:
    """Until a signal. Raises `StoreUnavailable` if a process ends by itself, unless a change may start it again."""
    import anyio

    from streamflow.cli.dev_processes import TRIGGERS, LogPrinter

    stopping = anyio.Event()
    printer = LogPrinter(processes.log)
    try:
        processes.start()
        async with anyio.create_task_group() as group:
            await group.start(_take_signals, processes, stopping)
            if reloader is None:
                group.start_soon(_stop_at_an_end, processes, stopping)
                group.start_soon(partial(processes.say_ends, "another `streamflow dev`", of=TRIGGERS))
            else:
                group.start_soon(processes.say_ends, "the next change of the code")
                group.start_soon(reloader.run)
            if screen:
                await _draw(server, settings, stopping, lambda: _notice(processes, reloader))
                printer.skip()
                group.start_soon(printer.run)
            else:
                group.start_soon(printer.run)
                await stopping.wait()
            processes.is_stopping = True
            if reloader is None:
                processes.check()
            click.echo("stopping: waiting for what the log says; Ctrl-C again ends it at once", err=True)
            await processes.end()
            group.cancel_scope.cancel()
    finally:
        processes.is_stopping = True
        await processes.end()
        printer.close()


def _notice(processes: DevProcesses, reloader: Reloader | None) -> str:
    return "" if reloader is None else processes.notice or reloader.notice


async def _take_signals(processes: DevProcesses, stopping: anyio.Event, *, task_status: TaskStatus[None]) -> None:
    """The first one stops, the second one doesn't wait."""
    import anyio

    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
        task_status.started()
        async for _ in received:
            if stopping.is_set():
                click.echo("ended at once: running steps run again at the next start", err=True)
                processes.kill()
            stopping.set()


async def _stop_at_an_end(processes: DevProcesses, stopping: anyio.Event) -> None:
    await processes.one_ended()
    stopping.set()


async def _draw(server: EmbeddedServer, settings: Settings, stopping: anyio.Event, notice: Callable[[], str]) -> None:
    from streamflow.screen.live import watch
    from streamflow.status.collector import StatusCollector

    async with open_client(server.url, settings.namespace) as client:
        collector = StatusCollector(client, dead_after=settings.dead_after)
        await watch(collector.collect, make_console(), until=stopping, notice=notice)
