"""One typed method per verb of `lua/`: from Python values to KEYS and ARGV, and from replies to values.

Owns: the order of keys and arguments (the headers in `lua/` are checked against it) and the types of the replies.
Must not: send anything (`Store.send` does), decide anything.
Called by: daemon, worker and client; the table of verbs in `lua/README.md` names the files.

Each method builds a `Call`, which sends nothing; its docstring says what the script promises, and what the call returns
once it was sent. Many calls share one pipeline: `await store.send([kernel.commit(…), …])`. Every call is safe to send
twice. `now` is a time in ms: an owner's own, which decides what is due; for clients None, the server's, but in tests.
"""

from __future__ import annotations

import enum
import secrets
import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from streamflow.errors import StoreError
from streamflow.model.attributes import value_text
from streamflow.model.record import Header, Status, decode_header
from streamflow.model.sharding import Partition
from streamflow.store.connection import Call
from streamflow.store.keys import NamespaceKeys, QueueKeys, ShardKeys

SCHEMA = 6
"""Version of the format of keys, records and scripts; a namespace of another version is refused."""
WORKERS = "workers"
"""The consumer group of every queue partition; each worker process is a consumer."""
MAX_DIGITS = 15
"""Of a number in an entry of a queue."""
ASLEEP = "ASLEEP"
"""The reply of verbs that have to look among the runs that were moved out of memory, and were given no buckets: nothing
was done, and the call is made again with `asleep=True`."""
FIRST_FIELD = (b"0",)
"""The position at which a hash is read from its beginning."""
_COUNTS = struct.Struct(">13I")
"""How many items of each kind a commit has..."""
_COUNT = struct.Struct(">I")
"""...and, rarely, of one kind more."""
FRESH = b"-"
"""Prefix of a state in a `RunWrite` that replaces the whole record. No snapshot begins with it: a snapshot is a
MessagePack array."""


class Reply(enum.StrEnum):
    """Reply codes of verbs that can refuse. A refusal has written nothing."""

    OK = "OK"
    DUP = "DUP"
    """This commit is the shard's last one already, or one before it that arrives late: the reply has the facts of the
    last one."""
    CONFLICT = "CONFLICT"
    """What the caller expected is not what is stored: another owner, or other headers of runs."""
    FENCED = "FENCED"
    """The token is not the present owner's: another daemon has acquired the shard."""
    STALE = "STALE"
    """A later offset of the views is stored already."""
    BEHIND = "BEHIND"
    """The caller, which is the owner, knows of commits that the server has lost: what it has in memory is wrong."""
    MISSING = "MISSING"
    """The group has no position in this shard: it was removed, or is just being made."""
    GAP = "GAP"
    """The target has lost a message that it had accepted: those behind it wait until it comes again."""


class NamespaceRecord(NamedTuple):
    """The meta record of a namespace. `identity` is that of its data: another one when they were deleted meanwhile."""

    shards: int
    partition: Partition
    schema: int
    identity: str


class Start(msgspec.Struct):
    """A run to create. `body`: its encoded input; `tenant` empty for none; `trace`: a packed trace context or empty;
    `word`: what it asks for besides (`model/start_word.py`), mostly empty. `replaces`: the header of the run that it
    takes the place of, mostly none."""

    run_id: str
    workflow: str
    tenant: str
    body: bytes
    trace: str = ""
    word: str = ""
    replaces: bytes = b""

    @property
    def extras(self) -> str:
        """What the header has behind the attributes: trace and word."""
        return f"{self.trace or '-'} {self.word}" if self.word else self.trace


class Message(msgspec.Struct):
    """A message from a client for an open run. `kind`: signal, ask, cancel or terminate. `created`: ms, as in the
    header of the run that it is for, 0 for whichever run has the id."""

    kind: str
    run_id: str
    body: bytes
    created: int = 0
    identity: str = ""
    """Of a message that is posted again because a server may have lost it: `post_identity` of the first time, and..."""
    number: int = 0
    """...that of the post with which it was accepted last: it is there if the shard has had that post."""


class OnceMessage(msgspec.Struct):
    """A message that its run gets once. `digest`: of what tells it from all others, for `remember` ms. `start`: of the
    run that begins if none of its id is open, in the place of the ended one that it names; without one the message is
    for the run that was created then (`message.created`, 0 for whichever has the id)."""

    message: Message
    digest: str
    remember: int
    start: Start | None = None

    @property
    def identity(self) -> str:
        return f"m:{self.digest}"


class PutOnce(NamedTuple):
    """What became of it: `letter` as of `lua/post_once.lua`; `created`: ms, of the run that has it, or of the one that
    is there, 0 for none; `header`: of the run that has the id now."""

    letter: str
    created: int
    header: bytes


class Delivery(msgspec.Struct):
    """A message from a shard's outbox. `number` is `<epoch>-<n>`; workflow, tenant, parent and trace are those of a
    start. A signal or cancel with a `parent` is only for the child of that link. `identity`: without spaces, of what is
    accepted only once also under another number."""

    number: str
    kind: str
    run_id: str
    body: bytes
    workflow: str = ""
    tenant: str = ""
    parent: str = ""
    trace: str = ""
    identity: str = ""


class Attempt(msgspec.Struct, array_like=True):
    """An attempt of a step, to be added to a queue's partition of the run's shard, or without a `body` to be revoked.

    `step`: `<run id>/<seq>`; `attempt`: `<created> <attempt>`, where `created` is that of the run's header and
    distinguishes it from an earlier run of the same id. `body`: encoded by `wire.encode_job`; `details`: what an
    attempt before it has reported, encoded, empty for nothing.
    """

    queue: str
    step: str
    attempt: str
    body: bytes
    details: bytes = b""


class ClaimRef(msgspec.Struct, frozen=True):
    """A worker's claim on an entry of a queue partition.

    `step` is `<run id>/<seq>`; `details`: encoded, what the step has reported since the last call, empty for nothing.
    """

    entry: str
    step: str
    details: bytes = b""


StreamEntry = tuple[bytes, dict[bytes, bytes]]
"""Its id, and its fields."""


class Settlement(msgspec.Struct, frozen=True):
    """An entry of a queue partition that its worker has done with. `step` is `<run id>/<seq>`; `body`: the encoded
    outcome, empty for none."""

    entry: str
    step: str
    body: bytes


class QueuePeek(msgspec.Struct, frozen=True):
    """Of a partition of a queue: how many attempts wait (-1 if its key is of another type), how many workers have, and
    the entry of the first that waits, empty for none. Of an entry that was asked for: how many wait before it, -1 if
    it doesn't wait, and the worker that has claimed it, `idle` ms ago; empty and -1 for none."""

    waiting: int
    claimed: int
    first: str
    before: int = -1
    consumer: str = ""
    idle: int = -1


class ExpiredClaim(msgspec.Struct, frozen=True):
    """An entry whose worker is considered dead, with the details that its step reported last (encoded), empty for
    none."""

    entry: str
    consumer: str
    run_id: str
    created: int
    seq: int
    attempt: int
    details: bytes


class ExpiredClaims(msgspec.Struct, frozen=True):
    """`last`: the entry behind which there are more; empty if these are all. `clock`: the server's, ms; `before`: what
    it was when somebody looked last, 0 for unknown."""

    last: str = ""
    claims: list[ExpiredClaim] = []
    clock: int = 0
    before: int = 0


class LentStep(msgspec.Struct, frozen=True):
    """An attempt that a former owner of its shard (`host`) still runs. `step` is `<run id>/<seq>`; `created`: ms, as in
    the run's header; `details`: encoded, what the step has reported since the last call, empty for nothing."""

    step: str
    host: str
    created: int
    attempt: int
    details: bytes = b""


