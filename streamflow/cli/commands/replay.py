"""`export` and `replay`: recorded histories in files, and whether an app's code still fits them.

Owns: their options, and what a source is (a file, a directory, a run on the server).
Must not: know the file's format or what a replay checks (`client/histories.py` does), run a step.
Called by: the group in `cli`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from streamflow.cli.commands.serve import app_option, load
from streamflow.cli.options import (
    checked_id,
    json_option,
    open_client,
    run_async,
    server_options,
)
from streamflow.cli.output import print_json
from streamflow.errors import Diverged, RunNotFound, StreamflowError, UsageError

if TYPE_CHECKING:
    from streamflow.client.client import Client
    from streamflow.client.histories import History
    from streamflow.workflow.app import App


@click.command()
@click.argument("run", type=checked_id, metavar="RUN")
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write it there; else to stdout."
)
@server_options
@json_option
def export(run: str, output: Path | None, redis: str | None, namespace: str | None, as_json: bool) -> None:
    """Write a run's history as a file that replay reads.

    One JSON document either way; with --json and --output, what was written is printed as JSON, too.

    \b
    Example:
      streamflow export invoice-17 --output tests/histories/invoice-17.json
    """
    from streamflow.client.histories import dump_history, read_history

    async def fetch() -> History:
        async with open_client(redis, namespace) as client:
            return await read_history(client, run)

    history = run_async(fetch)
    data = dump_history(history)
    if output is None:
        click.echo(data, nl=False)
        return
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(data)
    except OSError as error:
        raise UsageError(f"can't write {output}: {error.strerror}") from None
    count = sum(len(transition.events) for transition in history.decoded())
    if as_json:
        print_json({"run_id": run, "file": str(output), "events": count})
    else:
        click.echo(f"{count} events of {run} written to {output}")


class Replayed(msgspec.Struct):
    """What came of one source. `event` is the number of the first event that differs, if one does."""

    source: str
    run_id: str | None = None
    workflow: str | None = None
    events: int = 0
    ok: bool = False
    event: int | None = None
    reason: str = ""


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="RUN|FILE|DIRECTORY...")
@app_option
@server_options
@json_option
def replay(sources: tuple[str, ...], words: str | None, redis: str | None, namespace: str | None, as_json: bool) -> int:
    """Check that an app's code still fits recorded histories.

    Runs the workflows' code against each history and compares the decisions; no step runs and nothing is changed. What
    exists as a file or directory is read (all *.json files in a directory); anything else is a run on the server.

    Exit code 1 when one doesn't fit.

    \b
    Example:
      streamflow replay --app flows:app tests/histories
      streamflow replay --app flows:app invoice-17
    """
    app = load(words)
    files, runs = _sorted_out(sources)

    async def replay_all() -> list[Replayed]:
        replayed = [_replay_file(app, file) for file in files]
        async with _client_for(runs, redis, namespace) as client:
            if client is not None:
                replayed += [await _replay_run(app, client, run) for run in runs]
        return replayed

    replayed = run_async(replay_all)
    failed = [one for one in replayed if not one.ok]
    if as_json:
        print_json([msgspec.to_builtins(one) for one in replayed])
    else:
        from streamflow.screen.sanitize import safe

        for one in replayed:
            fits = f"{one.workflow}, {one.events} event{'s' * (one.events != 1)}"
            click.echo(safe(f"ok      {one.source}: {fits}" if one.ok else f"FAILED  {one.source}: {one.reason}"))
        if failed:
            click.echo(f"{len(failed)} of {len(replayed)} failed", err=True)
    return 1 if failed else 0


def _sorted_out(sources: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The files, and the ids of runs. Raises `UsageError`."""
    from streamflow.client.histories import find_histories

    files: list[Path] = []
    runs: list[str] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            files += find_histories(path)
        elif path.exists():
            files.append(path)
        elif source.endswith(".json"):
            raise UsageError(f"there is no file {source} (looked from {Path.cwd()})")
        else:
            runs.append(checked_id(source))
    return files, runs


@contextlib.asynccontextmanager
async def _client_for(runs: Sequence[str], redis: str | None, namespace: str | None) -> AsyncGenerator[Client | None]:
    """A client, or None when no run needs one: files are replayed without a server."""
    if not runs:
        yield None
        return
    async with open_client(redis, namespace) as client:
        yield client


def _replay_file(app: App, file: Path) -> Replayed:
    from streamflow.client.histories import load_history

    done = Replayed(str(file))
    try:
        history = load_history(file)
    except UsageError as error:
        done.reason = str(error)
        return done
    return _replay(app, history, done)


async def _replay_run(app: App, client: Client, run: str) -> Replayed:
    from streamflow.client.histories import read_history

    done = Replayed(run)
    try:
        history = await read_history(client, run)
    except RunNotFound as error:
        done.reason = f"{error}, and no file of that name in {Path.cwd()}"
        return done
    return _replay(app, history, done)


def _replay(app: App, history: History, done: Replayed) -> Replayed:
    from streamflow.client.histories import replay as replay_history

    done.run_id, done.workflow = history.run_id, history.head.workflow
    done.events = sum(len(transition.events) for transition in history.decoded())
    try:
        replay_history(app, history)
    except Diverged as diverged:
        done.event, done.reason = diverged.number, str(diverged)
    except StreamflowError as error:
        done.reason = str(error)
    else:
        done.ok = True
    return done
