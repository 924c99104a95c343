"""`resume`: have a paused queue go on.

Owns: its options and output. Must not: begin anything (workers do, within a heartbeat). Called by: the group in `cli`.
"""

from __future__ import annotations

import click

from streamflow.cli.completing import QUEUE
from streamflow.cli.connection import open_client
from streamflow.cli.event_loop import run_async
from streamflow.cli.options import json_option, server_options
from streamflow.cli.output import print_json
from streamflow.suggestions import did_you_mean


@click.command()
@click.option("--queue", required=True, type=QUEUE, metavar="NAME", help="The queue that goes on.")
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

    async def send() -> tuple[Pause | None, list[str]]:
        async with open_client(redis, namespace) as client:
            before = await client.resume_queue(queue)
            return before, [] if before is not None else [*await client.paused_queues()]

    before, paused = run_async(send)
    if as_json:
        print_json({"queue": queue, "paused": False, "already": before is None})
    elif before is None:
        others = f"; paused are: {', '.join(paused)}" if paused else ""
        click.echo(safe(f"error: queue {queue} is not paused{did_you_mean(queue, paused) or others}", 500), err=True)
    else:
        click.echo(safe(f"queue {queue} goes on; it was paused {before.says()}".rstrip()))
    return 0 if before is not None else 1
