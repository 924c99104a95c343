"""What fails for single shards and queues while all others go on: when it is tried again, and what is reported of it.

Owns: pauses that grow with each failure, and what is said in the log, the heartbeat (`status`), /health and metrics.
Must not: try anything itself. Called by: every loop of a daemon that does something for each shard (`failed`, `waits`,
`works`), the heartbeat, health and metrics (read).

What fails for all, because the server doesn't answer, is not a trouble of a shard: the loops retry that by themselves.
An entry goes when `works` is called, or when the next try was due for `SETTLED` seconds and nothing has failed again: a
shard that was dropped and read again has no single moment in which it works.
"""

from __future__ import annotations

import logging
import random
import time

import msgspec

from streamflow.errors import StoreError

_log = logging.getLogger("streamflow.shards")

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 20.0
"""Seconds between two tries; the pause doubles with each failure in a row..."""
JITTER = 0.75
"""...of which so much at least: those that failed together are then tried apart from the one that is to blame."""
SETTLED = 10.0
"""Seconds after the next try for which an entry is kept without another failure."""
SAY_AGAIN = 600.0
"""Seconds after which a failure with the same reason is logged again, when its pauses grow no more."""


class Trouble(msgspec.Struct):
    """`what` fails for `subject`: together they are a sentence. `stops`: its runs stand still meanwhile."""

    subject: str
    what: str
    stops: bool
    reason: str = ""
    pause: float = 0.0
    until: float = 0.0
    """When it is tried again (monotonic s)."""
    kept: float = SETTLED
    said: float = 0.0
    """When that was logged last."""

    @property
    def text(self) -> str:
        return f"{self.what}: {self.reason}"


class Troubles:
    """Changed in the event loop, read also in other threads."""

    def __init__(self) -> None:
        self._all: dict[tuple[str, str], Trouble] = {}

    def __bool__(self) -> bool:
        return bool(self._all)

    def failed(self, subject: str, what: str, error: BaseException, *, stops: bool, kept: float = SETTLED) -> float:
        """Returns the seconds after which it is to be tried again. `kept`: for so long it stays an entry after that.

        It is logged with each try while the pauses grow, and when the reason changes; what is not the server's error
        with its traceback. A failure before the pause is over, of one who doesn't wait, makes the next one no longer.
        """
        now = time.monotonic()
        is_refusal = isinstance(error, StoreError)
        reason = str(error) if is_refusal else f"{type(error).__name__}: {error}"
        entry = self._all.get((subject, what))
        if entry is None or now > entry.until + entry.kept:
            entry = self._all[subject, what] = Trouble(subject, what, stops, kept=kept)
        is_new = entry.reason != reason
        is_said = is_new or now - entry.said > SAY_AGAIN
        if now >= entry.until:
            is_said = is_said or entry.pause < LONGEST_PAUSE
            entry.pause = min(2 * entry.pause or FIRST_PAUSE, LONGEST_PAUSE)
            entry.until = now + entry.pause * random.uniform(JITTER, 1.0)
        entry.reason = reason
        pause = entry.until - now
        if is_said:
            entry.said = now
            _log.error(
                "%s %s, will retry in %.1f s: %s%s",
                subject,
                what,
                pause,
                reason,
                _advice(reason),
                exc_info=error if is_new and not is_refusal else None,
            )
        return pause

    def waits(self, subject: str, what: str) -> bool:
        """Whether it failed, and is not to be tried again yet."""
        entry = self._all.get((subject, what))
        return entry is not None and time.monotonic() < entry.until

    def works(self, subject: str, what: str) -> None:
        if self._all and self._all.pop((subject, what), None) is not None:
            _log.info("recovered from: %s %s", subject, what)

    def settle(self) -> None:
        """Forget what has not failed again. Called with every heartbeat."""
        if self._all:
            now = time.monotonic()
            for entry in [entry for entry in self._all.values() if now > entry.until + entry.kept]:
                self.works(entry.subject, entry.what)

    def current(self, *, stops: bool) -> dict[str, str]:
        """By subject, what fails for it and why. A shard that stands still is not also named as one that doesn't."""
        if not self._all:
            return {}
        entries = list(self._all.values())
        stopped = {entry.subject for entry in entries if entry.stops}
        wanted = [entry for entry in entries if entry.stops == stops and (stops or entry.subject not in stopped)]
        return {entry.subject: entry.text for entry in wanted}


def _advice(reason: str) -> str:
    """What to do about it, unless the reason says that."""
    if "WRONGTYPE" in reason:
        return " (somebody has overwritten this key; see docs/operations.md, stopped-shards)"
    return ""


def shard_name(number: int) -> str:
    return f"shard {number}"
