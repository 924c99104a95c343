"""What the log has only by reference, joined from the runs' records: large payloads are stored once.

Owns: reading them in portions of bounded size. Must not: read the log.
Called by: following a run's events (`listing.py`), `tail`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple

from streamflow.errors import StoreError
from streamflow.events import Transition, decode_transition
from streamflow.model.codec import DECODE_ERRORS
from streamflow.model.logged import LoggedTransition
from streamflow.store.connection import Store
from streamflow.store.kernel import Kernel

PORTION = 256
"""Transitions that are looked for at once, and..."""
PORTION_BYTES = 1024 * 1024
"""...their bytes, about: the last one may be larger."""
LEAST = 16 * 1024
"""Bytes that are read from a shard at once at least, however many shards are read."""


class Logged(NamedTuple):
    """One run's part of a log entry."""

    shard: int
    run_id: str
    transition: LoggedTransition


async def join_payloads(store: Store, kernel: Kernel, logged: Sequence[Logged]) -> AsyncGenerator[Transition]:
    """The transitions as they were recorded, in the same order. What is no longer in the run's record stays as the log
    has it: `events.gone_bytes` tells the size of what is missing. Raises `StoreError`."""
    first = 0
    while first < len(logged):
        portion = logged[first : first + PORTION]
        read = await _read(store, kernel, portion)
        for item, data in zip(portion, read, strict=True):
            if data is None:
                break
            yield _whole(item.transition, data)
            first += 1


async def _read(store: Store, kernel: Kernel, portion: Sequence[Logged]) -> list[bytes | None]:
    """The bytes of each transition's record: empty if it is gone, or nothing of it is missing; None if there was no
    room for it. The first one is always read."""
    by_shard: dict[int, list[int]] = {}
    found: list[bytes | None] = [b""] * len(portion)
    for position, item in enumerate(portion):
        if item.transition.number:
            by_shard.setdefault(item.shard, []).append(position)
    if not by_shard:
        return found
    limit = max(LEAST, PORTION_BYTES // len(by_shard))
    answers = await store.send(
        [
            kernel.read_transitions(shard, [_reference(portion[position]) for position in positions], limit)
            for shard, positions in by_shard.items()
        ]
    )
    for positions, answer in zip(by_shard.values(), answers, strict=True):
        if isinstance(answer, StoreError):
            raise answer
        for position, data in zip(positions, answer, strict=True):
            found[position] = data
    return found


def _reference(item: Logged) -> tuple[str, int, int]:
    return item.run_id, item.transition.created, item.transition.number


def _whole(logged: LoggedTransition, data: bytes) -> Transition:
    if data:
        try:
            recorded = decode_transition(data)
        except DECODE_ERRORS:
            pass  # somebody has damaged the record
        else:
            if logged.is_of(recorded):
                return recorded
    return Transition(logged.at, logged.events)
