"""Groups of subscribers: making, showing, resetting and removing them.

Owns: the note of each group in the namespace, its positions in all shards, and what is said of its lag.
Must not: read events. Called by: `subscription.py` (makes them), the client, the status.

A group is noted in the namespace first, so that daemons begin to log whole transitions, and has a position in each
shard then, which holds up the trimming of its log. While one is removed its note has that, until no shard has a
position any more: who finds such a note goes on with that.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec

from streamflow.client.listing import instant
from streamflow.errors import StoreError, UsageError
from streamflow.model.names import check_name
from streamflow.store.connection import Call, Store
from streamflow.store.kernel import GroupPosition, Kernel, Missed
from streamflow.store.queues import clock_of

From = Literal["now", "oldest"] | datetime
CHUNK = 64
"""Shards in one pipeline."""
LOST_MS = 24 * 3600 * 1000
"""For how long it is a problem that a group has lost events."""


class GroupNote(msgspec.Struct, frozen=True):
    """The note of a group. `created`: the server's clock, ms; `start`: from where it began, as `place_position` has it;
    `by`: who has made it, may be empty; `resets`: how often it was reset, which its consumers read."""

    identity: str
    created: int
    start: str
    by: str = ""
    removing: bool = False
    resets: int = 0


class Beat(msgspec.Struct, kw_only=True):
    """A heartbeat of a consumer. `dead_after`: seconds without another one; `leaving`: it gives up its shards;
    `trouble`: why it doesn't go on, as it says itself."""

    number: int = 0
    since: int = 0
    host: str = ""
    pid: int = 0
    dead_after: float = 10.0
    leaving: bool = False
    shards: int = 0
    trouble: str = ""


class GroupShard(msgspec.Struct, frozen=True, kw_only=True):
    """A group in one shard. `offset`: the log entry up to which all is acknowledged; `waiting`: entries behind it;
    `oldest`: when the first of those was logged, None if none waits; `consumer`: who reads it, empty for nobody."""

    shard: int
    offset: str
    waiting: int
    oldest: datetime | None
    consumer: str
    lost: Missed | None = None


class GroupConsumer(msgspec.Struct, frozen=True, kw_only=True):
    """A consumer that sends heartbeats. `shards`: how many it reads; `trouble`: why it doesn't go on, as it says
    itself (`Subscription.trouble`); empty if it says nothing."""

    id: str
    host: str
    pid: int
    since: datetime
    shards: int
    leaving: bool
    trouble: str = ""


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """A group of subscribers. `waiting`: log entries (commits) that it has not acknowledged; `oldest`: when the first
    of them was logged. `lost`: entries that were trimmed before it had acknowledged them, since it began or was reset
    last, and `lost_at` when last."""

    name: str
    created: datetime
    start: str
    by: str = ""
    waiting: int = 0
    oldest: datetime | None = None
    lost: int = 0
    lost_at: datetime | None = None
    consumers: list[GroupConsumer] = []
    shards: list[GroupShard] = []


def start_of(from_: object) -> str:
    """As `place_position` has it. Raises `UsageError`."""
    if from_ in ("now", "oldest"):
        return str(from_)
    if isinstance(from_, datetime):
        if from_.tzinfo is None:
            raise UsageError(f"from_={from_!r} has no time zone: add one, such as datetime(…, tzinfo=UTC)")
        return str(max(1, round(from_.timestamp() * 1000)))
    raise UsageError(f'from_={from_!r}: it is "now", "oldest" or an aware datetime')


def read_group_note(note: bytes | None) -> GroupNote | None:
    """None if there is none, or nobody can read it."""
    try:
        return msgspec.json.decode(note or b"null", type=GroupNote | None)
    except msgspec.MsgspecError:
        return None


