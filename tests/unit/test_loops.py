"""Loops that survive the server's errors."""

from __future__ import annotations

import logging

import anyio
import pytest

from streamflow import loops
from streamflow.errors import StoreError
from streamflow.loops import retry_forever

pytestmark = pytest.mark.anyio

log = logging.getLogger("streamflow.test")


class Once:
    """A body that answers from a list: an exception is raised; the loop ends with the list."""

    def __init__(self, *answers: Exception | None) -> None:
        self.answers = list(answers)
        self.failures = 0

    def over(self) -> bool:
        return not self.answers

    def failed(self) -> None:
        self.failures += 1

    async def __call__(self) -> None:
        answer = self.answers.pop(0)
        if answer is not None:
            raise answer


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the loop slept, none of which pass."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await anyio.lowlevel.checkpoint()

    monkeypatch.setattr(loops.anyio, "sleep", sleep)
    return slept


async def test_consecutive_errors_are_logged_once_and_so_is_the_recovery(
    sleeps: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", log.name)
    once = Once(StoreError("away"), StoreError("away"), None, StoreError("full"), None)
    await retry_forever(once, log, "could not look", on_failure=once.failed, until=once.over)
    assert caplog.messages == [
        "could not look, will retry: away",
        "recovered from: could not look",
        "could not look, will retry: full",
        "recovered from: could not look",
    ]
    assert once.failures == 3


async def test_pauses_grow_with_consecutive_failures_and_have_a_limit(sleeps: list[float]) -> None:
    once = Once(*[StoreError("away")] * 7, None, StoreError("away"))
    await retry_forever(once, log, "could not look", until=once.over)
    assert sleeps == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 0.1]


@pytest.mark.parametrize(("at_once", "slept"), [(False, [5, 5, 5]), (True, [5, 5])])
async def test_an_interval_is_kept_whatever_happens(sleeps: list[float], at_once: bool, slept: list[float]) -> None:
    once = Once(None, StoreError("away"))
    await retry_forever(once, log, "could not look", every=5, at_once=at_once, until=once.over)
    assert sleeps == slept


async def test_a_defect_ends_the_loop(sleeps: list[float]) -> None:
    with pytest.raises(ZeroDivisionError):
        await retry_forever(Once(ZeroDivisionError(), None), log, "could not look")
