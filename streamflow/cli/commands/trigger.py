"""`trigger`: serve triggers: webhooks, queues, tables and files that start runs and signal them.

Owns: its subcommands and their output. Must not: receive, map or do a delivery. Called by: the group in `cli`.
"""

from __future__ import annotations

import base64
import signal
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from streamflow.cli.app_option import app_option, required_app
from streamflow.cli.connection import open_client
from streamflow.cli.event_loop import run_async, run_service
from streamflow.cli.logs import set_up
from streamflow.cli.options import json_option, log_options, log_settings_file, server_options
from streamflow.cli.output import print_json
from streamflow.errors import StreamflowError, UsageError
from streamflow.text import plural

if TYPE_CHECKING:
    from collections.abc import Iterable

    from streamflow.client.client import Client
    from streamflow.store.served_triggers import ServedHere
    from streamflow.triggers.quarantine import DeliveryQuarantine, UndoneDelivery
    from streamflow.workflow.app import App

_LATE = ("streamflow.triggers.serving",)


@click.group()
def trigger() -> None:
    """Serve triggers: webhooks, queues, tables and files that start runs and signal them.

    They are functions of an app, registered with @app.trigger. Any number of processes may serve them: nothing is
    started twice, and nothing acknowledged before the server has it. What can't be processed is put aside, in
    `trigger quarantine`.

    \b
    Example:
      streamflow trigger http --app flows:app --listen 127.0.0.1:8080
    """


@trigger.command("list")
@app_option
@json_option
def list_triggers(app_target: str | None, as_json: bool) -> None:
    """List an app's triggers, with what they receive from.

    \b
    Example:
      streamflow trigger list --app flows:app
    """
    app = required_app(app_target, *_LATE)
    rows = [(name, found.source.kind, found.source.about) for name, found in app.triggers.items()]
    if as_json:
        print_json([{"name": name, "kind": kind, "source": about} for name, kind, about in rows])
        return
    if not rows:
        click.echo("the app has no triggers", err=True)
    from streamflow.screen.sanitize import safe

    width = max((len(name) for name, _, _ in rows), default=0)
    for name, _, about in rows:
        click.echo(f"{name:<{width}}  {safe(about, 500)}")


@trigger.command()
@app_option
@click.option(
    "--listen", metavar="HOST:PORT", default="127.0.0.1:8080", show_default=True, help="Address of the HTTP server."
)
@server_options
@log_options
def http(
    app_target: str | None,
    listen: str,
    redis: str | None,
    namespace: str | None,
    log_format: str | None,
    log_level: str,
    log_file: str | None,
) -> None:
    """Serve an app's webhooks over HTTP.

    Needs `pip install 'streamflowd[triggers]'`. TLS, and limits on how many connections somebody may open, are for the
    proxy in front of it. On SIGTERM or Ctrl-C it answers what is under way and ends.

    \b
    Example:
      streamflow trigger http --app flows:app --listen 0.0.0.0:8080
    """
    host, port = _address(listen)
    set_up(log_format, log_level, file=log_file)
    app = required_app(app_target, *_LATE)

    async def serve(client: Client) -> None:
        from streamflow.triggers.serving import serve_http

        await serve_http(app, client, host, port)

    _serve(redis, namespace, serve)


@trigger.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@app_option
@server_options
@log_options
def run(
    names: tuple[str, ...],
    app_target: str | None,
    redis: str | None,
    namespace: str | None,
    log_format: str | None,
    log_level: str,
    log_file: str | None,
) -> None:
    """Serve an app's triggers that read from somewhere: streams, lists, topics, tables, files, completed runs.

    All of them, or those that are named. On SIGTERM or Ctrl-C it ends; what it has not acknowledged is received again.

    \b
    Example:
      streamflow trigger run --app flows:app
    """
    set_up(log_format, log_level, file=log_file)
    app = required_app(app_target, *_LATE)

    async def serve(client: Client) -> None:
        from streamflow.triggers.pulled import PulledSource
        from streamflow.triggers.serving import chosen, serve_pulled

        triggers = [found for found in chosen(app, names) if isinstance(found.source, PulledSource)]
        if not triggers:
            raise UsageError("none of these triggers reads from somewhere: webhooks are served by `trigger http`")
        await serve_pulled(client, triggers)

    _serve(redis, namespace, serve)