class Groups:
    """The groups of a namespace with so many shards."""

    def __init__(self, store: Store, kernel: Kernel, shards: int) -> None:
        self._store = store
        self._kernel = kernel
        self._shards = shards

    async def make(self, name: str, from_: From, by: str = "") -> GroupNote:
        """The note of a group, which is made unless it exists. When this returns it has a position in every shard.
        Raises `StoreError`, `UsageError`."""
        start = start_of(from_)
        key = self._kernel.keys.groups
        while True:
            stored = await self._store.one(Call.plain("HGET", key, check_name("group", name)))
            found = read_group_note(stored)
            if found is not None and not found.removing:
                break
            if found is not None:
                await self._remove(name, stored, found)
                continue
            now = clock_of(await self._store.one(Call.plain("TIME", near=key)))
            note = msgspec.json.encode(GroupNote(secrets.token_hex(8), now, start, by))
            await self._store.one(self._kernel.note_group(name, stored or b"", note))
        await self._place(name, found, found.start, over=False)
        return found

    async def reset(self, name: str, to: From) -> None:
        """Have a group go on from elsewhere in all shards. What its consumers have acknowledged in between is void, and
        they begin again from there. Raises `UsageError` if there is no such group, `StoreError`."""
        start = start_of(to)
        _, note = await self._noted(name)
        await self._place(name, note, start, over=True)
        while True:  # a consumer that has nothing to acknowledge learns of it only by this
            stored, note = await self._noted(name)
            changed = msgspec.json.encode(msgspec.structs.replace(note, resets=note.resets + 1))
            if await self._store.one(self._kernel.note_group(name, stored, changed)) == changed:
                return

    async def remove(self, name: str) -> bool:
        """Remove a group: what only it waited for may be trimmed. Its consumers end with `GroupRemoved`. Returns False
        if there is none. Raises `StoreError`."""
        stored = await self._store.one(Call.plain("HGET", self._kernel.keys.groups, check_name("group", name)))
        if not stored:
            return False
        await self._remove(name, stored, read_group_note(stored) or GroupNote("-", 0, "now"))
        return True

    async def all(self) -> list[Group]:
        """All groups with their lag, by name."""
        notes: Mapping[bytes, bytes] = await self._store.one(Call.plain("HGETALL", self._kernel.keys.groups))
        if not notes:
            return []
        return await self._described({name.decode(): note for name, note in sorted(notes.items())}, "")

    async def one(self, name: str) -> Group:
        """One group. Raises `UsageError` if there is none, `StoreError`."""
        stored, _ = await self._noted(name)
        (group,) = await self._described({name: stored}, name)
        return group

    async def _noted(self, name: str) -> tuple[bytes, GroupNote]:
        stored = await self._store.one(Call.plain("HGET", self._kernel.keys.groups, check_name("group", name)))
        note = read_group_note(stored)
        if note is None:
            raise UsageError(f"there is no group {name!r}: see `streamflow groups list`")
        return stored, note

    async def _described(self, notes: Mapping[str, bytes], only: str) -> list[Group]:
        reads = [Call.plain("HGETALL", self._kernel.keys.consumers(name)) for name in notes]
        beats: list[Mapping[bytes, bytes]] = [_raised(one) for one in await self._store.send(reads)]
        positions: dict[str, list[tuple[int, GroupPosition]]] = {}
        for first in range(0, self._shards, CHUNK):
            numbers = range(first, min(first + CHUNK, self._shards))
            answers = await self._store.send([self._kernel.peek_positions(number, only) for number in numbers])
            for number, answer in zip(numbers, answers, strict=True):
                for position in _raised(answer):
                    positions.setdefault(position.group, []).append((number, position))
        return [
            group_of(name, read_group_note(note), some, positions.get(name, []))
            for (name, note), some in zip(notes.items(), beats, strict=True)
        ]

    async def _place(self, name: str, note: GroupNote, to: str, *, over: bool) -> None:
        for first in range(0, self._shards, CHUNK):
            numbers = range(first, min(first + CHUNK, self._shards))
            calls = [self._kernel.place_position(n, name, note.identity, to, over=over) for n in numbers]
            for answer in await self._store.send(calls):
                _raised(answer)

    async def _remove(self, name: str, stored: bytes, note: GroupNote) -> None:
        removing = msgspec.json.encode(msgspec.structs.replace(note, removing=True))
        if await self._store.one(self._kernel.note_group(name, stored, removing)) != removing:
            return  # somebody else was faster
        await self._place(name, note, "", over=True)
        await self._store.one(self._kernel.note_group(name, removing, b""))
        key = self._kernel.keys.consumers(name)
        beats: Mapping[bytes, bytes] = await self._store.one(Call.plain("HGETALL", key))
        dead = [(member.decode(errors="replace"), beat) for member, beat in beats.items()]
        await self._store.one(self._kernel.heartbeat("-", b"", dead, members=key))


def group_of(
    name: str, note: GroupNote | None, beats: Mapping[bytes, bytes], positions: Sequence[tuple[int, GroupPosition]]
) -> Group:
    note = note or GroupNote("", 0, "")
    of_it = [(number, one) for number, one in positions if one.identity == note.identity]
    missed = [one.missed for _, one in of_it if one.missed is not None]
    oldest = [one.oldest for _, one in of_it if one.oldest]
    return Group(
        name=name,
        created=instant(note.created),
        start=note.start,
        by=note.by,
        waiting=sum(one.waiting for _, one in of_it),
        oldest=instant(min(oldest)) if oldest else None,
        lost=sum(one.entries for one in missed),
        lost_at=instant(max(one.at for one in missed)) if missed else None,
        consumers=[_consumer(member.decode(errors="replace"), beat) for member, beat in sorted(beats.items())],
        shards=[
            GroupShard(
                shard=number,
                offset=one.offset,
                waiting=one.waiting,
                oldest=instant(one.oldest) if one.oldest else None,
                consumer=one.holder,
                lost=one.missed,
            )
            for number, one in of_it
        ],
    )


def read_beat(data: bytes) -> Beat:
    """Of what nobody can read: a heartbeat that says nothing."""
    try:
        return msgspec.json.decode(data, type=Beat)
    except msgspec.MsgspecError:
        return Beat()


def _consumer(member: str, data: bytes) -> GroupConsumer:
    beat = read_beat(data)
    return GroupConsumer(
        id=member,
        host=beat.host,
        pid=beat.pid,
        since=instant(beat.since),
        shards=beat.shards,
        leaving=beat.leaving,
        trouble=beat.trouble,
    )


def _raised(answer: Any) -> Any:
    if isinstance(answer, StoreError):
        raise answer
    return answer
