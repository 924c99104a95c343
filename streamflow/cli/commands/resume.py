"""`resume`: have a paused queue go on.

Owns: its options and output. Must not: begin anything (workers do, within a heartbeat). Called by: the group in `cli`.
"""

from __future__ import annotations

import click

from streamflow.cli.connection import open_client
from streamflow.cli.event_loop import run_async
from streamflow.cli.options import json_option, server_options
from streamflow.cli.output import print_json


@click.command()
@click.option("--queue", required=True, metavar="NAME", help="The queue that goes on.")
@server_options
@json_option
def resume(queue: str, redis: str | None, namespace: str | None, as_json: bool) -> int:
    """Have a paused queue go on.

    Workers take attempts from it again within a heartbeat. The exit code is 1 if it was not paused.

    \b
    Example:
      streamflow resume --queue gpu
    """
    from streamflow.screen.sanitize import safe
    from streamflow.store.pauses import Pause

    async def send() -> Pause | None:
        async with open_client(redis, namespace) as client:
            return await client.resume_queue(queue)

    before = run_async(send)
    if as_json:
        print_json({"queue": queue, "paused": False, "already": before is None})
    elif before is None:
        click.echo(f"error: queue {queue} is not paused", err=True)
    else:
        click.echo(safe(f"queue {queue} goes on; it was paused {before.says()}".rstrip()))
    return 0 if before is not None else 1
