"""`cancel`: ask a run, or all that match filters, to clean up and end as cancelled.

Owns: its options. Must not: wait for the effect. Called by: the group in `cli`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from streamflow.cli.acting import Choice, act, act_in_bulk, acting_options
from streamflow.cli.completing import RUN

if TYPE_CHECKING:
    from streamflow.client.client import Client


@click.command()
@click.argument("run", type=RUN, metavar="[RUN]", required=False)
@click.option("--reason", default="", help="Why; recorded in the run's history.")
@acting_options
def cancel(run: str | None, reason: str, choice: Choice) -> int:
    """Ask a run to clean up and end as cancelled.

    The run's clean-up code runs and its sagas are undone. Returns once the server has the request, which is before it
    takes effect. If no daemon has the workflow any more, nobody could run its clean-up code, and it is refused.

    With filters instead of RUN it is for all open runs that match: their number and some of them are shown first, and
    it asks, unless --yes is given.

    \b
    Examples:
      streamflow cancel invoice-17 --reason "paid by hand"
      streamflow cancel --workflow invoice --attribute customer=acme --dry-run
    """
    from streamflow.actions import Cancel
    from streamflow.client.door import check_cleanup, check_cleanup_of

    async def check_workflows(client: Client, workflows: list[str]) -> None:
        await check_cleanup(client, workflows, "its runs", "streamflow terminate, with the same filters")

    choice.check("cancel", (run,) if run else (), own=bool(reason))
    if run:
        return act(Cancel(reason=reason), run, choice, check_cleanup_of)
    return act_in_bulk(None if choice.resume else Cancel(reason=reason), "cancel", choice, check_workflows)
