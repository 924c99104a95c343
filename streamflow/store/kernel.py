"""One typed method a verb: from Python values to KEYS and ARGV, and from answers to values.

Owns: the order of keys and arguments (the headers in `lua/` are checked against it) and the answers' types.
Must not: send anything (`Store.send` does), decide anything.
Called by: owner, membership, relay, rollup, worker, client.

Each method returns a `Call`; many calls travel in one pipeline: `await store.send([kernel.commit(…), …])`.
`now` is the shard clock in ms for tests; None asks the server.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from streamflow.model.attributes import value_text
from streamflow.model.record import Header, Status
from streamflow.model.sharding import Partition
from streamflow.store.connection import Call
from streamflow.store.keys import NamespaceKeys, QueueKeys, ShardKeys

SCHEMA = 1
"""Version of keys, records and scripts; a namespace of another version is refused."""
WORKERS = "workers"
"""The consumer group of every queue partition; each worker process is a consumer."""
FRESH = b"-"
"""Before a state in a `RunWrite`. No snapshot begins so: it is an array of MessagePack."""


class Reply(enum.StrEnum):
    OK = "OK"
    DUP = "DUP"
    CONFLICT = "CONFLICT"
    FENCED = "FENCED"
    STALE = "STALE"


class Start(msgspec.Struct):
    run_id: str
    workflow: str
    tenant: str
    body: bytes


class Message(msgspec.Struct):
    """`kind`: signal, ask, cancel or terminate."""

    kind: str
    run_id: str
    body: bytes


class Delivery(msgspec.Struct):
    """A message from a shard's outbox. `number` is `<epoch>-<n>`; workflow, tenant and parent are for starts."""

    number: str
    kind: str
    run_id: str
    body: bytes
    workflow: str = ""
    tenant: str = ""
    parent: str = ""


class Offer(msgspec.Struct):
    """An attempt for a queue (kind `step`), or its revocation (`revoke`), from a shard's outbox. `created`: ms, as in
    the run's header; it tells the run from an earlier one of its id."""

    number: str
    kind: str
    run_id: str
    created: int
    seq: int
    attempt: int
    details: bytes
    body: bytes


class ClaimRef(msgspec.Struct, frozen=True):
    """An entry that a worker has. `step` is `<run id>/<seq>`; `told`: newest details of its step, empty for none."""

    entry: str
    step: str
    told: bytes = b""


class Dead(msgspec.Struct, frozen=True):
    """An entry whose worker fell silent, and what its step told last."""

    entry: str
    consumer: str
    run_id: str
    created: int
    seq: int
    attempt: int
    details: bytes


class Taken(msgspec.Struct):
    """`token`: ours when `code` is OK, else the present owner's (`holder`)."""

    code: Reply
    token: str
    clock: int
    holder: str


class Fired(msgspec.Struct):
    """`next`: ms when the next run is due, None when nothing waits."""

    code: Reply
    clock: int
    next: int | None
    due: list[str]


class Committed(msgspec.Struct):
    """`entry`: id of the log entry, empty when there was nothing to log; `conflicts`: run ids."""

    code: Reply
    clock: int
    entry: str
    conflicts: list[str]


class Folded(msgspec.Struct):
    code: Reply
    entries: int


class RunWrite(msgspec.Struct, array_like=True):
    """`state` empty: unchanged; `FRESH` before it: the history begins anew with this transition."""

    run_id: str
    expected: bytes
    header: bytes
    state: bytes
    transition: bytes


class Send(msgspec.Struct, array_like=True):
    number: str
    target: int
    kind: str
    run_id: str
    body: bytes


class Poison(msgspec.Struct, array_like=True):
    """`event`: the encoded transition with `MessageQuarantined` for the log."""

    message_id: str
    run_id: str
    reason: str
    event: bytes
    body: bytes


class Put(msgspec.Struct, array_like=True):
    """A value for a field of a hash; without `field` a string that is there for 15 minutes."""

    key: str
    field: str
    value: bytes


