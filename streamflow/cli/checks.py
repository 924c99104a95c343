"""What `check` and `daemon --check` look at, in this order: settings, app, server, permissions, durability (if writes
wait for more than the server's answer), namespace.

Owns: putting the findings together, and how they are printed. Must not: start, create or change anything.
Called by: `check`, `daemon`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamflow.cli.app_option import required_workflows
from streamflow.cli.connection import check_server
from streamflow.cli.event_loop import run_async
from streamflow.cli.output import print_json
from streamflow.errors import StreamflowError, UsageError
from streamflow.server_url import has_password
from streamflow.settings import PREFIX, VARIABLES, Settings, find_mistakes, load_settings, settings_file
from streamflow.suggestions import did_you_mean

if TYPE_CHECKING:
    from streamflow.store.inspection import Finding


def run_checks(
    app_target: str | None, options: Mapping[str, Any], *, needs_app: bool, as_json: bool, role: str = "daemon"
) -> int:
    """Check everything, print what was found, and return the exit code: 1 if something is wrong.

    Without an app, none is checked, unless the command `needs_app`. `role`: whose permissions the user must have.
    """
    from streamflow.store.inspection import Finding

    checked = ["settings"]
    findings = _settings(options)
    if app_target or needs_app:
        checked.append("app")
        findings += _app(app_target)
    checked.append("server")
    if any(finding.is_error and finding.about == "settings" for finding in findings):
        findings.append(Finding(False, "server", "not checked, because the settings are wrong"))
    else:
        found, reached = run_async(lambda: _server(load_settings(options), role))
        checked += reached
        findings += found
    if as_json:
        _print_json(checked, findings)
    else:
        _print(checked, findings)
    return 1 if any(finding.is_error for finding in findings) else 0


def _settings(options: Mapping[str, Any]) -> list[Finding]:
    from streamflow.http.exposition import MISSING, can_be_exposed
    from streamflow.store.inspection import Finding

    findings = [Finding(True, "settings", mistake) for mistake in find_mistakes(options)]
    for variable in sorted(os.environ):
        if not variable.startswith(PREFIX) or variable in VARIABLES:
            continue
        if hint := did_you_mean(variable, VARIABLES):
            findings.append(Finding(False, "settings", f"no setting is read from the variable {variable}{hint}"))
    if (options.get("http") or os.environ.get(f"{PREFIX}HTTP")) and not can_be_exposed():
        findings.append(Finding(False, "settings", MISSING))
    if exposed := _exposed_file():
        findings.append(Finding(False, "settings", exposed))
    return findings


def _exposed_file() -> str:
    """What is wrong with a settings file that has a password, if other users can read it."""
    with contextlib.suppress(UsageError, OSError):
        file = settings_file()
        if file is not None and has_password(file.text) and Path(file.path).stat().st_mode & 0o004:
            return f"{file.path} has a password, and every user of this machine can read it: chmod 600 {file.path}"
    return ""


def _app(app_target: str | None) -> list[Finding]:
    from streamflow.store.inspection import Finding

    try:
        required_workflows(app_target, "streamflow.client.client")
    except UsageError as error:
        return [Finding(True, "app", str(error))]
    return []


async def _server(settings: Settings, role: str) -> tuple[list[Finding], list[str]]:
    """What was found, and what besides the server was looked at, if that has answered."""
    from streamflow.store.durability import Durability
    from streamflow.store.inspection import Finding, inspect, inspect_durability
    from streamflow.store.keys import NamespaceKeys
    from streamflow.store.namespace import inspect_namespace, stored_durability
    from streamflow.store.roles import Role
    from streamflow.store.router import open_store

    store = open_store(settings.redis, connections=1)
    keys = NamespaceKeys(settings.namespace)
    try:
        await check_server(store)
        stored = await stored_durability(store, keys)
        asked = settings.durability if role == Role.DAEMON else ""
        level = asked or stored or "server"
        durability = Durability.of(level) if role != Role.VIEWER else None
        findings = await inspect(store, keys, Role(role), durability)
        looked_at = ["permissions"]
        if asked and stored and asked != stored:
            looked_at.append("durability")
            text = f"the namespace has {stored}, and a daemon with these settings changes it to {asked} for all"
            findings.append(Finding(False, "durability", text))
        if durability is not None:
            looked_at = ["permissions", "durability"]
            findings += await inspect_durability(store, keys, durability, Role(role))
        return findings + await inspect_namespace(store, settings), [*looked_at, "namespace"]
    except StreamflowError as error:
        return [Finding(True, "server", str(error))], []
    finally:
        await store.close()


def _print(checked: list[str], findings: list[Finding]) -> None:
    from streamflow.cli.secrecy import masked_arguments
    from streamflow.screen.sanitize import safe

    for about in checked:
        of_it = [finding for finding in findings if finding.about == about]
        if not of_it:
            click.echo(f"ok       {about}")
        for finding in of_it:
            first, *more = masked_arguments(finding.message).split("\n")
            click.echo(f"{'error  ' if finding.is_error else 'warning'}  {about}: {safe(first)}")
            for line in more:
                click.echo(f"         {safe(line)}")


def _print_json(checked: list[str], findings: list[Finding]) -> None:
    from streamflow.cli.secrecy import masked_arguments

    print_json(
        {
            "ok": not any(finding.is_error for finding in findings),
            "checked": checked,
            "findings": [
                {
                    "level": "error" if finding.is_error else "warning",
                    "about": finding.about,
                    "message": masked_arguments(finding.message),
                }
                for finding in findings
            ],
        }
    )
