"""Which shard a run is in, and which daemon should own a shard.

Owns: the hash of ids to shards, and the rendezvous hashing of shards to members.
Must not: keep state.
Called by: client and kernel (`shard_of`), membership (`winner_of`).
"""

from __future__ import annotations

import base64
import enum
import hashlib
import re
import zlib
from collections.abc import Iterable


class Partition(enum.StrEnum):
    """What a namespace hashes to find a run's shard.

    `run`: the whole run id. `tenant` and `workflow`: the part of the id before its first `/`, which is the tenant or
    the workflow, so all its runs share a shard.
    """

    RUN = "run"
    TENANT = "tenant"
    WORKFLOW = "workflow"


def shard_of(run_id: str, shards: int, partition: Partition) -> int:
    """The shard of a run, from its id alone. CRC-32 (ISO 3309), as `zlib.crc32`."""
    part = run_id if partition is Partition.RUN else run_id.partition("/")[0]
    return zlib.crc32(part.encode()) % shards


_OF_PARENT = re.compile("~[a-z2-7]{13}$")
"""What stands for the decision of the parent in a child's id. A grandchild's id has it once, as it covers the whole id
of its parent: ids must not grow with each level."""


def full_run_id(run_id: str, partition: Partition, tenant: str, workflow: str) -> str:
    """`run_id` with the prefix of its partition, added if it isn't there: `acme/invoice-17`."""
    if partition is Partition.RUN:
        return run_id
    prefix = (tenant or "default") if partition is Partition.TENANT else workflow
    return run_id if run_id.startswith(f"{prefix}/") else f"{prefix}/{run_id}"


def child_run_id(
    parent: str, created: int, seq: int, partition: Partition, tenant: str, workflow: str, input_: bytes = b""
) -> str:
    """The id of a child without its own: the parent's id and the decision's number, with the child's prefix, and behind
    a `~` 13 characters that stand for the decision: `invoice-17.3~k2xq5f7ahn4sw`.

    `created` is the parent's, in ms. The characters are 65 bits of a hash of the parent's full id, of that, and of what
    is started: tenant, workflow and encoded input. So no other run has such a child: not an earlier or later one of the
    parent's id, and not one whose id differs in what the child's prefix replaces. Nor has the parent itself, when a
    failover has lost its decision and it makes another one in its place. `created` is 0 for a parent that began under a
    release that had ids without them.
    """
    rest = parent if partition is Partition.RUN else parent.partition("/")[2]
    if created:
        decision = hashlib.blake2b(f"{parent}@{created} {tenant} {workflow} ".encode(), digest_size=10)
        decision.update(input_)
        own = base64.b32encode(decision.digest())[:13].decode().lower()
        rest = f"{_OF_PARENT.sub('', rest)}.{seq}~{own}"
    else:
        rest = f"{rest}.{seq}"
    return full_run_id(rest, partition, tenant, workflow)


def child_again(
    before: str, parent: str, created: int, seq: int, partition: Partition, tenant: str, workflow: str, input_: bytes
) -> str:
    """The id of a child that a fork starts again which was `before` in the run that it is a fork of: its own, or the
    same if the code has chosen it."""
    if not _OF_PARENT.search(before):
        return before
    return child_run_id(parent, created, seq, partition, tenant, workflow, input_)


def is_same_child(one: str, other: str) -> bool:
    """Whether these ids are of the same decision of a run, whose input may be encoded in another way since."""
    return _OF_PARENT.sub("~", one) == _OF_PARENT.sub("~", other)


def winner_of(shard: int, members: Iterable[str]) -> str:
    """The member that should own `shard`: rendezvous (highest random weight) hashing, Thaler and Ravishankar 1996.

    When a member joins or leaves, only the shards move that it should own from then on, or owned until then.
    """

    def weight(member: str) -> tuple[bytes, str]:
        return hashlib.blake2b(f"{shard}:{member}".encode(), digest_size=8).digest(), member

    return max(members, key=weight)
