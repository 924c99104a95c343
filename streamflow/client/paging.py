"""Pages of a listing: where the next one begins, and times as people write them.

Owns: the text of a cursor, and the forms of `since`, `until` and durations. Must not: read anything or look at a clock.
Called by: listings, the client, the sandbox.
"""

from __future__ import annotations

import re
import zlib
from datetime import UTC, datetime
from typing import NamedTuple

from streamflow.errors import UsageError

_AGO = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhdw])")
_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_CURSOR = re.compile(r"([0-9a-f]{8})-([0-9]+)-([0-9]*)-([0-9]*)-([A-Za-z0-9].{0,255})")


class Position(NamedTuple):
    """A run in the order of a listing: the score by which it is sorted (ms), and its id. Greater ones come first."""

    score: float
    run_id: str


class Cursor(NamedTuple):
    """Where a page ends, and between which times of creation (ms) the listing is: those of when it was opened."""

    position: Position
    since: int | None = None
    until: int | None = None


def cursor_text(cursor: Cursor, listing: str) -> str:
    """`listing` names all that makes this listing another one than others."""
    since, until = ("" if at is None else at for at in cursor[1:])
    return f"{_of(listing)}-{cursor.position.score:.0f}-{since}-{until}-{cursor.position.run_id}"


def cursor_of(text: str, listing: str) -> Cursor:
    """Raises `UsageError` for what is none, or one of another listing."""
    match = _CURSOR.fullmatch(text)
    if match is None:
        raise UsageError(f"{text[:80]!r} is not a cursor: use RunPage.after, which `streamflow runs` prints as --next")
    if match[1] != _of(listing):
        raise UsageError("this cursor is of another listing: its next page needs the same filters and the same order")
    return Cursor(
        Position(float(match[2]), match[5]),
        int(match[3]) if match[3] else None,
        int(match[4]) if match[4] else None,
    )


def _of(listing: str) -> str:
    return f"{zlib.crc32(listing.encode(errors='replace')):08x}"


def is_relative(at: datetime | str | None) -> bool:
    return isinstance(at, str) and _AGO.fullmatch(at) is not None


def duration_ms(name: str, text: str) -> int:
    """Ms of a text as `90s`, `10m`, `2h`, `3d`, `2w`. Raises `UsageError`."""
    if (match := _AGO.fullmatch(text)) is None:
        raise UsageError(f"{name}: {text[:80]!r} is not a duration: use for example 90s, 10m, 2h, 3d")
    return round(float(match[1]) * _MS[match[2]])


def instant_ms(name: str, at: datetime | str, now_ms: int, *, known: str = "90s, 15m, 2h, 7d (ago), ") -> int:
    """Ms of an aware datetime, or of a text: `2h` (ago; s, m, h, d, w), `2026-11-28`, `2026-11-28T14:02+01:00`; UTC if
    it says no zone. Raises `UsageError`, which names the `known` forms, too."""
    if isinstance(at, datetime):
        if at.tzinfo is None:
            raise UsageError(f"{name}: {at} has no time zone: use datetime.now(UTC) and the like")
        return round(at.timestamp() * 1000)
    if match := _AGO.fullmatch(at):
        return round(now_ms - float(match[1]) * _MS[match[2]])
    try:
        found = datetime.fromisoformat(at)
        return round((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise UsageError(
            f"{name}: {at[:80]!r} is not a time: use for example {known}2026-11-28 or "
            "2026-11-28T14:02 (UTC), or with a zone 2026-11-28T14:02+01:00"
        ) from None
