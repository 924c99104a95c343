"""`status`: daemons, shards, throughput, latencies and failures, once or live.

Owns: its options, the table of `--shards`, the picture of `--svg`. Must not: draw the screen (`screen/` does), change
anything. Called by: the group in `cli`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from streamflow.cli.connection import open_client
from streamflow.cli.event_loop import run_async
from streamflow.cli.options import json_option, server_options
from streamflow.cli.output import make_console, print_drawn, print_json
from streamflow.errors import UsageError

if TYPE_CHECKING:
    from streamflow.status.model import NamespaceStatus


@click.command()
@click.option("--watch", "watching", is_flag=True, help="Show a live screen until Ctrl-C.")
@click.option(
    "--interval", type=click.FloatRange(0.1), metavar="SECONDS", default=1.0, show_default=True,
    help="Refresh interval in seconds, with --watch.",
)  # fmt: skip
@click.option("--shards", is_flag=True, help="Also list each shard's owner, inbox and lag.")
@click.option(
    "--svg",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Save the screen as a picture instead of printing it.",
)
@server_options
@json_option
def status(
    watching: bool,
    interval: float,
    shards: bool,
    svg: str | None,
    redis: str | None,
    namespace: str | None,
    as_json: bool,
) -> None:
    """Show daemons, shards, throughput, latencies and failures.

    With --watch and --json, prints one JSON object per line, every --interval seconds.

    \b
    Examples:
      streamflow status --watch
      streamflow status --svg status.svg
    """
    import anyio

    from streamflow.settings import load_settings
    from streamflow.status.collector import StatusCollector

    async def collect() -> None:
        dead_after = load_settings({}).dead_after
        async with open_client(redis, namespace) as client:
            await client.read_namespace()  # without a namespace: an error, instead of a screen that waits for one
            collector = StatusCollector(client, shards=shards, dead_after=dead_after)
            if svg is not None:
                _save_picture(await collector.settled(), svg)
                return
            if not watching:
                _print_status(await collector.settled(), shards, as_json)
                return
            console = make_console()
            if console.is_terminal and not as_json:
                from streamflow.screen.live import watch

                await watch(collector.collect, console, interval)
            while True:
                _print_status(await collector.collect(), shards, as_json)
                await anyio.sleep(interval)

    try:
        run_async(collect, screen=watching and sys.stdout.isatty())
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


def _print_status(status: NamespaceStatus, shards: bool, as_json: bool) -> None:
    from streamflow.status.model import status_json

    if as_json:
        fields = status_json(status)
        if not shards:
            del fields["shards"]
        print_json(fields)
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
        table.add_row(str(shard.number), f"{shard.inbox:,}", lag, safe_text(shard.owner or "none"))
    return table
