"""Durations in the public API: seconds or a `timedelta`.

Owns: what is accepted, and the limit. Must not: know what a duration is for. Called by: retry policies, steps, timers.
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import SupportsFloat

MAX_SECONDS = 1e11
"""Some 3,000 years: in milliseconds still an exact number."""


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
