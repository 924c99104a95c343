"""The bodies of messages: what the inbox and the outbox carry, decoded into inputs for a run.

Owns: the encodings that the client, machines and the owners of other shards share. Must not: know keys or runs.
Called by: batch (decodes messages, encodes attempts), worker (decodes attempts), relay (outbox to delivery),
membership and status (heartbeats). The machines and the client encode, too.
"""

from __future__ import annotations

import binascii
import re

import msgspec
from msgspec import Raw

from streamflow.errors import Failure
from streamflow.events import (
    NOTHING,
    AskReceived,
    CancelRequested,
    RunForked,
    RunStarted,
    SignalReceived,
)
from streamflow.machine.transition import (
    AgainRequest,
    CompletedChild,
    FailedChild,
    Input,
    Outcome,
    PauseRequest,
    ResumeRequest,
    RetryRequest,
    Returned,
)
from streamflow.model import codec
from streamflow.model.blocked import BlockedLine
from streamflow.model.names import check_name, check_run_id
from streamflow.model.record import Header, ParentLink, parent_link
from streamflow.model.reports import StepBeat
from streamflow.model.trace_context import checked
from streamflow.store.kernel import Delivery
from streamflow.workflow.actions import StepJob
from streamflow.workflow.recording import Record, fits

ABOUT_OTHERS = frozenset({"taken", "waiting"})
"""Kinds of messages that the owner of a run takes, and not the run."""


class InboxMessage(msgspec.Struct, frozen=True):
    """An entry of the inbox as it was read. `header`: of a new run (kind `start`), or the parent (`taken`).
    `identity`: what tells it from other messages when it comes again after a failover; empty if nothing needs to."""

    id: str
    kind: str
    run_id: str
    body: bytes
    header: bytes = b""
    identity: bytes = b""

    @property
    def waited(self) -> bool:
        """A start that has waited for its turn, outside the inbox (`OwnedShard.next_waited`)."""
        return self.id.startswith("0-")

    @property
    def is_for_run(self) -> bool:
        """Whether it is the run that takes it, and not its owner, whom it tells about others."""
        return self.kind not in ABOUT_OTHERS


def stream_order(entry_id: str) -> tuple[int, int]:
    """By which the ids of a stream's entries are in order."""
    ms, _, number = entry_id.partition("-")
    return int(ms), int(number)


class Signal(msgspec.Struct, array_like=True, frozen=True):
    """The body of a `signal` message. `trace`: the packed trace context of its sender; only encoded if there is one, as
    in all messages, so that nothing is spent where nothing is traced."""

    name: str
    value: Raw
    trace: str = ""


class Ask(msgspec.Struct, array_like=True, frozen=True):
    """The body of an `ask` message."""

    name: str
    value: Raw
    id: str
    trace: str = ""


class _Start(msgspec.Struct, array_like=True, frozen=True):
    """The start of a child, in the outbox."""

    workflow: str
    tenant: str
    parent: str
    input: Raw
    trace: str = ""


_signal = msgspec.msgpack.Decoder(Signal)
_ask = msgspec.msgpack.Decoder(Ask)
_reason = msgspec.msgpack.Decoder(str)
_child = msgspec.msgpack.Decoder(CompletedChild | FailedChild)
_to_child = msgspec.msgpack.Decoder(tuple[str, str, Raw])
_returned = msgspec.msgpack.Decoder(tuple[int, int, Raw])
_retry = msgspec.msgpack.Decoder(RetryRequest)
_again = msgspec.msgpack.Decoder(AgainRequest)
_pause = msgspec.msgpack.Decoder(PauseRequest)
_resume = msgspec.msgpack.Decoder(ResumeRequest)
_start = msgspec.msgpack.Decoder(_Start)


class _Outcome(msgspec.Struct):
    """An `Outcome` as encoded, for decoding: msgspec encodes `Raw | None`, but can't decode it."""

    seq: int
    attempt: int
    ms: float
    result: Raw = NOTHING
    failure: Failure | None = None
    permanent: bool = False
    details: Raw = NOTHING
    kinds: tuple[str, ...] = ()
    to_blame: bool = False
    mark: bytes = b""
    records: tuple[Record, ...] = ()


_outcome = msgspec.msgpack.Decoder(_Outcome)
_raw = msgspec.msgpack.Decoder(Raw)


MAX_STEP_MS = 1e14
"""The longest duration of a step that is accepted: some 3,000 years."""
ASK_ID = re.compile("[0-9a-f]{32}")
"""An ask's id becomes part of a key, so it is checked."""


