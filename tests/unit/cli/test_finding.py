"""Which run a command takes when it is given the beginning of an id."""

from __future__ import annotations

import pytest

from streamflow.cli.finding import may_be_whole, the_only
from streamflow.errors import UsageError


@pytest.mark.parametrize(
    ("text", "run_id"),
    [
        ("order-1", "order-17"),
        ("order-7", "order-7.1~k2xq5f7ahn4sw"),
        ("order", "order-17"),
        ("job", "job2"),
        ("job1", "job12"),
        ("acme/report-2026-11", "acme/report-2026-11-28"),
        ("1", "12"),
    ],
)
def test_what_may_be_an_id_of_its_own_is_not_taken_for_a_beginning(text: str, run_id: str) -> None:
    assert may_be_whole(text, run_id)
    with pytest.raises(UsageError, match=f"there is no run {text}, and it isn't taken for the beginning of"):
        the_only(text, [run_id], acts=True)
    assert the_only(text, [run_id]) == run_id, "to look at it does no harm"


@pytest.mark.parametrize(
    ("text", "run_id"),
    [
        ("order-", "order-17"),
        ("order-7b0", "order-7b02"),
        ("3f9a11", "3f9a1199e0c04b5f8d0d"),
        ("invoice-17.3~k2x", "invoice-17.3~k2xq5f7ahn4sw"),
        ("ord", "order-17"),
        ("acme/", "acme/17"),
    ],
)
def test_the_beginning_of_a_word_stands_for_the_only_run_that_has_it(
    text: str, run_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not may_be_whole(text, run_id)
    assert the_only(text, [run_id], acts=True) == run_id
    assert capsys.readouterr().err == f"{text} is run {run_id}\n"


def test_several_runs_are_named_up_to_five() -> None:
    with pytest.raises(UsageError, match=r"^there is no run r-, and several whose ids begin so: r-0, r-1\. Give more"):
        the_only("r-", ["r-0", "r-1"])
    with pytest.raises(UsageError, match=r": r-0, r-1, r-2, r-3, r-4, and there are more\."):
        the_only("r-", [f"r-{n}" for n in range(6)])


def test_what_is_not_certain_is_not_taken() -> None:
    looked_at = "20,000 of 1,000,123 runs were looked at"
    with pytest.raises(UsageError, match=f"^there is no run r, but r-0, and perhaps others .*: {looked_at}. Give the"):
        the_only("r", ["r-0"], looked_at)
