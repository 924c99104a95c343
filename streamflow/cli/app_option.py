"""`--app` and `--path`: the options, and the app that they name.

Owns: both options, the error when the option is missing, and the check that an app has a workflow.
Must not: know how an app is found (app_loader.py does). Called by: `dev`, `replay`, `daemon`, `worker`, `check`.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from streamflow import search_path
from streamflow.errors import UsageError
from streamflow.model.names import check_name
from streamflow.suggestions import did_you_mean

if TYPE_CHECKING:
    from streamflow.workflow.app import App

_LATE = ("anyio._backends._asyncio", "uvloop", "streamflow.cli.connection", "streamflow.screen.sanitize")
"""What every command with an app imports only when it is needed."""

F = TypeVar("F", bound=Callable[..., Any])


def app_option(command: F) -> F:
    """`--app`, and `--path`, which is done with before the command begins."""
    command = click.option(
        "--path", multiple=True, metavar="DIR", envvar="STREAMFLOW_PATH", show_envvar=True, expose_value=False,
        type=click.Path(), callback=_search_too,
        help="Directory of packages that the app imports, such as the site-packages of a virtual environment; may be "
        "repeated.",
    )(command)  # fmt: skip
    return click.option(
        "--app", "app_target", metavar="APP", envvar="STREAMFLOW_APP", show_envvar=True,
        help="The app, as MODULE:app or FILE.py:app.",
    )(command)  # fmt: skip


def _search_too(context: click.Context, parameter: click.Parameter, directories: tuple[str, ...]) -> None:
    for directory in directories:
        if directory:  # not between two colons of the variable
            search_path.add(directory)


def required_app(app_target: str | None, *first: str) -> App:
    """The app that the option names. Raises `UsageError`.

    `first`: modules that the command uses later. They are imported before the app, whose directory then stands first in
    the search path: a `redis.py` or `secrets.py` there must not be taken for the one that these import.
    """
    from streamflow.cli.app_loader import TARGET_FORMS, load_app

    if not app_target:
        raise UsageError(
            f"missing --app: {TARGET_FORMS}, or set STREAMFLOW_APP, or app in the settings file. The module defines "
            "`app = streamflow.App()` and registers workflows and steps with it"
        )
    for name in (*first, *_LATE):
        with contextlib.suppress(ModuleNotFoundError):  # uvloop, on Windows
            importlib.import_module(name)
    return load_app(app_target)


def checked_queue(queue: str, app: App, app_target: str, hint: str = "") -> str:
    """The queue, which a step of the app names. Raises `UsageError`; `hint`: what to do if none does."""
    known = app.queues
    check_name("queue", queue)
    if queue not in known:
        raise UsageError(
            f"no step of the app of {app_target} has queue={queue!r} ({named_queues(app)})"
            f"{did_you_mean(queue, known) or '.'}{hint}"
        )
    return queue


def named_queues(app: App) -> str:
    known = app.queues
    return f"its steps name: {', '.join(known)}" if known else "its steps name none; write @app.step(queue=…)"


def required_workflows(app_target: str | None, *first: str) -> App:
    """The app that the option names, which has at least one workflow. Raises `UsageError`."""
    app = required_app(app_target, *first)
    if not app.workflows:
        raise UsageError(f"the app of {app_target} has no workflow: register one with @app.workflow")
    return app
