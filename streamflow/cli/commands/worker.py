"""`worker`: run the steps of queues.

Owns: its options, and refusing queues that no step of the app names. Must not: know what a worker does.
Called by: the group in `cli`.
"""

from __future__ import annotations

from typing import Any

import click
import msgspec

from streamflow.cli.app_option import app_option, checked_queue, named_queues, required_app
from streamflow.cli.completing import QUEUE
from streamflow.cli.event_loop import run_service
from streamflow.cli.logs import set_up
from streamflow.cli.options import log_options, log_settings_file, settings_options
from streamflow.errors import UsageError
from streamflow.model.names import check_name
from streamflow.settings import WORKER_CONCURRENCY, load_settings


@click.command()
@app_option
@click.option("--queue", "queues", multiple=True, type=QUEUE, metavar="NAME", help="Queue to serve; may be repeated.")
@click.option(
    "--concurrency", type=click.IntRange(min=1), metavar="N", envvar="STREAMFLOW_WORKER_CONCURRENCY",
    default=WORKER_CONCURRENCY, show_default=True, show_envvar=True,
    help="Maximum number of steps that run at the same time, in tasks or threads.",
)  # fmt: skip
@click.option(
    "--force", is_flag=True, help="Also serve queues that no step of the app names; calls may, with options(queue=…)."
)
@settings_options(
    *("redis", "namespace", "processes", "grace", "worker_timeout", "interrupt_steps", "silent_after"),
    *("stream_bytes", "stream_age", "http"),
)
@log_options
def worker(
    app_target: str | None,
    queues: tuple[str, ...],
    concurrency: int,
    force: bool,
    log_format: str | None,
    log_level: str,
    log_file: str | None,
    **options: Any,
) -> None:
    """Run a worker, which runs the steps of queues.

    A step with queue=NAME runs only in workers that serve that queue. Start any number of workers for a queue, on any
    machine that reaches the server; they need the same app as the daemons. On SIGTERM or Ctrl-C a worker lets its
    running steps finish, for at most --grace seconds, and hands the others back; on a second signal it exits at once.
    Logs go to stderr, or to --log-file.

    \b
    Example:
      streamflow worker --app flows:app --queue gpu --concurrency 2
    """
    settings = msgspec.structs.replace(load_settings(options), concurrency=concurrency)
    set_up(log_format, log_level, file=log_file)
    log_settings_file()
    app = required_app(app_target, "streamflow.worker.worker")
    assert app_target is not None
    if not queues:
        raise UsageError(f"missing --queue: name at least one queue of the app of {app_target}; {named_queues(app)}")
    for queue in queues:
        if force:
            check_name("queue", queue)
        else:
            checked_queue(queue, app, app_target, " If calls name the queue with options(queue=…), add --force")

    async def serve() -> None:
        from streamflow.worker.worker import Worker

        await Worker(app, settings, queues).run(signals=True)

    run_service(serve, settings)
