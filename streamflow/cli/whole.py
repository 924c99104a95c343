"""Pausing and resuming a queue or a workflow as a whole: which one options mean, whether it is known, what is printed.

Owns: these words. Must not: stop or begin anything. Called by: the commands `pause` and `resume`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import click

from streamflow.cli.acting import Choice, auditing
from streamflow.cli.connection import open_client
from streamflow.cli.event_loop import run_async
from streamflow.cli.output import print_json
from streamflow.errors import UsageError
from streamflow.suggestions import did_you_mean

if TYPE_CHECKING:
    from streamflow.actions.whole import Whole
    from streamflow.client.client import Client
    from streamflow.store.pauses import Pause


class Named(NamedTuple):
    kind: Whole
    name: str


def chosen_whole(verb: str, run: str | None, queue: str | None, runs: bool, choice: Choice) -> Named | None:
    """The queue or workflow that is meant; None if runs are. Raises `UsageError` if it isn't clear."""
    workflow: str | None = choice.filters.get("workflow")
    ways = [name for name, given in (("RUN", run), ("--queue", queue), ("--runs", runs)) if given]
    if len(ways) > 1:
        raise UsageError(f"{' and '.join(ways)} mean different things: give one of them")
    if runs and not choice.is_bulk:
        raise UsageError(f"say with filters which runs, as in {verb} --runs --workflow NAME")
    if run or runs or choice.resume is not None:
        return None
    if queue is not None and choice.filters:
        raise UsageError(f"--queue is for a queue as a whole, and filters are for runs: {verb} one after the other")
    if set(choice.filters) - {"workflow"}:
        raise UsageError(
            f"add --runs to {verb} each run that matches by itself; --workflow NAME alone {verb}s the whole workflow"
        )
    whole = Named("queue", queue) if queue is not None else None if workflow is None else Named("workflow", workflow)
    if whole is None:
        raise UsageError(f"say what to {verb}: a RUN, --workflow NAME, --queue NAME, or --runs with filters")
    choice.check_single("runs that filters choose, and not for a queue or workflow as a whole")
    return whole


def pause_named(whole: Named, reason: str, force: bool, choice: Choice) -> int:
    from streamflow.actions import pause_whole
    from streamflow.screen.sanitize import safe

    kind, name = whole

    async def send() -> Pause | None:
        async with open_client(choice.redis, choice.namespace) as client:
            if not force:
                await _check_known(client, whole)
            return await pause_whole(client, kind, name, reason=reason)

    with auditing(choice.audit_log):
        before = run_async(send)
    if choice.as_json:
        print_json({kind: name, "paused": True, "already": before is not None})
    elif before is None:
        click.echo(f"{kind} {name} is paused: what is under way ends, nothing new begins")
    else:
        click.echo(safe(f"{kind} {name} was paused already {before.says()}".rstrip()))
    return 0


async def _check_known(client: Client, whole: Named) -> None:
    """Raises `UsageError` for one that nobody knows: it is mistyped, most probably."""
    kind, name = whole
    await client.read_namespace()
    known = await client.queues() if kind == "queue" else sorted(await client.workflows())
    if name not in known:
        names = f" Known {kind}s: {', '.join(known)}." if known else ""
        hint = did_you_mean(name, known) or "."
        who = f"no worker or step has used queue {name}" if kind == "queue" else f"no daemon has workflow {name}"
        raise UsageError(f"{who}{hint}{names} Add --force to pause it")


def resume_named(whole: Named, choice: Choice) -> int:
    """The exit code: 1 if it was not paused."""
    from streamflow.actions import resume_whole
    from streamflow.screen.sanitize import safe

    kind, name = whole

    async def send() -> tuple[Pause | None, list[str]]:
        async with open_client(choice.redis, choice.namespace) as client:
            before = await resume_whole(client, kind, name)
            if before is not None:
                return before, []
            return None, [*(await client.paused_queues() if kind == "queue" else await client.paused_workflows())]

    with auditing(choice.audit_log):
        before, paused = run_async(send)
    if choice.as_json:
        print_json({kind: name, "paused": False, "already": before is None})
    elif before is None:
        others = f"; paused are: {', '.join(paused)}" if paused else ""
        click.echo(safe(f"error: {kind} {name} is not paused{did_you_mean(name, paused) or others}", 500), err=True)
    else:
        click.echo(safe(f"{kind} {name} goes on; it was paused {before.says()}".rstrip()))
    return 0 if before is not None else 1
