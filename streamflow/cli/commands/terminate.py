"""`terminate`: force a run to end as cancelled, without running its clean-up code.

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
def terminate(run: str, reason: str, redis: str | None, namespace: str | None, as_json: bool) -> None:
    """Force a run to end as cancelled, without running its clean-up code.

    Sagas are not compensated; running steps are stopped, and children are asked to cancel. Meant for a run that doesn't
    end when it is cancelled. Returns once the server has the request, which is before it takes effect.

    \b
    Example:
      streamflow terminate invoice-17 --reason "loops"
    """

    async def send() -> None:
        nonlocal run
        async with open_client(redis, namespace) as client:
            run = await find_run(client, run, acts=True)
            await client.run(run).terminate(reason)

    run_async(send)
    if as_json:
        print_json({"run_id": run, "requested": "terminate"})
    else:
        click.echo(f"asked for the termination of {run}")
