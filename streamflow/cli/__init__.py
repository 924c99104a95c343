"""The command line: `streamflow COMMAND`. This module has only the group, so that `--help` and completion are quick.

Owns: the table of commands (each is imported when it is used), the exit codes, and how errors are shown.
Must not: import redis, rich or a command before it is used. Called by: the `streamflow` script, `python -m streamflow`.

A new command is a file `commands/<name>.py` that has a function of the same name, and a line in `SECTIONS`.

Exit codes: 0 done, 1 the operation failed, 2 wrong usage. An expected failure is one `error:` line on stderr that says
what to do next; only a bug shows a traceback.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, cast

import click

from streamflow import binary
from streamflow.cli.secrecy import hide_password, masked_arguments
from streamflow.cli.signals import take_signals
from streamflow.cli.stdio import take_descriptors, write_failed
from streamflow.errors import StreamflowError, UsageError
from streamflow.settings import CONFIG
from streamflow.suggestions import did_you_mean
from streamflow.version import __version__

SECTIONS: dict[str, dict[str, str]] = {
    "Start here": {
        "demo": "Map a source tree with three daemons and kill one of them midway.",
        "dev": "Start a server, a daemon and the status screen in one command.",
    },
    "Runs": {
        "enqueue": "Start a run of a workflow, or one run per line of a file.",
        "workflows": "List the workflows that daemons have registered.",
        "runs": "List runs, newest first.",
        "show": "Show one run: state, history as a timeline, children, published values.",
        "signal": "Send a signal to a run.",
        "ask": "Ask a run a question and print its answer.",
        "read": "Print the values that a run has published.",
        "view": "Print a view of an app: the largest keys of its newest window.",
        "logs": "Show what a run and its steps have logged, where that is in a file.",
        "retry": "Have a run go on that has failed, from where it failed, or is stuck.",
        "fork": "Start a new run that shares a run's history up to an event.",
        "cancel": "Ask a run to clean up and end as cancelled.",
        "terminate": "Force a run to end as cancelled, without running its clean-up code.",
        "pause": "Have nothing new begin: of a run, of a whole workflow, or in a queue.",
        "resume": "Have go on what `streamflow pause` has paused: a run, a whole workflow, or a queue.",
        "forget": "Delete ended runs and their histories.",
        "purge": "Move ended runs into the archive now.",
        "restore": "Put runs back from the archive.",
    },
    "Tests": {
        "export": "Export a run's history to a file that `replay` reads.",
        "replay": "Check that an app's code still matches recorded histories.",
    },
    "Operations": {
        "daemon": "Run a daemon, which owns shards and runs workflows and steps.",
        "trigger": "Serve triggers: webhooks, queues, tables and files that start runs and signal them.",
        "worker": "Run a worker, which runs the steps of queues.",
        "config": "Print the effective settings, and where each comes from.",
        "check": "Check settings, app, server and permissions without starting anything.",
        "acl": "Print the server's user for a role: exactly what it needs in one namespace.",
        "health": "Check the daemons, workers and sinks on this machine; the exit code says it.",
        "status": "Show daemons, shards, throughput, latencies and failures.",
        "tail": "Follow the events of all shards, live.",
        "groups": "List, show, reset and remove groups of subscribers.",
        "sink": "Write committed events to files, PostgreSQL, Kafka or a webhook.",
        "quarantine": "List, show, redrive or drop messages that could not be processed.",
        "archive": "Show the namespace's archive, and whether it is the right storage.",
        "views": "Rebuild the cross-shard views from the shards' logs.",
        "bench": "Measure throughput and latency on this machine.",
        "files": "List or write files for systemd, Prometheus, Grafana, Kubernetes.",
        "licenses": "List the licenses of everything that is installed with streamflow.",
        "completion": "Print the completion script for your shell.",
    },
}
"""Section -> command -> its help in one line; a test compares it with the command's own."""

_COMMANDS = [name for section in SECTIONS.values() for name in section]


class Commands(click.Group):
    """Imports a command when it is called, and turns errors into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"{__name__}.commands.{cmd_name}")
        return cast("click.Command", getattr(module, cmd_name))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in _COMMANDS:
            ctx.fail(f"unknown command {args[0]!r}{did_you_mean(args[0], _COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(list(commands.items()), col_spacing=4)

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
        config = os.environ.get(CONFIG)
        try:
            code = cast("Any", super()).main(
                args, prog_name or "streamflow", complete_var, False, windows_expand_args, **extra
            )
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.ctx.get_help() if error.ctx else error.format_message(), err=True)
            code = error.exit_code
        except click.ClickException as error:
            command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
            message = " ".join(error.format_message().split())  # click spreads a list of choices over several lines
            message = message[:1].lower() + message[1:].removesuffix(".")
            if isinstance(error, click.NoSuchOption) and error.ctx and error.ctx.parent is None:
                message += "; options of a command stand behind it: streamflow COMMAND [OPTIONS]"
            _print_error(message, f"see {command} --help" if command else "")
            code = error.exit_code
        except (KeyboardInterrupt, click.Abort):
            _print_error("interrupted")
            code = 1
        except UsageError as error:
            _print_error(str(error))
            code = 2
        except (StreamflowError, TimeoutError) as error:
            _print_error(str(error))
            code = 1
        except OSError as error:
            message = write_failed(error)
            if message is None:
                raise
            if message:
                _print_error(message)
            code = 1
        finally:  # `--config` is of one command
            if config is None:
                os.environ.pop(CONFIG, None)
            else:
                os.environ[CONFIG] = config
        code = code if isinstance(code, int) else 0
        if not standalone_mode:
            return code
        sys.exit(code)


def _print_error(message: str, hint: str = "") -> None:
    """On stderr, each line made harmless: names and reasons in it may come from anywhere."""
    from streamflow.screen.sanitize import safe

    message = masked_arguments(message)
    head = click.style("error:", fg="red", bold=True)
    text = f"{message} ({hint})" if hint else message
    click.echo(f"{head} " + "\n".join(safe(line) for line in text.split("\n")), err=True)


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

    `streamflow COMMAND --help` shows a command's options and an example. An option overrides its environment variable
    (STREAMFLOW_REDIS, STREAMFLOW_NAMESPACE, …), which overrides the settings file (--config FILE), which overrides the
    default.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    hide_password()
    take_signals()
    take_descriptors()
    binary.hold()
    cli()
