"""The command line of the workload isolation: its options, its table, its JSON.

Owns: what is printed. Must not: measure. Called by: `command.py`.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from typing import Any

import anyio
import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

import streamflow
from streamflow.screen.sanitize import safe

from .isolation import Plan, Results, Trial, bench_isolation
from .kinds import BY_NAME, KINDS, Kind
from .report import Report, machine, show
from .rig import rig
from .surrounding_kinds import BY_NAME as SURROUNDINGS
from .surroundings import Plan as SurroundingsPlan
from .surroundings import Surrounding
from .surroundings_command import listing, run_surroundings


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--only",
    "only",
    multiple=True,
    type=click.Choice([*BY_NAME, *SURROUNDINGS]),
    metavar="KIND",
    help="This kind; may be repeated.",
)
@click.option(
    "--surroundings", is_flag=True, help="Measure hostile surroundings instead: of server, clock, line, other tenants."
)
@click.option(
    "--scale",
    type=click.FloatRange(0.001, 10),
    default=1.0,
    show_default=True,
    help="Size of the largest surroundings.",
)
@click.option(
    "--rate", type=click.FloatRange(1, 10_000), help="Innocent runs per second.  [default: a fifth; surroundings: 40]"
)
@click.option(
    "--seconds", type=click.FloatRange(1, 600), default=3.0, show_default=True, help="Minimum length of a window."
)
@click.option(
    "--limit",
    type=click.FloatRange(1, 600),
    default=12.0,
    show_default=True,
    help="Seconds after which a poison that has not ended is terminated.",
)
@click.option("--redis", metavar="URL", help="Use this server instead of an embedded one.")
@click.option("--list", "listed", is_flag=True, help="Print the kinds and exit.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def isolation(
    only: tuple[str, ...],
    surroundings: bool,
    scale: float,
    rate: float | None,
    seconds: float,
    limit: float,
    redis: str | None,
    listed: bool,
    as_json: bool,
) -> int:
    """Measure what each kind of harmful user code does to innocent runs beside it.

    Two daemons, which are started again when they end, serve a steady load: a fifth of what the machine can do. One
    poison after another is started beside it; ten minutes for all of them. A goal that is missed is marked; the exit
    code is 0 all the same.

    With --surroundings, faults of what is around daemons are done instead, one after another: a clock that is set, a
    full server, a failover, lost data, a thin line, other tenants' bursts. Each has a server of its own; five minutes
    for all of them, more on a small machine: see --scale.

    \b
    Examples:
      streamflow bench isolation --only workflow-loops --only async-exits
      streamflow bench isolation --surroundings --only lost-suffix
    """
    table_of = SURROUNDINGS if surroundings else BY_NAME
    if unknown := [name for name in only if name not in table_of]:
        raise click.UsageError(
            f"{unknown[0]} is a kind of the other table: {'omit' if surroundings else 'add'} --surroundings"
        )
    if surroundings:
        return _surroundings(
            [SURROUNDINGS[name] for name in only or SURROUNDINGS], rate, seconds, scale, redis, listed, as_json
        )
    kinds = [BY_NAME[name] for name in only] or list(KINDS)
    if listed:
        click.echo(json.dumps([_described(kind) for kind in kinds]) if as_json else _listing(kinds))
        return 0
    plan = Plan(kinds, rate, seconds, limit)
    return anyio.run(_run, plan, redis, as_json, backend_options=_backend())


def _surroundings(
    kinds: list[Surrounding],
    rate: float | None,
    seconds: float,
    scale: float,
    redis: str | None,
    listed: bool,
    as_json: bool,
) -> int:
    if redis is not None:
        raise click.UsageError("--surroundings does harm to its servers, so it starts its own: omit --redis")
    if listed:
        click.echo(listing(kinds, as_json))
        return 0
    plan = SurroundingsPlan(kinds, rate or 40.0, seconds=seconds, scale=scale)
    return anyio.run(run_surroundings, plan, as_json, backend_options=_backend())


def _backend() -> dict[str, bool]:
    return {"use_uvloop": importlib.util.find_spec("uvloop") is not None}


async def _run(plan: Plan, redis: str | None, as_json: bool) -> int:
    progress = Report(Console(stderr=True, markup=False, highlight=False, soft_wrap=True)).progress
    async with rig(redis) as server:
        results = await bench_isolation(server, plan, progress)
        facts: dict[str, Any] = machine() | {"streamflow": streamflow.__version__, "server": server.version}
    show(as_object(results, plan, facts), table(results, plan, facts), 140, as_json=as_json)
    return 0


def as_object(results: Results, plan: Plan, facts: dict[str, Any]) -> dict[str, Any]:
    """For `--json`: seconds, runs per second."""
    undisturbed = results.p99
    return {
        "machine": facts,
        "rate": round(results.rate, 1),
        "undisturbed": {
            "runs": len(results.undisturbed),
            "p50": round(results.p50, 4),
            "p99": round(undisturbed, 4),
            "limit_gives_way": round(1.5 * undisturbed, 4),
            "limit_blocks": plan.interrupt + 1.0,
        },
        "poisons": {trial.kind.name: _trial(trial, undisturbed) for trial in results.trials},
    }


def _trial(trial: Trial, undisturbed: float) -> dict[str, Any]:
    missed = trial.faults(undisturbed)
    return {
        **_described(trial.kind),
        "innocents": trial.innocents,
        "completed_right": trial.innocents - len(trial.problems),
        "problems": trial.problems[:10],
        "p50": round(trial.p50, 4),
        "p99": round(trial.p99, 4),
        "p99_ratio": round(trial.p99 / undisturbed, 2) if undisturbed else None,
        "worst": round(trial.worst, 4),
        "steps_twice": trial.twice,
        "steps_again_after_death": trial.again,
        "process_ends": [end.code for end in trial.ends],
        "ended": trial.ended,
        "ended_after": round(trial.seconds, 2),
        "reason": trial.reason,
        "reason_names_line": trial.named,
        "terminated": trial.terminated,
        "normal_after": trial.normal_after,
        "missed": missed,
        "met": not missed,
    }


def table(results: Results, plan: Plan, facts: dict[str, Any]) -> Table:
    undisturbed = results.p99
    missed = sum(bool(trial.faults(undisturbed)) for trial in results.trials)
    caption = (
        f"{results.rate:.0f} innocent runs/s, undisturbed p50 {_ms(results.p50)} ms, p99 {_ms(undisturbed)} ms; "
        f"limits of p99: {_ms(1.5 * undisturbed)} ms,"
        f" and {_ms(plan.interrupt + 1)} ms for a poison that doesn't give way; "
        f"{len(results.trials) - missed} of {len(results.trials)} kinds met all goals\n"
    ) + ", ".join(f"{name} {value}" for name, value in facts.items())
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), caption=caption, caption_justify="left")
    shown.add_column("POISON", no_wrap=True)
    shown.add_column("RUNS OK", justify="right", no_wrap=True)
    for heading in ("P50 MS", "P99 MS", "RATIO", "WORST MS", "TWICE", "AGAIN", "NORMAL S"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("ENDED", no_wrap=True)
    shown.add_column("", no_wrap=True)
    shown.add_column("REASON", style="dim", overflow="ellipsis", no_wrap=True)
    for trial in results.trials:
        shown.add_row(*_row(trial, undisturbed))
    return shown


def _row(trial: Trial, undisturbed: float) -> list[Text | str]:
    missed = trial.faults(undisturbed)
    verdict = Text(f"MISSED: {', '.join(missed)}", style="red") if missed else Text("met", style="green")
    return [
        trial.kind.name,
        f"{trial.innocents - len(trial.problems)}/{trial.innocents}",
        _ms(trial.p50),
        _ms(trial.p99),
        f"{trial.p99 / undisturbed:.1f}" if undisturbed else "",
        _ms(trial.worst),
        str(trial.twice),
        str(trial.again),
        f"{trial.normal_after:.1f}",
        f"{trial.ended}, {trial.seconds:.1f} s",
        verdict,
        Text(safe(trial.reason)),
    ]


def _described(kind: Kind) -> dict[str, Any]:
    return {"kind": kind.name, "what": kind.what, "harm": str(kind.harm), "right": sorted(kind.ends)}


def _listing(kinds: Sequence[Kind]) -> str:
    width = max(len(kind.name) for kind in kinds)
    return "\n".join(f"{kind.name:<{width}}  {kind.harm:<9}  {kind.what}" for kind in kinds)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.0f}"
