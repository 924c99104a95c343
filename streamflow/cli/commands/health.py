"""`health`: whether the daemons, workers and sinks on this machine are well, for the health check of a container.

Owns: its options and its exit code. Must not: judge (each process says what is wrong with it), ask a server.
Called by: the group in `cli`.
"""

from __future__ import annotations

import click

from streamflow.cli.options import json_option
from streamflow.cli.output import print_json


@click.command()
@click.option("--pid", type=click.IntRange(min=1), metavar="PID", help="Only this process; default: all of them.")
@click.option("--live", is_flag=True, help="Count only what a restart helps against, as /health does.")
@json_option
def health(pid: int | None, live: bool, as_json: bool) -> None:
    """Check the daemons, workers and sinks on this machine; the exit code says it.

    Exit code 0: there is at least one, and each is healthy. 1: one has a problem, hangs, or there is none. A line says
    why. Problems are: an event loop that is blocked, loops that fail, hung threads without end, heartbeats that the
    server doesn't confirm, a daemon that owns no shard although it should. With --live, what is wrong with the server
    or the shards is a warning: for probes whose failure restarts the process; and always that a sink's target is down.
    It asks no server, and finds processes of the same user with the same TMPDIR.

    \b
    Example:
      streamflow health --json
    """
    import msgspec

    from streamflow.health import read_all, reports
    from streamflow.screen.sanitize import safe

    found = [one.judged(live=live) for one in read_all(pid)]
    healthy = bool(found) and all(one.healthy for one in found)
    if as_json:
        print_json({"healthy": healthy, "processes": msgspec.to_builtins(found)})
    elif not found:
        who = "no daemon, worker or sink" + (f" with process id {pid}" if pid is not None else "")
        click.echo(f"{who} reports in {reports()}: if one runs, call this as its user, with its TMPDIR")
    else:
        for one in found:
            head = f"{one.kind} {one.name}: "
            notes = [*one.problems, *(f"warning: {warning}" for warning in one.warnings)]
            if one.healthy:
                notes.insert(0, "healthy")
            for note in notes:
                click.echo(safe(head + note))
    if not healthy:
        raise SystemExit(1)
