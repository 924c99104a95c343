"""`sink`: write committed events to files, databases and services.

Owns: a command for each sink, the options that they share, and their output. Must not: know a single sink, decide when
an event is acknowledged. Called by: the group in `cli`.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from streamflow.cli.completing import WORKFLOW
from streamflow.cli.connection import open_client
from streamflow.cli.event_loop import run_async
from streamflow.cli.logs import set_up
from streamflow.cli.options import json_option, log_options, settings_options
from streamflow.cli.output import print_json
from streamflow.cli.sink_options import add_options, parameters_of
from streamflow.errors import StreamflowError
from streamflow.settings import load_settings

if TYPE_CHECKING:
    from streamflow.http.loop_lag import LoopLag
    from streamflow.sinks import Figures
    from streamflow.sinks.runner import SinkRunner

GRACE = 10.0
"""Seconds that a batch which is being written gets to end after a signal."""
ONCE_PATIENCE = 60.0
"""Seconds for which `--once` tries a target that is down."""

_log = logging.getLogger("streamflow.sinks")


class Sinks(click.Group):
    """A command for each file in `streamflow/sinks/targets`, made when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from streamflow import sinks

        return sinks.names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        from streamflow import sinks

        return _command(cmd_name, sinks.find(cmd_name)) if cmd_name in sinks.names() else None


@click.group(cls=Sinks)
def sink() -> None:
    """Write committed events to files, PostgreSQL, Kafka or a webhook.

    A sink is a subscriber: it has a group, whose position it moves on when the target has stored a batch. Start it as
    often as you like: processes of one group share the shards. While its target is down it waits, and its lag is shown
    by `streamflow groups list`. With --http it answers probes and Prometheus, as a daemon does.

    \b
    Example:
      streamflow sink postgres postgresql://etl@db/warehouse
    """


def _command(name: str, target: type[Any]) -> click.Command:
    def function(**options: Any) -> int:
        return _run(target, options)

    return click.command(name, help=target.__doc__)(add_options(_shared_options(name)(function), target))


def _shared_options(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(
            [
                click.option("--group", default=name, show_default=True, metavar="NAME", help="Group of the sink."),
                click.option(
                    "--workflow", "workflows", multiple=True, type=WORKFLOW, metavar="NAME",
                    help="Only events of runs of this workflow. May be repeated.",
                ),
                click.option(
                    "--kind", "kinds", multiple=True, metavar="KIND",
                    help="Only events of this kind, as in RunCompleted. May be repeated.",
                ),
                click.option(
                    "--from", "from_", default="oldest", show_default=True, metavar="WHEN",
                    help="Where a new group begins: oldest, now, or a time, as in 2h (ago) or 2026-11-28.",
                ),
                click.option("--once", is_flag=True, help="End when all events are written that are there."),
                settings_options("redis", "namespace", "http"),
                log_options,
                json_option,
            ]
        ):  # fmt: skip
            command = option(command)
        return command

    return decorate


def _run(target: type[Any], options: dict[str, Any]) -> int:
    shared = {key: options.pop(key) for key in list(options) if key not in _names(target)}
    made = target(**{key: value for key, value in options.items() if value is not None})
    as_json: bool = shared["as_json"]
    instead = run_async(made.instead)
    if instead is not None:
        if isinstance(instead, str) and not as_json:
            click.echo(instead, nl=False)
        else:
            print_json({"text": instead} if isinstance(instead, str) else instead)
        return 0

    async def serve() -> Figures:
        from streamflow.http.loop_lag import LoopLag
        from streamflow.http.pages import Pages
        from streamflow.http.server import serving_http
        from streamflow.sinks.health import name_of
        from streamflow.sinks.metrics import SinkMetrics
        from streamflow.sinks.runner import SinkRunner

        set_up(shared["log_format"], shared["log_level"], file=shared["log_file"])
        http = load_settings({"http": shared["http"]}).http
        async with open_client(shared["redis"], shared["namespace"]) as client:
            runner = SinkRunner(
                client,
                made,
                group=shared["group"],
                workflows=shared["workflows"],
                kinds=shared["kinds"],
                from_=_when(shared["from_"]),
                once=shared["once"],
                **({"patience": ONCE_PATIENCE} if shared["once"] else {}),
            )
            lag = LoopLag()
            pages = None if shared["once"] or not http else Pages("sink", name_of(runner), client.namespace)
            if pages is not None:
                pages.part = SinkMetrics(runner, client.namespace, lag).part
            with serving_http(http, pages):
                return await _until_signal(runner, client.namespace, lag)

    figures = run_async(serve, fast=True)
    _print(figures, as_json)
    return 0


def _names(target: type[Any]) -> set[str]:
    return {parameter.name for parameter in parameters_of(target)}


def _when(text: str) -> Any:
    """Raises `UsageError`."""
    if text in ("oldest", "now"):
        return text
    import time
    from datetime import UTC, datetime

    from streamflow.client.paging import instant_ms

    ms = instant_ms("--from", text, int(time.time() * 1000), known="oldest, now, 15m, 2h, 7d (ago), ")
    return datetime.fromtimestamp(ms / 1000, UTC)


async def _until_signal(runner: SinkRunner, namespace: str, lag: LoopLag) -> Figures:
    """The first SIGTERM or SIGINT lets the batch end that is being written, the second one doesn't."""
    import anyio

    from streamflow.sinks.health import report_health

    error: StreamflowError | None = None
    async with anyio.create_task_group() as tasks:

        async def listen() -> None:
            with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
                async for number in received:
                    _log.info("%s: ends when the batch is written that is under way", signal.Signals(number).name)
                    runner.stop()
                    tasks.start_soon(end)
                    break
                async for _ in received:
                    tasks.cancel_scope.cancel()

        async def end() -> None:
            await anyio.sleep(GRACE)
            tasks.cancel_scope.cancel()

        tasks.start_soon(listen)
        tasks.start_soon(report_health, runner, namespace)
        tasks.start_soon(lag.run)
        try:
            await runner.run()
        except StreamflowError as failure:  # the group would make another error of it
            error = failure
        finally:
            tasks.cancel_scope.cancel()
    if error is not None:
        raise error
    return runner.figures


def _print(figures: Figures, as_json: bool) -> None:
    import msgspec

    from streamflow.text import plural

    seconds = figures.seconds
    rate = round(figures.events / seconds) if seconds else 0
    if as_json:
        print_json({**msgspec.to_builtins(figures), "events_per_second": rate})
        return
    own = "".join(f", {name.replace('_', ' ')}: {value:,}" for name, value in figures.own.items())
    written = f"{plural(figures.events, 'event')} in {figures.batches:,} batch{'' if figures.batches == 1 else 'es'}"
    click.echo(f"group {figures.group}: {written}, {rate:,} a second{own}", err=True)
