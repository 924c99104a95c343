"""What the server knows about steps that run at a daemon: their details, and those that outlive a hand-over.

Owns: the attempts that this daemon still runs for shards that it has handed over, their reports, and storing what steps
report with `sf.heartbeat`. Must not: decide which shards are handed over (membership does), run steps (executor), or
change runs (owner). Called by: the daemon (runs the loops, passes outcomes), membership (`lend`, `return_rest`).

An attempt that runs when its shard is handed over goes on running here: it is *lent*. The release records it with this
daemon as its host, so that the new owner doesn't start it again but waits for its outcome, which reaches it through the
inbox like that of a queued step. The new owner deletes the record when it doesn't need the attempt any more, or takes
the host for dead; the host stops the attempt within a second of that. What still runs when this daemon ends is
*returned*: the new owner starts it again under the same number.

A server that has lost its newest writes may have a record again whose attempt was reported or stopped since: nobody
would ever report it. So when its history has changed, the hosts look through all records for their own, and return what
they don't run. A change may be hidden from them: behind a proxy, or from a user who may not call INFO, only the next
commit of a shard tells of it, and that may be another daemon's. So they look again every half a minute through those of
shards to which they have lent something.

Until the server has answered to the release there is no record that could be asked about or marked: what is lent with
it is neither reported nor extended before. If the server loses the release, and this daemon acquires the shard again,
the executor goes on with the attempt when it is submitted.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import anyio
import msgspec
from msgspec import Raw

from streamflow.daemon.context import Context
from streamflow.daemon.owner import Owner
from streamflow.daemon.shard import (
    OwnedShard,
    StepRecord,
    decode_step_record,
    run_and_number,
)
from streamflow.daemon.troubles import shard_name
from streamflow.errors import StoreError
from streamflow.events import NOTHING
from streamflow.loops import TURN, retry_forever
from streamflow.machine.transition import Outcome
from streamflow.model.record import Header
from streamflow.model.reports import decode_details, stored_details
from streamflow.steps.context import Running
from streamflow.steps.executor import StepExecutor
from streamflow.steps.suspects import Note, read_notes
from streamflow.store.connection import Call
from streamflow.store.kernel import FIRST_FIELD, Holder, LentStep, Reply
from streamflow.wire import encode_outcome, encode_returned

T = TypeVar("T")
_Key = tuple[str, int, int, int]
"""Of an attempt: run, its incarnation, number and attempt."""

_log = logging.getLogger("streamflow.steps")

EVERY = 1.0
"""Seconds between two looks at what steps have reported, and whether lent ones are still needed."""
SAY_AGAIN = 10.0
"""Seconds between two calls of `sf.heartbeat` with the same details after which the later one is stored, for its time.
"""
LOOK_AGAIN = 30.0
"""Seconds between two looks of a host through the records of shards to which it has lent something: four pipelines, if
these are all 256."""
REPORTS = 200
"""Outcomes in one pipeline."""
STEPS = 500
"""Steps in one call: a millisecond of the server..."""
BYTES = 1024 * 1024
"""...and bytes of their details, about."""
PIPELINE_BYTES = 4 * 1024 * 1024
"""Details or outcomes in one pipeline, about, and one step's more."""
PIPELINE_CALLS = 32
FEWEST_READ, MOST_READ = 4, 256
"""Records of steps that are read in one pipeline: how large their details are is only known afterwards."""
UNREAD = "can't be asked which steps run here"
"""What may be wrong with a single shard (`Troubles`)."""
SHARDS_READ = 64
LEAST_READ = 64 * 1024
"""Shards whose records are read in one pipeline, and bytes of each at least."""
DETAILS = 16 * 1024
"""Bytes that are expected of the details of a step, when many are read: 64 in a pipeline."""
RELEASED_EVERY = 0.02
"""Seconds between two looks whether the server has answered to a release, for a daemon that leaves."""
RETRY_PAUSE = 1.0
"""Seconds until outcomes that a shard refused are reported again."""


