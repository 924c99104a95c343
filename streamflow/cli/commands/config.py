"""`config`: the settings that would count here, and where each comes from.

Owns: its options, and how a setting is printed without what is secret. Must not: ask a server, find a setting
(settings.py does). Called by: the group in `cli`.
"""

from __future__ import annotations

import os
from typing import Any

import click
from click.core import ParameterSource

from streamflow import search_path
from streamflow.cli.app_option import app_option
from streamflow.cli.options import json_option, log_options, setting_of, settings_options
from streamflow.cli.output import print_json
from streamflow.errors import UsageError
from streamflow.server_url import has_password, redacted
from streamflow.settings import Found, Settings, find_mistakes, find_settings, settings_file


@click.command()
@app_option
@settings_options(*Settings.__struct_fields__)
@log_options
@json_option
@click.pass_context
def config(ctx: click.Context, as_json: bool, **_: Any) -> None:
    """Print the effective settings, and where each comes from.

    They are those of a daemon that is started here with the same options: an option, a variable of the environment, a
    line of the settings file, or the default. Passwords are not shown. No server is asked. The exit code is 2 if a
    value or the file is wrong, with a line for each mistake.

    \b
    Examples:
      streamflow config
      streamflow config --config production.toml --json
    """
    options: dict[str, Any] = {}
    for parameter in ctx.command.params:
        name = parameter.name or ""
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            # `--path` isn't passed on: it is done with already
            options[setting_of(parameter) or name] = ctx.params.get(name, os.pathsep.join(search_path.added()))
    if mistakes := find_mistakes(options):
        raise UsageError("\n".join(mistakes))
    found = find_settings(options)
    file = settings_file()
    if as_json:
        print_json(
            {
                "file": file and file.name,
                "settings": {
                    name: {"value": _shown(one.value), "source": one.source, "place": one.place or None}
                    for name, one in found.items()
                },
            }
        )
        return
    from streamflow.screen.sanitize import safe

    width = max(map(len, found))
    values = {name: safe(str(_plain(one.value))) for name, one in found.items()}
    value_width = min(max(map(len, values.values())), 40)
    for name, one in found.items():
        click.echo(safe(f"{name:<{width}}  {values[name]:<{value_width}}  {_origin(one)}").rstrip())
    click.echo(f"\nsettings file: {safe(file.name) if file else 'none'}")


def _plain(value: Any) -> Any:
    if value is None:
        return "-"
    return f"{value:.15g}" if isinstance(value, float) else _shown(value)


def _shown(value: Any) -> Any:
    """A value without what is secret in it: the user, password and options of a URL."""
    if isinstance(value, list | tuple):
        return [_shown(one) for one in value]  # pyright: ignore[reportUnknownVariableType]
    return redacted(value) if isinstance(value, str) and has_password(value) else value


def _origin(found: Found) -> str:
    return found.place if found.source != "default" else f"default{f': {found.place}' if found.place else ''}"
