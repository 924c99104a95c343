"""`status`: daemons, shards, throughput, latencies and failures, once or live.

Owns: its options, the lines of `--check`, the table of `--shards`, the picture of `--svg`. Must not: draw the screen
(`screen/` does), say what is wrong (`status/words.py` does), change anything. Called by: the group in `cli`.
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
    "--check", "checking", is_flag=True,
    help="Only say what is wrong, as the first line of the screen does; exit code 1 if something needs a person.",
)  # fmt: skip
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
    checking: bool,
    svg: str | None,
    redis: str | None,
    namespace: str | None,
    as_json: bool,
) -> int:
    """Show daemons, shards, throughput, latencies and failures.

    With --watch and --json, prints one JSON object per line, every --interval seconds.

    With --check, prints a line for each thing that is wrong, the worst first, with a command that shows more of it. The
    exit code is 0 if there is nothing but notes, such as a daemon that drains, else 1.

    \b
    Examples:
      streamflow status --watch
      streamflow status --check
      streamflow status --svg status.svg
    """
    import anyio

    from streamflow.settings import load_settings
    from streamflow.status.collector import StatusCollector

    if checking and (watching or shards or svg is not None):
        raise UsageError("--check prints only what is wrong: leave out --watch, --shards and --svg")

    async def collect() -> int:
        dead_after = load_settings({}).dead_after
        async with open_client(redis, namespace) as client:
            await client.read_namespace()  # without a namespace: an error, instead of a screen that waits for one
            collector = StatusCollector(client, shards=shards, dead_after=dead_after)
            if svg is not None:
                _save_picture(await collector.settled(), svg)
                return 0
            if checking:
                return _print_health(await collector.settled(), as_json)
            if not watching:
                _print_status(await collector.settled(), shards, as_json)
                return 0
            console = make_console()
            if console.is_terminal and not as_json:
                from streamflow.screen.live import watch

                await watch(collector.collect, console, interval)
            while True:
                _print_status(await collector.collect(), shards, as_json)
                await anyio.sleep(interval)

    try:
        return run_async(collect, screen=watching and sys.stdout.isatty())
    except KeyboardInterrupt:
        if not watching:
            raise
        return 0


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


def _print_health(status: NamespaceStatus, as_json: bool) -> int:
    """Returns the exit code."""
    from streamflow.status.words import health, needs_a_person

    sentences = health(status)
    ok = not needs_a_person(sentences)
    if as_json:
        print_json({"ok": ok, "health": _plain_health(status)})
        return 0 if ok else 1
    from streamflow.screen.sanitize import safe

    if not sentences:
        click.echo("healthy")
    for sentence in sentences:
        more = f": {sentence.command}" if sentence.command else ""
        click.echo(f"{sentence.level:<7}  {safe(sentence.text + more)}")
    return 0 if ok else 1


def _plain_health(status: NamespaceStatus) -> list[dict[str, str]]:
    import msgspec

    from streamflow.status.words import health

    return [msgspec.to_builtins(sentence) for sentence in health(status)]


def _print_status(status: NamespaceStatus, shards: bool, as_json: bool) -> None:
    from streamflow.status.model import status_json

    if as_json:
        fields = status_json(status) | {"health": _plain_health(status)}
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
