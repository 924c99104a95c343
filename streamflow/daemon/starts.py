"""Starts that wait in memory: whose turn it is, and how many begin in a round of commits.

Owns: the starts that were read and that no batch has collected yet. Must not: talk to the server, decode inputs,
reduce. Called by: the inbox reader (offers what it has read), admission (holds what it has read), the owner (takes).

What is under way comes first: a round of commits has the runs that have something to do, and as many starts as there is
room for beside them. Tenants, and workflows for runs that have none, take turns. Rounds are short (`admission`) while a
tenant with few starts waits beside one with many, and otherwise as long as commits are cheapest. In a short round those
of tenants with few all begin, since there is hardly any room beside what is under way of the large one. A tenant's
starts of one shard begin together, since one commit then has them, and each of their next transitions.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator

import anyio

from streamflow.daemon.shard import OwnedShard
from streamflow.wire import InboxMessage

ALONE = 250
"""Runs that a round has beside which starts still begin, unless rounds are short."""
SEVERAL_SECONDS = 10.0
"""Seconds for which rounds stay short after a small tenant has waited beside a large one..."""
SMALL, LARGE, LARGE_PART = 4, 16, 0.9
"""...which are those with so few and so many starts in memory; the large ones have this part of all that wait..."""
MOST_SEVERAL = 64
"""...of so many tenants at most."""
LEAST_PART = 8
"""Of so many starts that a round may have, it has one in any case, however many runs are under way."""
ENOUGH, MOST, ENOUGH_BYTES = 4, 40, 8 * 1024 * 1024
"""Rounds of starts in memory with which no more are read from the server, usually and while some tenants may not begin;
and bytes of them."""
TOGETHER = 64
"""Starts of a tenant in one shard that begin one after the other before those of its other shards."""
TRICKLE = 1.0
"""Seconds between two starts of a tenant while it, or the daemon, is full: each still gets on."""
TRICKLED = 1000
"""Tenants for which the last such start is remembered."""


class HeldStart:
    """A start that waits in memory, with the messages for its run that have come since."""

    __slots__ = ("messages", "shard")

    def __init__(self, shard: OwnedShard, message: InboxMessage) -> None:
        self.shard = shard
        self.messages = [message]

    @property
    def size(self) -> int:
        """Bytes of the messages."""
        return sum([len(message.body) for message in self.messages])


class _Line:
    """The starts of one tenant that wait: ids of runs, those of one shard together."""

    __slots__ = ("_left", "_shards", "length")

    def __init__(self) -> None:
        self._shards: OrderedDict[int, deque[str]] = OrderedDict()
        """By shard; the next one at the beginning."""
        self._left = TOGETHER
        """How many more of that shard begin before those of the others."""
        self.length = 0

    def append(self, shard: int, run_id: str) -> None:
        ids = self._shards.get(shard)
        if ids is None:
            ids = self._shards[shard] = deque()
        ids.append(run_id)
        self.length += 1

    def popleft(self) -> str:
        shard = next(iter(self._shards))
        ids = self._shards[shard]
        run_id = ids.popleft()
        self.length -= 1
        self._left -= 1
        if not ids:
            del self._shards[shard]
            self._left = TOGETHER
        elif not self._left:
            self._shards.move_to_end(shard)
            self._left = TOGETHER
        return run_id


class Starts:
    """The starts in memory that wait for their turn. `several`: runs that a round of commits has while a small
    tenant waits beside a large one."""

    def __init__(self, several: int) -> None:
        self._several = several
        self.limit = max(ALONE, several)
        """Runs that this round has, if so many have something to do."""
        self.room = self.limit
        """How many may still begin in this round."""
        self.held: dict[str, HeldStart] = {}
        self.size = 0
        """Bytes of what is held."""
        self.more = True
        """Some may wait on the server."""
        self.wanted = anyio.Event()
        """Set when those could be read."""
        self._turns: OrderedDict[bytes, _Line] = OrderedDict()
        """Tenant or workflow -> its starts; the next one at the beginning."""
        self.is_blocked = False
        """Some tenants may not begin in this round, so that no other round may follow by itself."""
        self.on_held: Callable[[], None] = lambda: None
        """Called when a start has come that waits while rounds don't follow each other."""
        self._summoned: list[str] = []
        """Runs for which something has come while their starts are held."""
        self._several_until = 0.0
        """Until when rounds are short (monotonic s)."""
        self._trickled: dict[bytes, float] = {}
        """Tenant -> when its last such start began."""

    @property
    def used(self) -> bool:
        """Whether a start has come since the last round, or waits."""
        return self.room != self.limit or bool(self.held)

    @property
    def is_short(self) -> bool:
        """Whether the next rounds could use more than there are. Not while some tenants may not begin: most of what is
        read would be theirs."""
        return not self.is_blocked and len(self.held) < ENOUGH * self.limit and self.size < ENOUGH_BYTES

    @property
    def may_look(self) -> bool:
        """Whether some may be read while some tenants may not begin, to find those of others behind theirs."""
        return self.is_blocked and len(self.held) < MOST * self.limit and self.size < ENOUGH_BYTES

    def offer(self, shard: OwnedShard, message: InboxMessage) -> bool:
        """Keep a message, if it is a start that has to wait, or is for a run whose start does. False: the caller passes
        it on."""
        if message.kind != "start" and message.run_id not in self.held:
            return False
        if self.held or self.room <= 0:
            self.hold(shard, message)
            if self.is_blocked:
                self.on_held()
            return True
        self.room -= 1
        return False

    def hold(self, shard: OwnedShard, message: InboxMessage) -> None:
        """Let a start wait for its turn, or a message behind the start of its run."""
        self.size += len(message.body)
        held = self.held.get(message.run_id)
        if held is not None:
            if held.shard is not shard:  # it was lost and acquired again, so all of it is read again
                self.size -= held.size
                held.shard, held.messages = shard, []
            held.messages.append(message)
            self._summoned.append(message.run_id)
            return
        self.held[message.run_id] = HeldStart(shard, message)
        name = class_of(message.header)
        line = self._turns.get(name)
        if line is None:
            line = self._turns[name] = _Line()
        line.append(shard.number, message.run_id)

    def look_for_more(self) -> None:
        """Starts may wait on the server."""
        self.more = True
        self.wanted.set()

    def take(self, load: int, *, is_full: bool, crowding: Collection[bytes] = ()) -> list[HeldStart]:
        """Begin a round: the starts whose turn it is. `load`: runs under way that have something to do now; `crowding`:
        tenants of whose runs so many wait for a free slot that no more may begin."""
        taken: list[HeldStart] = []
        if 1 < len(self._turns) <= MOST_SEVERAL and self._has_small_beside_large():
            self._several_until = time.monotonic() + SEVERAL_SECONDS
        is_short = time.monotonic() < self._several_until
        self.limit = self._several if is_short else max(ALONE, self._several)
        self.is_blocked = is_full or bool(crowding)
        if self.is_blocked:
            taken.extend(self._take_summoned())
        self._summoned.clear()
        if is_full:
            self.room = 0
            taken.extend(self._trickle(list(self._turns)))
        else:
            self.room = max(self.limit - load, self.limit // LEAST_PART, 1)
            crowded = [name for name in crowding if name in self._turns]
            taken.extend(self._trickle(crowded))
            apart = {name: self._turns.pop(name) for name in crowded if name in self._turns}
            while self.room > 0 and self._turns:
                name, line = self._turns.popitem(last=False)
                held = self._pop(line)
                if line.length:
                    self._turns[name] = line
                if held is not None and not held.shard.is_going:
                    self.room -= 1
                    taken.append(held)
            if is_short and len(self._turns) <= MOST_SEVERAL:
                taken.extend(self._take_few())
            self._turns.update(apart)
            if crowding:
                self.room = 0  # also those that come meanwhile wait for the next round, which knows whose they are
        if self.more and self.is_short:
            self.wanted.set()
        return taken

    def _has_small_beside_large(self) -> bool:
        """Whether a tenant with few starts waits beside those whose many make up nearly all that wait. If all have
        many, short rounds would be nobody's gain."""
        sizes = [line.length for line in self._turns.values()]
        return min(sizes) <= SMALL and sum(size for size in sizes if size >= LARGE) >= LARGE_PART * sum(sizes)

    def _take_few(self) -> Iterator[HeldStart]:
        """All starts of tenants that have few."""
        for name in [name for name, line in self._turns.items() if line.length <= SMALL]:
            line = self._turns.pop(name)
            while line.length:
                held = self._pop(line)
                if held is not None and not held.shard.is_going:
                    yield held

    def _pop(self, line: _Line) -> HeldStart | None:
        """The next of a tenant; None if it has begun already."""
        return self._let_go(line.popleft())

    def _let_go(self, run_id: str) -> HeldStart | None:
        held = self.held.pop(run_id, None)
        if held is not None:
            self.size -= held.size
        return held

    def _take_summoned(self) -> Iterator[HeldStart]:
        """What comes for a run begins it, also when there is no room: a cancel must not wait, nor a signal for long."""
        for run_id in self._summoned:
            held = self._let_go(run_id)
            if held is not None and not held.shard.is_going:
                yield held

    def _trickle(self, names: Iterable[bytes]) -> Iterator[HeldStart]:
        now = time.monotonic()
        if len(self._trickled) > TRICKLED:
            self._trickled = {name: at for name, at in self._trickled.items() if now - at < TRICKLE}
        for name in names:
            if now - self._trickled.get(name, -math.inf) < TRICKLE or len(self._trickled) > TRICKLED:
                continue
            self._trickled[name] = now
            line = self._turns[name]
            held = None
            while line.length and held is None:
                held = self._pop(line)
            if not line.length:
                del self._turns[name]
            if held is not None and not held.shard.is_going:
                yield held


def class_of(header: bytes) -> bytes:
    """Whose turn a start takes: its tenant's, or its workflow's if it has none. Headers: `model/record.py`."""
    words = header.split(b" ", 7)
    if len(words) < 8:
        return b""
    return b"w/" + words[5] if words[6] == b"-" else b"t/" + words[6]
