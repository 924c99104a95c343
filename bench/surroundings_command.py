"""What `streamflow bench isolation --surroundings` prints: its table, its JSON.

Owns: that. Must not: measure. Called by: `isolation_command.py`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

import streamflow
from streamflow.screen.sanitize import safe

from .report import Report, machine, show
from .surroundings import Plan, Surrounding, Trial, bench_surroundings


async def run_surroundings(plan: Plan, as_json: bool) -> int:
    progress = Report(Console(stderr=True, markup=False, highlight=False, soft_wrap=True)).progress
    with tempfile.TemporaryDirectory(prefix="streamflow-bench-") as folder:
        trials = await bench_surroundings(plan, Path(folder), progress)
    facts: dict[str, Any] = machine() | {"streamflow": streamflow.__version__}
    show(as_object(trials, plan, facts), table(trials, plan, facts), 150, as_json=as_json)
    return 0


def as_object(trials: Sequence[Trial], plan: Plan, facts: dict[str, Any]) -> dict[str, Any]:
    """For `--json`: seconds, runs per second."""
    return {
        "machine": facts,
        "rate": plan.rate,
        "scale": plan.scale,
        "surroundings": {trial.kind.name: _trial(trial) for trial in trials},
    }


def _trial(trial: Trial) -> dict[str, Any]:
    missed = trial.faults()
    return {
        "what": trial.kind.what,
        "proof": trial.proof,
        "lasted": round(trial.lasted, 2),
        "runs": trial.runs,
        "completed_right": trial.right,
        "problems": trial.problems[:10],
        "refused": trial.refused,
        "refusal": trial.refusal,
        "undisturbed_p99": round(trial.undisturbed, 4),
        "p50": round(trial.quantile(0.5), 4),
        "p99": round(trial.quantile(0.99), 4),
        "worst": round(trial.worst, 4),
        "timers": [round(trial.early, 4), round(trial.late, 4)],
        "lost": trial.lost,
        "unsaid": trial.unsaid,
        "set_back": trial.set_back,
        "steps_again": trial.again,
        "daemon_ends": trial.ends,
        "views_wrong": trial.views,
        "normal_after": trial.normal_after,
        "missed": missed,
        "met": not missed,
    }


def table(trials: Sequence[Trial], plan: Plan, facts: dict[str, Any]) -> Table:
    missed = sum(bool(trial.faults()) for trial in trials)
    caption = (
        f"{plan.rate:g} innocent runs/s, scale {plan.scale:g}; {len(trials) - missed} of {len(trials)} kinds met all "
        "goals\n"
    ) + ", ".join(f"{name} {value}" for name, value in facts.items())
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), caption=caption, caption_justify="left")
    shown.add_column("SURROUNDING", no_wrap=True)
    for heading in ("LASTED S", "RUNS OK", "REFUSED", "CALM P99", "P50 MS", "P99 MS", "WORST MS", "TIMERS MS"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for heading in ("LOST", "UNSAID", "SET BACK", "AGAIN", "NORMAL S"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("", no_wrap=True)
    shown.add_column("PROOF", style="dim", overflow="ellipsis", no_wrap=True)
    for trial in trials:
        shown.add_row(*_row(trial))
    return shown


def _row(trial: Trial) -> list[Text | str]:
    missed = trial.faults()
    return [
        trial.kind.name,
        f"{trial.lasted:.1f}",
        f"{trial.right}/{trial.runs}",
        str(trial.refused),
        _ms(trial.undisturbed),
        _ms(trial.quantile(0.5)),
        _ms(trial.quantile(0.99)),
        _ms(trial.worst),
        f"{_ms(trial.early)} to {_ms(trial.late)}",
        str(len(trial.lost)),
        str(len(trial.unsaid)),
        str(trial.set_back),
        str(trial.again),
        f"{trial.normal_after:.0f}",
        Text(f"MISSED: {', '.join(missed)}", style="red") if missed else Text("met", style="green"),
        Text(safe(trial.proof)),
    ]


def listing(kinds: Sequence[Surrounding], as_json: bool) -> str:
    if as_json:
        return json.dumps([{"kind": kind.name, "what": kind.what, "loses": kind.loses} for kind in kinds])
    width = max(len(kind.name) for kind in kinds)
    return "\n".join(f"{kind.name:<{width}}  {kind.what}" for kind in kinds)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.0f}"