def answer_name(ask_id: str) -> str:
    """The name of an answer in a shard's notifications, next to ids of ended runs: no run id begins with `?`."""
    return f"?{ask_id}"


def published_name(run_id: str) -> str:
    """The name under which a shard's notifications say that a run has published something: no run id begins with
    `!`."""
    return f"!{run_id}"


class _Ending(msgspec.Struct, array_like=True, frozen=True):
    """A transition in a notification: where it comes from is behind its fields, where other readers of transitions
    don't look."""

    at: int
    events: Raw
    created: int = 0
    identity: str = ""


def notified_ending(transition: bytes, created: int, identity: str) -> bytes:
    """The encoded transition that ended a run, for the notification of waiting clients: with the run's `created` and
    the `identity` of the namespace's data, because channels are the same in all databases of a server."""
    return b"\x94" + transition[1:] + _encode(created) + _encode(identity)  # an array of four elements, instead of two


def origin_of(notified: bytes) -> tuple[int, str]:
    """`created` of the run that a notified transition has ended, and its namespace's identity; 0 and empty if that
    can't be known."""
    try:
        ending = _ending.decode(notified) if notified else None
    except codec.DECODE_ERRORS:
        ending = None
    return (0, "") if ending is None else (ending.created, ending.identity)


class QueuedStep(msgspec.Struct, array_like=True, frozen=True):
    """An attempt on its way to a worker: the body of a queue's entries."""

    queue: str
    seq: int
    attempt: int
    name: str
    timeout: float | None
    args: Raw
    details: Raw
    created: int
    """When the run was created (ms), as in its header."""
    lost: int = 0
    """Attempts before it that ended because their worker died."""
    blamed: bool = False
    """The last one is most probably what ended it."""
    signature: str = ""
    """The names of the step's parameters at the daemon; empty from an older one."""
    workflow: str = ""
    """The run's, for log lines."""
    trace: str = ""
    """The packed trace context of the run; empty if it isn't traced."""
    mark: bytes = b""
    """What the outcome has to name (`StepCall.mark`)."""


_ending = msgspec.msgpack.Decoder(_Ending)
_queued = msgspec.msgpack.Decoder(QueuedStep)
_encode = msgspec.msgpack.Encoder().encode


_FORK = 70
"""The extension type under which a fork's start stands in the place of an input. A release that has no forks can't
decode it, and lets the run fail."""
_forked = msgspec.msgpack.Decoder(RunForked)


def encode_fork(fork: RunForked) -> bytes:
    """The body of a fork's `start` message."""
    data = _encode(fork)
    return b"\xc9" + len(data).to_bytes(4, "big") + bytes((_FORK,)) + data


def is_fork(body: bytes) -> bool:
    """Whether the body of a `start` message is that of a fork."""
    return body[:1] == b"\xc9" and body[5:6] == bytes((_FORK,))


def decode_fork(body: bytes, header: Header) -> RunForked:
    """`header`: the fork's. Raises one of `DECODE_ERRORS`."""
    fork = _forked.decode(memoryview(body)[6:])
    if not fork.history or not fork.history[0].events or not 0 <= fork.kept <= fork.shared:
        raise ValueError("a fork that shares nothing")
    return msgspec.structs.replace(fork, workflow=header.workflow, tenant=header.tenant, created=header.created)


class BadMessage(Exception):
    """A message that can't be turned into an input; the text is the reason that is recorded with it."""


