"""Commands that do something to runs: to one that is named, or to all that match filters.

Owns: the options of both, which of them go together, the question before a bulk, the progress bar, stopping, and what
is printed. Must not: know a single action (`actions/` does), choose runs, or decide how fast they are done.
Called by: `cancel`, `terminate`, `signal`, `retry`, `fork`, `pause`, `resume`, `forget`, `purge`,
`restore`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import shlex
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamflow.cli.connection import open_client
from streamflow.cli.event_loop import run_async
from streamflow.cli.filters import filter_options, filter_words
from streamflow.cli.finding import find_run
from streamflow.cli.logs import JsonFormatter
from streamflow.cli.options import json_option, server_options
from streamflow.cli.output import make_console, print_json
from streamflow.cli.unknown_workflow import warn_of_unknown_workflow
from streamflow.errors import StoreError, UsageError
from streamflow.settings import CommandSettings
from streamflow.text import plural

if TYPE_CHECKING:
    from streamflow.actions import Bulk, BulkOutcome
    from streamflow.actions.targets import AnyAction, Tally
    from streamflow.client.client import Client
    from streamflow.client.listing import RunSummary

ASKED_BY_NUMBER = 20
"""Above so many runs the question is answered with their number."""
SHOWN_REASONS = 5


class Choice:
    """The options of an action but those of its own. `is_bulk`: it isn't for runs that are named."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.filters: dict[str, Any] = options.pop("filters")
        if options.pop("hibernating"):
            self.filters["hibernating"] = True
        self.yes: bool = options.pop("yes")
        self.dry_run: bool = options.pop("dry_run")
        self.rate: float | None = options.pop("rate")
        self.resume: str | None = options.pop("resume")
        self.targets: str | None = options.pop("targets")
        self.audit_log: str | None = options.pop("audit_log")
        self.redis: str | None = options.pop("redis")
        self.namespace: str | None = options.pop("namespace")
        self.as_json: bool = options.pop("as_json")

    @property
    def is_bulk(self) -> bool:
        return bool(self.filters) or self.resume is not None

    def check(self, name: str, runs: tuple[str, ...], own: bool = False) -> None:
        """`own`: whether options of the action itself were given. Raises `UsageError` unless it is clear which runs are
        meant."""
        if runs and self.is_bulk:
            raise UsageError("name a RUN, or say with filters which runs; both together would be neither")
        if self.resume is not None and (self.filters or own or self.targets is not None):
            raise UsageError("--resume goes on with what stands in the file: no filters, values or reasons beside it")
        if not runs and not self.is_bulk:
            raise UsageError(f"say which runs: name a RUN, or give a filter, as in {name} --workflow NAME")
        if runs:
            self.check_single("runs that filters choose, and not for a RUN")

    def check_single(self, what_for: str) -> None:
        """Raises `UsageError` if there are options that are only for many runs."""
        for option, given in (
            ("--yes", self.yes),
            ("--dry-run", self.dry_run),
            ("--rate", self.rate is not None),
            ("--targets", self.targets is not None),
        ):
            if given:
                raise UsageError(f"{option} is for {what_for}")


_OPTIONS = (
    click.option(
        "--hibernating", is_flag=True,
        help="In bulk: runs that were moved out of the server's memory; of the filters only --workflow goes with it.",
    ),
    click.option("--yes", is_flag=True, help="In bulk: don't ask."),
    click.option("--dry-run", is_flag=True, help="In bulk: only say which runs, and how many."),
    click.option(
        "--rate", type=click.FloatRange(0), metavar="N",
        help="In bulk: runs a second, 50 if not given; 0: as fast as it goes.",
    ),
    click.option(
        "--targets", metavar="FILE",
        help="In bulk: keep the list of runs in this file until all are done, and not in one in the working directory.",
    ),
    click.option("--resume", metavar="FILE", help="Go on with the list of a bulk that has stopped."),
    click.option(
        "--audit-log", metavar="FILE", envvar="STREAMFLOW_AUDIT_LOG", show_envvar=True,
        default=CommandSettings().audit_log,
        help="Append a JSON object to this file for each run: who has done what, and why.",
    ),
)  # fmt: skip


def acting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Filters, and all other options that actions share: the command gets them as `choice`."""

    @functools.wraps(command)
    def collected(**options: Any) -> Any:
        choice = Choice(options)
        return command(choice=choice, **options)

    json_option(collected)
    collected = server_options(collected)
    for option in reversed(_OPTIONS):
        option(collected)
    return filter_options(collected)


# --- one run ----------------------------------------------------------------------------------------------------------


def act(
    action: AnyAction, run: str, choice: Choice, check: Callable[[Client, str], Awaitable[None]] | None = None
) -> int:
    """Do it to one run, which is named by its id or the beginning of it, and print what was done. `check` raises if it
    can't be done to that run."""

    async def do() -> Any:
        from streamflow.actions import perform

        async with open_client(choice.redis, choice.namespace) as client:
            found = await find_run(client, run, acts=True)
            if check is not None:
                await check(client, found)
            return await perform(client, action, found)

    with auditing(choice.audit_log):
        outcome = run_async(do)
    if choice.as_json:
        plain = action.plain(outcome.run_id, outcome.value)
        print_json({**plain, "delayed": outcome.delayed} if outcome.delayed else plain)
    else:
        click.echo(outcome.text)
    return 0


