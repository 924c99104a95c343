"""The status of a namespace, collected from the server in a few pipelines.

Owns: what is read for it, who counts as alive, rates between two samples, and moving an old rates view up to now.
Must not: draw (`screen/`), change anything. Called by: `status`, `dev`, `demo`.

    collect:  TIME, INFO, members, workers, queue names, triggers, merged views,                     (one pipeline to
              each shard's owner, inbox and quarantine                                                 each server)
              if there are queues, what is in them; if there are quarantined messages, the newest   (one more for each)
                        the headers of the oldest open runs, and the records of those that have changed
    with `shards=True` the log entries that each shard's views don't cover      (two, if there are any)

A heartbeat is a counter without a time (wall clocks jump), so only a second sample shows whether a daemon is alive:
`collect` keeps samples of each member's heartbeat, and `settled` collects until every heartbeat has changed or is late.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import anyio
import msgspec

from streamflow.client.client import Client
from streamflow.client.groups import Group
from streamflow.client.quarantine import message_of
from streamflow.client.served import unserved_ms
from streamflow.client.views import readings
from streamflow.errors import StoreError, StoreUnavailable
from streamflow.model.codec import DECODE_ERRORS
from streamflow.model.waits import Wait
from streamflow.status.model import (
    DaemonRow,
    NamespaceStatus,
    Quarantined,
    QuarantineRow,
    Server,
    Shard,
    SubscriberGroup,
    UnservedWorkflow,
    WorkerRow,
    daemon_from,
    shards_from,
    silent_from,
    storage_waits_from,
)
from streamflow.status.queues import queues_of
from streamflow.store.connection import Call
from streamflow.store.kernel import QuarantineEntry
from streamflow.store.namespace import Namespace
from streamflow.store.pauses import paused_queues, paused_workflows, read_pauses
from streamflow.store.queues import clock_of
from streamflow.store.served_triggers import decode_reports, rows_of, together
from streamflow.store.servers import facts_of, fullness, key_of_each, memory_of, send_to_each
from streamflow.store.workers import WorkerHeartbeat, live_workers
from streamflow.text import plural
from streamflow.views.registry import AVERAGE_S, LATEST, SETTLE_S, VIEWS
from streamflow.views.retries import retries_at
from streamflow.wire import Heartbeat, decode_heartbeat, stream_order

MAX_SHARDS_READ = 1024
"""With more shards than this, owners are taken from the daemons' heartbeats, and inboxes are left out."""
QUARANTINES_READ = 64
"""Shards of whose quarantined messages the newest are read."""
COUNT_LAG_TO = 100
"""The lag of a shard is counted up to this many log entries."""
RATE_SECONDS = 5.0
"""Rates of daemons are averages over about this long: their heartbeats come in steps of half a second."""
FRESH_SECONDS = 3
"""A rates view that is not older than this is shown as it is: its last seconds are unknown rather than zero."""
SETTLE_EVERY = 0.15
"""Seconds between two samples while it isn't known yet who is alive."""
GROUPS_SECONDS = 5.0
"""How old the figures of groups of subscribers may get: they are asked of each shard."""
PATIENCE = 2.0
"""Seconds to wait for the server's answer. Then `collect` fails; a live screen shows the error and tries again."""

_VIEW_NAMES = (*(view.name for view in VIEWS if view.name != "newest"), "oldest", "attention", "sizes")
_decode_view = msgspec.json.Decoder(dict[str, Any]).decode


class _Sample(NamedTuple):
    """A member's heartbeat, and when it was first read (monotonic, s)."""

    at: float
    raw: bytes
    heartbeat: Heartbeat


_WEAKEST_FIRST = ("off", "no", "on", "everysec", "always")


