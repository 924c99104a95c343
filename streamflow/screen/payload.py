"""Payloads in one line of a table.

Owns: how long a preview is. Must not: raise for a payload, whatever is in it.
Called by: the timeline, tables.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw

from streamflow.events import gone_bytes
from streamflow.model.plain import plain
from streamflow.model.references import parse_reference
from streamflow.screen.sanitize import safe
from streamflow.screen.style import size

PREVIEW_BYTES = 16 * 1024
"""A preview of a larger payload is only its size."""


def preview(payload: Raw | bytes, limit: int) -> str:
    """One safe line of compact JSON, at most `limit` characters."""
    if gone := gone_bytes(payload):
        return safe(f"⟨{size(gone)}, gone⟩", limit)
    if (reference := parse_reference(bytes(payload))) is not None:
        return safe(f"⟨{size(reference.size)}, in storage: {reference.digest.hex()[:16]}⟩", limit)
    length = len(memoryview(payload))
    if length > PREVIEW_BYTES:
        return safe(f"⟨{size(length)}⟩", limit)
    try:
        text = msgspec.json.encode(plain(payload)).decode()
    except (TypeError, ValueError, RecursionError):
        text = f"⟨{size(length)}⟩"
    return safe(text, limit)