@contextlib.contextmanager
def auditing(file: str | None) -> Generator[None]:
    """Append the lines of `streamflow.audit` to a file, and show them nowhere else."""
    if file is None:
        yield
        return
    log = logging.getLogger("streamflow.audit")
    before = log.level, log.propagate
    try:
        handler = logging.FileHandler(file, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"can't write --audit-log {file}: {error.strerror}") from None
    handler.setFormatter(JsonFormatter())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()
        log.setLevel(before[0])
        log.propagate = before[1]


# --- many -------------------------------------------------------------------------------------------------------------


def act_in_bulk(
    action: AnyAction | None,
    name: str,
    choice: Choice,
    check: Callable[[Client, list[str]], Awaitable[None]] | None = None,
) -> int:
    """Do it to all runs that the filters choose, or that are left in a file (then `action` is None). Returns the exit
    code: 1 if it couldn't be done to some, or if it was stopped. `check` is called with the workflows of the chosen
    runs; what it raises ends the command before anything is done."""
    with contextlib.ExitStack() as stack:
        path = None if choice.targets is None else Path(choice.targets)
        if choice.dry_run:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "targets.jsonl"
        bulk = _open(name, choice) if action is None else _freeze(action, path, choice, check)
        if choice.dry_run:
            return _show(bulk, choice)
        if bulk.file.count == 0:
            click.echo(f"no runs to {name} match", err=True)
        elif action is not None and not choice.yes:
            agreed = False
            try:
                agreed = _ask(bulk, choice)
            finally:
                if not agreed:
                    bulk.file.delete()
            if not agreed:
                click.echo("nothing was done", err=True)
                return 1
        elif action is None and bulk.tally.next >= bulk.file.count:
            from streamflow.screen.sanitize import safe

            left = f"no run of {choice.resume} is left, and those that failed aren't tried again; they ended like this:"
            click.echo(safe(left, 2000), err=True)
        with auditing(choice.audit_log):
            try:
                outcome = _run(bulk, choice)
            except StoreError as error:
                bulk.close()
                done = f"done with before: {bulk.tally.next:,} of {plural(bulk.file.count, 'run')}"
                raise type(error)(f"{error} ({done}; go on with: {_resume(bulk)})") from error
        bulk.close()
        return _report(bulk, outcome, choice)


def _freeze(
    action: AnyAction,
    path: Path | None,
    choice: Choice,
    check: Callable[[Client, list[str]], Awaitable[None]] | None,
) -> Bulk:
    async def freeze() -> Bulk:
        from streamflow.actions import freeze

        async with open_client(choice.redis, choice.namespace) as client:
            with _counting() as found:
                bulk = await freeze(client, action, path, on_found=found, **choice.filters)
            try:
                if not bulk.file.count:
                    await warn_of_unknown_workflow(client, choice.filters.get("workflow"))
                if check is not None:
                    await check(client, bulk.workflows)
                await _say_who_sleeps(client, action, choice)
            except BaseException:
                bulk.file.delete()
                raise
            return bulk

    return run_async(freeze)


async def _say_who_sleeps(client: Client, action: AnyAction, choice: Choice) -> None:
    """On stderr, if runs hibernate to which the action applies as well."""
    if choice.filters.get("hibernating") or action.archived or "running" not in action.statuses:
        return
    if not (await client.read_namespace()).archive or choice.filters.get("status") not in (None, "running"):
        return
    if asleep := await client.hibernating():
        text = f"not among them: {plural(asleep, 'hibernating run')} (--hibernating is for those)"
        click.echo(text, err=True)


def _open(name: str, choice: Choice) -> Bulk:
    async def read() -> Bulk:
        from streamflow.actions import open_file

        async with open_client(choice.redis, choice.namespace) as client:
            return await open_file(client, Path(choice.resume or ""))

    bulk = run_async(read)
    if bulk.action.name != name:
        bulk.file.close()
        raise UsageError(f"{choice.resume} is of streamflow {bulk.action.name}, and not of {name}")
    return bulk


def _run(bulk: Bulk, choice: Choice) -> BulkOutcome:
    from streamflow.actions import Bulk
    from streamflow.actions.many import RATE

    async def run() -> BulkOutcome:
        async with open_client(choice.redis, choice.namespace) as client:
            begun = Bulk(client, bulk.file, bulk.sample, bulk.by)
            with _progress(bulk) as advance, _stopping(begun):
                return await begun.run(rate=RATE if choice.rate is None else choice.rate, on_progress=advance)

    return run_async(run, fast=True)


