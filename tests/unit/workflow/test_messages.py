"""Definitions of signals, questions and published values, and what a workflow declares of them."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import pytest

import streamflow as sf
from streamflow.workflow.messages import UNDECLARED, Declared

approve = sf.SignalDefinition("approve", bool)
reserve = sf.QuestionDefinition("reserve", int, bool)


class Short(msgspec.Struct):
    a: int


class Longer(Short):
    b: int


def test_a_definition_is_checked_where_it_is_made() -> None:
    with pytest.raises(sf.InvalidName):
        sf.SignalDefinition("no spaces", bool)
    with pytest.raises(sf.PayloadInvalid, match="can't be the type of a payload"):
        sf.SignalDefinition("lock", threading.Lock)
    with pytest.raises(sf.PayloadInvalid, match="can't be the type of a payload"):
        sf.QuestionDefinition("lock", int, threading.Lock)


def test_a_definition_says_what_it_is() -> None:
    assert repr(approve) == "<signal approve: bool>"
    assert repr(sf.PublishedDefinition("sum", int | None)) == "<key sum: int | None>"


@pytest.mark.parametrize(
    ("declares", "message"),
    [
        ({"signals": ["approve"]}, "signals= is a list of sf.SignalDefinition, got 'approve'"),
        ({"questions": [approve]}, "questions= is a list of sf.QuestionDefinition"),
        ({"published": [approve]}, "published= is a list of sf.PublishedDefinition"),
        ({"signals": [approve, sf.SignalDefinition("approve", int)]}, "workflow w declares signal approve twice"),
    ],
)
def test_wrong_declarations_are_refused_when_they_are_made(declares: dict[str, Any], message: str) -> None:
    with pytest.raises(sf.UsageError) as refused:
        Declared("workflow w", **declares)
    assert message in str(refused.value)


def test_any_name_is_accepted_of_a_kind_that_is_not_declared() -> None:
    for declared in (UNDECLARED, Declared("workflow w", questions=[reserve])):
        assert declared.find("signal", "anything") == ("anything", None)
        assert declared.find("signal", approve) == ("approve", approve)
        with pytest.raises(sf.InvalidName):
            declared.find("signal", "no spaces")


def test_no_name_is_accepted_of_an_empty_declaration() -> None:
    with pytest.raises(sf.UsageError, match=r"workflow w takes no signal 'approve'\. It declares no signals"):
        Declared("workflow w", signals=[]).find("signal", approve)


def test_another_definition_of_the_name_must_be_like_it() -> None:
    declared = Declared("workflow w", signals=[approve], questions=[reserve])
    assert declared.find("signal", sf.SignalDefinition("approve", bool)) == ("approve", approve)
    with pytest.raises(sf.UsageError, match="declares <signal approve: bool>, and <signal approve: int> is given"):
        declared.find("signal", sf.SignalDefinition("approve", int))
    with pytest.raises(sf.UsageError, match="declares <question reserve"):
        declared.find("question", sf.QuestionDefinition("reserve", int, str))


def test_a_value_that_would_lose_something_is_refused() -> None:
    assert UNDECLARED.payload("signal", sf.SignalDefinition("name", str), "kim") == ("name", b"\xa3kim")
    with pytest.raises(sf.PayloadInvalid, match="the value of signal names is not a"):
        UNDECLARED.payload("signal", sf.SignalDefinition("names", list[int]), [1, True, "x"])
    with pytest.raises(sf.PayloadInvalid, match="would not arrive as it is: it is a Longer"):
        UNDECLARED.payload("signal", sf.SignalDefinition("short", Short), Longer(1, 2))
