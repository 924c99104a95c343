"""A run whose history is lost, with the object in storage that had it: what is known of it, in the form of a record.

Owns: that record, and what it says. Its only event is a start with a version that no code has (`LOST_VERSION`), so none
of its code ever runs again: it is stuck until it is terminated, and ends as every stuck run does.
Must not: know storage, or decide that something is lost. Called by: waking (makes it), the factory of machines.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Raw

from streamflow.events import LOST_VERSION, RunStarted, Transition, encode_transition
from streamflow.model import codec
from streamflow.model.record import Header, ParentLink, Status
from streamflow.model.sharding import Partition
from streamflow.model.sleeping import NO_PARENT, UNKNOWN_WORKFLOW, Sleeper

LOST = "lost"
"""In the place of the id of the last commit."""
MAX_WHY = 500
_CHILD = re.compile(r"(.+)\.([0-9]+)~[a-z2-7]{13}")
"""The id of a child that got none by its parent's code (`sharding.child_run_id`)."""


class LostRun(NamedTuple):
    """`record`: header, state and transitions; `why`: what is lost, and what isn't known of it."""

    record: list[bytes]
    why: str


def possible_parents(run_id: str, partition: Partition) -> list[ParentLink]:
    """What the id of a run says about whose child it is; `created` is not known from that."""
    match = _CHILD.fullmatch(run_id)
    return [] if match is None or partition is Partition.WORKFLOW else [ParentLink(match[1], int(match[2]), 0)]


def is_parent(link: ParentLink, digest: str) -> bool:
    """Whether what the server's line has of the parent's link is this one's digest (`lua/shared/asleep.lua`)."""
    total = 0
    for byte in str(link).encode():
        total = (total * 31 + byte) % 2**32
    return digest == str(total)


def lost_run(run_id: str, sleeper: Sleeper, partition: Partition, parent: ParentLink | None, why: str) -> LostRun:
    """`why`: what is wrong with its object."""
    prefix = run_id.partition("/")[0] if partition is not Partition.RUN else ""
    workflow = prefix if partition is Partition.WORKFLOW else sleeper.workflow
    tenant = prefix if partition is Partition.TENANT and prefix != "default" else ""
    text = f"its history is lost: {why[:MAX_WHY]}"
    if parent is None and sleeper.parent != NO_PARENT:
        text = f"{text}; whose child it is isn't known, so its parent gets no outcome"
    link = "" if parent is None else str(parent)
    header = Header(
        Status.RUNNING, sleeper.version, LOST, sleeper.created, 0, workflow or UNKNOWN_WORKFLOW, tenant, link
    )
    start = RunStarted(header.workflow, tenant, Raw(codec.encode(text, "text")), link, LOST_VERSION, sleeper.created)
    return LostRun([header.encode(), b"", encode_transition(sleeper.created, [start])], text)


def lost_history(transitions: Sequence[Transition]) -> str:
    """Why a run with this history can't go on: it is lost. Empty for every other run."""
    first = transitions[0].events[:1] if transitions else []
    if not (first and isinstance(first[0], RunStarted) and first[0].version == LOST_VERSION):
        return ""
    return str(codec.decode(first[0].input, str, "why its history is lost"))
