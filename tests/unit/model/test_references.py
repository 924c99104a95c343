"""What of a payload goes to storage, and what stands in its place."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from streamflow.model.references import (
    LEAST,
    LENGTH,
    MARK,
    Reference,
    cut,
    join,
    marked_in,
    parse_reference,
    reference_to,
    references_in,
    week_of,
)

encode = msgspec.msgpack.encode
TEXT = "x" * LEAST
WEEK = 2900


@pytest.mark.parametrize(
    "value",
    [
        TEXT,
        [TEXT, 5],
        {"pages": TEXT, "count": 1},
        [[1, {"deep": [TEXT, "y" * LEAST]}], None],
        ["short"] * LEAST,
        {"a": 1.5, "b": [True, None, -(2**40), b"z" * LEAST]},
        {1: TEXT, "2": {3: TEXT}},
    ],
)
def test_what_was_cut_is_joined_byte_for_byte(value: Any) -> None:
    data = encode(value)
    small, parts = cut(data, LEAST, WEEK)
    assert parts
    assert len(small) < LEAST
    assert set(references_in(small)) == set(parts) == set(marked_in(small))
    assert join(small, parts) == data
    assert all(reference == reference_to(part, WEEK) for reference, part in parts.items())


def test_a_part_that_is_handed_on_is_the_same_object() -> None:
    _, of_result = cut(encode({"pages": TEXT, "count": 1}), LEAST, WEEK)
    _, of_arguments = cut(encode([TEXT, 5]), LEAST, WEEK)
    _, of_part = cut(encode(TEXT), LEAST, WEEK)
    assert of_result == of_arguments == of_part


def test_small_values_and_the_form_of_messages_stay() -> None:
    assert cut(encode("small"), LEAST, WEEK) == (encode("small"), {})
    many = encode([7, [["event", "small"]] * LEAST])
    assert cut(many, LEAST, WEEK, depth=3) == (many, {})
    small, parts = cut(encode([7, [["event", TEXT]]]), LEAST, WEEK, depth=3)
    [reference] = parts
    assert msgspec.msgpack.decode(small)[1][0][0] == "event"
    assert small.endswith(reference.encode())


def test_what_looks_like_a_reference_within_text_is_none() -> None:
    reference = reference_to(encode(TEXT), WEEK).encode()
    data = encode([b"before" + reference, MARK])
    assert references_in(data) == []
    assert join(data, {}) == data
    assert list(marked_in(data)) == [parse_reference(reference)], "the sweep takes no chance"


def test_the_sweep_finds_a_reference_behind_what_only_begins_like_one() -> None:
    reference = reference_to(encode(TEXT), WEEK)
    data = encode([MARK + b"ab"]) + reference.encode()
    assert reference in list(marked_in(data))


def test_a_reference_says_what_it_is() -> None:
    reference = Reference(b"\x01" * 32, 1_048_576, week_of(1_796_033_647_458))
    assert len(reference.encode()) == LENGTH
    assert parse_reference(reference.encode()) == reference
    assert parse_reference(encode("x" * (LENGTH - 2))) is None
    assert str(reference) == "payload 0101010101010101 of 1,048,576 bytes"
    assert week_of(1_796_033_647_458) == 2969


def test_a_payload_that_is_missing_is_an_error_and_no_gap() -> None:
    small, _ = cut(encode([TEXT]), LEAST, WEEK)
    with pytest.raises(KeyError):
        join(small, {})


def test_what_is_nested_deeply_is_cut_above_and_joined_again() -> None:
    data = b"\x91" * 300 + encode(TEXT)
    small, parts = cut(data, LEAST, WEEK, depth=1)
    [reference] = parts
    assert len(parts[reference]) > len(encode(TEXT)) + 100, "no code calls itself for each level"
    assert references_in(small) == [reference]
    assert join(small, parts) == data
    deep = b"\x91" * 500 + reference.encode()
    assert references_in(deep) == []
    assert join(deep, {}) == deep
