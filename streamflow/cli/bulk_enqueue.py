"""`enqueue --file`: one run per line of a file, more than ten thousand runs per second.

Owns: reading lines, the ids of lines without one, reporting bad lines, the progress bar.
Must not: hold the file in memory. Called by: `enqueue`.

    lines ── decode, bind, encode ── chunks of `CHUNK` runs ── up to `CHUNKS_IN_FLIGHT` at once ── counts
                  └── bad: line number and reason; the next line is read
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable
from typing import IO, Any

import click
import msgspec
from msgspec import UNSET, UnsetType

from streamflow.cli.connection import open_client
from streamflow.cli.event_loop import run_async
from streamflow.cli.output import make_console, print_json
from streamflow.cli.workflow_input import Arguments, arguments_of
from streamflow.client.client import Client, NewRun, Run
from streamflow.errors import RunConflict, StoreError, UsageError
from streamflow.input_file import STDIN, open_input
from streamflow.model import codec
from streamflow.model.start_word import NOTHING, StartWord
from streamflow.text import plural

CHUNK = 4000
CHUNK_BYTES = 8_000_000
CHUNKS_IN_FLIGHT = 3
PRINTED_ERRORS = 20
KEPT_ERRORS = 1000
PATIENCE = 60.0
"""Seconds to wait for a server that stops answering midway."""


class FileLine(msgspec.Struct, forbid_unknown_fields=True):
    """One run to start. `tenant`: empty for the one that `--tenant` names."""

    id: str | None = None
    input: Any | UnsetType = UNSET
    tenant: str = ""


class Tally(msgspec.Struct):
    """The outcome of the lines so far. `errors` has line and reason of the first `KEPT_ERRORS` bad ones."""

    created: int = 0
    existing: int = 0
    bad: int = 0
    errors: list[tuple[int, str]] = []

    def refuse(self, line: int, reason: str) -> None:
        self.bad += 1
        if len(self.errors) < KEPT_ERRORS:
            self.errors.append((line, reason))


def enqueue_file(
    workflow: str,
    file: str,
    redis: str | None,
    namespace: str | None,
    tenant: str,
    force: bool,
    as_json: bool,
    word: StartWord,
) -> int:
    """Start the runs of a file (`-`: stdin) and print the counts. Returns the exit code: 1 if a line was bad. `word`:
    what each start asks for besides."""
    tally = Tally()
    seconds = run_async(lambda: _load(workflow, file, redis, namespace, tenant, force, tally, word), fast=True)
    _print_errors(tally, file)
    accepted = tally.created + tally.existing
    rate = accepted / seconds if seconds else 0.0
    if as_json:
        errors = [{"line": line, "reason": reason} for line, reason in sorted(tally.errors)]
        counts = {"created": tally.created, "existing": tally.existing, "bad": tally.bad}
        print_json({**counts, "seconds": round(seconds, 3), "runs_per_s": round(rate), "errors": errors})
    else:
        bad = f", {tally.bad:,} bad line{'s' * (tally.bad != 1)}" if tally.bad else ""
        click.echo(
            f"{tally.created:,} created, {tally.existing:,} already existed{bad} ({seconds:.1f} s, {rate:,.0f} runs/s)"
        )
    return 1 if tally.bad else 0


def _print_errors(tally: Tally, file: str) -> None:
    from streamflow.screen.sanitize import safe

    name = "stdin" if file == "-" else safe(file)
    for line, reason in sorted(tally.errors)[:PRINTED_ERRORS]:
        click.echo(f"error: {name}:{line}: {safe(reason, 300)}", err=True)
    if tally.bad > PRINTED_ERRORS:
        click.echo(f"error: … and {tally.bad - PRINTED_ERRORS:,} more bad lines", err=True)


async def _load(
    workflow: str,
    file: str,
    redis: str | None,
    namespace: str | None,
    tenant: str,
    force: bool,
    tally: Tally,
    word: StartWord,
) -> float:
    with open_input(file, "--file -" if file == STDIN else file) as lines:
        async with open_client(redis, namespace) as client:
            await client.read_namespace()
            arguments = await arguments_of(client, workflow, force)
            client.store.patience = PATIENCE
            began = time.monotonic()
            with _progress(lines) as advance:
                await _send(client, _chunks(lines, workflow, tenant, arguments, tally, advance, word), tally)
            return time.monotonic() - began


# --- lines to runs --------------------------------------------------------------------------------------------------

Numbered = tuple[int, NewRun]


def _chunks(
    lines: IO[bytes],
    workflow: str,
    tenant: str,
    arguments: Arguments,
    tally: Tally,
    advance: Callable[[int], None],
    word: StartWord = NOTHING,
) -> Generator[list[Numbered]]:
    decoder = msgspec.json.Decoder(FileLine)
    chunk: list[Numbered] = []
    read = size = 0
    for number, raw in enumerate(lines, 1):
        read += len(raw)
        text = raw.strip()
        if not text:
            continue
        try:
            line = decoder.decode(text)
            payload = codec.encode(arguments.bind(line.input), "input")
        except UsageError as error:
            tally.refuse(number, str(error))
            continue
        except codec.DECODE_ERRORS as error:
            tally.refuse(number, str(error))
            continue
        run_id = line.id or line_id(workflow, number, text)
        chunk.append((number, NewRun(workflow, payload, run_id, line.tenant or tenant, word)))
        size += len(payload)
        if len(chunk) >= CHUNK or size >= CHUNK_BYTES:
            advance(read)
            yield chunk
            chunk, read, size = [], 0, 0
    advance(read)
    if chunk:
        yield chunk


def line_id(workflow: str, number: int, text: bytes) -> str:
    """The same for the same content on the same line, whatever the file's name and whatever is appended to it."""
    content = hashlib.blake2b(workflow.encode() + b"\0" + text, digest_size=12).hexdigest()
    return f"{content}-{number}"


