"""`retry`: have a failed run, or all that match filters, go on from where they failed.

Owns: its options. Must not: decide where a run goes on. Called by: the group in `cli`.
"""

from __future__ import annotations

import click

from streamflow.cli.acting import Choice, act, act_in_bulk, acting_options
from streamflow.cli.completing import RUN


@click.command()
@click.argument("run", type=RUN, metavar="[RUN]", required=False)
@click.option("--step", metavar="STEP", help="Name or number of a step of an open run: have its next attempt begin.")
@click.option("--reason", default="", help="Why; recorded in the run's history.")
@click.option("--anyway", is_flag=True, help="Also if the run has undone things since, as a saga does.")
@click.option("--alone", is_flag=True, help="Also if the run is the child of one that failed because of it.")
@acting_options
def retry(run: str | None, step: str | None, reason: str, anyway: bool, alone: bool, choice: Choice) -> int:
    """Have a run go on that has failed, from where it failed, or is stuck.

    The step that failed is tried again, and all recorded results are kept. If the code itself failed, deploy the mended
    code first: it gets once more what it had got last. Children that failed or were cancelled together with the run go
    on with it. A run that can't go on is refused, and nothing has changed.

    A run that is stuck goes on by itself when its code is mended. This tries the code that there is once more, for a
    cause that was something else: a file, an environment variable.

    With --step the run is open, and a step of it hangs: its attempt is given up, and the next one begins.

    With filters instead of RUN it is for all failed and stuck runs that match: their number and some of them are shown
    first, and it asks, unless --yes is given.

    \b
    Examples:
      streamflow retry invoice-17 --reason "the bank is back"
      streamflow retry invoice-18 --step charge
      streamflow retry --workflow enrich --error ConnectTimeout --yes
    """
    from streamflow.actions import Retry

    action = Retry(step=step, reason=reason, anyway=anyway, alone=alone)
    choice.check("retry", (run,) if run else (), own=action != Retry())
    if run:
        return act(action, run, choice)
    return act_in_bulk(None if choice.resume else action, "retry", choice)
