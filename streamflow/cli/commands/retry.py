"""`retry`: have failed runs go on from where they failed.

Owns: its options and output. Must not: decide where a run goes on. Called by: the group in `cli`.
"""

from __future__ import annotations

import getpass
import socket
from typing import TYPE_CHECKING

import click

from streamflow.cli.connection import open_client
from streamflow.cli.event_loop import run_async
from streamflow.cli.finding import find_run
from streamflow.cli.options import checked_id, json_option, server_options
from streamflow.cli.output import print_json

if TYPE_CHECKING:
    from streamflow.client.retrying import Retried

MOST_STEPS = 5
"""Steps that are named."""


@click.command()
@click.argument("run", type=checked_id, metavar="RUN")
@click.option("--step", metavar="STEP", help="Name or number of a step of an open run: have its next attempt begin.")
@click.option("--reason", default="", help="Why; recorded in the run's history.")
@click.option("--anyway", is_flag=True, help="Also if the run has undone things since, as a saga does.")
@click.option("--alone", is_flag=True, help="Also if the run is the child of one that failed because of it.")
@server_options
@json_option
def retry(
    run: str,
    step: str | None,
    reason: str,
    anyway: bool,
    alone: bool,
    redis: str | None,
    namespace: str | None,
    as_json: bool,
) -> None:
    """Have a failed run go on from where it failed.

    The step that failed is tried again, and all recorded results are kept. If the code itself failed, deploy the mended
    code first: it gets once more what it had got last. A run that can't go on is refused, and nothing has changed.

    With --step the run is open, and a step of it hangs: its attempt is given up, and the next one begins.

    \b
    Example:
      streamflow retry invoice-17 --reason "the bank is back"
      streamflow retry invoice-18 --step charge
    """

    async def send() -> Retried:
        nonlocal run
        async with open_client(redis, namespace) as client:
            run = await find_run(client, run, acts=True)
            return await client.run(run).retry(step=step, reason=reason, by=_me(), anyway=anyway, alone=alone)

    retried = run_async(send)
    if as_json:
        steps = [{"name": step.name, "seq": step.seq, "attempt": step.attempt} for step in retried.steps]
        print_json({"run_id": run, "kept": retried.kept, "steps": steps, "parent": retried.parent})
        return
    named = [f"step {step.name}, attempt {step.attempt}" for step in retried.steps[:MOST_STEPS]]
    if (more := len(retried.steps) - MOST_STEPS) > 0:
        named.append(f"{more:,} more steps" if more > 1 else "1 more step")
    results = "1 result is kept" if retried.kept == 1 else f"{retried.kept:,} results are kept"
    click.echo(f"{run} goes on: {'; '.join([*named, results])}")
    if retried.parent is not None:
        click.echo(f"its parent {retried.parent} has taken its failure, and gets nothing from it any more")


def _me() -> str:
    """Who asks, for the run's history."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):  # a container's user may have no name
        return socket.gethostname()