class Holder(NamedTuple):
    """Who runs an attempt, as the server knows it: a field of a hash, and its value as long as that is so."""

    key: str
    field: str
    value: str


class ChunkBatch(msgspec.Struct, frozen=True):
    """What one execution of an attempt has emitted: `number` from 1, `body` the MessagePack of its chunks, `missed`
    chunks were dropped before it. `over`: the attempt has ended, nothing more comes of it."""

    run_id: str
    created: int
    seq: int
    attempt: int
    execution: str
    step: str
    number: int
    count: int
    body: bytes
    missed: int = 0
    over: bool = False


class ChunkPage(msgspec.Struct, frozen=True):
    """Entries of a run's chunks, by number, as `read_chunks` returns them. `header`: of the run, empty if there is
    none. `made`: when its chunks were begun, empty if there are none. `first` and `next` are numbers of entries,
    `total` is of chunks."""

    header: bytes
    made: str
    first: int
    next: int
    total: int
    entries: list[tuple[int, bytes]]


class LogLimits(NamedTuple):
    """What a shard's log keeps: at most about so many bytes, and nothing older than so many ms; at least half of it.
    What groups have not acknowledged: about `held` bytes more, and up to the age `held_age`."""

    most: int
    age: int
    held: int = 0
    held_age: int = 0


class Acquired(msgspec.Struct):
    """Reply of `acquire_shard`: OK or CONFLICT. `token`: ours when OK, else the present owner's.

    When OK, `clock`: the shard's, in ms; `delivered`: the id of the last message that the former owner had read, and
    `final`: the id of its last commit, both empty for none. `asleep`: how many of the shard's runs were moved out.
    `holder`: the present owner's member id when CONFLICT.
    """

    code: Reply
    token: str
    clock: int
    holder: str
    delivered: str = ""
    final: str = ""
    asleep: int = 0


class DueRuns(msgspec.Struct):
    """Reply of `due_runs`: OK or FENCED. `due`: run ids, the earliest first.

    `next`: ms when the next run is due, None when no other run has a due time.
    """

    code: Reply
    next: int | None
    due: list[str]


class InboxPage(msgspec.Struct):
    """Reply of `read_inbox`: OK or FENCED. `more`: whether there may be more behind these."""

    code: Reply
    more: bool = False
    entries: list[StreamEntry] = []


class NextStarts(msgspec.Struct):
    """Reply of `next_starts`: OK or FENCED. `left`: how many starts wait, those of `runs` (run id, turn) included.
    `reached`: the turn up to which they had been read before."""

    code: Reply
    left: int
    reached: int
    runs: list[tuple[str, int]]


class Committed(msgspec.Struct):
    """Reply of `commit`: OK, DUP, CONFLICT, FENCED or BEHIND.

    `clock`: the shard's, in ms, and `entry`: the id of the log entry, empty when nothing was logged; both when OK or
    DUP. `conflicts`: when CONFLICT the ids of runs whose header has changed, when FENCED the present owner's token,
    when BEHIND the last commit that the shard has.
    """

    code: Reply
    clock: int
    entry: str
    conflicts: list[str]


class Heartbeats(msgspec.Struct):
    """Reply of `heartbeat`. `clock`: the server's, in ms; `members`: the heartbeats of all by member id; `hashes`: what
    was wanted besides, None where the key has another type."""

    clock: int
    members: dict[str, bytes]
    hashes: list[dict[bytes, bytes] | None] = []


class Checkpointed(msgspec.Struct):
    """Reply of `checkpoint_views`: OK, FENCED, STALE or BEHIND. When OK, `entries`: how many are left in the log, and
    `again`: when there is more to trim (ms on the owner's clock; 0: at once), None if the log is empty."""

    code: Reply
    entries: int
    again: int | None = None


class Missed(msgspec.Struct, frozen=True):
    """Log entries that were trimmed before a group had acknowledged them: how many, those behind `first` up to `last`
    (offsets), the last time at `at` (ms)."""

    entries: int
    first: str
    last: str
    at: int


class Claimed(msgspec.Struct, frozen=True):
    """Reply of `claim_position`: OK, CONFLICT, or MISSING if the group has no position there. `token`: ours when OK,
    else the present one, and `holder` the consumer that has it. `offset`: the entry up to which all was had."""

    code: Reply
    token: str = ""
    holder: str = ""
    offset: str = ""
    missed: Missed | None = None


class Acknowledged(msgspec.Struct, frozen=True):
    """Reply of `acknowledge_events`: OK, FENCED or BEHIND. `offset`: the group's, when OK or BEHIND."""

    code: Reply
    offset: str = ""
    missed: Missed | None = None


class GroupPosition(msgspec.Struct, frozen=True):
    """Of a group in a shard. `read`: how many entries the log has had up to `offset`. `holder`: the id of the consumer
    that has the shard, empty for none. `waiting`: entries behind the offset; `oldest`: ms of the first, 0 for none."""

    group: str
    identity: str
    offset: str
    read: int
    token: str
    holder: str
    missed: Missed | None
    waiting: int
    oldest: int


class RunWrite(msgspec.Struct, array_like=True):
    """One transition of one run. `expected`: the header that the run must have, byte for byte; `header`: its new one.

    `state`: a reducer's snapshot, empty: unchanged; with the prefix `FRESH` the record is replaced and its history
    begins again with this transition.
    """

    run_id: str
    expected: bytes
    header: bytes
    state: bytes
    transition: bytes


class Send(msgspec.Struct, array_like=True):
    """An entry for the outbox. `number`: `<epoch>-<n>`, that of its last message, higher than every earlier one.
    `messages`: encoded by `wire.encode_outbox`."""

    number: str
    messages: bytes


class Poison(msgspec.Struct, array_like=True):
    """An inbox message to quarantine. `event`: the encoded transition with `MessageQuarantined` for the log."""

    message_id: str
    run_id: str
    reason: str
    event: bytes
    body: bytes
    kind: str = ""
    header: bytes = b""
    """Of a start."""
    identity: bytes = b""


class QuarantineEntry(NamedTuple):
    """A quarantined message as `read_quarantine` gives it. `size`: bytes of its body; `fields`: all others."""

    entry: str
    size: int
    fields: dict[bytes, bytes]


class Put(msgspec.Struct, array_like=True):
    """A value for a field of a hash, empty to delete it; without `field` a string that expires after 15 minutes."""

    key: str
    field: str
    value: bytes


class Batch(msgspec.Struct, gc=False):
    """All that one commit of one shard does.

    `commit`: its id. `cuts`: (position in `runs`, what the log gets instead of that transition). `acks`: ids of inbox
    messages that were reduced. `plans`: (run id, score on the agenda, None to
    remove it). `moves`: (run id, from key, to key, score) between listings, an empty key for none. `sent`: numbers of
    outbox entries whose messages were delivered. `attempts`: in order, with those that are revoked.
    `notification`: encoded, for the subscribers of the shard's channel.
    `repeats`, of what is committed again because a server had lost it: the message up to which the inbox was looked
    through, and identities of messages that are taken by this, so that those which come again behind it are removed.
    """

    commit: str
    runs: list[RunWrite] = []
    acks: list[str] = []
    plans: list[tuple[str, int | None]] = []
    moves: list[tuple[str, str, str, int]] = []
    sends: list[Send] = []
    sent: list[str] = []
    poisons: list[Poison] = []
    cuts: list[tuple[int, bytes]] = []
    puts: list[Put] = []
    attempts: list[Attempt] = []
    notification: bytes = b""
    repeats: list[str] = []


