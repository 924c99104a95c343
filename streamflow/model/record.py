"""The header of a run's record: one line that the kernel compares as a whole.

Owns: the header's format. A run's record is a list `[header, state, transition, transition, …]`.
The line has eight fields with a space between them, and a ninth if the run has attributes (`attributes.py` has that
field's format).
Must not: know keys or scripts (`lua/shared/open_run.lua` writes the first header, in the same format).
Called by: kernel, owner, client, listings.

The header *is* the version: a commit names the header that it expects, byte for byte. It has the number of transitions
and the id of the commit that wrote it, so that two histories that only look alike (after a failover) never match.
"""

from __future__ import annotations

import enum

import msgspec

from streamflow.model.attributes import Attribute, decode_attributes, encode_attributes


class Status(enum.StrEnum):
    """The status of a run. Each member equals its text: `run.status == "failed"`.

    `pending`: started, and not yet seen by a daemon. `running`: open, also while it only waits. `stuck`: open, but its
    code can't continue until other code is deployed. `completed`, `failed` and `cancelled`: it has ended.
    """

    PENDING = "pending"
    RUNNING = "running"
    STUCK = "stuck"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


OPEN = frozenset({Status.PENDING, Status.RUNNING, Status.STUCK})
"""The statuses of a run that has not ended."""

LISTED = (Status.RUNNING, Status.STUCK, Status.COMPLETED, Status.FAILED, Status.CANCELLED)
"""The statuses that have their own index; a pending run is listed with the running ones."""


class Header(msgspec.Struct, frozen=True, gc=False):
    """`version` is the number of transitions, `commit` the id of the commit that wrote the header; `created` and
    `ended` are shard-clock ms (`ended` is 0 while the run is open); `parent` is `<run id>#<seq>` or empty."""

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
    """Raises `ValueError` if the line is not a header."""
    status, version, commit, created, ended, workflow, tenant, parent, *rest = data.decode().split(" ")
    if len(rest) > 1:
        raise ValueError(f"a header has eight or nine fields, got {8 + len(rest)}")
    return Header(
        status,
        int(version),
        commit,
        int(created),
        int(ended),
        workflow,
        "" if tenant == "-" else tenant,
        "" if parent == "-" else parent,
        decode_attributes(rest[0]) if rest else {},
    )
