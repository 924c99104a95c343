"""`forget`: delete ended runs and their histories.

Owns: its output, and going on with the next run when one is refused. Must not: delete anything itself.
Called by: the group in `cli`.
"""

from __future__ import annotations

from typing import Any

import click

from streamflow.cli.connection import open_client
from streamflow.cli.event_loop import run_async
from streamflow.cli.finding import find_run
from streamflow.cli.options import checked_id, json_option, server_options
from streamflow.cli.output import print_json


@click.command()
@click.argument("runs", nargs=-1, required=True, type=checked_id, metavar="RUN...")
@server_options
@json_option
def forget(runs: tuple[str, ...], redis: str | None, namespace: str | None, as_json: bool) -> int:
    """Delete ended runs and their histories.

    Daemons delete a run by themselves when its retention time is over. A run that has not ended is refused: cancel it
    first. The exit code is 1 if any run was not deleted.

    \b
    Example:
      streamflow forget invoice-17 invoice-18
    """
    from streamflow.errors import RunError, RunNotFound

    async def delete() -> list[dict[str, Any]]:
        outcomes: list[dict[str, Any]] = []
        async with open_client(redis, namespace) as client:
            found: dict[str, str] = {}
            for run in runs:  # before the first is deleted: what was the beginning of two ids is then that of one
                try:
                    found.setdefault(await find_run(client, run, acts=True), "")
                except RunNotFound as error:
                    found[run] = str(error)
            for run, missing in found.items():
                deleted, reason = False, missing
                if not missing:
                    try:
                        deleted = await client.forget(run)
                        reason = "" if deleted else f"there is no run {run}"
                    except RunError as error:
                        reason = str(error)
                outcomes.append({"run_id": run, "forgotten": deleted, "reason": reason})
        return outcomes

    outcomes = run_async(delete)
    if as_json:
        print_json(outcomes)
    else:
        for outcome in outcomes:
            if outcome["forgotten"]:
                click.echo(f"deleted {outcome['run_id']}")
            else:
                click.echo(f"error: {outcome['reason']}", err=True)
    return 0 if all(outcome["forgotten"] for outcome in outcomes) else 1
