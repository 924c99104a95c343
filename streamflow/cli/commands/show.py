"""`show`: one run with its history, its children and what it has published.

Owns: what is fetched for it. Must not: draw (screen/run.py does), change anything. Called by: the group in `cli`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from streamflow.cli.completing import RUN
from streamflow.cli.connection import open_client, server_time_ms
from streamflow.cli.event_loop import run_async
from streamflow.cli.finding import find_run
from streamflow.cli.options import json_option, server_options
from streamflow.cli.output import epoch_ms, make_console, plain_failure, plain_run, plain_value, print_drawn, print_json

if TYPE_CHECKING:
    from streamflow.client.client import Client
    from streamflow.client.listing import RunDescription
    from streamflow.client.streams import StreamFacts
    from streamflow.events import Transition
    from streamflow.model.waits import Wait
    from streamflow.screen.waits import ChildWaits

CHILD_DEPTH = 5
"""How deep children are followed to say what they wait for..."""
MAX_FOLLOWED = 30
"""...and how many of them in all."""
FORKS_SHOWN = 10
CHILDREN_READ = 1000
"""Maximum number of children whose status is read from the server."""


@click.command()
@click.argument("run", type=RUN, metavar="RUN")
@server_options
@json_option
def show(run: str, redis: str | None, namespace: str | None, as_json: bool) -> None:
    """Show one run: state, history as a timeline, children, published values.

    A run that isn't on the server is shown from the namespace's archive, if it is there; RUN is its whole id then.

    \b
    Example:
      streamflow show invoice-17
    """
    import asyncio

    async def fetch() -> tuple[
        RunDescription,
        list[Transition],
        dict[str, Any],
        list[str],
        dict[str, str],
        dict[str, ChildWaits],
        int,
        StreamFacts | None,
    ]:
        nonlocal run
        async with open_client(redis, namespace) as client:
            run = await find_run(client, run)
            handle = client.run(run)
            described = await handle.describe()
            if _is_out_of_reach(described):
                return described, [], {}, [], {}, {}, await server_time_ms(client), None
            history, published, forks = await asyncio.gather(
                handle.history(), handle.published(), handle.forks(FORKS_SHOWN)
            )
            children = await _child_statuses(client, history)
            below = await _waits_below(client, described.waits_for, CHILD_DEPTH, [MAX_FOLLOWED])
            ids = [fork.id for fork in forks]
            stream = await handle.stream_facts()
            return described, history, published, ids, children, below, await server_time_ms(client), stream

    described, history, published, forks, children, below, now_ms, stream = run_async(fetch)
    if as_json:
        from streamflow.events import latest_fork
        from streamflow.model.plain import event_json

        events = [event_json(transition.at, run, event) for transition in history for event in transition.events]
        for number, event in enumerate(events, 1):
            del event["run_id"]
            event["number"] = number
        fork = latest_fork(history)
        print_json(
            {
                **plain_run(described),
                "result": plain_value(described.result),
                "failure": plain_failure(described.failure),
                "attempts": [
                    {
                        "attempt": attempt.attempt,
                        "at": plain_value(attempt.at),
                        "ms": attempt.ms,
                        "failure": plain_failure(attempt.failure),
                    }
                    for attempt in described.attempts
                ],
                "forked_from": None if fork is None else {"run_id": fork.of, "events": fork.shared},
                "forks": forks,
                "children": children,
                "waits_below": plain_value(below),
                "published": plain_value(published),
                "stream": plain_value(stream),
                "events": events,
            }
        )
        return
    from streamflow.model.record import Header
    from streamflow.screen.run import RunDetail, render_run

    header = Header(
        described.status,
        described.version,
        "",
        epoch_ms(described.created),
        epoch_ms(described.ended) if described.ended else 0,
        described.workflow,
        described.tenant,
        described.parent or "",
        described.attributes,
    )
    console = make_console()
    detail = RunDetail(
        run_id=run,
        header=header,
        transitions=history,
        children=children,
        published=published,
        now_ms=now_ms,
        trace_id=described.trace_id,
        cause=described.cause,
        attempts=described.attempts,
        waits_for=described.waits_for,
        waits_more=described.waits_more,
        owner=described.owner,
        untaken=described.untaken,
        below=below,
        forks=forks,
        archived=described.archived,
        hibernating=epoch_ms(described.hibernating) if described.hibernating else 0,
        out_of_reach=_is_out_of_reach(described),
        stream=stream,
    )
    print_drawn(console, render_run(detail, console.width))


def _is_out_of_reach(described: RunDescription) -> bool:
    """Whether it hibernates and its object can't be read: `describe` has the reason, and the rest is in the object."""
    return described.hibernating is not None and any(wait.kind == "storage" for wait in described.waits_for[:1])


async def _waits_below(client: Client, waits: Sequence[Wait], depth: int, left: list[int]) -> dict[str, ChildWaits]:
    """What the children wait for that a run waits for, and theirs, by run id. `left`: how many more are read."""
    import asyncio

    from streamflow.errors import RunNotFound, StreamflowError
    from streamflow.screen.waits import ChildWaits

    if not depth:
        return {}
    children = [wait.run_id for wait in waits if wait.kind == "child"][: left[0]]
    left[0] -= len(children)
    reads = [client.run(child).describe() for child in children]
    below: dict[str, ChildWaits] = {}
    for child, found in zip(children, await asyncio.gather(*reads, return_exceptions=True), strict=True):
        if isinstance(found, RunNotFound):
            below[child] = ChildWaits("not started yet, or forgotten")
        elif isinstance(found, StreamflowError):
            below[child] = ChildWaits(f"not known: {found}")
        elif isinstance(found, BaseException):
            raise found
        else:
            further = await _waits_below(client, found.waits_for, depth - 1, left)
            below[child] = ChildWaits(found.status, found.waits_for, further)
    return below


async def _child_statuses(client: Client, history: list[Transition]) -> dict[str, str]:
    """Run id -> status: from the history for children that have ended, from the server for the first of the others."""
    import asyncio

    from streamflow import events
    from streamflow.errors import StreamflowError
    from streamflow.events import ChildCompleted, ChildStarted, RunContinued

    started: dict[int, str] = {}
    statuses: dict[str, str] = {}
    for transition in history:
        for event in transition.events:
            match event:
                case ChildStarted():
                    started[event.seq] = event.run_id
                case RunContinued():
                    started.update({seq: run_id for seq, _, run_id in event.children})
                case ChildCompleted() if event.seq in started:
                    statuses[started[event.seq]] = "completed"
                case events.ChildFailed() if event.seq in started:
                    statuses[started[event.seq]] = "cancelled" if event.cancelled else "failed"
                case _:
                    pass
    unknown = [child for child in started.values() if child not in statuses][:CHILDREN_READ]
    reads = [client.run(child).describe(waits=False) for child in unknown]
    for child, found in zip(unknown, await asyncio.gather(*reads, return_exceptions=True), strict=True):
        if isinstance(found, BaseException):
            if not isinstance(found, StreamflowError):
                raise found
        else:
            statuses[child] = found.status
    return {child: statuses[child] for child in started.values() if child in statuses}
