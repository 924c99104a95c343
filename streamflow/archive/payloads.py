"""Large payloads of one namespace in its storage: written once, checked whenever they are read, listed for the sweep.

Owns: their objects, what is known to be stored, and a bounded memory of what was read last. Must not: know runs, or
decide which payloads are still needed (`daemon/payload_sweep.py`). Called by: the owner's supplier, worker, client.

An object has the digest of its payload for a name, so all who write it write the same, and one that was damaged is
known by that. It is in the folder of the week in which a reference to it was made. In a week that is over nobody makes
one any more: who refers to that payload again writes it again, into its own week. So what nothing refers to there stays
that way, and can be deleted without a lock.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from hashlib import sha256
from typing import Unpack

from streamflow.archive import layout
from streamflow.archive.storage import TIMEOUT, Guard, Objects, Options
from streamflow.archive_url import NONE
from streamflow.errors import ArchiveDamaged
from streamflow.model.references import Reference

AT_ONCE = 8
"""Payloads of one run, or one call, that are read or written at the same time."""
SWEEPING = 600.0
"""Seconds that one call of the sweep may take: a folder of a week may list millions of objects."""
MOST_KNOWN = 100_000
REMEMBERED = 32 * 1024 * 1024
"""Bytes of payloads in memory that were read or written last."""
PLAIN, PACKED = b"SFP0", b"SFP1"
"""How an object begins: the payload as it is, or compressed, which is done if that saves a tenth."""
LEVEL = 1


class Payloads(Objects):
    """Large payloads, by their references."""

    def __init__(self, url: str, namespace: str, **options: Unpack[Options]) -> None:
        super().__init__(url, namespace, **options)
        self._known: OrderedDict[Reference, None] = OrderedDict()
        """Those that this process has stored."""
        self._recent: OrderedDict[bytes, bytes] = OrderedDict()
        """By digest."""
        self._bytes = 0

    def unknown(self, payloads: Iterable[Reference]) -> list[Reference]:
        """Those that have to be written before they may be referred to."""
        return [one for one in payloads if one not in self._known]

    def recent(self, references: Iterable[Reference]) -> dict[Reference, bytes]:
        """Those of them that are in memory."""
        found: dict[Reference, bytes] = {}
        for one in references:
            data = self._recent.get(one.digest)
            if data is not None:
                self._recent.move_to_end(one.digest)
                found[one] = data
        return found

    async def store(self, payloads: Mapping[Reference, bytes]) -> None:
        """Return when all of them are durable."""

        async def put(one: Reference) -> None:
            data = payloads[one]
            await self._storage.put(self._name(one), lambda: _pack(data))
            self._remember(one, data)

        await _each(put, self.unknown(payloads))

    async def fetch(self, references: Iterable[Reference]) -> dict[Reference, bytes]:
        """Raises `ArchiveDamaged` if one isn't there, or isn't what was stored."""
        wanted = list(references)
        found = self.recent(wanted)
        missing = [one for one in wanted if one not in found]

        async def get(one: Reference) -> None:
            found[one] = await self._get(one)
            self._remember(one, found[one])

        await _each(get, missing)
        return found

    async def _get(self, reference: Reference) -> bytes:
        name = self._name(reference)
        what = f"the {reference} at {self.shown}/{name}"
        data = await self._storage.get(name, lambda stored: _unpack(stored, reference, what))
        if data is None:
            raise ArchiveDamaged(f"{what} is not there: somebody has deleted it")
        return data

    def _remember(self, reference: Reference, data: bytes) -> None:
        self._known[reference] = None
        while len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)
        if reference.digest not in self._recent:
            self._bytes += len(data)
        self._recent[reference.digest] = data
        self._recent.move_to_end(reference.digest)
        while self._bytes > REMEMBERED and len(self._recent) > 1:
            self._bytes -= len(self._recent.popitem(last=False)[1])

    def _name(self, reference: Reference) -> str:
        return f"{self._folder}/{layout.payload_object(reference.week, reference.digest)}"

    @property
    def _folder(self) -> str:
        return layout.payload_folder(self._namespace)

    # --- for the sweep ------------------------------------------------------------------------------------------------

    async def weeks(self) -> list[int]:
        """The weeks in which payloads were written that are still there."""
        weeks = map(layout.parse_week, await self._storage.names(self._folder))
        return sorted(week for week in weeks if week is not None)

    async def digests(self, week: int) -> list[bytes]:
        names = await self._storage.names(f"{self._folder}/{week:05d}")
        return [digest for name in names if (digest := layout.parse_payload(name)) is not None]

    async def remove(self, week: int, digest: bytes) -> None:
        await self._storage.remove(f"{self._folder}/{layout.payload_object(week, digest)}")


def open_payloads(url: str, namespace: str, *, timeout: float = TIMEOUT, guard: Guard | None = None) -> Payloads | None:
    """None if there is no storage. Nothing is sent. Raises `UsageError` for a URL that can't be."""
    return None if url in ("", NONE) else Payloads(url, namespace, timeout=timeout, guard=guard)


async def _each(function: Callable[[Reference], Awaitable[None]], references: list[Reference]) -> None:
    """Call it for each, `AT_ONCE` at a time: a call's time-out begins before its turn in the storage, so if thousands
    waited there, a run with so many payloads would never get all. Behind one that fails none begins."""
    waiting = iter(references)

    async def some() -> None:
        for one in waiting:
            await function(one)

    tasks = [asyncio.ensure_future(some()) for _ in references[:AT_ONCE]]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _pack(data: bytes) -> bytes:
    packed = zlib.compress(data, LEVEL)
    return PACKED + packed if len(packed) < 0.9 * len(data) else PLAIN + data


def _unpack(stored: bytes, reference: Reference, what: str) -> bytes:
    kind, content = stored[: len(PLAIN)], stored[len(PLAIN) :]
    data = b""
    if kind == PLAIN:
        data = content
    elif kind == PACKED:
        try:
            data = zlib.decompressobj().decompress(content, reference.size + 1)
        except zlib.error as error:
            raise ArchiveDamaged(f"{what} is damaged: {error}") from None
    if len(data) != reference.size or sha256(data).digest() != reference.digest:
        raise ArchiveDamaged(f"{what} is damaged: its content doesn't fit its name")
    return data