class StatusCollector:
    """Collects one namespace's status repeatedly. A daemon without a heartbeat for `dead_after` seconds owns nothing.

    `shards`: also count the lag of each shard.
    """

    def __init__(self, client: Client, *, shards: bool = False, dead_after: float = 2.0) -> None:
        self._client = client
        self._with_lag = shards
        self._dead_after = dead_after
        self._samples: dict[str, deque[_Sample]] = {}
        """Of each member, one for each change of its heartbeat, within about the last `RATE_SECONDS`."""
        self._changed: set[str] = set()
        """Members whose heartbeat has changed between two samples."""
        self._waits: dict[str, tuple[bytes, list[Wait]]] = {}
        """Of each of the oldest runs its header, and what it waited for then: read again when that changes."""
        self._groups: tuple[float, list[SubscriberGroup]] = (-math.inf, [])
        """When they were read (monotonic s), and what was read."""
        self._hidden: set[str] = set()
        """INFO and CONFIG, if the server doesn't allow them: asked once, since each try is an entry in its ACL log."""

    async def settled(self) -> NamespaceStatus:
        """A status without earlier samples: waits until every member's heartbeat has changed, or is late."""
        began = time.monotonic()
        status = await self.collect()
        while not self._samples.keys() <= self._changed and time.monotonic() - began <= self._dead_after:
            await anyio.sleep(SETTLE_EVERY)
            status = await self.collect()
        return status

    async def collect(self) -> NamespaceStatus:
        """Raises `StoreError`."""
        client = self._client
        namespace = await client.read_namespace()
        keys = client.keys
        shards = [keys.shard(n) for n in range(namespace.shards)] if namespace.shards <= MAX_SHARDS_READ else []
        holders = [keys.shard(n).owner for n in range(min(namespace.shards, MAX_SHARDS_READ))]
        asked = await key_of_each(client.store, holders, PATIENCE)
        infos = [] if "INFO" in self._hidden else [(key, Call.plain("INFO", near=key)) for key in asked]
        policies = [
            (key, Call.plain("CONFIG", "GET", "appendfsync", near=key))
            for key in ([] if "CONFIG" in self._hidden else asked)
        ]
        calls: list[tuple[str, Call[Any]]] = [
            (keys.members, Call.plain("TIME", near=keys.members)),
            (keys.members, Call.plain("HGETALL", keys.members)),
            (keys.workers, Call.plain("HGETALL", keys.workers)),
            (keys.queues, Call.plain("HKEYS", keys.queues)),
            (keys.paused, read_pauses(keys)),
            (keys.served, Call.plain("HGETALL", keys.served)),
            (keys.undelivered, Call.plain("HLEN", keys.undelivered)),
            (keys.triggers, Call.plain("HGETALL", keys.triggers)),
            (keys.app_view_heads, Call.plain("HGETALL", keys.app_view_heads)),
            (keys.view(_VIEW_NAMES[0]), Call.plain("MGET", *(keys.view(name) for name in _VIEW_NAMES))),
            *infos,
            *policies,
            *((shard.owner, Call.plain("HMGET", shard.owner, "holder", "log")) for shard in shards),
            *((shard.inbox, Call.plain("XLEN", shard.inbox)) for shard in shards),
            *((shard.poison, Call.plain("XLEN", shard.poison)) for shard in shards),
        ]
        (
            clock,
            members,
            workers,
            queues,
            pauses,
            served,
            undelivered,
            triggers,
            heads,
            merged,
            *rest,
        ) = await send_to_each(client.store, calls, PATIENCE)
        for answer in (clock, members, merged):
            if isinstance(answer, StoreError):
                raise answer
        info, rest = rest[: len(infos)], rest[len(infos) :]
        fsync, rest = rest[: len(policies)], rest[len(policies) :]
        owners, rest = rest[: len(shards)], rest[len(shards) :]
        inboxes, quarantines = rest[: len(shards)], rest[len(shards) :]
        self._hidden |= {
            name for name, answers in (("INFO", info), ("CONFIG", fsync)) if any(map(_is_refused, answers))
        }
        status = NamespaceStatus(
            namespace=client.namespace,
            as_of=clock_of(clock),
            server=None if "INFO" in self._hidden else _server(info, [] if "CONFIG" in self._hidden else fsync),
            shards_total=namespace.shards,
        )
        if "INFO" in self._hidden:
            status.warnings.append("the server doesn't allow INFO: its version, memory and persistence aren't shown")
        if status.server is not None and (away := status.server.away):
            status.warnings.append(
                f"{away} of {plural(status.server.servers, 'server')} {'does' if away == 1 else 'do'}n't answer"
            )
        live = [] if isinstance(workers, StoreError) else live_workers(workers, status.as_of)
        status.workers = [_worker(worker, status.as_of) for worker in live]
        self._put_members(status, cast("Mapping[bytes, bytes]", members))
        alive = self._alive()
        beats = {row.id: row.heartbeat for row in status.daemons if row.id in alive}
        status.silent, status.silent_steps = silent_from(beats, live)
        status.storage_waits = storage_waits_from(beats.values())
        status.hibernating = sum(beat.asleep for beat in beats.values())
        gone = {} if isinstance(served, StoreError) else unserved_ms(served, status.as_of)
        status.as_of += self._ahead(status)
        _put_views(status, cast("Sequence[bytes | None]", merged))
        status.unserved = _unserved(gone, status)
        self._put_shards(status, namespace, owners, inboxes)
        names = [] if isinstance(queues, StoreError) else [name.decode(errors="replace") for name in queues]
        paused = {} if isinstance(pauses, StoreError) else paused_queues(pauses)
        status.paused = {} if isinstance(pauses, StoreError) else paused_workflows(pauses)
        status.queues = await queues_of(client, [*{*names, *paused}], paused, namespace.shards, PATIENCE)
        status.app_views = [] if isinstance(heads, StoreError) else readings(heads)
        status.oldest_waits = await self._oldest_waits(namespace, [run_id for run_id, _, _ in status.oldest])
        status.groups = await self._read_groups(status.as_of)
        status.undelivered = 0 if isinstance(undelivered, StoreError) else undelivered
        if not isinstance(triggers, StoreError):
            status.triggers = together(rows_of(decode_reports(triggers.items()), clock_of(clock)))
        if shards:
            status.quarantine = await self._quarantined(quarantines)
        if self._with_lag and shards:
            await self._put_lag(status, owners)
        status.shards_unowned = sum(not shard.owner for shard in status.shards)
        return status

    async def _read_groups(self, now_ms: int) -> list[SubscriberGroup]:
        """What can't be read stays as it was."""
        at, found = self._groups
        if time.monotonic() - at >= GROUPS_SECONDS:
            try:
                groups = await self._client.groups()
            except StoreError:
                return found
            found = [_group(group, now_ms) for group in groups]
            self._groups = time.monotonic(), found
        return found

    # --- members ------------------------------------------------------------------------------------------------------

    def _put_members(self, status: NamespaceStatus, members: Mapping[bytes, bytes]) -> None:
        now = time.monotonic()
        current = {member.decode(errors="replace"): raw for member, raw in members.items()}
        for member in self._samples.keys() - current.keys():
            del self._samples[member]
        self._changed &= current.keys()
        for member, raw in current.items():
            samples = self._samples.setdefault(member, deque())
            if not samples or samples[-1].raw != raw:
                if samples:
                    self._changed.add(member)
                samples.append(_Sample(now, raw, decode_heartbeat(raw)))
            while len(samples) > 2 and now - samples[1].at >= RATE_SECONDS:
                samples.popleft()
        status.daemons = [self._daemon(member, now) for member in sorted(current)]

    def _daemon(self, member: str, now: float) -> DaemonRow:
        samples = self._samples[member]
        first, last = samples[0], samples[-1]
        age_known = member in self._changed or now - last.at > self._dead_after
        return daemon_from(
            member,
            last.heartbeat,
            beat_age=now - last.at if age_known else None,
            before=first.heartbeat if first is not last else None,
            elapsed=last.at - first.at,
        )

    def _ahead(self, status: NamespaceStatus) -> int:
        """By how many ms the clocks of the daemons that live are ahead of the server's: all times are on theirs."""
        alive = self._alive()
        ahead = [row.heartbeat.ahead for row in status.daemons if row.id in alive and row.heartbeat.clock]
        return round(statistics.median(ahead)) if ahead else 0

    def _alive(self) -> set[str]:
        now = time.monotonic()
        return {member for member, samples in self._samples.items() if now - samples[-1].at <= self._dead_after}

    # --- shards -------------------------------------------------------------------------------------------------------

    def _put_shards(
        self, status: NamespaceStatus, namespace: Namespace, owners: Sequence[Any], inboxes: Sequence[Any]
    ) -> None:
        alive = self._alive()
        reported: list[Shard] = []
        if not owners or any(isinstance(owner, StoreUnavailable) for owner in owners):
            heartbeats = {member: samples[-1].heartbeat for member, samples in self._samples.items()}
            reported = shards_from(heartbeats, namespace.shards, alive)
        if not owners:
            status.shards = reported
            return
        for number, (owner, inbox) in enumerate(zip(owners, inboxes, strict=True)):
            if isinstance(owner, StoreUnavailable):
                holder = reported[number].owner
            else:
                holder = "" if isinstance(owner, StoreError) else (owner[0] or b"").decode(errors="replace")
            status.shards.append(
                Shard(
                    number=number,
                    owner=holder if holder in alive else "",
                    inbox=0 if isinstance(inbox, StoreError) else int(inbox),
                )
            )

    async def _quarantined(self, counts: Sequence[Any]) -> Quarantined:
        found = Quarantined(count=sum(count for count in counts if not isinstance(count, StoreError)))
        if not found.count:
            return found
        kernel, keys = self._client.kernel, self._client.keys
        asked = [number for number, count in enumerate(counts) if not isinstance(count, StoreError) and count]
        del asked[QUARANTINES_READ:]
        calls = [(keys.shard(number).poison, kernel.read_quarantine(number, "", LATEST)) for number in asked]
        pages = await send_to_each(self._client.store, calls, PATIENCE)
        for number, page in zip(asked, cast("Sequence[list[QuarantineEntry] | StoreError]", pages), strict=True):
            for entry in [] if isinstance(page, StoreError) else page:
                message = message_of(number, entry)
                at = stream_order(entry.entry)[0]
                row = QuarantineRow(
                    id=message.id, run_id=message.run_id, kind=message.kind, at=at, reason=message.reason
                )
                found.latest.append(row)
        found.latest.sort(key=lambda row: row.at, reverse=True)
        del found.latest[LATEST:]
        return found

    async def _oldest_waits(self, namespace: Namespace, run_ids: Sequence[str]) -> dict[str, list[Wait]]:
        """Their headers are read each time, and a record only when its header is another one."""
        keys, numbers = self._client.keys, {run_id: namespace.shard_of(run_id) for run_id in run_ids}
        places = [keys.shard(numbers[run_id]).run(run_id) for run_id in run_ids]
        calls = [(key, Call.plain("LINDEX", key, 0)) for key in places]
        answers = await send_to_each(self._client.store, calls, PATIENCE) if calls else []
        lines = {
            run_id: line
            for run_id, line in zip(run_ids, answers, strict=True)
            if line is not None and not isinstance(line, StoreError)
        }
        changed = [run_id for run_id, line in lines.items() if self._waits.get(run_id, (b"",))[0] != line]
        try:
            read = await self._client.wait_reader.of_each([(numbers[run_id], run_id) for run_id in changed])
        except StoreUnavailable:  # a server has gone since it gave the headers: they are read again with the next look
            return {}
        found = dict(zip(changed, [waits for waits, _ in read], strict=True))
        self._waits = {
            run_id: (line, found[run_id] if run_id in found else self._waits[run_id][1])
            for run_id, line in lines.items()
        }
        return {run_id: waits for run_id, (_, waits) in self._waits.items() if waits}

    async def _put_lag(self, status: NamespaceStatus, owners: Sequence[Any]) -> None:
        """Log entries that the stored views don't cover, counted up to `COUNT_LAG_TO`."""
        keys = [self._client.keys.shard(shard.number) for shard in status.shards]
        store = self._client.store
        offsets = await send_to_each(
            store, [(shard.views, Call.plain("HGET", shard.views, "offset")) for shard in keys], PATIENCE
        )
        behind: list[tuple[Shard, tuple[str, Call[Any]]]] = []
        for shard, key, owner, offset in zip(status.shards, keys, owners, offsets, strict=True):
            last = None if isinstance(owner, StoreError) else owner[1]
            if not last or isinstance(offset, StoreError) or last == offset:
                continue
            start = f"({offset.decode()}" if offset else "-"
            call = Call.plain("XRANGE", key.log, start, "+", "COUNT", COUNT_LAG_TO, parse=len)
            behind.append((shard, (key.log, call)))
        if behind:
            counts = await send_to_each(store, [call for _, call in behind], PATIENCE)
            for (shard, _), count in zip(behind, counts, strict=True):
                shard.lag = 0 if isinstance(count, StoreError) else count


