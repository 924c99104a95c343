"""`tail`: the logs of all shards, live, merged by time.

Owns: reading the logs with one blocking read, the merge, the filters. Must not: change anything, lose its place.
Called by: the group in `cli`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from streamflow.cli.logs import json_line
from streamflow.cli.options import (
    checked_id,
    json_option,
    open_client,
    run_async,
    server_options,
)
from streamflow.cli.output import make_console
from streamflow.errors import UsageError

if TYPE_CHECKING:
    from streamflow.client.client import Client
    from streamflow.events import AnyEvent

READ_ENTRIES = 200
"""Entries of each shard in one read; a shard that has more holds back what is later than its last one."""
BLOCK_MS = 5_000
GATHER_SECONDS = 0.05
"""Pause between reads, so that a busy namespace is read in batches rather than entry by entry."""
KNOWN_RUNS = 100_000
OUTAGE_SECONDS = 60.0

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class LogLine(NamedTuple):
    at: int
    run_id: str
    event: AnyEvent


@click.command()
@server_options
@click.option("--workflow", metavar="NAME", help="Only runs of this workflow.")
@click.option("--run", type=checked_id, metavar="RUN", help="Only this run.")
@click.option("--since", metavar="AGO", help="Begin so long ago, such as 90s, 15m, 2h or all; without it, now.")
@json_option
def tail(
    redis: str | None, namespace: str | None, workflow: str | None, run: str | None, since: str | None, as_json: bool
) -> None:
    """Show what happens in all shards, live.

    Ends with Ctrl-C. With --json one event a line.

    \b
    Example:
      streamflow tail --workflow invoice --since 15m
    """
    ago = None if since is None else parse_ago(since)

    async def follow() -> None:
        emit = _json_printer() if as_json else _text_printer()
        async with open_client(redis, namespace) as client:
            client.store.patience = OUTAGE_SECONDS
            shards = await _shards(client, run)
            wanted = _Wanted(client, run, workflow)
            async for lines in merged(client, shards, ago):
                for line in await wanted.of(lines):
                    emit(line)

    try:
        run_async(follow)
    except KeyboardInterrupt:
        sys.stdout.flush()


def parse_ago(text: str) -> float:
    """Seconds of `90s`, `15m`, `2h`, `7d`, `30`; infinity of `all`. Raises `UsageError`."""
    if text == "all":
        return float("inf")
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if match is None:
        raise UsageError(f"--since {text!r} is no duration: use such as 90s, 15m, 2h, 7d, or all")
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
    await client.run(run).describe()
    return [namespace.shard_of(run)]


async def merged(client: Client, shards: Sequence[int], ago: float | None) -> AsyncGenerator[list[LogLine]]:
    """What is in the logs from `ago` seconds before now (None: from now on) and what comes; lists are in order of time.

    One read waits on all shards. While a shard has more entries than one read takes, lines of other shards that are
    later than its last one are held back; so only what is committed with a delay can come out of order.
    """
    import anyio

    positions = await _begin(client, shards, ago)
    held: list[LogLine] = []
    while True:
        block_ms = 1 if held else BLOCK_MS
        logs = await client.store.read_logs(positions, block_ms, READ_ENTRIES, patience=OUTAGE_SECONDS)
        until = float("inf")
        for log, entries in logs.items():
            positions[log] = entries[-1][0]
            lines = _lines(entries)
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


async def _begin(client: Client, shards: Sequence[int], ago: float | None) -> dict[str, str]:
    from streamflow.errors import StoreError
    from streamflow.store.connection import Call

    logs = [client.keys.shard(number).log for number in shards]
    if ago is None:
        ends = await client.store.send([Call.plain("XREVRANGE", log, "+", "-", "COUNT", 1) for log in logs])
        refusal = next((end for end in ends if isinstance(end, StoreError)), None)
        if refusal is not None:
            raise refusal
        return {log: end[0][0].decode() if end else "0-0" for log, end in zip(logs, ends, strict=True)}
    seconds, _ = await client.store.one(Call.plain("TIME"))
    first = max(0, int((int(seconds) - ago) * 1000)) if ago != float("inf") else 0
    return dict.fromkeys(logs, f"{first}-0")


def _lines(entries: Sequence[tuple[str, dict[bytes, bytes]]]) -> list[LogLine]:
    from streamflow.events import MessageQuarantined, decode_transition
    from streamflow.model.codec import DECODE_ERRORS

    lines: list[LogLine] = []
    for entry_id, fields in entries:
        for field, data in fields.items():
            run_id = field.decode(errors="replace")
            if run_id.startswith("-"):  # a quarantined message; the event says for which run it was
                run_id = "-"
            try:
                transition = decode_transition(data)
            except DECODE_ERRORS as error:
                # Of a newer version, perhaps: say so in its place and go on.
                event = MessageQuarantined(f"log entry {entry_id}", f"can't be read: {error}")
                lines.append(LogLine(int(entry_id.partition("-")[0]), run_id, event))
                continue
            lines += [LogLine(transition.at, run_id, event) for event in transition.events]
    return lines


class _Wanted:
    """The filters. Events don't name their workflow, so it is remembered for each run, and asked for when unknown."""

    def __init__(self, client: Client, run: str | None, workflow: str | None) -> None:
        self._client = client
        self._run = run
        self._workflow = workflow
        self._workflows: dict[str, str] = {}

    async def of(self, lines: list[LogLine]) -> list[LogLine]:
        if self._run is not None:
            lines = [line for line in lines if line.run_id == self._run]
        if self._workflow is None:
            return lines
        from streamflow.events import RunStarted

        for line in lines:
            if isinstance(line.event, RunStarted):
                self._workflows[line.run_id] = line.event.workflow
        await self._ask({line.run_id for line in lines} - self._workflows.keys() - {"-"})
        wanted = [line for line in lines if self._workflows.get(line.run_id) == self._workflow]
        while len(self._workflows) > KNOWN_RUNS:
            del self._workflows[next(iter(self._workflows))]
        return wanted

    async def _ask(self, run_ids: set[str]) -> None:
        import asyncio

        from streamflow.errors import RunError, UsageError

        looks: list[Any] = []
        for run_id in sorted(run_ids):
            try:
                looks.append((run_id, self._client.run(run_id).describe()))
            except UsageError:
                self._workflows[run_id] = ""
        answers = await asyncio.gather(*(look for _, look in looks), return_exceptions=True)
        for (run_id, _), found in zip(looks, answers, strict=True):
            if isinstance(found, RunError | UsageError):
                self._workflows[run_id] = ""  # forgotten meanwhile, or its result can't be read
            elif isinstance(found, BaseException):
                raise found
            else:
                self._workflows[run_id] = found.workflow
