"""Acquires shards and reads what the last owner left: the only place where a shard's whole state is read.

Owns: acquiring shards, and the reads that recover them. Must not: decide which shards to acquire (membership does).
Called by: membership.

First, what this daemon had committed to a shard, and a server has lost, is committed again (`recent_commits.py`).
What is recovered: runs whose steps were in flight (`Owner._restart_running_steps` decides about those steps when it
loads the run), runs that are stuck (the code may be fixed), the next due time, messages that were not delivered from
the outbox, and the log entries that the views don't count yet. Messages in the inbox need no recovery: a new owner
reads them from the first one.

When the last owner ended without a release, `OwnedShard.careful` gets the runs that it had in hand, and what its note
says about the reason (`steps/suspects.py`).
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import msgspec

from streamflow.daemon.context import Context
from streamflow.daemon.recent_commits import RecentCommits
from streamflow.daemon.relay import Relay, read_entry
from streamflow.daemon.shard import (
    CODE,
    IN_LOG,
    UNKNOWN_ATTEMPT,
    OwnedShard,
    StepRecord,
    decode_step_record,
    is_parked_by,
    run_and_number,
)
from streamflow.daemon.stuck_runs import stuck_page
from streamflow.daemon.troubles import shard_name
from streamflow.errors import StoreError
from streamflow.events import decode_transition
from streamflow.machine.open_work import MAX_WORKER_LOSSES
from streamflow.machine.transition import Due
from streamflow.model.codec import DECODE_ERRORS
from streamflow.model.record import Status
from streamflow.model.reports import decode_details
from streamflow.steps.suspects import Note, Suspect, Suspects, read_notes
from streamflow.store.connection import Call
from streamflow.store.kernel import FIRST_FIELD, Acquired, Reply, StreamEntry
from streamflow.views.shard_views import ShardViews
from streamflow.wire import stream_order

Page = TypeVar("Page")

_log = logging.getLogger("streamflow.takeover")

CHUNK = 64
"""Shards that are recovered in one pipeline."""
BYTES = 4 * 1024 * 1024
"""Of logs, outboxes or hashes in one pipeline, about, and one entry or field of each..."""
LEAST = 64 * 1024
"""...but at least so many of each."""

LISTINGS = 256
"""Listings of runs in one pipeline..."""
ID_BYTES = 300
"""...of which each takes so many bytes at most..."""
FEWEST_IDS = 32
"""...but at least so many of each listing are read..."""
STUCK_IDS = 32
"""...and of those of stuck runs about so many."""
NOT_ACQUIRED = "could not be acquired"
"""What may be wrong with a single shard (`Troubles`)."""
DUE = Due()

CREATED = 48
"""Bytes of the details of a step in which stands of which run they are (`decode_details`)."""
NEVER = 1e15
"""Ms: no due time is as late as this, 30,000 years."""
MAX_DIGITS = 5
"""Of the number of a shard."""


class Takeover:
    def __init__(self, context: Context, relay: Relay, suspects: Suspects, commits: RecentCommits) -> None:
        self._app = context.app
        self._store = context.store
        self._kernel = context.kernel
        self._clock = context.clock
        self._member = context.member
        self._troubles = context.troubles
        self._relay = relay
        self._suspects = suspects
        self._commits = commits
        self.code = ""
        """What identifies this daemon's code. The daemon sets it."""
        self.paused_workflows: Callable[[], Collection[str]] = tuple
        """Those that are paused now. The daemon connects it."""

    async def acquire(self, wanted: dict[int, tuple[str, str]]) -> list[OwnedShard]:
        """Acquire shards whose tokens are still the ones in `wanted` (token, holder), and recover them.

        Those that another daemon acquired first, or that can't be read completely, are left out: no daemon works for
        them until they are acquired again. Stuck runs of workflows that this app registers are tried again.
        """
        names = list(self._app.workflows)
        numbers = list(wanted)
        known: list[list[bytes] | StoreError] = await self._store.send(
            [Call.plain("HKEYS", self._kernel.keys.workflows)]
        )
        all_names = set(names)
        if isinstance(known[0], StoreError):
            _log.error("the names of other apps' workflows can't be read, so their runs aren't swept: %s", known[0])
        else:
            all_names.update(name.decode(errors="replace") for name in known[0])
        notes = await read_notes(
            self._store, self._kernel, (holder for _, holder in wanted.values() if holder != self._member)
        )
        owned: list[OwnedShard] = []
        for first in range(0, len(numbers), CHUNK):
            chunk = numbers[first : first + CHUNK]
            now = self._clock.now_ms()
            calls: list[Call[Acquired]] = []
            for number in chunk:
                nonce, seen = secrets.token_hex(16), wanted[number][0]
                self._commits.acquiring(number, seen, nonce)
                calls.append(self._kernel.acquire_shard(number, seen, nonce, self._member, now))
            # Also of what the last owner had decided: steps may start without another decision.
            answers: list[Acquired | StoreError] = await self._store.send(calls, confirmed=True)
            acquired: list[tuple[OwnedShard, str, str]] = []
            for number, answer in zip(chunk, answers, strict=True):
                if isinstance(answer, StoreError):
                    self._failed(number, answer)
                elif answer.code is Reply.OK:
                    shard = OwnedShard(number, self._kernel.keys.shard(number), answer.token)
                    shard.workflows.update(all_names)
                    shard.acquired, shard.code, shard.asleep = now, self.code, answer.asleep
                    expected, holder = wanted[number]
                    released = expected.endswith(":")
                    try:
                        if holder in notes or (released and answer.delivered):
                            shard.has_suspects = True
                            shard.delivered = stream_order(answer.delivered) if answer.delivered else None
                        if holder in notes:
                            shard.lost_with = holder
                            self._blame(shard, notes[holder], answer.final)
                    except Exception as error:
                        self._failed(number, error)
                    else:
                        acquired.append((shard, wanted[number][0], answer.final))
            owned += await self._recover(await self._commits.mend(acquired, self._failed), names)
        if self._troubles:
            for shard in owned:
                self._troubles.works(shard_name(shard.number), NOT_ACQUIRED)
        return owned

    def _failed(self, number: int, error: Exception) -> None:
        """This shard can't be acquired now. Whatever it is, the others are not affected: what somebody else has written
        may raise anything."""
        self._troubles.failed(shard_name(number), NOT_ACQUIRED, error, stops=True)

    async def _recover(self, shards: list[OwnedShard], workflows: list[str]) -> list[OwnedShard]:
        """Read what the last owner left. Returns the shards of which everything could be read."""
        per_shard = 2
        calls: list[Call[object]] = []
        for shard in shards:
            keys = shard.keys
            calls += (
                Call.plain("ZRANGEBYSCORE", keys.agenda, 0, "+inf", "WITHSCORES", "LIMIT", 0, 1),
                Call.plain("HMGET", keys.views, "offset", "partial", "base_offset", "base"),
            )
        answers = await self._store.send(calls) if calls else []
        readable: list[OwnedShard] = []
        for position, shard in enumerate(shards):
            state = answers[position * per_shard : (position + 1) * per_shard]
            error = next((answer for answer in state if isinstance(answer, StoreError)), None)
            if error is not None:
                self._failed(shard.number, error)
                continue
            upcoming, views = state
            try:
                if upcoming:
                    _, due = upcoming
                    shard.next_due = int(float(due)) if float(due) < NEVER else None  # not written by streamflow
                if shard.has_suspects:
                    shard.was_due = shard.next_due is not None and shard.next_due <= shard.acquired
                self._restore_views(shard, *views)
            except Exception as error:
                self._failed(shard.number, error)
            else:
                readable.append(shard)
        readable = await self._read_listings(readable, workflows)
        readable = await self._read_hashes(readable, lambda shard: shard.keys.steps, self._restore_steps)
        readable = await self._read_hashes(readable, lambda shard: shard.keys.details, self._restore_details, CREATED)
        for shard in readable:
            self._look_at_strays(shard)
        readable = await self._fold_logs(readable)
        return await self._relay_outboxes(readable)

    async def _read_listings(self, shards: list[OwnedShard], workflows: list[str]) -> list[OwnedShard]:
        """Let the runs decide whose steps were in flight, and those that are stuck or paused. Returns the shards of
        which all could be read.

        The agenda is read by positions: nobody changes it before its new owner begins to work. Of the stuck runs only
        the first ones are read here, the others when these are through (`stuck_runs.py`); of a workflow that is paused
        when it goes on.
        """
        readable = {shard.number: shard for shard in shards}
        paused = self.paused_workflows()
        names = [name for name in workflows if name not in paused]
        listings = [None, *((status, name) for name in names for status in (Status.STUCK, Status.PAUSED))]
        left = [(shard, listing, 0) for shard in shards for listing in listings]
        """Shard, status and workflow (None: the agenda), and where to read on."""
        for shard in shards:
            shard.unread_while_paused = set(workflows) - set(names)
        while left:
            some = left[:LISTINGS]
            del left[:LISTINGS]
            count = max(FEWEST_IDS, BYTES // (ID_BYTES * len(some)))
            calls: list[Call[Any]] = [
                stuck_page(shard, *listing, 0, STUCK_IDS)
                if listing is not None
                else Call.plain("ZRANGEBYSCORE", shard.keys.agenda, "-inf", "(0", "LIMIT", first, count)
                for shard, listing, first in some
            ]
            answers: list[Any] = await self._store.send(calls)
            for (shard, listing, first), page in zip(some, answers, strict=True):
                if isinstance(page, StoreError):
                    if readable.pop(shard.number, None) is not None:
                        self._failed(shard.number, page)
                    continue
                ids: list[bytes] = page
                if listing is not None:
                    cursor, entries = page
                    ids = [run_id for run_id, _ in entries]
                    if int(cursor):
                        shard.stuck[listing] = int(cursor)
                elif len(ids) == count:
                    left.append((shard, listing, first + count))
                for run_id in ids:
                    text = run_id.decode(errors="replace")
                    shard.inputs[text] = [DUE]
                    if shard.lost_with and listing is None:
                        shard.orphans.add(text)
                        shard.careful[text] = set()
        return list(readable.values())

    def _blame(self, shard: OwnedShard, note: Note, final: str) -> None:
        """What the note of the last owner says about runs of this shard. `final`: the id of its last commit."""
        shard.note = note
        suspects = [suspect for suspect in note.waiting if not suspect.seq]
        code = note.code
        if code is not None and not _got_through(code.commit, final):
            suspects.append(msgspec.structs.replace(code, deaths=code.deaths + 1))
        for suspect in suspects:
            if suspect.shard != shard.number:
                continue
            shard.careful[suspect.run_id] = set()
            self._suspects.learn(suspect)
            if suspect.deaths >= MAX_WORKER_LOSSES:
                reason = suspect.reason or (
                    f"its code has ended the process of its daemon {suspect.deaths} times (killed, out of memory, or "
                    "by itself): move what may do that into a step with process=True"
                )
                shard.parked[suspect.run_id] = reason
                shard.killers.add(suspect.run_id)

    def _restore_steps(self, shard: OwnedShard, steps: list[tuple[bytes, bytes]]) -> None:
        """Which steps a former owner still runs, and which code may end its process. A field may come twice."""
        for field, value in steps:
            try:
                run_id, seq = run_and_number(field)
                shard.records.setdefault(run_id, {})[seq] = decode_step_record(value)
            except ValueError as error:
                _log.error("a step record of shard %d can't be read: %r, %s", shard.number, field[:100], error)
                continue
            if seq == CODE and run_id not in shard.parked:
                record = shard.records[run_id][seq]
                if is_parked_by(record.host, shard.code, shard.acquired):
                    shard.parked[run_id] = (
                        "its code has ended the processes of daemons, and is tried again when other code is deployed, "
                        "or after an hour"
                    )
                    continue
                shard.careful.setdefault(run_id, set())
                deaths = record.attempt
                if self._suspects.deaths(shard.number, run_id) < deaths:
                    self._suspects.learn(Suspect(shard.number, run_id, 0, deaths, created=record.created))

    def _restore_details(self, shard: OwnedShard, details: list[tuple[bytes, bytes]]) -> None:
        """Which running steps have reported something, of shards whose steps are restored. A field may come twice. What
        they reported is not kept: `Owner._load` reads it again, with their runs."""
        for field, value in details:
            try:
                run_id, seq = run_and_number(field)
            except ValueError as error:
                _log.error("details of a step of shard %d can't be read: %r, %s", shard.number, field[:100], error)
                continue
            created, _ = decode_details(value)
            record = shard.records.setdefault(run_id, {}).setdefault(seq, StepRecord(UNKNOWN_ATTEMPT, created))
            if created in (0, record.created) and not record.lent:  # its host's last ones are read if it dies
                record.unread = True

    def _look_at_strays(self, shard: OwnedShard) -> None:
        """Load also the runs that have records of steps although none is in flight: a call of the last owner has
        arrived behind its commits, and nothing else would ever delete these."""
        for run_id, records in shard.records.items():
            if run_id not in shard.inputs and records.keys() - {CODE}:
                shard.inputs[run_id] = [DUE]

    def _restore_views(
        self,
        shard: OwnedShard,
        offset: bytes | None,
        partial: bytes | None,
        base_offset: bytes | None,
        base: bytes | None,
    ) -> None:
        """Start from the stored part, or else from the part at which the trimmed log begins, or else from zero."""
        for at, data in ((offset, partial), (base_offset, base)):
            if at is None or data is None:
                continue
            try:
                stream_order(at.decode())
                shard.views = ShardViews.decode(data)
            except DECODE_ERRORS as error:
                _log.error(
                    "the views of shard %d that were stored at log entry %s can't be decoded; its log is counted from "
                    "an older part, or from its beginning: %s",
                    shard.number,
                    at.decode(errors="replace"),
                    error,
                )
            else:
                shard.offset = shard.folded = at.decode()
                shard.trim_again = 0  # the first checkpoint tells when
                return

    async def _fold_logs(self, shards: list[OwnedShard]) -> list[OwnedShard]:
        """Fold the log entries that were committed after the last stored checkpoint."""

        def fold(shard: OwnedShard, entries: list[StreamEntry]) -> None:
            for entry_id, fields in entries:
                fold_entry(shard.views, fields)
                shard.offset = entry_id.decode()
                shard.unfolded += 1
                shard.logged += sum(map(len, fields.values())) + IN_LOG * len(fields)

        return await self._read_streams(shards, lambda shard: shard.keys.log, lambda shard: shard.offset, fold)

    async def _relay_outboxes(self, shards: list[OwnedShard]) -> list[OwnedShard]:
        """Pass the first undelivered messages to the relay, oldest first: targets drop those that arrive after a later
        one. It reads those behind them when it has room for them."""

        def call(shard: OwnedShard, limit: int) -> Call[tuple[bool, list[StreamEntry]]]:
            return self._kernel.read_stream(shard.keys.outbox, "0-0", limit)

        def take(shard: OwnedShard, page: tuple[bool, list[StreamEntry]]) -> bool:
            more, entries = page
            if entries and self._relay.is_full:
                entries, more = [], True
            self._relay.hand_over(shard, [read_entry(shard, entry_id, fields) for entry_id, fields in entries])
            if more:
                self._relay.read_on(shard, entries[-1][0].decode() if entries else "0-0")
            return False

        return await self._read_pages(shards, call, take)

    async def _read_streams(
        self,
        shards: list[OwnedShard],
        stream: Callable[[OwnedShard], str],
        position: Callable[[OwnedShard], str],
        on_page: Callable[[OwnedShard, list[StreamEntry]], None],
    ) -> list[OwnedShard]:
        """Read each shard's stream from its position to the end. Returns the shards that could be read."""

        def call(shard: OwnedShard, limit: int) -> Call[tuple[bool, list[StreamEntry]]]:
            return self._kernel.read_stream(stream(shard), position(shard), limit)

        def take(shard: OwnedShard, page: tuple[bool, list[StreamEntry]]) -> bool:
            more, entries = page
            on_page(shard, entries)
            return more

        return await self._read_pages(shards, call, take)

    async def _read_hashes(
        self,
        shards: list[OwnedShard],
        key: Callable[[OwnedShard], str],
        on_page: Callable[[OwnedShard, list[tuple[bytes, bytes]]], None],
        length: int = 0,
    ) -> list[OwnedShard]:
        """Read a hash of each shard, so many bytes of each value (0: all). Returns the shards that could be read."""
        positions: dict[int, list[bytes]] = {}

        def call(shard: OwnedShard, limit: int) -> Call[tuple[list[bytes], list[tuple[bytes, bytes]]]]:
            return self._kernel.read_hash(key(shard), positions.get(shard.number, FIRST_FIELD), limit, length)

        def take(shard: OwnedShard, page: tuple[list[bytes], list[tuple[bytes, bytes]]]) -> bool:
            positions[shard.number], fields = page
            on_page(shard, fields)
            return bool(positions[shard.number])

        return await self._read_pages(shards, call, take)

    async def _read_pages(
        self,
        shards: list[OwnedShard],
        call: Callable[[OwnedShard, int], Call[Page]],
        take: Callable[[OwnedShard, Page], bool],
    ) -> list[OwnedShard]:
        """Read something of each shard by pages. Returns the shards of which all could be read.

        `call(shard, bytes)` reads the next page, `take(shard, page)` returns whether there may be more.
        """
        readable = {shard.number: shard for shard in shards}
        unfinished = shards
        while unfinished:
            limit = max(LEAST, BYTES // len(unfinished))
            pages: list[Page | StoreError] = await self._store.send([call(shard, limit) for shard in unfinished])
            rest: list[OwnedShard] = []
            for shard, page in zip(unfinished, pages, strict=True):
                try:
                    if isinstance(page, StoreError):
                        raise page
                    if take(shard, page):
                        rest.append(shard)
                except Exception as error:
                    self._failed(shard.number, error)
                    del readable[shard.number]
            unfinished = rest
        return list(readable.values())


def _got_through(commit: str, final: str) -> bool:
    """Whether the process survived the code whose commit was to be `commit`: the shard's last one is that or a later
    one of the same session."""
    session, number, *_ = [*commit.split("."), ""]
    last_session, last, *_ = [*final.split("."), ""]
    return (
        bool(session) and session == last_session and number.isdigit() and last.isdigit() and int(last) >= int(number)
    )


def fold_entry(views: ShardViews, fields: dict[bytes, bytes]) -> None:
    """Fold one log entry: its fields are run ids, its values transitions. Those that can't be decoded are logged and
    not counted."""
    for run_id, data in fields.items():
        try:
            views.fold(run_id.decode(), decode_transition(data))
        except Exception as error:  # what somebody else has written may be decoded, and still be invalid
            _log.error(
                "a log entry of run %s can't be decoded and is not counted in the views: %s",
                run_id[:64].decode(errors="replace"),
                error,
            )
