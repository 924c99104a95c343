"""How fast a bulk goes, by a clock that only sleeping moves."""

from __future__ import annotations

import pytest

from streamflow.actions.pace import SLACK, Pace

pytestmark = pytest.mark.anyio


class Clock:
    def __init__(self, late: float = 0.0) -> None:
        self.now = 100.0
        self.late = late

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds + self.late

    async def turns(self, pace: Pace, count: int, work: float = 0.0) -> list[float]:
        begun: list[float] = []
        for _ in range(count):
            await pace.turn()
            begun.append(self.now - 100.0)
            self.now += work
        return begun


async def test_runs_begin_evenly() -> None:
    clock = Clock()
    begun = await clock.turns(Pace(50, clock, clock.sleep), 101)
    assert begun == pytest.approx([number / 50 for number in range(101)])


async def test_time_that_the_work_takes_is_not_added() -> None:
    clock = Clock()
    begun = await clock.turns(Pace(50, clock, clock.sleep), 101, work=0.015)
    assert begun[-1] == pytest.approx(2.0)


async def test_a_sleep_that_is_late_is_caught_up() -> None:
    clock = Clock(late=0.013)
    begun = await clock.turns(Pace(50, clock, clock.sleep), 501)
    assert begun[-1] == pytest.approx(10.0, abs=0.05)


async def test_a_long_pause_is_not_caught_up() -> None:
    clock = Clock()
    pace = Pace(50, clock, clock.sleep)
    await pace.turn()
    clock.now += 60.0  # the machine was suspended
    begun = [moment - 60.0 for moment in await clock.turns(pace, 100)]
    assert sum(moment < 0.02 for moment in begun) <= 50 * SLACK + 2
    assert begun[-1] > 1.8


async def test_no_rate_waits_for_nothing() -> None:
    clock = Clock()
    assert await clock.turns(Pace(0, clock, clock.sleep), 1000) == [0.0] * 1000