def _server(infos: Sequence[Any], policies: Sequence[Any]) -> Server | None:
    """Of what each server has answered to INFO and CONFIG GET; None if none has. Sums, and of what isn't the same
    everywhere the worst."""
    told = [facts for info in infos if (facts := facts_of(info))]
    if not told:
        return None
    memory = [memory_of(facts) for facts in told]
    versions = sorted({str(facts.get("valkey_version") or facts.get("redis_version") or "") for facts in told})
    aof = [_aof(facts, policies) for facts in told]
    return Server(
        product="valkey" if "valkey_version" in told[0] else "redis",
        version="/".join(versions),
        memory=sum(used for used, _ in memory),
        maxmemory=sum(limit for _, limit in memory) if all(limit for _, limit in memory) else 0,
        aof=min(aof, key=lambda policy: _WEAKEST_FIRST.index(policy) if policy in _WEAKEST_FIRST else 0),
        ops_per_s=sum(float(facts.get("instantaneous_ops_per_sec", 0)) for facts in told),
        servers=len(infos),
        away=len(infos) - len(told),
        fullest=round(max(fullness(one)[0] for one in memory), 3),
    )


def _aof(facts: Mapping[str, Any], policies: Sequence[Any]) -> str:
    if not int(facts.get("aof_enabled", 0)):
        return "off"
    known = {_pairs(policy).get("appendfsync", "on") for policy in policies if not isinstance(policy, StoreError)}
    return min(known or {"on"}, key=lambda policy: _WEAKEST_FIRST.index(policy) if policy in _WEAKEST_FIRST else 0)