def post_identity(source: str, number: int, place: int) -> str:
    """Of a client's message: the field that it has in `seen` if it is noted there. `place`: in its post, from 1."""
    return f"m:{source}.{number}.{place}"


class Kernel:
    """The verbs of one namespace, one method each. Errors of keys or values come as `StoreError` from `Store.send`."""

    def __init__(self, keys: NamespaceKeys) -> None:
        self.keys = keys

    # --- starts, messages, outcomes -----------------------------------------------------------------------------------

    def start_runs(
        self,
        shard: int,
        starts: Sequence[Start],
        now: int | None = None,
        *,
        created: int = 0,
        asleep: bool = False,
    ) -> Call[list[bytes]]:
        """Create runs that don't exist yet, each with its first message; a run that exists stays as it is.

        The message goes into the inbox, or waits for its turn when there is much. `created`: ms, when these runs began
        that a server may have lost since; they become the same runs again. `asleep`: look among the runs that were
        moved out, too; without it the reply may be `ASLEEP`, and nothing was done.
        Returns for each run the header of the run that has the id, with a `+` before it if this call created it, and a
        `=` if an earlier one did with the same identity in its word.
        """
        keys = self.keys.shard(shard)
        names = [keys.owner, keys.inbox, keys.kept, keys.waiting, keys.turns]
        args: list[Any] = [f"={created}" if created else _time(now)]
        for start in starts:
            names += self._listing_keys(keys, start.run_id, Status.RUNNING, start.workflow, start.tenant)
            args += (start.workflow, start.tenant, start.extras, start.body)
        if asleep:
            names += [keys.asleep(start.run_id) for start in starts]
        return Call("start_runs", names, args)

    def replace_run(
        self, shard: int, start: Start, now: int | None = None, *, created: int = 0, asleep: bool = False
    ) -> Call[bytes]:
        """Create a run under an id whose run has ended, in place of that, if that still has this very header.

        `start` has an identity in its word. `created`, `asleep`, and what it returns: as of `start_runs`.
        """
        keys, before = self.keys.shard(shard), decode_header(start.replaces)
        names = [keys.owner, keys.inbox, keys.kept, keys.waiting, keys.turns]
        names += self._listing_keys(keys, start.run_id, Status.RUNNING, start.workflow, start.tenant)
        names += (keys.published(start.run_id), keys.chunks(start.run_id))
        names += self._listing_keys(keys, start.run_id, before.status, before.workflow, before.tenant)[1:]
        names += [keys.attribute(name, value_text(value)) for name, value in before.attributes.items()]
        if asleep:
            names.append(keys.asleep(start.run_id))
        args = [f"={created}" if created else _time(now), start.replaces, start.workflow, start.tenant, start.extras]
        return Call("replace_run", names, [*args, start.body])

    def post_messages(
        self,
        shard: int,
        source: str,
        number: int,
        messages: Sequence[Message],
        now: int | None = None,
        *,
        again: bool = False,
        asleep: bool = False,
    ) -> Call[str]:
        """Put signals and asks into the inbox, for runs that are open.

        `number`: higher than that of the `source`'s post before to this shard; the same number again adds nothing and
        gets the same letters. `again`: messages of posts up to this one, which a server may have lost. Returns a letter
        for each message: a (accepted), e (the run has ended), m (no such run, or it was created at another time), d
        (with an identity: the run has taken it, or its post is there). `asleep`: as of `start_runs`. Refused when
        memory is short.
        """
        return self._post("post_messages", shard, source, number, messages, now, again=again, asleep=asleep)

    def post_once(
        self, shard: int, once: OnceMessage, now: int | None = None, *, created: int = 0, asleep: bool = False
    ) -> Call[PutOnce]:
        """Put a signal or ask into the inbox unless that was done before, behind the start of its run if none is open.

        `created`: ms, when the run began that a server may have lost since. `asleep`: as of `start_runs`. Refused when
        memory is short.
        """
        keys, message, start = self.keys.shard(shard), once.message, once.start
        new = start or Start(message.run_id, "", "", b"")
        names = [keys.owner, keys.inbox, keys.kept, keys.waiting, keys.turns, keys.seen, keys.known(once.digest)]
        names += self._listing_keys(keys, message.run_id, Status.RUNNING, new.workflow, new.tenant)
        names += (keys.published(message.run_id), keys.chunks(message.run_id))
        if new.replaces:
            before = decode_header(new.replaces)
            names += self._listing_keys(keys, message.run_id, before.status, before.workflow, before.tenant)[1:]
            names += [keys.attribute(name, value_text(value)) for name, value in before.attributes.items()]
        if asleep:
            names.append(keys.asleep(message.run_id))
        args: list[Any] = [f"={created}" if created else _time(now), once.identity, once.remember]
        args += (message.created or "", new.replaces, new.workflow, new.tenant, new.extras, new.body)
        return Call("post_once", names, [*args, message.kind, message.body], _put_once)

    def post_requests(
        self,
        shard: int,
        source: str,
        number: int,
        messages: Sequence[Message],
        now: int | None = None,
        *,
        again: bool = False,
        asleep: bool = False,
    ) -> Call[str]:
        """Put requests to cancel or terminate into the inbox, for runs that are open; also when memory is short.

        Arguments and letters are those of `post_messages`, whose numbers it shares.
        """
        return self._post("post_requests", shard, source, number, messages, now, again=again, asleep=asleep)

    def _post(
        self,
        verb: str,
        shard: int,
        source: str,
        number: int,
        messages: Sequence[Message],
        now: int | None,
        *,
        again: bool,
        asleep: bool,
    ) -> Call[str]:
        keys = self.keys.shard(shard)
        names = [keys.seen, keys.inbox, keys.kept, keys.owner]
        args: list[Any] = [source, f"={number}" if again else number, _time(now)]
        for message in messages:
            names.append(keys.run(message.run_id))
            created: int | str = message.created or ""
            if message.identity:
                created = f"{created} {message.identity} {message.number or ''}"
            args += (message.kind, message.run_id, message.body, created)
        if asleep:
            names += [keys.asleep(message.run_id) for message in messages]
        return Call(verb, names, args, bytes.decode)

    def report_outcome(self, shard: int, run_id: str, created: int, body: bytes) -> Call[str]:
        """Put the outcome of a queued step that the server may have lost into the inbox of its run again.

        Returns a (accepted), e (the run has ended) or m (no such run, or one that was created at another time).
        """
        keys = self.keys.shard(shard)
        names = [keys.inbox, keys.kept, keys.run(run_id)]
        return Call("report_outcome", names, [run_id, created, body], bytes.decode)

    def report_step(self, shard: int, run_id: str, kind: str, lent: LentStep, body: bytes) -> Call[str]:
        """Put the outcome of a step that a former owner of the shard has run into the inbox of its run.

        `kind`: outcome or returned. Returns a (accepted), e (the run has ended) or m (no such run, or one that was
        created at another time). What was accepted before, and what is returned without a record, adds nothing.
        """
        keys = self.keys.shard(shard)
        args = [run_id, lent.created, kind, lent.step, lent.host, lent.attempt, body]
        names = [keys.inbox, keys.kept, keys.run(run_id), keys.steps, keys.details]
        return Call("report_step", names, args, bytes.decode)

    def deliver_messages(
        self,
        shard: int,
        source: int,
        deliveries: Sequence[Delivery],
        now: int,
        after: str = "",
        *,
        asleep: bool = False,
    ) -> Call[str]:
        """Accept messages from another shard's outbox: child starts and outcomes, signals, cancel requests.

        `after`: the number of the message before them, if the `source` shard has had a reply that it was accepted.
        Returns the highest number that was accepted from the source, or `GAP` if the one before was lost: then none is
        accepted. `asleep`: as of `start_runs`.
        """
        keys = self.keys.shard(shard)
        names = [keys.seen, keys.inbox, keys.kept, keys.owner, keys.waiting, keys.turns]
        args: list[Any] = [f"shard:{source}", now, after]
        for delivery in deliveries:
            # What a shard forgets of its messages to itself, it forgets on both sides: a dash, they aren't kept.
            mark = "-m" if source == shard else "m"
            names += self._listing_keys(keys, delivery.run_id, Status.RUNNING, delivery.workflow, delivery.tenant)
            args += (
                f"{delivery.number} {mark}:{delivery.identity}" if delivery.identity else delivery.number,
                delivery.kind,
                delivery.workflow,
                delivery.tenant,
                delivery.parent,
                delivery.trace,
                delivery.body,
            )
        if asleep:
            names += [keys.asleep(delivery.run_id) for delivery in deliveries]
        return Call("deliver_messages", names, args, bytes.decode)

    def peek_runs(self, shard: int, run_ids: Sequence[str], *, asleep: bool = False) -> Call[list[tuple[bytes, bytes]]]:
        """Read the headers of runs, and the last transition of those that have ended.

        Returns for each run: header (empty when there is no such run) and last transition (empty while it is open).
        `asleep`: look among the runs that were moved out, too; the header of one is that of `model/sleeping.py`.
        """
        keys = self.keys.shard(shard)
        names = [keys.run(run_id) for run_id in run_ids]
        if not asleep:
            return Call("peek_runs", names, [], _pairs)
        return Call("peek_runs", names + [keys.asleep(run_id) for run_id in run_ids], ["1"], _pairs)

    def peek_inbox(self, shard: int) -> Call[tuple[int, str]]:
        """Return how many messages a shard's inbox has, and which is the first ('' for none), without reading them."""
        return Call("peek_inbox", [self.keys.shard(shard).inbox], [], _count_and_entry)

    def read_runs(
        self, shard: int, runs: Sequence[tuple[str, int]], limit: int
    ) -> Call[list[tuple[int | None, list[bytes]] | StoreError]]:
        """Read the records of runs, each from a position on, as much of them as fits into a reply of `limit` bytes.

        `runs`: (run id, position). Returns for each run (next position, elements), or a `StoreError`; the position is
        None when the record ends with these elements, else the rest is read by another call.
        """
        keys = self.keys.shard(shard)
        names = [keys.run(run_id) for run_id, _ in runs]
        return Call("read_runs", names, [limit, *(first for _, first in runs)], _records)

    def read_hash(
        self, key: str, position: Sequence[bytes], limit: int, length: int = 0
    ) -> Call[tuple[list[bytes], list[tuple[bytes, bytes]]]]:
        """Read fields of a hash from a position on, as much of them as fits into one reply.

        `key`: of a shard's steps or details; `position`: `FIRST_FIELD`, or what the call before has returned. Returns
        the next position, empty at the end, and fields with values of at most `limit` bytes: one at least, if there is
        one. A field may come twice. `length`: bytes of each value that are wanted, the first ones; 0: all of it.
        """
        return Call("read_hash", [key], [limit, length, *position], _hash_fields)

    def read_stream(self, log: str, after: str, limit: int) -> Call[tuple[bool, list[StreamEntry]]]:
        """Read entries of a stream, as much of them as fits into one reply.

        `log`: the key of a log or an outbox. Returns whether there may be more, and the entries behind `after` with
        about `limit` bytes: one at least, if there is one.
        """
        return Call("read_stream", [log], [after, limit], _stream_entries)

    def read_quarantine(self, shard: int, before: str, count: int) -> Call[list[QuarantineEntry]]:
        """Read what a shard has quarantined, the newest first, without the bodies of the messages.

        At most `count`; `before`: the entry before which to begin, '' for the newest.
        """
        return Call("read_quarantine", [self.keys.shard(shard).poison], [before, count], _quarantine_entries)

    def take_quarantined(
        self,
        shard: int,
        source: str,
        number: int,
        action: str,
        messages: Sequence[tuple[str, str]],
        now: int | None = None,
    ) -> Call[str]:
        """Take messages out of a shard's quarantine: back into its inbox (`redrive`), or away (`drop`).

        `messages`: (entry, run id). A source numbers its calls to a shard; one that is sent again changes nothing.
        Returns a letter for each message: a (done), d (its run has taken it: only removed), and of those that stay g
        (it isn't there), k (it has no kind that a run takes), m (no such run), e (the run has ended, or the run of a
        start has begun), b (the run has not begun).
        """
        keys = self.keys.shard(shard)
        names = [keys.seen, keys.inbox, keys.kept, keys.owner, keys.poison]
        names += [keys.run(run_id) for _, run_id in messages]
        names += [keys.asleep(run_id) for _, run_id in messages]
        args = [source, number, _time(now), action, *(entry for entry, _ in messages)]
        return Call("take_quarantined", names, args, bytes.decode)

    def read_transitions(
        self, shard: int, transitions: Sequence[tuple[str, int, int]], limit: int
    ) -> Call[list[bytes | None]]:
        """Read transitions of runs by their numbers, as many as fit into a reply of `limit` bytes, at least one.

        `transitions`: (run id, ms when it was created, version of the header that the transition has made). Returns for
        each its bytes, empty if it is gone, None if it is for another call.
        """
        keys = self.keys.shard(shard)
        args: list[Any] = [limit]
        for _, created, number in transitions:
            args += (created, number)
        return Call("read_transitions", [keys.run(run_id) for run_id, _, _ in transitions], args, _transitions)

    # --- ownership ----------------------------------------------------------------------------------------------------

    def acquire_shard(self, shard: int, expected: str, nonce: str, holder: str, now: int) -> Call[Acquired]:
        """Become a shard's owner, if its owner is still the one that the caller saw (the token `expected`).

        Returns OK with the new token and the clock, or CONFLICT with the present owner's token and holder.
        """
        keys = self.keys.shard(shard)
        names = [keys.owner, keys.inbox, keys.kept, keys.outbox]
        return Call("acquire_shard", names, [expected, nonce, holder, now], _acquired)

    def release_shard(
        self, shard: int, token: str, lent: Sequence[LentStep] = (), *, last: bool = True, delivered: str = ""
    ) -> Call[Reply]:
        """Give up a shard, so that the next owner does not have to wait until this one is considered dead.

        `lent`: attempts that the caller goes on running. Not the `last` call: they are only recorded. `delivered`: the
        last message of those that are suspect, and that the caller hasn't been through. Returns OK, or FENCED when
        another owner has the shard.
        """
        keys = self.keys.shard(shard)
        args: list[Any] = [token, "1" if last else "", delivered]
        for attempt in lent:
            args += (attempt.step, attempt.host, attempt.created, attempt.attempt)
        return Call("release_shard", [keys.owner, keys.steps], args, _code)

    def extend_steps(self, shard: int, lent: Sequence[LentStep]) -> Call[str]:
        """Ask whether attempts that a former owner of a shard still runs are needed, and store their details.

        Returns a letter for each: k (kept), l (lost: stop it).
        """
        keys = self.keys.shard(shard)
        args: list[Any] = []
        for attempt in lent:
            args += (attempt.step, attempt.host, attempt.created, attempt.attempt, attempt.details)
        return Call("extend_steps", [keys.steps, keys.details], args, bytes.decode)

    # --- the owner's work ---------------------------------------------------------------------------------------------

    def due_runs(self, shard: int, token: str, limit: int, now: int) -> Call[DueRuns]:
        """Return which runs of a shard are due at `now` (at most `limit`), and when the next one is.

        Returns OK with due runs and next due time, or FENCED. The runs stay on the agenda until a commit.
        """
        keys = self.keys.shard(shard)
        return Call("due_runs", [keys.owner, keys.agenda], [token, now, limit], _due_runs)

    def next_starts(self, shard: int, token: str, limit: int) -> Call[NextStarts]:
        """Return the runs whose starts wait, the next ones first (at most `limit`), and note which turn was reached.

        Returns OK with how many wait, or FENCED. They wait until a commit has removed them from the key `waiting`.
        """
        keys = self.keys.shard(shard)
        return Call("next_starts", [keys.owner, keys.waiting, keys.turns], [token, limit], _next_starts)

    def read_inbox(self, shard: int, token: str, after: str, count: int, limit: int) -> Call[InboxPage]:
        """Read the messages behind the last one that the owner has read, as many as fit into one reply.

        At most `count`, of about `limit` bytes: one at least, if there is one. Returns OK with messages, or FENCED.
        They stay in the inbox until a commit. When these are all, the next message rings.
        """
        keys = self.keys.shard(shard)
        return Call("read_inbox", [keys.owner, keys.inbox, keys.kept], [token, after, count, limit], _inbox_page)

    def commit(self, shard: int, token: str, batch: Batch, now: int) -> Call[Committed]:
        """Store one batch of transitions of one shard, for many runs at once, all or nothing.

        The owner numbers what it commits with one token without gaps:
        `<session>.1`, `<session>.2` and so on, and after one that was refused `<session>.2.1`. Returns OK or DUP with
        clock and log entry, CONFLICT with the runs whose header is not the expected one, FENCED with the present
        owner's token, or BEHIND when the one before is missing. CONFLICT without runs: too much has come since the
        inbox was looked through for `repeats`.
        """
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
        names = [keys.owner, keys.inbox, keys.kept, keys.log, keys.agenda, keys.outbox, keys.poison, *indexes]
        args: list[Any] = []
        states: list[Any] = []
        names += [put.key for put in batch.puts]
        queues: dict[str, int] = {}
        attempt_args: list[Any] = []
        reports: list[Any] = []
        for position, attempt in enumerate(batch.attempts, 1):
            number = queues.get(attempt.queue)
            if number is None:
                number = queues[attempt.queue] = len(queues) + 1
                names += _claim_keys(self.keys.queue(attempt.queue, shard))
            attempt_args += (number, attempt.step, attempt.attempt, attempt.body)
            if attempt.details:
                reports += (position, attempt.details)
        prefix = keys.run_prefix
        for position, run in enumerate(batch.runs, 1):
            names.append(prefix + run.run_id)
            args += (run.expected, run.header, run.transition)
            if run.state:
                states += (position, run.state)
        args += batch.acks
        for run_id, due in batch.plans:
            args += (run_id, "" if due is None else due)
        args += move_args
        for send in batch.sends:
            args += (send.number, send.messages)
        args += batch.sent
        for poison in batch.poisons:
            args += (poison.message_id, poison.run_id, poison.reason, poison.event, poison.body)
            args += (poison.kind, poison.header, poison.identity)
        for position, logged in batch.cuts:
            args += (position + 1, logged)
        args += states
        args += reports
        args += attempt_args
        args += batch.repeats
        for put in batch.puts:
            args += (put.field, put.value)
        counts = _COUNTS.pack(
            len(indexes),
            len(batch.acks),
            len(batch.plans),
            len(batch.moves),
            len(batch.sends),
            len(batch.sent),
            len(batch.poisons),
            len(batch.cuts),
            len(states) // 2,
            len(reports) // 2,
            len(batch.puts),
            len(queues),
            len(batch.attempts),
        )
        if batch.repeats:
            counts += _COUNT.pack(len(batch.repeats))
        fixed = [token, batch.commit, now, keys.done, batch.notification, counts]
        return Call("commit", names, fixed + args, _committed)

    def store_details(self, shard: int, token: str, details: Iterable[tuple[str, bytes]]) -> Call[Reply]:
        """Store what running steps of a shard have reported last, for the attempts after them.

        `details`: (`<run id>/<seq>`, encoded, behind the run's `created`); empty ones are deleted. Returns OK, or
        FENCED when another owner has the shard.
        """
        keys = self.keys.shard(shard)
        args: list[Any] = [token]
        for step, data in details:
            args += (step, data)
        return Call("store_details", [keys.owner, keys.details], args, _code)

    def forget_runs(self, shard: int, runs: Sequence[tuple[str, Header]]) -> Call[int]:
        """Delete ended runs with what they published and emitted, and remove them from the listings.

        Open runs and runs whose header has changed stay. The shard's clock is behind the end of each deleted run
        afterwards, and the log has nothing of it, or is trimmed by the next checkpoint. Returns the number of deleted
        runs.
        """
        keys = self.keys.shard(shard)
        names = [keys.owner, keys.views, keys.log, keys.positions]
        attribute_indexes: list[str] = []
        args: list[Any] = [len(runs)]
        attribute_ids: list[str] = []
        for run_id, header in runs:
            names += self._listing_keys(keys, run_id, header.status, header.workflow, header.tenant)
            names += (keys.published(run_id), keys.chunks(run_id))
            args += (run_id, header.encode())
            if header.attributes:
                attribute_indexes += [
                    keys.attribute(name, value_text(value)) for name, value in header.attributes.items()
                ]
                attribute_ids += [run_id] * len(header.attributes)
        return Call("forget_runs", names + attribute_indexes, args + attribute_ids)

    def restore_run(
        self,
        shard: int,
        run_id: str,
        record: Sequence[bytes],
        published: Sequence[tuple[str, bytes]],
        now: int | None = None,
    ) -> Call[bytes]:
        """Put an ended run back from the archive, with its history, what it published, and its entries in listings.

        `record`: header, state and transitions; `published`: encoded values. Returns the header of the run that has the
        id then: another one than that of the record if the id is in use, and nothing has changed. Its retention begins
        again.
        """
        keys = self.keys.shard(shard)
        line, state, *transitions = record
        header = decode_header(line)
        names = [
            keys.owner,
            *self._listing_keys(keys, run_id, header.status, header.workflow, header.tenant),
            keys.published(run_id),
            keys.asleep(run_id),
            *(keys.attribute(name, value_text(value)) for name, value in header.attributes.items()),
        ]
        values = [item for pair in published for item in pair]
        counts = (len(transitions), len(published))
        args: list[Any] = [_time(now), line, state, *counts, *transitions, *values]
        return Call("restore_run", names, args)

    # --- runs that are moved out of memory ----------------------------------------------------------------------------

    def hibernate_runs(
        self, shard: int, token: str, runs: Sequence[tuple[str, Header, str]]
    ) -> Call[tuple[Reply, list[bool]]]:
        """Move open runs that only wait out of memory: their records are in storage, only their wake-ups stay.

        `runs`: run id, header, and the part of the object's name that nothing else tells (hexadecimal). Returns OK, and
        for each run whether it was moved: not one whose header is another one by now, or with steps in flight. FENCED
        when another owner has the shard.
        """
        keys = self.keys.shard(shard)
        names = [keys.owner, keys.agenda]
        attribute_indexes: list[str] = []
        args: list[Any] = [token, len(runs)]
        attribute_ids: list[str] = []
        for run_id, header, storage in runs:
            names += self._listing_keys(keys, run_id, header.status, header.workflow, header.tenant)
            names += (keys.published(run_id), keys.asleep(run_id))
            args += (run_id, header.encode(), storage)
            attribute_indexes += [keys.attribute(name, value_text(value)) for name, value in header.attributes.items()]
            attribute_ids += [run_id] * len(header.attributes)
        return Call("hibernate_runs", names + attribute_indexes, args + attribute_ids, _moved)

    def wake_run(
        self,
        shard: int,
        token: str,
        run_id: str,
        expected: bytes,
        record: Sequence[bytes],
        published: Sequence[tuple[str, bytes]],
    ) -> Call[tuple[Reply, bytes]]:
        """Put a run that was moved out of memory back, as it was, with its entries in listings and on the agenda.

        `expected`: what its bucket has of it; `record`: header, state and transitions; `published`: encoded values.
        Returns OK, CONFLICT with what the bucket has now (empty: nothing, the run is awake or gone), or FENCED. Refused
        when memory is short.
        """
        keys = self.keys.shard(shard)
        line, state, *transitions = record
        header = decode_header(line)
        names = [
            keys.owner,
            keys.agenda,
            *self._listing_keys(keys, run_id, header.status, header.workflow, header.tenant),
            keys.published(run_id),
            keys.asleep(run_id),
            *(keys.attribute(name, value_text(value)) for name, value in header.attributes.items()),
        ]
        values = [item for pair in published for item in pair]
        counts = (len(transitions), len(published))
        args: list[Any] = [token, expected, line, state, *counts, *transitions, *values]
        return Call("wake_run", names, args, _woken)

    def append_chunks(self, shard: int, batch: ChunkBatch, holder: Holder, limit: int, seconds: int) -> Call[str]:
        """Append what a running attempt has emitted to its run's chunks, and ring for who reads them.

        `limit`: bytes of the run's chunks, about: the oldest go first. They expire `seconds` after the last batch.
        Returns a letter: a (appended, or there already), e (the run has ended), m (there is no such run), l (somebody
        else runs the attempt than `holder` says).
        """
        keys = self.keys.shard(shard)
        args = [batch.created, holder.field, holder.value, batch.seq, batch.attempt, batch.execution, batch.number]
        args += [int(batch.over), batch.missed, batch.count, limit, seconds, batch.step, batch.body]
        names = [keys.run(batch.run_id), keys.chunks(batch.run_id), holder.key]
        return Call("append_chunks", names, args, bytes.decode)

    def read_chunks(self, shard: int, run_id: str, made: str, entry: int, limit: int) -> Call[ChunkPage]:
        """Read what a run's steps have emitted from an entry on, if they were begun at `made`; else from the first one.

        About `limit` bytes: one entry at least, if there is one.
        """
        keys = self.keys.shard(shard)
        return Call("read_chunks", [keys.run(run_id), keys.chunks(run_id)], [made, entry, limit], _chunk_page)

    def checkpoint_views(
        self,
        shard: int,
        token: str,
        offset: str,
        partial: bytes,
        now: int,
        logged: int,
        limits: LogLimits,
        workflows: Iterable[str],
        oldest: int = 10,
    ) -> Call[Checkpointed]:
        """Store a shard's part of the views with the log entry up to which it counts (`offset`), and trim the log.

        `logged`: bytes of the entries behind the offset that was stored before. `workflows`: whose `oldest` open runs
        are stored, too. Returns OK with the number of entries left in the log and when to call again, FENCED,
        STALE when a later offset is stored, or BEHIND when the log has no such entry.
        """
        keys = self.keys.shard(shard)
        names = list(workflows)
        listings = [keys.index(Status.RUNNING, name) for name in names]
        return Call(
            "checkpoint_views",
            [keys.owner, keys.views, keys.log, keys.positions, *listings],
            [token, offset, partial, now, logged, *limits, oldest, *names],
            _checkpointed,
        )

    # --- groups of subscribers ----------------------------------------------------------------------------------------

    def note_group(self, group: str, expected: bytes, note: bytes) -> Call[bytes]:
        """Note that there is a group of subscribers, something new about it, or that it is gone.

        `expected`: what the caller has seen, empty for none; `note` empty: it is gone. Returns what is noted
        afterwards, empty if nothing is.
        """
        return Call("note_group", [self.keys.groups], [group, expected, note])

    def place_position(self, shard: int, group: str, identity: str, to: str, *, over: bool = False) -> Call[str]:
        """Set from where a group goes on in a shard's log, or remove it there.

        `to`: now, oldest, or ms, for what was logged since then; empty removes it. A group that has a position keeps
        it, unless `over`. Returns the offset, empty if it was removed.
        """
        keys = self.keys.shard(shard)
        args = [group, identity, to, "1" if over else ""]
        return Call("place_position", [keys.positions, keys.log, keys.views], args, lambda reply: reply[1].decode())

    def claim_position(
        self, shard: int, group: str, identity: str, expected: str, nonce: str, holder: str
    ) -> Call[Claimed]:
        """Become the consumer that reads a shard for a group, if it is still had by the one that the caller saw.

        `expected`: the token that was seen; `nonce`: random, of the next one; `holder`: the caller's id.
        """
        args = [group, identity, expected, nonce, holder]
        return Call("claim_position", [self.keys.shard(shard).positions], args, _claimed)

    def acknowledge_events(
        self, shard: int, group: str, token: str, offset: str, entries: int, *, release: bool = False
    ) -> Call[Acknowledged]:
        """Note up to which entry of a shard's log a group has had all, and give the shard up if it is wanted.

        `offset`: empty for no new one; `entries`: how many entries of the log it is behind the one before.
        """
        keys = self.keys.shard(shard)
        args = [group, token, offset, entries, "1" if release else ""]
        return Call("acknowledge_events", [keys.positions, keys.log, keys.views], args, _acknowledged)

    def peek_positions(self, shard: int, group: str = "") -> Call[list[GroupPosition]]:
        """Return how far groups are in a shard's log, and how old the first entry is that waits for each.

        `group`: only that one; empty for all.
        """
        keys = self.keys.shard(shard)
        return Call("peek_positions", [keys.positions, keys.log, keys.views], [group], _group_positions)

    # --- views of apps ------------------------------------------------------------------------------------------------

    def store_view(
        self,
        shard: int,
        view: str,
        token: str,
        field: str,
        before: bytes,
        after: bytes,
        held: bytes,
        offset: str,
        removed: Sequence[str] = (),
        cells: Sequence[tuple[str, bytes]] = (),
    ) -> Call[Reply]:
        """Store what a view of an app has counted of a shard, with the log entry up to which it counts.

        `field` is to have `after`, if it has `before` (empty for nothing) or `after` already; then the fields `removed`
        are deleted, and `cells` written: (field, value). From then on the log keeps what is behind `offset`;
        `held`: from where it was kept for this view until now, empty for nowhere. Returns OK, FENCED, or STALE when one
        of both is something else.
        """
        keys = self.keys.shard(shard)
        args: list[Any] = [token, view, field, before, after, held, offset, len(removed), *removed]
        for name, value in cells:
            args += (name, value)
        return Call("store_view", [keys.owner, keys.app_view(view), keys.positions, keys.log, keys.views], args, _code)

    # --- queues -------------------------------------------------------------------------------------------------------

    def peek_queues(self, shard: int, queues: Sequence[str], entries: Sequence[str] = ()) -> Call[list[QueuePeek]]:
        """Return how many attempts wait in a shard's partitions of queues, and how many workers have.

        `entries`: one of each queue to find, empty for none.
        """
        keys = [self.keys.queue(queue, shard).stream for queue in queues]
        return Call("peek_queues", keys, [WORKERS, *(entries or [""] * len(keys))], _queue_peeks)

    def extend_claims(self, queue: str, partition: int, consumer: str, claims: Sequence[ClaimRef]) -> Call[str]:
        """Renew a worker's claims on entries of a queue partition, and return which of them it has lost.

        Returns a letter for each claim: k (kept), r (revoked: stop it), l (lost: not ours).
        """
        args: list[Any] = [WORKERS, consumer]
        for claim in claims:
            args += (claim.entry, claim.step, claim.details)
        return Call("extend_claims", _claim_keys(self.keys.queue(queue, partition)), args, bytes.decode)

    def expired_claims(
        self, queue: str, partition: int, idle_ms: int, quiet_ms: int, limit: int, after: str
    ) -> Call[ExpiredClaims]:
        """Return entries whose workers are considered dead, with the details that their steps reported last.

        These are entries, at most `limit`, whose claim was not renewed for `idle_ms`; they stay until they are acked.
        Consumers that have no entry and were idle for `quiet_ms` are removed. `after`: the `last` of the call before,
        or empty.
        """
        args = [WORKERS, idle_ms, quiet_ms, limit, after]
        return Call("expired_claims", _claim_keys(self.keys.queue(queue, partition)), args, _expired_claims)

    def restart_claims(self, queue: str, partition: int, limit: int, after: str = "") -> Call[str]:
        """Let all claims on the entries of a queue partition begin a new idle time, whichever worker has them.

        At most `limit`, behind the entry `after`. Returns the last one, if there may be more behind it, else ''.
        """
        keys = self.keys.queue(queue, partition)
        return Call("restart_claims", [keys.stream, keys.details], [WORKERS, limit, after], bytes.decode)

    def settle_attempts(self, queue: str, partition: int, settlements: Sequence[Settlement]) -> Call[str]:
        """Put the outcomes of attempts into the shard's inbox, and remove their entries from the queue.

        Returns a letter for each: a (accepted), r (revoked, or without outcome), l (lost: it doesn't count).
        """
        shard = self.keys.shard(partition)
        args: list[Any] = [WORKERS]
        for one in settlements:
            args += (one.entry, one.step, one.body)
        keys = [shard.inbox, shard.kept, *_claim_keys(self.keys.queue(queue, partition))]
        return Call("settle_attempts", keys, args, bytes.decode)

    def requeue_attempts(self, queue: str, partition: int, consumer: str, claims: Sequence[ClaimRef]) -> Call[int]:
        """Return a leaving worker's entries to the queue; another worker takes them under the same attempt.

        Returns the number of new entries.
        """
        args: list[Any] = [WORKERS, consumer]
        for claim in claims:
            args += (claim.entry, claim.step, claim.details)
        return Call("requeue_attempts", _claim_keys(self.keys.queue(queue, partition)), args)

    # --- the namespace ------------------------------------------------------------------------------------------------

    def heartbeat(
        self,
        member: str,
        heartbeat: bytes,
        dead: Iterable[tuple[str, bytes]] = (),
        *,
        joins: bool = True,
        others: bool = True,
        members: str = "",
        hashes: Sequence[str] = (),
    ) -> Call[Heartbeats]:
        """Store a heartbeat of a daemon or worker, remove members that the caller considers dead, and return all
        heartbeats; without `others` only the caller's.

        An empty `heartbeat` removes the member itself. `dead`: (member, heartbeat that was seen last). Without `joins`
        it is stored only if the caller is a member already. `members`: the key that has them, unless it is that of the
        daemons. `hashes`: keys of the namespace that are read, too. Returns the heartbeats, these, and the server's
        time.
        """
        args: list[Any] = [member, heartbeat, "1" if joins else "", "1" if others else ""]
        for dead_member, last_heartbeat in dead:
            args += (dead_member, last_heartbeat)
        return Call("heartbeat", [members or self.keys.members, *hashes], args, _heartbeats)

    def mark_suspects(self, member: str, seconds: int, body: bytes) -> Call[bytes]:
        """Note what a daemon or worker is about to run that may end its process, for its successor.

        `body` is encoded, empty to delete the note; it stays for so many `seconds`. Returns `OK`.
        """
        return Call("mark_suspects", [self.keys.suspects(member)], [seconds, body])

    def pause(self, what: str, note: bytes) -> Call[bytes]:
        """Note that something (`queue:<name>`, `workflow:<name>`) is paused; an empty note: that it goes on. Returns
        the note that was there and stays, empty if there was none.
        """
        return Call("pause", [self.keys.paused], [what, note])

    def open_namespace(
        self, shards: int, partition: Partition, identity: str = "", workflows: Sequence[tuple[str, bytes]] = ()
    ) -> Call[NamespaceRecord]:
        """Create the namespace's meta record unless it exists, and register the workflows of an app.

        `identity` is for new data; without one it is random. `workflows`: names and descriptions, JSON. Returns what is
        stored.
        """
        args: list[Any] = [shards, str(partition), SCHEMA, identity or secrets.token_hex(8)]
        for name, description in workflows:
            args += (name, description)
        return Call("open_namespace", [self.keys.meta, self.keys.workflows], args, _namespace_record)

    def store_records(self, records: Sequence[Put]) -> Call[bytes]:
        """Set fields of hashes, or strings (no field): writes of the draining side that belong to no commit.

        All keys must be of one shard, of one queue partition, or of the namespace. Returns `OK`.
        """
        args: list[Any] = []
        for record in records:
            args += (record.field, record.value)
        return Call("store_records", [record.key for record in records], args)

    def create_group(self, queue: str, partition: int) -> Call[bytes]:
        """Create the workers' consumer group of a queue partition, where it is missing. Returns `OK`."""
        return Call("create_group", [self.keys.queue(queue, partition).stream], [WORKERS])

    @staticmethod
    def _listing_keys(keys: ShardKeys, run_id: str, status: str, workflow: str, tenant: str) -> tuple[str, str, str]:
        return (
            keys.run(run_id),
            keys.index(listed_under(status), workflow),
            keys.tenant(tenant or "-"),
        )


