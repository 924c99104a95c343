"""`enqueue --file`: a run for each line of a file, ten thousand and more a second.

Owns: reading lines, the ids of lines that have none, what to do with bad ones, the progress bar.
Must not: hold the file in memory. Called by: `enqueue`.

    lines ── decode, bind, encode ── chunks of `CHUNK` runs ── up to `CHUNKS_ON_THE_WAY` at once ── counts
                  └── bad: line number and reason, and go on
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import IO, Any

import click
import msgspec
from msgspec import UNSET, UnsetType

from streamflow.cli.options import (
    open_client,
    run_async,
)
from streamflow.cli.output import (
    make_console,
    print_json,
)
from streamflow.cli.workflow_input import Arguments, find_workflow
from streamflow.client.client import Client, NewRun, Run
from streamflow.errors import RunConflict, StoreError, UsageError
from streamflow.model import codec

CHUNK = 4000
CHUNK_BYTES = 8_000_000
CHUNKS_ON_THE_WAY = 3
SHOWN_ERRORS = 20
KEPT_ERRORS = 1000
PATIENCE = 60.0
"""Seconds to wait for a server that went away in the middle."""


class FileLine(msgspec.Struct, forbid_unknown_fields=True):
    id: str | None = None
    input: Any | UnsetType = UNSET
    tenant: str = ""


class Loaded(msgspec.Struct):
    """What has become of the lines so far. `errors`: the first `KEPT_ERRORS` of the bad ones."""

    created: int = 0
    existing: int = 0
    bad: int = 0
    errors: list[tuple[int, str]] = []

    def refuse(self, line: int, reason: str) -> None:
        self.bad += 1
        if len(self.errors) < KEPT_ERRORS:
            self.errors.append((line, reason))


def enqueue_file(
    workflow: str, file: str, redis: str | None, namespace: str | None, tenant: str, force: bool, as_json: bool
) -> int:
    """The exit code: 1 when a line was bad."""
    loaded = Loaded()
    seconds = run_async(lambda: _load(workflow, file, redis, namespace, tenant, force, loaded), fast=True)
    _report(loaded, file)
    done = loaded.created + loaded.existing
    rate = done / seconds if seconds else 0.0
    if as_json:
        errors = [{"line": line, "reason": reason} for line, reason in sorted(loaded.errors)]
        facts = {"created": loaded.created, "existing": loaded.existing, "bad": loaded.bad}
        print_json({**facts, "seconds": round(seconds, 3), "runs_per_s": round(rate), "errors": errors})
    else:
        bad = f", {loaded.bad:,} bad lines" if loaded.bad else ""
        counts = f"{loaded.created:,} created, {loaded.existing:,} existed already{bad}"
        click.echo(f"{counts}: {rate:,.0f} runs/s in {seconds:.1f} s")
    return 1 if loaded.bad else 0


def _report(loaded: Loaded, file: str) -> None:
    from streamflow.screen.sanitize import safe

    for line, reason in sorted(loaded.errors)[:SHOWN_ERRORS]:
        click.echo(f"error: {safe(file)}:{line}: {safe(reason, 300)}", err=True)
    if loaded.bad > SHOWN_ERRORS:
        click.echo(f"error: … and {loaded.bad - SHOWN_ERRORS:,} more bad lines", err=True)


async def _load(
    workflow: str, file: str, redis: str | None, namespace: str | None, tenant: str, force: bool, loaded: Loaded
) -> float:
    with _opened(file) as lines:
        async with open_client(redis, namespace) as client:
            await client.read_namespace()
            arguments = Arguments(workflow, find_workflow(workflow, await client.workflows(), force))
            client.store.patience = PATIENCE
            began = time.monotonic()
            with _progress(lines) as advance:
                await _send(client, _chunks(lines, workflow, tenant, arguments, loaded, advance), loaded)
            return time.monotonic() - began


@contextlib.contextmanager
def _opened(file: str) -> Generator[IO[bytes]]:
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        opened = Path(file).open("rb")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise UsageError(f"can't read {file}: {error.strerror}") from error
    with opened:
        yield opened


# --- lines to runs --------------------------------------------------------------------------------------------------

Numbered = tuple[int, NewRun]


def _chunks(
    lines: IO[bytes], workflow: str, tenant: str, arguments: Arguments, loaded: Loaded, advance: Callable[[int], None]
) -> Generator[list[Numbered]]:
    decoder = msgspec.json.Decoder(FileLine)
    chunk: list[Numbered] = []
    read = size = 0
    for number, raw in enumerate(_lines(lines), 1):
        read += len(raw)
        text = raw.strip()
        if not text:
            continue
        try:
            line = decoder.decode(text)
            payload = codec.encode(arguments.bind(line.input), "input")
        except UsageError as error:
            loaded.refuse(number, str(error))
            continue
        except codec.DECODE_ERRORS as error:
            loaded.refuse(number, str(error))
            continue
        chunk.append(
            (number, NewRun(workflow, payload, line.id or _line_id(workflow, number, text), line.tenant or tenant))
        )
        size += len(payload)
        if len(chunk) >= CHUNK or size >= CHUNK_BYTES:
            advance(read)
            yield chunk
            chunk, read, size = [], 0, 0
    advance(read)
    if chunk:
        yield chunk


def _lines(lines: IO[bytes]) -> Iterable[bytes]:
    """Without the byte order mark that some programs begin a file with."""
    for number, line in enumerate(lines):
        yield line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line


def _line_id(workflow: str, number: int, text: bytes) -> str:
    """The same for the same line at the same place, whatever the file is called and whatever is appended to it."""
    content = hashlib.blake2b(workflow.encode() + b"\0" + text, digest_size=12).hexdigest()
    return f"{content}-{number}"


# --- sending --------------------------------------------------------------------------------------------------------


async def _send(client: Client, chunks: Iterable[list[Numbered]], loaded: Loaded) -> None:
    """Several chunks on the way, so that lines are read while the server works. Stops at the first `StoreError`."""
    flying: set[asyncio.Task[None]] = set()
    try:
        for chunk in chunks:
            flying.add(asyncio.create_task(_start(client, chunk, loaded)))
            await asyncio.sleep(0)
            if len(flying) >= CHUNKS_ON_THE_WAY:
                done, flying = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        while flying:
            done, flying = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    except StoreError as error:
        done = f"{loaded.created:,} runs were created before that; run the same command again to go on"
        raise type(error)(f"{error} ({done})") from error
    finally:
        for task in flying:
            task.cancel()
        await asyncio.gather(*flying, return_exceptions=True)


async def _start(client: Client, chunk: list[Numbered], loaded: Loaded) -> None:
    try:
        answers: list[Any] = list(await client.start_payloads([new for _, new in chunk]))
    except UsageError:
        # One of them is wrong, and nothing was sent: find out which, one at a time.
        singles = [client.start_payloads([new]) for _, new in chunk]
        answers = [
            answer[0] if isinstance(answer, list) else answer
            for answer in await asyncio.gather(*singles, return_exceptions=True)
        ]
    for (number, _), answer in zip(chunk, answers, strict=True):
        if isinstance(answer, Run):
            if answer.created:
                loaded.created += 1
            else:
                loaded.existing += 1
        elif isinstance(answer, RunConflict | UsageError):
            loaded.refuse(number, str(answer))
        else:
            raise answer


# --- progress -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _progress(lines: IO[bytes]) -> Generator[Callable[[int], None]]:
    """A function that is told how many bytes were read; a bar on stderr where that is a terminal."""
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
