"""Commands that only look: `status`, `runs`, `show`.

Owns: their options, and what is fetched for them. Must not: draw (`screen/` does), change anything.
Called by: the group in `cli`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from streamflow.cli.options import (
    checked_id,
    json_option,
    open_client,
    run_async,
    server_options,
)
from streamflow.cli.output import (
    make_console,
    plain_failure,
    plain_value,
    print_drawn,
    print_json,
)
from streamflow.errors import UsageError

if TYPE_CHECKING:
    from datetime import datetime

    from streamflow.client.client import Client
    from streamflow.client.listing import RunDescription, RunSummary
    from streamflow.events import Transition
    from streamflow.model.attributes import Attribute
    from streamflow.status.model import NamespaceStatus

STATUSES = ["pending", "running", "stuck", "completed", "failed", "cancelled"]
LOOK_AT_CHILDREN = 1000


# --- status ---------------------------------------------------------------------------------------------------------


@click.command()
@server_options
@click.option("--watch", "watching", is_flag=True, help="A live screen, until Ctrl-C.")
@click.option("--interval", type=click.FloatRange(0.1), default=1.0, show_default=True, help="Seconds between looks.")
@click.option("--shards", is_flag=True, help="Each shard's owner, inbox and lag.")
@click.option("--svg", type=click.Path(dir_okay=False), help="Save the screen as a picture instead of printing it.")
@json_option
def status(
    redis: str | None,
    namespace: str | None,
    watching: bool,
    interval: float,
    shards: bool,
    svg: str | None,
    as_json: bool,
) -> None:
    """Daemons, shards, throughput, latencies and failures.

    With --watch and --json one object a line, every --interval seconds.

    \b
    Example:
      streamflow status --watch
      streamflow status --svg status.svg
    """
    import anyio

    from streamflow.settings import load_settings
    from streamflow.status.collector import StatusCollector

    async def look() -> None:
        dead_after = load_settings({}).dead_after
        async with open_client(redis, namespace) as client:
            await client.read_namespace()  # that there is no namespace is an error, not a screen that waits for one
            collector = StatusCollector(client, shards=shards, dead_after=dead_after)
            if svg is not None:
                _save_picture(await collector.settled(), svg)
                return
            if not watching:
                _show_status(await collector.settled(), shards, as_json)
                return
            console = make_console()
            if console.is_terminal and not as_json:
                from streamflow.screen.live import watch

                await watch(collector.collect, console, interval)
            while True:
                _show_status(await collector.collect(), shards, as_json)
                await anyio.sleep(interval)

    try:
        run_async(look, screen=watching and sys.stdout.isatty())
    except KeyboardInterrupt:
        if not watching:
            raise


def _save_picture(status: NamespaceStatus, file: str) -> None:
    import io
    import re
    from pathlib import Path

    from rich.console import Console

    from streamflow.screen.layout import render_status

    width, height = 120, 40
    console = Console(file=io.StringIO(), record=True, width=width, height=height, force_terminal=True)
    console.print(render_status(status, width, height))
    picture = console.export_svg(title="streamflow status")
    # Without the fonts that it would load from elsewhere: any monospaced one will do. Without their name, too, because
    # converters that know only the first font of a list draw the columns in a proportional one.
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    picture = picture.replace("Fira Code, monospace", "monospace")
    try:
        Path(file).write_text(picture, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"can't write {file}: {error.strerror}") from None


def _show_status(status: NamespaceStatus, shards: bool, as_json: bool) -> None:
    from streamflow.status.model import status_json

    if as_json:
        shown = status_json(status)
        if not shards:
            del shown["shards"]
        print_json(shown)
        return
    from streamflow.screen.layout import render_status

    console = make_console()
    print_drawn(console, render_status(status, console.width))
    if shards:
        console.print()
        print_drawn(console, _shards_table(status))


def _shards_table(status: NamespaceStatus) -> Any:
    from rich.table import Table

    from streamflow.screen.sanitize import safe_text
    from streamflow.status.collector import COUNT_LAG_TO

    table = Table(box=None, pad_edge=False)
    for title in ("SHARD", "INBOX", "LAG"):
        table.add_column(title, justify="right")
    table.add_column("OWNER")
    for shard in status.shards:
        lag = f"{shard.lag}+" if shard.lag >= COUNT_LAG_TO else str(shard.lag)
        table.add_row(str(shard.number), f"{shard.inbox:,}", lag, safe_text(shard.owner or "nobody"))
    return table


# --- runs -----------------------------------------------------------------------------------------------------------


@click.command()
@server_options
@click.option("--status", type=click.Choice(STATUSES), help="Only runs with this status.")
@click.option("--workflow", metavar="NAME", help="Only runs of this workflow.")
@click.option("--tenant", metavar="NAME", help="Only runs of this tenant.")
@click.option(
    "--attribute",
    "attributes",
    multiple=True,
    metavar="NAME=VALUE",
    help="Only runs with this attribute: JSON if it is some, else text. May be repeated.",
)
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="At most so many.")
@json_option
def runs(
    redis: str | None,
    namespace: str | None,
    status: str | None,
    workflow: str | None,
    tenant: str | None,
    attributes: tuple[str, ...],
    limit: int,
    as_json: bool,
) -> None:
    """List runs, newest first.

    Newest is the latest change of status; with --tenant or --attribute, the latest start. All filters apply together.

    \b
    Example:
      streamflow runs --status failed --workflow invoice
      streamflow runs --attribute customer=acme --attribute priority=2
    """
    wanted = dict(_attribute(text) for text in attributes)

    async def fetch() -> tuple[list[RunSummary], int]:
        async with open_client(redis, namespace) as client:
            found = await client.runs(status=status, workflow=workflow, tenant=tenant, attributes=wanted, limit=limit)
            return found, await _server_ms(client)

    found, now_ms = run_async(fetch)
    if as_json:
        print_json([_as_json(run) for run in found])
        return
    if not found:
        filters = bool(wanted) or any(value is not None for value in (status, workflow, tenant))
        click.echo("no runs that fit" if filters else "no runs yet: start one with streamflow enqueue", err=True)
        return
    from streamflow.screen.tables import RunRow, runs_table

    rows = [
        RunRow(
            run_id=run.id,
            workflow=run.workflow,
            tenant=run.tenant,
            status=run.status,
            started=_ms(run.created),
            ended=_ms(run.ended) if run.ended else 0,
            attributes=run.attributes,
        )
        for run in found
    ]
    console = make_console()
    print_drawn(console, runs_table(rows, now_ms, console.width))


def _attribute(text: str) -> tuple[str, Attribute]:
    """`customer=acme` or `priority=2`. Text that would be JSON needs quotes: `code='"17"'`."""
    import msgspec

    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--attribute {text}: write NAME=VALUE")
    try:
        parsed: Any = msgspec.json.decode(value)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return name, value
    if not isinstance(parsed, str | int | float | bool):
        raise UsageError(f"--attribute {text}: an attribute is a text, a number, true or false")
    return name, parsed


async def _server_ms(client: Client) -> int:
    from streamflow.store.connection import Call

    seconds, micros = await client.store.one(Call.plain("TIME"))
    return int(seconds) * 1000 + int(micros) // 1000


def _ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)


def _as_json(run: RunSummary) -> dict[str, Any]:
    import msgspec

    shown: dict[str, Any] = msgspec.to_builtins(run, str_keys=True, enc_hook=str)
    return {"run_id": shown.pop("id"), **shown}


# --- show -----------------------------------------------------------------------------------------------------------


@click.command()
@click.argument("run", type=checked_id, metavar="RUN")
@server_options
@json_option
def show(run: str, redis: str | None, namespace: str | None, as_json: bool) -> None:
    """Show one run: its state, its history as a timeline, its children, what it published.

    \b
    Example:
      streamflow show invoice-17
    """
    import asyncio

    async def fetch() -> tuple[RunDescription, list[Transition], dict[str, Any], dict[str, str], int]:
        async with open_client(redis, namespace) as client:
            handle = client.run(run)
            described, history, published = await asyncio.gather(
                handle.describe(), handle.history(), handle.published()
            )
            return described, history, published, await _children(client, history), await _server_ms(client)

    described, history, published, children, now_ms = run_async(fetch)
    if as_json:
        from streamflow.model.plain import event_json

        events = [event_json(transition.at, run, event) for transition in history for event in transition.events]
        for event in events:
            del event["run_id"]
        print_json(
            {
                **_as_json(described),
                "result": plain_value(described.result),
                "failure": plain_failure(described.failure),
                "children": children,
                "published": plain_value(published),
                "events": events,
            }
        )
        return
    from streamflow.model.record import Header
    from streamflow.screen.run import RunDetail, render_run

    header = Header(
        described.status,
        described.version,
        "",
        _ms(described.created),
        _ms(described.ended) if described.ended else 0,
        described.workflow,
        described.tenant,
        described.parent or "",
        described.attributes,
    )
    console = make_console()
    detail = RunDetail(
        run_id=run, header=header, transitions=history, children=children, published=published, now_ms=now_ms
    )
    print_drawn(console, render_run(detail, console.width))


async def _children(client: Client, history: list[Transition]) -> dict[str, str]:
    """Statuses of the first children: what the history says of those that have ended, and the truth of the others."""
    import asyncio

    from streamflow import events
    from streamflow.errors import StreamflowError
    from streamflow.events import (
        ChildCompleted,
        ChildStarted,
        RunContinued,
    )

    started: dict[int, str] = {}
    statuses: dict[str, str] = {}
    for transition in history:
        for event in transition.events:
            match event:
                case ChildStarted():
                    started[event.seq] = event.run_id
                case RunContinued():
                    started.update({seq: run_id for seq, _, run_id in event.children})
                case ChildCompleted() if event.seq in started:
                    statuses[started[event.seq]] = "completed"
                case events.ChildFailed() if event.seq in started:
                    statuses[started[event.seq]] = "cancelled" if event.cancelled else "failed"
                case _:
                    pass
    unknown = [child for child in started.values() if child not in statuses][:LOOK_AT_CHILDREN]
    looks = [client.run(child).describe() for child in unknown]
    for child, found in zip(unknown, await asyncio.gather(*looks, return_exceptions=True), strict=True):
        if isinstance(found, BaseException):
            if not isinstance(found, StreamflowError):
                raise found
        else:
            statuses[child] = found.status
    return {child: statuses[child] for child in started.values() if child in statuses}
