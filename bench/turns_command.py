"""The command line of the comparison with another tree.

Owns: its options, and that the other tree is one. Must not: measure. Called by: `command.py`.
"""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from typing import Any

import anyio
import click
from rich.console import Console

import streamflow
from streamflow import binary
from streamflow.embedded.child import own_environ
from streamflow.errors import UsageError
from streamflow.interpreter import python_command

from .report import Report, show
from .rig import rig
from .turns import LOADS, bench_turns


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("tree", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIRECTORY")
@click.argument("workloads", nargs=-1, type=click.Choice(list(LOADS)), metavar="[WORKLOAD]...")
@click.option("--rounds", type=click.IntRange(2, 1000), default=24, show_default=True, help="Bursts of each daemon.")
@click.option("--shards", type=click.IntRange(1, 16384), default=256, show_default=True, help="Number of shards.")
@click.option("--redis", metavar="URL", help="Use this server instead of an embedded one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def turns(tree: Path, workloads: tuple[str, ...], rounds: int, shards: int, redis: str | None, as_json: bool) -> int:
    """Compare the CPU time of this checkout's daemons with those of the checkout in DIRECTORY: chain, fanout, queue,
    signals.

    Two daemons of each wait on one server, and bursts take turns; two minutes for each WORKLOAD. The client is this
    checkout's, so the other one must understand what it writes.

    \b
    Example:
      git worktree add ../before v0.1.0
      streamflow bench turns ../before chain
    """
    tree = tree.resolve()
    _check(tree)
    uvloop = importlib.util.find_spec("uvloop") is not None
    return anyio.run(
        _run, tree, workloads or tuple(LOADS), rounds, shards, redis, as_json, backend_options={"use_uvloop": uvloop}
    )


def _check(tree: Path) -> None:
    """A process that is started for it must find the other streamflow, and not this one."""
    if binary.root() is not None:
        raise UsageError("the binary runs what is in it: compare checkouts with the Python of one of them")
    words = python_command("-c", "import streamflow; print(streamflow.__file__)")
    found = subprocess.run(words, env=own_environ(source=tree), capture_output=True, text=True, check=False)
    where = Path(found.stdout.strip() or ".").resolve()
    if not where.is_relative_to(tree / "streamflow"):
        raise UsageError(
            f"there is no streamflow in {tree}: name a checkout, such as one that `git worktree add ../before COMMIT` "
            "makes"
        )
    if where == Path(streamflow.__file__).resolve():
        raise UsageError(f"{tree} is what this process runs: name another checkout")


async def _run(
    tree: Path, workloads: tuple[str, ...], rounds: int, shards: int, redis: str | None, as_json: bool
) -> int:
    report = Report(Console(stderr=True, markup=False, highlight=False))
    async with rig(redis) as server:
        await bench_turns(server, tree, workloads, rounds, shards, report)
        facts: dict[str, Any] = {
            "streamflow": streamflow.__version__,
            "server": server.version,
            "aof": server.aof,
            "rounds": rounds,
            "shards": shards,
        }
    show(report.as_json(facts), report.table(facts), 130, as_json=as_json)
    return 0
