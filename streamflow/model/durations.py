"""Durations in the public API: seconds or a `timedelta`.

Owns: what is accepted, the limit, and a text that is exact. Must not: know what a duration is for.
Called by: retry policies, steps, timers, time-outs of runs.
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import SupportsFloat

MAX_SECONDS = 1e11
"""Some 3,000 years: in milliseconds still an exact number."""
_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000))


def duration_text(ms: int) -> str:
    """In the largest unit of which it is a whole number: `14 d`, `90 s`, `250 ms`."""
    for unit, size in _UNITS:
        if ms % size == 0:
            return f"{ms // size:,} {unit}"
    return f"{ms:,} ms"


def seconds_of(duration: object) -> float | None:
    """`duration` in seconds; None if it is neither a finite number nor a `timedelta`, or has more than `MAX_SECONDS`
    in either direction."""
    if type(duration) is float or type(duration) is int:  # to ask for the protocol below takes ten times as long
        return float(duration) if -MAX_SECONDS <= duration <= MAX_SECONDS else None  # false for NaN, too
    if isinstance(duration, timedelta):
        seconds = duration.total_seconds()
    elif isinstance(duration, bool):
        return None
    else:
        try:
            seconds = float(duration) if isinstance(duration, SupportsFloat) else math.nan
        except (TypeError, ValueError, OverflowError):
            return None
    return seconds if abs(seconds) <= MAX_SECONDS else None
