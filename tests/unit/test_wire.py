"""Messages to inputs, outbox entries to deliveries; what hostile bytes give."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamflow import events
from streamflow.errors import Failure
from streamflow.events import AnyEvent, AskReceived, CancelRequested, ChildCompleted, RunStarted, SignalReceived
from streamflow.machine.transition import CompletedChild, FailedChild, Outcome
from streamflow.model.codec import DECODE_ERRORS
from streamflow.model.record import decode_header
from streamflow.store.kernel import Delivery
from streamflow.wire import BadMessage, InboxMessage, decode_message, to_delivery
from tests.support.fakes import pack, signal, start
from tests.support.machine_driver import plain, raw


def of_kind(kind: str, body: bytes, run_id: str = "r") -> InboxMessage:
    return InboxMessage("1-0", kind, run_id, body)


def test_a_start_takes_workflow_tenant_and_parent_from_the_header() -> None:
    message = start("1-0", "r", "flow", 5, tenant="acme", parent="p#3")
    assert decode_message(message, decode_header(message.header)) == RunStarted(
        "flow", "acme", raw((5,)), "p#3", created=900
    )


def test_a_signal_has_its_name_and_its_value_as_bytes() -> None:
    decoded = decode_message(signal("1-0", "r", "go", {"a": 1}), None)
    assert isinstance(decoded, SignalReceived)
    assert (decoded.name, plain(decoded.value)) == ("go", {"a": 1})


@pytest.mark.parametrize(
    ("event", "sent"),
    [
        (ChildCompleted(3, "child", raw(1)), CompletedChild(3, "child", raw(1), 900)),
        (
            events.ChildFailed(3, "child", Failure("E", "no"), cancelled=True),
            FailedChild(3, "child", Failure("E", "no"), True, 900),
        ),
    ],
)
def test_a_childs_end_is_its_event_and_the_life_of_the_parent_behind_it(
    event: ChildCompleted | events.ChildFailed, sent: CompletedChild | FailedChild
) -> None:
    assert decode_message(of_kind("child", pack(sent)), None) == sent
    assert sent.event == event
    assert msgspec.msgpack.decode(pack(sent), type=AnyEvent) == event, "as an earlier release reads it"
    earlier = decode_message(of_kind("child", pack(event)), None)
    assert earlier == msgspec.structs.replace(sent, created=0), "as an earlier release has sent it"


def test_an_ask_has_its_id_its_name_and_its_value_as_bytes() -> None:
    decoded = decode_message(of_kind("ask", pack(("reserve", {"seats": 2}, "0123456789abcdef" * 2))), None)
    assert isinstance(decoded, AskReceived)
    assert (decoded.id, decoded.name, plain(decoded.value)) == ("0123456789abcdef" * 2, "reserve", {"seats": 2})


def test_terminate_is_a_cancel_without_clean_up() -> None:
    assert decode_message(of_kind("terminate", pack("why")), None) == CancelRequested("why", terminate=True)


def test_a_cancel_has_a_reason_and_an_outcome_is_an_outcome() -> None:
    assert decode_message(of_kind("cancel", pack("why")), None) == CancelRequested("why")
    for outcome in (Outcome(1, 2, 0.5, raw(1)), Outcome(1, 2, 0.5, None, Failure("E", "no"), permanent=True)):
        assert decode_message(of_kind("outcome", pack(outcome)), None) == outcome


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (of_kind("joke", b""), "unknown message kind: 'joke'"),
        (of_kind("", b""), "unknown message kind: ''"),
        (of_kind("signal", pack(("go", 1)), run_id="a b"), "run id 'a b' is not allowed"),
        (of_kind("signal", pack(("go", 1))[:-1]), "truncated"),
        (of_kind("signal", pack(("a b", 1))), "signal 'a b' is not allowed"),
        (of_kind("signal", b"\x92\xa2go" + b"\x91" * 65 + b"\xc0"), "nested more than 64 levels"),
        (of_kind("signal", b"\x92\xa2go\xc6\x00\x20\x00\x01" + bytes(2**21 + 1)), "the limit is 2,097,152"),
        (of_kind("ask", pack(("go", 1, "F" * 32))), "the id of an ask must be 32 hex digits, got 'FFFF"),
        (of_kind("ask", pack(("go", 1, "0" * 31 + "}"))), "the id of an ask must be 32 hex digits"),
        (of_kind("ask", pack(("a b", 1, "0" * 32))), "ask 'a b' is not allowed"),
        (of_kind("ask", pack(("go", 1))), "length 3"),
        (of_kind("child", pack(RunStarted("w", "", raw(1)))), "Invalid value 'started'"),
        (of_kind("outcome", pack(Outcome(1, 1, float("nan"), raw(1)))), "an outcome with a duration of nan ms"),
        (of_kind("outcome", pack(Outcome(1, 1, float("inf"), raw(1)))), "an outcome with a duration of inf ms"),
        (of_kind("outcome", pack(Outcome(1, 1, -1.0, raw(1)))), "an outcome with a duration of -1.0 ms"),
        (of_kind("start", b"\x90"), "a start message without a header"),
    ],
)
def test_an_unreadable_message_has_a_reason(message: InboxMessage, reason: str) -> None:
    with pytest.raises(BadMessage, match=reason.replace("(", r"\(")):
        decode_message(message, None)


def test_a_start_without_input_is_refused() -> None:
    header = decode_header(b"pending 0 - 1 0 flow - -")
    with pytest.raises(BadMessage, match="without input"):
        decode_message(of_kind("start", b""), header)


@given(
    st.sampled_from(["start", "signal", "ask", "cancel", "terminate", "child", "outcome", "x"]),
    st.text(max_size=5),
    st.binary(),
)
def test_no_bytes_raise_anything_else(kind: str, run_id: str, body: bytes) -> None:
    header = decode_header(b"pending 0 - 1 0 flow - -")
    with contextlib.suppress(BadMessage):
        decode_message(of_kind(kind, body, run_id or "r"), header)


def test_a_start_from_the_outbox_is_taken_apart_and_others_go_as_they_are() -> None:
    body = pack(["leaf", "acme", "p#1", msgspec.Raw(pack([5]))])
    assert to_delivery("7-1", "start", "p.1", body) == Delivery("7-1", "start", "p.1", pack([5]), "leaf", "acme", "p#1")
    assert to_delivery("7-2", "signal", "r", b"\xff") == Delivery("7-2", "signal", "r", b"\xff")
    body = pack(["cancel", "p#1@900", "enough"])
    assert to_delivery("7-3", "to-child", "c", body) == Delivery("7-3", "cancel", "c", pack("enough"), parent="p#1@900")


@given(st.binary())
def test_a_corrupt_start_from_the_outbox_raises_a_decoding_error(body: bytes) -> None:
    with contextlib.suppress(*DECODE_ERRORS):
        to_delivery("7-1", "start", "r", body)
