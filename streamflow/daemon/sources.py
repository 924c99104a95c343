"""What a shard's `seen` says of the messages that it has accepted, and what their sources can still lose.

Owns: reading those fields. Must not: delete one, or read the server (retention does). Called by: retention.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from streamflow.daemon.shard import NUMBER_BITS, first_outbox
from streamflow.wire import stream_order

SETTLED_MS = 300_000
"""For so long a shard has to have committed behind a message that it has until its target forgets that it has it: no
failover takes that much from a shard. A replica that is minutes behind isn't promoted."""


class Source:
    """What a shard knows of the messages that it has sent. `sent`: the last numbers of its owners."""

    def __init__(self, committed: int = 0, sent: Iterable[tuple[int, int]] = ()) -> None:
        self.committed = committed
        self._last = {(epoch, number >> NUMBER_BITS): number for epoch, number in sent}

    def has_settled(self, number: tuple[int, int], at: int) -> bool:
        """Whether this message, which was accepted at `at` (ms), is in its history, and long behind its end."""
        epoch, of_owner = number
        last = self._last.get((epoch, of_owner >> NUMBER_BITS), 0)
        return of_owner <= last and at + SETTLED_MS <= self.committed


NOBODY = Source()


def source_of(token: bytes | None, committed: bytes | None, sent: bytes | None) -> Source:
    """From the fields of the shard's `owner`. What can't be read has settled nothing."""
    try:
        numbers = [stream_order(number) for number in (sent or b"").decode().split()]
        if token:
            text = token.decode()
            numbers.append((int(text.partition(":")[0]), first_outbox(text) | ((1 << NUMBER_BITS) - 1)))
        return Source(int(committed or 0), numbers)
    except ValueError:
        return NOBODY


class Accepted(NamedTuple):
    """A message with an identity that a shard has accepted, and when (ms)."""

    number: tuple[int, int]
    at: int
    source: int


def accepted_of(value: bytes) -> Accepted:
    """Of the field of an identity, `<number> <ms> shard:<source>`. One that can't be read is as old as can be."""
    try:
        number, at, source = value.decode().split(" ")
        return Accepted(stream_order(number), int(at), int(source.removeprefix("shard:")))
    except ValueError:
        return Accepted((0, 0), 0, -1)


def posted_at(last: bytes) -> int:
    """When a client posted last (ms), from `<number> <ms> <answers>`."""
    parts = last.split(b" ")
    return int(parts[1]) if len(parts) == 3 and parts[1].isdigit() else 0
