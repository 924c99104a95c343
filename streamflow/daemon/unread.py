"""What a shard's outbox has beyond the daemon's memory: where to read on, for which targets.

Owns: the positions. Must not: read (the relay does), or know what is in memory. Called by: the relay.

A target that refuses messages for an hour must cost no memory: its messages stay in the outbox on the server, and the
others' go on. So each target has a position of its own as soon as some of its messages are not in memory; from there on
all of its messages are read again, in order. `rest` is the position of all targets that have none, while a takeover has
not read the whole outbox.
"""

from __future__ import annotations

from collections.abc import Iterable

from streamflow.daemon.shard import OwnedShard

Target = int
"""A shard."""
Order = tuple[int, int]
"""The number of a message in the outbox, in order."""


class Unread:
    def __init__(self, source: OwnedShard) -> None:
        self.source = source
        self.positions: dict[Target, Order] = {}
        """From where on messages for these targets are not in memory."""
        self.rest: Order | None = None
        """From where on messages for the other targets are not; None if all are."""
        self.last: Order = (0, 0)
        """The last message that was committed since, and not kept."""

    def __bool__(self) -> bool:
        return self.rest is not None or bool(self.positions)

    def first_of(self, target: Target) -> Order | None:
        """From where on its messages are not in memory."""
        return self.positions.get(target, self.rest)

    def stop(self, target: Target, at: Order) -> None:
        """Keep no messages for the target from `at` on."""
        self.positions[target] = min(at, self.first_of(target) or at)

    def begin(self, ready: Iterable[Target]) -> Reading | None:
        """What is to be read next for these targets, and for all that have no position; None if that is nothing."""
        reading = Reading(self, {target for target in ready if target in self.positions})
        return reading if reading.after is not None else None


class Reading:
    """One page of the outbox, and who gets its messages."""

    def __init__(self, unread: Unread, targets: set[Target]) -> None:
        self._unread = unread
        self._targets = targets
        self._last = unread.last
        self._rest = unread.rest is not None
        starts = [unread.positions[target] for target in targets]
        if unread.rest is not None:
            starts.append(unread.rest)
        self.after: str | None = None
        """The entry id behind which to read."""
        if starts:
            epoch, number = min(starts)
            self.after = f"{epoch}-{number - 1}" if number else f"{epoch}-0"

    def is_new(self, at: Order) -> bool:
        """Whether no message of `at` or behind it has been in memory, whatever its target."""
        return self._unread.rest is not None and at >= self._unread.rest

    def takes(self, target: Target, at: Order) -> bool:
        """Whether this message comes into memory now, if there is room."""
        first = self._unread.first_of(target)
        is_read = target in self._targets if target in self._unread.positions else self._rest
        return is_read and first is not None and at >= first

    def full(self, target: Target, at: Order) -> None:
        """There is no room for this message: it and those behind it are read again."""
        self._targets.discard(target)
        self._unread.positions[target] = at

    def end(self, at: Order, *, more: bool) -> None:
        """The page ends at this message. Without `more` behind it, it has all that was committed when it was read."""
        unread = self._unread
        is_all = not more and unread.last == self._last
        epoch, number = at if more else max(at, self._last)
        following = (epoch, number + 1)
        for target in self._targets:
            if is_all:
                del unread.positions[target]
            else:
                unread.positions[target] = max(unread.positions[target], following)
        if self._rest and unread.rest is not None:
            unread.rest = None if is_all else max(unread.rest, following)
