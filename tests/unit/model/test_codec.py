"""Payloads: what goes in comes out as the declared types say, and everything else is a clear error."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import decimal
import enum
import logging
import math
import uuid
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamflow.errors import PayloadInvalid, PayloadTooLarge
from streamflow.model import codec
from streamflow.model.codec import (
    MAX_BYTES,
    MAX_DEPTH,
    WARN_BYTES,
    Parameters,
    UnfitArguments,
    check_payload,
    decode,
    depth_exceeds,
    encode,
)
from streamflow.model.payload_types import has_set


class Color(enum.Enum):
    RED = "red"


class Point(msgspec.Struct):
    x: int
    y: int = 0


@dataclasses.dataclass
class Box:
    corner: Point
    tags: list[str]


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "type_"),
    [
        (None, None),
        (2**63, int),
        (b"\0\xff", bytes),
        ("é😀", str),
        (Point(1, 2), Point),
        (Box(Point(1), ["a"]), Box),
        ({"a": [Point(1)]}, dict[str, list[Point]]),
        ((1, "a"), tuple[int, str]),
        (Color.RED, Color),
        (uuid.UUID(int=7), uuid.UUID),
        (decimal.Decimal("1.10"), decimal.Decimal),
        (datetime.datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC), datetime.datetime),
        (datetime.timedelta(seconds=1.5), datetime.timedelta),
    ],
)
def test_a_typed_value_survives(value: object, type_: Any) -> None:
    back = decode(encode(value, "value"), type_, "value")
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("value", [object(), lambda: None, 2**70, {object(): 1}])
def test_what_has_no_encoding_is_refused_by_the_name_of_the_payload(value: object) -> None:
    with pytest.raises(PayloadInvalid, match="the result of step fetch can't be encoded: "):
        encode(value, "result of step fetch")


def test_a_value_that_contains_itself_is_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(PayloadInvalid, match="nested too deep"):
        encode(circle, "value")


def test_the_search_for_sets_ends_early_only_in_what_contains_itself() -> None:
    class Circle(list[Any]):
        looks = 0

        def __iter__(self) -> Iterator[Any]:
            Circle.looks += 1
            return super().__iter__()

    circle = Circle()
    circle.append(circle)
    assert not has_set(circle)
    assert Circle.looks < 1_000_000
    assert has_set([*([[0]] * 200_000), {1, 2}])


def test_a_payload_above_the_limit_is_refused_with_size_and_limit() -> None:
    with pytest.raises(PayloadTooLarge, match=r"the input has 2,097,153 bytes; the limit is 2,097,152\."):
        check_payload(bytes(MAX_BYTES + 1), "input")
    with pytest.raises(PayloadTooLarge):
        encode(bytes(MAX_BYTES), "input")
    encode(bytes(MAX_BYTES - 5), "input")  # five bytes say that it is bytes, and how many


@pytest.mark.parametrize("value", ["x" * 9_000_000, b"x" * 9_000_000, ["x" * 9_000_000], {"a": b"x" * 9_000_000}])
def test_what_is_far_too_large_is_not_encoded(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """That takes long, and all other runs of the process would wait."""
    monkeypatch.setattr(codec, "_encoder", None)
    with pytest.raises(PayloadTooLarge, match=r"the result of f has at least 9,000,00\d bytes; the limit is 2,097,152"):
        Parameters(lambda: None, "f").encode_result(value)
    with pytest.raises(PayloadTooLarge, match=r"the input of f has at least 9,000,00\d bytes; the limit is 2,097,152"):
        Parameters(lambda given: None, "f").encode((value,), {})


def test_no_code_of_the_users_is_run_to_find_a_size() -> None:
    class Text(str):
        def __len__(self) -> int:
            raise AssertionError("this is user code")

    with pytest.raises(PayloadInvalid, match="a Text can't be a value"):
        encode([Text("x")], "input")


def test_a_large_payload_is_warned_about_once_it_passes_the_threshold(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="streamflow.codec"):
        encode(bytes(WARN_BYTES - 5), "small one")
        encode(bytes(WARN_BYTES), "large one")
    (record,) = caplog.records
    assert record.getMessage().startswith("the large one has 262,149 bytes")


def test_nesting_is_allowed_up_to_the_limit() -> None:
    assert decode(encode(nested(MAX_DEPTH), "value"), Any, "value") == nested(MAX_DEPTH)
    with pytest.raises(PayloadInvalid, match="nested more than 64 levels deep"):
        encode(nested(MAX_DEPTH + 1), "value")


@given(st.integers(0, 12), st.integers(0, 12))
def test_depth_is_that_of_the_deepest_branch(levels: int, limit: int) -> None:
    payload = msgspec.msgpack.encode([0, {"shallow": 1}, {"deep": nested(levels)}])
    assert depth_exceeds(payload, limit) == (levels + 2 > limit)


def test_nesting_beyond_the_recursion_limit_is_an_error_and_not_a_crash() -> None:
    bomb = b"\x91" * 100_000 + b"\x01"
    assert depth_exceeds(bomb, MAX_DEPTH)
    with pytest.raises(PayloadInvalid):
        decode(bomb, Any, "message")


@given(st.binary(max_size=200), st.sampled_from([Any, int, str, Point, Box, list[Point], dict[str, Any]]))
def test_garbage_is_a_payload_invalid_or_a_value_and_nothing_else(data: bytes, type_: Any) -> None:
    with contextlib.suppress(PayloadInvalid):
        decode(data, type_, "message")


@pytest.mark.parametrize("data", [b"", b"\xa2\xff\xfe", b"\xc1", b"\x92\x01"])
def test_each_kind_of_garbage_names_payload_and_type(data: bytes) -> None:
    with pytest.raises(PayloadInvalid, match="the message is not a str: "):
        decode(data, str, "message")


def test_a_type_that_has_no_decoding_is_refused_when_it_is_declared() -> None:
    with pytest.raises(PayloadInvalid, match="can't be the type of a payload"):
        Parameters(takes_two_structs, "step broken")


def takes_two_structs(value: Point | Box) -> None: ...


# Parameters


def ship(order: int, to: Point, *, express: bool = False) -> Point: ...


def ship_positionally(order: int, to: Point, express: bool = False) -> Point: ...


def ship_reordered(express: bool, to: Point, order: int, note: str = "") -> Point: ...


def test_a_call_is_the_same_however_it_is_written() -> None:
    parameters = Parameters(ship_positionally, "step ship")
    payload = parameters.encode((7, Point(1, 2)), {})
    assert msgspec.msgpack.decode(payload) == [7, {"x": 1, "y": 2}, False]
    for args, kwargs in (((7,), {"to": Point(1, 2), "express": False}), ((), {"to": Point(1, 2), "order": 7})):
        by_name = parameters.encode(args, kwargs)
        assert msgspec.msgpack.decode(by_name) == {"order": 7, "to": {"x": 1, "y": 2}, "express": False}
        assert parameters.decode(by_name) == ((7, Point(1, 2), False), {})
        assert parameters.is_same_call(payload, by_name)
        assert not parameters.is_same_call(payload, parameters.encode(args, {**kwargs, "express": True}))


def test_what_was_passed_by_keyword_arrives_under_its_name() -> None:
    before, now = Parameters(ship_positionally, "step ship"), Parameters(ship_reordered, "step ship")
    by_position = before.encode((7, Point(1, 2)), {})
    by_name = before.encode((), {"to": Point(1, 2), "order": 7})
    assert now.decode(by_name) == ((False, Point(1, 2), 7, ""), {})
    assert (now.takes(by_name, before.signature), now.takes(by_position, before.signature)) == (True, False)
    assert before.takes(by_position, "")
    assert before.takes(by_position, before.signature)
    longer = Parameters(lambda order, to, express, note="": None, "step ship")
    assert longer.takes(by_position, before.signature), "a parameter was added at the end"


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (lambda order, to: None, "unknown field `express`"),
        (lambda order, to, express, currency: None, "missing required field `currency`"),
        (lambda order, to, *, fast=False: None, "unknown field `express`"),
    ],
)
def test_arguments_by_name_that_do_not_fit_are_refused(function: Any, complaint: str) -> None:
    payload = Parameters(ship_positionally, "step ship").encode((7,), {"to": Point(1, 2)})
    with pytest.raises(UnfitArguments, match=complaint):
        Parameters(function, "step ship").decode(payload)


def test_keyword_only_parameters_stay_keywords() -> None:
    parameters = Parameters(ship, "step ship")
    payload = parameters.encode((7, Point(1, 2)), {"express": True})
    assert parameters.decode(payload) == ((7, Point(1, 2)), {"express": True})


def test_a_wrong_call_fails_like_the_function_itself() -> None:
    parameters = Parameters(ship, "step ship")
    with pytest.raises(TypeError, match="missing a required argument: 'to'"):
        parameters.encode((7,), {})
    with pytest.raises(TypeError, match="unexpected keyword argument 'fast'"):
        parameters.encode((7, Point(1)), {"fast": True})


def test_a_payload_from_before_a_defaulted_parameter_was_added_still_fits() -> None:
    def before(order: int, to: Point) -> Point: ...

    old = Parameters(before, "step ship").encode((7, Point(1, 2)), {})
    assert Parameters(ship_positionally, "step ship").decode(old) == ((7, Point(1, 2), False), {})
    assert Parameters(ship, "step ship").decode(old) == ((7, Point(1, 2)), {"express": False})


@pytest.mark.parametrize("given", [[], [7], ["seven", {"x": 1}], [7, {"x": 1}, False, 9], {"order": 7}, 7])
def test_a_payload_that_does_not_fit_is_refused_with_the_parameters(given: object) -> None:
    with pytest.raises(PayloadInvalid, match=r"the input of step ship"):
        Parameters(ship, "step ship").decode(msgspec.msgpack.encode(given))


def test_a_function_without_parameters_takes_an_empty_payload() -> None:
    def nothing() -> None: ...

    parameters = Parameters(nothing, "step nothing")
    assert parameters.decode(parameters.encode((), {})) == ((), {})


def test_results_are_decoded_by_the_return_annotation() -> None:
    parameters = Parameters(ship, "step ship")
    assert parameters.decode_result(encode(Point(3), "result")) == Point(3)
    with pytest.raises(PayloadInvalid, match="the result of step ship is not a Point: "):
        parameters.decode_result(encode("far away", "result"))


class Level(enum.Enum):
    LOW = "low"


@pytest.mark.parametrize(
    ("value", "type_", "fits"),
    [
        ("x", int, False), (1, str, False), (None, int, False), (True, int, False), (1, bool, False), (5, None, False),
        ("x" * 100, int, False), (b"x", str, False), (1.5, int, False), (-1, Annotated[int, msgspec.Meta(ge=0)], False),
        ("high", Level, False), ("b", Literal["a"], False), (["x"], list[int], False), (["x", 1], list[str], False),
        ({"a": "b"}, dict[str, int], False), (Point(1), int, False), ("x", Point, False), (1, str | None, False),
        (1, int, True), (3, float, True), (None, None, True), (None, int | None, True), ("x", str | None, True),
        ("x", Any, True), (1, int | str, True), ("low", Level, True), ("a", Literal["a"], True), ([1], list[int], True),
        (1, Annotated[int, msgspec.Meta(ge=0)], True), (1, float | None, True), ([math.nan], list[float], True),
    ],
)  # fmt: skip
def test_a_result_that_does_not_fit_is_refused_where_it_is_returned(value: Any, type_: Any, fits: bool) -> None:
    def give() -> Any: ...

    give.__annotations__["return"] = type_
    parameters = Parameters(give, "step give")
    if fits:
        parameters.decode_result(parameters.encode_result(value))
        return
    with pytest.raises(PayloadInvalid, match=r"^the result of step give (is not a|would not arrive as it is)"):
        parameters.encode_result(value)


def test_variadic_parameters_are_refused_for_they_have_no_names_to_record() -> None:
    def many(*urls: str) -> None: ...

    with pytest.raises(PayloadInvalid, match=r"step many declares \*urls: .*: name every parameter"):
        Parameters(many, "step many")


def test_an_annotation_that_can_not_be_resolved_is_refused_with_what_to_do() -> None:
    def lost(value: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(PayloadInvalid, match=r"'Missing' is not defined\. Import the types at the top"):
        Parameters(lost, "step lost")
