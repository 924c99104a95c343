"""How the screen looks: the palette, and numbers, durations, sizes and sparklines in short form.

Owns: colours and formats. Must not: know what the text is about. Called by: all of the screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from streamflow.text import duration as duration
from streamflow.text import plural as plural
from streamflow.text import size as size

# Mid-tones, readable on dark and on light terminals; with only 256 or 16 colours, rich takes the nearest.
TITLE = "bold #7aa2d6"
MUTED = "#7f8a99"
FAINT = "#566070"
OK = "#74b881"
WARN = "#d8a657"
BAD = "#df7371"
BUSY = "#62b3c4"
VALUE = "bold"

STATUS = {
    "pending": MUTED,
    "running": BUSY,
    "stuck": WARN,
    "paused": WARN,
    "completed": OK,
    "failed": BAD,
    "cancelled": MUTED,
}
OWNERS = (
    "#6fa8dc",
    "#8fbf7f",
    "#d9a86c",
    "#b48ec9",
    "#6cc0b5",
    "#d98c9a",
    "#c9bf6a",
    "#8d9be0",
    "#a3b86c",
    "#c99a7a",
    "#7fb5cf",
    "#c58fb5",
)
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

_BARS = "▁▂▃▄▅▆▇█"
_LAST_MS = 253_370_764_800_000
"""The year 9999. Later times are shown as this one, because `datetime` can't represent them."""


def number(value: float) -> str:
    """`0`, `7`, `0.4`, `9,999`, `12.3k`, `4.56M`, `7.8G`: at most 6 characters below 10^12."""
    if value < 0:
        return f"-{number(-value)}"
    if value < 9.95 and value != int(value):
        return f"{value:.1f}"
    if value < 9_999.5:
        return f"{value:,.0f}"
    for unit, factor in (("k", 1e3), ("M", 1e6), ("G", 1e9)):
        scaled = value / factor
        if scaled < 9.995:
            return f"{scaled:.2f}{unit}"
        if scaled < 99.95:
            return f"{scaled:.1f}{unit}"
        if scaled < 999.5:
            return f"{scaled:.0f}{unit}"
    return f"{value / 1e12:,.1f}T"


def clock(ms: int, with_ms: bool = False) -> str:
    """Local time of day."""
    return _local(ms).strftime("%H:%M:%S") + (f".{ms % 1000:03}" if with_ms else "")


def moment(ms: int) -> str:
    """Local date and time."""
    return _local(ms).strftime("%Y-%m-%d %H:%M:%S")


def _local(ms: int) -> datetime:
    return datetime.fromtimestamp(min(max(ms, 0), _LAST_MS) / 1000, UTC).astimezone()


def sparkline(values: Sequence[float], width: int) -> str:
    """The newest `width` of `values`, one character each, from zero (a thin line) to the largest of them."""
    newest = list(values[-width:]) if width > 0 else []
    top = max(newest, default=0)
    if top <= 0:
        return _BARS[0] * len(newest)
    return "".join(_BARS[0] if v <= 0 else _BARS[min(7, 1 + int(v / top * 6.999))] for v in newest)
