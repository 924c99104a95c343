"""`forget`: delete ended runs and their histories: those that are named, or all that match filters.

Owns: going on with the next run when one is refused. Must not: delete anything itself. Called by: the group in `cli`.
"""

from __future__ import annotations

from typing import Any

import click

from streamflow.cli.acting import Choice, act_in_bulk, acting_options, auditing
from streamflow.cli.completing import RUN
from streamflow.cli.connection import open_client
from streamflow.cli.event_loop import run_async
from streamflow.cli.finding import find_run
from streamflow.cli.output import print_json


@click.command()
@click.argument("runs", nargs=-1, type=RUN, metavar="[RUN]...")
@acting_options
def forget(runs: tuple[str, ...], choice: Choice) -> int:
    """Delete ended runs and their histories.

    Daemons delete a run by themselves when its retention time is over. A run that has not ended is refused: cancel it
    first. The exit code is 1 if any run was not deleted. With filters instead of RUN it is for all ended runs that
    match: their number and some of them are shown first, and it asks, unless --yes is given.

    \b
    Examples:
      streamflow forget invoice-17 invoice-18
      streamflow forget --workflow nightly --status completed
    """
    from streamflow.actions import Forget, perform
    from streamflow.errors import RunError, RunNotFound

    choice.check("forget", runs)
    if not runs:
        return act_in_bulk(None if choice.resume else Forget(), "forget", choice)

    async def delete() -> list[dict[str, Any]]:
        action = Forget()
        outcomes: list[dict[str, Any]] = []
        async with open_client(choice.redis, choice.namespace) as client:
            found: dict[str, str] = {}
            for run in runs:  # before the first is deleted: what was the beginning of two ids is then that of one
                try:
                    found.setdefault(await find_run(client, run, acts=True), "")
                except RunNotFound as error:
                    found[run] = str(error)
            for run, missing in found.items():
                reason = missing
                if not missing:
                    try:
                        await perform(client, action, run)
                    except RunError as error:
                        reason = str(error)
                outcomes.append(
                    {"run_id": run, "forgotten": False, "reason": reason} if reason else action.plain(run, None)
                )
        return outcomes

    with auditing(choice.audit_log):
        outcomes = run_async(delete)
    if choice.as_json:
        print_json(outcomes)
    else:
        for outcome in outcomes:
            if outcome["forgotten"]:
                click.echo(f"deleted {outcome['run_id']}")
            else:
                click.echo(f"error: {outcome['reason']}", err=True)
    return 0 if all(outcome["forgotten"] for outcome in outcomes) else 1
