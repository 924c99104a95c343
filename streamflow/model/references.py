"""References to large payloads that are in storage: what stands in the place of one, wherever it is stored or sent.

Owns: the bytes of a reference, what of a payload goes to storage, and joining both again. Must not: read or write any.
Called by: the owner's batches and its supplier of payloads, worker and client, the sweep of payloads.

A reference is a value of MessagePack, an extension of type 83 with a version, the week in which the payload was written
to storage, and the size and SHA-256 of the encoded value that it stands for. So it may be anywhere where a value may
be, and joining needs no knowledge of the types: the reference's bytes are replaced by those of the value.

What goes to storage is the *innermost* part that is large: of arguments the large one, of a document its large field.
So a part that is handed on, alone or within another value, has the same bytes there, and is stored once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from streamflow.model.codec import DECODE_ERRORS

MARK = b"\xc7\x29\x53\x01"
"""How a reference begins: extension of 41 bytes, type 83, version 1..."""
MARK_BYTE = MARK[0]
"""...of which most payloads don't have the first byte. To look for it takes a tenth of the time of `MARK in data`."""
LENGTH = 44
"""...and its length with that: 3 bytes of week, 5 of size and 32 of digest follow."""
WEEK_MS = 7 * 24 * 3600 * 1000
LEAST = 4096
"""The smallest threshold: what is smaller is in one piece with its run."""

_MARKED = re.compile(b"(?=" + re.escape(MARK) + b"(.{3})(.{5})(.{32}))", re.DOTALL)
"""They may overlap: a real one may be within what only looks like the rest of one."""
_arrays = msgspec.msgpack.Decoder(list[Raw])
_maps = msgspec.msgpack.Decoder(dict[Any, Raw])
_encode = msgspec.msgpack.Encoder().encode
_EXTENSION_32 = 0xC9
CUT_LEVELS, LEVELS = 100, 200
"""Levels of containers that are cut, and those that are searched: what is deeper has no references, since a message or
transition that a value is put into has few levels. Code may nest values deeper than this code may call itself."""
_HEAD = 6
"""Bytes before the content of a large extension: a fork's start is one (`wire.py`), and has references within."""


class Reference(NamedTuple):
    """`digest`: SHA-256 of the encoded value; `size`: its bytes; `week`: in which it was written (`week_of`)."""

    digest: bytes
    size: int
    week: int

    def encode(self) -> bytes:
        return MARK + self.week.to_bytes(3, "big") + self.size.to_bytes(5, "big") + self.digest

    def __str__(self) -> str:
        return f"payload {self.digest.hex()[:16]} of {self.size:,} bytes"


def week_of(ms: int) -> int:
    """The number of a week, from 1970 on."""
    return ms // WEEK_MS


def reference_to(data: bytes, week: int) -> Reference:
    return Reference(sha256(data).digest(), len(data), week)


def parse_reference(data: bytes) -> Reference | None:
    """None for any other value."""
    if len(data) != LENGTH or not data.startswith(MARK):
        return None
    return Reference(data[12:], int.from_bytes(data[7:12], "big"), int.from_bytes(data[4:7], "big"))


def shown_value(value: object) -> str:
    """Text for a decoded value that has no JSON form: what a reference says, where it was not joined."""
    if isinstance(value, msgspec.msgpack.Ext):
        data = msgspec.msgpack.encode(value)
        if (reference := parse_reference(data)) is not None:
            return f"{reference}, in storage"
    return str(value)


def marked_in(data: bytes) -> Iterator[Reference]:
    """Everything that looks like a reference, also within text or bytes: for who must miss none."""
    return (
        Reference(found[3], int.from_bytes(found[2], "big"), int.from_bytes(found[1], "big"))
        for found in _MARKED.finditer(data)
    )


def has_mark(data: bytes) -> bool:
    """Whether a reference may be in it."""
    return MARK_BYTE in data and MARK in data


def references_in(data: bytes) -> list[Reference]:
    """The references in an encoded value, each once."""
    found: dict[Reference, None] = {}
    if has_mark(data):
        _collect(data, found)
    return list(found)


def cut(data: bytes, limit: int, week: int, depth: int = 0) -> tuple[bytes, dict[Reference, bytes]]:
    """An encoded value with references in the place of its large parts, and these. Empty: nothing of it is large.

    `limit`: bytes from which on a part is large, `LEAST` at least. `depth`: so many levels of containers are the form
    of a message or transition, and stay.
    """
    parts: dict[Reference, bytes] = {}
    return (_cut(data, max(limit, LEAST), week, depth, parts), parts) if len(data) >= limit else (data, parts)


def join(data: bytes, found: Mapping[Reference, bytes]) -> bytes:
    """The value with what its references stand for. Raises `KeyError` for one that is not in `found`."""
    return _join(data, found) if has_mark(data) else data


def _cut(
    data: bytes, limit: int, week: int, depth: int, parts: dict[Reference, bytes], left: int = CUT_LEVELS
) -> bytes:
    children = _children(data) if left else None
    if children is not None:
        container, values = children
        large = [key for key, value in values if len(memoryview(value)) >= limit]
        for key in large:
            container[key] = Raw(_cut(bytes(container[key]), limit, week, depth - 1, parts, left - 1))
        if large:
            return _encode(container)
    if depth > 0:
        return data
    reference = reference_to(data, week)
    parts[reference] = data
    return reference.encode()


def _join(data: bytes, found: Mapping[Reference, bytes], left: int = LEVELS) -> bytes:
    reference = parse_reference(data)
    if reference is not None:
        return found[reference]
    if data[0] == _EXTENSION_32:
        inner = _join(data[_HEAD:], found, left)
        return b"\xc9" + len(inner).to_bytes(4, "big") + data[5:_HEAD] + inner
    children = _children(data) if left else None
    if children is None:
        return data
    container, values = children
    for key, value in values:
        part = bytes(value)
        if has_mark(part):
            container[key] = Raw(_join(part, found, left - 1))
    return _encode(container)


def _collect(data: bytes, found: dict[Reference, None], left: int = LEVELS) -> None:
    reference = parse_reference(data)
    if reference is not None:
        found[reference] = None
        return
    if data[0] == _EXTENSION_32:
        data = data[_HEAD:]
    children = _children(data) if left else None
    for _, value in children[1] if children is not None else ():
        part = bytes(value)
        if has_mark(part):
            _collect(part, found, left - 1)


def _children(data: bytes) -> tuple[Any, list[tuple[Any, Raw]]] | None:
    """A container and its items, None if it is none, or one that can't be taken apart."""
    first = data[0] if data else 0
    try:
        if 0x90 <= first <= 0x9F or first in (0xDC, 0xDD):
            array = _arrays.decode(data)
            return array, list(enumerate(array))
        if 0x80 <= first <= 0x8F or first in (0xDE, 0xDF):
            by_key = _maps.decode(data)
            return by_key, list(by_key.items())
    except (*DECODE_ERRORS, TypeError):
        pass
    return None
