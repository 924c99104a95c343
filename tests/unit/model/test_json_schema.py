"""JSON Schema of declared types: it refuses what no daemon could decode, and nothing else."""

from __future__ import annotations

import datetime
import decimal
import enum
import pathlib
import uuid
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamflow.errors import PayloadInvalid
from streamflow.model import codec
from streamflow.model.json_schema import MAX_BYTES, checker, schema_of


class Colour(enum.Enum):
    RED = "red"


class Point(NamedTuple):
    x: int
    y: float


class Options(TypedDict, total=False):
    deep: bool


class Cat(msgspec.Struct, tag=True):
    name: str


class Dog(msgspec.Struct, tag=True):
    name: str


@dataclass
class Tree:
    size: int
    children: list[Tree]


class Model(pydantic.BaseModel):
    size: int


Percent = Annotated[int, msgspec.Meta(ge=0, le=100)]

TYPES: list[Any] = [
    None,
    bool,
    int,
    float,
    str,
    int | None,
    list[int],
    set[str],
    tuple[int, str],
    tuple[int, ...],
    dict[str, list[bool]],
    Literal["a", 1],
    Percent,
    Colour,
    Point,
    Options,
    Cat | Dog,
    Tree,
    Model,
    pathlib.Path,
    decimal.Decimal,
    datetime.datetime,
    datetime.timedelta,
    uuid.UUID,
    Any,
    object,
]

words = ["a", "red", "x", "Cat", "1", "2026-01-01", "2026-01-01T00:00:00", "2026-01-01T00:00:00Z", "P1D", "a" * 32]
scalars = st.none() | st.booleans() | st.integers(-3, 200) | st.floats(-2, 2) | st.sampled_from(words)
keys = st.sampled_from(["name", "type", "size", "children", "deep", "x"])
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3))


@pytest.mark.parametrize("type_", TYPES, ids=str)
def test_whatever_a_daemon_decodes_fits(type_: Any) -> None:
    check = checker(schema_of(type_))

    @given(values)
    def fits(value: Any) -> None:
        try:
            codec.decode(codec.encode(value, "it"), type_, "it")
        except PayloadInvalid:
            return
        assert check(value, "it") == ""

    fits()


@pytest.mark.parametrize(
    ("type_", "value", "reason"),
    [
        (int, "3", "it must be integer"),
        (int | None, "3", "it cannot be validated by any definition"),
        (list[int], [1, "x"], "it[1] must be integer"),
        (tuple[int, str], [1], "it must contain at least 2 items"),
        (tuple[int, str], [1, "x", 3], "it must contain less than or equal to 2 items"),
        (Tree, {"size": 1, "children": [{"size": "x", "children": []}]}, "it.children[0].size must be integer"),
        (Tree, {"size": 1}, "it must contain ['children'] properties"),
        (Percent, 101, "it must be smaller than or equal to 100"),
        (Colour, "blue", "it must be one of ['red']"),
        (Cat | Dog, {"type": "Cow", "name": "x"}, "it cannot be validated by any definition"),
    ],
    ids=str,
)
def test_it_is_said_what_does_not_fit(type_: Any, value: Any, reason: str) -> None:
    assert checker(schema_of(type_))(value, "it") == reason


def test_a_number_fits_a_decimal_as_a_daemon_has_it() -> None:
    check = checker(schema_of(decimal.Decimal))
    assert [check(value, "it") for value in (1, 2.5, "2.50")] == ["", "", ""]
    assert check(True, "it")


@pytest.mark.parametrize("type_", [Model, pathlib.Path, Any], ids=str)
def test_a_type_that_says_nothing_accepts_everything(type_: Any) -> None:
    assert schema_of(type_) == {}
    assert checker({})({"any": "thing"}, "it") == ""


def test_a_schema_that_is_too_large_is_left_out() -> None:
    fields: list[Any] = [(f"field_{n}", int) for n in range(MAX_BYTES // 20)]
    assert schema_of(msgspec.defstruct("Wide", fields)) == {}


@pytest.mark.parametrize("schema", [{"type": "nonsense"}, {"$ref": "#/nowhere"}, {"type": 7}], ids=str)
def test_a_schema_that_is_none_refuses_nothing(schema: dict[str, Any]) -> None:
    assert checker(schema)(3, "it") == ""
