"""The header of a run's record: one line that the kernel compares as a whole.

Owns: the header's format. A run's record is a list `[header, state, transition, transition, …]`.
The line has eight fields with a space between them, a ninth if the run has attributes (`attributes.py` has that field's
format), a tenth if it is traced (`trace_context.py`), and an eleventh if its start has asked for something besides
(`start_word.py`); then those before are `-` if it has none.
Must not: know keys or scripts (`lua/shared/open_run.lua` writes the first header, in the same format).
Called by: kernel, owner, client, listings.

The header *is* the version: a commit names the header that it expects, byte for byte. It has the number of transitions
and the id of the commit that wrote it, so that two histories that only look alike (after a failover) never match.

`created` is the run's incarnation: it tells a run from every other one that had its id before. `forget_runs` sets the
shard's clock behind the end of each run that it deletes, so a later run of that id has a later `created`, also while
the server's clock stands still or goes back.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

import msgspec

from streamflow.model.attributes import Attribute, decode_attributes, encode_attributes


class Status(enum.StrEnum):
    """The status of a run. Each member equals its text: `run.status == "failed"`.

    `pending`: started, and not yet seen by a daemon, or its start is delayed. `running`: open, also while it only
    waits. `stuck`: open, but its code can't continue until other code is deployed. `paused`: open, but its code isn't
    run until somebody resumes it, or its workflow. `completed`, `failed` and `cancelled`: it has ended.
    """

    PENDING = "pending"
    RUNNING = "running"
    STUCK = "stuck"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


OPEN = frozenset({Status.PENDING, Status.RUNNING, Status.STUCK, Status.PAUSED})
"""The statuses of a run that has not ended."""

STOPPED = frozenset({Status.STUCK, Status.PAUSED})
"""Those of an open run none of whose code is run."""

LISTED = (Status.RUNNING, Status.STUCK, Status.PAUSED, Status.COMPLETED, Status.FAILED, Status.CANCELLED)
"""The statuses that have their own index; a pending run is listed with the running ones."""


class Header(msgspec.Struct, frozen=True, gc=False):
    """`version` is the number of transitions, `commit` the id of the commit that wrote the header; `created` and
    `ended` are shard-clock ms (`ended` is 0 while the run is open); `parent` is an encoded `ParentLink` or empty;
    `trace` is a packed trace context or empty; `start` what its start has asked for besides (`start_word.py`)."""

    status: str
    version: int
    commit: str
    created: int
    ended: int
    workflow: str
    tenant: str
    parent: str
    attributes: dict[str, Attribute] = {}
    trace: str = ""
    start: str = ""

    def encode(self) -> bytes:
        words = [  # joined, because an f-string, in which the status is an enum, takes twice the time
            self.status,
            str(self.version),
            self.commit,
            str(self.created),
            str(self.ended),
            self.workflow,
            self.tenant or "-",
            self.parent or "-",
        ]
        if self.attributes or self.trace or self.start:
            words.append(encode_attributes(self.attributes) if self.attributes else "-")
        if self.trace or self.start:
            words.append(self.trace or "-")
        if self.start:
            words.append(self.start)
        return " ".join(words).encode()

    @property
    def is_open(self) -> bool:
        return self.ended == 0


def incarnation_of(line: bytes) -> int:
    """`created` of an encoded header, without decoding the rest."""
    return int(line.split(b" ", 4)[3])


class ParentLink(NamedTuple):
    """Who started a run as its child: a decision of one incarnation of a run. As text `<run id>#<seq>@<created>`;
    without `@<created>` if the parent began under a release whose links had none (then it is 0)."""

    run_id: str
    seq: int
    created: int

    def __str__(self) -> str:
        link = f"{self.run_id}#{self.seq}"
        return f"{link}@{self.created}" if self.created else link


def parent_link(text: str) -> ParentLink | None:
    """None if the text is empty, or not a link."""
    run_id, _, rest = text.rpartition("#")
    seq, at, created = rest.partition("@")
    if not (run_id and seq.isdecimal() and (created if at else "0").isdecimal()):
        return None
    return ParentLink(run_id, int(seq), int(created or 0))


def decode_header(data: bytes) -> Header:
    """Raises `ValueError` if the line is not a header."""
    status, version, commit, created, ended, workflow, tenant, parent, *rest = data.decode().split(" ")
    if len(rest) > 3:
        raise ValueError(f"a header has eight to eleven fields, got {8 + len(rest)}")
    return Header(
        status,
        int(version),
        commit,
        int(created),
        int(ended),
        workflow,
        "" if tenant == "-" else tenant,
        "" if parent == "-" else parent,
        decode_attributes(rest[0]) if rest and rest[0] != "-" else {},
        rest[1] if len(rest) > 1 and rest[1] != "-" else "",
        rest[2] if len(rest) > 2 else "",
    )
