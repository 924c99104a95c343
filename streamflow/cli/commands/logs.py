"""`logs`: what a run and its steps have logged, from a file of a daemon or worker on this machine.

Owns: its options, which file is read, and what is said where the lines can't be had. Must not: know the file's form
(cli/log_reading.py does), talk to a server: no server has a log. Called by: the group in `cli`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamflow.cli.completing import RUN
from streamflow.cli.options import json_option, log_file_option, settings_options
from streamflow.errors import StreamflowError
from streamflow.server_url import FOLDER

if TYPE_CHECKING:
    from streamflow.cli.log_reading import Filter, Reader

POLL_SECONDS = 0.2


@click.command()
@click.argument("run", type=RUN, metavar="RUN")
@click.option("--follow", "-f", is_flag=True, help="Also show each new line, until Ctrl-C.")
@click.option("--step", "steps", multiple=True, metavar="NAME", help="Only lines of this step; may be repeated.")
@log_file_option(
    "The log of a daemon or worker, as given to its --log-file.  "
    f"[default: that of `streamflow dev` in the working directory, {FOLDER}/log.jsonl]"
)
@json_option
@settings_options()
def logs(run: str, follow: bool, steps: tuple[str, ...], log_file: str | None, as_json: bool) -> None:
    """Show what a run and its steps have logged, where that is in a file.

    `streamflow dev` writes such a file, daemons and workers with --log-file do. Each has the lines of what was done on
    its machine, and the newest 16 to 32 MiB of them. RUN is a whole id: no server is asked. With --json, prints the
    lines as they are in the file. Of logs that go to stderr, search where they are collected for the field `run`.

    \b
    Example:
      streamflow logs order-7 --follow --step charge
    """
    from streamflow.cli.log_file import older
    from streamflow.cli.log_reading import DEV_LOG, Filter, Reader

    path = Path(log_file).expanduser() if log_file else Path(FOLDER, DEV_LOG)
    if not path.exists() and not older(path).exists() and not follow:
        raise StreamflowError(_no_file(path, log_file is None, run))
    try:
        reader = Reader(path)
    except OSError as error:
        raise StreamflowError(f"the log {path} can't be read: {error.strerror}") from None
    try:
        _show(reader, Filter(run, steps), _printer(as_json), follow)
    except KeyboardInterrupt:
        sys.stdout.flush()
    finally:
        reader.close()


def _show(reader: Reader, wanted: Filter, emit: Callable[[dict[str, Any]], None], follow: bool) -> None:
    is_empty = True
    for fields in reader.read():
        if wanted.matches(fields):
            emit(fields)
            is_empty = False
    if is_empty and not follow:
        raise StreamflowError(_no_lines(reader, wanted))
    if is_empty:
        click.echo(f"{_no_lines(reader, wanted)}. Waiting for lines", err=True)
    while follow:
        sys.stdout.flush()
        time.sleep(POLL_SECONDS)
        for fields in reader.read():
            if wanted.matches(fields):
                emit(fields)


def _printer(as_json: bool) -> Callable[[dict[str, Any]], None]:
    from streamflow.cli.log_reading import text_of
    from streamflow.cli.logs import json_line

    def emit(fields: dict[str, Any]) -> None:
        click.echo(json_line(fields) if as_json else text_of(fields, ("run", "workflow")))

    return emit


def _no_file(path: Path, is_default: bool, run: str) -> str:
    elsewhere = (
        f"Logs that go to stderr are where the terminal, the service manager or the container's engine keeps them: "
        f'search there for "run":"{run}" or run={run}'
    )
    if not is_default:
        return f"there is no log {path}: name the file that a daemon or worker on this machine has as --log-file"
    return (
        f"there is no log {path} in {Path.cwd()}: start `streamflow dev` in this directory, or name with --log-file "
        f"the file that a daemon or worker on this machine has. {elsewhere}"
    )


def _no_lines(reader: Reader, wanted: Filter) -> str:
    of = f"run {wanted.run}" + (f", step {', '.join(wanted.steps)}," if wanted.steps else "")
    since = f", which begins at {reader.oldest}" if reader.oldest else ", which is empty"
    return (
        f"no line of {of} in the log {reader.path}{since}. A daemon or worker on another machine, or with another "
        "--log-file, has lines of its own, and lines below its --log-level are nowhere"
    )
