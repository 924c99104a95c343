"""`tail`: the events of all shards, live, merged by time; or what the steps of one run emit.

Owns: reading the logs with one blocking read, the merge, the filters. Must not: change anything, skip an entry, read
what the log doesn't have (`client/joining.py`).
Called by: the group in `cli`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from streamflow.cli.completing import RUN, WORKFLOW
from streamflow.cli.connection import open_client
from streamflow.cli.event_loop import run_async
from streamflow.cli.finding import find_run
from streamflow.cli.logs import json_line
from streamflow.cli.options import json_option, server_options
from streamflow.cli.output import make_console
from streamflow.cli.streaming import print_stream
from streamflow.cli.unknown_workflow import warn_of_unknown_workflow
from streamflow.errors import UsageError

if TYPE_CHECKING:
    from streamflow.client.client import Client
    from streamflow.client.joining import Logged
    from streamflow.events import AnyEvent

READ_ENTRIES = 200
"""Entries of each shard in one read; while a shard has more, lines of others that are later than its last one wait."""
BLOCK_MS = 5_000
"""How long one read waits for new entries."""
GATHER_SECONDS = 0.05
"""Pause between reads, so that a busy namespace is read in batches rather than entry by entry."""
KNOWN_RUNS = 100_000
"""Runs whose workflow is remembered for `--workflow`."""
OUTAGE_SECONDS = 60.0
"""How long the server may be unreachable before `tail` gives up."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class LogLine(NamedTuple):
    """An event, and of what it is a part, if large payloads are missing in that."""

    at: int
    run_id: str
    event: AnyEvent
    of: Logged | None = None
    position: int = 0


@click.command()
@click.option("--workflow", type=WORKFLOW, metavar="NAME", help="Only runs of this workflow.")
@click.option("--run", type=RUN, metavar="RUN", help="Only this run.")
@click.option(
    "--since", metavar="DURATION", show_default="now",
    help="Start this far back, such as 90s, 15m, 2h, 7d, or all for everything that is kept.",
)  # fmt: skip
@click.option(
    "--stream", type=RUN, metavar="RUN", help="Print what the steps of this run emit instead, until it has ended."
)
@click.option("--after", metavar="OFFSET", help="With --stream: only what comes behind the chunk with this offset.")
@server_options
@json_option
def tail(
    workflow: str | None,
    run: str | None,
    since: str | None,
    stream: str | None,
    after: str | None,
    redis: str | None,
    namespace: str | None,
    as_json: bool,
) -> None:
    """Follow the events of all shards, live.

    Runs until Ctrl-C. With --json, prints one event per line as a JSON object. With --stream, prints what a run's steps
    emit: texts as they are, other values as JSON.

    \b
    Example:
      streamflow tail --workflow invoice --since 15m
    """
    if stream is not None and (workflow or run or since):
        raise UsageError("--stream goes with --after only: it prints no events")
    if after is not None and stream is None:
        raise UsageError("--after goes with --stream: events have no offsets, use --since")
    ago = None if since is None else parse_ago(since)

    async def follow() -> None:
        nonlocal run
        emit = _json_printer() if as_json else _text_printer()
        async with open_client(redis, namespace) as client:
            client.store.patience = OUTAGE_SECONDS
            if stream is not None:
                await print_stream(client, await find_run(client, stream), after or "", as_json)
                return
            if run is not None:
                run = await find_run(client, run)
            shards = await _shards(client, run)
            await warn_of_unknown_workflow(client, workflow)
            line_filter = _LineFilter(client, run, workflow)
            async for lines in merged(client, shards, ago):
                async for line in with_payloads(client, await line_filter.matching(lines)):
                    emit(line)

    try:
        run_async(follow)
    except KeyboardInterrupt:
        sys.stdout.flush()


def parse_ago(text: str) -> float:
    """Seconds in `90s`, `15m`, `2h`, `7d` or `30`; infinity for `all`. Raises `UsageError`."""
    if text == "all":
        return float("inf")
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if match is None:
        raise UsageError(f"--since {text!r} is not a duration: use, for example, 90s, 15m, 2h, 7d, or all")
    return float(match[1]) * _UNITS[match[2] or "s"]


def _json_printer() -> Callable[[LogLine], None]:
    from streamflow.model.plain import event_json

    def emit(line: LogLine) -> None:
        click.echo(json_line(event_json(line.at, line.run_id, line.event)))

    return emit


def _text_printer() -> Callable[[LogLine], None]:
    from streamflow.screen.tables import format_log_line, print_line

    console = make_console()

    def emit(line: LogLine) -> None:
        print_line(console, format_log_line(line.at, line.run_id, line.event))

    return emit


# --- reading --------------------------------------------------------------------------------------------------------


async def _shards(client: Client, run: str | None) -> list[int]:
    """The shards to read; for one run, which must exist, its own."""
    namespace = await client.read_namespace()
    if run is None:
        return list(range(namespace.shards))
    await client.run(run).describe(waits=False)
    return [namespace.shard_of(run)]


