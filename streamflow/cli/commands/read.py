"""`read`: print the values that a run has published.

Owns: its arguments and output. Must not: disturb the run. Called by: the group in `cli`.
"""

from __future__ import annotations

from typing import Any

import click

from streamflow.cli.completing import RUN, MessageType
from streamflow.cli.connection import open_client
from streamflow.cli.event_loop import run_async
from streamflow.cli.finding import find_run
from streamflow.cli.logs import json_line
from streamflow.cli.options import json_option, server_options
from streamflow.cli.output import plain_value, print_json


@click.command()
@click.argument("run", type=RUN, metavar="RUN")
@click.argument("key", type=MessageType("published"), required=False)
@server_options
@json_option
def read(run: str, key: str | None, redis: str | None, namespace: str | None, as_json: bool) -> int:
    """Print the values that a run has published.

    With KEY, prints the value under it as JSON; the exit code is 1 if there is none. Without KEY, prints all keys and
    their values.

    \b
    Example:
      streamflow read import-17 progress
    """
    from streamflow.model.names import check_name

    if key is not None:
        check_name("key", key)

    async def fetch() -> dict[str, Any]:
        nonlocal run
        async with open_client(redis, namespace) as client:
            run = await find_run(client, run)
            handle = client.run(run)
            if key is None:
                return await handle.published()
            missing = object()
            value = await handle.read(key, default=missing)
            return {key: value} if value is not missing else await handle.published()  # the error lists these keys

    values: dict[str, Any] = plain_value(run_async(fetch))
    if key is not None:
        if key in values:
            print_json(values[key])
            return 0
        others = f"; it has published: {', '.join(values)}" if values else ""
        click.echo(f"error: run {run} has published nothing under {key}{others}", err=True)
        return 1
    if as_json:
        print_json(values)
        return 0
    if not values:
        click.echo(f"run {run} has published nothing", err=True)
    for name, value in values.items():
        click.echo(f"{name}  {json_line(value)}")
    return 0
