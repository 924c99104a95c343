"""What commands print with: consoles for tables and pictures, and JSON.

Owns: how output differs between a terminal and a pipe, and the plain forms of runs, values and failures.
Must not: know any single command. Called by: all command modules.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from streamflow.cli.logs import json_line
from streamflow.text import visible_json

if TYPE_CHECKING:
    from datetime import datetime

    from rich.console import Console

    from streamflow.client.listing import RunSummary
    from streamflow.errors import Failure

PIPE_WIDTH = 160
"""Width of tables that go to a pipe or a file, where no terminal has a width."""


def make_console(stderr: bool = False) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in console._environ:  # pyright: ignore[reportPrivateUsage]
        console.width = PIPE_WIDTH
    return console


def print_drawn(console: Console, drawn: Any) -> None:
    """A picture or table; in a pipe without the blanks that fill its lines up to the width."""
    if console.is_terminal:
        console.print(drawn)
        return
    with console.capture() as capture:
        console.print(drawn)
    click.echo("\n".join(line.rstrip() for line in capture.get().rstrip("\n").split("\n")))


def print_json(value: Any) -> None:
    """One document: indented on a terminal, on one line in a pipe. Every character in it is printable."""
    import msgspec

    text = json_line(value)
    if sys.stdout.isatty():
        text = visible_json(msgspec.json.format(text, indent=2))
    click.echo(text)


# --- plain forms ----------------------------------------------------------------------------------------------------


def plain_value(value: Any) -> Any:
    """A decoded payload as JSON-able data: bytes as base64, values without a JSON form as text."""
    import msgspec

    from streamflow.model.references import shown_value

    return msgspec.to_builtins(value, str_keys=True, enc_hook=shown_value)


def plain_failure(failure: Failure | None) -> dict[str, Any] | None:
    """Its fields by name, with notes, fields, causes and members if it has them."""
    from streamflow.model import plain

    return None if failure is None else plain.plain_failure(failure)


def plain_run(run: RunSummary) -> dict[str, Any]:
    """A run as `runs` and `show` print it: its id is `run_id`, as in everything that `--json` prints."""
    import msgspec

    fields: dict[str, Any] = msgspec.to_builtins(run, str_keys=True, enc_hook=str)
    return {"run_id": fields.pop("id"), **fields}


def epoch_ms(at: datetime) -> int:
    """Milliseconds since the epoch, as the screen counts time."""
    return round(at.timestamp() * 1000)