class _Lent(msgspec.Struct):
    """An attempt that runs here for another daemon."""

    shard: int
    run_id: str
    created: int
    seq: int
    attempt: int
    stored: bytes = b""
    """The details that the server has."""
    report: Call[str] | None = None
    """How it ended, while that has not been reported."""
    size: int = 0
    """Bytes of the report."""

    @property
    def step(self) -> str:
        return f"{self.run_id}/{self.seq}"


class StepRecords:
    def __init__(self, context: Context, owner: Owner, executor: StepExecutor) -> None:
        self._store = context.store
        self._kernel = context.kernel
        self._shards = context.namespace.shards
        self._member = context.member
        self._owner = owner
        self._executor = executor
        self._troubles = context.troubles
        self._clock = context.clock
        self.lends: dict[tuple[str, int], _Lent] = {}
        """The attempts that run here for other daemons, and outcomes of such that have not been reported."""
        self._stored: dict[_Key, bytes] = {}
        """Details of steps of owned shards that the server has, by run, its incarnation, number and attempt."""
        self._beats: dict[_Key, float] = {}
        """When these had called `sf.heartbeat`, as the server knows it (`time.perf_counter`)."""
        self._outdated: list[tuple[OwnedShard, str]] = []
        """Steps of which the server got details behind the commit with their outcomes: to be deleted."""
        self._releasing: set[int] = set()
        """Shards whose release the server has not answered to."""
        self._doubtful: set[int] = set()
        """Shards whose records that name this daemon may be of attempts that it doesn't run."""
        self._lent_to: set[int] = set()
        """Shards that may have records that name this daemon, as long as it lives."""
        self._looked = time.monotonic()
        self._has_reports = anyio.Event()
        executor.on_replaced = self._replaced

    def holder_of(self, running: Running) -> Holder | None:
        """By what the server knows that an attempt runs here; None while it knows nothing of that."""
        job = running.job
        if not running.lent:
            owned = self._owner.shards.get(running.shard)
            if owned is None or self._executor.is_replaced(running):  # its shard came back: the token is another one
                return None
            return Holder(self._kernel.keys.shard(running.shard).owner, "token", owned.token)
        lent = self.lends.get((running.run_id, job.seq))
        if lent is None or lent.attempt != job.attempt or running.shard in self._releasing:
            return None
        value = f"{self._member} {lent.created} {lent.attempt} wanted"
        return Holder(self._kernel.keys.shard(running.shard).steps, lent.step, value)

    @property
    def running(self) -> int:
        """The attempts that run here for other daemons."""
        return sum(
            lent.report is None and self._executor.runs(lent.run_id, lent.seq, lent.attempt)
            for lent in self.lends.values()
        )

    @property
    def unreported(self) -> int:
        return sum(lent.report is not None for lent in self.lends.values())

    # --- handing over -------------------------------------------------------------------------------------------------

    def lend(
        self,
        shard: int,
        running: Iterable[Running],
        headers: Mapping[str, Header],
        ended: Mapping[str, Sequence[Outcome]],
    ) -> list[LentStep]:
        """The shard is about to be released: its attempts that run continue, with this daemon as their host. Until
        `released`, the server isn't asked about them.

        `running`: what the executor has lent of it; `headers`: of its live runs; `ended`: outcomes that no commit has
        recorded, which the new owner gets, too.
        """
        self._releasing.add(shard)
        lent: list[_Lent] = []
        for one in running:
            header, job = headers.get(one.run_id), one.job
            if header is None or job.created != header.created:  # nobody would ever ask for it
                self._executor.stop_lent(one.run_id, job.seq, job.attempt)
            else:
                lent.append(_Lent(shard, one.run_id, header.created, job.seq, job.attempt))
        for run_id, outcomes in ended.items():
            header = headers.get(run_id)
            for outcome in outcomes if header is not None else ():
                assert header is not None
                lent.append(_Lent(shard, run_id, header.created, outcome.seq, outcome.attempt))
                self._ended(lent[-1], outcome)
        if lent:
            self._lent_to.add(shard)
        for attempt in lent:
            self.lends[attempt.run_id, attempt.seq] = attempt
        return [LentStep(attempt.step, self._member, attempt.created, attempt.attempt) for attempt in lent]

    def released(self, shards: Iterable[int]) -> None:
        """The server has answered to the releases of these shards, or won't."""
        self._releasing.difference_update(shards)
        self._has_reports.set()

    def look_for_forgotten(self) -> None:
        """The server may have lost what it had acknowledged."""
        self._doubtful.update(range(self._shards))

    def outcome(self, run_id: str, outcome: Outcome) -> bool:
        """An attempt has ended. False when it isn't a lent one."""
        lent = self.lends.get((run_id, outcome.seq))
        if lent is None or lent.attempt != outcome.attempt or lent.report is not None:
            return False
        self._ended(lent, outcome)
        return True

    def _replaced(self, run_id: str, seq: int) -> None:
        """Another attempt begins here, perhaps of a later run of the id, under the same numbers, or this one is this
        daemon's again: its outcome is not that of a lent one."""
        lent = self.lends.get((run_id, seq))
        if lent is not None and lent.report is None:
            del self.lends[run_id, seq]

    def _ended(self, lent: _Lent, outcome: Outcome) -> None:
        self._report(lent, "outcome", encode_outcome(outcome))
        self._has_reports.set()

    def _report(self, lent: _Lent, kind: str, body: bytes) -> None:
        attempt = LentStep(lent.step, self._member, lent.created, lent.attempt)
        lent.report, lent.size = self._kernel.report_step(lent.shard, lent.run_id, kind, attempt, body), len(body)

    async def return_rest(self) -> None:
        """This daemon ends: stop what still runs here for others, which run it again. Raises `StoreError`."""
        for lent in self.lends.values():
            if lent.report is None:
                details = self._details_of(lent)
                self._executor.stop_lent(lent.run_id, lent.seq, lent.attempt)
                self._report(lent, "returned", encode_returned(lent.seq, lent.attempt, details))
        while self.unreported:
            if not self._next_reports():
                await anyio.sleep(RELEASED_EVERY)  # until the server has answered to the release of their shards
            elif not await self.report_once():
                break

    # --- the loops ----------------------------------------------------------------------------------------------------

    async def run_reports(self) -> None:
        self._has_reports.set()  # there may be some from before an error
        while True:
            await self._has_reports.wait()
            self._has_reports = anyio.Event()
            if not await self.report_once():
                await anyio.sleep(RETRY_PAUSE)
                self._has_reports.set()

    async def report_once(self) -> bool:
        """Report lent attempts that have ended to their runs. False when some were refused."""
        ended = self._next_reports()
        if not ended:
            return True
        answers = await self._store.send([lent.report for lent in ended if lent.report is not None], patience=math.inf)
        refused = False
        for lent, answer in zip(ended, answers, strict=True):
            if isinstance(answer, StoreError):
                self._failed(lent.shard, "takes no outcomes of steps that run here for it", answer)
                refused = True
                if self.lends.get((lent.run_id, lent.seq)) is lent:  # others go before it the next time
                    self.lends[lent.run_id, lent.seq] = self.lends.pop((lent.run_id, lent.seq))
            elif self.lends.get((lent.run_id, lent.seq)) is lent:
                del self.lends[lent.run_id, lent.seq]
        if not refused and self._next_reports():
            self._has_reports.set()
        return not refused

    def _failed(self, shard: int, what: str, error: StoreError) -> None:
        self._troubles.failed(shard_name(shard), what, error, stops=False)

    def _next_reports(self) -> list[_Lent]:
        ended, size = list[_Lent](), 0
        for lent in self.lends.values():
            if lent.report is not None and lent.shard not in self._releasing:
                ended.append(lent)
                size += lent.size
                if size >= PIPELINE_BYTES or len(ended) == REPORTS:
                    break
        return ended

    async def run(self) -> None:
        await retry_forever(self.run_once, _log, "could not store details of steps", every=EVERY, within=TURN)

    async def run_once(self) -> None:
        """Lose steps of daemons that have gone, store what steps have reported since, and stop lent attempts that
        nobody needs any more."""
        if time.monotonic() - self._looked >= LOOK_AGAIN:
            self._looked = time.monotonic()
            self._doubtful |= self._lent_to
        if self._doubtful:
            await self._return_forgotten()
        await self.lose_gone()
        if self._executor.running or self._outdated:
            await self._store_details()
        if self.lends:
            await self._extend()

    async def _store_details(self) -> None:
        new: dict[int, list[tuple[_Key | None, str, bytes]]] = {}
        for shard, step in self._outdated:  # before details of a newer attempt
            if not shard.dropped:
                new.setdefault(shard.number, []).append((None, step, b""))
        self._outdated.clear()
        stored: dict[_Key, bytes] = {}
        beats: dict[_Key, float] = {}
        now_ms, now = self._clock.now_ms(), time.perf_counter()
        for running in self._executor.reporting():
            shard = self._owner.shards.get(running.shard)
            if running.lent or shard is None:
                continue
            job = running.job
            key, details = (running.run_id, job.created, job.seq, job.attempt), bytes(running.details)
            stored[key], beats[key] = details, running.beat
            if self._stored.get(key) != details or running.beat - self._beats.get(key, 0.0) >= SAY_AGAIN:
                stored_as = stored_details(job.created, details, now_ms - round(1000 * (now - running.beat)))
                new.setdefault(shard.number, []).append((key, f"{running.run_id}/{job.seq}", stored_as))
                record = shard.record_of(running.run_id, job.created, job.seq, job.attempt)
                record.details, record.unread = details, False
        known = {key for key, details in stored.items() if self._stored.get(key) == details}
        self._stored = {key: stored[key] for key in known}
        self._beats = {key: self._beats[key] for key in known}
        portions = [
            (self._owner.shards[number], portion)
            for number, details in new.items()
            for portion in _portions(details, lambda stored: len(stored[2]))
        ]
        for pipeline in _pipelines(portions, lambda portion: sum(len(stored[2]) for stored in portion[1])):
            calls = [
                self._kernel.store_details(shard.number, shard.token, [(step, data) for _, step, data in portion])
                for shard, portion in pipeline
            ]
            for (shard, portion), answer in zip(pipeline, await self._store.send(calls), strict=True):
                if answer is Reply.FENCED:
                    self._owner.lost(shard)
                elif isinstance(answer, StoreError):
                    self._failed(shard.number, "takes no details of its steps", answer)
                else:
                    for key, step, _ in portion:
                        if key is not None:
                            self._stored[key], self._beats[key] = stored[key], beats[key]
                            if self._has_ended(shard, key):
                                self._outdated.append((shard, step))

    def _has_ended(self, shard: OwnedShard, key: _Key) -> bool:
        """Whether a commit has deleted the details of this attempt, or is about to, that was perhaps before the call
        that has stored them: they would stay forever."""
        run_id, created, seq, attempt = key
        closed = shard.has_closed(run_id, created, seq, attempt)
        return not self._executor.runs(run_id, seq, attempt) if closed is None else closed

    async def _extend(self) -> None:
        by_shard: dict[int, list[tuple[_Lent, LentStep]]] = {}
        for lent in self.lends.values():
            if lent.report is None and lent.shard not in self._releasing:
                asked = LentStep(lent.step, self._member, lent.created, lent.attempt, self._new_details(lent))
                by_shard.setdefault(lent.shard, []).append((lent, asked))
        portions = [
            portion for steps in by_shard.values() for portion in _portions(steps, lambda step: len(step[1].details))
        ]
        for pipeline in _pipelines(portions, lambda portion: sum(len(asked.details) for _, asked in portion)):
            calls = [
                self._kernel.extend_steps(portion[0][0].shard, [asked for _, asked in portion]) for portion in pipeline
            ]
            for portion, answer in zip(pipeline, await self._store.send(calls), strict=True):
                if isinstance(answer, StoreError):
                    self._failed(portion[0][0].shard, "can't be asked about steps that run here for it", answer)
                    continue
                for (lent, asked), letter in zip(portion, answer, strict=True):
                    self._extended(lent, asked, letter)

    def _extended(self, lent: _Lent, asked: LentStep, letter: str) -> None:
        if letter != "l":
            lent.stored = asked.details or lent.stored
        elif lent.report is None and self.lends.get((lent.run_id, lent.seq)) is lent:
            _log.info(
                "step %s, attempt %d, which runs here for another daemon, is no longer needed and is stopped",
                lent.step,
                lent.attempt,
            )
            self._executor.stop_lent(lent.run_id, lent.seq, lent.attempt)
            del self.lends[lent.run_id, lent.seq]

    async def lose_gone(self) -> None:
        """Steps of this daemon's runs that another one still ran when it went are lost, unless it has reported them.

        What it did last is on the server only: its message may wait in the inbox, and a step must not be lost that has
        ended.
        """
        gone = self._owner.gone_records()
        if not gone:
            return
        notes = await read_notes(self._store, self._kernel, {record.host for _, _, _, record in gone})
        first, count = 0, FEWEST_READ
        while first < len(gone):
            portion = gone[first : first + count]
            size = await self._lose_some(portion, notes)
            first += len(portion)
            count = max(FEWEST_READ, min(MOST_READ, 2 * count, count * PIPELINE_BYTES // max(1, size)))

    async def _lose_some(self, gone: list[tuple[OwnedShard, str, int, StepRecord]], notes: Mapping[str, Note]) -> int:
        """Returns how many bytes were read."""
        calls: list[Call[list[bytes | None]]] = []
        for shard, run_id, seq, _ in gone:
            field = f"{run_id}/{seq}"
            calls += (Call.plain("HMGET", key, field) for key in (shard.keys.steps, shard.keys.details))
        answers = await self._store.send(calls)
        size = 0
        for position, (shard, run_id, seq, record) in enumerate(gone):
            steps, details = answers[2 * position : 2 * position + 2]
            if isinstance(error := steps, StoreError) or isinstance(error := details, StoreError):
                self._failed(shard.number, "has step records that can't be read", error)
                continue
            [value], [reported] = steps, details
            if shard.dropped:
                continue
            if reported:
                size += len(reported)
                created, details_now = decode_details(reported)
                if created in (0, record.created):
                    record.details, record.unread = details_now, False
            if value is not None and _is_reported(value, record):
                record.reported = True
            else:
                self._owner.lose_step(shard, run_id, seq, record, notes[record.host])
        return size

    async def _return_forgotten(self) -> None:
        """The server has another history: return the attempts that run here by its records, and don't."""
        numbers = [n for n in sorted(self._doubtful) if not self._troubles.waits(shard_name(n), UNREAD)]
        count = 0
        for first in range(0, len(numbers), SHARDS_READ):
            count += await self._return_forgotten_of(numbers[first : first + SHARDS_READ])
        if count:
            _log.warning(
                "%d steps run here by records of which the server has lost what followed: they are returned to the "
                "owners of their runs, which run them again",
                count,
            )

    async def _return_forgotten_of(self, shards: Iterable[int]) -> int:
        positions = dict.fromkeys(shards, FIRST_FIELD)
        count = 0
        while positions:
            numbers = list(positions)
            limit = max(LEAST_READ, PIPELINE_BYTES // len(numbers))
            pages = await self._store.send(
                [self._kernel.read_hash(self._kernel.keys.shard(n).steps, positions[n], limit) for n in numbers]
            )
            forgotten: list[tuple[int, str, StepRecord]] = []
            read: list[int] = []
            for number, page in zip(numbers, pages, strict=True):
                if isinstance(page, StoreError):
                    self._failed(number, UNREAD, page)
                    del positions[number]
                    continue
                positions[number], fields = page
                if not positions[number]:
                    del positions[number]
                    read.append(number)
                forgotten += ((number, field.decode(), record) for field, record in self._forgotten(fields))
            refused: set[int] = set()
            for portion in _portions(forgotten, lambda _: DETAILS):
                refused |= await self._return(portion)
                count += len(portion)
            self._doubtful -= set(read) - refused
        return count

    def _forgotten(self, fields: list[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, StepRecord]]:
        for field, value in fields:
            try:
                key, record = run_and_number(field), decode_step_record(value)
            except ValueError:
                continue  # the owner logs it at its takeover
            lent = self.lends.get(key)
            is_ours = record.host == self._member and not record.reported
            if is_ours and (lent is None or (lent.created, lent.attempt) != (record.created, record.attempt)):
                yield field, record

    async def _return(self, forgotten: list[tuple[int, str, StepRecord]]) -> set[int]:
        """Of these steps (shard, field, record), with what they have reported last. Gives the shards that refuse it."""
        shards = self._kernel.keys.shard
        details = await self._store.send([Call.plain("HGET", shards(n).details, field) for n, field, _ in forgotten])
        calls: list[Call[str]] = []
        for (number, field, record), reported in zip(forgotten, details, strict=True):
            run_id, seq = run_and_number(field.encode())
            created, last = decode_details(reported) if isinstance(reported, bytes) else (0, b"")
            body = encode_returned(seq, record.attempt, Raw(last) if last and created == record.created else NOTHING)
            lent = LentStep(field, self._member, record.created, record.attempt)
            calls.append(self._kernel.report_step(number, run_id, "returned", lent, body))
        refused: set[int] = set()
        for (number, _, _), answer in zip(forgotten, await self._store.send(calls), strict=True):
            if isinstance(answer, StoreError):
                self._failed(number, UNREAD, answer)
                refused.add(number)
        return refused

    def _details_of(self, lent: _Lent) -> Raw:
        is_current = self._executor.runs(lent.run_id, lent.seq, lent.attempt)
        return self._executor.details_of(lent.run_id, lent.seq) if is_current else NOTHING

    def _new_details(self, lent: _Lent) -> bytes:
        details = bytes(self._details_of(lent))
        return b"" if details in (lent.stored, bytes(NOTHING)) else details


def _portions(items: Iterable[T], size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """What one call takes: some `STEPS`, of about `BYTES`."""
    return _lists(items, size_of, STEPS, BYTES)


def _pipelines(portions: Iterable[T], size_of: Callable[[T], int]) -> Iterator[list[T]]:
    return _lists(portions, size_of, PIPELINE_CALLS, PIPELINE_BYTES)


def _lists(items: Iterable[T], size_of: Callable[[T], int], most: int, most_bytes: int) -> Iterator[list[T]]:
    found, size = list[T](), 0
    for item in items:
        found.append(item)
        size += size_of(item)
        if size >= most_bytes or len(found) == most:
            yield found
            found, size = [], 0
    if found:
        yield found


def _is_reported(value: bytes, record: StepRecord) -> bool:
    """Whether the server has `record` by now as that of an attempt whose outcome is in the inbox."""
    try:
        now = decode_step_record(value)
    except ValueError:
        return False
    return now.reported and (now.created, now.attempt) == (record.created, record.attempt)