def _namespace_record(reply: list[bytes]) -> NamespaceRecord:
    shards, partition, schema, identity = reply
    return NamespaceRecord(int(shards), Partition(partition.decode()), int(schema), identity.decode())


def listed_under(status: str) -> str:
    """The status in the name of the listing that has the runs of this `status`: pending runs are under running."""
    return Status.RUNNING if status == Status.PENDING else status


def asks_for_buckets(reply: object) -> bool:
    """Whether this is the reply `ASLEEP`."""
    return reply in (ASLEEP, ASLEEP.encode())


def _put_once(reply: Any) -> Any:
    if isinstance(reply, bytes):
        return reply  # ASLEEP
    letter, created, header = reply
    return PutOnce(letter.decode(), _number(created), header)


def _time(now: int | None) -> int | str:
    return "" if now is None else now


def _claim_keys(keys: QueueKeys) -> list[str]:
    return [keys.stream, keys.steps, keys.details]


def _pairs(reply: list[bytes]) -> list[tuple[bytes, bytes]]:
    return list(zip(reply[::2], reply[1::2], strict=True))


def _records(reply: list[Any]) -> list[tuple[int | None, list[bytes]] | StoreError]:
    return [
        StoreError(f"read_runs: {elements[0].decode(errors='replace')}")
        if following == b"!"
        else (int(following) if following else None, elements)
        for following, elements in zip(reply[::2], reply[1::2], strict=True)
    ]