def decode_message(message: InboxMessage, header: Header | None) -> Input:
    """The input that a message stands for. `header` is the new run's, for a start. Raises `BadMessage`."""
    try:
        check_run_id(message.run_id)
        if message.kind == "start":
            if header is None:
                raise BadMessage("a start message without a header")
            if is_fork(message.body):
                return decode_fork(message.body, header)
            _check_payload(message.body)
            parent = header.parent
            return RunStarted(header.workflow, header.tenant, Raw(message.body), parent, created=header.created)
        if message.kind == "outcome":
            outcome = _outcome.decode(message.body)
            if not 0 <= outcome.ms <= MAX_STEP_MS:  # false for NaN, too: the views add durations up
                raise BadMessage(f"an outcome with a duration of {outcome.ms} ms")
            if outcome.records and not fits(outcome.records):
                raise BadMessage(f"an outcome with {len(outcome.records)} recorded values, more or others than allowed")
            result = outcome.result.copy() if outcome.failure is None else None
            return Outcome(
                outcome.seq,
                outcome.attempt,
                outcome.ms,
                result,
                outcome.failure,
                outcome.permanent,
                outcome.details.copy(),
                outcome.kinds,
                outcome.to_blame,
                outcome.mark,
                outcome.records,
            )
        if message.kind == "signal":
            signal = _signal.decode(message.body)
            codec.check_payload(memoryview(signal.value), f"value of signal {signal.name}")
            return SignalReceived(check_name("signal", signal.name), signal.value.copy())
        if message.kind == "ask":
            ask = _ask.decode(message.body)
            codec.check_payload(memoryview(ask.value), f"value of ask {ask.name}")
            if not ASK_ID.fullmatch(ask.id):
                raise BadMessage(f"the id of an ask must be 32 hex digits, got {ask.id[:64]!r}")
            return AskReceived(ask.id, check_name("ask", ask.name), ask.value.copy())
        if message.kind in ("cancel", "terminate"):
            return CancelRequested(_reason.decode(message.body), message.kind == "terminate")
        if message.kind == "retry":
            retry = _retry.decode(message.body)
            if not ASK_ID.fullmatch(retry.id):
                raise BadMessage(f"the id of a retry must be 32 hex digits, got {retry.id[:64]!r}")
            codec.check_payload(message.body, "body of a retry")
            return retry
        if message.kind == "again":
            again = _again.decode(message.body)
            if not ASK_ID.fullmatch(again.id) or parent_link(again.parent) is None:
                raise BadMessage("a message to a child that goes on, without a parent's retry")
            codec.check_payload(message.body, "body of an again")
            return again
        if message.kind == "pause":
            codec.check_payload(message.body, "body of a pause")
            return _pause.decode(message.body)
        if message.kind == "resume":
            codec.check_payload(message.body, "body of a resume")
            return _resume.decode(message.body)
        if message.kind == "child":
            return _child.decode(message.body)
        if message.kind == "returned":
            seq, attempt, details = _returned.decode(message.body)
            return Returned(seq, attempt, details.copy())
    except BadMessage:
        raise
    except Exception as error:
        # Whatever decoding hostile bytes raises (RecursionError, UnicodeDecodeError, …): it must not stop the shard.
        raise BadMessage(f"{message.kind or 'message'}: {type(error).__name__}: {error}"[:500]) from error
    raise BadMessage(f"unknown message kind: {message.kind[:50]!r}")


def _check_payload(body: bytes) -> None:
    if not body:
        raise BadMessage("a start message without input")
    codec.check_payload(body, "input of a start message")
    _raw.decode(body)


def trace_of(message: InboxMessage) -> str:
    """The packed trace context of who has sent a signal or an ask; empty for none, and for other messages."""
    if message.kind not in ("signal", "ask"):
        return ""
    return (_signal if message.kind == "signal" else _ask).decode(message.body).trace


def encode_job(job: StepJob, created: int, workflow: str = "", trace: str = "") -> bytes:
    """The body of an attempt for its step's queue. What an attempt before has reported travels beside it."""
    step = job.step
    return _encode(
        QueuedStep(
            step.queue or "",
            job.seq,
            job.attempt,
            step.name,
            job.timeout,
            job.args,
            NOTHING,
            created,
            job.lost,
            job.blamed,
            step.parameters.signature,
            workflow,
            trace,
            job.mark,
        )
    )


def encode_outcome(outcome: Outcome) -> bytes:
    """The body of an `outcome` message."""
    return _encode(outcome)


def encode_returned(seq: int, attempt: int, details: Raw) -> bytes:
    """The body of a `returned` message: the attempt has not ended, and its host doesn't run it any more."""
    return _encode((seq, attempt, details))


def decode_job(body: bytes) -> QueuedStep:
    """Raises one of `DECODE_ERRORS`."""
    return _queued.decode(body)


def refused_child(run_id: str, parent: ParentLink) -> bytes:
    """The body of a `child` message that tells the parent that the id of its child is another run's."""
    failure = Failure("RunConflict", f"the run id {run_id} belongs to another run")
    return _encode(FailedChild(parent.seq, "", failure, created=parent.created, run_id=run_id))


def child_outcome(outcome: CompletedChild | FailedChild) -> bytes:
    """The body of a `child` message that doesn't come from the run itself."""
    return _encode(outcome)


def to_delivery(number: str, kind: str, run_id: str, body: bytes, identity: bytes = b"") -> Delivery:
    """A message in an outbox as a delivery for `Kernel.deliver_messages`. Raises one of `DECODE_ERRORS` when it was not
    written by this code."""
    text = binascii.b2a_base64(identity, newline=False).decode() if identity else ""
    if kind == "to-child":
        kind, parent, inner = _to_child.decode(body)
        return Delivery(number, kind, run_id, bytes(inner), parent=parent, identity=text)
    if kind != "start":
        return Delivery(number, kind, run_id, body, identity=text)
    start = _start.decode(body)
    return Delivery(
        number, kind, run_id, bytes(start.input), start.workflow, start.tenant, start.parent, checked(start.trace)
    )


