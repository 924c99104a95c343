"""The only module that names keys.

Every key of a shard has the hash tag `{<ns>/<shard>}`, so a script's keys share one slot; a queue has a partition in
each shard, with the shard's tag; what belongs to the whole namespace has the tag `{<ns>}`. No name has a slash, so no
tag is that of another namespace, and the patterns `sf:{<ns>}:*` and `sf:{<ns>/*` match this namespace's keys and no
others.
Must not: talk to the server.
Called by: kernel, connection, client, owner, worker, CLI.
"""

from __future__ import annotations

import zlib

BUCKETS = 128
"""Of a shard, for what is left of the runs that were moved out of memory."""


def bucket_of(run_id: str) -> str:
    """Two hexadecimal digits: the high bits of the hash whose low ones say in which shard the run is."""
    return f"{zlib.crc32(run_id.encode()) >> 25:02x}"


class ShardKeys:
    """The keys of one shard. The fixed ones are attributes, built once; the others are methods."""

    __slots__ = (
        "agenda",
        "details",
        "done",
        "inbox",
        "kept",
        "log",
        "number",
        "outbox",
        "owner",
        "poison",
        "positions",
        "prefix",
        "run_prefix",
        "seen",
        "steps",
        "turns",
        "views",
        "waiting",
    )

    def __init__(self, namespace: str, number: int) -> None:
        self.number = number
        prefix = f"sf:{{{namespace}/{number}}}:"
        self.prefix = prefix
        self.run_prefix = f"{prefix}run:"
        self.inbox = f"{prefix}inbox"
        """Stream: messages that are not committed yet. Also a sharded pub/sub channel: who adds one rings there."""
        self.kept = f"{prefix}kept"
        """String: how many messages of the inbox its owner has read, and which was the last; they stay there until
        they are committed."""
        self.waiting = f"{prefix}waiting"
        """Sorted set by their turn of the ids of runs whose starts wait: their inputs are in their records."""
        self.turns = f"{prefix}turns"
        """Sorted set: `t/<tenant>` or `w/<workflow>` -> the turn of its last start; empty: the turn that the owner has
        reached."""
        self.log = f"{prefix}log"
        """Stream: one entry per commit; its fields are run ids, its values transitions, without large payloads."""
        self.agenda = f"{prefix}agenda"
        """Sorted set of run ids: score -1 while the owner runs their steps, else the ms when the run is due."""
        self.outbox = f"{prefix}outbox"
        """Stream: messages for other shards; its ids are `<epoch>-<number>`."""
        self.owner = f"{prefix}owner"
        """Hash: token, holder, clock; of the owner before: delivered (the last message that it had read), final
        (its last commit); of the last commit: commit (id), committed (clock), log (entry); code: the fingerprint of the
        code that all runs were last checked with."""
        self.seen = f"{prefix}seen"
        """Hash: source (shard or client) -> last accepted number."""
        self.poison = f"{prefix}poison"
        """Stream: quarantined messages, with the reason."""
        self.steps = f"{prefix}steps"
        """Hash: `<run id>/<seq>` of attempts that a former owner still runs -> its member id, ms of the run's start,
        attempt, and wanted or reported."""
        self.details = f"{prefix}details"
        """Hash: `<run id>/<seq>` -> ms of the run's start, a space, and the details that the step reported last with
        `sf.heartbeat`."""
        self.views = f"{prefix}views"
        """Hash: offset, partial, base_offset, base, base_at (when it was stored), since (bytes logged since), trim,
        trimming, forget (up to where the log is trimmed), removed (how many entries of it that were), oldest."""
        self.positions = f"{prefix}positions"
        """Hash: group of subscribers -> its identity, the log entry up to which it has had all, how many entries that
        are, and the token and id of the consumer that has this shard; `<group>/lost` -> what was trimmed before."""
        self.done = f"{prefix}done"
        """Sharded pub/sub channel (not a key): outcomes of runs and answers to asks, as they are committed."""

    def run(self, run_id: str) -> str:
        """List: header, state (the input, while the start waits), transitions."""
        return self.run_prefix + run_id

    def index(self, status: str, workflow: str) -> str:
        """Sorted set of run ids by the ms of their last change of status; under `running`, where pending runs are, too,
        by that of their start."""
        return f"{self.prefix}index:{status}:{workflow}"

    def tenant(self, tenant: str) -> str:
        """Sorted set of a tenant's run ids by start, in any status. Runs without a tenant are in no such set."""
        return f"{self.prefix}index:tenant:{tenant}"

    def attribute(self, name: str, value: str) -> str:
        """Sorted set by start of the runs that have the attribute; `value` is its `attributes.value_text`."""
        return f"{self.prefix}index:attribute:{name}:{value}"

    def published(self, run_id: str) -> str:
        """Hash: key -> the newest value that the run published."""
        return f"{self.prefix}published:{run_id}"

    def asleep(self, run_id: str) -> str:
        """Hash, the bucket of runs that were moved out of memory: run id -> when and where it goes on
        (`lua/shared/asleep.lua`)."""
        return f"{self.prefix}asleep:{bucket_of(run_id)}"

    def bucket(self, name: str) -> str:
        """`asleep` by the name of the bucket."""
        return f"{self.prefix}asleep:{name}"

    def chunks(self, run_id: str) -> str:
        """Hash that expires: what the run's steps have emitted. Also a sharded pub/sub channel: who appends rings
        there."""
        return f"{self.prefix}chunks:{run_id}"

    def app_view(self, name: str) -> str:
        """Hash: `state/<version>` -> the log entry up to which a view of an app counts here, and what belongs to it;
        `window/<version>/<start>` -> its cells in one window (`daemon/view_parts.py`)."""
        return f"{self.prefix}view:{name}"

    def answer(self, ask_id: str) -> str:
        """String that expires after 15 minutes: the answer to an ask, for a client that missed the notification."""
        return f"{self.prefix}answer:{ask_id}"

    def known(self, digest: str) -> str:
        """String that expires: the run that has the message of an idempotency id, by the ms of that run's start."""
        return f"{self.prefix}known:{digest}"


