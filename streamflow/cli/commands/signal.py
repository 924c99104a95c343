"""`signal`: send a signal to a run.

Owns: its arguments and output. Must not: know what the value means. Called by: the group in `cli`.
"""

from __future__ import annotations

from typing import Any

import click

from streamflow.cli.connection import open_client
from streamflow.cli.event_loop import run_async
from streamflow.cli.finding import find_run
from streamflow.cli.options import checked_id, json_option, parse_json, server_options
from streamflow.cli.output import print_json


@click.command()
@click.argument("run", type=checked_id, metavar="RUN")
@click.argument("name")
@click.argument("value", required=False, metavar="[VALUE_JSON]")
@click.option("--force", is_flag=True, help="Send it even if the workflow declares no such signal, or another type.")
@server_options
@json_option
def signal(
    run: str, name: str, value: str | None, force: bool, redis: str | None, namespace: str | None, as_json: bool
) -> None:
    """Send a signal to a run.

    A signal that arrives before the run waits for it is kept until then. Without VALUE_JSON its value is null. If the
    run's workflow declares its signals, others are refused, and so are values of another type.

    \b
    Example:
      streamflow signal invoice-17 approve true
    """
    from streamflow.client.door import Door
    from streamflow.model.names import check_name

    check_name("signal", name)
    payload: Any = None if value is None else parse_json(value, "VALUE_JSON")

    async def send() -> None:
        nonlocal run
        async with open_client(redis, namespace) as client:
            run = await find_run(client, run, acts=True)
            if not force:
                await Door(client).check("signal", run, name, payload)
            await client.run(run).signal(name, payload)

    run_async(send)
    if as_json:
        print_json({"run_id": run, "signal": name})
    else:
        click.echo(f"signal {name} sent to {run}")
