"""`replay`: check that an app's code still matches recorded histories.

Owns: its options, and what a source is (a file, a directory, a run on the server). Must not: know what a replay
checks (client/histories.py does), run a step. Called by: the group in `cli`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from streamflow.cli.app_option import app_option, required_workflows
from streamflow.cli.connection import open_client
from streamflow.cli.event_loop import run_async
from streamflow.cli.finding import find_run
from streamflow.cli.options import checked_id, json_option, server_options
from streamflow.cli.output import print_json
from streamflow.errors import Diverged, RunNotFound, StreamflowError, UsageError

if TYPE_CHECKING:
    from streamflow.client.client import Client
    from streamflow.client.histories import History
    from streamflow.workflow.app import App


class Replayed(msgspec.Struct):
    """The outcome of one source. `event` is the number of the first event that differs, if one does."""

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
def replay(
    sources: tuple[str, ...], app_target: str | None, redis: str | None, namespace: str | None, as_json: bool
) -> int:
    """Check that an app's code still matches recorded histories.

    Runs the workflows' code against each history and compares its decisions with the recorded ones. No step runs, and
    nothing is changed. A source that exists as a file or directory is read (all *.json files of a directory); any other
    is the id of a run on the server. The exit code is 1 if any history doesn't match.

    \b
    Examples:
      streamflow replay --app flows:app tests/histories
      streamflow replay --app flows:app invoice-17
    """
    app = required_workflows(app_target, "streamflow.client.client", "streamflow.client.histories")
    files, runs = _split_sources(sources)

    async def replay_all() -> list[Replayed]:
        outcomes = [_replay_file(app, file) for file in files]
        async with _client_for(runs, redis, namespace) as client:
            if client is not None:
                outcomes += [await _replay_run(app, client, run) for run in runs]
        return outcomes

    outcomes = run_async(replay_all)
    failed = [outcome for outcome in outcomes if not outcome.ok]
    if as_json:
        print_json([msgspec.to_builtins(outcome) for outcome in outcomes])
    else:
        from streamflow.screen.sanitize import safe

        for outcome in outcomes:
            summary = f"{outcome.workflow}, {outcome.events} event{'s' * (outcome.events != 1)}"
            label, details = ("ok    ", summary) if outcome.ok else ("FAILED", outcome.reason)
            click.echo(safe(f"{label}  {outcome.source}: {details}"))
        if failed:
            click.echo(f"{len(failed)} of {len(outcomes)} failed", err=True)
    return 1 if failed else 0


def _split_sources(sources: Sequence[str]) -> tuple[list[Path], list[str]]:
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
            raise UsageError(f"there is no file {source} (searched from {Path.cwd()})")
        else:
            runs.append(checked_id(source))
    return files, runs


@contextlib.asynccontextmanager
async def _client_for(runs: Sequence[str], redis: str | None, namespace: str | None) -> AsyncGenerator[Client | None]:
    """A client, or None if there are no runs to read: files are replayed without a server."""
    if not runs:
        yield None
        return
    async with open_client(redis, namespace) as client:
        yield client


def _replay_file(app: App, file: Path) -> Replayed:
    from streamflow.client.histories import load_history

    outcome = Replayed(str(file))
    try:
        history = load_history(file)
    except UsageError as error:
        outcome.reason = str(error)
        return outcome
    return _replay(app, history, outcome)


async def _replay_run(app: App, client: Client, run: str) -> Replayed:
    from streamflow.client.histories import read_history

    outcome = Replayed(run)
    try:
        history = await read_history(client, await find_run(client, run))
    except RunNotFound as error:
        outcome.reason = f"{error}, nor a file of that name in {Path.cwd()}"
        return outcome
    return _replay(app, history, outcome)


def _replay(app: App, history: History, outcome: Replayed) -> Replayed:
    from streamflow.client.histories import replay as replay_history

    outcome.run_id, outcome.workflow = history.run_id, history.head.workflow
    outcome.events = sum(len(transition.events) for transition in history.decoded())
    try:
        replay_history(app, history)
    except Diverged as diverged:
        outcome.event, outcome.reason = diverged.number, str(diverged)
    except StreamflowError as error:
        outcome.reason = str(error)
    else:
        outcome.ok = True
    return outcome
