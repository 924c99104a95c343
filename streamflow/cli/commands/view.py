"""`view`: what a view of an app has counted.

Owns: its arguments and output. Must not: count anything. Called by: the group in `cli`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from streamflow.cli.connection import open_client
from streamflow.cli.event_loop import run_async
from streamflow.cli.options import json_option, server_options
from streamflow.cli.output import make_console, plain_value, print_drawn, print_json
from streamflow.errors import UsageError
from streamflow.suggestions import did_you_mean

if TYPE_CHECKING:
    from streamflow.views.reading import ViewReading


@click.command()
@click.argument("name", required=False)
@click.option(
    "--by", "labels", multiple=True, metavar="LABEL=VALUE", help="Only keys with this label; may be repeated."
)
@click.option("--windows", default=1, show_default=True, type=click.IntRange(1), help="How many, the newest first.")
@click.option("--rows", default=20, show_default=True, type=click.IntRange(1), help="Keys of each window.")
@server_options
@json_option
def view(
    name: str | None,
    labels: tuple[str, ...],
    windows: int,
    rows: int,
    redis: str | None,
    namespace: str | None,
    as_json: bool,
) -> None:
    """Print a view of an app: the largest keys of its newest window.

    Without NAME, lists the views that daemons have counted. Apps have views by `app.view`; what they count stands in
    the guide. With --json the exact values of all that was asked for are printed.

    \b
    Example:
      streamflow view cost --by tenant=acme --windows 7
    """
    from streamflow.screen.app_views import list_table, view_table

    wanted: dict[str, Any] = dict(_label(text) for text in labels)

    async def fetch() -> list[ViewReading]:
        async with open_client(redis, namespace) as client:
            names = [name] if name is not None else await client.views()
            found = [await client.view(one, labels=wanted) for one in names]
        for one in found if name is not None else []:
            _check_labels(one, wanted)
        return found

    found = run_async(fetch)
    if as_json:
        print_json([_json(one, windows) for one in found] if name is None else _json(found[0], windows))
    elif not found:
        click.echo("no views: register one with app.view(…), and start a daemon with that app", err=True)
    else:
        console = make_console()
        width = console.width
        lines = view_table(found[0], windows, rows, width) if name is not None else list_table(found, width)
        for line in lines:
            print_drawn(console, line)


def _json(reading: ViewReading, windows: int) -> dict[str, Any]:
    found = plain_value(reading)
    return {**found, "windows": found["windows"][:windows]}


def _check_labels(reading: ViewReading, labels: Iterable[str]) -> None:
    """Of keys that a function makes no names are known. Raises `UsageError`."""
    for label in labels if reading.by else ():
        if label not in reading.by:
            known = ", ".join(reading.by)
            suggestion = did_you_mean(label, reading.by)
            raise UsageError(f"view {reading.name} has no label {label!r}{suggestion}; it has: {known}")


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.BadParameter(f"{text!r} is not LABEL=VALUE, as tenant=acme", param_hint="--by")
    return name, value
