"""`demo`: map a source tree with three daemons and kill one of them midway.

Owns: its options. Must not: know what the demo does (streamflow/demo/ does). Called by: the group in `cli`.
"""

from __future__ import annotations

from pathlib import Path

import click

from streamflow.cli.event_loop import run_async
from streamflow.cli.options import json_option
from streamflow.cli.output import make_console
from streamflow.errors import UsageError

RUNS = 100_000
LEAST_RUNS = 200
"""Of `--incidents`: with fewer, there is nothing beside them."""


@click.command()
@click.argument("path", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--daemons", type=click.IntRange(2, 16), metavar="N", default=3, show_default=True,
    help="Number of daemon processes.",
)  # fmt: skip
@click.option(
    "--cluster", is_flag=True, help="On a cluster of three masters, one of which is killed, too, not on one server."
)
@click.option("--incidents", is_flag=True, help="Make a namespace in which twelve things are wrong, and keep it.")
@click.option(
    "--runs", type=click.IntRange(LEAST_RUNS), metavar="N",
    help=f"With --incidents: number of runs, {RUNS:,} if not given.",
)  # fmt: skip
@json_option
def demo(path: Path | None, daemons: int, cluster: bool, incidents: bool, runs: int | None, as_json: bool) -> int:
    """Map a source tree with three daemons and kill one of them midway.

    A step parses each file below PATH (default: Python's standard library), and each package is a child run. Midway,
    one daemon gets SIGKILL. The exit code is 0 only if the totals equal a direct count without streamflow.

    With --cluster, the server is a real cluster of three masters with a replica each, and one master gets SIGKILL, too.

    With --incidents, it is for practice in operating: a namespace of 100,000 runs in which twelve things are wrong. It
    prints what, and the commands that show and mend each of them, and lasts until Ctrl-C. A line "fix" on its stdin
    deploys the next release of its app.

    \b
    Examples:
      streamflow demo ~/src/project
      streamflow demo --incidents
    """
    if incidents and (path is not None or cluster):
        raise UsageError("--incidents has runs of its own, on one server: leave out PATH and --cluster")
    if runs is not None and not incidents:
        raise UsageError("--runs says how many runs --incidents makes: add --incidents")
    console = make_console()
    if incidents:
        from streamflow.demo.incidents.run import run_incidents

        number = RUNS if runs is None else runs
        return run_async(lambda: run_incidents(number, daemons=daemons, as_json=as_json, console=console), fast=True)
    from streamflow.demo.run import run_demo

    return run_async(
        lambda: run_demo(path, as_json=as_json, console=console, daemons=daemons, cluster=cluster),
        fast=True,
        screen=console.is_terminal and not as_json,
    )
