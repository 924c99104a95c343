"""What the status screen shows, as plain data, and the JSON that `status --json` prints of it.

Owns: the `NamespaceStatus` tree, and making its daemons and shards from the members' heartbeats.
Must not: read anything or look at a clock. Called by: the collector (makes it), `screen/layout.py` (draws it),
`status --json`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from streamflow.model.blocked import BlockedLine
from streamflow.model.waits import Wait
from streamflow.store.pauses import Pause
from streamflow.store.served_triggers import ServedTrigger
from streamflow.store.workers import WorkerHeartbeat
from streamflow.views.reading import ViewReading
from streamflow.wire import Heartbeat, StorageWait


class Server(msgspec.Struct, kw_only=True):
    """The Redis or Valkey server, or the masters of a cluster together. Memory in bytes, all summed up; `maxmemory` 0:
    no limit. `aof`: everysec, always, no, on (the policy isn't known: the user may not use CONFIG GET), or off; of
    several the one that keeps least. `servers`: how many there are, of which `away` don't answer and are left out.
    `fullest`: the largest share of its maxmemory that one of them uses."""

    product: str = "redis"
    version: str = ""
    memory: int = 0
    maxmemory: int = 0
    aof: str = ""
    ops_per_s: float = 0.0
    servers: int = 1
    away: int = 0
    fullest: float = 0.0


class DaemonRow(msgspec.Struct, kw_only=True):
    """One member: its last heartbeat, and what only two looks at it tell."""

    id: str
    heartbeat: Heartbeat
    steps_per_s: float | None = None
    """None until two heartbeats have been seen; so is `cpu_percent`."""
    cpu_percent: float | None = None
    beat_age: float | None = None
    """Seconds since the heartbeat changed; None until it is known whether it still changes."""

    @property
    def name(self) -> str:
        return self.heartbeat.name or self.id


class Shard(msgspec.Struct, kw_only=True):
    """`owner` is the id of a daemon, or empty. `lag`: log entries that its views don't cover yet."""

    number: int
    owner: str = ""
    inbox: int = 0
    lag: int = 0


class Queue(msgspec.Struct, kw_only=True):
    """A queue of steps: those that wait for a worker, those that workers have, and live workers."""

    name: str
    waiting: int = 0
    running: int = 0
    workers: int = 0
    paused: Pause | None = None
    """Who has paused it, if somebody has."""


class SubscriberGroup(msgspec.Struct, kw_only=True):
    """A group of subscribers. `waiting`: log entries that it has not acknowledged; `behind_ms`: the age of the first of
    them. `lost`: entries that were trimmed before that; `lost_ms`: how long ago the last time, None for never.
    `trouble`: why one of its consumers doesn't go on, in its own words; may be empty."""

    name: str
    waiting: int = 0
    behind_ms: int = 0
    lost: int = 0
    lost_ms: int | None = None
    consumers: int = 0
    trouble: str = ""


class SilentStep(msgspec.Struct, kw_only=True):
    """A step that has sent heartbeats, and then none for long, although its process lives: it may hang. `seconds`: for
    how long; `holder`: the daemon or worker that runs it."""

    name: str
    run_id: str
    seq: int
    attempt: int
    seconds: float
    kind: str
    holder: str


class UnservedWorkflow(msgspec.Struct, kw_only=True):
    """A workflow that no daemon has any more although others run. `ms`: for how long; `open`: its runs that have not
    ended, as the views count them."""

    name: str
    ms: int
    open: int


class WorkerRow(msgspec.Struct, kw_only=True):
    """A worker that lives, as its last heartbeat says."""

    name: str
    host: str = ""
    pid: int = 0
    started: int = 0
    """The server's clock, ms."""
    queues: list[str] = []
    concurrency: int = 0
    """Steps that it runs at once, at most."""
    running: int = 0
    """Attempts that it has."""
    draining: bool = False
    version: str = ""
    beat_age: float = 0.0
    """Seconds since its heartbeat was sent, by the server's clock."""
    impaired: dict[str, str] = {}
    """Partitions that the server refuses it: `partition 3 of queue gpu` -> reason."""
    blocked: list[BlockedLine] = []
    """The lines that have blocked its event loop within the last ten minutes."""


class QuarantineRow(msgspec.Struct, kw_only=True):
    """A message in the quarantine. `at`: since when, ms on the server's clock."""

    id: str
    run_id: str
    kind: str
    at: int
    reason: str


class Quarantined(msgspec.Struct, kw_only=True):
    """Messages that are in the quarantine now: what was redriven or dropped isn't. `latest`: the newest 20."""

    count: int = 0
    latest: list[QuarantineRow] = []


class NamespaceStatus(msgspec.Struct, kw_only=True):
    """`views`: merged and rendered, see `views/registry.py`. `oldest` rows: [run id, workflow, started ms]."""

    namespace: str
    as_of: int
    """The daemons' clock, ms; the server's if there are none."""
    server: Server | None = None
    daemons: list[DaemonRow] = []
    shards_total: int = 0
    shards_unowned: int = 0
    shards: list[Shard] = []
    """Empty: not read."""
    queues: list[Queue] = []
    workers: list[WorkerRow] = []
    silent: list[SilentStep] = []
    """Steps that may hang, the longest silent first; of each process the first ones only."""
    silent_steps: int = 0
    """How many these are in all."""
    storage_waits: list[StorageWait] = []
    """Runs that wait for storage, the longest first; of each daemon the first ones only."""
    hibernating: int = 0
    """Of the running runs those that were moved out of the server's memory."""
    unserved: list[UnservedWorkflow] = []
    """Workflows that no daemon has any more and that have open runs, the most first."""
    paused: dict[str, Pause] = {}
    """The workflows that are paused, by name."""
    groups: list[SubscriberGroup] = []
    """By name; some seconds old."""
    views: dict[str, Any] = {}
    views_as_of: int = 0
    """When the views were merged, ms; 0: never."""
    oldest: list[tuple[str, str, int]] = []
    oldest_waits: dict[str, list[Wait]] = {}
    """What the oldest runs wait for, by run id, of those that are still open."""
    app_views: list[ViewReading] = []
    """Views of apps, by name, each with five keys of its newest window."""
    quarantine: Quarantined | None = None
    """None: not read. The view `quarantine` counts all that have ever been there."""
    undelivered: int = 0
    """Deliveries of triggers that are in their quarantine."""
    triggers: list[ServedTrigger] = []
    """Those that processes serve, or have served within a day, by name."""
    warnings: list[str] = []
    """What can't be shown, and why."""

    def view(self, name: str) -> dict[str, Any]:
        """A view as rendered; empty when it was never merged."""
        return self.views.get(name) or {}


# --- from heartbeats ------------------------------------------------------------------------------------------------


def daemon_from(
    member: str,
    heartbeat: Heartbeat,
    *,
    beat_age: float | None = None,
    before: Heartbeat | None = None,
    elapsed: float = 0.0,
) -> DaemonRow:
    """A row for a member's heartbeat; with the one of `elapsed` seconds `before`, also its steps/s and CPU share."""
    row = DaemonRow(id=member, heartbeat=heartbeat, beat_age=beat_age)
    if before is not None and elapsed > 0 and before.started == heartbeat.started:
        row.steps_per_s = max(0.0, (heartbeat.steps - before.steps) / elapsed)
        row.cpu_percent = max(0.0, 100 * (heartbeat.cpu - before.cpu) / elapsed)
    return row


def shards_from(heartbeats: Mapping[str, Heartbeat], total: int, alive: Iterable[str] | None = None) -> list[Shard]:
    """Who owns which shard according to the members; members that are not `alive` own nothing."""
    owners = {
        number: member
        for member in (heartbeats if alive is None else alive)
        if member in heartbeats
        for number in heartbeats[member].shards
    }
    return [Shard(number=number, owner=owners.get(number, "")) for number in range(total)]


def storage_waits_from(daemons: Iterable[Heartbeat]) -> list[StorageWait]:
    """The runs that wait for storage at these daemons, the longest first."""
    return sorted((wait for beat in daemons for wait in beat.storage_waits), key=lambda wait: -wait.seconds)


def silent_from(daemons: Mapping[str, Heartbeat], workers: Iterable[WorkerHeartbeat]) -> tuple[list[SilentStep], int]:
    """The silent steps of these daemons and workers, which live, the longest first; and how many these are in all."""
    told = [("daemon", beat.name or name, beat.silent, beat.silent_steps) for name, beat in daemons.items()]
    told += [("worker", one.name, one.beats, one.silent_steps) for one in workers]
    found = [
        SilentStep(
            name=beat.name,
            run_id=beat.run_id,
            seq=beat.seq,
            attempt=beat.attempt,
            seconds=beat.age,
            kind=kind,
            holder=holder,
        )
        for kind, holder, beats, _ in told
        for beat in beats
        if beat.silent
    ]
    return sorted(found, key=lambda step: (-step.seconds, step.run_id)), sum(count for *_, count in told)


# --- as JSON ----------------------------------------------------------------------------------------------------------

_NOT_PRINTED = frozenset({"started", "folds", "silent", "storage_waits"})
_PRINTED_AS: dict[str, tuple[str, Callable[[DaemonRow], object]]] = {
    "name": ("name", lambda row: row.name),
    "shards": ("shards", lambda row: len(row.heartbeat.shards)),
    "steps": ("steps_per_s", lambda row: row.steps_per_s),
    "cpu": ("cpu_percent", lambda row: row.cpu_percent),
    "beat": ("beat_age", lambda row: row.beat_age),
}
"""Fields of a heartbeat that are printed in another form: key and value. All others are printed as they are."""


def status_json(status: NamespaceStatus) -> dict[str, Any]:
    """What `status --json` prints: the tree as it is, with each daemon as one flat object."""
    return msgspec.to_builtins(status) | {"daemons": [_daemon_json(row) for row in status.daemons]}


def _daemon_json(row: DaemonRow) -> dict[str, object]:
    figures: dict[str, object] = {"id": row.id}
    for field, value in msgspec.to_builtins(row.heartbeat).items():
        if field in _PRINTED_AS:
            key, value_of = _PRINTED_AS[field]
            figures[key] = value_of(row)
        elif field not in _NOT_PRINTED:
            figures[field] = value
    return figures
