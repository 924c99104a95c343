"""`enqueue`: start a run of a workflow, or one run per line of a file.

Owns: its options, and where the input comes from. Must not: read files of many runs (bulk_enqueue.py does), know how
arguments are bound (workflow_input.py does). Called by: the group in `cli`.
"""

from __future__ import annotations

import asyncio
import shlex
from typing import TYPE_CHECKING, Any

import click
import msgspec
from msgspec import UNSET

from streamflow.cli.completing import WORKFLOW
from streamflow.cli.connection import open_client
from streamflow.cli.event_loop import run_async
from streamflow.cli.options import json_option, parse_json, server_options
from streamflow.cli.output import plain_failure, plain_value, print_json
from streamflow.errors import UsageError
from streamflow.input_file import option_text

if TYPE_CHECKING:
    from streamflow.client.client import Client, Run
    from streamflow.client.starting import OnExisting

WAIT_PATIENCE = 60.0
"""Seconds that --wait continues while the server can't be reached: its restart must not end the wait for a long run."""
LOOK_EVERY = 2.0
"""Seconds between two looks of --wait at whether the run is stuck, which doesn't end it and could last for days."""


class _Enqueue(click.Command):
    """`signal` and `ask` take their values as arguments: the error for those who do the same here names the option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.allow_extra_args = True
        rest = super().parse_args(ctx, args)
        if rest and not ctx.resilient_parsing:
            hint = ""
            if ctx.params.get("text") is None and ctx.params.get("file") is None:
                hint = f": the input of a run is an option, --input {shlex.quote(_as_input(rest))}"
            few = "argument" if len(rest) == 1 else "arguments"
            ctx.fail(f"Got unexpected extra {few} ({' '.join(rest)}){hint}")
        return rest


def _as_input(values: list[str]) -> str:
    """JSON of what was given: several values are several arguments; what is not JSON is text."""
    items = [_as_json(value) for value in values]
    return items[0] if len(items) == 1 else f"[{', '.join(items)}]"


def _as_json(value: str) -> str:
    text = value.encode(errors="replace").decode()  # bytes that are not UTF-8 are surrogates
    try:
        parse_json(text, "")
    except UsageError:
        return msgspec.json.encode(text).decode()
    return text


@click.command(cls=_Enqueue)
@click.argument("workflow", type=WORKFLOW)
@click.option("--input", "text", metavar="JSON", help="Input of the run: JSON, @FILE, or - for stdin.")
@click.option(
    "--id", "run_id", metavar="ID", show_default="a new id",
    help="Id of the run; if a run with this id exists, no second one is started.",
)  # fmt: skip
@click.option(
    "--on-existing", type=click.Choice(["existing", "reject", "new"]),
    help="If a run with this id exists: use it (the default), fail, or, if it has ended, begin a new one in its place.",
)  # fmt: skip
@click.option("--tenant", metavar="NAME", default="", help="Tenant (customer) that the run belongs to.")
@click.option("--delay", metavar="TIME", help="Begin the run later, after 90s, 10m, 2h or 3d by the server's clock.")
@click.option("--at", "begins", metavar="TIME", help="Begin the run at this time: 2026-12-24T08:00 (UTC), or …+01:00.")
@click.option(
    "--run-timeout", metavar="TIME", show_default="that of the workflow",
    help="Cancel and fail the run if it has not ended within 90s, 10m, 2h or 3d from when it begins.",
)  # fmt: skip
@click.option(
    "--signal", "signal_name", metavar="NAME", help="Send this signal to the run, and start it if none is open."
)
@click.option("--value", metavar="JSON", help="With --signal: its value; null by default.")
@click.option(
    "--idempotency-id", metavar="ID",
    help="With --signal: the same command with the same ID does nothing more, for a day.",
)  # fmt: skip
@click.option("--wait", is_flag=True, help="Wait until the run has ended and print its result as JSON.")
@click.option(
    "--timeout", type=click.FloatRange(0, min_open=True), metavar="SECONDS", show_default="no limit",
    help="With --wait: maximum time to wait; the run continues after it.",
)  # fmt: skip
@click.option("--file", metavar="FILE", help="Start one run per line of this JSON Lines file; - for stdin.")
@click.option("--force", is_flag=True, help="Start the run even if no daemon knows the workflow, or such an input.")
@server_options
@json_option
def enqueue(
    workflow: str,
    text: str | None,
    run_id: str | None,
    on_existing: OnExisting | None,
    tenant: str,
    delay: str | None,
    begins: str | None,
    run_timeout: str | None,
    signal_name: str | None,
    value: str | None,
    idempotency_id: str | None,
    wait: bool,
    timeout: float | None,
    file: str | None,
    force: bool,
    redis: str | None,
    namespace: str | None,
    as_json: bool,
) -> int:
    """Start a run of a workflow, or one run per line of a file.

    The input is JSON: the argument itself if the workflow takes one; an array, or an object by name, if it takes
    several. With --wait, the exit code is 1 if the run fails or is cancelled. Of a run that is stuck or paused it
    prints why to stderr, and waits on.

    A line of --file is {"id": …, "input": …, "tenant": …}; all fields are optional. A line without an id gets one that
    is made from its content and its line number. Giving the same file again therefore starts no run twice, even after
    lines were appended to it; the same content on another line is another run. Invalid lines are reported and skipped,
    and the exit code is then 1.

    With --signal the run of --id gets a signal, behind its start if none of that id is open: both in one step. If it
    has ended, another one begins in its place, or with --on-existing reject the command fails.

    \b
    Examples:
      streamflow enqueue digest --input '["https://example.org"]' --id digest-1 --wait
      streamflow enqueue digest --file runs.jsonl
      streamflow enqueue remind --input 17 --delay 3d --run-timeout 10m
      streamflow enqueue cart --id cart-kim --input '"kim"' --signal add --value '"shoes"' --idempotency-id click-17
    """
    _check_options(file, text, run_id, wait, timeout, on_existing)
    if on_existing is not None and run_id is None and file is None:
        raise UsageError("--on-existing is about the run of an id, which is missing: add --id")
    asked = _asked(delay, begins, run_timeout)
    _check_signal(signal_name, value, idempotency_id, run_id, file, on_existing, asked)
    signalled = None if value is None else parse_json(option_text(value, "--value"), "--value")
    if file is not None:
        from streamflow.cli.bulk_enqueue import enqueue_file
        from streamflow.client.starting import asked_for

        return enqueue_file(workflow, file, redis, namespace, tenant, force, as_json, asked_for(workflow, **asked))
    given = UNSET if text is None else parse_json(option_text(text, "--input"), "--input")

    async def start() -> int:
        from streamflow.cli.workflow_input import arguments_of
        from streamflow.client.door import Door

        async with open_client(redis, namespace) as client:
            await client.read_namespace()  # a missing namespace is reported as such, not as an unknown workflow
            found = await arguments_of(client, workflow, force)
            if found.is_reducer and asked:
                raise UsageError(f"{workflow} is a reducer: --delay, --at and --run-timeout are for workflows")
            arguments = found.bind(given)
            if signal_name is not None and run_id is not None:
                if not force:
                    await Door(client).check_workflow("signal", workflow, signal_name, signalled)
                run = await client.signal_with_start(
                    workflow,
                    *arguments,
                    id=run_id,
                    signal=signal_name,
                    value=signalled,
                    tenant=tenant,
                    on_ended="reject" if on_existing == "reject" else "new",
                    idempotency_id=idempotency_id,
                )
            else:
                asked["on_existing"] = on_existing or "existing"
                run = await client.start(workflow, *arguments, id=run_id, tenant=tenant, **asked)
            if wait:
                return await _wait(client, run, timeout, as_json)
            if as_json:
                print_json({"run_id": run.id, "created": run.created})
            elif signal_name is not None:
                click.echo(f"started {run.id} with the signal" if run.created else f"{run.id} has the signal")
            else:
                click.echo(f"started {run.id}" if run.created else f"{run.id} exists already: no run was started")
            return 0

    return run_async(start)


def _asked(delay: str | None, at: str | None, timeout: str | None) -> dict[str, Any]:
    """As arguments of `client.start`."""
    from streamflow.client.listing import instant
    from streamflow.client.paging import duration_ms, instant_ms, is_relative

    asked: dict[str, Any] = {}
    if delay is not None:
        asked["delay"] = duration_ms("--delay", delay) / 1000
    if at is not None:
        if is_relative(at):
            raise UsageError(f"--at is a point in time, as 2026-12-24T08:00; for {at} from now use --delay {at}")
        asked["at"] = instant(instant_ms("--at", at, 0, known=""))
    if timeout is not None:
        asked["timeout"] = duration_ms("--run-timeout", timeout) / 1000
    return asked


def _check_signal(
    signal: str | None,
    value: str | None,
    idempotency_id: str | None,
    run_id: str | None,
    file: str | None,
    on_existing: str | None,
    asked: dict[str, Any],
) -> None:
    if signal is None:
        for name, given in (("--value", value), ("--idempotency-id", idempotency_id)):
            if given is not None:
                raise UsageError(f"{name} is about a signal, which is missing: add --signal NAME")
        return
    if run_id is None:
        raise UsageError("--signal is for the run of an id, which is missing: add --id")
    if file is not None or asked:
        raise UsageError("--signal can't be combined with --file, --delay, --at or --run-timeout")
    if on_existing == "existing":
        raise UsageError("with --signal, --on-existing is about a run that has ended: use new (the default) or reject")


def _check_options(
    file: str | None, text: str | None, run_id: str | None, wait: bool, timeout: float | None, on_existing: str | None
) -> None:
    if file is not None:
        excluded = [name for name, given in (("--input", text is not None), ("--id", run_id is not None)) if given]
        if wait:
            excluded.append("--wait")
        if excluded:
            raise UsageError(f"--file can't be combined with {excluded[0]}: each line of the file is a separate run")
        if on_existing not in (None, "existing"):
            raise UsageError("--on-existing is for one run: of a line of --file whose run exists none is started")
    if timeout is not None and not wait:
        raise UsageError("--timeout limits --wait, which is missing: add --wait, or leave --timeout out")


async def _wait(client: Client, run: Run[Any], timeout: float | None, as_json: bool) -> int:
    from streamflow import errors

    client.store.patience = WAIT_PATIENCE
    outcome: dict[str, Any] = {"run_id": run.id, "created": run.created}
    looking = asyncio.create_task(_say_when_stuck(run))
    try:
        result = plain_value(await run.result(timeout))
    except (errors.RunFailed, errors.RunCancelled) as error:
        if not as_json:
            raise
        if isinstance(error, errors.RunFailed):
            print_json({**outcome, "status": "failed", "failure": plain_failure(error.failure)})
        else:
            print_json({**outcome, "status": "cancelled", "reason": str(error)})
        return 1
    finally:
        looking.cancel()
    print_json({**outcome, "status": "completed", "result": result} if as_json else result)
    return 0


async def _say_when_stuck(run: Run[Any]) -> None:
    """Once for each reason."""
    from streamflow.errors import StreamflowError
    from streamflow.screen.sanitize import safe

    said = ""
    while True:
        await asyncio.sleep(LOOK_EVERY)
        try:
            found = await run.describe(waits=False)
        except StreamflowError:  # the wait itself says what is wrong
            continue
        if found.status == "stuck" and found.reason != said:
            said = found.reason
            how = f"it goes on when other code is deployed, or with streamflow retry {run.id}"
            click.echo(safe(f"run {run.id} is stuck: {said}; {how}", 2000), err=True)
        elif found.status == "paused" and found.reason != said:
            said = found.reason
            click.echo(safe(f"run {run.id} is paused: {said}", 2000), err=True)
