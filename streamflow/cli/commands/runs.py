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
from streamflow.cli.unknown_workflow import warn_of_unknown_workflow
from streamflow.errors import UsageError
from streamflow.text import plural

if TYPE_CHECKING:
    from streamflow.client.hibernating import HibernatingPage
    from streamflow.client.listing import RunPage
    from streamflow.client.newest import Changes


@click.command()
@filter_options
@click.option(
    "--sort", type=click.Choice(["created", "changed"]),
    help="The order, newest first; refused where the server doesn't keep that one.",
)  # fmt: skip
@click.option(
    "--newest",
    is_flag=True,
    help="The runs whose status has changed last, at most 200, a second old: one read, without filters.",
)
@click.option(
    "--archived",
    is_flag=True,
    help="Runs in the namespace's archive that are not on the server, those that were archived last first.",
)
@click.option(
    "--hibernating",
    is_flag=True,
    help="Runs that were moved out of the server's memory because they have waited for long; other listings leave them "
    "out. In no order; of the filters only --workflow.",
)
@click.option("--next", "after", metavar="CURSOR", default="", help="The next page, as the page before has named it.")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), metavar="N", default=20, show_default=True,
    help="Maximum number of runs.",
)  # fmt: skip
@server_options
@json_option
def runs(
    filters: dict[str, Any],
    sort: str | None,
    newest: bool,
    archived: bool,
    hibernating: bool,
    after: str,
    limit: int,
    redis: str | None,
    namespace: str | None,
    as_json: bool,
) -> None:
    """List runs, newest first.

    Runs are ordered by their latest change of status; with --tenant or --attribute, and those that are running or
    pending, by their start. A run is listed if it matches all filters. WAITS FOR is what an open run waits for, if it
    is among the newest 100 of these; WHY is the innermost error of a failed run, through its children and steps; of
    stuck runs the whole reason stands below the table.

    Of how many runs filters were asked, and how the next page is got, stands on stderr. The next page needs the same
    filters; --since 2h then means what it meant for the first page. Runs that have started or changed since aren't in
    it.

    \b
    Examples:
      streamflow runs --status failed --workflow invoice
      streamflow runs --error ConnectTimeout --since 2h --roots
      streamflow runs --attribute customer=acme --attribute priority=2
      streamflow runs --archived --status failed --since 90d
      streamflow runs --hibernating --workflow reminder
    """

    if newest:
        if after or sort or filters or archived or hibernating:
            raise UsageError("--newest has no filters, no order and no pages: leave it out, or the others")
        _show_newest(redis, namespace, limit, as_json)
        return

    if archived and sort:
        raise UsageError("archived runs are in the order in which they were archived: leave --sort out")

    if hibernating:
        if sort or archived or filters.keys() - {"workflow"}:
            raise UsageError("--hibernating has no order and no filter but --workflow: leave the others out")
        _show_hibernating(redis, namespace, filters.get("workflow"), after, limit, as_json)
        return

    async def fetch() -> tuple[RunPage, int, bool]:
        async with open_client(redis, namespace) as client:
            if archived:
                found = await client.archived_runs(**filters, after=after, limit=limit)
            else:
                found = await client.runs(**filters, sort=sort, after=after, limit=limit, waits=True)
            has_archive = bool((await client.read_namespace()).archive)
            nonlocal asleep
            asleep = await client.hibernating() if has_archive and not archived else 0
            if not found:
                await warn_of_unknown_workflow(client, filters.get("workflow"))
            return found, await server_time_ms(client), has_archive

    asleep = 0
    found, now_ms, has_archive = run_async(fetch)
    if as_json:
        print_json([plain_run(run) for run in found])
        _say_more(found, asleep)
        return
    if not found:
        click.echo(_nothing(bool(filters or after), archived, has_archive), err=True)
        _say_more(found, asleep)
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
            waits=run.waits_for,
        )
        for run in found
    ]
    console = make_console()
    print_drawn(console, runs_table(rows, now_ms, console.width))
    if reasons := reasons_of(rows):
        print_drawn(console, reasons)
    _say_more(found, asleep)


def _say_more(page: RunPage, asleep: int) -> None:
    """What the filters were asked about, if they left something out, and how to go on. It isn't part of the data."""
    if asleep:
        click.echo(f"not listed: {plural(asleep, 'hibernating run')} (--hibernating lists them)", err=True)
    if page.looked_at > len(page):
        click.echo(f"{len(page):,} of {plural(page.looked_at, 'run')} looked at", err=True)
    if page.after:
        click.echo(f"next page: --next {page.after}", err=True)


def _nothing(is_part: bool, archived: bool, has_archive: bool) -> str:
    """What is said instead of a list. `is_part`: only a part was asked for, by filters or as a page."""
    if archived or (is_part and not has_archive):
        return "no matching runs"
    if has_archive:
        return f"no {'matching runs' if is_part else 'runs'} on the server: --archived lists those in the archive"
    return "no runs yet: start one with `streamflow enqueue`"


def _show_hibernating(
    redis: str | None, namespace: str | None, workflow: str | None, after: str, limit: int, as_json: bool
) -> None:
    import msgspec

    async def fetch() -> tuple[HibernatingPage, int, int]:
        async with open_client(redis, namespace) as client:
            page = await client.hibernating_runs(workflow=workflow, limit=limit, after=after)
            if not page:
                await warn_of_unknown_workflow(client, workflow)
            return page, await client.hibernating(), await server_time_ms(client)

    page, count, now_ms = run_async(fetch)
    if as_json:
        rows = [msgspec.to_builtins(run, enc_hook=str) for run in page]
        print_json([{"run_id": row.pop("id"), **row} for row in rows])
    elif page:
        from streamflow.screen.tables import RunRow, runs_table
        from streamflow.screen.waits import hibernating_wait

        rows = [
            RunRow(
                run_id=run.id,
                workflow=run.workflow or "(long name)",
                tenant="",
                status="hibernating",
                started=epoch_ms(run.created),
                ended=0,
                waits=[hibernating_wait(run.due)],
            )
            for run in page
        ]
        console = make_console()
        print_drawn(console, runs_table(rows, now_ms, console.width))
    click.echo(f"{len(page):,} of {plural(count, 'hibernating run')}", err=True)
    if page.after:
        click.echo(f"next page: --next {page.after}", err=True)


def _show_newest(redis: str | None, namespace: str | None, limit: int, as_json: bool) -> None:
    import msgspec

    async def fetch() -> Changes:
        async with open_client(redis, namespace) as client:
            await client.read_namespace()
            return await client.newest()

    found = run_async(fetch)
    shown = found.runs[:limit]
    if as_json:
        print_json(msgspec.to_builtins(msgspec.structs.replace(found, runs=shown)))
        return
    if not shown:
        click.echo("the views have no runs yet: daemons merge them once a second", err=True)
        return
    from rich.table import Table
    from rich.text import Text

    from streamflow.screen.sanitize import safe
    from streamflow.screen.style import STATUS

    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("CHANGED", "STATUS", "WORKFLOW", "RUN"):
        table.add_column(heading, no_wrap=heading != "RUN", overflow="fold")
    for run in shown:
        at, status = f"{run.at:%Y-%m-%d %H:%M:%S}", Text(run.status, STATUS.get(run.status, ""))
        table.add_row(at, status, safe(run.workflow), safe(run.id))
    print_drawn(make_console(), table)
