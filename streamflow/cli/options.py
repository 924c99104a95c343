"""Options that several commands share, and the values that are given as text.

Owns: `--redis` and `--namespace`, one option for each setting, `--config`, `--json`, the log's options, run ids, JSON
input.
Must not: state a setting's default (settings.py has them all), talk to a server, know any single command.
Called by: all command modules.
"""

from __future__ import annotations

import enum
import logging
import os
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from streamflow.errors import UsageError
from streamflow.model.names import check_run_id
from streamflow.settings import (
    CONFIG,
    LOG_FORMATS,
    LOG_LEVELS,
    PREFIX,
    CommandSettings,
    Settings,
    file_values,
    settings_file,
)

F = TypeVar("F", bound=Callable[..., Any])

_FIELDS = {field.name: field for field in msgspec.structs.fields(Settings)}
_METAVARS = {"redis": "URL", "namespace": "NAME", "http": "HOST:PORT"}

ROLES = ("daemon", "worker", "client", "viewer")
"""As `store/roles.py` has them."""

READ_SETTINGS = ("daemon", "check", "config")
"""Commands that read all settings, or print what is wrong with them."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def settings_options(*names: str) -> Callable[[F], F]:
    """An option for each of these fields of `Settings`, in the order of the fields, and `--config`.

    The value None means that the option was not given: `load_settings` and `connect` look at the environment and the
    settings file then.
    """

    def decorate(command: F) -> F:
        for name in reversed(_FIELDS):
            if name in names:
                command = _settings_option(_FIELDS[name])(command)
        return _config_option(command)

    return decorate


def _config_option(command: F) -> F:
    return click.option(
        "--config", metavar="FILE", is_eager=True, expose_value=False, callback=_take_config,
        help="Read settings from this TOML file.  "
        f"[env var: {CONFIG}; default: [tool.streamflow] in the pyproject.toml of the working directory]",
    )(command)  # fmt: skip


def _take_config(ctx: click.Context, _: click.Parameter, file: str | None) -> None:
    """Runs before other options get their values. From here on the file is that of the variable, so that everything in
    this process, and what it starts, reads the same one; what commands take besides gets its defaults from it."""
    if ctx.resilient_parsing:  # completion
        return
    if file is not None:
        os.environ[CONFIG] = str(Path(file).expanduser().absolute())  # until the group ends
    try:
        values = file_values()
    except UsageError:
        if ctx.info_name not in READ_SETTINGS:
            raise
        values = {}
    ctx.default_map = {
        parameter.name: values[name].split(os.pathsep) if parameter.multiple else values[name]
        for parameter in ctx.command.params
        if parameter.name and (name := setting_of(parameter)) in values
    }


def setting_of(parameter: click.Parameter) -> str:
    """The name in `CommandSettings` of a command's option; empty if it is another one."""
    variable = parameter.envvar if isinstance(parameter.envvar, str) else ""
    return variable.removeprefix(PREFIX).lower() if variable.startswith(PREFIX) else ""


def _settings_option(field: msgspec.structs.FieldInfo) -> Callable[[F], F]:
    kind: type = field.type.__origin__
    default = f"{field.default:g}" if isinstance(field.default, float) else field.default
    default = "none" if default == "" else default
    value_type: Any = kind
    metavar = _METAVARS.get(field.name, "SECONDS" if kind is float else "N")  # every float among them is a duration
    if issubclass(kind, enum.Enum):
        value_type, metavar = click.Choice([member.value for member in kind]), None
    return click.option(
        f"--{field.name.replace('_', '-')}",
        field.name,
        type=value_type,
        metavar=metavar,
        help=f"{_description(field.type)}.  [env var: STREAMFLOW_{field.name.upper()}; default: {default}]",
    )


def _description(annotated: Any) -> str:
    text = next(meta.description for meta in typing.get_args(annotated)[1:] if meta.description)
    return text[0].upper() + text[1:]


def server_options(command: F) -> F:
    """`--redis` and `--namespace`."""
    return settings_options("redis", "namespace")(command)


def log_options(command: F) -> F:
    """`--log-format` (None: not given), `--log-level` and `--log-file`."""
    command = log_file_option(
        "Log as JSON into this file instead of to stderr, for `streamflow logs`. Two files of at most 16 MiB are kept."
    )(command)
    command = click.option(
        "--log-level", type=click.Choice(LOG_LEVELS), envvar="STREAMFLOW_LOG_LEVEL", show_envvar=True,
        default=CommandSettings().log_level, show_default=True, help="Minimum log level.",
    )(command)  # fmt: skip
    return click.option(
        "--log-format", type=click.Choice(LOG_FORMATS), envvar="STREAMFLOW_LOG_FORMAT", show_envvar=True,
        show_default="text on a terminal, else json", help="Log as text, or as one JSON object per line.",
    )(command)  # fmt: skip


def log_file_option(text: str) -> Callable[[F], F]:
    return click.option("--log-file", metavar="FILE", envvar="STREAMFLOW_LOG_FILE", show_envvar=True, help=text)


def log_settings_file() -> None:
    """For daemons and workers, whose log shows under which settings they run."""
    if (file := settings_file()) is not None:
        logging.getLogger("streamflow.settings").info("settings are read from %s", file.name)


# --- values given as text -------------------------------------------------------------------------------------------


def checked_id(text: str) -> str:
    """The type of options and arguments that take a run's id: checked before a server is asked."""
    return check_run_id(text)


def parse_json(text: str | bytes, source: str) -> Any:
    """Decode JSON. Raises `UsageError` that names the `source` and the position, and what shells do to quotes."""
    from streamflow.model.codec import DECODE_ERRORS

    try:
        return msgspec.json.decode(text)
    except DECODE_ERRORS as error:
        reason = str(error).removeprefix("JSON is malformed: ")
        raise UsageError(
            f"{source} is not valid JSON: {reason}. A string needs JSON quotes inside the shell's: '\"text\"'"
        ) from None
