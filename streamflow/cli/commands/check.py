"""`check`: whether a daemon could start with these settings, this app and this server.

Owns: its options. Must not: know what is checked (checks.py does). Called by: the group in `cli`.
"""

from __future__ import annotations

from typing import Any

import click

from streamflow.cli.app_option import app_option
from streamflow.cli.options import ROLES, json_option, settings_options
from streamflow.settings import Settings


@click.command()
@app_option
@settings_options(*Settings.__struct_fields__)
@click.option(
    "--role",
    type=click.Choice(ROLES),
    default="daemon",
    show_default=True,
    help="Whose permissions the user must have.",
)
@json_option
def check(app_target: str | None, role: str, as_json: bool, **options: Any) -> int:
    """Check settings, app, server and permissions without starting anything.

    Says in a sentence what is wrong and what to do: settings and variables, the app (if one is given), the server's
    version, memory, persistence and role, the permissions of its user, and whether the namespace fits. If writes have
    to be as safe as its durability (or --durability) says, also whether the server confirms that now. Nothing is
    written that lasts. The exit code is 1 if something keeps a daemon from working; warnings leave it at 0.

    \b
    Example:
      streamflow check --app flows:app
    """
    from streamflow.cli.checks import run_checks

    return run_checks(app_target, options, needs_app=False, as_json=as_json, role=role)
