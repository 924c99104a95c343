"""The header of a run's record: one line, compared as a whole."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamflow.model.record import (
    LISTED,
    OPEN,
    Header,
    ParentLink,
    Status,
    decode_header,
    incarnation_of,
    parent_link,
)

names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.:@=+~-]{0,40}", fullmatch=True).filter(lambda name: name != "-")
moments = st.integers(min_value=0, max_value=2**53)
values = (
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans()
)
headers = st.builds(
    Header,
    status=st.sampled_from([status.value for status in Status]),
    version=st.integers(min_value=0, max_value=10**9),
    commit=names,
    created=moments,
    ended=moments,
    workflow=names,
    tenant=st.just("") | names,
    parent=st.just("") | st.builds(lambda run_id, seq: f"{run_id}#{seq}", names, st.integers(0, 10**6)),
    attributes=st.dictionaries(names, values, max_size=4),
)


@given(st.builds(ParentLink, names, st.integers(0, 10**6), moments))
def test_a_parents_link_survives_its_encoding_and_fits_into_a_header(link: ParentLink) -> None:
    header = Header("pending", 0, "-", 1, 0, "w", "", str(link))
    assert parent_link(decode_header(header.encode()).parent) == link


@pytest.mark.parametrize("text", ["", "p", "p#", "#1", "p#x", "p#1@", "p#1@x", "p#-1", "p#1@-1"])
def test_what_is_not_a_link_has_no_parent(text: str) -> None:
    assert parent_link(text) is None


@given(headers)
def test_a_header_survives_its_encoding(header: Header) -> None:
    assert decode_header(header.encode()) == header
    assert incarnation_of(header.encode()) == header.created
    assert incarnation_of(b"+" + header.encode()) == header.created, "as `start_runs` gives that of a new run"


@given(headers, st.just("") | names, st.just("") | names)
def test_trace_and_what_the_start_asked_for_stand_behind_all_others(header: Header, trace: str, start: str) -> None:
    header = msgspec.structs.replace(header, trace=trace, start=start)
    line = header.encode()
    assert decode_header(line) == header
    assert len(line.split()) == (11 if start else 10 if trace else 9 if header.attributes else 8)


@given(headers)
def test_a_header_is_one_line_of_eight_or_nine_fields(header: Header) -> None:
    line = header.encode().decode("ascii")
    assert line.isprintable()
    assert len(line.split()) == (9 if header.attributes else 8)
    assert decode_header(line.encode()).encode() == line.encode(), "byte for byte: it is what a commit expects"


@given(headers, headers)
def test_two_headers_have_the_same_bytes_only_if_they_are_equal(one: Header, other: Header) -> None:
    assert (one.encode() == other.encode()) == (one == other)


def test_the_line_is_the_one_that_the_scripts_write() -> None:
    line = b"pending 0 - 1700000000000 0 digest - -"
    header = Header("pending", 0, "-", 1700000000000, 0, "digest", "", "")
    assert header.encode() == line
    assert decode_header(line) == header


def test_a_run_is_open_until_it_has_an_end() -> None:
    assert Header("running", 1, "c", 5, 0, "digest", "", "").is_open
    assert not Header("completed", 1, "c", 5, 9, "digest", "", "").is_open


def test_the_order_in_which_attributes_were_set_makes_no_difference() -> None:
    header = Header("running", 1, "c", 5, 0, "digest", "", "", {"b": 1, "a": "x y"})
    assert header.encode() == b'running 1 c 5 0 digest - - {"a":"x%20y","b":1}'
    again = Header("running", 1, "c", 5, 0, "digest", "", "", {"a": "x y", "b": 1})
    assert again.encode() == header.encode()


@pytest.mark.parametrize(
    "line",
    [
        b"running 1 c 5 0 digest - - {",
        b'running 1 c 5 0 digest - - {"a":[]}',
        b"running 1 c 5 0 digest - - %ff",
        b"running 1 c 5 0 digest - - {} trace b7 more",
        b"",
        b"running 1 c 5 0 digest -",
        b"running one c 5 0 digest - -",
        b"\xff" * 8,
    ],
)
def test_an_invalid_header_is_a_value_error(line: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (the decoder's own, of many kinds)
        decode_header(line)


def test_every_status_but_pending_has_a_listing() -> None:
    assert set(LISTED) == set(Status) - {Status.PENDING}
    assert set(Status) - OPEN == {Status.COMPLETED, Status.FAILED, Status.CANCELLED}