class Batch(msgspec.Struct):
    """All that one commit of one shard does. Moves: (run id, from key, to key, score), an empty key for none."""

    commit: str
    runs: list[RunWrite] = msgspec.field(default_factory=list[RunWrite])
    acks: list[str] = msgspec.field(default_factory=list[str])
    plans: list[tuple[str, int | None]] = msgspec.field(default_factory=list[tuple[str, int | None]])
    moves: list[tuple[str, str, str, int]] = msgspec.field(default_factory=list[tuple[str, str, str, int]])
    sends: list[Send] = msgspec.field(default_factory=list[Send])
    sent: list[str] = msgspec.field(default_factory=list[str])
    poisons: list[Poison] = msgspec.field(default_factory=list[Poison])
    puts: list[Put] = msgspec.field(default_factory=list[Put])
    news: bytes = b""


class Kernel:
    """The verbs of one namespace."""

    def __init__(self, keys: NamespaceKeys) -> None:
        self.keys = keys

    # --- the way in ---------------------------------------------------------------------------------------------------

    def start_runs(self, shard: int, starts: Sequence[Start], now: int | None = None) -> Call[list[bytes]]:
        """Answers for each run: empty (created) or the header of the run that has the id."""
        keys = self.keys.shard(shard)
        names = [keys.owner, keys.inbox]
        args: list[Any] = [_time(now)]
        for start in starts:
            names += self._listing_keys(keys, start.run_id, Status.RUNNING, start.workflow, start.tenant)
            args += (start.run_id, start.workflow, start.tenant, start.body)
        return Call("start_runs", names, args)

    def post_messages(
        self, shard: int, source: str, number: int, messages: Sequence[Message], now: int | None = None
    ) -> Call[str]:
        """Answers with a letter for each message: a (accepted), e (the run has ended), m (no such run)."""
        keys = self.keys.shard(shard)
        names = [keys.seen, keys.inbox, keys.owner]
        args: list[Any] = [source, number, _time(now)]
        for message in messages:
            names.append(keys.run(message.run_id))
            args += (message.kind, message.run_id, message.body)
        return Call("post_messages", names, args, bytes.decode)

    def report_outcome(self, shard: int, run_id: str, created: int, body: bytes) -> Call[str]:
        """Answers a (accepted), e (the run has ended) or m (no such run, or one that was created at another time)."""
        keys = self.keys.shard(shard)
        return Call("report_outcome", [keys.inbox, keys.run(run_id)], [run_id, created, body], bytes.decode)

    def deliver_messages(
        self, shard: int, source: int, deliveries: Sequence[Delivery], now: int | None = None
    ) -> Call[str]:
        """Answers with the last number that is accepted from the source shard."""
        keys = self.keys.shard(shard)
        names = [keys.seen, keys.inbox, keys.owner]
        args: list[Any] = [f"shard:{source}", _time(now)]
        for one in deliveries:
            names += self._listing_keys(keys, one.run_id, Status.RUNNING, one.workflow, one.tenant)
            args += (one.number, one.kind, one.run_id, one.workflow, one.tenant, one.parent, one.body)
        return Call("deliver_messages", names, args, bytes.decode)

    def peek_runs(self, shard: int, run_ids: Sequence[str]) -> Call[list[tuple[bytes, bytes]]]:
        """Answers for each run: header (empty when there is none) and last transition (empty while it is open)."""
        keys = self.keys.shard(shard)
        return Call("peek_runs", [keys.run(run_id) for run_id in run_ids], [], _pairs)

    # --- ownership ----------------------------------------------------------------------------------------------------

    def acquire_shard(
        self, shard: int, expected: str, nonce: str, holder: str, group: str, now: int | None = None
    ) -> Call[Taken]:
        keys = self.keys.shard(shard)
        return Call("acquire_shard", [keys.owner, keys.inbox], [expected, nonce, holder, group, _time(now)], _taken)

    def release_shard(self, shard: int, token: str) -> Call[Reply]:
        return Call("release_shard", [self.keys.shard(shard).owner], [token], lambda reply: Reply(reply[0].decode()))

    # --- the owner's work ---------------------------------------------------------------------------------------------

    def due_runs(self, shard: int, token: str, limit: int, now: int | None = None) -> Call[Fired]:
        keys = self.keys.shard(shard)
        return Call("due_runs", [keys.owner, keys.agenda], [token, _time(now), limit], _fired)

    def commit(self, shard: int, token: str, group: str, batch: Batch, now: int | None = None) -> Call[Committed]:
        keys = self.keys.shard(shard)
        indexes: dict[str, int] = {"": 0}
        move_args: list[Any] = []
        for run_id, source, target, score in batch.moves:
            move_args += (
                run_id,
                indexes.setdefault(source, len(indexes)),
                indexes.setdefault(target, len(indexes)),
                score,
            )
        del indexes[""]
        names = [keys.owner, keys.inbox, keys.log, keys.agenda, keys.outbox, keys.poison, *indexes]
        args: list[Any] = [
            token,
            batch.commit,
            _time(now),
            group,
            keys.done,
            batch.news,
            len(indexes),
            len(batch.acks),
            len(batch.plans),
            len(batch.moves),
            len(batch.sends),
            len(batch.sent),
            len(batch.poisons),
            len(batch.puts),
        ]
        names += [put.key for put in batch.puts]
        prefix = keys.run_prefix
        for run in batch.runs:
            names.append(prefix + run.run_id)
            args += (run.run_id, run.expected, run.header, run.state, run.transition)
        args += batch.acks
        for run_id, due in batch.plans:
            args += (run_id, "" if due is None else due)
        args += move_args
        for send in batch.sends:
            args += (send.number, send.target, send.kind, send.run_id, send.body)
        args += batch.sent
        for poison in batch.poisons:
            args += (poison.message_id, poison.run_id, poison.reason, poison.event, poison.body)
        for put in batch.puts:
            args += (put.field, put.value)
        return Call("commit", names, args, _committed)

    def forget_runs(self, shard: int, runs: Sequence[tuple[str, Header]]) -> Call[int]:
        """Answers with the number of runs deleted. Open runs and runs whose header has changed stay."""
        keys = self.keys.shard(shard)
        names: list[str] = []
        attributes: list[str] = []
        args: list[Any] = [len(runs)]
        having: list[str] = []
        for run_id, header in runs:
            names += self._listing_keys(keys, run_id, header.status, header.workflow, header.tenant)
            names.append(keys.published(run_id))
            args += (run_id, header.encode())
            if header.attributes:
                attributes += [keys.attribute(name, value_text(value)) for name, value in header.attributes.items()]
                having += [run_id] * len(header.attributes)
        return Call("forget_runs", names + attributes, args + having)

    def checkpoint_views(
        self,
        shard: int,
        token: str,
        offset: str,
        partial: bytes,
        keep: int,
        workflows: Iterable[str],
        oldest: int = 10,
    ) -> Call[Folded]:
        keys = self.keys.shard(shard)
        names = list(workflows)
        listings = [keys.index(Status.RUNNING, name) for name in names]
        return Call(
            "checkpoint_views",
            [keys.owner, keys.views, keys.log, *listings],
            [token, offset, partial, keep, oldest, *names],
            _folded,
        )

    # --- queues -------------------------------------------------------------------------------------------------------

    def enqueue_attempts(self, queue: str, partition: int, source: int, offers: Sequence[Offer]) -> Call[str]:
        """Answers with the last number that is accepted from the source shard."""
        keys = self.keys.queue(queue, partition)
        args: list[Any] = [f"shard:{source}", WORKERS]
        for one in offers:
            args += (one.number, one.kind, one.run_id, one.created, one.seq, one.attempt, one.details, one.body)
        return Call("enqueue_attempts", [keys.stream, keys.seen, keys.steps, keys.details], args, bytes.decode)

    def extend_claims(self, queue: str, partition: int, consumer: str, claims: Sequence[ClaimRef]) -> Call[str]:
        """Answers with a letter for each claim: k (kept), r (revoked), l (lost)."""
        args: list[Any] = [WORKERS, consumer]
        for claim in claims:
            args += (claim.entry, claim.step, claim.told)
        return Call("extend_claims", _places(self.keys.queue(queue, partition)), args, bytes.decode)

    def expired_claims(self, queue: str, partition: int, idle_ms: int, quiet_ms: int, limit: int) -> Call[list[Dead]]:
        """Answers with entries that nobody has kept for `idle_ms`. Consumers without any go after `quiet_ms`."""
        args = [WORKERS, idle_ms, quiet_ms, limit]
        return Call("expired_claims", _places(self.keys.queue(queue, partition)), args, _dead)

    def ack_attempts(self, queue: str, partition: int, claims: Sequence[ClaimRef]) -> Call[bytes]:
        args: list[Any] = [WORKERS]
        for claim in claims:
            args += (claim.entry, claim.step)
        return Call("ack_attempts", _places(self.keys.queue(queue, partition)), args)

    def requeue_attempts(self, queue: str, partition: int, consumer: str, claims: Sequence[ClaimRef]) -> Call[int]:
        """Answers with the number of entries that wait for another worker now."""
        args: list[Any] = [WORKERS, consumer]
        for claim in claims:
            args += (claim.entry, claim.step, claim.told)
        return Call("requeue_attempts", _places(self.keys.queue(queue, partition)), args)

    # --- the namespace ------------------------------------------------------------------------------------------------

    def heartbeat(self, member: str, beat: bytes, dead: Iterable[tuple[str, bytes]] = ()) -> Call[dict[str, bytes]]:
        """Answers with the beats of all members. An empty `beat` takes the member off."""
        args: list[Any] = [member, beat]
        for name, last in dead:
            args += (name, last)
        return Call("heartbeat", [self.keys.members], args, _mapping)

    def create_namespace(self, shards: int, partition: Partition) -> Call[tuple[int, Partition, int]]:
        """Answers with shards, partition and schema as they are stored."""
        return Call(
            "create_namespace",
            [self.keys.meta],
            [shards, str(partition), SCHEMA],
            lambda reply: (int(reply[0]), Partition(reply[1].decode()), int(reply[2])),
        )

    @staticmethod
    def _listing_keys(keys: ShardKeys, run_id: str, status: str, workflow: str, tenant: str) -> tuple[str, str, str]:
        return (
            keys.run(run_id),
            keys.index(listed_under(status), workflow),
            keys.tenant(tenant or "-"),
        )


