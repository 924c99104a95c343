"""What workers report about themselves with each heartbeat, as it is stored in one hash of the namespace.

Owns: the fields, and which heartbeat is a fresh one. Must not: send or read them.
Called by: workers (make them), the status and a daemon's metrics (count workers), daemons (cut what fails to size).

A heartbeat says when it was sent, by the server's clock as the worker reckons it, so that a single look shows who is
silent. That clock may jump: then the next heartbeat, about a second later, is right again.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from streamflow.model.blocked import BlockedLine
from streamflow.model.codec import DECODE_ERRORS
from streamflow.model.reports import StepBeat

LEAST = 2.0
"""Seconds for which a heartbeat is fresh at least, however short the worker's time-out is."""

MOST_TOLD = 20
"""Entries of a heartbeat that say what fails: it is read by many, once a second or more often..."""
MOST_TEXT = 300
"""...with so many characters each."""


class WorkerHeartbeat(msgspec.Struct, kw_only=True):
    """The field names are those of the JSON on the server. Each field has a default, and unknown ones are ignored,
    because workers and daemons of two versions read each other's."""

    name: str = ""
    """The worker's name, also that of its consumer in the streams of its queues."""
    host: str = ""
    pid: int = 0
    started: int = 0
    """The server's clock, ms."""
    sent: int = 0
    """The server's clock when this was sent, ms; 0: in the first one, it isn't known yet."""
    beat: int = 0
    """Another one with each heartbeat. Negative: the process beside the worker has sent it, because the worker's own
    is held by code in C (`heartbeat_child.py`)."""
    timeout: float = 0.0
    """`worker_timeout`, seconds."""
    queues: list[str] = []
    concurrency: int = 0
    """Steps that it runs at once, at most."""
    running: int = 0
    """Attempts that it has."""
    draining: bool = False
    version: str = ""
    impaired: dict[str, str] = {}
    """Partitions that the server refuses it, the first of them, and why: `partition 3 of queue gpu` -> reason."""
    blocked: list[BlockedLine] = []
    """The lines that have blocked its event loop within the last ten minutes, the newest of them."""
    beats: list[StepBeat] = []
    """When steps that it runs have called `sf.heartbeat` last, of those that have: silent ones first, the longest ago
    first, as many as there is room for."""
    silent_steps: int = 0
    """How many of its steps are silent."""

    def age(self, clock: int) -> float:
        """Seconds since it was sent; negative if the server's clock (ms) was set back since."""
        return (clock - self.sent) / 1000

    def is_fresh(self, clock: int) -> bool:
        """Whether this is of a worker that lives, by the server's clock (ms)."""
        return abs(self.age(clock)) <= max(self.timeout, LEAST)

    @property
    def is_repeated(self) -> bool:
        """Whether the process beside the worker has sent it."""
        return self.beat < 0


def for_heartbeat(troubles: Mapping[str, str]) -> dict[str, str]:
    """As much of them as a heartbeat takes, of a daemon or worker: subject -> reason."""
    return {subject: text[:MOST_TEXT] for subject, text in list(troubles.items())[:MOST_TOLD]}


_worker = msgspec.json.Decoder(WorkerHeartbeat)


def decode_worker(raw: bytes) -> WorkerHeartbeat:
    """An empty one, which is not fresh, for what can't be decoded."""
    try:
        return _worker.decode(raw)
    except DECODE_ERRORS:
        return WorkerHeartbeat()


def live_workers(members: Mapping[bytes, bytes], clock: int) -> list[WorkerHeartbeat]:
    """Those with a fresh heartbeat, by name. `members`: the hash; `clock`: the server's, ms."""
    found = [decode_worker(raw) for raw in members.values()]
    return sorted((worker for worker in found if worker.is_fresh(clock)), key=lambda worker: worker.name)
