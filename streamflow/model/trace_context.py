"""A trace context as one word: what a tracing system's propagators write, in the header of a run and in messages.

Owns: the word's format and its limit. Must not: know OpenTelemetry (`tracing/` does), or what a propagator writes.
Called by: tracing, record (whose tenth field it is), wire, `show`.

With the usual propagators and neither `tracestate` nor baggage it is the `traceparent` of W3C Trace Context itself:
`00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01`. Else it is a JSON object of what they write, URL-quoted, so
that it has no space.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote, unquote_to_bytes

import msgspec

TRACEPARENT = re.compile("[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
MAX_BYTES = 2048
"""Limit of a packed context: a run keeps it in its header, which each of its commits sends."""
DROPPED_FIRST = ("baggage", "tracestate")
"""What is left out of a context that is too large, in this order: the trace goes on without it."""

_VISIBLE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")
_encode = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder(dict[str, str]).decode


def pack(carrier: Mapping[str, str]) -> str:
    """One word without spaces; empty if the carrier is empty, or too large even without what may be dropped."""
    fields = dict(carrier)
    for dropped in (None, *DROPPED_FIRST):
        if dropped is not None:
            fields.pop(dropped, None)
        if not fields:
            return ""
        if len(fields) == 1 and TRACEPARENT.fullmatch(fields.get("traceparent", "")):
            return fields["traceparent"]
        text = quote(_encode(fields), safe=_VISIBLE)
        if len(text) <= MAX_BYTES:
            return text
    return ""


def unpack(text: str) -> dict[str, str]:
    """The carrier that was packed; empty if the text is empty, or something else."""
    if TRACEPARENT.fullmatch(text):
        return {"traceparent": text}
    try:
        return _decode(unquote_to_bytes(text)) if text else {}
    except (ValueError, RecursionError):  # `msgspec.DecodeError` is a ValueError
        return {}


def checked(text: str) -> str:
    """The text if it may stand in a header, else nothing: a message from elsewhere loses its trace, and no more."""
    return text if len(text) <= MAX_BYTES and all("!" <= char <= "~" for char in text) else ""


def trace_id_of(text: str) -> str:
    """The id of the trace, 32 hex digits; empty if the context has no `traceparent` of W3C."""
    match = TRACEPARENT.fullmatch(unpack(text).get("traceparent", ""))
    return match.group(1) if match else ""
