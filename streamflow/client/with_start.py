"""Signals and questions that come once, and with the start of their run if none is open.

Owns: what tells a message from all others, for how long it is known, and what the server's answer means.
Must not: encode arguments or values, wait for answers. Called by: the client, a run's handle, the sandbox.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Literal, get_args

import msgspec
from msgspec import UNSET, Raw

from streamflow import wire
from streamflow.client.pipelines import Batcher
from streamflow.client.waiting import not_found
from streamflow.errors import RunConflict, RunEnded, UsageError
from streamflow.events import AskAnswered, Transition
from streamflow.model import codec
from streamflow.model.durations import seconds_of
from streamflow.model.names import check_text
from streamflow.model.record import decode_header
from streamflow.model.start_word import MAX_MS
from streamflow.store.kernel import Message, OnceMessage, PutOnce, Start
from streamflow.workflow.messages import Declared, QuestionDefinition

OnEnded = Literal["new", "reject"]
"""What a signal with start does if the run of its id has ended: begins a new one in its place, or raises `RunEnded`."""

REMEMBER = timedelta(days=1)
"""For so long an idempotency id is known."""
SENT_AGAIN = timedelta(minutes=2)
"""For so long a message without one is known: longer than it is sent again after lost replies and failovers."""
MOST_CHARACTERS = 1000


def check_on_ended(on_ended: str) -> None:
    """Raises `UsageError`."""
    if on_ended not in get_args(OnEnded):
        raise UsageError(f"on_ended must be one of {', '.join(get_args(OnEnded))}, got {on_ended!r}")


def once(
    message: Message, idempotency_id: str | None, remember: float | timedelta, start: Start | None = None
) -> OnceMessage:
    """The message, known by its run and its idempotency id, or by a random one. Raises `UsageError`, `InvalidName`."""
    seconds = seconds_of(remember)
    ms = 0 if seconds is None else round(seconds * 1000)
    if not 1 <= ms <= MAX_MS:
        raise UsageError(f"remember must be more than 0 seconds, or a timedelta, and at most 100 years: {remember!r}")
    if idempotency_id is None:
        digest, ms = secrets.token_hex(16), round(SENT_AGAIN.total_seconds() * 1000)
    else:
        digest = digest_of(message.run_id, idempotency_id)
    if start is not None:
        start.word = f"i{digest[:16]}"
    return OnceMessage(message, digest, ms, start)


def digest_of(run_id: str, idempotency_id: str) -> str:
    """32 hex digits that tell the message of this id to this run from all others. Raises `UsageError`."""
    check_text("idempotency id", idempotency_id)
    if not 1 <= len(idempotency_id) <= MOST_CHARACTERS:
        raise UsageError(f"an idempotency id has 1 to {MOST_CHARACTERS} characters, got {len(idempotency_id)}")
    return hashlib.sha256(f"{run_id}\n{idempotency_id}".encode()).hexdigest()[:32]


async def put(batcher: Batcher, shard: int, once: OnceMessage, on_ended: OnEnded) -> PutOnce:
    """Have the run get it. Raises as `settle`, and `StoreError`."""
    while True:
        answer = await batcher.post_once(shard, once)
        start = once.start
        if answer.letter != "e" or start is None or on_ended != "new":
            return settled(once, answer)
        once = msgspec.structs.replace(once, start=msgspec.structs.replace(start, replaces=answer.header))


def settled(once: OnceMessage, answer: PutOnce) -> PutOnce:
    """The same, if the run has the message. Raises `RunConflict`, `RunEnded`, `RunNotFound`."""
    message, start = once.message, once.start
    run_id = message.run_id
    if answer.letter == "c" and start is not None:
        found = decode_header(answer.header).workflow
        raise RunConflict(
            f"the id {run_id} belongs to a run of workflow {found}, not {start.workflow}: it got no {message.kind}; "
            "use another id",
            run_id,
        )
    if answer.letter == "e":
        raise RunEnded(f"run {run_id} has ended: it accepts no {message.kind} any more", run_id)
    if answer.letter == "m":
        raise not_found(run_id)
    return answer


def signal_body(name: str, payload: bytes, trace: str) -> bytes:
    """A signal as the inbox has it."""
    return msgspec.msgpack.encode(wire.Signal(name, Raw(payload), trace) if trace else (name, Raw(payload)))


def ask_body(name: str, payload: bytes, ask_id: str, trace: str) -> bytes:
    """A question as the inbox has it."""
    return msgspec.msgpack.encode(
        wire.Ask(name, Raw(payload), ask_id, trace) if trace else (name, Raw(payload), ask_id)
    )


def answer_type(declared: Declared, question: str | QuestionDefinition[Any, Any], given: Any) -> Any:
    """As what the answer is decoded: the type that is given, or that of the question's definition. Raises
    `PayloadInvalid` for one that can't be decoded, before anything is sent."""
    _, definition = declared.find("question", question)
    if given is UNSET:
        return Any if definition is None else definition.answer
    codec.decoder_for(given)
    return given


def answer_in(history: Iterable[Transition], ask_id: str) -> bytes | None:
    """The encoded answer to a question, from the history of its run; None if there is none yet."""
    for transition in history:
        for event in transition.events:
            if isinstance(event, AskAnswered) and event.id == ask_id:
                return msgspec.msgpack.encode(event)
    return None
