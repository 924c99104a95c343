"""`runs`: list runs, newest first.

Owns: its output. Must not: draw the table (screen/tables.py does), change anything. Called by: the group in `cli`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from streamflow.cli.connection import open_client, server_time_ms
from streamflow.cli.event_loop import run_async
from streamflow.cli.filters import filter_options
from streamflow.cli.options import json_option, server_options
from streamflow.cli.output import epoch_ms, make_console, plain_run, print_drawn, print_json

if TYPE_CHECKING:
    from streamflow.client.listing import RunSummary


@click.command()
@filter_options
@click.option(
    "--limit", type=click.IntRange(1, 10_000), metavar="N", default=20, show_default=True,
    help="Maximum number of runs.",
)  # fmt: skip
@server_options
@json_option
def runs(
    filters: dict[str, Any],
    limit: int,
    redis: str | None,
    namespace: str | None,
    as_json: bool,
) -> None:
    """List runs, newest first.

    Runs are ordered by their latest change of status; with --tenant or --attribute, by their start. A run is listed if
    it matches all filters. WHY is the innermost error of a failed run, through its children and steps; of stuck runs
    the whole reason stands below the table.

    \b
    Examples:
      streamflow runs --status failed --workflow invoice
      streamflow runs --error ConnectTimeout
      streamflow runs --attribute customer=acme --attribute priority=2
    """

    async def fetch() -> tuple[list[RunSummary], int]:
        async with open_client(redis, namespace) as client:
            found = await client.runs(**filters, limit=limit)
            return found, await server_time_ms(client)

    found, now_ms = run_async(fetch)
    if as_json:
        print_json([plain_run(run) for run in found])
        return
    if not found:
        click.echo("no matching runs" if filters else "no runs yet: start one with `streamflow enqueue`", err=True)
        return
    from streamflow.screen.tables import RunRow, reasons_of, runs_table

    rows = [
        RunRow(
            run_id=run.id,
            workflow=run.workflow,
            tenant=run.tenant,
            status=run.status,
            started=epoch_ms(run.created),
            ended=epoch_ms(run.ended) if run.ended else 0,
            attributes=run.attributes,
            reason=run.reason,
            error=run.error,
        )
        for run in found
    ]
    console = make_console()
    print_drawn(console, runs_table(rows, now_ms, console.width))
    if reasons := reasons_of(rows):
        print_drawn(console, reasons)
