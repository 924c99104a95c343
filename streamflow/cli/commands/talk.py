"""Commands that talk to a run: `signal`, `ask`, `read`.

Owns: their options and what they print. Must not: know what the values mean. Called by: the group in `cli`.
"""

from __future__ import annotations

from typing import Any

import click

from streamflow.cli.logs import json_line
from streamflow.cli.options import (
    checked_id,
    json_option,
    open_client,
    parse_json,
    run_async,
    server_options,
)
from streamflow.cli.output import (
    plain_value,
    print_json,
)


@click.command()
@click.argument("run", type=checked_id, metavar="RUN")
@click.argument("name")
@click.argument("value", required=False, metavar="[VALUE_JSON]")
@server_options
@json_option
def signal(run: str, name: str, value: str | None, redis: str | None, namespace: str | None, as_json: bool) -> None:
    """Send a signal to a run.

    It is kept when the run doesn't wait for it yet. Without a value it carries null.

    \b
    Example:
      streamflow signal invoice-17 approve true
    """
    from streamflow.model.names import check_name

    check_name("signal", name)
    payload: Any = None if value is None else parse_json(value, "the value")

    async def send() -> None:
        async with open_client(redis, namespace) as client:
            await client.run(run).signal(name, payload)

    run_async(send)
    if as_json:
        print_json({"run_id": run, "signal": name})
    else:
        click.echo(f"signal {name} sent to {run}")


@click.command()
@click.argument("run", type=checked_id, metavar="RUN")
@click.argument("name")
@click.argument("value", required=False, metavar="[VALUE_JSON]")
@server_options
@click.option("--timeout", type=click.FloatRange(0), metavar="S", help="Seconds to wait for.  [default: no limit]")
@json_option
def ask(
    run: str,
    name: str,
    value: str | None,
    redis: str | None,
    namespace: str | None,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Ask a run something, and print its answer.

    The answer is JSON. A refusal, and a run that ends without answering, are errors.

    \b
    Example:
      streamflow ask order-17 reserve '{"seats": 2}' --timeout 5
    """
    from streamflow.model.names import check_name

    check_name("ask", name)
    payload: Any = None if value is None else parse_json(value, "the value")

    async def answered() -> Any:
        async with open_client(redis, namespace) as client:
            return await client.run(run).ask(name, payload, timeout)

    answer = plain_value(run_async(answered))
    print_json({"run_id": run, "ask": name, "answer": answer} if as_json else answer)


@click.command()
@click.argument("run", type=checked_id, metavar="RUN")
@click.argument("key", required=False)
@server_options
@json_option
def read(run: str, key: str | None, redis: str | None, namespace: str | None, as_json: bool) -> int:
    """Show what a run has published.

    With a KEY the value is printed as JSON, and the exit code is 1 if there is none. Without, all keys with their
    values.

    \b
    Example:
      streamflow read import-17 progress
    """
    from streamflow.model.names import check_name

    if key is not None:
        check_name("key", key)

    async def fetch() -> dict[str, Any]:
        async with open_client(redis, namespace) as client:
            handle = client.run(run)
            if key is None:
                return await handle.published()
            missing = object()
            value = await handle.read(key, default=missing)
            return {key: value} if value is not missing else await handle.published()  # to say what there is

    values: dict[str, Any] = plain_value(run_async(fetch))
    if key is not None:
        if key in values:
            print_json(values[key])
            return 0
        others = f"; it has published: {', '.join(values)}" if values else ""
        click.echo(f"error: run {run} has published nothing under {key}{others}", err=True)
        return 1
    if as_json:
        print_json(values)
        return 0
    if not values:
        click.echo(f"run {run} has published nothing", err=True)
    for name, value in values.items():
        click.echo(f"{name}  {json_line(value)}")
    return 0
