"""`daemon` and `worker`: their options come from the settings, one each.

Owns: making the options, the log's format, the event loop. Must not: name a default by itself.
Called by: the group in `cli`.
"""

from __future__ import annotations

import enum
import logging
import os
import sys
import threading
import typing
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click
import msgspec

from streamflow.cli import closest
from streamflow.cli.logs import FORMATS, LEVELS, set_up
from streamflow.cli.options import has_uvloop, reach
from streamflow.errors import UsageError
from streamflow.model.names import check_name
from streamflow.settings import WORKER_CONCURRENCY, Settings, load_settings

if TYPE_CHECKING:
    from streamflow.workflow.app import App

F = TypeVar("F", bound=Callable[..., Any])

NO_APP = (
    "which app? Name a module or a file with --app flows:app or --app path/flows.py:app (or STREAMFLOW_APP): "
    "it has `app = streamflow.App()` and what is registered with it"
)


def settings_options(command: F) -> F:
    """An option for each field of `Settings`. None means not given: `load_settings` looks at the environment then."""
    return _options(command, [field.name for field in msgspec.structs.fields(Settings)])


def worker_options(command: F) -> F:
    """Options for the fields of `Settings` that mean something to a worker."""
    return _options(command, ["redis", "namespace", "processes", "grace", "worker_timeout"])


def _options(command: F, names: list[str]) -> F:
    for field in reversed([field for field in msgspec.structs.fields(Settings) if field.name in names]):
        kind: type = field.type.__origin__
        is_enum = issubclass(kind, enum.Enum)
        type_ = cast("Any", click.Choice([member.value for member in kind]) if issubclass(kind, enum.Enum) else kind)
        shown = f"{field.default:g}" if isinstance(field.default, float) else field.default
        command = click.option(
            f"--{field.name.replace('_', '-')}",
            field.name,
            type=type_,
            metavar={"redis": "URL", "namespace": "NAME"}.get(field.name, None if is_enum else "N"),
            help=f"{_description(field.type)}.  [STREAMFLOW_{field.name.upper()}; default: {shown}]",
        )(command)
    return command


def _description(annotated: Any) -> str:
    words = next(meta.description for meta in typing.get_args(annotated)[1:] if meta.description)
    return words[0].upper() + words[1:]


def log_options(command: F) -> F:
    command = click.option(
        "--log-level", type=click.Choice(LEVELS), default="info", envvar="STREAMFLOW_LOG_LEVEL", show_default=True,
        help="The least that is logged.",
    )(command)  # fmt: skip
    return click.option(
        "--log-format", type=click.Choice(FORMATS), envvar="STREAMFLOW_LOG_FORMAT",
        help="One JSON object a line, or text.  [default: text on a terminal, else json]",
    )(command)  # fmt: skip


app_option = click.option("--app", "words", metavar="APP", envvar="STREAMFLOW_APP", help="MODULE:app or FILE.py:app.")


@click.command()
@app_option
@settings_options
@log_options
def daemon(words: str | None, log_format: str | None, log_level: str, **options: Any) -> None:
    """Own shards, run workflows and steps, until SIGTERM.

    Start as many as there are cores, here or on other machines: they share the shards. On SIGTERM or Ctrl-C a daemon
    lets its steps finish and hands its shards over; a second time it leaves at once. Logs go to stderr. A password is
    better in STREAMFLOW_REDIS than in an option, which other users of the machine can see.

    \b
    Example:
      streamflow daemon --app flows:app --redis redis://127.0.0.1:6379
    """
    settings = load_settings(options)
    log_format = log_format or ("text" if sys.stderr.isatty() else "json")
    set_up(log_format, log_level)
    serve(load(words), settings)


@click.command()
@app_option
@click.option("--queue", "queues", multiple=True, metavar="NAME", help="A queue to serve; may be given several times.")
@click.option(
    "--concurrency", type=click.IntRange(min=1), metavar="N", envvar="STREAMFLOW_WORKER_CONCURRENCY",
    default=WORKER_CONCURRENCY, show_default=True, show_envvar=True,
    help="Steps that run at the same time, in tasks or threads.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Serve queues that no step of the app names (calls may, with options()).")
@worker_options
@log_options
def worker(
    words: str | None,
    queues: tuple[str, ...],
    concurrency: int,
    force: bool,
    log_format: str | None,
    log_level: str,
    **options: Any,
) -> None:
    """Run the steps of queues, until SIGTERM.

    For steps with queue=NAME. Start any number of workers for a queue, on any machine that reaches the server; they
    need the same app as the daemons. On SIGTERM or Ctrl-C a worker lets its steps finish and hands the rest back; a
    second time it leaves at once. Logs go to stderr.

    \b
    Example:
      streamflow worker --app flows:app --queue gpu --concurrency 2
    """
    settings = msgspec.structs.replace(load_settings(options), concurrency=concurrency)
    log_format = log_format or ("text" if sys.stderr.isatty() else "json")
    set_up(log_format, log_level)
    app = _load_app(words)
    known = app.queues
    named = f"its steps name: {', '.join(known)}" if known else "its steps name none: write @app.step(queue=…)"
    if not queues:
        raise UsageError(f"which queue? Name at least one with --queue; {named}")
    for queue in queues:
        check_name("queue", queue)
        if queue not in known and not force:
            raise UsageError(
                f"no step of the app of {words} has queue={queue!r}{closest(queue, known)}; {named}. "
                "If calls name it with options(queue=…), add --force."
            )
    serve_queues(app, settings, queues)


def _load_app(words: str | None) -> App:
    """Raises `UsageError`."""
    from streamflow.cli.app_loader import load_app

    if not words:
        raise UsageError(NO_APP)
    return load_app(words)


def load(words: str | None) -> App:
    """The app of a daemon. Raises `UsageError`."""
    app = _load_app(words)
    if not app.workflows:
        raise UsageError(f"the app of {words} has no workflow: register one with @app.workflow")
    return app


def serve(app: App, settings: Settings) -> None:
    """A daemon in this process, until a signal."""

    async def run() -> None:
        from streamflow.daemon.daemon import Daemon

        await Daemon(app, settings).run(signals=True)

    _run(run, settings)


def serve_queues(app: App, settings: Settings, queues: Sequence[str]) -> None:
    """A worker in this process, until a signal."""

    async def run() -> None:
        from streamflow.worker.worker import Worker

        await Worker(app, settings, queues).run(signals=True)

    _run(run, settings)


def _run(serving: Callable[[], Coroutine[Any, Any, None]], settings: Settings) -> None:
    """Once the server has answered."""
    import anyio

    from streamflow.steps.executor import STEP_THREAD
    from streamflow.store.connection import Store

    async def run() -> None:
        probe = Store(settings.redis, connections=1)
        try:
            await reach(probe)
        finally:
            await probe.close()
        await serving()

    anyio.run(run, backend_options={"use_uvloop": has_uvloop()})
    if any(thread.name.startswith(STEP_THREAD) for thread in threading.enumerate()):
        # Steps that had their grace, and can't be stopped. Python would wait for their threads at its exit.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)
