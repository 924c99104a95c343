"""`--app`: the option, and the app that it names.

Owns: the error when the option is missing, and the check that an app has a workflow.
Must not: know how an app is found (app_loader.py does). Called by: `dev`, `replay`, `daemon`, `worker`.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING

import click

from streamflow.errors import UsageError

if TYPE_CHECKING:
    from streamflow.workflow.app import App

_LATE = ("anyio._backends._asyncio", "uvloop", "streamflow.cli.connection", "streamflow.screen.sanitize")
"""What every command with an app imports only when it is needed."""

app_option = click.option(
    "--app", "app_target", metavar="APP", envvar="STREAMFLOW_APP", show_envvar=True,
    help="The app, as MODULE:app or FILE.py:app.",
)  # fmt: skip


def required_app(app_target: str | None, *first: str) -> App:
    """The app that the option names. Raises `UsageError`.

    `first`: modules that the command uses later. They are imported before the app, whose directory then stands first in
    the search path: a `redis.py` or `secrets.py` there must not be taken for the one that these import.
    """
    from streamflow.cli.app_loader import TARGET_FORMS, load_app

    if not app_target:
        raise UsageError(
            f"missing --app: {TARGET_FORMS}, or set STREAMFLOW_APP. The module defines `app = streamflow.App()` and "
            "registers workflows and steps with it"
        )
    for name in (*first, *_LATE):
        with contextlib.suppress(ModuleNotFoundError):  # uvloop, on Windows
            importlib.import_module(name)
    return load_app(app_target)


def required_workflows(app_target: str | None, *first: str) -> App:
    """The app that the option names, which has at least one workflow. Raises `UsageError`."""
    app = required_app(app_target, *first)
    if not app.workflows:
        raise UsageError(f"the app of {app_target} has no workflow: register one with @app.workflow")
    return app
