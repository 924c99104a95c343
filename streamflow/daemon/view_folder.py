"""The loop of one view of the app: folds what the shards of this daemon have committed, and stores it.

Owns: what is read of the logs, when, and what becomes of code of the view that raises or hangs.
Must not: run code of users in the event loop, hold up a commit, a takeover or another view.
Called by: the daemon starts a loop for each view of its app; none, if there are none.

It reads the log behind the owner, as a subscriber does, and stores position and cells together (`lua/store_view`) with
the owner's token: whatever crashes in between, each entry counts once, and a former owner stores nothing. Who owns a
shard folds it, so there is nothing to divide among daemons.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import anyio

from streamflow.daemon.code_fingerprint import view_version
from streamflow.daemon.context import Context
from streamflow.daemon.owner import Owner
from streamflow.daemon.rollup import Rollup
from streamflow.daemon.shard import OwnedShard
from streamflow.daemon.view_merge import ViewMerge
from streamflow.daemon.view_parts import (
    DONE,
    SERVER,
    EarlierRun,
    Page,
    Part,
    Whose,
    decode_page,
    decode_state,
    folded_field,
    latest_in,
    state_field,
    version_of_field,
    window_field,
)
from streamflow.daemon.view_thread import CodeHangs, ViewThread
from streamflow.errors import StoreError
from streamflow.loops import TURN, retry_forever
from streamflow.model.codec import DECODE_ERRORS
from streamflow.model.record import decode_header
from streamflow.store.connection import Call, OtherHistory
from streamflow.store.kernel import Reply, view_position
from streamflow.views import cells
from streamflow.views.reading import rebuild_field
from streamflow.workflow.view import View

_log = logging.getLogger("streamflow.views")

T = TypeVar("T")

CODE_SECONDS = 5.0
"""For which code of a view may run in one go: it gets some hundred events."""
MOST_HANGS = 3
"""So often in a row it may take longer; then the view is off in this process."""
SHARDS_AT_ONCE = 16
PAGE_BYTES = 64 * 1024
"""Of a log in one answer."""
TURN_SECONDS = 20.0
"""For which one turn goes on reading, if much is behind."""
CUT_MS = 1 + 5000
"""Behind the first log entry, where what is counted from the log begins if something was trimmed: more than the clocks
of daemons may differ, so nothing that was trimmed is from later."""
AT_ONCE = 300
"""Transitions of a run that are folded in one go."""
LOOK_EVERY = 5
"""Turns between two looks whether somebody wants it to be counted again."""
MOST_KNOWN = 50_000
"""Runs of which it is kept whose they are."""
OLD_VERSION_MS = 86_400_000
"""For so long nothing was stored of another version that is deleted here."""


class CodeFailed(Exception):
    """The text is for people: what was raised, and where."""


class ViewFolder:
    def __init__(self, context: Context, owner: Owner, rollup: Rollup, view: View) -> None:
        self.view = view
        self.version = view.version or view_version(view)
        self._store = context.store
        self._kernel = context.kernel
        self._clock = context.clock
        self._troubles = context.troubles
        self._every = context.settings.rollup
        self._owner = owner
        self._thread = ViewThread(f"view {view.name}")
        self._parts: dict[int, tuple[str, Part]] = {}
        """By shard, with the token under which it was read."""
        self._known: dict[str, Whose] = {}
        self._storing = anyio.Lock()
        """Held while something is counted and stored: the log, or what was before it."""
        self._hangs = 0
        self._off: CodeHangs | None = None
        self._turns = 0
        self._rebuild: bytes | None = None
        """When somebody has wanted it to be counted again, as it was read last."""
        self._merge = ViewMerge(context, rollup, view, self.version, self._in_thread)

    @property
    def subject(self) -> str:
        return f"view {self.view.name}"

    async def run(self) -> None:
        try:
            await retry_forever(self.run_once, _log, f"{self.subject} not counted", every=self._every, within=TURN)
        finally:
            self._thread.close()

    async def run_once(self) -> None:
        if self._off is not None:
            self._troubles.failed(self.subject, "is off until this process is started again", self._off, stops=False)
            return
        if len(self._known) > MOST_KNOWN:
            self._known.clear()
        if self._turns % LOOK_EVERY == 0:
            await self._look_for_rebuild()
        self._turns += 1
        over, merged = time.monotonic() + TURN_SECONDS, time.monotonic()
        refused: StoreError | None = None
        while wanted := self._wanted():
            for first in range(0, len(wanted), SHARDS_AT_ONCE):
                async with self._storing:
                    refused = await self._fold(wanted[first : first + SHARDS_AT_ONCE]) or refused
            if refused is not None or time.monotonic() > over or self._off is not None:
                break
            if time.monotonic() - merged > self._every:  # under load there is always something to read
                await self._merge_parts()
                merged = time.monotonic()
        await self._merge_parts()
        if refused is not None:
            raise refused

    async def _merge_parts(self) -> None:
        if self._off is None:
            try:
                await self._merge.run_once({n: part for n, (_, part) in self._parts.items()})
            except (CodeFailed, CodeHangs) as error:
                self._troubles.failed(self.subject, "is not merged", error, stops=False)

    async def _look_for_rebuild(self) -> None:
        """Somebody may have deleted what was stored, so that it is counted again."""
        keys = self._kernel.keys
        asked = await self._store.one(Call.plain("HGET", keys.app_view_heads, rebuild_field(self.view.name)))
        if asked != self._rebuild:
            self._rebuild = asked
            self._parts.clear()

    def _wanted(self) -> list[OwnedShard]:
        """The shards with something to count, or whose part was not read."""
        shards = {n: shard for n, shard in self._owner.shards.items() if not shard.dropped}
        for number, (token, _) in list(self._parts.items()):
            if number not in shards or shards[number].token != token:
                del self._parts[number]
        return [shard for shard in shards.values() if self._is_behind(shard) and not self._waits(shard.number)]

    def _is_behind(self, shard: OwnedShard) -> bool:
        known = self._parts.get(shard.number)
        if known is None or not known[1].state.ready:
            return True
        return known[1].state.offset != shard.offset and _before(known[1].state.offset, shard.offset)

    def _waits(self, number: int) -> bool:
        return bool(self._troubles) and self._troubles.waits(self.subject, _not_counted(number))

    # --- one portion of some shards -----------------------------------------------------------------------------------

    async def _fold(self, shards: list[OwnedShard]) -> StoreError | None:
        """Returns the last refusal of the server."""
        new = [shard for shard in shards if shard.number not in self._parts]
        refused = await self._load(new) if new else None
        shards = [shard for shard in shards if shard.number in self._parts]
        pages = await self._read(shards)
        calls: list[Call[Reply]] = []
        sent: list[tuple[OwnedShard, Part, bytes]] = []
        for shard, page in zip(shards, pages, strict=True):
            if isinstance(page, StoreError):
                self._forget(shard)
                refused = page
                continue
            try:
                change = await self._count(shard, *page)
            except StoreError as error:
                self._forget(shard)
                refused = error
            except (CodeFailed, CodeHangs) as error:
                self._forget(shard)
                self._troubles.failed(self.subject, _not_counted(shard.number), error, stops=False)
                if self._off is not None:
                    return refused
            else:
                if change is not None and not shard.dropped:
                    part = self._parts[shard.number][1]
                    calls.append(self._store_call(shard, part, *change))
                    sent.append((shard, part, change[0]))
        answers: list[Reply | StoreError] = await self._store.send(calls, same_history=True) if calls else []
        for (shard, part, after), answer in zip(sent, answers, strict=True):
            if answer is Reply.OK:
                part.was_stored(after)
                if self._troubles:
                    self._troubles.works(self.subject, _not_counted(shard.number))
            else:
                # Another owner, another history, somebody has it counted again, or what it has not counted is gone:
                # it is read again.
                self._forget(shard)
                if isinstance(answer, StoreError) and not isinstance(answer, OtherHistory):
                    refused = answer
        return refused

    def _store_call(
        self, shard: OwnedShard, part: Part, after: bytes, removed: list[str], written: list[tuple[str, bytes]]
    ) -> Call[Reply]:
        field, offset = state_field(self.version), part.state.offset
        return self._kernel.store_view(
            shard.number, self.view.name, shard.token, field, part.stored, after, part.held, offset, removed, written
        )

    # --- what was before the log --------------------------------------------------------------------------------------

    def unfilled(self) -> list[tuple[OwnedShard, Part]]:
        """The parts that have caught up with the log, and lack what was before it."""
        if self._off is not None:
            return []
        return [
            (shard, part)
            for number, (token, part) in self._parts.items()
            if part.state.ready and not part.state.is_filled
            if (shard := self._owner.shards.get(number)) is not None and shard.token == token and not shard.dropped
        ]

    async def fill(
        self, shard: OwnedShard, part: Part, runs: Sequence[EarlierRun], after: str, folded: bytes | None
    ) -> bool:
        """Count what these runs have done before, and store it with how far the fill is then. `folded`: the digests to
        store, None for those that are stored. False if the part is another's, or has to be read again. Raises
        `StoreError`, `CodeFailed` and `CodeHangs`."""
        async with self._storing:
            if self._parts.get(shard.number) != (shard.token, part) or shard.dropped:
                return False
            try:
                return await self._fill(shard, part, runs, after, folded)
            except BaseException:
                self._forget(shard)
                raise

    async def _fill(
        self, shard: OwnedShard, part: Part, runs: Sequence[EarlierRun], after: str, folded: bytes | None
    ) -> bool:
        state = part.state
        before = decode_state(part.stored).events if part.stored else 0
        for run in runs:
            for first in range(0, len(run.transitions), AT_ONCE):
                some = [(run.run_id, transition) for transition in run.transitions[first : first + AT_ONCE]]
                page = Page("", some)
                await self._read_windows(shard, part, page)
                known = {run.run_id: run.whose}
                await self._in_thread(lambda page=page, known=known: part.fold(self.view, [page], known))
        state.fill, state.filled = after, state.filled + len(runs)
        now = self._clock.now_ms()
        field, removed, written = await self._in_thread(lambda: part.changes(self.view, now, before))
        if after == DONE:
            removed = [*removed, folded_field(self.version)]
        elif folded is not None:
            written = [*written, (folded_field(self.version), folded)]
        [answer] = await self._store.send([self._store_call(shard, part, field, removed, written)], same_history=True)
        if answer is not Reply.OK:
            self._forget(shard)
            if isinstance(answer, StoreError) and not isinstance(answer, OtherHistory):
                raise answer
            return False
        part.was_stored(field)
        part.folded = None if after == DONE else part.folded if folded is None else folded
        return True

    def _forget(self, shard: OwnedShard) -> None:
        self._parts.pop(shard.number, None)

    async def _load(self, shards: list[OwnedShard]) -> StoreError | None:
        """Read where the parts of these shards are, and whether something is gone that they have not counted."""
        refused: StoreError | None = None
        name, now = self.view.name, self._clock.now_ms()
        asked = [Call.plain("HKEYS", shard.keys.app_view(name)) for shard in shards]
        asked += [Call.plain("HGET", shard.keys.app_view(name), state_field(self.version)) for shard in shards]
        asked += [Call.plain("HGET", shard.keys.positions, view_position(name)) for shard in shards]
        answers = await self._store.send(asked)
        count = len(shards)
        read: list[tuple[OwnedShard, Part, Sequence[bytes], bool]] = []
        for at, shard in enumerate(shards):
            fields, stored, held = (answers[at + count * n] for n in range(3))
            if error := next((one for one in (fields, stored, held) if isinstance(one, StoreError)), None):
                refused = error
                continue
            try:
                part = Part(self.version, stored or b"")
            except DECODE_ERRORS as error:
                _log.error("what %s has stored of shard %d can't be read: counted again: %s", name, shard.number, error)
                part = Part(self.version, b"")
                part.stored = stored
            part.held = held or b""
            read.append((shard, part, fields, part.held == part.state.offset.encode()))
        calls = [
            self._kernel.store_view(
                shard.number,
                name,
                shard.token,
                state_field(self.version),
                part.stored,
                part.stored,
                part.held,
                part.state.offset,
            )
            for shard, part, *_ in read
        ]
        looks = [Call.plain("HGET", shard.keys.views, "trim") for shard, *_ in read]
        looks += [Call.plain("XRANGE", shard.keys.log, "-", "+", "COUNT", 1) for shard, *_ in read]
        # From here on the log keeps what isn't counted, so what is there now stays.
        placed: list[Reply | StoreError] = await self._store.send(calls, same_history=True) if calls else []
        found = await self._store.send(looks) if looks else []
        for at, ((shard, part, fields, was_held), answer) in enumerate(zip(read, placed, strict=True)):
            trim, first = found[at], found[at + len(read)]
            if error := next((one for one in (answer, trim, first) if isinstance(one, StoreError)), None):
                refused = refused if isinstance(error, OtherHistory) else error
                continue
            if answer is not Reply.OK:
                continue
            part.held = part.state.offset.encode()
            if not was_held:
                self._note_gap(part, (trim or b"").decode(), first[0] if first else None, now)
            part.old_fields = await self._old_fields(shard, fields, now)
            self._parts[shard.number] = shard.token, part
        return refused

    @staticmethod
    def _note_gap(part: Part, trim: str, first: tuple[bytes, Mapping[bytes, bytes]] | None, now: int) -> None:
        """`trim`: up to where the log was removed, empty for nowhere; `first`: its first entry."""
        if not trim:
            return
        state = part.state
        oldest = first[0].decode() if first else ""
        begins = _ms(oldest) if oldest else now
        if state.offset == "0-0":
            state.cut = (latest_in(first[1]) if first else 0) or begins
            state.cut += CUT_MS
            state.counts_from, state.fill = state.cut, SERVER
            state.offset = state.offset if oldest else trim
        elif _before(state.offset, trim) and (not oldest or _before(state.offset, oldest)):
            state.missed_from = state.missed_from or _ms(state.offset)
            state.missed_to, state.ready = begins, False
            state.offset = state.offset if oldest else trim

    async def _old_fields(self, shard: OwnedShard, fields: Sequence[bytes], now: int) -> list[str]:
        """Of versions that nobody counts any more, once this one is what is read."""
        if not self._merge.is_current:
            return []
        by_version: dict[str, list[str]] = {}
        for field in fields:
            name = field.decode(errors="replace")
            by_version.setdefault(version_of_field(name), []).append(name)
        by_version.pop(self.version, None)
        found: list[str] = []
        for version, names in by_version.items():
            key = shard.keys.app_view(self.view.name)
            stored = await self._store.one(Call.plain("HGET", key, state_field(version)))
            try:
                is_old = stored is None or decode_state(stored).stored_at < now - OLD_VERSION_MS
            except DECODE_ERRORS:
                is_old = True
            if is_old:
                found += names
        return found

    async def _read(
        self, shards: list[OwnedShard]
    ) -> list[tuple[bool, Sequence[tuple[bytes, dict[bytes, bytes]]]] | StoreError]:
        calls = [
            self._kernel.read_stream(shard.keys.log, self._parts[shard.number][1].state.offset, PAGE_BYTES)
            for shard in shards
        ]
        return await self._store.send(calls) if calls else []

    async def _count(
        self, shard: OwnedShard, more: bool, entries: Sequence[tuple[bytes, dict[bytes, bytes]]]
    ) -> tuple[bytes, list[str], list[tuple[str, bytes]]] | None:
        """Fold a page; what is to be stored then, None for nothing."""
        view, part, known = self.view, self._parts[shard.number][1], self._known
        state = part.state
        if not entries and state.ready and part.stored:
            if self._is_behind(shard):  # what it has not counted is gone: read what there is
                self._forget(shard)
            return None
        before = decode_state(part.stored).events if part.stored else 0
        page = await self._in_thread(lambda: decode_page(view, entries, known, state.cut))
        await self._find_out(shard, page)
        await self._read_windows(shard, part, page)
        now = self._clock.now_ms()
        if not more:
            state.ready = True

        def fold() -> tuple[bytes, list[str], list[tuple[str, bytes]]]:
            part.fold(view, [page], known)
            return part.changes(view, now, before)

        return await self._in_thread(fold)

    async def _find_out(self, shard: OwnedShard, page: Page) -> None:
        """Whose the runs are whose beginning wasn't in what was read."""
        unknown = sorted(page.unknown)
        if not unknown:
            return
        answers = await self._store.send([Call.plain("LINDEX", shard.keys.run(run_id), 0) for run_id in unknown])
        for run_id, line in zip(unknown, answers, strict=True):
            if isinstance(line, StoreError):
                raise line
            if line is not None and run_id not in self._known:
                header = decode_header(line)
                self._known[run_id] = header.workflow, header.tenant

    async def _read_windows(self, shard: OwnedShard, part: Part, page: Page) -> None:
        key = shard.keys.app_view(self.view.name)
        for start in part.lacks(self.view, [page]):
            data = await self._store.one(Call.plain("HGET", key, window_field(self.version, start)))
            if data is not None:
                part.windows[start] = await self._in_thread(lambda data=data: cells.decode(self.view, data))

    async def _in_thread(self, function: Callable[[], T]) -> T:
        """Raises `CodeFailed` and `CodeHangs`."""
        try:
            found = await self._thread.call(function, CODE_SECONDS)
        except CodeHangs as error:
            self._hangs += 1
            if error.lost or self._hangs >= MOST_HANGS:
                self._off = error
                self._troubles.failed(self.subject, "is off until this process is started again", error, stops=False)
            raise
        except Exception as error:
            self._hangs = 0
            raise CodeFailed(f"{type(error).__name__}: {error}{_line_of(error)}") from error
        self._hangs = 0
        return found


def _not_counted(number: int) -> str:
    return f"does not count the events of shard {number}"


def _line_of(error: BaseException) -> str:
    cause = error.__cause__ or error
    frames = traceback.extract_tb(cause.__traceback__)
    return f" ({frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name})" if frames else ""


def _before(one: str, other: str) -> bool:
    return _numbers(one) < _numbers(other)


def _numbers(entry: str) -> tuple[int, int]:
    """An id that somebody has damaged is before all others."""
    ms, _, number = entry.partition("-")
    return (int(ms), int(number)) if ms.isdigit() and number.isdigit() else (0, 0)


def _ms(entry: str) -> int:
    return _numbers(entry)[0]
