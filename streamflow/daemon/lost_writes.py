"""Says which runs the server has lost, or set back, of those that this daemon had in memory.

Owns: what was known of the runs of dropped shards, and comparing that with the server when its history has changed.
Must not: mend anything: what is stored is the truth, and runs continue from there (`recent_commits.py` commits again
what is missing, before this looks). Called by: the owner (drops shards, lets runs go), membership (compares shards when
they are acquired again, before anything happens in them, and reports), the daemon (figures for heartbeat and health).

A server that was killed with its machine, or a replica that was promoted, lacks the last writes, and FLUSHALL all of
them. Only the daemon that had them in memory can tell which they were. A shard may be dropped before it is known why
(its owner's record is gone), so each is remembered for a while. Runs that had ended, or were evicted, shortly before
the change are among those compared; one of them that somebody has deleted since counts as lost, too, but not one that
another run of its id has replaced.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Collection, Mapping

from streamflow.daemon.shard import OwnedShard
from streamflow.daemon.starts import HeldStart
from streamflow.errors import StoreError
from streamflow.model.record import Header, decode_header
from streamflow.model.start_word import start_word
from streamflow.store.connection import Call, Store
from streamflow.store.kernel import Kernel

_log = logging.getLogger("streamflow.lost")

KEEP = 30.0
"""Seconds for which a dropped shard is remembered: until it is known that the history has changed."""
RECENT = 4096
RECENT_SECONDS = 10.0
"""So many runs that have left memory are remembered; those are compared that did so within seconds before the last."""
CHUNK = 1000
"""Headers that are read in one pipeline."""
IDS = 50
"""Run ids in one line of the log..."""
NAMED = 2000
"""...and in all lines about one change."""
UNWITNESSED = 60.0
"""Seconds after such a change in which it counts if a shard's owner has died: nobody knows what is missing of it."""
SAID_FOR = 3600.0
"""Seconds for which status and health show it."""


