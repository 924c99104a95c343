"""The command line of the benchmarks: options, the workloads one after the other, and what is printed.

Owns: the list of workloads. Must not: measure. Called by: `streamflow bench`, `python -m bench`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import click
from rich.console import Console

import streamflow
from streamflow.errors import UsageError

from .burst import bench_burst
from .durability import bench_durability
from .enqueue import bench_enqueue
from .events import bench_events
from .idle import bench_idle
from .isolation_command import isolation
from .parked import bench_parked
from .payload import bench_payload
from .queue import bench_queue
from .report import Report, show
from .rig import Options, Rig, rig
from .signals import bench_signals
from .stream import bench_stream
from .takeover import bench_takeover
from .throughput import bench_chain, bench_fanout, bench_shards
from .turns_command import turns

Workload = Callable[[Rig, Options, Report], Awaitable[None]]

WORKLOADS: dict[str, Workload] = {
    "chain": bench_chain,
    "fanout": bench_fanout,
    "shards": bench_shards,
    "idle": bench_idle,
    "parked": bench_parked,
    "takeover": bench_takeover,
    "enqueue": bench_enqueue,
    "signals": bench_signals,
    "queue": bench_queue,
    "burst": bench_burst,
    "payload": bench_payload,
    "stream": bench_stream,
    "durability": bench_durability,
    "events": bench_events,
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("workloads", nargs=-1, type=click.Choice(list(WORKLOADS)), metavar="[WORKLOAD]...")
@click.option("--runs", type=click.IntRange(min=1), help="Number of runs of each workload.  [default: per workload]")
@click.option(
    "--repeat", type=click.IntRange(min=1), help="Number of measurements; the median counts.  [default: 3, quick: 1]"
)
@click.option("--daemons", type=click.IntRange(1, 64), default=1, show_default=True, help="Number of daemon processes.")
@click.option("--shards", type=click.IntRange(1, 16384), default=256, show_default=True, help="Number of shards.")
@click.option("--redis", metavar="URL", help="Use this server instead of an embedded one.")
@click.option("--cluster", is_flag=True, help="Use an embedded cluster of three masters instead of one server.")
@click.option("--quick", is_flag=True, help="A tenth of the runs, measured once: a check that it works.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    workloads: tuple[str, ...],
    runs: int | None,
    repeat: int | None,
    daemons: int,
    shards: int,
    redis: str | None,
    cluster: bool,
    quick: bool,
    as_json: bool,
) -> int:
    """Measure throughput and latency on this machine: chain, fanout, shards, idle, parked, takeover, enqueue, signals,
    queue, burst, payload, stream, durability, events.

    Without a WORKLOAD, all of them. The server is an embedded Valkey with an append-only file (everysec), in its own
    process, as is each daemon; the client is this process. durability starts a server, or a cluster, for each level. A
    figure that misses its target is marked; the exit code is 0 all the same.

    On a cluster (--cluster, or --redis redis+cluster://…) there is no ceiling to compare with; the share of all
    commands that the busiest master gets is measured instead.

    Apart, with options of their own: `streamflow bench isolation` measures what harmful user code does to other runs,
    `streamflow bench turns` compares the daemons of two checkouts.

    \b
    Example:
      streamflow bench chain idle --json
    """
    if cluster and redis is not None:
        raise UsageError("--cluster starts a cluster of its own: leave out --redis, or name a cluster with it")
    options = Options(runs, repeat or (1 if quick else 3), daemons, shards, quick, cluster)
    uvloop = importlib.util.find_spec("uvloop") is not None
    return anyio.run(run_bench, workloads, options, redis, as_json, backend_options={"use_uvloop": uvloop})


async def run_bench(
    workloads: Sequence[str] = (), options: Options | None = None, redis: str | None = None, as_json: bool = False
) -> int:
    """Measure, and print a table or one JSON object on stdout; progress goes to stderr."""
    options = options or Options()
    report = Report(Console(stderr=True, markup=False, highlight=False))
    async with rig(redis, cluster=options.cluster) as server:
        for name in workloads or WORKLOADS:
            await WORKLOADS[name](server, options, report)
        facts: dict[str, Any] = {
            "streamflow": streamflow.__version__,
            "server": server.version,
            "aof": server.aof,
            "daemons": options.daemons,
            "shards": options.shards,
        }
    show(report.as_json(facts), report.table(facts), 110, as_json=as_json)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code. Usage errors are click's, and raised."""
    words = list(arguments or ())
    apart = {"isolation": isolation, "turns": turns}.get(words[0]) if words else None
    if apart is not None:
        code: Any = apart.main(words[1:], prog_name=f"streamflow bench {words[0]}", standalone_mode=False)
    else:
        code = command.main(words, prog_name="streamflow bench", standalone_mode=False)
    return code if isinstance(code, int) else 0
