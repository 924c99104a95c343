"""Attributes of a run: a few small values by name, by which runs are found.

Owns: what an attribute may be, how a run's attributes change, their encoding in the run's header, and the text that
stands for a value in a listing's key. Must not: know keys or scripts. Called by: the machines (`set_attributes`),
record, batch, kernel, client, CLI.

A value is a str, int, float or bool. Two values are equal if their JSON is: `1`, `1.0`, `True` and `"1"` are four
different values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import quote, unquote_to_bytes

import msgspec

from streamflow.errors import PayloadTooLarge, UsageError
from streamflow.model.names import check_name

Attribute = str | int | float | bool
"""Types that an attribute of a run can have."""

FORKED_FROM = "forked_from"
"""The attribute of a fork that names the run of which it is one."""
MAX_ATTRIBUTES = 32
MAX_BYTES = 2048
"""Limit for all attributes of a run, as encoded in its header: each of its commits sends that header."""
MAX_TEXT = 256
"""Characters of a str value."""

_VISIBLE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")
"""Characters that are not escaped in a header, so that a reader of the raw record sees JSON."""

_encode = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder(dict[str, Attribute]).decode


def check_attributes(values: Mapping[str, object]) -> dict[str, Attribute | None]:
    """Give `values` back if all names and values are allowed. Raises `InvalidName`, `UsageError`."""
    return {check_name("attribute", name): _checked(name, value) for name, value in values.items()}


def _checked(name: str, value: object) -> Attribute | None:
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise UsageError(f"attribute {name} has {len(value)} characters; the limit is {MAX_TEXT}")
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise UsageError(f"attribute {name} is not valid Unicode: it contains a surrogate code point")
    elif isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise UsageError(f"attribute {name} must be a finite number, got {value}")
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise UsageError(f"attribute {name} does not fit into a signed 64-bit integer: use a str")
    elif value is not None:
        raise UsageError(f"attribute {name} must be a str, int, float, bool or None, got {type(value).__name__}")
    return cast("Attribute | None", value)


def merged(old: Mapping[str, Attribute], changes: Mapping[str, Attribute | None]) -> dict[str, Attribute]:
    """A run's attributes after a change; None removes one. Raises `UsageError` or `PayloadTooLarge` for too many."""
    new = {name: value for name, value in {**old, **changes}.items() if value is not None}
    if len(new) > MAX_ATTRIBUTES:
        raise UsageError(f"a run can have at most {MAX_ATTRIBUTES} attributes, this change would make {len(new)}")
    size = len(encode_attributes(new))
    if size > MAX_BYTES:
        raise PayloadTooLarge(
            f"the attributes of the run have {size:,} bytes together; the limit is {MAX_BYTES:,}. Attributes are for "
            "finding runs: put other data into sf.publish or the result."
        )
    return new


def encode_attributes(attributes: Mapping[str, Attribute]) -> str:
    """A text without spaces; equal attributes give equal texts. Empty if there are none."""
    return quote(_encode(attributes), safe=_VISIBLE) if attributes else ""


def decode_attributes(text: str) -> dict[str, Attribute]:
    """Raises `ValueError` (`msgspec.DecodeError` derives from it)."""
    return _decode(unquote_to_bytes(text))


def value_text(value: Attribute) -> str:
    """The text that stands for a value in a key: a str itself, or the value's JSON, with URL escapes.

    A str and a number may have the same text. A listing then reads the run's header to distinguish them.
    """
    return quote(value if isinstance(value, str) else _encode(value), safe="")


def same(value: Any, other: Any) -> bool:
    """Whether two values are the same attribute: `1` differs from `1.0` and `True`, as in JSON."""
    return type(value) is type(other) and value == other
