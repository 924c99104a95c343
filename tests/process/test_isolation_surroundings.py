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


@pytest.mark.parametrize("name", MEASURED)
async def test_no_surrounding_makes_anything_wrong_and_losses_are_said(tmp_path: Path, name: str) -> None:
    plan = Plan([BY_NAME[name]], rate=20, calm=1.5, seconds=1.0, limit=60, after=3.0, patience=20, scale=0.01)
    [trial] = await bench_surroundings(plan, tmp_path, print)
    assert trial.kind.name == name
    assert trial.proof, "the fault took place"
    assert trial.runs >= 60
    assert trial.problems == []
    assert trial.unsaid == []
    assert trial.views == ""
    assert trial.ends == 0
    assert trial.early > -0.5
    assert bool(trial.lost) == (name == "flushall"), "what was lost of a suffix is there again: everybody lives"
    assert trial.right == trial.runs - trial.refused - len(trial.lost)
    assert bool(trial.refused) == (name == "memory") or name in LOSING, trial.refusal
    assert trial.again == 0 or name in LOSING, "no step ran twice"
    shown = json.loads(json.dumps(as_object([trial], plan, {})))["surroundings"][name]
    assert shown["lost"] == trial.lost
    assert ("out of memory" in shown["refusal"]) == (name == "memory")


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