def _hash_fields(reply: list[Any]) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    return reply[0], _pairs(reply[1:])


def _stream_entries(reply: list[Any]) -> tuple[bool, list[StreamEntry]]:
    entries = [
        (entry, dict(zip(words[::2], words[1::2], strict=True)))
        for entry, words in zip(reply[1::2], reply[2::2], strict=True)
    ]
    return reply[0] == b"1", entries


def _quarantine_entries(reply: list[Any]) -> list[QuarantineEntry]:
    return [
        QuarantineEntry(entry.decode(), int(size), dict(zip(words[::2], words[1::2], strict=True)))
        for entry, size, words in zip(reply[::3], reply[1::3], reply[2::3], strict=True)
    ]


def _inbox_page(reply: list[Any]) -> InboxPage:
    if reply[0] != b"OK":
        return InboxPage(Reply(reply[0].decode()))
    more, entries = _stream_entries(reply[1:])
    return InboxPage(Reply.OK, more, entries)


def _chunk_page(reply: list[bytes]) -> ChunkPage:
    header, made, first, following, total, *rest = reply
    entries = [(int(number), text) for number, text in _pairs(rest)]
    return ChunkPage(header, made.decode(), int(first), int(following), int(total), entries)


def _heartbeats(reply: list[Any]) -> Heartbeats:
    clock, heartbeats, *hashes = reply
    members = {name.decode(errors="replace"): value for name, value in _pairs(heartbeats)}
    return Heartbeats(int(clock), members, [None if fields is None else dict(_pairs(fields)) for fields in hashes])


