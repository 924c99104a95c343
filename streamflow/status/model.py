"""What the status screen shows, as plain data: `status --json` prints `msgspec.to_builtins` of it.

Owns: the `NamespaceStatus` tree, and making its daemons and shards from the members' beats.
Must not: read anything or look at a clock. Called by: the status fetcher (makes it), `screen/layout.py` (draws it).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec


class Server(msgspec.Struct, kw_only=True):
    """The Redis or Valkey server. Memory in bytes; `maxmemory` 0: no limit. `aof`: everysec, always, no, or off."""

    product: str = "redis"
    version: str = ""
    memory: int = 0
    maxmemory: int = 0
    aof: str = ""
    ops_per_s: float = 0.0


class DaemonRow(msgspec.Struct, kw_only=True):
    """One member's last beat. Rates are `None` until two beats have been seen; `beat_age` is in seconds."""

    id: str = ""
    name: str
    shards: int = 0
    running: int = 0
    waiting: int = 0
    live: int = 0
    inbox: int = 0
    unfolded: int = 0
    steps_per_s: float | None = None
    rss: int = 0
    cpu_percent: float | None = None
    beat_age: float | None = None
    draining: bool = False
    version: str = ""


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


class NamespaceStatus(msgspec.Struct, kw_only=True):
    """`views`: merged and rendered, see `views/registry.py`. `oldest` rows: [run id, workflow, started ms]."""

    namespace: str
    as_of: int
    """Server clock, ms."""
    server: Server | None = None
    daemons: list[DaemonRow] = []
    shards_total: int = 0
    shards_unowned: int = 0
    shards: list[Shard] = []
    """Empty when nobody asked for each shard."""
    queues: list[Queue] = []
    views: dict[str, Any] = {}
    views_as_of: int = 0
    """When the views were merged, ms; 0: never."""
    oldest: list[tuple[str, str, int]] = []
    warnings: list[str] = []
    """Server settings that would lose data, and the like, in words."""


def daemon_from(
    member: str,
    beat: Mapping[str, Any],
    *,
    beat_age: float | None = None,
    before: Mapping[str, Any] | None = None,
    elapsed: float = 0.0,
) -> DaemonRow:
    """A daemon from its beat; with the beat of `elapsed` seconds `before`, also its steps/s and CPU share."""
    steps_per_s = cpu_percent = None
    if before is not None and elapsed > 0 and before.get("started") == beat.get("started"):
        steps_per_s = max(0.0, (beat.get("steps", 0) - before.get("steps", 0)) / elapsed)
        cpu_percent = max(0.0, 100 * (beat.get("cpu", 0.0) - before.get("cpu", 0.0)) / elapsed)
    return DaemonRow(
        id=member,
        name=str(beat.get("name") or member),
        shards=len(beat.get("shards", ())),
        running=beat.get("running", 0),
        waiting=beat.get("waiting", 0),
        live=beat.get("live", 0),
        inbox=beat.get("inbox", 0),
        unfolded=beat.get("unfolded", 0),
        steps_per_s=steps_per_s,
        rss=beat.get("rss", 0),
        cpu_percent=cpu_percent,
        beat_age=beat_age,
        draining=bool(beat.get("draining", False)),
        version=str(beat.get("version", "")),
    )


def shards_from(beats: Mapping[str, Mapping[str, Any]], total: int, alive: Iterable[str] | None = None) -> list[Shard]:
    """Who owns which shard by what the members say; members that are not `alive` own nothing."""
    owners = {
        number: member
        for member in (beats if alive is None else alive)
        for number in beats.get(member, {}).get("shards", ())
    }
    return [Shard(number=number, owner=owners.get(number, "")) for number in range(total)]
