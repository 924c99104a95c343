"""`runs`: list runs, newest first.

Owns: its filters. Must not: draw the table (screen/tables.py does), change anything. Called by: the group in `cli`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from streamflow.cli.connection import open_client, server_time_ms
from streamflow.cli.event_loop import run_async
from streamflow.cli.options import json_option, server_options
from streamflow.cli.output import epoch_ms, make_console, plain_run, print_drawn, print_json
from streamflow.errors import UsageError

if TYPE_CHECKING:
    from streamflow.client.listing import RunSummary
    from streamflow.model.attributes import Attribute

STATUSES = ["pending", "running", "stuck", "completed", "failed", "cancelled"]


@click.command()
@click.option("--status", type=click.Choice(STATUSES), help="Only runs with this status.")
@click.option("--workflow", metavar="NAME", help="Only runs of this workflow.")
@click.option("--tenant", metavar="NAME", help="Only runs of this tenant.")
@click.option(
    "--attribute", "attributes", multiple=True, metavar="NAME=VALUE",
    help="Only runs with this attribute; VALUE is parsed as JSON, else as text. May be repeated.",
)  # fmt: skip
@click.option("--error", metavar="TEXT", help="Only runs that failed with TEXT in their error, or are stuck for it.")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), metavar="N", default=20, show_default=True,
    help="Maximum number of runs.",
)  # fmt: skip
@server_options
@json_option
def runs(
    status: str | None,
    workflow: str | None,
    tenant: str | None,
    attributes: tuple[str, ...],
    error: str | None,
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
    wanted = dict(_parse_attribute(text) for text in attributes)

    async def fetch() -> tuple[list[RunSummary], int]:
        async with open_client(redis, namespace) as client:
            found = await client.runs(
                status=status, workflow=workflow, tenant=tenant, attributes=wanted, error=error, limit=limit
            )
            return found, await server_time_ms(client)

    found, now_ms = run_async(fetch)
    if as_json:
        print_json([plain_run(run) for run in found])
        return
    if not found:
        filtered = bool(wanted) or any(value is not None for value in (status, workflow, tenant, error))
        click.echo("no matching runs" if filtered else "no runs yet: start one with `streamflow enqueue`", err=True)
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


def _parse_attribute(text: str) -> tuple[str, Attribute]:
    """`customer=acme` or `priority=2`. Text that is also JSON needs quotes: `code='"17"'`. Raises `UsageError`."""
    import msgspec

    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--attribute {text}: expected NAME=VALUE")
    try:
        parsed: Any = msgspec.json.decode(value)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return name, value
    if not isinstance(parsed, str | int | float | bool):
        raise UsageError(f"--attribute {text}: the value must be text, a number, true or false")
    return name, parsed