async def merged(client: Client, shards: Sequence[int], ago: float | None) -> AsyncGenerator[list[LogLine]]:
    """The lines from `ago` seconds before now (None: from now on), and then each new one; every list is sorted by time.

    One read waits on all shards. While a shard has more entries than one read returns, lines of other shards that are
    later than its last one are held back; so only what is committed with a delay can come out of order.
    """
    import anyio

    positions = await _start_positions(client, shards, ago)
    numbers = {client.keys.shard(number).log: number for number in shards}
    held: list[LogLine] = []
    while True:
        block_ms = 1 if held else BLOCK_MS
        logs = await client.store.read_logs(positions, block_ms, READ_ENTRIES, patience=OUTAGE_SECONDS)
        until = float("inf")
        for log, entries in logs.items():
            positions[log] = entries[-1][0]
            lines = _lines(numbers[log], entries)
            held += lines
            if len(entries) >= READ_ENTRIES and lines:
                until = min(until, lines[-1].at)
        held.sort(key=lambda line: line.at)
        ready = [line for line in held if line.at <= until]
        held = held[len(ready) :]
        if ready:
            yield ready
        if logs and until == float("inf"):
            await anyio.sleep(GATHER_SECONDS)


async def _start_positions(client: Client, shards: Sequence[int], ago: float | None) -> dict[str, str]:
    from streamflow.errors import StoreError
    from streamflow.store.connection import Call

    logs = [client.keys.shard(number).log for number in shards]
    if ago is None:
        ends = await client.store.send([Call.plain("XREVRANGE", log, "+", "-", "COUNT", 1) for log in logs])
        refusal = next((end for end in ends if isinstance(end, StoreError)), None)
        if refusal is not None:
            raise refusal
        return {log: end[0][0].decode() if end else "0-0" for log, end in zip(logs, ends, strict=True)}
    seconds, _ = await client.store.one(Call.plain("TIME", near=client.keys.members))
    first = max(0, int((int(seconds) - ago) * 1000)) if ago != float("inf") else 0
    return dict.fromkeys(logs, f"{first}-0")


async def with_payloads(client: Client, lines: Sequence[LogLine]) -> AsyncGenerator[LogLine]:
    """The same lines, with the payloads that the log doesn't have, as far as the runs still have them."""
    from streamflow.client.joining import join_payloads

    parts = list({id(line.of): line.of for line in lines if line.of is not None}.values())
    async with aclosing(join_payloads(client.store, client.kernel, parts)) as joined:
        known, whole = None, None
        for line in lines:
            if line.of is not None and line.of is not known:  # the lines of one transition are together
                known, whole = line.of, await anext(joined)
            yield line if line.of is None or whole is None else line._replace(event=whole.events[line.position])


def _lines(shard: int, entries: Sequence[tuple[str, dict[bytes, bytes]]]) -> list[LogLine]:
    from streamflow.client.joining import Logged
    from streamflow.events import MessageQuarantined
    from streamflow.model.codec import DECODE_ERRORS
    from streamflow.model.logged import decode_logged

    lines: list[LogLine] = []
    for entry_id, fields in entries:
        for field, data in fields.items():
            run_id = field.decode(errors="replace")
            if run_id.startswith("-"):  # a quarantined message; the event says for which run it was
                run_id = "-"
            try:
                transition = decode_logged(data)
            except DECODE_ERRORS as error:
                # Perhaps of a newer version: report it as an event of its run, and continue.
                event = MessageQuarantined(f"log entry {entry_id}", f"can't be read: {error}")
                lines.append(LogLine(int(entry_id.partition("-")[0]), run_id, event))
                continue
            of = Logged(shard, run_id, transition) if transition.number else None
            lines += [
                LogLine(transition.at, run_id, event, of, position) for position, event in enumerate(transition.events)
            ]
    return lines


class _LineFilter:
    """By run and workflow. Most events don't name their workflow, so each run's is remembered, or read when unknown."""

    def __init__(self, client: Client, run: str | None, workflow: str | None) -> None:
        self._client = client
        self._run = run
        self._workflow = workflow
        self._workflows: dict[str, str] = {}

    async def matching(self, lines: list[LogLine]) -> list[LogLine]:
        if self._run is not None:
            lines = [line for line in lines if line.run_id == self._run]
        if self._workflow is None:
            return lines
        from streamflow.events import RunForked, RunStarted

        for line in lines:
            if isinstance(line.event, RunStarted | RunForked):
                self._workflows[line.run_id] = line.event.workflow
        await self._learn_workflows({line.run_id for line in lines} - self._workflows.keys() - {"-"})
        matching = [line for line in lines if self._workflows.get(line.run_id) == self._workflow]
        while len(self._workflows) > KNOWN_RUNS:
            del self._workflows[next(iter(self._workflows))]
        return matching

    async def _learn_workflows(self, run_ids: set[str]) -> None:
        import asyncio

        from streamflow.errors import RunError, UsageError

        reads: list[Any] = []
        for run_id in sorted(run_ids):
            try:
                reads.append((run_id, self._client.run(run_id).describe(waits=False)))
            except UsageError:
                self._workflows[run_id] = ""
        results = await asyncio.gather(*(read for _, read in reads), return_exceptions=True)
        for (run_id, _), result in zip(reads, results, strict=True):
            if isinstance(result, RunError | UsageError):
                self._workflows[run_id] = ""  # forgotten meanwhile, or its result can't be read
            elif isinstance(result, BaseException):
                raise result
            else:
                self._workflows[run_id] = result.workflow
