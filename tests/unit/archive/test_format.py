"""Objects of an archive: what is written is read back, and what is damaged is found out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamflow.archive.format import (
    RUN,
    ArchivedRun,
    Entry,
    entry_of,
    pack_index,
    pack_run,
    unpack_index,
    unpack_run,
)
from streamflow.errors import ArchiveDamaged

HEADER = b"failed 2 c 5 9 flow - -"
RUN_1 = ArchivedRun("r1", HEADER, b"", [b"one", b"two"], {"stage": b"\xa4done"}, "2026-11-30/1.idx")


@given(st.binary(max_size=50), st.lists(st.binary(max_size=50), max_size=5), st.dictionaries(st.text(), st.binary()))
def test_a_run_is_read_back_byte_for_byte(state: bytes, transitions: list[bytes], published: dict[str, bytes]) -> None:
    run = ArchivedRun("r1", HEADER, state, transitions, published, "i")
    assert unpack_run(pack_run(run), "x") == run
    assert run.record == [HEADER, state, *transitions]


@pytest.mark.parametrize("at", [0, 5, 25, -1])
def test_one_changed_byte_is_found_out(at: int) -> None:
    data = bytearray(pack_run(RUN_1))
    data[at] ^= 1
    with pytest.raises(ArchiveDamaged, match="the object is damaged"):
        unpack_run(bytes(data), "the object")


@pytest.mark.parametrize("length", [0, 3, 4, 20, 40])
def test_a_part_of_an_object_is_none(length: int) -> None:
    with pytest.raises(ArchiveDamaged):
        unpack_run(pack_run(RUN_1)[:length], "x")


def test_an_index_is_no_run_and_other_content_is_none() -> None:
    with pytest.raises(ArchiveDamaged, match="of another version"):
        unpack_run(pack_index([entry_of(RUN_1)]), "x")
    import zlib
    from hashlib import blake2b

    packed = zlib.compress(b"\xc1")
    with pytest.raises(ArchiveDamaged):
        unpack_run(RUN + blake2b(packed, digest_size=16).digest() + packed, "x")


def test_an_index_has_the_end_of_failed_runs_only() -> None:
    completed = ArchivedRun("r2", b"completed 1 c 5 9 flow - -", b"", [b"x"])
    large = ArchivedRun("r3", HEADER, b"", [b"x" * 5000])
    entries = [entry_of(run) for run in (RUN_1, completed, large)]
    assert [entry.last for entry in entries] == [b"two", b"", b""]
    assert unpack_index(pack_index(entries), "x") == entries
    assert entries[1] == Entry("r2", completed.header)
