"""What the demo prints: lines of progress, and the table and facts at the end.

Owns: what is reported, and its wording. Must not: measure or count. Called by: the demo.
"""

from __future__ import annotations

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from streamflow.demo.flows import Survey
from streamflow.screen.sanitize import safe, safe_text
from streamflow.screen.style import BAD, MUTED, OK, TITLE, duration


class MasterFacts(msgspec.Struct, kw_only=True):
    """The master of a cluster that was killed. `*_s`: seconds from its kill."""

    address: str
    shards: int
    promoted: str
    """The address of its replica."""
    promoted_s: float
    """Until all nodes knew that the replica has its slots."""
    recovery_s: float
    """Until a run of one of its shards had advanced."""


class Facts(msgspec.Struct, kw_only=True):
    """What `--json` prints. `*_s` are seconds of elapsed time. None: no daemon was killed."""

    tree: str
    python: str
    server: str
    daemons: int
    shards: int
    files: int
    packages: int
    runs_completed: int
    steps_recorded: int
    steps_executed: int
    files_recorded_at_kill: int | None
    killed_shards: int | None
    shards_recovered_s: float | None
    """From the kill until every shard had a live owner again."""
    recovery_s: float | None
    """From the kill until, in addition, a run of one of the lost shards had advanced."""
    masters: int | None
    """None: it wasn't a cluster."""
    killed_master: MasterFacts | None
    wall_s: float
    direct_s: float
    equal: bool
    result: Survey
    direct: Survey


def print_progress(console: Console, seconds: float, line: str) -> None:
    console.print(Text(f"{seconds:6.1f} s  ", style=MUTED).append(safe(line), style="default"), soft_wrap=True)


def print_result(facts: Facts, console: Console) -> None:
    console.print()
    console.print(_packages(facts))
    console.print()
    console.print(_facts(facts))


def _packages(facts: Facts) -> Table:
    table = Table(box=None, pad_edge=False, header_style=MUTED, padding=(0, 2, 0, 0))
    table.add_column("PACKAGE", no_wrap=True, overflow="ellipsis", max_width=24)
    for name in ("FILES", "LINES", "FUNCTIONS", "CLASSES", "IMPORTS"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("LONGEST FUNCTION", no_wrap=True, overflow="ellipsis")
    for package in facts.result.largest:
        table.add_row(safe_text(package.name), *_counts(package.totals))
    table.add_row(Text(f"all {facts.packages:,}", style=TITLE), *_counts(facts.result.totals))
    return table


def _counts(totals: object) -> list[str | Text]:
    from streamflow.demo.flows import Totals

    assert isinstance(totals, Totals)
    numbers = (totals.files, totals.lines, totals.functions, totals.classes, totals.imports)
    longest = totals.longest
    where = "" if longest is None else f"{longest.name}, {longest.lines:,} lines"
    return [*(f"{number:,}" for number in numbers), safe_text(where, MUTED)]


def _facts(facts: Facts) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style=MUTED, no_wrap=True)
    table.add_column()
    table.add_row("runs completed", f"{facts.runs_completed:,}")
    repeated = facts.steps_executed - facts.steps_recorded
    kills = "the kill" if facts.killed_master is None else "the kills"
    table.add_row("steps recorded", f"{facts.steps_recorded:,}, each exactly once")
    table.add_row("steps executed", f"{facts.steps_executed:,}, {repeated:,} of them run again after {kills}")
    if facts.recovery_s is not None and facts.shards_recovered_s is not None:
        at = f"{facts.files_recorded_at_kill:,} of {facts.files:,} files recorded"
        table.add_row("killed with SIGKILL", f"one of {facts.daemons} daemons, {facts.killed_shards} shards, at {at}")
        owned = duration(facts.shards_recovered_s * 1000)
        table.add_row("recovered after", f"{duration(facts.recovery_s * 1000)} (all shards owned: {owned})")
    if (master := facts.killed_master) is not None:
        table.add_row("and with SIGKILL", f"one of {facts.masters} masters, {master.shards} shards, at the same time")
        promoted = f"its replica took over after {duration(master.promoted_s * 1000)}"
        table.add_row("recovered after", f"{duration(master.recovery_s * 1000)} ({promoted})")
    totals = facts.result.totals
    table.add_row("files", f"{totals.files:,} parsed, {totals.skipped:,} not valid in this Python version")
    took = f"{duration(facts.wall_s * 1000)}; the direct count took {duration(facts.direct_s * 1000)}"
    table.add_row("took", took)
    verdict = (
        Text("equal to the direct count by one process without streamflow", style=OK)
        if facts.equal
        else Text(f"DIFFERENT from the direct count: {safe(str(facts.direct.totals))}", style=BAD)
    )
    table.add_row("merged totals", verdict)
    return table
