"""Figures, their targets, and how they are printed.

Owns: `Figure`, the table, the JSON. Must not: measure. Called by: workloads (add), the command (prints).
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, field
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text


@dataclass
class Figure:
    """One measured number. `at_least` or `at_most` is its target; without either it explains the others."""

    name: str
    value: float
    unit: str
    detail: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool | None:
        if self.at_least is not None:
            return self.value >= self.at_least
        return None if self.at_most is None else self.value <= self.at_most

    @property
    def target(self) -> str:
        if self.at_least is not None:
            return f"≥ {_short(self.at_least)}"
        return "" if self.at_most is None else f"≤ {_short(self.at_most)}"


@dataclass
class Report:
    """The figures measured so far. `console` None: progress is not printed."""

    console: Console | None
    figures: list[Figure] = field(default_factory=list[Figure])
    _remembered: dict[str, float] = field(default_factory=dict[str, float])

    def add(self, figure: Figure) -> None:
        self.figures.append(figure)
        self.progress(f"{figure.name} = {_short(figure.value)} {figure.unit}")

    def remember(self, name: str, value: float) -> None:
        """Keep a figure that is the target of a later workload."""
        self._remembered[name] = value

    def recalled(self, name: str) -> float | None:
        return self._remembered.get(name)

    def progress(self, line: str) -> None:
        if self.console is not None:
            self.console.print(Text(line, style="dim"))

    def as_json(self, facts: dict[str, Any]) -> dict[str, Any]:
        return {
            "machine": machine() | facts,
            "figures": {
                figure.name: {
                    "value": round(figure.value, 4),
                    "unit": figure.unit,
                    "detail": figure.detail,
                    "target": figure.target,
                    "met": figure.met,
                }
                for figure in self.figures
            },
        }

    def table(self, facts: dict[str, Any]) -> Table:
        caption = ", ".join(f"{name} {value}" for name, value in (machine() | facts).items())
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), caption=caption, caption_justify="left")
        table.add_column("FIGURE", no_wrap=True)
        table.add_column("VALUE", justify="right", no_wrap=True)
        table.add_column("UNIT", no_wrap=True)
        table.add_column("TARGET", justify="right", no_wrap=True)
        table.add_column("")
        table.add_column("", style="dim", overflow="ellipsis")
        for figure in self.figures:
            met = figure.met
            verdict = Text("") if met is None else Text("met", style="green") if met else Text("MISSED", style="red")
            table.add_row(figure.name, _short(figure.value), figure.unit, figure.target, verdict, Text(figure.detail))
        return table


def show(figures: dict[str, Any], table: Table, width: int, *, as_json: bool) -> None:
    """Print a result on stdout: as one JSON object, or as a table at least `width` wide."""
    if as_json:
        click.echo(json.dumps(figures))
        return
    console = Console(markup=False, highlight=False)
    console.width = max(console.width, width)
    console.print(table)


def machine() -> dict[str, Any]:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return {
        "cpus": cpus,
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load": round(load, 2),
    }


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
