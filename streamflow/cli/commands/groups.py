"""`groups`: list, show, reset and remove groups of subscribers.

Owns: its subcommands, the question before a change, and their output. Must not: read keys or move positions (the client
does). Called by: the group in `cli`.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from streamflow.cli.acting import auditing
from streamflow.cli.completing import GROUP
from streamflow.cli.connection import open_client, server_time_ms
from streamflow.cli.event_loop import run_async
from streamflow.cli.options import json_option, server_options
from streamflow.cli.output import make_console, plain_value, print_drawn, print_json
from streamflow.errors import UsageError
from streamflow.settings import CommandSettings
from streamflow.text import plural

if TYPE_CHECKING:
    from streamflow.client.client import Client
    from streamflow.client.groups import From, Group

SHOWN = 20
"""Shards that `show` prints, those that are furthest behind."""

_audit_option = click.option(
    "--audit-log", metavar="FILE", envvar="STREAMFLOW_AUDIT_LOG", show_envvar=True, default=CommandSettings().audit_log,
    help="Append a JSON object for what is done, with who and why.",
)  # fmt: skip
_yes_option = click.option("--yes", is_flag=True, help="Don't ask.")
_reason_option = click.option("--reason", default="", metavar="TEXT", help="Why, for the audit log.")


@click.group()
def groups() -> None:
    """List, show, reset and remove groups of subscribers.

    A group is the name under which consumers of events (`client.events`) share their work, and under which the
    namespace remembers what they have acknowledged. What a group has not acknowledged is not trimmed from the logs, up
    to group_bytes and group_age: one that nobody reads any more is to be removed.

    \b
    Example:
      streamflow groups show billing
    """


@groups.command("list")
@server_options
@json_option
def list_groups(redis: str | None, namespace: str | None, as_json: bool) -> None:
    """List the groups, with how far each is behind.

    LAG counts log entries, each of which is a commit; BEHIND is the age of the first one that waits.

    \b
    Example:
      streamflow groups list
    """

    async def fetch() -> tuple[list[Group], int]:
        async with open_client(redis, namespace) as client:
            return await client.groups(), await server_time_ms(client)

    found, now_ms = run_async(fetch)
    if as_json:
        print_json([_plain(group, shards=False) for group in found])
    elif not found:
        click.echo("there are no groups of subscribers", err=True)
    else:
        from streamflow.screen.groups import groups_table

        print_drawn(make_console(), groups_table(found, now_ms))


@groups.command()
@click.argument("group", type=GROUP)
@server_options
@json_option
def show(group: str, redis: str | None, namespace: str | None, as_json: bool) -> None:
    """Show one group: its consumers, what it has lost, and the shards that are furthest behind.

    \b
    Example:
      streamflow groups show billing --json
    """

    async def fetch() -> tuple[Group, int]:
        async with open_client(redis, namespace) as client:
            return await client.group(group), await server_time_ms(client)

    found, now_ms = run_async(fetch)
    if as_json:
        print_json(_plain(found, shards=True))
        return
    from streamflow.screen.groups import consumers_table, group_lines, shards_table

    console = make_console()
    for name, text in group_lines(found, now_ms):
        click.echo(f"{name:<10}{text}")
    if found.consumers:
        console.print()
        print_drawn(console, consumers_table(found, now_ms))
    console.print()
    print_drawn(console, shards_table(found, now_ms, SHOWN))
    if len(found.shards) > SHOWN:
        click.echo(f"{SHOWN} of {plural(len(found.shards), 'shard')}: --json has them all", err=True)


@groups.command()
@click.argument("group", type=GROUP)
@click.option(
    "--to", required=True, metavar="WHEN", help="now, oldest, 2h (ago), 2026-11-28 or 2026-11-28T14:02+01:00."
)
@_reason_option
@_yes_option
@_audit_option
@server_options
@json_option
def reset(
    group: str,
    to: str,
    reason: str,
    yes: bool,
    audit_log: str | None,
    redis: str | None,
    namespace: str | None,
    as_json: bool,
) -> int:
    """Have a group go on from elsewhere.

    Its consumers need not be stopped: what they have in hand counts no more, and they begin again from there. What lies
    behind `--to` is skipped, and what lies before it is delivered again, as far as the logs still have it.

    \b
    Examples:
      streamflow groups reset billing --to oldest
      streamflow groups reset billing --to 2h --yes
    """

    async def act() -> None:
        from streamflow.actions.groups import reset_group

        async with open_client(redis, namespace) as client:
            place = await _place(client, to)
            _ask(f"reset group {group} to {to}, where {_behind(await client.group(group))}?", yes)
            await reset_group(client, group, place, reason=reason)

    with auditing(audit_log):
        run_async(act)
    if as_json:
        print_json({"group": group, "to": to, "reset": True})
    else:
        click.echo(f"group {group} goes on from {to}")
    return 0


@groups.command()
@click.argument("group", type=GROUP)
@_reason_option
@_yes_option
@_audit_option
@server_options
@json_option
def remove(
    group: str,
    reason: str,
    yes: bool,
    audit_log: str | None,
    redis: str | None,
    namespace: str | None,
    as_json: bool,
) -> int:
    """Remove a group: what only it waited for may be trimmed.

    Consumers that still run end with an error. The exit code is 1 if there is no such group.

    \b
    Example:
      streamflow groups remove billing
    """

    async def act() -> bool:
        from streamflow.actions.groups import remove_group

        async with open_client(redis, namespace) as client:
            known = {one.name: one for one in await client.groups()}
            if group in known:
                _ask(f"remove group {group}, for which {_behind(known[group])}?", yes)
            return await remove_group(client, group, reason=reason)

    with auditing(audit_log):
        was_there = run_async(act)
    if as_json:
        print_json({"group": group, "removed": was_there})
    elif was_there:
        click.echo(f"group {group} is removed")
    else:
        click.echo(f"error: there is no group {group}", err=True)
    return 0 if was_there else 1


async def _place(client: Client, to: str) -> From:
    if to == "now" or to == "oldest":
        return to
    from streamflow.client.paging import instant_ms

    ms = instant_ms("--to", to, await server_time_ms(client), known="now, oldest, 2h (ago), ")
    return datetime.fromtimestamp(ms / 1000, UTC)


def _behind(group: Group) -> str:
    return f"{group.waiting:,} log entries wait" if group.waiting != 1 else "1 log entry waits"


def _ask(question: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("nobody can be asked here: add --yes")
    click.confirm(question, abort=True, err=True)


def _plain(group: Group, *, shards: bool) -> dict[str, Any]:
    fields: dict[str, Any] = plain_value(group)
    if not shards:
        del fields["shards"]
    return fields
