"""`resume`: have a run, a workflow, a queue, or all runs that match filters go on after a pause.

Owns: its options and output. Must not: begin anything (daemons and workers do, within a heartbeat). Called by: the
group in `cli`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from streamflow.cli.acting import Choice, act, act_in_bulk, acting_options
from streamflow.cli.completing import QUEUE, RUN
from streamflow.cli.whole import chosen_whole, resume_named

if TYPE_CHECKING:
    from streamflow.client.client import Client


@click.command()
@click.argument("run", type=RUN, metavar="[RUN]", required=False)
@click.option("--queue", type=QUEUE, metavar="NAME", help="The queue that goes on.")
@click.option("--runs", is_flag=True, help="Resume the paused runs that match the filters.")
@acting_options
def resume(run: str | None, queue: str | None, runs: bool, choice: Choice) -> int:
    """Have go on what `streamflow pause` has paused: a run, a whole workflow, or a queue.

    It goes on within a heartbeat; each run gets what came meanwhile, in order. --workflow NAME alone resumes the
    workflow, but for runs of it that are paused by themselves: those with RUN, or all that match filters with --runs.
    The exit code is 1 if it was not paused.

    \b
    Examples:
      streamflow resume --workflow enrich
      streamflow resume --queue gpu
      streamflow resume invoice-17
      streamflow resume --runs --workflow order --yes
    """
    from streamflow.actions import Resume

    whole = chosen_whole("resume", run, queue, runs, choice)
    if whole is not None:
        return resume_named(whole, choice)
    choice.check("resume", (run,) if run else ())
    if run:
        return act(Resume(), run, choice, _check_paused)
    return act_in_bulk(None if choice.resume else Resume(), "resume", choice)


async def _check_paused(client: Client, run_id: str) -> None:
    """Raises `RunError` unless the run is paused by itself."""
    from streamflow.errors import RunError

    found = await client.run(run_id).describe()
    pause = next((wait for wait in found.waits_for if wait.kind == "pause"), None)
    if pause is None:
        raise RunError(f"run {run_id} is not paused: it is {found.status}", run_id)
    if pause.name == "workflow":
        whole = f"workflow {found.workflow} is: streamflow resume --workflow {found.workflow}"
        raise RunError(f"run {run_id} is not paused by itself, its {whole}", run_id)