class LostWrites:
    """`held`: the starts in memory that wait for their turn."""

    def __init__(self, store: Store, kernel: Kernel, held: Mapping[str, HeldStart]) -> None:
        self._store = store
        self._kernel = kernel
        self._held = held
        self._dropped: deque[tuple[float, int, dict[str, bytes]]] = deque()
        self._recent: deque[tuple[float, int, str, bytes]] = deque(maxlen=RECENT)
        self._has_changed = False
        self._compared = 0
        self._gone: list[str] = []
        self._set_back: list[str] = []
        """Found since the last report."""
        self._changed: dict[int, float] = {}
        """When (monotonic s) a server was found to have this history."""
        self._unwitnessed: dict[int, tuple[str, list[str]]] = {}
        """Shards whose owners have died with their servers: the owner, and which runs were under way there."""
        self._forgotten: set[int] = set()
        """Shards of which more is missing than was kept to be committed again."""
        self._count = 0
        self.total = 0
        """Runs that were lost or set back since this daemon started."""
        self._said = 0.0

    def dropped(self, shard: OwnedShard) -> None:
        """Remember what is known of the runs of a shard: run id -> header."""
        self._prune()
        known = {message.run_id: message.header for message in shard.inbox if message.kind == "start"}
        for run_id, work in shard.aside.items():
            known.update((run_id, message.header) for message in work.messages if message.kind == "start")
        known.update((run_id, live.header_bytes) for run_id, live in shard.live.items())
        if known:
            self._dropped.append((time.monotonic(), shard.number, known))

    def left_memory(self, shard: int, run_id: str, header: bytes) -> None:
        """The run has ended, or is evicted."""
        self._recent.append((time.monotonic(), shard, run_id, header))

    def moved_out(self, shard: int, run_ids: Collection[str]) -> None:
        """These runs were moved out of memory, so the server has no headers of them."""
        if any((number, run_id) for _, number, run_id, _ in self._recent if number == shard and run_id in run_ids):
            kept = [one for one in self._recent if one[1] != shard or one[2] not in run_ids]
            self._recent = deque(kept, maxlen=RECENT)

    def history_changed(self) -> None:
        """All shards were dropped, because the server has another history than before: `report` compares them."""
        self._has_changed = True
        now = time.monotonic()
        self._changed = {one: at for one, at in self._changed.items() if now - at < UNWITNESSED}
        self._changed[self._store.server_generation] = now
        for run_id, held in self._held.items():
            if held.messages[0].kind == "start":
                self._dropped.append((now, held.shard.number, {run_id: held.messages[0].header}))

    @property
    def recent_count(self) -> int:
        """Runs that were lost or set back within the last hour."""
        return self._count if time.monotonic() - self._said < SAID_FOR else 0

    def found(self, shard: OwnedShard) -> None:
        """The shard was recovered. If its last owner has died, and its server may lack newest writes, nobody is left
        who could commit them again, or know them."""
        at = self._changed.get(shard.history)
        if shard.lost_with and at is not None and time.monotonic() - at < UNWITNESSED:
            self._unwitnessed[shard.number] = shard.lost_with, sorted(shard.orphans)
            self._has_changed = True

    def forgotten(self, number: int) -> None:
        """A server has lost more of this shard than this daemon could commit again."""
        self._forgotten.add(number)
        self._has_changed = True

    async def compare(self, shards: Collection[int] | None = None) -> None:
        """Find out what is missing of the runs of these shards, or of all, if the history has changed. Raises
        `StoreError`; then the next call does it."""
        self._prune()
        if not self._has_changed:
            return
        known = [one for one in self._all_known() if shards is None or one[0] in shards]
        for first in range(0, len(known), CHUNK):
            chunk = known[first : first + CHUNK]
            calls = [
                Call.plain("LINDEX", self._kernel.keys.shard(number).run(run_id), 0) for number, run_id, _ in chunk
            ]
            for (_, run_id, header), stored in zip(chunk, await self._store.send(calls), strict=True):
                if not isinstance(stored, StoreError):
                    _compare(run_id, header, stored, self._gone, self._set_back)
        self._compared += len(known)
        if shards is not None:
            done = {(number, run_id) for number, run_id, _ in known}
            self._dropped = deque(one for one in self._dropped if one[1] not in shards)
            self._recent = deque((one for one in self._recent if (one[1], one[2]) not in done), maxlen=RECENT)

    async def report(self) -> None:
        """Log what is missing, if the history has changed. Raises `StoreError`; then the next call does it."""
        await self.compare()
        if not self._has_changed:
            return
        self._has_changed = False
        self._dropped.clear()
        self._recent.clear()
        gone, set_back, compared = self._gone, self._set_back, self._compared
        self._gone, self._set_back, self._compared = [], [], 0
        doubtful = self._name_unwitnessed(len(gone) + len(set_back))
        if doubtful:
            self._count = self.recent_count + doubtful
            self.total += doubtful
            self._said = time.monotonic()
        if not (gone or set_back):
            _log.info("the server has all of the %d runs that this daemon had in memory, as they were", compared)
            return
        self._count = self.recent_count + len(gone) + len(set_back)
        self.total += len(gone) + len(set_back)
        self._said = time.monotonic()
        _log.error(
            "the server has lost writes that it had acknowledged: of %d runs that this daemon had in memory, %d are "
            "gone and %d were set back; those continue from what is stored, and steps whose results are gone run again",
            compared,
            len(gone),
            len(set_back),
        )
        _name("gone", gone)
        _name("set back", set_back)

    def _name_unwitnessed(self, named: int) -> int:
        """Returns how many runs may have been set back besides those that are `named`: one for each shard of which more
        isn't known, if none are."""
        found, self._unwitnessed = self._unwitnessed, {}
        forgotten, self._forgotten = self._forgotten, set()
        if forgotten:
            _log.error(
                "the server has lost more of shards %s than this daemon had kept to commit it again: runs that were in "
                "memory are named here, if they are gone or were set back; others may be, too",
                ", ".join(map(str, sorted(forgotten))),
            )
        if not found:
            return 0 if named else len(forgotten)
        runs = [run_id for _, run_ids in found.values() for run_id in run_ids]
        _log.error(
            "the servers of %d shards may lack newest writes, and the daemons that had decided these have died (%s): "
            "what was acknowledged of them last may be gone; %d runs were under way in shards %s, and continue from "
            "what is stored",
            len(found),
            ", ".join(sorted({owner for owner, _ in found.values()})),
            len(runs),
            ", ".join(map(str, sorted(found))),
        )
        _name("perhaps set back", runs)
        return len(runs) + (0 if named else len(forgotten))

    def _prune(self) -> None:
        while self._dropped and time.monotonic() - self._dropped[0][0] > KEEP:
            self._dropped.popleft()

    def _all_known(self) -> list[tuple[int, str, bytes]]:
        """Shard, run id and the newest header that was known."""
        known: dict[tuple[int, str], bytes] = {}
        newest = self._recent[-1][0] if self._recent else 0.0
        for at, number, run_id, header in self._recent:
            if newest - at < RECENT_SECONDS:
                known[number, run_id] = header
        for _, number, runs in self._dropped:
            known.update({(number, run_id): header for run_id, header in runs.items()})
        return [(number, run_id, header) for (number, run_id), header in known.items()]


def _compare(run_id: str, header: bytes, stored: bytes | None, gone: list[str], set_back: list[str]) -> None:
    if stored == header:
        return
    try:
        before = decode_header(header)
        now = decode_header(stored) if stored is not None else None
    except (ValueError, TypeError):  # written by somebody else
        return
    if before.version == 0 and before.parent:
        return  # the start of a child, which its parent's shard delivers again
    if now is None or now.created != before.created:
        if now is None or not _has_replaced(now, before):
            gone.append(run_id)
    elif now.version < before.version or (now.version == before.version and now.commit != before.commit):
        set_back.append(f"{run_id} (from transition {before.version} to {now.version})")


def _has_replaced(now: Header, before: Header) -> bool:
    """Whether a start has wanted to be in the place of a run that had ended."""
    return not before.is_open and now.created > before.created and bool(start_word(now.start).identity)


def _name(what: str, runs: list[str]) -> None:
    for first in range(0, min(len(runs), NAMED), IDS):
        _log.error("runs that are %s: %s", what, ", ".join(runs[first : min(first + IDS, NAMED)]))
    if len(runs) > NAMED:
        _log.error("and %d more runs that are %s", len(runs) - NAMED, what)
