"""The lines that have blocked the event loop of this process lately, the newest of them.

Owns: how many are kept, for how long, and what counts as the same one. Must not: look at stacks (the watch does).
Called by: the watch, in its thread; daemon and worker, for their heartbeats, in their loops.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from typing import NamedTuple

from streamflow.model.blocked import BlockedLine

KEPT = 5
"""Lines, those that have blocked last: each heartbeat has them, and each daemon reads those of all others."""
WINDOW = 600.0
"""Seconds for which a line is kept after it has blocked last."""
MAX_TEXT = 120
"""Characters of a line."""
_PLACE = re.compile(r"(.*?)(:\d+)")


class _Seen(NamedTuple):
    at: float
    ms: float
    times: int
    run_id: str


class BlockedLines:
    def __init__(self) -> None:
        self._lines: OrderedDict[tuple[str, str], _Seen] = OrderedDict()
        self._lock = threading.Lock()

    def saw(self, of: str, line: str, seconds: float, run_id: str, *, again: bool = False) -> None:
        """Code of `of` (see `BlockedLine`) blocks at this line, for so long by now. `again`: it is the same time as in
        the last call for it."""
        key = (of, _short(line))
        with self._lock:
            before = self._lines.pop(key, _Seen(0.0, 0.0, 0, ""))
            times = before.times + (not again or not before.times)
            self._lines[key] = _Seen(time.monotonic(), max(before.ms, 1000 * seconds), times, run_id)
            if len(self._lines) > KEPT:
                self._lines.popitem(last=False)

    def newest(self) -> list[BlockedLine]:
        """The last one first."""
        now = time.monotonic()
        with self._lock:
            for key in [key for key, seen in self._lines.items() if now - seen.at > WINDOW]:
                del self._lines[key]
            found = list(self._lines.items())
        return [
            BlockedLine(of, line, round(seen.ms, 1), seen.times, round(now - seen.at, 1), seen.run_id)
            for (of, line), seen in reversed(found)
        ]


def _short(line: str) -> str:
    """Without its folder: `order.py:61 (total(items))`."""
    place = _PLACE.match(line)
    if place is not None:
        line = place[1].replace("\\", "/").rpartition("/")[2] + line[place.start(2) :]
    return line[:MAX_TEXT]