def _code(reply: list[bytes]) -> Reply:
    return Reply(reply[0].decode())


def _moved(reply: list[bytes]) -> tuple[Reply, list[bool]]:
    if reply[0] != b"OK":
        return Reply(reply[0].decode()), []
    return Reply.OK, [moved == b"1" for moved in reply[1:]]


def _woken(reply: list[bytes]) -> tuple[Reply, bytes]:
    return Reply(reply[0].decode()), reply[1] if len(reply) > 1 else b""


def _acquired(reply: list[bytes]) -> Acquired:
    if reply[0] == b"OK":
        delivered, final, asleep = reply[3:6]
        sleeping = int(asleep) if asleep.isdigit() else 0
        return Acquired(Reply.OK, reply[1].decode(), int(reply[2]), "", delivered.decode(), final.decode(), sleeping)
    return Acquired(Reply(reply[0].decode()), reply[1].decode(), 0, reply[2].decode())


def _count_and_entry(reply: list[Any]) -> tuple[int, str]:
    return reply[0], reply[1].decode()


def _due_runs(reply: list[bytes]) -> DueRuns:
    if reply[0] != b"OK":
        return DueRuns(Reply(reply[0].decode()), None, [])
    # Scores come back as the text of a double; a due time is whole ms.
    upcoming = int(float(reply[1])) if reply[1] else None
    return DueRuns(Reply.OK, upcoming, [run_id.decode(errors="replace") for run_id in reply[2:]])


