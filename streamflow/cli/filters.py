"""The options that say which runs a command is for.

Owns: one set of filters, for `runs` and for every action in bulk. Must not: look for runs (the client does).
Called by: `runs`; `acting.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
import msgspec

from streamflow.cli.completing import WORKFLOW
from streamflow.errors import UsageError

if TYPE_CHECKING:
    from streamflow.model.attributes import Attribute

STATUSES = ["pending", "running", "stuck", "paused", "completed", "failed", "cancelled"]

_OPTIONS = (
    click.option("--status", type=click.Choice(STATUSES), help="Only runs with this status."),
    click.option("--workflow", type=WORKFLOW, metavar="NAME", help="Only runs of this workflow."),
    click.option("--tenant", metavar="NAME", help="Only runs of this tenant."),
    click.option(
        "--attribute", "attributes", multiple=True, metavar="NAME=VALUE",
        help="Only runs with this attribute; VALUE is parsed as JSON, else as text. May be repeated.",
    ),
    click.option(
        "--error", metavar="TEXT", help="Only runs that failed with TEXT in their error, or are stuck for it.",
    ),
    click.option("--since", metavar="TIME", help="Only runs created since then: 2h (ago), 2026-11-28, or an ISO time."),
    click.option("--until", metavar="TIME", help="Only runs created before that, in the same forms."),
    click.option("--roots", is_flag=True, help="Only runs that aren't children of others."),
)  # fmt: skip
_NAMES = ("status", "workflow", "tenant", "attributes", "error", "since", "until", "roots")


def filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command gets those that were given as `filters`: arguments of `client.runs`, none of them empty."""

    @functools.wraps(command)
    def collected(*args: Any, **options: Any) -> Any:
        filters = {name: options.pop(name) for name in _NAMES}
        filters["attributes"] = dict(_parse_attribute(text) for text in filters["attributes"])
        return command(*args, filters={name: value for name, value in filters.items() if value}, **options)

    for option in reversed(_OPTIONS):
        option(collected)
    return collected


def filter_words(filters: dict[str, Any]) -> str:
    """` of workflow enrich with error 'ConnectTimeout'`: to go behind the number of runs; without what stands
    in front of them, their status, and that they hibernate."""
    words = ""
    for name, value in filters.items():
        if name in ("workflow", "tenant"):
            words += f" of {name} {value}"
        elif name == "attributes":
            words += f" with {', '.join(f'{key}={wanted}' for key, wanted in value.items())}"
        elif name in ("since", "until"):
            words += f" created {name} {value}"
        elif name == "roots":
            words += " that aren't children"
        elif name not in ("status", "hibernating"):
            words += f" with {name} {value!r}"
    return words


def _parse_attribute(text: str) -> tuple[str, Attribute]:
    """`customer=acme` or `priority=2`. Text that is also JSON needs quotes: `code='"17"'`. Raises `UsageError`."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--attribute {text}: expected NAME=VALUE")
    try:
        parsed: Any = msgspec.json.decode(value)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return name, value
    if not isinstance(parsed, str | int | float | bool):
        raise UsageError(f"--attribute {text}: the value must be text, a number, true or false")
    return name, parsed
