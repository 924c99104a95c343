"""Steps that go on at a former owner survive faults at each moment of a hand-over: right results, nothing left behind,
no execution that isn't owed to a fault, and none at the same time as another. `make chaos` plays more of them."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from tests.process import lending
from tests.process.gates import Phase
from tests.process.lending import Execution, Fault, Scenario, attack, scenarios
from tests.process.lending_flows import Line

pytestmark = pytest.mark.anyio

ROUNDS = int(os.environ.get("STREAMFLOW_CHAOS", "0"))
"""Of the long form."""
STORMS = 5
"""Every so many rounds of it is a storm."""
WORST = [
    Scenario("join", "report_step", Phase.AFTER, "kill", "lender"),
    Scenario("leave", "release_shard", Phase.AFTER, "kill", "owner"),
    Scenario("join", "extend_steps", Phase.BEFORE, "unreachable", "server"),
    Scenario("join", "report_step", Phase.BEFORE, "forget", "server"),
]


@pytest.mark.timeout(240)
async def test_lent_steps_survive_faults_at_the_worst_moments(namespace: str, tmp_path: Path) -> None:
    async with attack(namespace, tmp_path) as attacked:
        for scenario in WORST:
            print(scenario)
            await attacked.play(scenario)
        assert attacked.lent >= len(WORST) - 1, "steps were lent"


@pytest.mark.skipif(not ROUNDS, reason="takes 8 seconds a round: `make chaos`")
@pytest.mark.timeout(60 * (ROUNDS + 1))
async def test_lent_steps_survive_faults_at_random_moments(namespace: str, tmp_path: Path) -> None:
    seed = int(os.environ.get("STREAMFLOW_CHAOS_SEED") or time.time())
    rng = random.Random(seed)
    print(f"seed {seed}")
    every = scenarios()
    async with attack(namespace, tmp_path) as attacked:
        for number in range(1, ROUNDS + 1):
            scenario = None if number % STORMS == 0 else rng.choice(every)
            print(f"round {number}: {scenario or 'storm'}", flush=True)
            await (attacked.storm(rng) if scenario is None else attacked.play(scenario))
        assert attacked.lent >= ROUNDS // 2, "steps were lent"


# --- the judgement ----------------------------------------------------------------------------------------------------


def execution(daemon: int, began: float, last: float, end: str = "end", attempt: int = 1) -> Execution:
    lines = [
        Line(what, "r", "slow", attempt, daemon, daemon, 0, 1, at)
        for what, at in (("begin", began), ("tick", last), *([(end, last)] if end else ()))
    ]
    return Execution("r", 1, "slow", attempt, daemon, lines)


KILLED = [Fault("kill", 7, 11.0, 11.0)]
PAUSED = [Fault("stop", 7, 11.0, 13.0)]


@pytest.mark.parametrize(
    ("found", "faults", "recorded", "wrong"),
    [
        ([execution(7, 10.0, 13.0)], [], (13.0, 1), ""),
        ([execution(7, 10.0, 11.0, ""), execution(8, 12.0, 15.0, attempt=2)], KILLED, (15.0, 2), ""),
        ([execution(7, 10.0, 11.0, "failed"), execution(7, 12.0, 15.0, attempt=2)], [], (15.0, 2), ""),
        ([execution(7, 10.0, 14.0), execution(8, 13.0, 16.0, attempt=2)], PAUSED, (16.0, 2), ""),
        ([execution(6, 10.0, 10.9, "failed"), execution(8, 12.0, 15.0, attempt=3)], KILLED, (15.0, 3), ""),
        ([execution(8, 12.0, 12.5, attempt=2), execution(7, 13.0, 13.1, "stopped")], PAUSED, (12.5, 2), ""),
        ([execution(8, 12.0, 12.5, attempt=2), execution(9, 13.0, 13.1)], KILLED, (13.1, 1), "after a newer one"),
        ([execution(7, 10.0, 11.0, ""), execution(8, 12.0, 15.0)], [], (15.0, 1), "for no reason"),
        ([execution(9, 10.0, 11.0, ""), execution(8, 12.0, 15.0)], KILLED, (15.0, 1), "for no reason"),
        ([execution(7, 10.0, 13.0), execution(8, 12.0, 15.0)], KILLED, (15.0, 1), "at the same time"),
        ([execution(7, 10.0, 11.0), execution(8, 12.0, 15.0)], KILLED, (11.1, 1), "after its outcome was recorded"),
        ([execution(7, 10.0, 11.0)], [], (11.1, 2), "was not executed"),
    ],
)
def test_the_judgement_finds_what_may_not_be(
    found: list[Execution], faults: list[Fault], recorded: tuple[float, int], wrong: str
) -> None:
    said = list(lending.judge_call(found, faults, recorded))
    assert any(wrong in text for text in said) if wrong else said == []