def _next_starts(reply: list[Any]) -> NextStarts:
    if reply[0] != b"OK":
        return NextStarts(Reply(reply[0].decode()), 0, 0, [])
    runs = [(run_id.decode(errors="replace"), int(float(turn))) for run_id, turn in _pairs(reply[3:])]
    return NextStarts(Reply.OK, int(reply[1]), int(reply[2]), runs)


def _committed(reply: list[bytes]) -> Committed:
    code = Reply(reply[0].decode())
    if code is Reply.OK or code is Reply.DUP:
        return Committed(code, int(reply[1]), reply[2].decode(), [])
    return Committed(code, 0, "", [item.decode() for item in reply[1:]])


def _checkpointed(reply: list[Any]) -> Checkpointed:
    code = Reply(reply[0].decode())
    if code is not Reply.OK:
        return Checkpointed(code, 0)
    return Checkpointed(code, int(reply[1]), int(reply[2]) if reply[2] else None)


def _transitions(reply: list[bytes]) -> list[bytes | None]:
    return [None if transition == b"-" else transition for transition in reply]


def _missed(words: bytes) -> Missed | None:
    parts = words.decode(errors="replace").split()
    if len(parts) != 4 or not parts[0].isdigit():
        return None
    return Missed(int(parts[0]), parts[1], parts[2], int(float(parts[3])))


