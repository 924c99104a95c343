"""`ask`: ask a run a question and print its answer.

Owns: its options and output. Must not: know what question and answer mean. Called by: the group in `cli`.
"""

from __future__ import annotations

from typing import Any

import click

from streamflow.cli.completing import RUN, MessageType
from streamflow.cli.connection import open_client
from streamflow.cli.event_loop import run_async
from streamflow.cli.finding import find_run
from streamflow.cli.options import json_option, parse_json, server_options
from streamflow.cli.output import plain_value, print_json


@click.command()
@click.argument("run", type=RUN, metavar="RUN")
@click.argument("name", type=MessageType("questions"))
@click.argument("value", required=False, metavar="[VALUE_JSON]")
@click.option(
    "--timeout", type=click.FloatRange(0), metavar="SECONDS", show_default="no limit",
    help="Maximum time to wait for the answer.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Send it even if the workflow declares no such question, or another type.")
@server_options
@json_option
def ask(
    run: str,
    name: str,
    value: str | None,
    timeout: float | None,
    force: bool,
    redis: str | None,
    namespace: str | None,
    as_json: bool,
) -> None:
    """Ask a run a question and print its answer.

    The answer is printed as JSON. The exit code is 1 if the run refuses the question, ends without answering, or does
    not answer within --timeout; in the last case it may still answer later. If the run's workflow declares its
    questions, others are refused, and so are values of another type.

    \b
    Example:
      streamflow ask order-17 reserve '{"seats": 2}' --timeout 5
    """
    from streamflow.client.door import Door
    from streamflow.model.names import check_name

    check_name("ask", name)
    payload: Any = None if value is None else parse_json(value, "VALUE_JSON")

    async def send() -> Any:
        nonlocal run
        async with open_client(redis, namespace) as client:
            run = await find_run(client, run, acts=True)
            if not force:
                await Door(client).check("question", run, name, payload)
            return await client.run(run).ask(name, payload, timeout)

    answer = plain_value(run_async(send))
    print_json({"run_id": run, "ask": name, "answer": answer} if as_json else answer)