@contextlib.contextmanager
def _stopping(bulk: Bulk) -> Generator[None]:
    """The first Ctrl-C or SIGTERM begins no other run; a second one ends the process, which may be resumed, too."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def stop() -> None:
        bulk.stop()
        _let_go()

    def _let_go() -> None:
        for number in numbers:
            with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):
                loop.remove_signal_handler(number)

    for number in numbers:
        with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):  # Windows; not the main thread
            loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        _let_go()


# --- what is said -----------------------------------------------------------------------------------------------------


def _what(bulk: Bulk) -> str:
    filters = bulk.file.head.filters
    status = f"{filters['status']} " if filters.get("status") else "hibernating " * bool(filters.get("hibernating"))
    count = bulk.file.count
    return f"{plural(count, f'{status}run')}{filter_words(filters)}"


def _preview(bulk: Bulk, choice: Choice, err: bool) -> None:
    from streamflow.actions.many import RATE
    from streamflow.screen.sanitize import safe

    count = bulk.file.count
    rate = RATE if choice.rate is None else choice.rate
    click.echo(safe(bulk.action.question(_what(bulk)), 2000), err=err)
    for run in bulk.sample:
        click.echo(f"  {_line(run)}", err=err)
    if (more := count - len(bulk.sample)) > 0:
        click.echo(f"  and {more:,} more", err=err)
    if rate and count / rate >= 2:
        click.echo(f"{rate:g} a second: about {_duration(count / rate)}", err=err)


def _line(run: RunSummary) -> str:
    from streamflow.screen.sanitize import safe

    why = run.error or run.reason
    return safe(f"{run.id}  {run.workflow}  {run.status}" + (f"  {why}" if why else ""), 150)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _ask(bulk: Bulk, choice: Choice) -> bool:
    """Whether the answer is yes; Enter isn't. Raises `UsageError` without a terminal."""
    _preview(bulk, choice, err=True)
    if not sys.stdin.isatty():
        raise UsageError(f"nothing was done: there is no terminal to ask at. Add --yes to {bulk.action.name} them")
    if bulk.file.count <= ASKED_BY_NUMBER:
        return click.confirm("Do it?", err=True)
    answer: str = click.prompt(f"Type {bulk.file.count} to do it", default="", show_default=False, err=True)
    return answer.strip().replace(",", "") == str(bulk.file.count)


def _show(bulk: Bulk, choice: Choice) -> int:
    """What would be done."""
    left = bulk.file.count - bulk.tally.next
    if choice.as_json:
        sample = [run.id for run in bulk.sample]
        print_json({"action": bulk.action.name, "dry_run": True, "targets": left, "sample": sample})
    elif choice.resume is not None:
        click.echo(f"{left:,} of {plural(bulk.file.count, 'run')} left to {bulk.action.name}")
    elif not left:
        click.echo(f"no runs to {bulk.action.name} match", err=True)
    else:
        _preview(bulk, choice, err=False)
        click.echo("nothing was done: --dry-run")
    if choice.resume is not None:
        bulk.file.close()
    else:
        bulk.file.delete()
    return 0


def _report(bulk: Bulk, outcome: BulkOutcome, choice: Choice) -> int:
    import msgspec

    from streamflow.screen.sanitize import safe

    code = 1 if outcome.failed or outcome.left else 0
    if choice.as_json:
        fields: dict[str, Any] = msgspec.to_builtins(outcome)
        print_json({"action": bulk.action.name, **fields, "file": outcome.file or None})
    elif outcome.targets:
        numbers = (bulk.action.done, outcome.done), ("already so or not applicable", outcome.already)
        click.echo(" · ".join(f"{word} {count:,}" for word, count in (*numbers, ("failed", outcome.failed))))
        for reason, count in sorted(outcome.reasons.items(), key=lambda item: -item[1])[:SHOWN_REASONS]:
            click.echo(f"  {count:,} {safe(reason, 300)}")
        if (more := len(outcome.reasons) - SHOWN_REASONS) > 0:
            click.echo(f"  and {more} other reason{'s' * (more != 1)}")
        if outcome.now:
            click.echo("now: " + ", ".join(f"{count:,} {status}" for status, count in outcome.now.items()))
    if outcome.failed:
        click.echo(f"the runs that failed are in {safe(outcome.file)}", err=True)
    if outcome.left:
        text = f"stopped: {outcome.left:,} of {plural(outcome.targets, 'run')} left; go on with: {_resume(bulk)}"
        click.echo(safe(text, 2000), err=True)
    return code


def _resume(bulk: Bulk) -> str:
    return f"streamflow {bulk.action.name} --resume {shlex.quote(str(bulk.file.path))}"


# --- progress ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _counting() -> Generator[Callable[[int], None] | None]:
    """Says on a terminal how many runs were found so far."""
    if not sys.stderr.isatty():
        yield None
        return
    with make_console(stderr=True).status("looking for runs …") as status:
        yield lambda count: status.update(f"looking for runs … {count:,}")


@contextlib.contextmanager
def _progress(bulk: Bulk) -> Generator[Callable[[Tally], None] | None]:
    """A bar on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=make_console(stderr=True), transient=True) as progress:
        task = progress.add_task(bulk.action.name, total=bulk.file.count, completed=bulk.tally.next)

        def advance(tally: Tally) -> None:
            failed = f" ({tally.failed:,} failed)" if tally.failed else ""
            progress.update(task, completed=tally.next, description=f"{bulk.action.name}{failed}")

        yield advance
