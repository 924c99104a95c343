"""`quarantine`: list, show, redrive and drop messages that could not be processed.

Owns: its subcommands, which messages they mean, the question before a drop, and their output.
Must not: read keys or decide what can be redriven. Called by: the group in `cli`.
"""

from __future__ import annotations

import base64
import sys
from typing import TYPE_CHECKING, Any, Literal

import click

from streamflow.cli.completing import RUN
from streamflow.cli.connection import open_client, server_time_ms
from streamflow.cli.event_loop import run_async
from streamflow.cli.finding import the_only
from streamflow.cli.options import json_option, server_options
from streamflow.cli.output import epoch_ms, make_console, plain_value, print_drawn, print_json
from streamflow.errors import StreamflowError, UsageError
from streamflow.text import plural

if TYPE_CHECKING:
    from streamflow.client.quarantine import Quarantine, QuarantinedMessage, Taken

SHOWN = 5
"""Messages that the question before a drop names."""


@click.group()
def quarantine() -> None:
    """List, show, redrive or drop messages that could not be processed.

    A message that can't be decoded, or whose run's record can't, is put aside in its shard's quarantine with the
    reason, and the shard goes on. Once the reason is mended, `redrive` puts it back into the inbox that it came from;
    `drop` deletes it. A shard keeps its newest 1,000.

    \b
    Example:
      streamflow quarantine redrive --run invoice-17
    """


@quarantine.command("list")
@click.option("--shard", type=click.IntRange(0), metavar="N", help="Only those of this shard.")
@click.option("--run", type=RUN, metavar="RUN", help="Only those for this run.")
@click.option(
    "--limit", type=click.IntRange(1), default=50, show_default=True, metavar="N", help="Maximum number of messages."
)
@server_options
@json_option
def list_messages(
    shard: int | None, run: str | None, limit: int, redis: str | None, namespace: str | None, as_json: bool
) -> None:
    """List quarantined messages, newest first.

    \b
    Example:
      streamflow quarantine list --shard 17
    """

    async def fetch() -> tuple[list[QuarantinedMessage], int]:
        from streamflow.client.quarantine import Quarantine

        async with open_client(redis, namespace) as client:
            found = await _messages(Quarantine(client), run, shard, limit=limit)
            return found, await server_time_ms(client)

    found, now_ms = run_async(fetch)
    if as_json:
        print_json([_plain(message) for message in found])
    elif not found:
        click.echo("no messages are quarantined" + (" there" if shard is not None or run else ""), err=True)
    else:
        from streamflow.screen.tables import QuarantineRow, quarantine_table

        rows = [
            QuarantineRow(message.id, message.run_id, message.kind, epoch_ms(message.at), message.reason)
            for message in found
        ]
        console = make_console()
        print_drawn(console, quarantine_table(rows, now_ms))
        if len(found) == limit:
            click.echo(f"the newest {limit}: there may be more, see --limit", err=True)


@quarantine.command()
@click.argument("message", metavar="ID")
@server_options
@json_option
def show(message: str, redis: str | None, namespace: str | None, as_json: bool) -> None:
    """Show one message with its body.

    ID is what `list` prints, as in 17:1764361200000-0.

    \b
    Example:
      streamflow quarantine show 17:1764361200000-0
    """

    async def fetch() -> tuple[list[QuarantinedMessage], dict[str, bytes] | None]:
        from streamflow.client.quarantine import Quarantine

        async with open_client(redis, namespace) as client:
            quarantined = Quarantine(client)
            return await quarantined.find([message]), await quarantined.read(message)

    found, fields = run_async(fetch)
    if not found or fields is None:
        raise StreamflowError(f"message {message} is not in the quarantine: it was redriven, dropped or trimmed")
    body = fields.get("body", b"")
    value, is_readable = _decoded(body)
    if as_json:
        print_json(
            {
                **_plain(found[0]),
                "message": fields.get("message", b"").decode(errors="replace"),
                "value": plain_value(value) if is_readable else None,
                "body": base64.b64encode(body).decode(),
            }
        )
        return
    from streamflow.screen.payload import preview
    from streamflow.screen.sanitize import safe
    from streamflow.screen.style import moment

    shown = preview(body, 2000) if is_readable else f"not MessagePack: {body[:200].hex(' ')}{' …' * (len(body) > 200)}"
    for name, text in (
        ("run", found[0].run_id),
        ("kind", found[0].kind or "unknown"),
        ("since", moment(epoch_ms(found[0].at))),
        ("reason", found[0].reason),
        ("size", plural(found[0].size, "byte")),
        ("body", shown),
    ):
        click.echo(f"{name:<8}{safe(text, 2000)}")


_which = (
    click.argument("messages", nargs=-1, metavar="[ID]..."),
    click.option("--run", type=RUN, metavar="RUN", help="All messages for this run."),
    click.option("--shard", type=click.IntRange(0), metavar="N", help="All messages of this shard."),
    click.option("--all", "everything", is_flag=True, help="All messages of the namespace."),
)


def _choosing(command: Any) -> Any:
    for decorate in reversed(_which):
        command = decorate(command)
    return command


