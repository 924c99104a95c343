"""`cancel`: ask a run to clean up and end as cancelled.

Owns: its options and output. Must not: wait for the effect. Called by: the group in `cli`.
"""

from __future__ import annotations

import click

from streamflow.cli.connection import open_client
from streamflow.cli.event_loop import run_async
from streamflow.cli.finding import find_run
from streamflow.cli.options import checked_id, json_option, server_options
from streamflow.cli.output import print_json


@click.command()
@click.argument("run", type=checked_id, metavar="RUN")
@click.option("--reason", default="", help="Why; recorded in the run's history.")
@server_options
@json_option
def cancel(run: str, reason: str, redis: str | None, namespace: str | None, as_json: bool) -> None:
    """Ask a run to clean up and end as cancelled.

    The run's clean-up code runs and its sagas are undone. Returns once the server has the request, which is before it
    takes effect.

    \b
    Example:
      streamflow cancel invoice-17 --reason "paid by hand"
    """

    async def send() -> None:
        nonlocal run
        async with open_client(redis, namespace) as client:
            run = await find_run(client, run, acts=True)
            await client.run(run).cancel(reason)

    run_async(send)
    if as_json:
        print_json({"run_id": run, "requested": "cancel"})
    else:
        click.echo(f"asked {run} to cancel")
