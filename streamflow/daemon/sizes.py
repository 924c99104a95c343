"""How many bytes the ended runs of each workflow take, by age, for who has to free memory.

Owns: what is sampled of it, how often, and what that costs. Must not: delete anything (retention and `forget` do).
Called by: the rollup, at the daemon that leads.

Nothing counts bytes when a run ends: what it takes on the server isn't known then, and changes. So the leading daemon
looks at `SHARDS` shards every minute, one group after the other:

    names of workflows                                                (one read)
    how many ended runs of each these shards list                     (one pipeline, or some)
    of those that have any, by age                                    (one more)
    one run of each such listing and age, and what its record takes   (two more)

Numbers are exact for the shards that were looked at, each as of its last look, and multiplied by how many there are in
all until each has been; sizes are the mean of the sampled runs. A record isn't all that a run takes: some 150 bytes for
its listings, and what it has published, aren't counted.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import msgspec

from streamflow.daemon.context import Context
from streamflow.daemon.looks import Looks
from streamflow.errors import StoreError
from streamflow.model.record import LISTED, OPEN
from streamflow.store.connection import Call

LOOK_EVERY = 60.0
"""Seconds between two looks."""
ENDED = [status for status in LISTED if status not in OPEN]
SHARDS = 16
"""Shards of one look."""
MAX_WORKFLOWS = 50
"""Workflows that are looked at, the first by name."""
MAX_SAMPLED = 300
"""Runs of one look of which it is asked what they take."""
PIPELINE = 500
"""Calls in one pipeline."""
DAY_MS = 24 * 3600 * 1000
AGES = (("day", 0, DAY_MS), ("week", DAY_MS, 7 * DAY_MS), ("older", 7 * DAY_MS, None))
"""Of what ended how long ago: from, up to (ms)."""


class _Age(msgspec.Struct):
    """Ended runs of one age: how many; of how many the size is known, and their bytes."""

    runs: int = 0
    sampled: int = 0
    bytes: int = 0


_Ages = dict[str, dict[str, _Age]]
"""Workflow -> age -> what was found."""


class Sizes:
    def __init__(self, context: Context) -> None:
        self._store = context.store
        self._keys = context.kernel.keys
        self._clock = context.clock
        self._shards = context.namespace.shards
        # The user may not ask: that is no more than a figure that is missing.
        self._looks = Looks("what ended runs take is", LOOK_EVERY, context.settings.rollup, logging.DEBUG)
        self._next = 0
        """The shard that is next."""
        self._known: dict[int, _Ages] = {}

    def forget(self) -> None:
        """Another daemon leads: if this one leads again, it begins again."""
        self._looks.forget()
        self._next, self._known = 0, {}

    async def look(self) -> bool:
        """Look at the next shards, if it is time to; returns whether it has. Raises `StoreUnavailable`."""
        known = await self._looks.take(self._read_next)
        if known is None:
            return False
        self._known.update(known)
        return True

    async def _read_next(self) -> dict[int, _Ages]:
        numbers = [(self._next + n) % self._shards for n in range(min(SHARDS, self._shards))]
        self._next = (numbers[-1] + 1) % self._shards  # also if one of them is damaged: the others have their turn
        return await self._read(numbers)

    def found(self) -> dict[str, Any] | None:
        """`{"as_of": ms, "shards": looked at, "of": all, "workflows": [{"workflow", "runs", "bytes", "ages": {age:
        {"runs", "bytes"}}}, the largest first]}`, scaled to all shards; None before the first look."""
        if not self._known:
            return None
        total: _Ages = {}
        for ages in self._known.values():
            for workflow, of_each in ages.items():
                into = total.setdefault(workflow, {name: _Age() for name, _, _ in AGES})
                for name, age in of_each.items():
                    into[name].runs += age.runs
                    into[name].sampled += age.sampled
                    into[name].bytes += age.bytes
        scale = self._shards / len(self._known)
        rows = [_row(workflow, ages, scale) for workflow, ages in total.items()]
        rows.sort(key=lambda row: (-row["bytes"], row["workflow"]))
        return {"as_of": self._clock.now_ms(), "shards": len(self._known), "of": self._shards, "workflows": rows}

    async def _read(self, numbers: Sequence[int]) -> dict[int, _Ages]:
        keys = self._keys
        names = [name.decode(errors="replace") for name in await self._store.one(Call.plain("HKEYS", keys.workflows))]
        listings = [
            (number, name, keys.shard(number).index(status, name))
            for number in numbers
            for name in sorted(names)[:MAX_WORKFLOWS]
            for status in ENDED
        ]
        counts = await self._send([Call.plain("ZCARD", key) for _, _, key in listings])
        now = self._clock.now_ms()
        parts = [
            (number, name, age, key, *_bounds(now, least, most))
            for (number, name, key), count in zip(listings, counts, strict=True)
            if count
            for age, least, most in AGES
        ]
        counts = await self._send([Call.plain("ZCOUNT", key, low, high) for *_, key, low, high in parts])
        found: dict[int, _Ages] = {number: {} for number in numbers}
        present = [(part, count) for part, count in zip(parts, counts, strict=True) if count]
        for (number, name, age, *_), count in present:
            found[number].setdefault(name, {}).setdefault(age, _Age()).runs += count
        present = present[:: -(-len(present) // MAX_SAMPLED) or 1]
        firsts = await self._send(
            [Call.plain("ZRANGEBYSCORE", key, low, high, "LIMIT", 0, 1) for (*_, key, low, high), _ in present]
        )
        sampled = [(part, first[0].decode()) for (part, _), first in zip(present, firsts, strict=True) if first]
        records = [keys.shard(number).run(run_id) for (number, *_), run_id in sampled]
        sizes = await self._send([Call.plain("MEMORY", "USAGE", key) for key in records])
        for ((number, name, age, *_), _), size in zip(sampled, sizes, strict=True):
            if size:
                of = found[number][name][age]
                of.sampled += 1
                of.bytes += int(size)
        return found

    async def _send(self, calls: Sequence[Call[Any]]) -> list[Any]:
        answers: list[Any] = []
        for first in range(0, len(calls), PIPELINE):
            answers += await self._store.send(calls[first : first + PIPELINE])
        for answer in answers:
            if isinstance(answer, StoreError):
                raise answer
        return answers


def _bounds(now: int, least: int, most: int | None) -> tuple[str, str]:
    """Scores of runs that ended between these two ages (ms) before now."""
    low = "-inf" if most is None else f"({now - most}"
    return low, "+inf" if not least else str(now - least)


def _row(workflow: str, ages: dict[str, _Age], scale: float) -> dict[str, Any]:
    sampled = sum(age.sampled for age in ages.values())
    mean = sum(age.bytes for age in ages.values()) / sampled if sampled else 0.0
    shown = {
        name: {
            "runs": round(age.runs * scale),
            "bytes": round(age.runs * scale * (age.bytes / age.sampled if age.sampled else mean)),
        }
        for name, age in ages.items()
    }
    return {
        "workflow": workflow,
        "runs": sum(age["runs"] for age in shown.values()),
        "bytes": sum(age["bytes"] for age in shown.values()),
        "ages": shown,
    }
