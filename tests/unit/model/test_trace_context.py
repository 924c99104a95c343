"""A trace context is one word, whatever a propagator writes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamflow.model.record import Header, decode_header
from streamflow.model.trace_context import MAX_BYTES, checked, pack, trace_id_of, unpack

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_a_traceparent_alone_is_the_word_itself() -> None:
    assert pack({"traceparent": PARENT}) == PARENT
    assert unpack(PARENT) == {"traceparent": PARENT}
    assert trace_id_of(PARENT) == "4bf92f3577b34da6a3ce929d0e0e4736"


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=40), max_size=4))
def test_whatever_is_written_is_one_word_that_gives_it_back(carrier: dict[str, str]) -> None:
    try:
        "".join(carrier).join(carrier.values()).encode()
    except UnicodeEncodeError:
        return
    word = pack(carrier)
    assert checked(word) == word
    assert unpack(word) == carrier or len(word) == 0


def test_what_is_too_large_goes_without_its_baggage() -> None:
    carrier = {"traceparent": PARENT, "tracestate": "a=1", "baggage": "x" * MAX_BYTES}
    assert unpack(pack(carrier)) == {"traceparent": PARENT, "tracestate": "a=1"}
    assert pack({"traceparent": PARENT, "tracestate": "x" * MAX_BYTES}) == PARENT
    assert pack({"other": "x" * MAX_BYTES}) == ""


@pytest.mark.parametrize("word", ["", "{", "%ff", '["a"]', '{"a":1}', "[" * 2000, "00-x-y-01"])
def test_what_is_no_context_is_an_empty_one(word: str) -> None:
    assert unpack(word) == {}
    assert trace_id_of(word) == ""


@pytest.mark.parametrize("word", ["two words", "line\n", "é", "x" * (MAX_BYTES + 1)])
def test_what_may_not_stand_in_a_header_is_left_out(word: str) -> None:
    assert checked(word) == ""


@pytest.mark.parametrize("attributes", [{}, {"a": "x y"}])
def test_a_header_keeps_it_behind_the_attributes(attributes: dict[str, str | int | float | bool]) -> None:
    header = Header("running", 1, "c", 5, 0, "digest", "", "", attributes, PARENT)
    assert header.encode().endswith(f" {PARENT}".encode())
    assert decode_header(header.encode()) == header
