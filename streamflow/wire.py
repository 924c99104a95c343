"""The bodies of messages: what the inbox and the outbox carry, decoded into inputs for a run.

Owns: the encodings that are shared by client, machines and other shards' owners. Must not: know keys or runs.
Called by: owner and worker (decode), batch (encodes attempts), relay (outbox to delivery or offer), membership and
status (heartbeats). `pure.machine` and the client encode, too.
"""

from __future__ import annotations

import re

import msgspec
from msgspec import Raw

from streamflow import events
from streamflow.errors import Failure, InvalidName
from streamflow.events import (
    NOTHING,
    AnyEvent,
    AskReceived,
    CancelRequested,
    ChildCompleted,
    RunStarted,
    SignalReceived,
)
from streamflow.machine.transition import Input, Outcome
from streamflow.model import codec
from streamflow.model.names import check_name, check_run_id
from streamflow.model.record import Header
from streamflow.store.kernel import Delivery, Offer
from streamflow.workflow.actions import StepJob


class InboxMessage(msgspec.Struct, frozen=True):
    """An entry of the inbox as it was read. `header` is that of a new run (kind `start`), or a parent (`taken`)."""

    id: str
    kind: str
    run_id: str
    body: bytes
    header: bytes = b""


_signal = msgspec.msgpack.Decoder(tuple[str, Raw])
_ask = msgspec.msgpack.Decoder(tuple[str, Raw, str])
_reason = msgspec.msgpack.Decoder(str)
_event = msgspec.msgpack.Decoder(AnyEvent)
_start = msgspec.msgpack.Decoder(tuple[str, str, str, Raw])


class _Outcome(msgspec.Struct):
    """An `Outcome` as it is encoded: `Raw | None` can be encoded, but not decoded."""

    seq: int
    attempt: int
    ms: float
    result: Raw
    failure: Failure | None = None
    permanent: bool = False
    details: Raw = NOTHING


_outcome = msgspec.msgpack.Decoder(_Outcome)


LONGEST_MS = 1e14
"""That a step may have run, some 3,000 years."""
ASK_ID = re.compile("[0-9a-f]{32}")
"""It becomes part of a key, so it is checked."""


def answer_name(ask_id: str) -> str:
    """How an answer is called in the news of a shard, beside the ids of runs that ended: none of those begins so."""
    return f"?{ask_id}"


class QueuedStep(msgspec.Struct, array_like=True, frozen=True):
    """An attempt on its way to a worker: the body of `step` and `revoke` messages, and of a queue's entries."""

    queue: str
    seq: int
    attempt: int
    name: str
    timeout: float | None
    args: Raw
    details: Raw
    created: int
    """Of the run, as in its header."""


_queued = msgspec.msgpack.Decoder(QueuedStep)
_encode = msgspec.msgpack.Encoder().encode


class BadMessage(Exception):
    """Nothing can be made of a message; the text is the reason that is recorded with it."""


