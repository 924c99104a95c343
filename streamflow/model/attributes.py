"""Attributes of a run: a few small values by name, by which runs are found.

Owns: what an attribute may be, how a run's attributes change, their word in the run's header, and the text that names
a value in a listing's key. Must not: know keys or scripts. Called by: operations (`set_attributes`), record, batch,
kernel, client, CLI.

A value is a str, int, float or bool. Two values are the same if their JSON is: `1`, `1.0`, `True` and `"1"` are four.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import quote, unquote_to_bytes

import msgspec

from streamflow.errors import PayloadTooLarge, UsageError
from streamflow.model.names import check_name

Attribute = str | int | float | bool
"""What an attribute of a run can be."""

MAX_ATTRIBUTES = 32
MAX_BYTES = 2048
"""Of a run's attributes as they are written into its header, which travels with each of its commits."""
MAX_TEXT = 256

_VISIBLE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")
"""What stands in a header as it is: a reader of the raw record sees JSON."""

_encode = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder(dict[str, Attribute]).decode


def check_attributes(values: Mapping[str, object]) -> dict[str, Attribute | None]:
    """The same, checked: names by `check_name`, values by type and size. Raises `InvalidName`, `UsageError`."""
    return {check_name("attribute", name): _checked(name, value) for name, value in values.items()}


def _checked(name: str, value: object) -> Attribute | None:
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise UsageError(f"attribute {name} has {len(value)} characters; the limit is {MAX_TEXT}")
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise UsageError(f"attribute {name} is no text: it has half a character (a surrogate)")
    elif isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise UsageError(f"attribute {name} is {value}, which can't be compared: use a finite number")
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise UsageError(f"attribute {name} has more than 64 bits: use a str")
    elif value is not None:
        raise UsageError(f"attribute {name} is a {type(value).__name__}: use str, int, float or bool, or None")
    return cast("Attribute | None", value)


def merged(old: Mapping[str, Attribute], changes: Mapping[str, Attribute | None]) -> dict[str, Attribute]:
    """A run's attributes after a change; None takes one off. Raises `UsageError` or `PayloadTooLarge` for too many."""
    new = {name: value for name, value in {**old, **changes}.items() if value is not None}
    if len(new) > MAX_ATTRIBUTES:
        raise UsageError(f"a run has at most {MAX_ATTRIBUTES} attributes, and these would be {len(new)}")
    size = len(encode_attributes(new))
    if size > MAX_BYTES:
        raise PayloadTooLarge(
            f"the attributes of the run have {size:,} bytes together; the limit is {MAX_BYTES:,}. They are what runs "
            "are found by: keep the rest in sf.publish or a result."
        )
    return new


def encode_attributes(attributes: Mapping[str, Attribute]) -> str:
    """One word without spaces; the same attributes give the same word. Empty for none."""
    return quote(_encode(attributes), safe=_VISIBLE) if attributes else ""


def decode_attributes(word: str) -> dict[str, Attribute]:
    """Raises `ValueError` (`msgspec.DecodeError` is one)."""
    return _decode(unquote_to_bytes(word))


def value_text(value: Attribute) -> str:
    """How a value is named in a key: a str as it is, else its JSON; all but letters, digits and `_ . - ~` escaped.

    A str and a number may share a text. That costs a listing a look at the header, which tells them apart.
    """
    return quote(value if isinstance(value, str) else _encode(value), safe="")


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same attribute: `1` is not `1.0` or `True`, as in JSON."""
    return type(one) is type(other) and one == other
