"""Commands that end or delete runs: `cancel`, `terminate`, `forget`, and `views rebuild`.

Owns: their options and what they print. Must not: wait for effects. Called by: the group in `cli`.
"""

from __future__ import annotations

from typing import Any

import click

from streamflow.cli.options import (
    checked_id,
    json_option,
    open_client,
    run_async,
    server_options,
)
from streamflow.cli.output import print_json


@click.command()
@click.argument("run", type=checked_id, metavar="RUN")
@click.option("--reason", default="", help="Why: kept in its history.")
@server_options
@json_option
def cancel(run: str, reason: str, redis: str | None, namespace: str | None, as_json: bool) -> None:
    """Ask a run to end as cancelled.

    \b
    Example:
      streamflow cancel invoice-17 --reason "paid by hand"
    """

    async def send() -> None:
        async with open_client(redis, namespace) as client:
            await client.run(run).cancel(reason)

    run_async(send)
    if as_json:
        print_json({"run_id": run, "requested": "cancel"})
    else:
        click.echo(f"asked {run} to cancel")


@click.command()
@click.argument("run", type=checked_id, metavar="RUN")
@click.option("--reason", default="", help="Why: kept in its history.")
@server_options
@json_option
def terminate(run: str, reason: str, redis: str | None, namespace: str | None, as_json: bool) -> None:
    """End a run as cancelled without asking its code.

    For a run that doesn't end when it is cancelled: its code compensates nothing.

    \b
    Example:
      streamflow terminate invoice-17 --reason "loops"
    """

    async def send() -> None:
        async with open_client(redis, namespace) as client:
            await client.run(run).terminate(reason)

    run_async(send)
    if as_json:
        print_json({"run_id": run, "requested": "terminate"})
    else:
        click.echo(f"asked for the end of {run}")


@click.command()
@click.argument("runs", nargs=-1, required=True, type=checked_id, metavar="RUN...")
@server_options
@json_option
def forget(runs: tuple[str, ...], redis: str | None, namespace: str | None, as_json: bool) -> int:
    """Delete ended runs with their histories.

    Daemons do this by themselves when a run's retention is over. An open run is refused: cancel it first.

    \b
    Example:
      streamflow forget invoice-17 invoice-18
    """
    from streamflow.errors import RunError

    async def delete() -> list[dict[str, Any]]:
        outcomes: list[dict[str, Any]] = []
        async with open_client(redis, namespace) as client:
            for run in runs:
                try:
                    done = await client.forget(run)
                    reason = "" if done else f"there is no run {run}"
                except RunError as error:
                    done, reason = False, str(error)
                outcomes.append({"run_id": run, "forgotten": done, "reason": reason})
        return outcomes

    outcomes = run_async(delete)
    if as_json:
        print_json(outcomes)
    else:
        for outcome in outcomes:
            if outcome["forgotten"]:
                click.echo(f"forgot {outcome['run_id']}")
            else:
                click.echo(f"error: {outcome['reason']}", err=True)
    return 0 if all(outcome["forgotten"] for outcome in outcomes) else 1


@click.command()
@click.argument("action", type=click.Choice(["rebuild"]), metavar="rebuild")
@server_options
@json_option
def views(action: str, redis: str | None, namespace: str | None, as_json: bool) -> None:
    """Look after the cross-shard views.

    `rebuild` counts all views again from the shards' logs. What was trimmed from the logs was counted before, and stays
    counted. Daemons that run keep counts of their own: stop them first if it is those that you doubt.

    \b
    Example:
      streamflow views rebuild
    """
    from streamflow.daemon.rollup import rebuild_views
    from streamflow.store.connection import Call

    async def fold() -> tuple[int, int, int]:
        async with open_client(redis, namespace) as client:
            shards = (await client.read_namespace()).shards
            seconds, micros = await client.store.one(Call.plain("TIME"))
            members = await client.store.one(Call.plain("HLEN", client.keys.members))
            now_ms = int(seconds) * 1000 + int(micros) // 1000
            return (
                await rebuild_views(client.store, client.kernel, shards, now_ms),
                shards,
                int(members),
            )

    entries, shards, members = run_async(fold)
    if members:
        click.echo("note: there are daemons; those that run store their own counts again", err=True)
    if as_json:
        print_json({"entries": entries, "shards": shards})
    else:
        click.echo(f"counted {entries:,} log entr{'y' if entries == 1 else 'ies'} of {shards:,} shards")