@trigger.command("serve")
@app_option
@click.option(
    "--listen", metavar="HOST:PORT", default="127.0.0.1:8080", show_default=True, help="Address of the HTTP server."
)
@server_options
@log_options
def serve_all(
    app_target: str | None,
    listen: str,
    redis: str | None,
    namespace: str | None,
    log_format: str | None,
    log_level: str,
    log_file: str | None,
) -> None:
    """Serve all of an app's triggers in one process: webhooks, and those that read from somewhere.

    One that can't begin, because its secret is missing or a library isn't installed, is named in the log, and the
    others are served. It waits for its namespace, too. `streamflow dev` runs this.

    \b
    Example:
      streamflow trigger serve --app flows:app
    """
    host, port = _address(listen)
    set_up(log_format, log_level, file=log_file)
    app = required_app(app_target, *_LATE)

    async def serve(client: Client) -> None:
        from streamflow.triggers.serving import serve_all

        await serve_all(app, client, host, port)

    _serve(redis, namespace, serve, waits=True)


@trigger.command("status")
@server_options
@json_option
def show_status(redis: str | None, namespace: str | None, as_json: bool) -> int:
    """Show which processes serve which triggers, and what is wrong.

    One line for each trigger and process; the exit code is 1 if one has a problem, such as a source that can't be
    reached. What is mounted in an application of yours does not report.

    \b
    Example:
      streamflow trigger status
    """

    async def fetch() -> list[ServedHere]:
        from streamflow.triggers.reports import read_reports

        async with open_client(redis, namespace) as client:
            return await read_reports(client)

    rows = run_async(fetch)
    if as_json:
        print_json([_row(row) for row in rows])
    else:
        _print_rows(rows)
    return 1 if any(row.problem for row in rows) else 0


def _row(row: ServedHere) -> dict[str, Any]:
    served = row.served
    return {
        "trigger": served.name,
        "kind": served.kind,
        "source": served.source,
        "host": row.host,
        "pid": row.pid,
        "reported_s_ago": row.age,
        "received": served.received,
        "quarantined": served.quarantined,
        "last": datetime.fromtimestamp(served.last / 1000, UTC).isoformat() if served.last else None,
        "problem": row.problem or None,
    }


def _print_rows(rows: list[ServedHere]) -> None:
    from streamflow.screen.sanitize import safe

    if not rows:
        click.echo("no process serves triggers", err=True)
    width = max((len(row.served.name) for row in rows), default=0)
    for row in rows:
        served = row.served
        count = f"{served.received:,} received" + (f", {served.quarantined:,} quarantined" * bool(served.quarantined))
        state = f"PROBLEM: {row.problem}" if row.problem else "ok"
        text = f"{served.name:<{width}}  {row.host}-{row.pid}  {served.source}  {count}  {state}"
        click.echo(safe(text, 1000))


@trigger.command("postgres-schema")
@click.option("--table", metavar="NAME", default=None, help="Name of the table.  [default: streamflow_outbox]")
def postgres_schema(table: str | None) -> None:
    """Print the statements that create the table from which postgres triggers read, for PostgreSQL 14 or newer.

    What is there already stays.

    \b
    Example:
      streamflow trigger postgres-schema | psql shop
    """
    from streamflow.triggers.postgres_outbox import TABLE, ddl

    click.echo(ddl(table or TABLE), nl=False)


def _address(listen: str) -> tuple[str, int]:
    """Host and port. Raises `UsageError`."""
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"--listen is HOST:PORT, as 127.0.0.1:8080, got {listen!r}")
    return host.strip("[]"), int(port)