class QueueKeys:
    """The keys of one partition of a queue: that of a shard, whose hash tag they have."""

    __slots__ = ("details", "steps", "stream")

    def __init__(self, namespace: str, queue: str, shard: int) -> None:
        prefix = f"sf:{{{namespace}/{shard}}}:queue:{queue}:"
        self.stream = f"{prefix}stream"
        """Stream: attempts that wait for a worker or that a worker has claimed; read by a consumer group. Also a
        sharded pub/sub channel: who adds one rings there."""
        self.steps = f"{prefix}steps"
        """Hash: `<run id>/<seq>` -> current entry, ms of the run's start, attempt, and wanted or revoked."""
        self.details = f"{prefix}details"
        """Hash: entry -> the details that its step reported last with `sf.heartbeat`; and the `clock` of the last look
        for expired claims."""


class NamespaceKeys:
    """The keys of a whole namespace, and those of its shards and queues (built when first used)."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.prefix = f"sf:{{{namespace}}}:"
        self.meta = f"{self.prefix}meta"
        """Hash: shards, partition, schema, identity, durability, archive, large_payload."""
        self.members = f"{self.prefix}members"
        """Hash: member id -> its last heartbeat, JSON."""
        self.workers = f"{self.prefix}workers"
        """Hash: worker's name -> its last heartbeat, JSON (`workers.py`)."""
        self.ended = f"{self.prefix}ended"
        """Hash: name of a worker whose process has died -> its last heartbeat, until its claims have expired."""
        self.fence = f"{self.prefix}fence"
        """String, empty: written before a wait until the server's writes are safe (`durability.py`)."""
        self.workflows = f"{self.prefix}workflows"
        """Hash: workflow name -> what its app registered, JSON."""
        self.served = f"{self.prefix}served"
        """Hash: workflow name -> when a daemon has last had it, ms of the server's clock."""
        self.paused = f"{self.prefix}paused"
        """Hash: `queue:<name>`, `workflow:<name>` -> who has paused it, when and why, JSON (`pauses.py`)."""
        self.groups = f"{self.prefix}groups"
        """Hash: group of subscribers -> since when there is one, and from where it began, JSON (`client/groups.py`)."""
        self.undelivered = f"{self.prefix}undelivered"
        """Hash: trigger and digest of a delivery that could not be processed -> the delivery and why, MessagePack."""
        self.files = f"{self.prefix}files"
        """Hash: `<trigger>/<path>` of each file that was delivered -> its size and time of change."""
        self.triggers = f"{self.prefix}triggers"
        """Hash: process that serves triggers -> which, and what is wrong, MessagePack (`store/served_triggers.py`)."""
        self.queues = f"{self.prefix}queues"
        """Hash: queue name -> 1."""
        self.app_views = f"{self.prefix}app-views"
        """Hash: name of an app's view -> that view, merged of all shards, JSON."""
        self.app_view_heads = f"{self.prefix}app-view-heads"
        """Hash: the same name -> as much of that view as the status shows."""
        self._shards: dict[int, ShardKeys] = {}
        self._queues: dict[tuple[str, int], QueueKeys] = {}

    def suspects(self, member: str) -> str:
        """String that expires after a day: what a daemon or worker runs that may end its process (`steps/suspects.py`),
        encoded."""
        return f"{self.prefix}suspects:{member}"

    def consumers(self, group: str) -> str:
        """Hash: id of a group's consumer -> its last heartbeat, JSON (`client/consumer.py`)."""
        return f"{self.prefix}consumers:{group}"

    def view(self, name: str) -> str:
        """String: a merged view, JSON."""
        return f"{self.prefix}view:{name}"

    def shard(self, number: int) -> ShardKeys:
        keys = self._shards.get(number)
        if keys is None:
            keys = self._shards[number] = ShardKeys(self.namespace, number)
        return keys

    def queue(self, name: str, shard: int) -> QueueKeys:
        keys = self._queues.get((name, shard))
        if keys is None:
            keys = self._queues[name, shard] = QueueKeys(self.namespace, name, shard)
        return keys


def fence_near(key: str) -> str:
    """String, empty, in a key's slot: written before a wait until its server's writes are safe (`durability.py`)."""
    return f"{key.partition('}')[0]}}}:fence"


def absent_near(key: str) -> str:
    """Never written: read to see whether the slot of a key is at a server, and not being moved (`durability.py`)."""
    return f"{key.partition('}')[0]}}}:absent"
