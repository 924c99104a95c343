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
@click.option(
    "--cluster", is_flag=True, help="On a cluster of three masters, one of which is killed, too, not on one server."
)
@json_option
def demo(path: Path | None, daemons: int, cluster: bool, as_json: bool) -> int:
    """Map a source tree with three daemons and kill one of them midway.

    A step parses each file below PATH (default: Python's standard library), and each package is a child run. Midway,
    one daemon gets SIGKILL. The exit code is 0 only if the totals equal a direct count without streamflow.

    With --cluster, the server is a real cluster of three masters with a replica each, and one master gets SIGKILL, too.

    \b
    Example:
      streamflow demo ~/src/project
    """
    from streamflow.demo.run import run_demo

    console = make_console()
    return run_async(
        lambda: run_demo(path, as_json=as_json, console=console, daemons=daemons, cluster=cluster),
        fast=True,
        screen=console.is_terminal and not as_json,
    )
