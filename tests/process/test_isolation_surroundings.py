"""`streamflow bench isolation --surroundings` with short times: it checks what is right, not how fast."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.faults import ShiftedClock
from bench.isolation_command import isolation
from bench.surrounding_kinds import BY_NAME, KINDS
from bench.surroundings import Plan, bench_surroundings
from bench.surroundings_command import as_object

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

MEASURED = (
    *(["clock-back"] if ShiftedClock.is_possible() else []),
    "memory",
    "flushall",
    "lost-suffix",
    "children",
)
LOSING = ("flushall", "lost-suffix")


async def test_no_surrounding_makes_anything_wrong_and_losses_are_said(tmp_path: Path) -> None:
    chosen = [BY_NAME[name] for name in MEASURED]
    plan = Plan(chosen, rate=20, calm=1.5, seconds=1.0, limit=60, after=3.0, patience=20, scale=0.01)
    trials = await bench_surroundings(plan, tmp_path, print)
    assert [trial.kind.name for trial in trials] == list(MEASURED)
    for trial in trials:
        name = trial.kind.name
        assert trial.proof, f"{name}: the fault took place"
        assert trial.runs >= 60, name
        assert trial.problems == [], name
        assert trial.unsaid == [], name
        assert trial.views == "", name
        assert trial.ends == 0, name
        assert trial.early > -0.5, name
        assert bool(trial.lost) == (name in LOSING), name
        assert trial.right == trial.runs - trial.refused - len(trial.lost), name
        assert bool(trial.refused) == (name == "memory") or name in LOSING, f"{name}: {trial.refusal}"
    shown = json.loads(json.dumps(as_object(trials, plan, {})))["surroundings"]
    assert "out of memory" in shown["memory"]["refusal"]
    assert shown["lost-suffix"]["lost"] == trials[MEASURED.index("lost-suffix")].lost
    assert all(trial.again == 0 for trial in trials if trial.kind.name not in LOSING), "no step ran twice"


def test_each_surrounding_is_listed() -> None:
    listed = json.loads(CliRunner().invoke(isolation, ["--surroundings", "--list", "--json"]).stdout)
    assert [kind["kind"] for kind in listed] == [kind.name for kind in KINDS]
    assert len(BY_NAME) == len(KINDS) >= 11


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--only lost-suffix", "add --surroundings"),
        ("--surroundings --only forks", "omit --surroundings"),
        ("--surroundings --redis redis://127.0.0.1:1", "omit --redis"),
    ],
)
def test_what_does_not_fit_together_is_refused(options: str, says: str) -> None:
    done = CliRunner().invoke(isolation, options.split())
    assert done.exit_code == 2
    assert says in done.output