@quarantine.command()
@_choosing
@server_options
@json_option
def redrive(
    messages: tuple[str, ...],
    run: str | None,
    shard: int | None,
    everything: bool,
    redis: str | None,
    namespace: str | None,
    as_json: bool,
) -> int:
    """Put messages back into the inbox that they came from.

    Each is put there once, behind the messages that are there, and its daemon takes it as any other; if it still can't,
    the message is quarantined again under another id. What nobody can take (its run has ended) stays, with the reason.
    The exit code is 1 if any stays.

    \b
    Example:
      streamflow quarantine redrive 17:1764361200000-0
    """
    _check_choice(messages, run, shard, everything)

    async def act() -> list[Taken]:
        from streamflow.client.quarantine import Quarantine

        async with open_client(redis, namespace) as client:
            quarantined = Quarantine(client)
            chosen = await _chosen(quarantined, messages, run, shard)
            return _missing(messages, chosen) + await quarantined.redrive(chosen)

    return _report(run_async(act), as_json)


@quarantine.command()
@_choosing
@click.option("--yes", is_flag=True, help="Don't ask.")
@server_options
@json_option
def drop(
    messages: tuple[str, ...],
    run: str | None,
    shard: int | None,
    everything: bool,
    yes: bool,
    redis: str | None,
    namespace: str | None,
    as_json: bool,
) -> int:
    """Delete messages.

    Their runs never get them. Asks first, with their number and the first of them, unless --yes is given. The exit code
    is 1 if any was not there.

    \b
    Example:
      streamflow quarantine drop --shard 17 --yes
    """
    _check_choice(messages, run, shard, everything)
    if not yes and not _can_ask():
        raise UsageError("drop deletes messages, and there is no terminal to ask at: add --yes")

    async def look() -> list[QuarantinedMessage]:
        from streamflow.client.quarantine import Quarantine

        async with open_client(redis, namespace) as client:
            return await _chosen(Quarantine(client), messages, run, shard)

    async def act() -> list[Taken]:
        from streamflow.client.quarantine import Quarantine

        async with open_client(redis, namespace) as client:
            return await Quarantine(client).drop(chosen)

    chosen = run_async(look)
    if chosen and not yes:
        _ask(chosen)
    dropped = run_async(act) if chosen else []
    return _report(_missing(messages, chosen) + dropped, as_json)


# --- which messages, and what became of them --------------------------------------------------------------------------


def _check_choice(messages: tuple[str, ...], run: str | None, shard: int | None, everything: bool) -> None:
    from streamflow.client.quarantine import parse_id

    for message in messages:
        parse_id(message)
    ways = (bool(messages), run is not None or shard is not None, everything)
    if sum(ways) != 1:
        raise UsageError("say which messages: IDs as `streamflow quarantine list` prints them, --run, --shard or --all")


async def _chosen(
    quarantined: Quarantine, messages: tuple[str, ...], run: str | None, shard: int | None
) -> list[QuarantinedMessage]:
    if messages:
        return await quarantined.find(messages)
    return await _messages(quarantined, run, shard, acts=True)


async def _messages(
    quarantined: Quarantine, run: str | None, shard: int | None, *, limit: int | None = None, acts: bool = False
) -> list[QuarantinedMessage]:
    """Also those of the only run in the quarantine whose id begins with `run`."""
    shards = None if shard is None else [shard]
    found = await quarantined.messages(shards=shards, run_id=run or "", limit=limit)
    if found or not run:
        return found
    found = [message for message in await quarantined.messages(shards=shards) if message.run_id.startswith(run)]
    if found:
        the_only(run, list(dict.fromkeys(message.run_id for message in found)), acts=acts)
    return found[:limit]


def _missing(messages: tuple[str, ...], chosen: list[QuarantinedMessage]) -> list[Taken]:
    """Those of the ids that aren't in the quarantine."""
    from streamflow.client.quarantine import STAYS, Taken

    there = {message.id for message in chosen}
    return [
        Taken(id=message, run_id="", kind="", outcome="stays", reason=STAYS["g"])
        for message in dict.fromkeys(messages)
        if message not in there
    ]


def _can_ask() -> bool:
    return sys.stdin.isatty()


def _ask(chosen: list[QuarantinedMessage]) -> None:
    from streamflow.screen.sanitize import safe

    for message in chosen[:SHOWN]:
        click.echo(f"{message.id}  {safe(_named(message.kind, message.run_id), 300)}: {safe(message.reason, 300)}")
    if len(chosen) > SHOWN:
        click.echo(f"and {len(chosen) - SHOWN:,} more")
    click.confirm(f"Drop {len(chosen):,} message{'s' * (len(chosen) != 1)}?", abort=True)


def _report(taken: list[Taken], as_json: bool) -> int:
    from streamflow.screen.sanitize import safe

    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(taken))
    elif not taken:
        click.echo("no messages are quarantined there", err=True)
    else:
        for one in taken:
            named = safe(_named(one.kind, one.run_id), 300)
            if one.outcome == "stays":
                whose = f" ({named})" if one.run_id else ""
                click.echo(f"error: {one.id}{whose} is left alone: {one.reason}", err=True)
            elif one.outcome == "removed":
                click.echo(f"removed {one.id} ({named}): the run had taken it already")
            else:
                click.echo(f"{one.outcome} {one.id} ({named})")
    return 1 if any(one.outcome == "stays" for one in taken) else 0


def _named(kind: str, run_id: str) -> str:
    return f"{kind or 'message'} of run {run_id}"


def _plain(message: QuarantinedMessage) -> dict[str, Any]:
    import msgspec

    return msgspec.to_builtins(message)


def _decoded(body: bytes) -> tuple[Any, Literal[True]] | tuple[None, Literal[False]]:
    import msgspec

    from streamflow.model.codec import DECODE_ERRORS

    try:
        value = msgspec.msgpack.decode(body)
        plain_value(value)
    except (*DECODE_ERRORS, TypeError):
        return None, False
    return value, True
