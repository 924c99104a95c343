"""Which consumer of a group reads which shard: heartbeats, rendezvous hashing, and the tokens of shards.

Owns: this consumer's heartbeats, what it knows of the others, its claims, and what it acknowledges. Must not: rely on
any of that for safety: two consumers may believe that they have a shard, and only the token with which they acknowledge
decides. Called by: `subscription.py`.

As daemons do with shards (`daemon/membership.py`): each consumer increases its heartbeat in a hash of the group, and
watches on its own monotonic clock whether those of the others change. All compute the same consumer of each shard.

    joins   -> the others see it, and give up the shards that it wins as soon as what they have of them is acknowledged
    leaves  -> it acknowledges and gives up all its shards, and removes its heartbeat
    dies    -> after `dead_after` without a heartbeat the others take its shards over, from what it had acknowledged
    pauses  -> as if it died; when it wakes, what it acknowledges is refused, and it drops those shards
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

import msgspec

from streamflow.client.groups import Beat, GroupNote, read_beat, read_group_note
from streamflow.client.log_reader import LogReader
from streamflow.errors import GroupRemoved, StoreError, StoreUnavailable, UsageError
from streamflow.model.sharding import winner_of
from streamflow.store.connection import Call, OtherHistory, Store
from streamflow.store.kernel import Acknowledged, Claimed, Heartbeats, Kernel, Missed, Reply, position_words
from streamflow.text import recordable
from streamflow.wire import stream_order

_log = logging.getLogger("streamflow.groups")

Resume = Mapping[int, str] | Callable[[int], Awaitable[str | None]]
"""Offsets by shard, or what gives the one of a shard when it is taken over."""
BEATS = 5
"""Heartbeats in `dead_after`, at least one a second."""
POLL = 0.1
"""Seconds between two looks whether shards that this consumer wants are free..."""
IMPATIENT = 3.0
"""...for so many seconds; after that it looks with every heartbeat."""
FLUSH_EVERY = 0.1
"""Seconds after which what was acknowledged is sent: no more than that is delivered again after a death."""
CHUNK = 64
"""Shards in one pipeline."""
MAX_TROUBLE = 300
"""Characters."""


class Held:
    """A shard that this consumer has. `done`: the offset up to which all is to be acknowledged, `entries`: how many
    log entries that is behind what the server knows."""

    def __init__(self, number: int, token: str, history: int) -> None:
        self.number = number
        self.token = token
        self.history = history
        self.done = ""
        self.entries = 0
        self.known = "0-0"
        """The last offset of which the server has confirmed that it is acknowledged."""
        self.leaving = False


class _Seen(msgspec.Struct):
    """The newest heartbeat of a consumer, and when it changed last (monotonic s)."""

    raw: bytes
    changed: float
    dead_after: float
    leaving: bool


class Consumer:
    """One consumer of a group. `on_missed(shard, missed)`: entries were trimmed that the group hadn't acknowledged."""

    def __init__(
        self,
        store: Store,
        kernel: Kernel,
        reader: LogReader,
        group: str,
        note: GroupNote,
        shards: int,
        dead_after: float,
        resume: Resume | None,
        on_missed: Callable[[int, Missed], None],
    ) -> None:
        self.id = f"{socket.gethostname()[:64]}-{os.getpid()}-{secrets.token_hex(4)}"
        self.held: dict[int, Held] = {}
        self.working: set[int] = set()
        """Shards of which the subscriber has something in hand: they are given up when that is done."""
        self.trouble = ""
        """Why the subscriber doesn't go on, for who looks at the group: it goes with each heartbeat."""
        self.dead_after = dead_after
        self.confirmed = time.monotonic()
        """When the last heartbeat was sent that the server has confirmed (monotonic s)."""
        self._store = store
        self._kernel = kernel
        self._reader = reader
        self._group = group
        self._note = note
        self._shards = shards
        self._resume = resume
        self._on_missed = on_missed
        self._key = kernel.keys.consumers(group)
        self._beat = Beat(host=socket.gethostname(), pid=os.getpid(), since=_now_ms(), dead_after=dead_after)
        self._seen: dict[str, _Seen] = {}
        self._alive: list[str] = []
        self._wanted: set[int] = set()
        self._wanting_since = 0.0
        self._known_missed: dict[int, Missed] = {}
        self._soon = asyncio.Event()
        self._turn = asyncio.Lock()
        self._flushing = asyncio.Lock()
        self._left = False

    # --- loops --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Raises `GroupRemoved`, and what the server refuses."""
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._forever(self._step))
            loops.create_task(self._forever(self._flush_soon))

    async def _forever(self, turn: Callable[[], Awaitable[object]]) -> None:
        failing = False
        while True:
            try:
                await turn()
                failing = False
            except StoreUnavailable as error:
                if not failing:
                    _log.warning("consumer %s of group %s goes on later: %s", self.id, self._group, error)
                failing = True
                await asyncio.sleep(min(1.0, self.dead_after / BEATS))

    async def _step(self) -> None:
        beat = min(1.0, self.dead_after / BEATS)
        if time.monotonic() - self.confirmed >= beat or not self._alive:
            await self.beat()
        await self.rebalance()
        missing = self._wanted - self.held.keys()
        if missing and time.monotonic() - self._wanting_since < IMPATIENT:
            pause = POLL
        else:
            pause = max(POLL, self.confirmed + beat - time.monotonic())
        self._soon.clear()
        try:
            async with asyncio.timeout(pause):
                await self._soon.wait()
        except TimeoutError:
            pass

    async def _flush_soon(self) -> None:
        await asyncio.sleep(FLUSH_EVERY)
        await self.flush()

    # --- heartbeats ---------------------------------------------------------------------------------------------------

    @property
    def is_sure(self) -> bool:
        """Whether the others can't have taken this consumer for dead."""
        return time.monotonic() - self.confirmed < self.dead_after * 2 / 3

    async def beat(self) -> None:
        """Send a heartbeat, and read those of the others."""
        async with self._turn:
            was_sure, now = self.is_sure, time.monotonic()
            beat = self._beat
            beat.number += 1
            beat.shards = len(self.held)
            beat.trouble = recordable(self.trouble, MAX_TROUBLE)
            raw = msgspec.json.encode(beat)
            dead = [
                (name, seen.raw)
                for name, seen in self._seen.items()
                if name != self.id and now - seen.changed > seen.dead_after
            ]
            call = self._kernel.heartbeat(self.id, raw, dead, members=self._key)
            note = Call.plain("HGET", self._kernel.keys.groups, self._group)
            answers: list[Any] = await self._store.send([call, note], urgent=True)
            for answer in answers:
                if isinstance(answer, StoreError):
                    raise answer
            self.confirmed = now
            for held in [held for held in self.held.values() if held.history != self._history(held.number)]:
                self._lost_history(held)
            was_reset = self._check_note(answers[1])
            self._take(cast("Heartbeats", answers[0]), {name for name, _ in dead}, blind=not was_sure)
            if was_reset or not was_sure:
                await self._verify()

    def _check_note(self, stored: bytes | None) -> bool:
        """Whether the group was reset since the last look. Raises `GroupRemoved`."""
        note = read_group_note(stored)
        if note is None or note.removing or note.identity != self._note.identity:
            raise GroupRemoved(
                f"group {self._group} was removed while it was read: consume it again to begin a new one"
            )
        before, self._note = self._note, note
        return note.resets != before.resets

    def _take(self, answer: Heartbeats, dead: set[str], *, blind: bool) -> None:
        """`blind`: this consumer hasn't seen the others for long, so each has its time for the next heartbeat."""
        now = time.monotonic()
        for name in self._seen.keys() - answer.members.keys():
            del self._seen[name]
        for name, raw in answer.members.items():
            seen = self._seen.get(name)
            if seen is None or seen.raw != raw or blind:
                beat = read_beat(raw)
                self._seen[name] = _Seen(raw, now, beat.dead_after, beat.leaving)
        for name in dead - answer.members.keys():
            _log.warning("consumer %s of group %s is considered dead; others take over", name, self._group)
        alive = sorted(
            name
            for name, seen in self._seen.items()
            if not seen.leaving and (name == self.id or now - seen.changed <= seen.dead_after)
        )
        if alive != self._alive:
            self._alive = alive
            self._wanted = {n for n in range(self._shards) if alive and winner_of(n, alive) == self.id}
            self._wanting_since = now

    async def _verify(self) -> None:
        """Drop the shards that others have taken over meanwhile."""
        for number, (*_, token, _) in (await self._positions(list(self.held))).items():
            held = self.held.get(number)
            if held is not None and held.token != token:
                self._fenced(held)

    # --- shards -------------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something has changed: look at once."""
        self._soon.set()

    async def rebalance(self) -> None:
        """Give up shards that others should have, and take those that this one should."""
        async with self._turn:
            for held in [held for number, held in self.held.items() if number not in self._wanted]:
                held.leaving = True
                self._reader.remove(held.number)
            await self._release(
                [held for held in self.held.values() if held.leaving and held.number not in self.working]
            )
            if not self._left:
                await self._claim(sorted(self._wanted - self.held.keys()))

    async def _claim(self, numbers: list[int]) -> None:
        if not numbers:
            return
        positions = await self._positions(numbers)
        holders = {holder for *_, holder in positions.values()} - {"", self.id}
        if holders - self._seen.keys():
            call = self._kernel.heartbeat(self.id, msgspec.json.encode(self._beat), members=self._key)
            self._take(await self._store.one(call, urgent=True), set(), blind=False)  # who has joined since
        now = time.monotonic()
        free: list[tuple[int, str]] = []
        for number, (identity, _, _, token, holder) in positions.items():
            seen = self._seen.get(holder)
            is_alive = holder != self.id and seen is not None and now - seen.changed <= seen.dead_after
            if identity == self._note.identity and not is_alive and number in self._wanted:
                free.append((number, token))
        for first in range(0, len(free), CHUNK):
            await self._claim_some(free[first : first + CHUNK])

    async def _claim_some(self, free: Sequence[tuple[int, str]]) -> None:
        histories = {number: self._history(number) for number, _ in free}
        calls = [
            self._kernel.claim_position(number, self._group, self._note.identity, token, secrets.token_hex(8), self.id)
            for number, token in free
        ]
        answers = await self._store.send(calls)
        for (number, _), answer in zip(free, cast("list[Claimed | StoreError]", answers), strict=True):
            if isinstance(answer, StoreError):
                raise answer
            if answer.code is not Reply.OK:
                continue
            after = answer.offset
            resumed = await self._resumed(number)
            if resumed and stream_order(resumed) > stream_order(after):
                after = resumed
            self.held[number] = Held(number, answer.token, histories[number])
            self._reader.add(number, after)
            self._note_missed(number, answer.missed)

    async def _resumed(self, number: int) -> str:
        if self._resume is None:
            return ""
        found = await self._resume(number) if callable(self._resume) else self._resume.get(number)
        try:
            stream_order(found or "0-0")
        except (ValueError, AttributeError):
            raise UsageError(f"resume has {found!r} for shard {number}, which is not the offset of a batch") from None
        return found or ""

    def _history(self, number: int) -> int:
        return self._store.history_of(self._kernel.keys.shard(number).positions)

    async def _positions(self, numbers: Sequence[int]) -> dict[int, tuple[str, str, int, str, str]]:
        """Identity, offset, entries, token and holder of the shards where the group has a position."""
        found: dict[int, tuple[str, str, int, str, str]] = {}
        for first in range(0, len(numbers), CHUNK):
            some = numbers[first : first + CHUNK]
            calls = [Call.plain("HGET", self._kernel.keys.shard(n).positions, self._group) for n in some]
            for number, answer in zip(some, await self._store.send(calls), strict=True):
                if isinstance(answer, StoreError):
                    raise answer
                try:
                    found[number] = position_words(answer or b"")
                except ValueError:
                    continue  # none, or somebody has damaged it
        return found

    # --- acknowledging ------------------------------------------------------------------------------------------------

    def done(self, held: Held, offset: str, entries: int) -> None:
        """All up to this entry may be acknowledged, so many entries of the log behind what was done before."""
        if self.held.get(held.number) is held:
            held.done = offset
            held.entries += entries
            if held.leaving:
                self.wake()

    async def flush(self) -> None:
        """Send what is done and not acknowledged."""
        async with self._flushing:
            await self._acknowledge([held for held in self.held.values() if held.done], release=False)

    async def _release(self, some: Sequence[Held]) -> None:
        if some:
            async with self._flushing:
                await self._acknowledge(some, release=True)

    async def _acknowledge(self, some: Sequence[Held], *, release: bool) -> None:
        for held in some:
            if held.history != self._history(held.number):
                self._lost_history(held)
        some = [held for held in some if self.held.get(held.number) is held]
        for first in range(0, len(some), CHUNK):
            sent = [(held, held.done, held.entries) for held in some[first : first + CHUNK]]
            calls = [
                self._kernel.acknowledge_events(held.number, self._group, held.token, done, entries, release=release)
                for held, done, entries in sent
            ]
            answers: list[Acknowledged | StoreError] = await self._store.send(calls, same_history=True)
            for (held, done, entries), answer in zip(sent, answers, strict=True):
                self._acknowledged(held, done, entries, answer, release=release)

    def _acknowledged(
        self, held: Held, done: str, entries: int, answer: Acknowledged | StoreError, *, release: bool
    ) -> None:
        if isinstance(answer, OtherHistory):
            self._lost_history(held)
        elif isinstance(answer, StoreError):
            raise answer
        elif answer.code is Reply.FENCED:
            self._fenced(held)
        elif answer.code is Reply.BEHIND:
            self._lost_history(held)
        else:
            held.known = done or held.known
            if held.done == done:
                held.done = ""
            held.entries -= entries
            self._note_missed(held.number, answer.missed)
            if release:
                self._drop(held)

    def _fenced(self, held: Held) -> None:
        _log.warning(
            "consumer %s of group %s does not have shard %d any more: another has it, or the group was reset, so what "
            "it had not acknowledged there is delivered again",
            self.id,
            self._group,
            held.number,
        )
        self._drop(held)

    def _lost_history(self, held: Held) -> None:
        """A server was replaced, and may have lost what was read: read again from what the new one has."""
        _log.warning("the server of shard %d has another history, so its events are read again", held.number)
        self._drop(held)
        self.wake()

    def _drop(self, held: Held) -> None:
        if self.held.get(held.number) is held:
            del self.held[held.number]
            self._reader.remove(held.number)

    def _note_missed(self, number: int, missed: Missed | None) -> None:
        known = self._known_missed.get(number)
        if missed is None or missed == known:
            return
        self._known_missed[number] = missed
        if known is not None and known.first == missed.first:
            missed = msgspec.structs.replace(missed, entries=missed.entries - known.entries, first=known.last)
        self._on_missed(number, missed)

    async def leave(self) -> None:
        """Acknowledge what is done, give up all shards, and remove the heartbeat."""
        self._left = True
        async with self._turn:
            await self._release(list(self.held.values()))
            await self._store.one(self._kernel.heartbeat(self.id, b"", members=self._key))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