def _claimed(reply: list[bytes]) -> Claimed:
    code = Reply(reply[0].decode())
    if code is Reply.OK:
        return Claimed(code, reply[1].decode(), "", reply[2].decode(), _missed(reply[3]))
    if code is Reply.CONFLICT:
        return Claimed(code, reply[1].decode(), reply[2].decode(errors="replace"))
    return Claimed(code)


def _acknowledged(reply: list[bytes]) -> Acknowledged:
    code = Reply(reply[0].decode())
    if code is Reply.OK:
        return Acknowledged(code, reply[1].decode(), _missed(reply[2]))
    return Acknowledged(code, reply[1].decode() if code is Reply.BEHIND else "")


def view_position(view: str) -> str:
    """The field of a shard's positions that says up to where the view of an app counts."""
    return f"/view/{view}"


def position_words(value: bytes) -> tuple[str, str, int, str, str]:
    """Identity, offset, entries read, token and holder (empty for none) of a group's position."""
    identity, offset, read, token, holder = value.decode().split(" ")
    return identity, offset, int(read), token, "" if holder == "-" else holder


def _group_positions(reply: list[bytes]) -> list[GroupPosition]:
    return [
        GroupPosition(
            group.decode(errors="replace"),
            *position_words(value),
            _missed(missed),
            int(waiting),
            int(oldest.partition(b"-")[0] or 0),
        )
        for group, value, missed, waiting, oldest in zip(*[iter(reply)] * 5, strict=True)
    ]


def _queue_peeks(reply: list[Any]) -> list[QueuePeek]:
    return [
        QueuePeek(waiting, claimed, first.decode(), before, consumer.decode(errors="replace"), idle)
        for waiting, claimed, first, before, consumer, idle in zip(*[iter(reply)] * 6, strict=True)
    ]


def _expired_claims(reply: list[bytes]) -> ExpiredClaims:
    claims: list[ExpiredClaim] = []
    for entry, consumer, step, attempt, details in zip(*[iter(reply[3:])] * 5, strict=True):
        run_id, seq = split_step(step)
        created, number = split_attempt(attempt)
        name = consumer.decode(errors="replace")
        claims.append(ExpiredClaim(entry.decode(), name, run_id, created, seq, number, details))
    return ExpiredClaims(reply[1].decode(), claims, int(reply[0]), _number(reply[2]))


def split_step(step: bytes) -> tuple[str, int]:
    """Run id and number from `<run id>/<seq>`: 0 for what streamflow has not written."""
    run_id, _, seq = step.rpartition(b"/")
    return run_id.decode(errors="replace"), _number(seq)


def split_attempt(attempt: bytes) -> tuple[int, int]:
    """`created` of the run and the attempt's number from `<created> <attempt>`: 0 for what streamflow has not
    written."""
    created, _, number = attempt.partition(b" ")
    return _number(created), _number(number)


def _number(text: bytes) -> int:
    """0, which no run, step or attempt has, for what streamflow has not written: no answer is unreadable for it."""
    return int(text) if text.isdigit() and len(text) <= MAX_DIGITS else 0
