"""`views`: count the cross-shard views again from the shards' logs, or one view of an app.

Owns: its output, and the note that running daemons keep counts in memory. Must not: know what a view counts.
Called by: the group in `cli`.
"""

from __future__ import annotations

import click

from streamflow.cli.connection import open_client, server_time_ms
from streamflow.cli.event_loop import run_async
from streamflow.cli.options import json_option, server_options
from streamflow.cli.output import print_json
from streamflow.errors import UsageError
from streamflow.text import plural


@click.command()
@click.argument("action", type=click.Choice(["rebuild", "remove"]), metavar="rebuild|remove")
@click.argument("name", required=False)
@server_options
@json_option
def views(action: str, name: str | None, redis: str | None, namespace: str | None, as_json: bool) -> None:
    """Rebuild the cross-shard views from the shards' logs.

    Everything in the logs is counted again. Entries that were trimmed from the logs have been counted before, and stay
    counted. A running daemon keeps the counts of its shards in memory and writes them back over the rebuilt ones: if
    you doubt those counts, stop the daemons first.

    With NAME, a view of an app: `rebuild` has running daemons count it again from logs, records and archive, and
    `remove` deletes a view that no app has any more.

    \b
    Example:
      streamflow views rebuild
      streamflow views remove cost
    """
    from streamflow.client.views import forget_view, unknown_view
    from streamflow.daemon.rollup import rebuild_views
    from streamflow.store.connection import Call

    if name is None and action == "remove":
        raise click.UsageError("name the view that is to be removed, as `streamflow view` lists it")

    async def rebuild() -> tuple[int, int, int]:
        async with open_client(redis, namespace) as client:
            shards = (await client.read_namespace()).shards
            now_ms = await server_time_ms(client)
            members = await client.store.one(Call.plain("HLEN", client.keys.members))
            return await rebuild_views(client.store, client.kernel, shards, now_ms), shards, int(members)

    async def forget(view: str) -> int:
        async with open_client(redis, namespace) as client:
            shards = (await client.read_namespace()).shards
            now_ms = await server_time_ms(client)
            known = await client.views()
            is_removed = action == "remove"
            if not is_removed and view not in known:
                raise UsageError(unknown_view(view, known))
            parts = await forget_view(client.store, client.kernel, shards, view, now_ms, merged=is_removed)
            if not parts and view not in known:
                raise UsageError(unknown_view(view, known))
            return parts

    if name is not None:
        parts = run_async(lambda: forget(name))
        if as_json:
            print_json({"view": name, "shards": parts})
        elif action == "remove":
            click.echo(f"removed view {name}, which {plural(parts, 'shard')} had counted")
        else:
            click.echo(f"daemons count view {name} again in {plural(parts, 'shard')}, from logs, records and archive")
        return
    entries, shards, members = run_async(rebuild)
    if members:
        click.echo("note: running daemons will overwrite the rebuilt counts with the ones in their memory", err=True)
    if as_json:
        print_json({"entries": entries, "shards": shards})
    else:
        click.echo(f"counted {entries:,} log entr{'y' if entries == 1 else 'ies'} of {plural(shards, 'shard')}")
