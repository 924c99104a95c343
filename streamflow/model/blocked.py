"""What has blocked the event loop of a daemon or worker lately, as its heartbeats say it.

Owns: the form. Must not: look at anything. Called by: the watch (makes them), heartbeats, the status.
"""

from __future__ import annotations

import msgspec


class BlockedLine(msgspec.Struct, frozen=True):
    """One line of code that has blocked. `of`: `workflow order`, `step crawl`, or `own` for code of nobody known.
    `line`: file, line, and what stands there. `ms`: the longest time; `count`: how often; `age`: seconds since the last
    time, when this was sent; `run_id`: of the last time, may be empty."""

    of: str
    line: str
    ms: float
    count: int
    age: float
    run_id: str = ""