def decode_message(message: InboxMessage, header: Header | None) -> Input:
    """The input that a message stands for. `header` is the new run's, for a start. Raises `BadMessage`."""
    try:
        check_run_id(message.run_id)
        if message.kind == "start":
            if header is None:
                raise BadMessage("a start without a header")
            _check_payload(message.body)
            return RunStarted(header.workflow, header.tenant, Raw(message.body), header.parent)
        if message.kind == "signal":
            name, value = _signal.decode(message.body)
            codec.check_payload(memoryview(value), f"value of signal {name}")
            return SignalReceived(check_name("signal", name), value.copy())
        if message.kind == "ask":
            name, value, ask_id = _ask.decode(message.body)
            codec.check_payload(memoryview(value), f"value of ask {name}")
            if not ASK_ID.fullmatch(ask_id):
                raise BadMessage(f"the id of an ask is 32 hex digits, not {ask_id[:64]!r}")
            return AskReceived(ask_id, check_name("ask", name), value.copy())
        if message.kind in ("cancel", "terminate"):
            return CancelRequested(_reason.decode(message.body), message.kind == "terminate")
        if message.kind == "child":
            event = _event.decode(message.body)
            if isinstance(event, ChildCompleted | events.ChildFailed):
                return event
            raise BadMessage(f"a child's outcome was expected, not {type(event).__name__}")
        if message.kind == "outcome":
            one = _outcome.decode(message.body)
            if not 0 <= one.ms <= LONGEST_MS:  # nor what isn't a number: the views add it up
                raise BadMessage(f"an outcome after {one.ms} ms")
            result = one.result.copy() if one.failure is None else None
            return Outcome(one.seq, one.attempt, one.ms, result, one.failure, one.permanent, one.details.copy())
    except BadMessage:
        raise
    except Exception as error:
        # Whatever decoding hostile bytes raises (RecursionError, UnicodeDecodeError, …): it must not stop the shard.
        raise BadMessage(f"{message.kind or 'message'}: {type(error).__name__}: {error}"[:500]) from error
    raise BadMessage(f"unknown kind of message: {message.kind[:50]!r}")


def _check_payload(body: bytes) -> None:
    if not body:
        raise BadMessage("a start without input")
    codec.check_payload(body, "input of a start")
    msgspec.msgpack.decode(body, type=Raw)


def encode_job(job: StepJob, created: int, *, revoked: bool = False) -> bytes:
    """The body of an attempt that goes to its step's queue, or of its revocation, which needs no arguments."""
    args, details = (NOTHING, NOTHING) if revoked else (job.args, job.details)
    queue = job.step.queue or ""
    return _encode(QueuedStep(queue, job.seq, job.attempt, job.step.name, job.timeout, args, details, created))


def decode_job(body: bytes) -> QueuedStep:
    """Raises one of `DECODE_ERRORS`."""
    return _queued.decode(body)


def to_offer(number: str, kind: str, run_id: str, body: bytes) -> tuple[str, Offer]:
    """An outbox entry for a queue, and the queue. Raises one of `DECODE_ERRORS` when it isn't one of ours."""
    one = decode_job(body)
    try:
        check_name("queue", one.queue)
    except InvalidName as error:
        raise ValueError(str(error)) from error
    return one.queue, Offer(number, kind, run_id, one.created, one.seq, one.attempt, bytes(one.details), body)


def to_delivery(number: str, kind: str, run_id: str, body: bytes) -> Delivery:
    """An outbox entry, ready for `Kernel.deliver_messages`. Raises one of `DECODE_ERRORS` when it isn't one of ours."""
    if kind != "start":
        return Delivery(number, kind, run_id, body)
    workflow, tenant, parent, input_ = _start.decode(body)
    return Delivery(number, kind, run_id, bytes(input_), workflow, tenant, parent)


# --- heartbeats -------------------------------------------------------------------------------------------------------


class Heartbeat(msgspec.Struct, kw_only=True):
    """What a daemon reports about itself with each heartbeat; the field names are those of the JSON on the server.

    Other daemons decide by it whether this one is alive, and the status shows its figures: a new field is in every
    `DaemonRow` and in `status --json`, in this order (see `screen/panels/daemons.py`). Each field has a default, and
    unknown ones are ignored, because daemons of two versions read each other's heartbeats.
    """

    name: str = ""
    started: int = 0
    """Server clock, ms. Another value: another process, whose counters began at 0."""
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
    """Shards that are stopped because the server refuses their commits: number -> reason."""


_heartbeat = msgspec.json.Decoder(Heartbeat)


def decode_heartbeat(raw: bytes) -> Heartbeat:
    """An empty one for what can't be decoded (garbage, or another version's): the member exists all the same."""
    try:
        return _heartbeat.decode(raw)
    except codec.DECODE_ERRORS:
        return Heartbeat()
