"""The command line: `streamflow COMMAND`. This module has the group only, so that `--help` and completion are quick.

Owns: the table of commands (each is imported when it is used), the exit codes, and how errors are shown.
Must not: import redis, rich or the runtime. Called by: the `streamflow` script, `python -m streamflow`.

Exit codes: 0 done, 1 the operation failed, 2 wrong usage. Whatever fails as expected is one `error:` line on stderr
that says what to do next; only a bug shows a traceback.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any, cast

import click

from streamflow.errors import StreamflowError, UsageError
from streamflow.version import __version__

SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Start here": {
        "demo": ("local", "Map a source tree with three daemons, one of which is killed."),
        "dev": ("local", "A server, a daemon and the status screen in one command."),
    },
    "Runs": {
        "enqueue": ("enqueue", "Start a run of a workflow, or one for each line of a file."),
        "runs": ("look", "List runs, newest first."),
        "show": ("look", "Show one run: its state, its history as a timeline, its children, what it published."),
        "signal": ("talk", "Send a signal to a run."),
        "ask": ("talk", "Ask a run something, and print its answer."),
        "read": ("talk", "Show what a run has published."),
        "cancel": ("act", "Ask a run to end as cancelled."),
        "terminate": ("act", "End a run as cancelled without asking its code."),
        "forget": ("act", "Delete ended runs with their histories."),
    },
    "Tests": {
        "export": ("replay", "Write a run's history as a file that replay reads."),
        "replay": ("replay", "Check that an app's code still fits recorded histories."),
    },
    "Operations": {
        "daemon": ("serve", "Own shards, run workflows and steps, until SIGTERM."),
        "worker": ("serve", "Run the steps of queues, until SIGTERM."),
        "status": ("look", "Daemons, shards, throughput, latencies and failures."),
        "tail": ("tail", "Show what happens in all shards, live."),
        "views": ("act", "Look after the cross-shard views."),
        "bench": ("local", "Measure throughput and latency here."),
        "completion": ("local", "Print the script that completes commands in your shell."),
    },
}
"""Section -> command -> its module here, and its help in one line (a test holds it against the command's own)."""

_COMMANDS = {name: entry for section in SECTIONS.values() for name, entry in section.items()}


class Commands(click.Group):
    """Imports a command when it is called, and turns errors into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"{__name__}.commands.{_COMMANDS[cmd_name][0]}")
        return cast("click.Command", getattr(module, cmd_name))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in _COMMANDS:
            ctx.fail(f"there is no command {args[0]!r}{closest(args[0], _COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, words) for name, (_, words) in commands.items()], col_spacing=4)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """A command's `int` is the exit code. Ends with `SystemExit`, unless `standalone_mode` is off."""
        try:
            code = cast("Any", super()).main(
                args, prog_name or "streamflow", complete_var, False, windows_expand_args, **extra
            )
        except click.ClickException as error:
            where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
            code = _say(error.format_message().removesuffix("."), f"see {where} --help" if where else "")
            code = error.exit_code
        except (KeyboardInterrupt, click.Abort):
            _say("interrupted")
            code = 1
        except UsageError as error:
            _say(str(error))
            code = 2
        except (StreamflowError, TimeoutError) as error:
            _say(str(error))
            code = 1
        code = code if isinstance(code, int) else 0
        if not standalone_mode:
            return code
        sys.exit(code)


def _say(message: str, hint: str = "") -> None:
    """On stderr, each line made harmless: names and reasons in it may come from anywhere."""
    from streamflow.screen.sanitize import safe

    head = click.style("error:", fg="red", bold=True)
    text = f"{message} ({hint})" if hint else message
    click.echo(f"{head} " + "\n".join(safe(line) for line in text.split("\n")), err=True)


def closest(word: str, known: Any) -> str:
    """`; did you mean …?` for the known word that is most like it, or nothing."""
    import difflib

    found = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {found[0]}?" if found else ""


@click.group(
    "streamflow",
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "-V", "--version", message="streamflow %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Durable workflows on Redis or Valkey, partitioned from day one.

    \b
    Try it:
      streamflow demo
      streamflow dev --app flows:app
      streamflow enqueue greet --input '"world"' --wait

    Options come first, then STREAMFLOW_* variables (STREAMFLOW_REDIS, STREAMFLOW_NAMESPACE, …), then defaults.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    cli()