def _is_refused(answer: Any) -> bool:
    return isinstance(answer, StoreError) and not isinstance(answer, StoreUnavailable)


def _pairs(reply: Any) -> dict[str, str]:
    """The answer to CONFIG GET; redis-py may have converted it to a dict already."""
    if not isinstance(reply, dict):
        reply = dict(zip(reply[::2], reply[1::2], strict=False))
    return {_text(name): _text(value) for name, value in cast("dict[Any, Any]", reply).items()}


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


# --- views ----------------------------------------------------------------------------------------------------------


def _worker(worker: WorkerHeartbeat, clock: int) -> WorkerRow:
    return WorkerRow(
        name=worker.name,
        host=worker.host,
        pid=worker.pid,
        started=worker.started,
        queues=worker.queues,
        concurrency=worker.concurrency,
        running=worker.running,
        draining=worker.draining,
        version=worker.version,
        beat_age=max(0.0, worker.age(clock)),
        impaired=worker.impaired,
        blocked=worker.blocked,
    )


def _group(group: Group, now_ms: int) -> SubscriberGroup:
    return SubscriberGroup(
        name=group.name,
        waiting=group.waiting,
        behind_ms=0 if group.oldest is None else max(0, now_ms - round(group.oldest.timestamp() * 1000)),
        lost=group.lost,
        lost_ms=None if group.lost_at is None else max(0, now_ms - round(group.lost_at.timestamp() * 1000)),
        consumers=len(group.consumers),
        trouble=next((one.trouble for one in group.consumers if one.trouble), ""),
    )


