"""What an attribute may be, how a run's attributes change, and the text that names a value."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamflow.errors import InvalidName, PayloadTooLarge, UsageError
from streamflow.model.attributes import check_attributes, decode_attributes, encode_attributes, merged, same, value_text
from tests.unit.model.test_record import values


@pytest.mark.parametrize("value", ["", "x" * 256, "a {b} ü", 0, -(2**63), 2**63 - 1, 1.5, True, None])
def test_texts_numbers_booleans_and_none_are_attributes(value: Any) -> None:
    assert check_attributes({"name": value}) == {"name": value}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("x" * 257, "has 257 characters"),
        ("\ud800", "surrogate"),
        (2**63, "64-bit integer"),
        (float("nan"), "got nan"),
        (float("-inf"), "got -inf"),
        ([1], "got list"),
        (b"x", "got bytes"),
    ],
)
def test_anything_else_is_refused_by_name(value: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=f"attribute name .*{reason}"):
        check_attributes({"name": value})


def test_attribute_names_follow_the_rules_of_names() -> None:
    with pytest.raises(InvalidName):
        check_attributes({"a b": 1})


def test_a_change_leaves_the_others_and_none_removes_one() -> None:
    assert merged({"a": 1, "b": 2}, {"b": 3, "c": "x", "a": None, "z": None}) == {"b": 3, "c": "x"}


def test_a_run_has_at_most_32_attributes_and_2_kb() -> None:
    full = {f"a{number}": number for number in range(32)}
    assert merged({}, full) == full
    assert merged(full, {"a0": None, "b": 1})["b"] == 1
    with pytest.raises(UsageError, match="would make 33"):
        merged(full, {"b": 1})
    text = {f"t{number}": "x" * 250 for number in range(7)}
    assert merged({}, text) == text
    with pytest.raises(PayloadTooLarge, match="limit is 2,048"):
        merged(text, {"t7": "x" * 250})


@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), values, max_size=5))
def test_the_word_in_the_header_has_no_spaces_and_comes_back(attributes: dict[str, Any]) -> None:
    word = encode_attributes(attributes)
    assert re.fullmatch(r"[!-~]*", word)
    if attributes:
        assert decode_attributes(word) == attributes
        assert all(same(decode_attributes(word)[name], value) for name, value in attributes.items())


@given(values, values)
def test_values_that_share_a_text_are_the_same_or_of_two_types(one: Any, other: Any) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_.~%-]*", value_text(one))
    if value_text(one) == value_text(other):
        assert same(one, other) or type(one) is not type(other) or one == other == 0


def test_numbers_texts_and_booleans_are_different_values() -> None:
    different: list[Any] = [1, 1.0, "1", True]
    assert [[same(one, other) for one in different] for other in different] == [
        [at == other for at in range(4)] for other in range(4)
    ]
