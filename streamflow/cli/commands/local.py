"""Commands that bring all they need: `demo`, `dev`, `bench`, and `completion`.

Owns: their options, and `dev`'s embedded server with its daemon. Must not: know what demo and bench do.
Called by: the group in `cli`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamflow.cli.commands.serve import app_option, load
from streamflow.cli.options import (
    json_option,
    open_client,
    run_async,
)
from streamflow.cli.output import make_console
from streamflow.errors import StoreUnavailable, UsageError

if TYPE_CHECKING:
    from types import ModuleType

    from streamflow.embedded.server import EmbeddedServer

USUAL_PORT = 6379
"""Where the other commands look when nothing says otherwise, so `dev` takes it when it is free."""


@click.command()
@click.argument("path", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--daemons", type=click.IntRange(2, 16), default=3, show_default=True, help="Daemon processes.")
@json_option
def demo(path: Path | None, daemons: int, as_json: bool) -> int:
    """Map a source tree with three daemons, one of which is killed.

    Every file below PATH (by default Python's standard library) is parsed by a step, every package is a child run.
    Midway one daemon gets SIGKILL. The exit code is 0 only if the totals equal a direct count without streamflow.

    \b
    Example:
      streamflow demo ~/src/project
    """
    from streamflow.demo.run import run_demo

    return run_async(lambda: run_demo(path, as_json=as_json, console=make_console(), daemons=daemons), fast=True)


# --- dev ------------------------------------------------------------------------------------------------------------


@click.command()
@app_option
@click.option("--dir", "directory", type=click.Path(file_okay=False, path_type=Path), default=Path(".streamflow"),
              show_default=True, help="Where the data is kept.")  # fmt: skip
@click.option("--memory", is_flag=True, help="Keep no data.")
@click.option("--port", type=click.IntRange(1, 65535), help="The server's port.  [default: 6379, or a free one]")
@click.option("--namespace", metavar="NAME", help="The namespace.  [default: default]")
def dev(words: str | None, directory: Path, memory: bool, port: int | None, namespace: str | None) -> int:
    """A server, a daemon and the status screen in one command.

    The server listens on loopback only. Without a terminal the daemon's log is shown instead of the screen. Ctrl-C ends
    everything; the data stays in the directory for the next time.

    \b
    Example:
      streamflow dev --app flows:app
    """
    app = load(words)  # here too, so that a mistake in it is told before anything starts
    assert words is not None
    screen = make_console().is_terminal

    async def run() -> int:
        async with _server(None if memory else directory, port) as server:
            port_given = "" if server.url.endswith(f":{USUAL_PORT}") else f" --redis {server.url}"
            names = f"{port_given}{f' --namespace {namespace}' if namespace else ''}"
            click.echo(f"server: {server.url} ({'nothing is kept' if memory else f'data in {server.directory}'})")
            click.echo(f"start a run: streamflow enqueue {next(iter(app.workflows))}{names}")
            for queue in app.queues:
                click.echo(f"steps of queue {queue} need: streamflow worker --app {words} --queue {queue}{names}")
            if screen:
                return await _with_screen(words, server, namespace)
            await _with_log(app, server, namespace)
            return 0

    try:
        return run_async(run, fast=True, screen=screen)
    except KeyboardInterrupt:
        return 0


@contextlib.asynccontextmanager
async def _server(directory: Path | None, port: int | None) -> AsyncGenerator[EmbeddedServer]:
    from streamflow.embedded.server import EmbeddedServer

    server = EmbeddedServer(directory, port or USUAL_PORT, memory=directory is None)
    try:
        await server.start()
    except UsageError as error:
        if port is not None or "port" not in str(error):
            raise
        server = EmbeddedServer(directory, memory=directory is None)
        await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def _with_screen(words: str, server: EmbeddedServer, namespace: str | None) -> int:
    """The daemon in a process of its own, so that what it does and prints leaves the screen alone."""
    import anyio

    from streamflow.embedded.daemon_process import DaemonProcess
    from streamflow.screen.live import watch
    from streamflow.settings import load_settings
    from streamflow.status.collector import StatusCollector

    settings = load_settings({"namespace": namespace})
    log = server.directory / "daemon.log"
    daemon = DaemonProcess(words, server.url, settings.namespace, log, {"log_format": "text"})
    ended = anyio.Event()

    async def notice() -> None:
        while daemon.running:  # noqa: ASYNC110 (a process sets no event)
            await anyio.sleep(0.2)
        ended.set()

    try:
        async with open_client(server.url, settings.namespace) as client, anyio.create_task_group() as group:
            group.start_soon(notice)
            collector = StatusCollector(client, dead_after=settings.dead_after)
            await watch(collector.collect, make_console(), until=ended)
            group.cancel_scope.cancel()
        raise StoreUnavailable(f"the daemon ended by itself; the end of its log, {log}:\n{daemon.log_tail(15)}")
    finally:
        await daemon.end()


async def _with_log(app: Any, server: EmbeddedServer, namespace: str | None) -> None:
    from streamflow.cli.logs import set_up
    from streamflow.daemon.daemon import Daemon
    from streamflow.settings import load_settings

    set_up("text", "info")
    await Daemon(app, load_settings({"redis": server.url, "namespace": namespace})).run(signals=True)


# --- bench ----------------------------------------------------------------------------------------------------------


@click.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> int:
    """Measure throughput and latency here.

    \b
    Example:
      streamflow bench chain --json
    """
    return _bench_module().main(list(arguments))


def _bench_module() -> ModuleType:
    """`bench/` is inside the package in a wheel; an editable install finds it in the checkout."""
    package = Path(__file__).resolve().parents[2]
    name = "streamflow.bench_suite"
    if (package / "bench_suite" / "__init__.py").is_file():
        return importlib.import_module(name)
    init = package.parent / "bench" / "__init__.py"
    spec = importlib.util.spec_from_file_location(name, init, submodule_search_locations=[str(init.parent)])
    if not init.is_file() or spec is None or spec.loader is None:
        raise UsageError(f"the benchmarks are missing ({package / 'bench_suite'}): install streamflowd again")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- completion -----------------------------------------------------------------------------------------------------


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes commands in your shell.

    \b
    Examples:
      streamflow completion bash >> ~/.bashrc
      streamflow completion zsh >> ~/.zshrc
      streamflow completion fish > ~/.config/fish/completions/streamflow.fish
    """
    from click.shell_completion import get_completion_class

    from streamflow.cli import cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "streamflow", "_STREAMFLOW_COMPLETE").source())