def listed_under(status: str) -> str:
    """The status whose listing has a run of this status."""
    return Status.RUNNING if status == Status.PENDING else status


def _time(now: int | None) -> int | str:
    return "" if now is None else now


def _places(keys: QueueKeys) -> list[str]:
    return [keys.stream, keys.steps, keys.details]


def _pairs(reply: list[bytes]) -> list[tuple[bytes, bytes]]:
    return list(zip(reply[::2], reply[1::2], strict=True))


def _mapping(reply: list[bytes]) -> dict[str, bytes]:
    return {name.decode(errors="replace"): value for name, value in _pairs(reply)}


def _taken(reply: list[bytes]) -> Taken:
    if reply[0] == b"OK":
        return Taken(Reply.OK, reply[1].decode(), int(reply[2]), "")
    return Taken(Reply(reply[0].decode()), reply[1].decode(), 0, reply[2].decode())


def _fired(reply: list[bytes]) -> Fired:
    if reply[0] != b"OK":
        return Fired(Reply(reply[0].decode()), 0, None, [])
    # Scores come back as the text of a double; a due time is whole ms.
    upcoming = int(float(reply[2])) if reply[2] else None
    return Fired(Reply.OK, int(reply[1]), upcoming, [run_id.decode(errors="replace") for run_id in reply[3:]])


def _committed(reply: list[bytes]) -> Committed:
    code = Reply(reply[0].decode())
    if code is Reply.OK or code is Reply.DUP:
        return Committed(code, int(reply[1]), reply[2].decode(), [])
    return Committed(code, 0, "", [item.decode() for item in reply[1:]])


def _folded(reply: list[Any]) -> Folded:
    code = Reply(reply[0].decode())
    return Folded(code, int(reply[1]) if code is Reply.OK else 0)


def _dead(reply: list[bytes]) -> list[Dead]:
    return [
        Dead(
            entry.decode(),
            consumer.decode(errors="replace"),
            run.decode(errors="replace"),
            int(created),
            int(seq),
            int(attempt),
            details,
        )
        for entry, consumer, run, created, seq, attempt, details in zip(*[iter(reply)] * 7, strict=True)
    ]
