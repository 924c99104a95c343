"""`daemon`: run a daemon, with an option for each setting.

Owns: its options. Must not: state a default (settings.py has them all), know what a daemon does.
Called by: the group in `cli`.
"""

from __future__ import annotations

from typing import Any

import click

from streamflow.cli.app_option import app_option, required_workflows
from streamflow.cli.event_loop import run_service
from streamflow.cli.logs import set_up
from streamflow.cli.options import log_options, log_settings_file, settings_options
from streamflow.settings import Settings, load_settings


@click.command()
@app_option
@settings_options(*Settings.__struct_fields__)
@click.option("--check", "only_check", is_flag=True, help="Check settings, app and server as `check` does, then exit.")
@log_options
def daemon(
    app_target: str | None,
    only_check: bool,
    log_format: str | None,
    log_level: str,
    log_file: str | None,
    **options: Any,
) -> int | None:
    """Run a daemon, which owns shards and runs workflows and steps.

    Start one daemon per core, on one machine or several: they share the shards. On SIGTERM or Ctrl-C a daemon lets its
    running steps finish, for at most --grace seconds, and hands its shards over; on a second signal it exits at once.
    Logs go to stderr, or to --log-file. Give a server password in STREAMFLOW_REDIS rather than in --redis, which other
    users of the machine can see.

    \b
    Example:
      streamflow daemon --app flows:app --redis redis://127.0.0.1:6379
    """
    if only_check:
        from streamflow.cli.checks import run_checks

        return run_checks(app_target, options, needs_app=True, as_json=log_format == "json")
    settings = load_settings(options)
    set_up(log_format, log_level, file=log_file)
    log_settings_file()
    app = required_workflows(app_target, "streamflow.daemon.daemon")

    async def serve() -> None:
        from streamflow.daemon.daemon import Daemon

        await Daemon(app, settings).run(signals=True)

    run_service(serve, settings)
    return None
