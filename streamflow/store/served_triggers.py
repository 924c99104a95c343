"""What processes that serve triggers report about them, as it is stored in one hash of the namespace.

Owns: the fields, when a report is too old, and what all reports about one trigger say together. Must not: send or read
them. Called by: processes that serve triggers (make them), `trigger status`, the status.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

import msgspec

STALE_SECONDS = 30.0
"""Seconds without a report after which a process counts as gone, or as one that hangs."""
GONE_SECONDS = 24 * 3600.0
"""Seconds after which a process that has gone is forgotten."""


class Served(msgspec.Struct, array_like=True):
    """A trigger in a process. `received`: deliveries that were stored or quarantined since the process began; `last`:
    when the last one was (ms since the epoch, 0 for none)."""

    name: str
    kind: str
    source: str
    received: int
    quarantined: int
    last: int
    problem: str


class Report(msgspec.Struct, array_like=True):
    """Of one process; `at`: ms since the epoch."""

    host: str
    pid: int
    at: int
    triggers: list[Served]


class ServedHere(msgspec.Struct, frozen=True):
    """A row of `trigger status`. `age`: seconds since the process has reported."""

    host: str
    pid: int
    age: float
    served: Served

    @property
    def is_silent(self) -> bool:
        return self.age > STALE_SECONDS

    @property
    def problem(self) -> str:
        if self.is_silent:
            return f"no report for {self.age:.0f} s: the process was killed, or hangs"
        return self.served.problem


class ServedTrigger(msgspec.Struct, kw_only=True):
    """A trigger in all processes that serve it. `processes`: those that live; `received` and `quarantined`: by these,
    since they began. `problem`: what one of them says; if none lives, what is known of the last. `process`: which."""

    name: str
    kind: str
    source: str
    processes: int = 0
    received: int = 0
    quarantined: int = 0
    problem: str = ""
    process: str = ""


def decode_reports(fields: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, Report]]:
    found: list[tuple[str, Report]] = []
    for field, value in fields:
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):  # of another release
            found.append((field.decode(), msgspec.msgpack.decode(value, type=Report)))
    return found


def rows_of(reports: Iterable[tuple[str, Report]], now_ms: int) -> list[ServedHere]:
    """By trigger."""
    found = [
        ServedHere(report.host, report.pid, max(0, now_ms - report.at) / 1000, one)
        for _, report in reports
        for one in report.triggers
    ]
    return sorted(found, key=lambda row: (row.served.name, row.host, row.pid))


def together(rows: Sequence[ServedHere]) -> list[ServedTrigger]:
    """By name. One that has gone does not matter as long as another one serves it."""
    by_name: dict[str, list[ServedHere]] = {}
    for row in rows:
        if row.age <= GONE_SECONDS:
            by_name.setdefault(row.served.name, []).append(row)
    return [_together(name, rows) for name, rows in sorted(by_name.items())]


def _together(name: str, rows: Sequence[ServedHere]) -> ServedTrigger:
    alive = [row for row in rows if not row.is_silent]
    known = alive or [min(rows, key=lambda row: row.age)]
    chosen = next((row for row in known if row.problem), known[0])
    return ServedTrigger(
        name=name,
        kind=chosen.served.kind,
        source=chosen.served.source,
        processes=len(alive),
        received=sum(row.served.received for row in alive),
        quarantined=sum(row.served.quarantined for row in alive),
        problem=chosen.problem,
        process=f"{chosen.host}-{chosen.pid}",
    )
