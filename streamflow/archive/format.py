"""What stands in the objects of an archive: one run, or an index of runs.

Owns: the format, and finding out that an object is damaged. Must not: read or write, know names of objects.
Called by: archive, the client.

An object is four letters, a digest of 16 bytes, and a compressed MessagePack array. The elements of a run's record are
those of the server, byte for byte: what is restored is what was there.
"""

from __future__ import annotations

import zlib
from hashlib import blake2b
from typing import Final, TypeVar

import msgspec

from streamflow.errors import ArchiveDamaged
from streamflow.model.codec import DECODE_ERRORS
from streamflow.model.references import marked_in

T = TypeVar("T")

RUN: Final = b"SFR1"
PARKED: Final = b"SFP1"
INDEX: Final = b"SFI1"
DIGEST = 16
LEVEL = 6
MOST = 2**30
"""Bytes of an object once it is unpacked: what claims more is damaged."""
LARGEST_LAST = 4096
"""Bytes of a failed run's last transition that an index has, for its error."""


class ArchivedRun(msgspec.Struct, frozen=True, array_like=True):
    """An ended run as the server had it: the elements of its record, and the values that it has published, encoded.
    `index`: the name of the index object that lists it."""

    run_id: str
    header: bytes
    state: bytes
    transitions: list[bytes]
    published: dict[str, bytes] = {}
    index: str = ""

    @property
    def record(self) -> list[bytes]:
        return [self.header, self.state, *self.transitions]

    @property
    def last(self) -> bytes:
        """The last transition; empty if there is none."""
        return self.transitions[-1] if self.transitions else b""


class ParkedRun(msgspec.Struct, frozen=True, array_like=True):
    """An open run that was moved out of memory at `at` (ms), as the server had it."""

    run_id: str
    at: int
    header: bytes
    state: bytes
    transitions: list[bytes]
    published: dict[str, bytes]

    @property
    def record(self) -> list[bytes]:
        return [self.header, self.state, *self.transitions]

    @property
    def as_archived(self) -> ArchivedRun:
        """In the form of one that is read from the archive."""
        return ArchivedRun(self.run_id, self.header, self.state, self.transitions, self.published, "")


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A run in an index. `last`: the last transition of one that has failed, unless it is large. `payloads`: references
    to the large payloads that the run has, one behind the other."""

    run_id: str
    header: bytes
    last: bytes = b""
    payloads: bytes = b""


def entry_of(run: ArchivedRun) -> Entry:
    is_wanted = run.header.startswith(b"failed ") and len(run.last) <= LARGEST_LAST
    references = {one.encode() for data in (*run.record, *run.published.values()) for one in marked_in(data)}
    return Entry(run.run_id, run.header, run.last if is_wanted else b"", b"".join(sorted(references)))


def pack_run(run: ArchivedRun) -> bytes:
    return _pack(RUN, msgspec.msgpack.encode(run))


def pack_parked(run: ParkedRun) -> bytes:
    return _pack(PARKED, msgspec.msgpack.encode(run))


def pack_index(entries: list[Entry]) -> bytes:
    return _pack(INDEX, msgspec.msgpack.encode(entries))


def unpack_run(data: bytes, what: str) -> ArchivedRun:
    """`what` names the object in errors. Raises `ArchiveDamaged` if it is damaged."""
    return _unpack(data, RUN, ArchivedRun, what)


def unpack_parked(data: bytes, what: str) -> ParkedRun:
    """Raises `ArchiveDamaged`, as `unpack_run`."""
    return _unpack(data, PARKED, ParkedRun, what)


def unpack_index(data: bytes, what: str) -> list[Entry]:
    """Raises `ArchiveDamaged`, as `unpack_run`."""
    return _unpack(data, INDEX, list[Entry], what)


def _pack(kind: bytes, body: bytes) -> bytes:
    packed = zlib.compress(body, LEVEL)
    return kind + blake2b(packed, digest_size=DIGEST).digest() + packed


def _unpack(data: bytes, kind: bytes, wanted: type[T], what: str) -> T:
    begins = len(kind) + DIGEST
    packed = data[begins:]
    if data[: len(kind)] != kind:
        raise ArchiveDamaged(f"{what} is damaged, or of another version of streamflow")
    if data[len(kind) : begins] != blake2b(packed, digest_size=DIGEST).digest():
        raise ArchiveDamaged(f"{what} is damaged: its content doesn't fit its digest")
    try:
        unpacker = zlib.decompressobj()
        body = unpacker.decompress(packed, MOST)
        if not unpacker.eof:
            raise ArchiveDamaged(f"{what} is damaged: it isn't whole, or larger than {MOST:,} bytes")
        return msgspec.msgpack.decode(body, type=wanted)
    except (zlib.error, *DECODE_ERRORS) as error:
        raise ArchiveDamaged(f"{what} is damaged: {error}") from None
