"""`archive`: which storage the namespace names as its archive, and whether that is it; or make it this server's.

Owns: its output, and the question. Must not: know what a marker has. Called by: the group in `cli`.
"""

from __future__ import annotations

import sys

import click

from streamflow.cli.connection import open_client
from streamflow.cli.event_loop import run_async
from streamflow.cli.options import json_option, server_options
from streamflow.cli.output import print_json
from streamflow.errors import ArchiveError, UsageError


@click.command()
@click.option("--take", is_flag=True, help="Make it this server's: other servers that use it are refused.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@server_options
@json_option
def archive(take: bool, yes: bool, redis: str | None, namespace: str | None, as_json: bool) -> int:
    """Show the namespace's archive, and whether it is the right storage.

    An archive has a marker that says whose it is. If it isn't there, because a directory isn't mounted, say, or is that
    of another server, daemons neither read nor write there, and the exit code is 1. With --take a new marker is
    written: after the data of the server were deleted, or a copy of the server goes on in place of the original.

    \b
    Examples:
      streamflow archive
      streamflow archive --take
    """
    from streamflow.archive.storage import Threads
    from streamflow.archive_url import NONE, shown_archive
    from streamflow.daemon.archive_guard import ArchiveGuard

    async def act(*, taking: bool) -> tuple[str, str]:
        async with open_client(redis, namespace) as client:
            url = (await client.read_namespace()).archive
            if url in ("", NONE):
                return "", ""
            guard = ArchiveGuard(client.store, client.kernel, client.namespace)
            threads = Threads(url, guard=guard)
            if taking:
                await guard.take(threads)
            try:
                await threads.check(again=True)
            except ArchiveError as error:
                return shown_archive(url), str(error)
            return shown_archive(url), ""

    if take and not yes and not sys.stdin.isatty():
        raise UsageError("--take locks other servers out of the archive, and there is no terminal to ask at: add --yes")
    url, problem = run_async(lambda: act(taking=False))
    if take and url:
        if not yes:
            click.echo(problem or f"{url} is this server's already: copies of it are refused from now on", err=True)
            click.confirm(f"Make {url} this server's, and of no other?", abort=True, err=True)
        url, problem = run_async(lambda: act(taking=True))
    if as_json:
        print_json({"archive": url or None, "problem": problem or None})
    elif not url:
        click.echo("the namespace has no archive")
    else:
        click.echo(problem or f"{url} is the archive of this namespace")
    return 1 if problem else 0
