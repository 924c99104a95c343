"""`fork`: start a new run that shares the beginning of a run's history, or one for each that matches filters.

Owns: its options. Must not: decide where a history is cut. Called by: the group in `cli`.
"""

from __future__ import annotations

import click

from streamflow.cli.acting import Choice, act, act_in_bulk, acting_options
from streamflow.cli.completing import RUN
from streamflow.cli.options import checked_id, parse_json
from streamflow.errors import UsageError


@click.command()
@click.argument("run", type=RUN, metavar="[RUN]", required=False)
@click.option("--at", type=click.IntRange(1), metavar="EVENT", help="Number of the event that happens again.")
@click.option("--input", "text", metavar="JSON", help="Another input: JSON, @FILE, or - for stdin, as of enqueue.")
@click.option("--id", "fork_id", type=checked_id, metavar="ID", help="Id of the new run.")
@click.option("--reason", default="", help="Why; recorded in the history of the new run.")
@acting_options
def fork(run: str | None, at: int | None, text: str | None, fork_id: str | None, reason: str, choice: Choice) -> int:
    """Start a new run that shares a run's history up to an event.

    It goes on from there by today's code. `streamflow show RUN` has the numbers of events. What is before EVENT is
    shared: results are kept, and no step of it runs again. Without --at, a run that has failed is forked from where it
    failed, one that was cancelled from before that, an open one where it is, and with --input from the beginning.

    The run itself stays as it is. `show` names it in its fork, and its forks in it.

    With filters instead of RUN each run that matches gets a fork: their number and some of them are shown first, and it
    asks, unless --yes is given.

    \b
    Examples:
      streamflow fork onboard-17 --at 2 --input '"kim@example.com"'
      streamflow fork --workflow enrich --status completed --at 9 --reason "the new model" --yes
    """
    from streamflow.actions import Fork

    own = at is not None or text is not None or fork_id is not None or bool(reason)
    choice.check("fork", (run,) if run else (), own=own)
    if not run:
        if text is not None or fork_id is not None:
            raise UsageError("--input and --id are for the fork of one RUN, and not for runs that filters choose")
        return act_in_bulk(None if choice.resume else Fork(at=at, reason=reason), "fork", choice)
    payload = b"" if text is None else _payload(run, text, choice)
    return act(Fork(at=at, payload=payload, id=fork_id, reason=reason), run, choice)


def _payload(run: str, text: str, choice: Choice) -> bytes:
    """The encoded input, bound to the parameters of the run's workflow."""
    from streamflow.cli.connection import open_client
    from streamflow.cli.event_loop import run_async
    from streamflow.cli.finding import find_run
    from streamflow.cli.workflow_input import arguments_of
    from streamflow.client.forking import input_of
    from streamflow.input_file import option_text

    value = parse_json(option_text(text, "--input"), "--input")

    async def bind() -> bytes:
        async with open_client(choice.redis, choice.namespace) as client:
            found = await client.run(await find_run(client, run, acts=True)).describe(waits=False)
            return input_of((await arguments_of(client, found.workflow, False)).bind(value))

    return run_async(bind)