def _serve(redis: str | None, namespace: str | None, serve: Any, *, waits: bool = False) -> None:
    """Until a signal. `waits`: for a namespace that is not there yet."""
    import anyio

    from streamflow.client.client import connect
    from streamflow.settings import load_settings

    settings = load_settings({"redis": redis, "namespace": namespace})
    log_settings_file()

    async def service() -> None:
        async with connect(settings.redis, namespace=settings.namespace) as client:
            if not waits:
                await client.read_namespace()
            refused: StreamflowError | None = None  # out of the group, whose errors have no words for who reads them
            async with anyio.create_task_group() as tasks:

                async def stop() -> None:
                    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                        async for _ in signals:
                            tasks.cancel_scope.cancel()

                tasks.start_soon(stop)
                try:
                    await serve(client)
                except StreamflowError as error:
                    refused = error
                tasks.cancel_scope.cancel()
            if refused is not None:
                raise refused

    run_service(service, settings)


@trigger.group("quarantine")
def quarantined() -> None:
    """List, show, redrive or drop deliveries that could not be processed.

    \b
    Example:
      streamflow trigger quarantine list
    """


@quarantined.command("list")
@click.option("--trigger", "name", metavar="NAME", default="", help="Only those of this trigger.")
@server_options
@json_option
def list_deliveries(name: str, redis: str | None, namespace: str | None, as_json: bool) -> None:
    """List quarantined deliveries, newest first.

    \b
    Example:
      streamflow trigger quarantine list --trigger pushed
    """

    async def fetch() -> list[UndoneDelivery]:
        async with open_client(redis, namespace) as client:
            return await _chosen(client, (), name)

    found = run_async(fetch)
    if not found:
        _say_none(name)
    if as_json:
        print_json([_plain(one) for one in found])
        return
    from streamflow.screen.sanitize import safe

    for one in found:
        click.echo(f"{one.id}  {one.at:%Y-%m-%d %H:%M:%S}  {safe(one.reason, 500)}")


@quarantined.command("show")
@click.argument("delivery", metavar="ID")
@server_options
@json_option
def show_delivery(delivery: str, redis: str | None, namespace: str | None, as_json: bool) -> None:
    """Show one delivery with its headers and body.

    \b
    Example:
      streamflow trigger quarantine show pushed/1f0c
    """

    async def fetch() -> UndoneDelivery | None:
        async with open_client(redis, namespace) as client:
            return await _quarantine(client).find(delivery)

    one = _found(run_async(fetch), delivery)
    if as_json:
        print_json({**_plain(one), "headers": one.received.headers, "body": base64.b64encode(one.body).decode()})
        return
    from streamflow.screen.sanitize import safe

    lines = [("trigger", one.trigger), ("delivery", one.delivery_id), ("since", f"{one.at:%Y-%m-%d %H:%M:%S}")]
    lines += [("reason", one.reason), ("size", plural(one.size, "byte"))]
    lines += [(f"header {name}", value) for name, value in one.received.headers.items()]
    for label, text in [*lines, ("body", one.body.decode(errors="replace"))]:
        click.echo(f"{label:<10}{safe(text, 4000)}")


@quarantined.command()
@click.argument("deliveries", nargs=-1, metavar="[ID]...")
@click.option("--trigger", "name", metavar="NAME", default="", help="All of this trigger.")
@click.option("--all", "everything", is_flag=True, help="All deliveries.")
@app_option
@server_options
@json_option
def redrive(
    deliveries: tuple[str, ...],
    name: str,
    everything: bool,
    app_target: str | None,
    redis: str | None,
    namespace: str | None,
    as_json: bool,
) -> int:
    """Process deliveries again, with the app's functions as they are now.

    One that is processed leaves the quarantine; of those that can't be, the exit code is 1.

    \b
    Example:
      streamflow trigger quarantine redrive --trigger pushed --app flows:app
    """
    _check_choice(deliveries, name, everything)
    app = required_app(app_target, *_LATE)

    async def work() -> list[dict[str, Any]]:
        async with open_client(redis, namespace) as client:
            chosen = await _chosen(client, deliveries, name, app.triggers)
            return [await _redriven(app, client, _quarantine(client), one) for one in chosen]

    done = run_async(work)
    _print_done(done, as_json, name)
    return 0 if all(one["outcome"] == "redriven" for one in done) else 1


