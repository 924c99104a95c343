"""Rules of retention: how they are written, and which one counts."""

from __future__ import annotations

import pytest

from streamflow.errors import UsageError
from streamflow.model.record import Status
from streamflow.model.retention import ENDED, parse_rules
from streamflow.settings import Settings

RULES = parse_rules("order=30d, order:failed=90d *:failed=180d\n report=keep a:b:cancelled=1.5h", 60.0)


@pytest.mark.parametrize(
    ("workflow", "status", "seconds"),
    [
        ("order", Status.COMPLETED, 30 * 86_400),
        ("order", Status.FAILED, 90 * 86_400),
        ("other", Status.FAILED, 180 * 86_400),
        ("other", Status.CANCELLED, 60),
        ("report", Status.FAILED, 0),
        ("a:b", Status.CANCELLED, 5400),
        ("a:b", Status.COMPLETED, 60),
    ],
)
def test_the_most_telling_rule_counts(workflow: str, status: Status, seconds: float) -> None:
    assert RULES.seconds(workflow, status) == seconds


def test_a_rule_for_all_comes_before_the_setting() -> None:
    assert parse_rules("*=1h", 60.0).seconds("order", Status.FAILED) == 3600


def test_nothing_goes_without_any_duration() -> None:
    assert not parse_rules("report=keep", 0.0)
    assert parse_rules("report=1d", 0.0)
    assert parse_rules("", 1.0)


def test_only_ended_runs_have_one() -> None:
    assert set(ENDED) == {Status.COMPLETED, Status.FAILED, Status.CANCELLED}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("order", "'order' is not a rule"),
        ("=3d", "'=3d' is not a rule"),
        ("order=", "has no duration"),
        ("order=0", "has no duration"),
        ("order=3days", "has no duration"),
        ("order=99999w", "above 1e"),
        ("or{der=3d", "is not allowed"),
        ("order=3d order=4d", "two rules for order"),
    ],
)
def test_a_mistake_is_named(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse_rules(text)
    with pytest.raises(UsageError, match=why):
        Settings(retention_rules=text)
