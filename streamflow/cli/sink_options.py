"""From a sink's class to its command: an argument or option for each parameter of the constructor.

Owns: how a parameter's type, default and `Meta` become an option; refusing secrets on the command line.
Must not: know a single sink, import what one needs. Called by: `commands/sink.py`.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable
from typing import Any

import click
import msgspec

from streamflow.errors import UsageError
from streamflow.server_url import has_password

_PASSWORD = re.compile(r"\bpassword\s*=")
"""In a connection string of libpq that isn't a URL."""


def parameters_of(sink: type[Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(sink.__init__).parameters.values())[1:]


def add_options(command: Callable[..., Any], sink: type[Any]) -> Callable[..., Any]:
    """The command gets the arguments of the sink's constructor by name."""
    hints = typing.get_type_hints(sink.__init__, include_extras=True)
    for parameter in reversed(parameters_of(sink)):
        kind, *rest = typing.get_args(hints[parameter.name])
        meta = next(one for one in rest if isinstance(one, msgspec.Meta))
        command = _decorator(parameter, kind, meta)(command)
    return command


def _decorator(parameter: inspect.Parameter, kind: type, meta: msgspec.Meta) -> Callable[..., Any]:
    variable = (meta.extra or {}).get("env")
    required = parameter.default is inspect.Parameter.empty
    if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
        default: dict[str, Any] = {} if required else {"default": parameter.default}  # None is a value for click
        return click.argument(
            parameter.name,
            metavar=meta.title,
            required=required,
            envvar=variable,
            callback=_without_password,
            **default,
        )
    option = f"--{parameter.name.replace('_', '-')}"
    if kind is bool:
        return click.option(option, parameter.name, is_flag=True, help=f"{meta.description}.")
    value_type: Any = kind
    if kind is int:
        value_type = click.IntRange(min=typing.cast("int", meta.ge))
    elif kind is float:
        value_type = click.FloatRange(min=typing.cast("float", meta.gt), min_open=True)
    shown = f"{parameter.default:g}" if isinstance(parameter.default, float) else parameter.default
    note = f"  [default: {shown}]" if shown != "" else ""
    return click.option(
        option, parameter.name, type=value_type, default=parameter.default, metavar=meta.title,
        help=f"{meta.description}.{note}",
    )  # fmt: skip


def _without_password(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Every user of the machine sees the arguments of all processes; the environment only their own user."""
    given = ctx.get_parameter_source(parameter.name or "") is click.core.ParameterSource.COMMANDLINE
    if value and given and (has_password(value) or _PASSWORD.search(value)):
        variable = parameter.envvar or "a variable"
        raise UsageError(f"{parameter.make_metavar(ctx)} has a password, which other users would see: use {variable}")
    return value
