"""`enqueue`: start a run of a workflow, or one for each line of a file.

Owns: its options and how inputs are given. Must not: read files of many runs (`bulk`), know how arguments bind
(`arguments`). Called by: the group in `cli`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from msgspec import UNSET

from streamflow.cli.options import (
    json_option,
    open_client,
    parse_json,
    run_async,
    server_options,
)
from streamflow.cli.output import (
    plain_failure,
    plain_value,
    print_json,
)
from streamflow.errors import UsageError

if TYPE_CHECKING:
    from streamflow.client.client import Client, Run

WAIT_PATIENCE = 60.0


@click.command()
@click.argument("workflow")
@server_options
@click.option("--input", "text", metavar="JSON", help="The input: JSON, @FILE, or - for stdin.")
@click.option("--id", "run_id", metavar="ID", help="The run's id; the same id again is the same run.")
@click.option("--tenant", metavar="NAME", default="", help="The customer that the run belongs to.")
@click.option("--wait", is_flag=True, help="Wait for the end and print the result as JSON.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), metavar="S", help="With --wait: at most so long.")
@click.option("--file", metavar="FILE", help="A run for each line: JSON Lines, - for stdin.")
@click.option("--force", is_flag=True, help="Also when no daemon has registered the workflow.")
@json_option
def enqueue(
    workflow: str,
    redis: str | None,
    namespace: str | None,
    text: str | None,
    run_id: str | None,
    tenant: str,
    wait: bool,
    timeout: float | None,
    file: str | None,
    force: bool,
    as_json: bool,
) -> int:
    """Start a run of a workflow, or one for each line of a file.

    The input is JSON: the argument itself if the workflow takes one; an array, or an object by name, if it takes
    several. With --wait the exit code is 1 when the run fails.

    A line of --file is {"id": …, "input": …, "tenant": …}, all optional. A line without an id gets one made of its
    content and its number, so the same file again starts nothing twice, also after lines were appended to it; a
    copy of a line elsewhere in the file is another run. Lines that are wrong are reported, and the others go on.

    \b
    Examples:
      streamflow enqueue digest --input '["https://example.org"]' --id digest-1 --wait
      streamflow enqueue digest --file runs.jsonl
    """
    _check_options(file, text, run_id, wait, timeout)
    if file is not None:
        from streamflow.cli.commands.bulk import enqueue_file

        return enqueue_file(workflow, file, redis, namespace, tenant, force, as_json)
    value = UNSET if text is None else parse_json(_read(text), "--input")

    async def start() -> int:
        from streamflow.cli.workflow_input import Arguments, find_workflow

        async with open_client(redis, namespace) as client:
            await client.read_namespace()  # a namespace that isn't there is a better reason than a workflow that isn't
            info = find_workflow(workflow, await client.workflows(), force)
            arguments = Arguments(workflow, info).bind(value)
            run = await client.start(workflow, *arguments, id=run_id, tenant=tenant)
            if wait:
                return await _wait(client, run, timeout, as_json)
            if as_json:
                print_json({"run_id": run.id, "created": run.created})
            else:
                click.echo(f"started {run.id}" if run.created else f"{run.id} was started before")
            return 0

    return run_async(start)


def _check_options(file: str | None, text: str | None, run_id: str | None, wait: bool, timeout: float | None) -> None:
    if file is not None:
        wrong = [name for name, given in (("--input", text is not None), ("--id", run_id is not None)) if given]
        if wait:
            wrong.append("--wait")
        if wrong:
            raise UsageError(f"--file and {wrong[0]} don't go together: each line of the file is a run of its own")
    if timeout is not None and not wait:
        raise UsageError("--timeout says how long to --wait, which was not given")


def _read(text: str) -> str | bytes:
    try:
        if text == "-":
            return sys.stdin.buffer.read()
        if text.startswith("@"):
            return Path(text[1:]).read_bytes()
    except OSError as error:
        raise UsageError(f"can't read the input {text}: {error.strerror}") from error
    return text


async def _wait(client: Client, run: Run[Any], timeout: float | None, as_json: bool) -> int:
    from streamflow import errors

    client.store.patience = WAIT_PATIENCE  # a restart of the server is no reason to give up on a long run
    answer: dict[str, Any] = {"run_id": run.id, "created": run.created}
    try:
        result = plain_value(await run.result(timeout))
    except (errors.RunFailed, errors.RunCancelled) as error:
        if not as_json:
            raise
        if isinstance(error, errors.RunFailed):
            print_json({**answer, "status": "failed", "failure": plain_failure(error.failure)})
        else:
            print_json({**answer, "status": "cancelled", "reason": str(error)})
        return 1
    print_json({**answer, "status": "completed", "result": result} if as_json else result)
    return 0