# --- sending --------------------------------------------------------------------------------------------------------


async def _send(client: Client, chunks: Iterable[list[Numbered]], tally: Tally) -> None:
    """Keep several chunks in flight, so that lines are read while the server works. Stops at the first `StoreError`."""
    in_flight: set[asyncio.Task[None]] = set()
    try:
        for chunk in chunks:
            in_flight.add(asyncio.create_task(_start(client, chunk, tally)))
            await asyncio.sleep(0)
            if len(in_flight) >= CHUNKS_IN_FLIGHT:
                done, in_flight = await asyncio.wait(in_flight, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        while in_flight:
            done, in_flight = await asyncio.wait(in_flight, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    except StoreError as error:
        hint = f"created before that: {plural(tally.created, 'run')}; run the same command again to continue"
        raise type(error)(f"{error} ({hint})") from error
    finally:
        for task in in_flight:
            task.cancel()
        await asyncio.gather(*in_flight, return_exceptions=True)


async def _start(client: Client, chunk: list[Numbered], tally: Tally) -> None:
    try:
        replies: list[Any] = list(await client.start_payloads([new for _, new in chunk]))
    except UsageError:
        # At least one of them is invalid, and nothing was sent: send each on its own, to find out which.
        singles = [client.start_payloads([new]) for _, new in chunk]
        replies = [
            reply[0] if isinstance(reply, list) else reply
            for reply in await asyncio.gather(*singles, return_exceptions=True)
        ]
    for (number, _), reply in zip(chunk, replies, strict=True):
        if isinstance(reply, Run):
            if reply.created:
                tally.created += 1
            else:
                tally.existing += 1
        elif isinstance(reply, RunConflict | UsageError):
            tally.refuse(number, str(reply))
        else:
            raise reply


# --- progress -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _progress(lines: IO[bytes]) -> Generator[Callable[[int], None]]:
    """A function to call with the number of bytes read; it moves a bar on stderr where that is a terminal."""
    if not sys.stderr.isatty():
        yield _nothing
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("enqueueing"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=make_console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=_size(lines))

        def advance(read: int) -> None:
            progress.advance(task, read)

        yield advance


def _nothing(read: int) -> None:
    pass


def _size(lines: IO[bytes]) -> int | None:
    try:
        return os.fstat(lines.fileno()).st_size or None
    except (OSError, ValueError):
        return None  # a pipe
