"""`terminate`: force a run, or all that match filters, to end as cancelled, without running clean-up code.

Owns: its options. Must not: wait for the effect. Called by: the group in `cli`.
"""

from __future__ import annotations

import click

from streamflow.cli.acting import Choice, act, act_in_bulk, acting_options
from streamflow.cli.completing import RUN


@click.command()
@click.argument("run", type=RUN, metavar="[RUN]", required=False)
@click.option("--reason", default="", help="Why; recorded in the run's history.")
@acting_options
def terminate(run: str | None, reason: str, choice: Choice) -> int:
    """Force a run to end as cancelled, without running its clean-up code.

    Sagas are not compensated; running steps are stopped, and children are asked to cancel. Meant for a run that doesn't
    end when it is cancelled. Returns once the server has the request, which is before it takes effect. With filters
    instead of RUN it is for all open runs that match: their number and some of them are shown first, and it asks,
    unless --yes is given.

    \b
    Examples:
      streamflow terminate invoice-17 --reason "loops"
      streamflow terminate --workflow invoice_v1 --status stuck --yes
    """
    from streamflow.actions import Terminate

    choice.check("terminate", (run,) if run else (), own=bool(reason))
    if run:
        return act(Terminate(reason=reason), run, choice)
    return act_in_bulk(None if choice.resume else Terminate(reason=reason), "terminate", choice)
