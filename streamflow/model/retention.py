"""How long ended runs are kept: one duration for all, and rules for those of a workflow or with a status.

Owns: how rules are written, and which one counts. Must not: know a clock or a listing.
Called by: settings (checks), the daemon's retention.

    order=30d, order:failed=90d, *:failed=180d, report=keep

The most telling rule counts: that of a workflow and a status, then that of the workflow, then that of the status, then
the duration for all.
"""

from __future__ import annotations

import re

import msgspec

from streamflow.errors import UsageError
from streamflow.model.names import check_name
from streamflow.model.record import OPEN, Status

ALL = "*"
KEEP = "keep"
ENDED = tuple(status for status in Status if status not in OPEN)
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhdw]?)")
_LONGEST = 1e9
_SHAPE = (
    "rules look like order=30d, order:failed=90d, *:failed=180d, report=keep, with seconds, or a number and s, m, h, d "
    "or w"
)


class RetentionRules(msgspec.Struct, frozen=True):
    """`everything`: seconds for all ended runs for which there is no rule; 0: they are kept forever. `rules`: by
    workflow (or `*`) and status (or empty)."""

    everything: float
    rules: dict[tuple[str, str], float] = {}

    def seconds(self, workflow: str, status: Status) -> float:
        """How long an ended run of this workflow with this status is kept; 0: forever."""
        for key in ((workflow, status.value), (workflow, ""), (ALL, status.value), (ALL, "")):
            if key in self.rules:
                return self.rules[key]
        return self.everything

    def __bool__(self) -> bool:
        """Whether any run goes at all."""
        return bool(self.everything) or any(self.rules.values())


def parse_rules(text: str, everything: float = 0.0) -> RetentionRules:
    """Raises `UsageError` that names the rule."""
    rules: dict[tuple[str, str], float] = {}
    for rule in re.split(r"[,\s]+", text.strip()):
        if not rule:
            continue
        which, equals, duration = rule.rpartition("=")
        if not equals or not which:
            raise UsageError(f"retention_rules: {rule[:200]!r} is not a rule: {_SHAPE}")
        workflow, colon, status = which.rpartition(":")
        if not colon or status not in ENDED:
            workflow, status = which, ""
        if workflow != ALL:
            check_name("retention_rules: workflow", workflow)
        if (workflow, status) in rules:
            raise UsageError(f"retention_rules: there are two rules for {which}")
        rules[workflow, status] = _seconds(rule, duration)
    return RetentionRules(everything, rules)


def _seconds(rule: str, duration: str) -> float:
    if duration == KEEP:
        return 0.0
    match = _DURATION.fullmatch(duration)
    seconds = float(match[1]) * _UNITS[match[2]] if match is not None else -1.0
    if not 0 < seconds <= _LONGEST:
        raise UsageError(f"retention_rules: {rule[:200]!r} has no duration, or one above {_LONGEST:g} s: {_SHAPE}")
    return seconds
