"""When a failed step is tried again."""

from __future__ import annotations

import copy
import pickle
import random
import re
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamflow.errors import UsageError
from streamflow.model.failures import kinds_of
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


def test_what_the_error_asks_for_counts_instead_and_nothing_begins_earlier() -> None:
    rng = random.Random(1)
    assert Retry(initial=60, jitter=0).delay(9, rng, 2.5) == 2.5
    delays = [Retry(initial=60, jitter=0.5).delay(1, rng, 10.0) for _ in range(200)]
    assert 10.0 <= min(delays) < 11
    assert 14 < max(delays) <= 15


def test_never_holds_classes_with_their_subclasses_and_names_of_either() -> None:
    class Refused(ValueError): ...

    refused = kinds_of(Refused())
    assert refused == ("Refused", "ValueError", "Exception", "BaseException")
    assert Retry(never=(ValueError,)).gives_up_on(refused)
    assert Retry(never=("ValueError",)).gives_up_on(refused)
    assert Retry(never=("Refused",)).gives_up_on(refused)
    assert not Retry(never=(ValueError, "Refused")).gives_up_on(kinds_of(KeyError()))
    assert not Retry().gives_up_on(refused)


@pytest.mark.parametrize("never", [ValueError, "ValueError", [ValueError], {"ValueError"}, (n for n in ["ValueError"])])
def test_never_takes_one_class_or_name_or_any_collection_of_them(never: Any) -> None:
    retry = Retry(never=never)
    assert retry.gives_up_on(["ValueError"])
    assert retry.gives_up_on(["ValueError"])  # a generator was read once, not at every failure


def test_no_retry_is_one_attempt() -> None:
    assert NO_RETRY.attempts == 1
    assert NO_RETRY.within is None


def test_the_default_lasts_through_a_deploy_of_what_is_called() -> None:
    retry = Retry(jitter=0)
    assert (retry.attempts, retry.within) == (20, 15 * 60)
    pauses = sum(retry.delay(attempt, random.Random(1)) for attempt in range(1, 20))
    assert 10 * 60 < pauses <= 15 * 60


def test_a_policy_that_limits_one_thing_limits_only_that() -> None:
    assert (Retry(attempts=3).attempts, Retry(attempts=3).within) == (3, None)
    hours = Retry(within=timedelta(hours=6), maximum=timedelta(minutes=5), initial=timedelta(seconds=2))
    assert (hours.attempts, hours.within, hours.maximum, hours.initial) == (None, 21600.0, 300.0, 2.0)
    assert (Retry(initial=5).attempts, Retry(initial=5).within) == (20, 900.0)


def test_policies_are_values() -> None:
    retry = Retry(attempts=3, never=ValueError)
    assert retry == Retry(attempts=3, never=(ValueError,))
    assert hash(retry) == hash(copy.deepcopy(retry))
    assert pickle.loads(pickle.dumps(retry)) == retry
    assert retry != Retry(attempts=4, never=(ValueError,))
    with pytest.raises(AttributeError):
        retry.attempts = 4  # type: ignore[misc]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("name", ["attempts", "within", "initial", "factor", "maximum", "jitter", "never"])
@pytest.mark.parametrize("wrong", [-1, -0.1, NAN, INF, -INF, 10**400, "5", "", b"x", True, [1], object(), int, {1: 2}])
def test_values_that_cannot_work_are_refused_with_their_name(name: str, wrong: Any) -> None:
    with pytest.raises(UsageError, match=rf"sf\.Retry: {name} must be .*, got "):
        Retry(**{name: wrong})


@pytest.mark.parametrize(
    ("name", "wrong", "advice"),
    [
        ("attempts", 0, "integer >= 1 and <= 100000, got 0"),
        ("attempts", 2.5, "integer >= 1"),
        ("attempts", None, "leave it out and limit their time"),
        ("factor", 0.5, "a finite number >= 1, got 0.5"),
        ("factor", timedelta(seconds=2), "a finite number"),
        ("jitter", 1.1, "between 0 and 1"),
        ("initial", None, "seconds >= 0"),
        ("maximum", timedelta(seconds=-1), "seconds >= 0"),
        ("within", 1e300, "finite"),
        ("never", ValueError("x"), "write the class, ValueError"),
        ("never", ["requests.HTTPError"], "write the class's own name, 'HTTPError'"),
        ("never", None, "exception classes or names"),
        ("never", [ValueError, None], "exception classes or names"),
    ],
)
def test_a_refusal_says_what_to_write(name: str, wrong: Any, advice: str) -> None:
    with pytest.raises(UsageError, match=re.escape(advice)):
        Retry(**{name: wrong})
