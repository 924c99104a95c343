"""`pause`: have nothing new begin, of a run, of a workflow, in a queue, or of all runs that match filters.

Owns: its options and output, and what is meant by them. Must not: stop anything (daemons and workers do, within a
heartbeat). Called by: the group in `cli`.
"""

from __future__ import annotations

import click

from streamflow.cli.acting import Choice, act, act_in_bulk, acting_options
from streamflow.cli.completing import QUEUE, RUN
from streamflow.cli.whole import chosen_whole, pause_named
from streamflow.errors import UsageError


@click.command()
@click.argument("run", type=RUN, metavar="[RUN]", required=False)
@click.option("--queue", type=QUEUE, metavar="NAME", help="Pause this queue: workers take nothing more from it.")
@click.option("--runs", is_flag=True, help="Pause the runs that match the filters, each by itself.")
@click.option("--reason", default="", metavar="TEXT", help="Why, for those who find it paused.")
@click.option("--force", is_flag=True, help="Also a queue or workflow that nobody has used or registered yet.")
@acting_options
def pause(run: str | None, queue: str | None, runs: bool, reason: str, force: bool, choice: Choice) -> int:
    """Have nothing new begin: of a run, of a whole workflow, or in a queue.

    What is under way ends, and its results are kept, as are signals and questions. --workflow NAME alone pauses the
    workflow: its runs begin no step and no other attempt, and new ones are accepted and wait. With --queue, workers
    take no step of that queue. Both within a heartbeat. RUN pauses one run, and --runs with filters each run that
    matches: their number and some of them are shown first, and it asks, unless --yes is given.

    A cancel of a paused run cleans up, and ends it. `streamflow status` and `show` say who has paused what, and why;
    `streamflow resume` lets it go on.

    \b
    Examples:
      streamflow pause --workflow enrich --reason "429 from api.example"
      streamflow pause --queue gpu --reason "the driver is updated"
      streamflow pause invoice-17
      streamflow pause --runs --workflow order --since 2h --yes
    """
    from streamflow.actions import Pause

    whole = chosen_whole("pause", run, queue, runs, choice)
    if force and whole is None:
        raise UsageError("--force is for --queue and --workflow")
    if whole is not None:
        return pause_named(whole, reason, force, choice)
    choice.check("pause", (run,) if run else (), own=bool(reason))
    if run:
        return act(Pause(reason=reason), run, choice)
    return act_in_bulk(None if choice.resume else Pause(reason=reason), "pause", choice)
