"""`pause`: have nothing new begin in a queue.

Owns: its options and output. Must not: stop anything (workers do, within a heartbeat). Called by: the group in `cli`.
"""

from __future__ import annotations

import click

from streamflow.cli.completing import QUEUE
from streamflow.cli.connection import open_client
from streamflow.cli.event_loop import run_async
from streamflow.cli.options import json_option, server_options
from streamflow.cli.output import print_json
from streamflow.errors import UsageError
from streamflow.suggestions import did_you_mean


@click.command()
@click.option("--queue", required=True, type=QUEUE, metavar="NAME", help="The queue that is paused.")
@click.option("--reason", default="", metavar="TEXT", help="Why, for those who find it paused.")
@click.option("--force", is_flag=True, help="Also if no worker or step has used such a queue yet.")
@server_options
@json_option
def pause(queue: str, reason: str, force: bool, redis: str | None, namespace: str | None, as_json: bool) -> None:
    """Have workers take nothing more from a queue.

    Within a heartbeat no worker begins an attempt of it any more; those that are under way end. Steps wait in the queue
    until `streamflow resume`, and `streamflow status` shows who has paused it, and why.

    \b
    Example:
      streamflow pause --queue gpu --reason "the driver is updated"
    """
    from streamflow.actions.audit import me
    from streamflow.screen.sanitize import safe
    from streamflow.store.pauses import Pause

    async def send() -> Pause | None:
        async with open_client(redis, namespace) as client:
            if not force:
                await client.read_namespace()
                known = await client.queues()
                if queue not in known:
                    names = f" Known queues: {', '.join(known)}." if known else ""
                    hint = did_you_mean(queue, known) or "."
                    raise UsageError(f"no worker or step has used queue {queue}{hint}{names} Add --force to pause it")
            return await client.pause_queue(queue, reason=reason, by=me())

    before = run_async(send)
    if as_json:
        print_json({"queue": queue, "paused": True, "already": before is not None})
    elif before is None:
        click.echo(f"queue {queue} is paused: what is under way ends, nothing new begins")
    else:
        click.echo(safe(f"queue {queue} was paused already {before.says()}".rstrip()))
