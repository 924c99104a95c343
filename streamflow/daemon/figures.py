"""What a daemon counts and looks at in its event loop, for its metrics.

Owns: counts of commits, and for how long something waits that has no time of its own (outboxes, views). Must not: cost
anything for each event: commits are counted once a pipeline, everything else is looked at twice a second. It is there
only if the daemon serves metrics. Called by: the owner (`committed`), the loop of `LoopLag`, `metrics.py` (reads).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from streamflow.daemon.batch import ShardBatch
from streamflow.daemon.owner import Owner
from streamflow.daemon.relay import Relay, Target
from streamflow.errors import StoreError
from streamflow.http.figures import Powers
from streamflow.store.kernel import Committed, Reply

RESULTS = {
    Reply.OK: "ok",
    Reply.DUP: "duplicate",
    Reply.CONFLICT: "conflict",
    Reply.FENCED: "fenced",
    Reply.BEHIND: "behind",
}
REFUSED = "refused"


class DaemonFigures:
    """Its numbers are read in another thread, one by one: each is assigned as a whole."""

    def __init__(self, owner: Owner, relay: Relay) -> None:
        self.commits = dict.fromkeys((*RESULTS.values(), REFUSED), 0)
        self.runs = Powers()
        """Runs of a commit."""
        self.round_trips = Powers()
        """Microseconds of a pipeline of commits."""
        self.outbox = 0
        """Messages that are not delivered yet."""
        self.outbox_lag = 0.0
        """Seconds for which one of them has been first in its line."""
        self.agenda_lag = 0.0
        """Seconds for which a run is due that this daemon has not even looked at."""
        self.views_lag = 0.0
        """Seconds for which log entries of a shard wait that its stored views don't count, and none was counted."""
        self._owner = owner
        self._relay = relay
        self._heads: dict[tuple[int, Target], tuple[str, float]] = {}
        """The number of the first message of each line, and since when it is the first (monotonic s)."""
        self._behind: dict[int, tuple[str, float]] = {}
        """By shard whose log has entries that the stored views don't count: up to where they count, and since when."""

    def committed(self, batches: Sequence[ShardBatch], answers: Sequence[Committed | StoreError], began: float) -> None:
        """A pipeline of commits, sent at `began` (monotonic s), has been answered."""
        self.round_trips.add(int((time.monotonic() - began) * 1e6))
        counts = self.runs.counts  # `Powers.add`, here because this runs once a commit
        ok = total = 0
        for batch, answer in zip(batches, answers, strict=True):
            if not isinstance(answer, StoreError) and answer.code is Reply.OK:
                ok += 1
            else:
                self.commits[REFUSED if isinstance(answer, StoreError) else RESULTS[answer.code]] += 1
            runs = len(batch.batch.runs)
            counts[runs.bit_length()] += 1
            total += runs
        self.commits["ok"] += ok
        self.runs.total += total

    def look(self) -> None:
        """Called in the loop, twice a second."""
        now = time.monotonic()
        heads = {
            pair: (number, self._heads[pair][1] if self._heads.get(pair, ("",))[0] == number else now)
            for pair, number in self._relay.heads()
        }
        self._heads = heads
        self.outbox = self._relay.waiting
        self.outbox_lag = now - min((since for _, since in heads.values()), default=now)
        self.agenda_lag = self._owner.overdue
        behind = {number: shard.folded for number, shard in self._owner.active.items() if shard.unfolded}
        self._behind = {
            number: (folded, self._behind[number][1] if self._behind.get(number, ("",))[0] == folded else now)
            for number, folded in behind.items()
        }
        self.views_lag = now - min((since for _, since in self._behind.values()), default=now)
