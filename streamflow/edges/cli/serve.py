"""`daemon`: its options come from the settings, one each.

Owns: making the options, the log's format, the event loop. Must not: name a setting or a default by itself.
Called by: the group in `cli`.
"""

from __future__ import annotations

import enum
import sys
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click
import msgspec

from streamflow.edges.cli.base import has_uvloop, reach
from streamflow.edges.logs import FORMATS, LEVELS, set_up
from streamflow.pure.errors import UsageError
from streamflow.pure.settings import Settings, load_settings

if TYPE_CHECKING:
    from streamflow.pure.definitions import App

F = TypeVar("F", bound=Callable[..., Any])

NO_APP = (
    "which app? Name a module or a file with --app flows:app or --app path/flows.py:app (or STREAMFLOW_APP): "
    "it has `app = streamflow.App()` and what is registered with it"
)


def settings_options(command: F) -> F:
    """An option for each field of `Settings`. None means not given: `load_settings` looks at the environment then."""
    for field in reversed(msgspec.structs.fields(Settings)):
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


def load(words: str | None) -> App:
    """Raises `UsageError`."""
    from streamflow.edges.loading import load_app

    if not words:
        raise UsageError(NO_APP)
    app = load_app(words)
    if not app.workflows:
        raise UsageError(f"the app of {words} has no workflow: register one with @app.workflow")
    return app


def serve(app: App, settings: Settings) -> None:
    """A daemon in this process, until a signal."""
    import anyio

    from streamflow.runtime.daemon import Daemon
    from streamflow.store.connection import Store

    async def run() -> None:
        probe = Store(settings.redis, connections=1)
        try:
            await reach(probe)
        finally:
            await probe.close()
        await Daemon(app, settings).run(signals=True)

    anyio.run(run, backend_options={"use_uvloop": has_uvloop()})
