"""Filling a new version of a view with what the logs don't have any more: from the runs' records and the archive.

Owns: which runs are counted so, each once, and how far this has come. Must not: run the view's code (the folder does),
hold up the log, or any other view. Called by: the daemon starts a loop for each view of its app.

A part that begins behind a trimmed log has a `cut` (ms): what was committed before it is counted here, everything else
from the log, and nothing twice, since a transition has the same time in both. Two phases for each shard:

    server     all runs that the server has, by one look at all listings; the digests of those that were counted are
               stored with the cells
    archive    all folders of runs, in the order of their names; the one up to which is counted is stored with the
               cells. What was counted on the server is left out.

A run that is archived meanwhile is met in the second phase, if not in the first; a run that is restored keeps its
folder. What is committed later is behind the cut, wherever the run is by then.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from streamflow.archive import layout
from streamflow.archive.archive import Archive
from streamflow.archive.format import ArchivedRun
from streamflow.daemon.archiving import Archiving
from streamflow.daemon.context import Context
from streamflow.daemon.owner import Owner
from streamflow.daemon.shard import OwnedShard
from streamflow.daemon.view_folder import CodeFailed, ViewFolder
from streamflow.daemon.view_parts import ARCHIVE, DONE, SERVER, EarlierRun, Part, folded_field
from streamflow.daemon.view_thread import CodeHangs
from streamflow.daemon.whole_records import whole_records
from streamflow.errors import ArchiveError, StoreError
from streamflow.events import Transition, decode_transition
from streamflow.loops import retry_forever
from streamflow.model.codec import DECODE_ERRORS
from streamflow.model.logged import without_large
from streamflow.model.record import LISTED, decode_header
from streamflow.store.connection import Call
from streamflow.workflow.view import View

_log = logging.getLogger("streamflow.views")

SETTLE_MS = 5000
"""Behind the cut, until records are read: no transition from before it is still under way then, at any daemon."""
TURN_SECONDS = 10.0
PORTION = 1024 * 1024
"""Bytes of records that are read at once."""
RUNS = 64
"""Runs that are read at once, and counted together..."""
FOLDERS_AT_ONCE = 16
"""Of archived runs: as many as are read at the same time."""
TRANSITIONS = 300
"""...or fewer, if they have so many transitions."""
FOLDERS = [f"{number:02x}" for number in range(256)]
DIGEST = 8
NOT_FILLED = "is not filled with what happened before"


class Place(NamedTuple):
    """Up to which folder of a run an archive is counted: the name in its folder."""

    folder: str
    name: str


class ViewFill:
    def __init__(self, context: Context, owner: Owner, folder: ViewFolder) -> None:
        self._view: View = folder.view
        self._folder = folder
        self._owner = owner
        self._context = context
        self._store = context.store
        self._clock = context.clock
        self._troubles = context.troubles
        self._every = context.settings.rollup
        self._shard_of = context.namespace.shard_of
        self._archiving = Archiving(context)
        self._settling: dict[int, object] = {}
        """By shard, the batch that was under way when it was looked at first."""

    @property
    def subject(self) -> str:
        return f"filling of view {self._view.name}"

    async def run(self) -> None:
        await retry_forever(self.run_once, _log, f"{self.subject} waits", every=self._every)

    async def run_once(self) -> None:
        wanted = [(shard, part) for shard, part in self._folder.unfilled() if self._is_settled(shard, part)]
        if not wanted or self._troubles.waits(self._folder.subject, NOT_FILLED):
            return
        over = time.monotonic() + TURN_SECONDS
        try:
            for shard, part in wanted:
                if part.state.fill == SERVER:
                    await self._count_records(shard, part)
                if time.monotonic() > over:
                    return
            await self._count_archive([one for one in wanted if one[1].state.fill.startswith(ARCHIVE)], over)
        except (ArchiveError, CodeFailed, CodeHangs) as error:
            self._troubles.failed(self._folder.subject, NOT_FILLED, error, stops=False)
        else:
            self._troubles.works(self._folder.subject, NOT_FILLED)

    def _is_settled(self, shard: OwnedShard, part: Part) -> bool:
        """Whether all that was decided before the cut is committed."""
        if part.is_settled:
            return True
        if self._clock.now_ms() < part.state.cut + SETTLE_MS:
            self._settling.pop(shard.number, None)
            return False
        under_way = self._owner.under_way(shard.number)
        part.is_settled = under_way is None or self._settling.setdefault(shard.number, under_way) is not under_way
        if part.is_settled:
            self._settling.pop(shard.number, None)
        return part.is_settled

    # --- the server ---------------------------------------------------------------------------------------------------

    async def _count_records(self, shard: OwnedShard, part: Part) -> None:
        """Begins again after a crash: what is counted already is known by its digest."""
        await self._read_folded(shard, part)
        listings = [shard.keys.index(status, name) for name in sorted(shard.workflows) for status in LISTED]
        found: list[bytes] = []
        if listings:  # one look: a run that goes from one listing to another is in it
            found = await self._store.one(Call.plain("ZUNION", len(listings), *listings, near=listings[0]))
        ids = sorted(one.decode(errors="replace") for one in found)
        for first in range(0, len(ids), RUNS):
            runs = await self._records(shard, part, ids[first : first + RUNS])
            for some in portions(runs):
                folded = joined(part.folded, [digest_of(run.run_id, run.created) for run in some])
                if not await self._folder.fill(shard, part, some, SERVER, folded):
                    return
        await self._folder.fill(shard, part, [], ARCHIVE, None)

    async def _read_folded(self, shard: OwnedShard, part: Part) -> None:
        key = shard.keys.app_view(self._view.name)
        stored: bytes | None = await self._store.one(Call.plain("HGET", key, folded_field(part.version)))
        part.folded = stored or b""

    async def _records(self, shard: OwnedShard, part: Part, ids: Sequence[str]) -> list[EarlierRun]:
        """What of these runs is to be counted. One that is gone is in the archive, or forgotten."""
        found: list[EarlierRun] = []
        async for some in whole_records(self._context, shard.number, ids, PORTION):
            for run_id, record in some:
                if isinstance(record, StoreError):
                    _log.error("view %s is filled without run %s: %s", self._view.name, run_id, record)
                elif len(record) >= 2 and (run := self._earlier(run_id, record, part)) is not None:
                    found.append(run)
        return found

    def _earlier(self, run_id: str, record: Sequence[bytes], part: Part) -> EarlierRun | None:
        """What a run has done before the cut; None if there is nothing, if it is counted already, or unreadable."""
        try:
            header = decode_header(record[0])
            if header.created >= part.state.cut or has(part.folded, digest_of(run_id, header.created)):
                return None
            transitions: list[Transition] = []
            for data in record[2:]:
                transition = decode_transition(data)
                if transition.at < part.state.cut and any(map(self._view.takes, transition.events)):
                    transitions.append(without_large(transition))
        except (*DECODE_ERRORS, ValueError) as error:
            _log.error("view %s is filled without run %s, which can't be read: %s", self._view.name, run_id, error)
            return None
        if not transitions:
            return None
        return EarlierRun(run_id, header.created, (header.workflow, header.tenant), transitions)

    # --- the archive --------------------------------------------------------------------------------------------------

    async def _count_archive(self, wanted: list[tuple[OwnedShard, Part]], over: float) -> None:
        if not wanted:
            return
        archive = await self._archiving.current()
        if archive is None:
            for shard, part in wanted:
                await self._folder.fill(shard, part, [], DONE, None)
            return
        for shard, part in wanted:
            if part.folded is None:  # another daemon has counted the server's
                await self._read_folded(shard, part)
        begin = min(_place(part).folder for _, part in wanted)
        for folder in FOLDERS[FOLDERS.index(begin) :]:
            names = sorted(await archive.run_folders(folder))
            after = read_upto(folder, [_place(part) for _, part in wanted])
            names = [name for name in names if name > after]
            for first in range(0, len(names), FOLDERS_AT_ONCE):
                if time.monotonic() > over:
                    return
                some = names[first : first + FOLDERS_AT_ONCE]
                await self._count_folders(archive, folder, some, wanted)
                for _, part in wanted:  # of most shards nothing is there
                    part.state.fill = max(part.state.fill, _at(folder, some[-1]))
        for shard, part in wanted:
            await self._folder.fill(shard, part, [], DONE, None)

    async def _count_folders(
        self, archive: Archive, folder: str, names: Sequence[str], wanted: list[tuple[OwnedShard, Part]]
    ) -> None:
        shards = {shard.number: (shard, part) for shard, part in wanted}
        read = [name for name in names if self._may_be_of(name, shards)]
        runs: dict[int, list[tuple[str, EarlierRun]]] = {}
        for name, some in zip(read, await archive.read_folders(folder, read), strict=True):
            for one in some:
                number = self._shard_of(one.run_id)
                if number not in shards or _place(shards[number][1]) >= Place(folder, name):
                    continue
                if (run := self._archived(one, shards[number][1])) is not None:
                    runs.setdefault(number, []).append((name, run))
        for number, found in runs.items():
            shard, part = shards[number]
            for some in portions([run for _, run in found], whole=[name for name, _ in found]):
                last = next(name for name, run in reversed(found) if run is some[-1])
                await self._folder.fill(shard, part, some, _at(folder, last), None)

    def _may_be_of(self, name: str, shards: dict[int, Any]) -> bool:
        run_id = layout.run_of_folder(name)
        return not run_id or self._shard_of(run_id) in shards

    def _archived(self, run: ArchivedRun, part: Part) -> EarlierRun | None:
        return self._earlier(run.run_id, run.record, part)


def _at(folder: str, name: str) -> str:
    """As `PartState.fill` has it: places compare as these texts do."""
    return f"{ARCHIVE}{folder}/{name}"


def _place(part: Part) -> Place:
    folder, _, name = part.state.fill.removeprefix(ARCHIVE).partition("/")
    return Place(folder or FOLDERS[0], name)


def read_upto(folder: str, places: Sequence[Place]) -> str:
    """The name in a folder up to which all of these have come; empty if one of them has all of it before it."""
    if any(place.folder < folder for place in places):
        return ""
    return min((place.name for place in places if place.folder == folder), default="")


def portions(runs: Sequence[EarlierRun], whole: Sequence[str] = ()) -> list[list[EarlierRun]]:
    """In order. `whole`: of each run a name; runs of one name are not divided."""
    found: list[list[EarlierRun]] = []
    count = TRANSITIONS
    for number, run in enumerate(runs):
        is_bound = bool(whole) and number > 0 and whole[number] == whole[number - 1]
        if count >= TRANSITIONS and not is_bound:
            found.append([])
            count = 0
        found[-1].append(run)
        count += len(run.transitions)
    return found


def digest_of(run_id: str, created: int) -> bytes:
    return blake2b(f"{run_id}@{created}".encode(), digest_size=DIGEST).digest()


def joined(folded: bytes | None, more: Sequence[bytes]) -> bytes:
    known = folded or b""
    return b"".join(sorted({*(known[at : at + DIGEST] for at in range(0, len(known), DIGEST)), *more}))


def has(folded: bytes | None, digest: bytes) -> bool:
    """Whether a digest is among sorted ones."""
    known = folded or b""
    low, high = 0, len(known) // DIGEST
    while low < high:
        middle = (low + high) // 2
        one = known[middle * DIGEST : (middle + 1) * DIGEST]
        if one == digest:
            return True
        low, high = (middle + 1, high) if one < digest else (low, middle)
    return False
