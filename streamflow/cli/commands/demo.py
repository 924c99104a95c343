"""`demo`: map a source tree with three daemons and kill one of them midway.

Owns: its options. Must not: know what the demo does (streamflow/demo/ does). Called by: the group in `cli`.
"""

from __future__ import annotations

from pathlib import Path

import click

from streamflow.cli.event_loop import run_async
from streamflow.cli.options import json_option
from streamflow.cli.output import make_console


@click.command()
@click.argument("path", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--daemons", type=click.IntRange(2, 16), metavar="N", default=3, show_default=True,
    help="Number of daemon processes.",
)  # fmt: skip
@json_option
def demo(path: Path | None, daemons: int, as_json: bool) -> int:
    """Map a source tree with three daemons and kill one of them midway.

    A step parses each file below PATH (default: Python's standard library), and each package is a child run. Midway,
    one daemon gets SIGKILL. The exit code is 0 only if the totals equal a direct count without streamflow.

    \b
    Example:
      streamflow demo ~/src/project
    """
    from streamflow.demo.run import run_demo

    return run_async(lambda: run_demo(path, as_json=as_json, console=make_console(), daemons=daemons), fast=True)
