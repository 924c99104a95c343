"""`views rebuild`: count the cross-shard views again from the shards' logs.

Owns: its output, and the note that running daemons keep counts in memory. Must not: know what a view counts.
Called by: the group in `cli`.
"""

from __future__ import annotations

import click

from streamflow.cli.connection import open_client, server_time_ms
from streamflow.cli.event_loop import run_async
from streamflow.cli.options import json_option, server_options
from streamflow.cli.output import print_json


@click.command()
@click.argument("action", type=click.Choice(["rebuild"]), metavar="rebuild")
@server_options
@json_option
def views(action: str, redis: str | None, namespace: str | None, as_json: bool) -> None:
    """Rebuild the cross-shard views from the shards' logs.

    Everything in the logs is counted again. Entries that were trimmed from the logs have been counted before, and stay
    counted. A running daemon keeps the counts of its shards in memory and writes them back over the rebuilt ones: if
    you doubt those counts, stop the daemons first.

    \b
    Example:
      streamflow views rebuild
    """
    from streamflow.daemon.rollup import rebuild_views
    from streamflow.store.connection import Call

    async def rebuild() -> tuple[int, int, int]:
        async with open_client(redis, namespace) as client:
            shards = (await client.read_namespace()).shards
            now_ms = await server_time_ms(client)
            members = await client.store.one(Call.plain("HLEN", client.keys.members))
            return await rebuild_views(client.store, client.kernel, shards, now_ms), shards, int(members)

    entries, shards, members = run_async(rebuild)
    if members:
        click.echo("note: running daemons will overwrite the rebuilt counts with the ones in their memory", err=True)
    if as_json:
        print_json({"entries": entries, "shards": shards})
    else:
        click.echo(f"counted {entries:,} log entr{'y' if entries == 1 else 'ies'} of {shards:,} shards")
