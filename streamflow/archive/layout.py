"""Where in an archive what is: the names of its objects.

Owns: these names, and nothing else does. Must not: read or write. Called by: archive.

    <namespace>/runs/<two hex digits>/<run id>/<created>-<version>-<digest>.run       one state of one run
    <namespace>/index/<day>/<time>-<random>.idx                                       what was archived together
    <namespace>/parked/<two hex digits>/<run id>~<created>-<version>-<random>.run     a run that was moved out of memory
    <namespace>/payloads/<week>/<SHA-256>.pay                                         a large payload
    <namespace>/marker.json                                                           whose archive it is (`marker.py`)

Each run has an object of its own: it is found by its id with one listing and one read, however many there are, it is
deleted alone, and rules of a bucket apply to it. Its name says which incarnation of the id it is, and in which state it
was archived: a run that was restored, went on and ended again gets another object, and one that is written twice, by
a daemon that died in between or by two of them, is the same object. So nobody overwrites what he doesn't know.

A run that was moved out of memory is found by what the server has left of it, so it needs no folder. The random part is
another one each time: an object to which nothing leads is never one that somebody is just writing again, and may go.

A payload is named by the week in which it was written and by what it is: all who write it write the same object, and
nobody writes into a week that is over.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from hashlib import blake2b
from typing import NamedTuple

from streamflow.model.record import incarnation_of

MAX_PART = 150
"""Characters of an escaped id that stand in a name; of a longer one the first and a digest."""
_OTHERS = re.compile(r"[^A-Za-z0-9_.-]")
_ESCAPE = re.compile(r"=([0-9A-F]{2})")
_RUN = re.compile(r"([0-9]{15})-([0-9]{10})-[0-9a-f]{16}\.run")
_INDEX = re.compile(r"[0-9]{9}-[0-9a-f]{12}\.idx")
_PARKED = re.compile(r"([A-Za-z0-9_.=-]+)~([0-9]{15})-([0-9]{10})-([0-9a-f]{8})\.run")
_PAYLOAD = re.compile(r"[0-9a-f]{64}\.pay")
_WEEK = re.compile(r"[0-9]{5}")
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


class RunObject(NamedTuple):
    """One state of a run, the later the larger. `name`: without its folder."""

    created: int
    version: int
    name: str


class ParkedObject(NamedTuple):
    """A run that was moved out of memory. `run_id`: empty if the name may not tell it. `name`: without its folder."""

    run_id: str
    created: int
    version: int
    random: str
    name: str


def namespace_folder(namespace: str) -> str:
    return _escaped(namespace)


def run_folder(namespace: str, run_id: str) -> str:
    return f"{namespace_folder(namespace)}/runs/{_digest(run_id.encode())[:2]}/{_part(run_id)}"


def _part(run_id: str) -> str:
    part = _escaped(run_id)
    return part if len(part) <= MAX_PART else f"{part[: MAX_PART - 17]}={_digest(run_id.encode())}"


def folder_of_runs(namespace: str, digits: str) -> str:
    """What has the folders of all runs whose digests begin with these two hex digits."""
    return f"{namespace_folder(namespace)}/runs/{digits}"


def run_of_folder(name: str) -> str:
    """The run whose folder has this name; empty if the name doesn't tell, or is somebody else's."""
    if len(name) >= MAX_PART:  # it may be a part of an id, with a digest
        return ""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), name)


def run_object(header: bytes) -> str:
    """The name of the object in the run's folder."""
    version = int(header.split(b" ", 2)[1])
    return f"{incarnation_of(header):015d}-{version:010d}-{_digest(header)}.run"


def parse_run_object(name: str) -> RunObject | None:
    """None for what somebody else has put there."""
    match = _RUN.fullmatch(name)
    return None if match is None else RunObject(int(match[1]), int(match[2]), name)


def parked_folders() -> list[str]:
    return [f"{number:02x}" for number in range(256)]


def parked_folder(namespace: str, folder: str) -> str:
    return f"{namespace_folder(namespace)}/parked/{folder}"


def parked_object(namespace: str, run_id: str, created: int, version: int, random: str) -> str:
    """The whole name. `random`: eight hexadecimal digits."""
    folder = parked_folder(namespace, _digest(run_id.encode())[:2])
    return f"{folder}/{_part(run_id)}~{created:015d}-{version:010d}-{random}.run"


def parse_parked_object(name: str) -> ParkedObject | None:
    """None for what somebody else has put there."""
    match = _PARKED.fullmatch(name)
    if match is None:
        return None
    return ParkedObject(run_of_folder(match[1]), int(match[2]), int(match[3]), match[4], name)


def index_folder(namespace: str) -> str:
    return f"{namespace_folder(namespace)}/index"


def index_object(at_ms: int, random: str) -> str:
    """`<day>/<name>`: in the order of time."""
    at = datetime.fromtimestamp(at_ms / 1000, UTC)
    return f"{at:%Y-%m-%d}/{at:%H%M%S}{at_ms % 1000:03d}-{random}.idx"


def payload_folder(namespace: str) -> str:
    return f"{namespace_folder(namespace)}/payloads"


def payload_object(week: int, digest: bytes) -> str:
    """The name of the object in that folder."""
    return f"{week:05d}/{digest.hex()}.pay"


def parse_week(name: str) -> int | None:
    return int(name) if _WEEK.fullmatch(name) else None


def parse_payload(name: str) -> bytes | None:
    """The digest in the name of an object; None for what somebody else has put there."""
    return bytes.fromhex(name.removesuffix(".pay")) if _PAYLOAD.fullmatch(name) else None


def is_day(name: str) -> bool:
    return _DAY.fullmatch(name) is not None


def is_index_object(name: str) -> bool:
    return _INDEX.fullmatch(name) is not None


def _escaped(text: str) -> str:
    """Such that no two are the same, and none has a slash: ids have only characters of ASCII."""
    return _OTHERS.sub(lambda found: f"={ord(found[0]):02X}", text)


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=8).hexdigest()
