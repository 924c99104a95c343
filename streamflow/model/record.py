"""The header of a run's record: one line of words that the kernel compares as a whole.

Owns: the header's format. A run's record is a list `[header, state, transition, transition, …]`.
The line has eight words, and a ninth if the run has attributes (`attributes.py` has that word's format).
Must not: know keys or scripts (`lua/shared/open_run.lua` writes the first header, in the same format).
Called by: kernel, owner, client, listings.

The header *is* the version: a commit names the header that it expects, byte for byte, with the number of transitions
and the id of the commit that wrote it, so that two histories that only look alike (after a failover) never match.
"""

from __future__ import annotations

import enum

import msgspec

from streamflow.model.attributes import Attribute, decode_attributes, encode_attributes


class Status(enum.StrEnum):
    """Where a run stands. `pending`: started, and no daemon has reduced it yet."""

    PENDING = "pending"
    RUNNING = "running"
    STUCK = "stuck"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


OPEN = frozenset({Status.PENDING, Status.RUNNING, Status.STUCK})

LISTED = (Status.RUNNING, Status.STUCK, Status.COMPLETED, Status.FAILED, Status.CANCELLED)
"""The statuses that have an index of their own; a pending run is listed with the running ones."""


class Header(msgspec.Struct, frozen=True, gc=False):
    """`created` and `ended` are shard-clock ms (`ended` is 0 while open); `parent` is `<run id>#<seq>` or empty;
    `attributes` are the run's, by name."""

    status: str
    version: int
    commit: str
    created: int
    ended: int
    workflow: str
    tenant: str
    parent: str
    attributes: dict[str, Attribute] = {}

    def encode(self) -> bytes:
        line = (
            f"{self.status} {self.version} {self.commit} {self.created} {self.ended} "
            f"{self.workflow} {self.tenant or '-'} {self.parent or '-'}"
        )
        return (f"{line} {encode_attributes(self.attributes)}" if self.attributes else line).encode()

    @property
    def is_open(self) -> bool:
        return self.ended == 0


def decode_header(data: bytes) -> Header:
    """Raises `ValueError` when the line is not a header."""
    status, version, commit, created, ended, workflow, tenant, parent, *more = data.decode().split(" ")
    if len(more) > 1:
        raise ValueError(f"a header has eight or nine words, not {8 + len(more)}")
    return Header(
        status,
        int(version),
        commit,
        int(created),
        int(ended),
        workflow,
        "" if tenant == "-" else tenant,
        "" if parent == "-" else parent,
        decode_attributes(more[0]) if more else {},
    )
