"""What running steps have reported last (`sf.heartbeat`): as the server keeps it for the attempts after them, and as
the heartbeats of daemons and workers say it.

Owns: the form of a value of a shard's `details`, and of what is said of the heartbeats of steps. Must not: read or
write it. Called by: daemons and workers (write and read it), the client and the status (show it).

A value is the incarnation of the run, because an earlier run of the id had steps of the same numbers, a space, and the
details. Between the first two there is, in 20 digits, when it was reported. A release that doesn't know that takes both
for the number of another run, and begins the next attempt without details: it never gets wrong ones.
"""

from __future__ import annotations

import msgspec

_DIGITS = 20
"""Of the time: more than any incarnation has, so that their number tells whether there is one."""


def stored_details(created: int, details: bytes, at: int) -> bytes:
    """`at`: shard-clock ms. `lua/extend_steps.lua` writes details without a time; `lua/report_step.lua` reads both."""
    return b"%d%020d %b" % (created, at, details)


def decode_details(stored: bytes) -> tuple[int, bytes]:
    """The incarnation, 0 if an earlier release has stored them, and the details. No MessagePack begins so."""
    created, _, details = stored.partition(b" ")
    if not details or not created.isdigit():
        return 0, stored
    return int(created[:-_DIGITS] if len(created) > _DIGITS else created), details


def reported_at(stored: bytes) -> int:
    """When they were reported (ms), 0 if that isn't known."""
    head, _, details = stored.partition(b" ")
    return int(head[-_DIGITS:]) if details and head.isdigit() and len(head) > _DIGITS else 0


class StepBeat(msgspec.Struct, array_like=True, frozen=True):
    """When a running step has last called `sf.heartbeat`. `age`: seconds before this was sent; `silent`: that is long
    (`steps/silence.py`). `name`: the step's."""

    run_id: str
    seq: int
    attempt: int
    name: str
    age: float
    silent: bool = False
