"""`export`: write a run's history to a file that `replay` reads.

Owns: its options and output. Must not: know the file's format (client/histories.py does).
Called by: the group in `cli`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from streamflow.cli.completing import RUN
from streamflow.cli.connection import open_client
from streamflow.cli.event_loop import run_async
from streamflow.cli.finding import find_run
from streamflow.cli.options import json_option, server_options
from streamflow.cli.output import print_json
from streamflow.errors import UsageError

if TYPE_CHECKING:
    from streamflow.client.histories import History


@click.command()
@click.argument("run", type=RUN, metavar="RUN")
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", show_default="stdout",
    help="Write to this file; missing directories are created.",
)  # fmt: skip
@server_options
@json_option
def export(run: str, output: Path | None, redis: str | None, namespace: str | None, as_json: bool) -> None:
    """Export a run's history to a file that `replay` reads.

    The history is one JSON document. With --output and --json, a summary of what was written is printed as JSON.

    \b
    Example:
      streamflow export invoice-17 --output tests/histories/invoice-17.json
    """
    from streamflow.client.histories import dump_history, read_history

    async def fetch() -> History:
        nonlocal run
        async with open_client(redis, namespace) as client:
            run = await find_run(client, run)
            return await read_history(client, run)

    history = run_async(fetch)
    data = dump_history(history)
    if output is None:
        click.echo(data, nl=False)
        return
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(data)
    except OSError as error:
        raise UsageError(f"can't write {output}: {error.strerror}") from None
    count = sum(len(transition.events) for transition in history.decoded())
    if as_json:
        print_json({"run_id": run, "file": str(output), "events": count})
    else:
        click.echo(f"{count} event{'s' * (count != 1)} of {run} written to {output}")
