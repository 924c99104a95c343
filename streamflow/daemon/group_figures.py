"""The metrics of groups of subscribers: how far each is behind, in entries, seconds and bytes, and what it has lost.

Owns: what is read for them, and how it is added up. Must not: read it at each daemon (each shard is asked), read
anything of a namespace without groups. Called by: `namespace_figures.py`, at the daemon that leads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from streamflow.errors import StoreError
from streamflow.http import catalog
from streamflow.http.figures import Figures, Names
from streamflow.store.connection import Call, Store
from streamflow.store.kernel import GroupPosition, Kernel
from streamflow.store.servers import send_to_each


class _Note(msgspec.Struct):
    """What is used of a group's note."""

    identity: str
    removing: bool = False


class _Lag(msgspec.Struct):
    """Of one group, or of several that share a label."""

    consumers: int = 0
    entries: int = 0
    lost: int = 0
    bytes: float = 0.0
    oldest: int = 0
    """Ms; 0 if nothing waits."""


class GroupFigures:
    def __init__(self, kernel: Kernel, shards: int, patience: float) -> None:
        self._kernel = kernel
        self._shards = shards
        self._patience = patience
        self._names = Names(())

    async def put(self, figures: Figures, store: Store, notes: Mapping[bytes, bytes], now: int) -> None:
        """`notes`: those of all groups, as stored; `now`: the server's clock, ms. A shard that doesn't answer is left
        out. Raises `StoreError` if no server answers."""
        groups = _noted(notes)
        if not groups:
            return
        keys = self._kernel.keys
        lags = {name: _Lag() for name in groups}
        calls: list[tuple[str, Call[Any]]] = [
            *((key := keys.consumers(name), Call.plain("HLEN", key)) for name in groups),
            *((keys.shard(n).log, self._kernel.peek_positions(n)) for n in range(self._shards)),
        ]
        answers = await send_to_each(store, calls, self._patience)
        for lag, count in zip(lags.values(), answers, strict=False):
            lag.consumers = 0 if isinstance(count, StoreError) else count
        waiting: dict[int, list[GroupPosition]] = {}
        for number, found in enumerate(answers[len(groups) :]):
            for position in () if isinstance(found, StoreError) else found:
                if groups.get(position.group) != position.identity:
                    continue
                _add(lags[position.group], position)
                if position.waiting:
                    waiting.setdefault(number, []).append(position)
        sizes = await self._entry_sizes(store, list(waiting))
        for number, positions in waiting.items():
            for position in positions:
                lags[position.group].bytes += position.waiting * sizes.get(number, 0.0)
        for label, some in self._names.grouped(lags).items():
            oldest = min((lag.oldest for lag in some if lag.oldest), default=now)
            figures.set(catalog.GROUP_CONSUMERS, sum(lag.consumers for lag in some), label)
            figures.set(catalog.GROUP_LAG_ENTRIES, sum(lag.entries for lag in some), label)
            figures.set(catalog.GROUP_LAG, max(0.0, (now - oldest) / 1000), label)
            figures.set(catalog.GROUP_LAG_BYTES, round(sum(lag.bytes for lag in some)), label)
            figures.set(catalog.GROUP_LOST, sum(lag.lost for lag in some), label)

    async def _entry_sizes(self, store: Store, shards: Sequence[int]) -> dict[int, float]:
        """Bytes of an entry on the average, by shard."""
        if not shards:
            return {}
        logs = [self._kernel.keys.shard(number).log for number in shards]
        calls: list[tuple[str, Call[Any]]] = [(log, Call.plain("XLEN", log)) for log in logs]
        calls += [(log, Call.plain("MEMORY", "USAGE", log)) for log in logs]
        answers = await send_to_each(store, calls, self._patience)
        return {
            number: size / length
            for number, length, size in zip(shards, answers, answers[len(shards) :], strict=False)
            if isinstance(length, int) and isinstance(size, int) and length
        }


def _noted(notes: Mapping[bytes, bytes]) -> dict[str, str]:
    """Identities by name; what nobody can read is left out."""
    found: dict[str, str] = {}
    for name, data in sorted(notes.items()):
        try:
            note = msgspec.json.decode(data, type=_Note)
        except msgspec.MsgspecError:
            continue
        if not note.removing:
            found[name.decode(errors="replace")] = note.identity
    return found


def _add(lag: _Lag, position: GroupPosition) -> None:
    lag.entries += position.waiting
    lag.lost += position.missed.entries if position.missed is not None else 0
    if position.oldest:
        lag.oldest = min(lag.oldest or position.oldest, position.oldest)