@quarantined.command()
@click.argument("deliveries", nargs=-1, metavar="[ID]...")
@click.option("--trigger", "name", metavar="NAME", default="", help="All of this trigger.")
@click.option("--all", "everything", is_flag=True, help="All deliveries.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@server_options
@json_option
def drop(
    deliveries: tuple[str, ...],
    name: str,
    everything: bool,
    yes: bool,
    redis: str | None,
    namespace: str | None,
    as_json: bool,
) -> None:
    """Delete deliveries from the quarantine, which can't be undone.

    \b
    Example:
      streamflow trigger quarantine drop pushed/1f0c
    """
    _check_choice(deliveries, name, everything)
    if not deliveries and not yes:
        click.confirm("Drop all of these deliveries?", abort=True, err=True)

    async def work() -> list[dict[str, Any]]:
        async with open_client(redis, namespace) as client:
            done: list[dict[str, Any]] = []
            for one in await _chosen(client, deliveries, name):
                await _quarantine(client).drop(one.id)
                done.append({"id": one.id, "outcome": "dropped"})
            return done

    _print_done(run_async(work), as_json, name)


def _quarantine(client: Client) -> DeliveryQuarantine:
    from streamflow.triggers.quarantine import DeliveryQuarantine

    return DeliveryQuarantine(client)


async def _chosen(client: Client, ids: tuple[str, ...], name: str, of_app: Iterable[str] = ()) -> list[UndoneDelivery]:
    """Those that are named, or all, or all of a trigger. Raises `UsageError` for a trigger that nobody knows: it is
    neither of the app, if there is one, nor served, and nothing of it is quarantined."""
    quarantine = _quarantine(client)
    if ids:
        return [_found(await quarantine.find(one), one) for one in ids]
    every = await quarantine.list()
    found = [one for one in every if not name or one.trigger == name]
    if name and not found:
        from streamflow.suggestions import did_you_mean
        from streamflow.triggers.reports import read_reports

        known = {*of_app, *(one.trigger for one in every), *(row.served.name for row in await read_reports(client))}
        if name not in known:
            names = f"{did_you_mean(name, known) or '.'} Known triggers: {', '.join(sorted(known)) or 'none'}"
            raise UsageError(f"no process serves trigger {name}, and no delivery of it is quarantined{names}")
    return found


def _say_none(name: str) -> None:
    click.echo(f"no deliveries {f'of trigger {name} ' if name else ''}are quarantined", err=True)


async def _redriven(app: App, client: Client, quarantine: DeliveryQuarantine, one: UndoneDelivery) -> dict[str, Any]:
    from streamflow.triggers.receiver import Receiver

    known = app.triggers.get(one.trigger)
    if known is None:
        return {"id": one.id, "outcome": "stays", "reason": f"the app has no trigger {one.trigger}"}
    try:
        runs = await Receiver(client, known).process(one.received)
    except Exception as error:
        return {"id": one.id, "outcome": "stays", "reason": f"{type(error).__name__}: {error}"}
    await quarantine.drop(one.id)
    return {"id": one.id, "outcome": "redriven", "runs": runs}


def _found(one: UndoneDelivery | None, given: str) -> UndoneDelivery:
    if one is None:
        raise StreamflowError(f"delivery {given} is not in the quarantine: it was redriven or dropped")
    return one


def _check_choice(ids: tuple[str, ...], name: str, everything: bool) -> None:
    if sum((bool(ids), bool(name), everything)) != 1:
        raise UsageError("which deliveries? Name their IDs, or give --trigger NAME, or --all")


def _plain(one: UndoneDelivery) -> dict[str, Any]:
    return {
        "id": one.id,
        "trigger": one.trigger,
        "delivery": one.delivery_id,
        "at": one.at.isoformat(),
        "reason": one.reason,
        "size": one.size,
    }


def _print_done(done: list[dict[str, Any]], as_json: bool, name: str) -> None:
    from streamflow.screen.sanitize import safe

    if not done:
        _say_none(name)
    if as_json:
        print_json(done)
        return
    for one in done:
        more = one.get("reason") or ", ".join(one.get("runs", []))
        click.echo(safe(f"{one['id']}: {one['outcome']}{f': {more}' if more else ''}", 2000))
