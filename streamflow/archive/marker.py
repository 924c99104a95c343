"""The marker of an archive: an object that says whose it is.

Owns: its name and its bytes. Must not: read or write. Called by: the daemon's guard, the command `archive`.

A directory that isn't mounted, a bucket of the same name that somebody has made again, and an archive that another
server uses, too, look like one from which everything was deleted. The marker tells them apart.
"""

from __future__ import annotations

import msgspec

from streamflow.archive.layout import namespace_folder


class Marker(msgspec.Struct, frozen=True):
    """`key`: what the server of this namespace knows, too; empty if the object can't be read."""

    namespace: str
    key: str


def marker_name(namespace: str) -> str:
    return f"{namespace_folder(namespace)}/marker.json"


def pack_marker(marker: Marker) -> bytes:
    return msgspec.json.format(msgspec.json.encode(marker), indent=2) + b"\n"


def unpack_marker(data: bytes) -> Marker:
    try:
        return msgspec.json.decode(data, type=Marker)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Marker("", "")
