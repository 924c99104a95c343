"""When a failed step is tried again."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamflow.errors import UsageError
from streamflow.workflow.retry import NO_RETRY, Retry


def test_the_delay_grows_by_the_factor_up_to_the_maximum() -> None:
    retry = Retry(initial=1.0, factor=2.0, maximum=10.0, jitter=0.0)
    assert [retry.delay(attempt, random.Random(1)) for attempt in range(1, 7)] == [1, 2, 4, 8, 10, 10]


def test_a_factor_of_one_waits_the_same_time_each_time() -> None:
    retry = Retry(initial=3.0, factor=1.0, jitter=0.0)
    assert {retry.delay(attempt, random.Random(1)) for attempt in range(1, 50)} == {3.0}


@given(st.integers(1, 10**9), st.floats(0, 1), st.floats(0, 1e4), st.floats(1, 2), st.floats(0, 1e4), st.randoms())
def test_jitter_stays_within_its_share_whatever_the_attempt(
    attempt: int, jitter: float, initial: float, factor: float, maximum: float, rng: random.Random
) -> None:
    exact = Retry(initial=initial, factor=factor, maximum=maximum, jitter=0.0).delay(attempt, rng)
    delay = Retry(initial=initial, factor=factor, maximum=maximum, jitter=jitter).delay(attempt, rng)
    assert 0 <= exact <= maximum
    assert exact * (1 - jitter) * 0.999999 <= delay <= exact * (1 + jitter) * 1.000001


def test_a_steep_factor_ends_at_the_maximum_too() -> None:
    retry = Retry(attempts=1000, initial=1.0, factor=10.0, maximum=60.0, jitter=0.0)
    assert retry.delay(999, random.Random(1)) == 60.0


def test_jitter_spreads_the_delays() -> None:
    rng = random.Random(1)
    delays = [Retry(initial=1.0, jitter=0.5).delay(1, rng) for _ in range(200)]
    assert min(delays) < 0.6
    assert max(delays) > 1.4


def test_never_holds_classes_with_their_subclasses_and_names_of_either() -> None:
    class Refused(ValueError): ...

    assert Retry(never=(ValueError,)).gives_up_on(Refused())
    assert Retry(never=("ValueError",)).gives_up_on(Refused())
    assert Retry(never=("Refused",)).gives_up_on(Refused())
    assert not Retry(never=(ValueError, "Refused")).gives_up_on(KeyError())
    assert not Retry().gives_up_on(Refused())


def test_no_retry_is_one_attempt() -> None:
    assert NO_RETRY.attempts == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempts": 0},
        {"initial": -1.0},
        {"factor": 0.5},
        {"maximum": -1.0},
        {"jitter": -0.1},
        {"jitter": 1.1},
    ],
)
def test_invalid_policies_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="attempts and factor must be >= 1"):
        Retry(**wrong)  # type: ignore[arg-type]