def _unserved(gone: Mapping[str, int], status: NamespaceStatus) -> list[UnservedWorkflow]:
    found: list[UnservedWorkflow] = []
    for name, counts in status.view("runs").get("workflows", {}).items():
        count = counts["running"] + counts["stuck"]
        if name in gone and count > 0:
            found.append(UnservedWorkflow(name=name, ms=gone[name], open=count))
    return sorted(found, key=lambda one: (-one.open, one.name))


def _put_views(status: NamespaceStatus, merged: Sequence[bytes | None]) -> None:
    for name, data in zip(_VIEW_NAMES, merged, strict=True):
        if data is None:
            continue
        try:
            stored = _decode_view(data)
            as_of, value = int(stored["as_of"]), stored["value"]
        except (*DECODE_ERRORS, KeyError, TypeError):
            continue  # written by another version: shown as if there were no such view
        if name != "sizes":  # which isn't merged, but looked at in between
            status.views_as_of = as_of
        if name == "oldest":
            status.oldest = [(run_id, workflow, started) for run_id, workflow, started in value]
        elif name == "rates":
            status.views[name] = rates_at(value, status.as_of)
        elif name == "retries":
            status.views[name] = retries_at(value, status.as_of)
        else:
            status.views[name] = value


def rates_at(rates: dict[str, Any], now_ms: int) -> dict[str, Any]:
    """The rates view moved up to now. If it is older than `FRESH_SECONDS`, nobody merges: rates since are zero."""
    late = now_ms // 1000 - SETTLE_S - int(rates["until"])
    if late <= FRESH_SECONDS:
        return rates
    lists: dict[str, list[int]] = {name: values for name, values in rates.items() if isinstance(values, list)}
    moved = {name: [*values[late:], *[0] * min(late, len(values))] for name, values in lists.items()}
    average = {name: sum(values[-AVERAGE_S:]) / AVERAGE_S for name, values in moved.items()}
    return {**rates, "until": rates["until"] + late, **moved, "average": average}