class OutboxMessage(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A message in an outbox. `target`: a shard."""

    target: int
    kind: str
    run_id: str
    body: bytes
    identity: bytes = b""
    """What a signal or cancel is, for a target that may have it already (`RunMachine._identity`)."""


_outbox = msgspec.msgpack.Decoder(list[OutboxMessage])


def encode_outbox(messages: list[OutboxMessage]) -> bytes:
    """The messages of an entry of an outbox."""
    return _encode(messages)


def decode_outbox(data: bytes) -> list[OutboxMessage]:
    """Raises one of `DECODE_ERRORS`."""
    return _outbox.decode(data)


# --- heartbeats -------------------------------------------------------------------------------------------------------


def partition_name(queue: str, number: int) -> str:
    """What a partition of a queue is called where something fails for it."""
    return f"partition {number} of queue {queue}"


class StorageWait(msgspec.Struct, frozen=True):
    """A run that waits for storage at a daemon. `what`: for what, in words; `error`: why storage hasn't given it."""

    shard: int
    run_id: str
    what: str
    seconds: float
    error: str = ""


class Heartbeat(msgspec.Struct, kw_only=True):
    """What a daemon reports about itself with each heartbeat; the field names are those of the JSON on the server.

    Other daemons decide by it whether this one is alive, and the status shows its figures: a new field is in every
    `DaemonRow` and in `status --json`, in this order (see `screen/panels/daemons.py`). Each field has a default, and
    unknown ones are ignored, because daemons of two versions read each other's heartbeats.
    """

    name: str = ""
    started: int = 0
    """The daemon's clock, ms. Another value: another process, whose counters began at 0."""
    shards: list[int] = []
    """The shards that it owns."""
    running: int = 0
    """Steps that are running."""
    waiting: int = 0
    """Steps that wait for a free slot, thread or process."""
    live: int = 0
    """Runs in memory."""
    inbox: int = 0
    """Messages that it has read from the inboxes and not processed yet."""
    starts: int = 0
    """Starts that wait for their turn."""
    unfolded: int = 0
    """Log entries that the stored views don't cover yet."""
    folds: int = 0
    """Checkpoints of views since it started."""
    steps: int = 0
    """Steps started since it started."""
    rss: int = 0
    """Resident memory, bytes."""
    cpu: float = 0.0
    """CPU seconds since it started."""
    beat: int = 0
    """Rises by one with each heartbeat."""
    draining: bool = False
    version: str = ""
    broken: dict[str, str] = {}
    """Shards that stand still, the first of them, and why: `shard 5` -> reason."""
    stopped: int = 0
    """How many these are in all."""
    impaired: dict[str, str] = {}
    """Shards and queues for which something else fails: `shard 5`, `partition 3 of queue gpu` -> reason."""

    failing: dict[str, str] = {}
    """Its loops that have failed within the last minute: name -> error."""
    hung: int = 0
    """Threads that still run steps whose attempts ended long ago; others have taken their places."""
    clock: int = 0
    """The daemon's clock when it sent this, ms; 0: a version that has none of its own."""
    ahead: int = 0
    """By how many ms its clock is ahead of the server's, as measured last."""
    lost: int = 0
    """Runs in its memory that the server has lost or set back within the last hour: its log names them."""
    blocked: list[BlockedLine] = []
    """The lines that have blocked its event loop within the last ten minutes, the newest of them."""
    moved: int = 0
    """Shards that have come to it within the last ten minutes, each as often as it has; not those at its start."""
    silent: list[StepBeat] = []
    """Steps that it runs and that have sent heartbeats, and then none for long, the longest first."""
    silent_steps: int = 0
    """How many these are in all."""
    storage_waits: list[StorageWait] = []
    """Runs of its shards that wait for storage for long, the longest first."""
    put_off: int = 0
    """How many these are in all."""
    asleep: int = 0
    """Runs of its shards that were moved out of the server's memory."""


_heartbeat = msgspec.json.Decoder(Heartbeat)


def decode_heartbeat(raw: bytes) -> Heartbeat:
    """An empty one for what can't be decoded (garbage, or another version's): the member exists all the same."""
    try:
        return _heartbeat.decode(raw)
    except codec.DECODE_ERRORS:
        return Heartbeat()
