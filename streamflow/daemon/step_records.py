"""What the server knows about steps that run at a daemon: their details, and those that outlive a hand-over.

Owns: the attempts that this daemon still runs for shards that it has handed over, their reports, and storing what steps
report with `sf.heartbeat`. Must not: decide which shards are handed over (membership does), run steps (executor), or
change runs (owner). Called by: the daemon (runs the loops, passes outcomes), membership (`lend`, `return_rest`).

An attempt that runs when its shard is handed over goes on running here: it is *lent*. The release records it with this
daemon as its host, so that the new owner doesn't start it again but waits for its outcome, which reaches it through the
inbox like that of a queued step. The new owner deletes the record when it doesn't need the attempt any more, or takes
the host for dead; the host stops the attempt within a second of that. What still runs when this daemon ends is
*returned*: the new owner starts it again under the same number.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from typing import TypeVar

import anyio
import msgspec
from msgspec import Raw

from streamflow.daemon.context import Context
from streamflow.daemon.owner import Owner
from streamflow.daemon.shard import StepRecord, decode_details, decode_step_record, stored_details
from streamflow.errors import StoreError
from streamflow.events import NOTHING
from streamflow.loops import TURN, retry_forever
from streamflow.machine.transition import Outcome
from streamflow.model.record import Header
from streamflow.steps.executor import StepExecutor
from streamflow.steps.suspects import read_notes
from streamflow.store.connection import Call
from streamflow.store.kernel import LentStep, Reply
from streamflow.wire import encode_outcome, encode_returned

T = TypeVar("T")

_log = logging.getLogger("streamflow.steps")

EVERY = 1.0
"""Seconds between two looks at what steps have reported, and whether lent ones are still needed."""
REPORTS = 200
"""Outcomes in one pipeline."""
BYTES = 1024 * 1024
"""Details of steps in one call, about."""
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

    @property
    def step(self) -> str:
        return f"{self.run_id}/{self.seq}"


class StepRecords:
    def __init__(self, context: Context, owner: Owner, executor: StepExecutor) -> None:
        self._store = context.store
        self._kernel = context.kernel
        self._member = context.member
        self._owner = owner
        self._executor = executor
        self.lends: dict[tuple[str, int], _Lent] = {}
        """The attempts that run here for other daemons, and outcomes of such that have not been reported."""
        self._stored: dict[tuple[str, int, int, int], bytes] = {}
        """Details of steps of owned shards that the server has, by run, its incarnation, number and attempt."""
        self._has_reports = anyio.Event()
        executor.on_replaced = self._replaced

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

    def lend(self, shard: int, headers: dict[str, Header], ended: dict[str, list[Outcome]]) -> list[LentStep]:
        """The shard is about to be released: its attempts that run continue, with this daemon as their host.

        `headers`: of its live runs; `ended`: outcomes that no commit has recorded, which the new owner gets, too.
        """
        lent: list[_Lent] = []
        for running in self._executor.lend(shard):
            header, job = headers.get(running.run_id), running.job
            if header is not None:
                lent.append(_Lent(shard, running.run_id, header.created, job.seq, job.attempt))
        for run_id, outcomes in ended.items():
            header = headers.get(run_id)
            for outcome in outcomes if header is not None else ():
                assert header is not None
                lent.append(_Lent(shard, run_id, header.created, outcome.seq, outcome.attempt))
                self._ended(lent[-1], outcome)
        for attempt in lent:
            self.lends[attempt.run_id, attempt.seq] = attempt
        return [LentStep(attempt.step, self._member, attempt.created, attempt.attempt) for attempt in lent]

    def outcome(self, run_id: str, outcome: Outcome) -> bool:
        """An attempt has ended. False when it isn't a lent one."""
        lent = self.lends.get((run_id, outcome.seq))
        if lent is None or lent.attempt != outcome.attempt or lent.report is not None:
            return False
        self._ended(lent, outcome)
        return True

    def _replaced(self, run_id: str, seq: int) -> None:
        """A newer attempt begins here, perhaps of a later run of the id, under the same numbers: its outcome must not
        be taken for that of the lent one."""
        lent = self.lends.get((run_id, seq))
        if lent is not None and lent.report is None:
            del self.lends[run_id, seq]

    def _ended(self, lent: _Lent, outcome: Outcome) -> None:
        lent.report = self._report(lent, "outcome", encode_outcome(outcome))
        self._has_reports.set()

    def _report(self, lent: _Lent, kind: str, body: bytes) -> Call[str]:
        return self._kernel.report_step(lent.shard, lent.run_id, lent.created, kind, lent.step, body)

    async def return_rest(self) -> None:
        """This daemon ends: stop what still runs here for others, which run it again. Raises `StoreError`."""
        for lent in self.lends.values():
            if lent.report is None:
                details = self._details_of(lent)
                self._executor.stop_lent(lent.run_id, lent.seq, lent.attempt)
                lent.report = self._report(lent, "returned", encode_returned(lent.seq, lent.attempt, details))
        while self.unreported and await self.report_once():
            pass

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
        ended = [lent for lent in self.lends.values() if lent.report is not None][:REPORTS]
        if not ended:
            return True
        answers = await self._store.send([lent.report for lent in ended if lent.report is not None], patience=math.inf)
        refused = False
        for lent, answer in zip(ended, answers, strict=True):
            if isinstance(answer, StoreError):
                _log.error(
                    "the outcome of step %s, attempt %d, could not be reported to its run, will retry in %g s: %s",
                    lent.step,
                    lent.attempt,
                    RETRY_PAUSE,
                    answer,
                )
                refused = True
            elif self.lends.get((lent.run_id, lent.seq)) is lent:
                del self.lends[lent.run_id, lent.seq]
        if not refused and self.unreported:
            self._has_reports.set()
        return not refused

    async def run(self) -> None:
        await retry_forever(self.run_once, _log, "could not store details of steps", every=EVERY, within=TURN)

    async def run_once(self) -> None:
        """Lose steps of daemons that have gone, store what steps have reported since, and stop lent attempts that
        nobody needs any more."""
        await self.lose_gone()
        if self._executor.running:
            await self._store_details()
        if self.lends:
            await self._extend()

    async def _store_details(self) -> None:
        new: dict[int, list[tuple[str, bytes]]] = {}
        stored: dict[tuple[str, int, int, int], bytes] = {}
        for running in self._executor.reporting():
            shard = self._owner.shards.get(running.shard)
            if running.lent or shard is None:
                continue
            job = running.job
            key, details = (running.run_id, job.created, job.seq, job.attempt), bytes(running.details)
            stored[key] = details
            if self._stored.get(key) != details:
                stored_as = stored_details(job.created, details)
                new.setdefault(shard.number, []).append((f"{running.run_id}/{job.seq}", stored_as))
                shard.record_of(running.run_id, job.created, job.seq, job.attempt).details = details
        self._stored = stored
        portions = [
            (shard, portion)
            for shard in (self._owner.shards.get(number) for number in new)
            if shard is not None
            for portion in _portions(new[shard.number], lambda stored: len(stored[1]))
        ]
        calls = [self._kernel.store_details(shard.number, shard.token, portion) for shard, portion in portions]
        if not calls:
            return
        for (shard, _), answer in zip(portions, await self._store.send(calls), strict=True):
            if answer is Reply.FENCED:
                self._owner.lost(shard)
            elif isinstance(answer, StoreError):
                _log.error("details of steps of shard %d could not be stored: %s", shard.number, answer)

    async def _extend(self) -> None:
        by_shard: dict[int, list[tuple[_Lent, LentStep]]] = {}
        for lent in self.lends.values():
            if lent.report is None:
                asked = LentStep(lent.step, self._member, lent.created, lent.attempt, self._new_details(lent))
                by_shard.setdefault(lent.shard, []).append((lent, asked))
        portions = [
            portion for steps in by_shard.values() for portion in _portions(steps, lambda step: len(step[1].details))
        ]
        calls = [
            self._kernel.extend_steps(portion[0][0].shard, [asked for _, asked in portion]) for portion in portions
        ]
        answers = await self._store.send(calls) if calls else []
        for portion, answer in zip(portions, answers, strict=True):
            if isinstance(answer, StoreError):
                _log.error("shard %d could not be asked about its steps, will retry: %s", portion[0][0].shard, answer)
                continue
            for (lent, _), letter in zip(portion, answer, strict=True):
                if letter == "l" and lent.report is None and self.lends.get((lent.run_id, lent.seq)) is lent:
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
        calls: list[Call[list[bytes | None]]] = []
        for shard, run_id, seq, _ in gone:
            field = f"{run_id}/{seq}"
            calls += (Call.plain("HMGET", key, field) for key in (shard.keys.steps, shard.keys.details))
        answers = await self._store.send(calls)
        notes = await read_notes(self._store, self._kernel, {record.host for _, _, _, record in gone})
        for position, (shard, run_id, seq, record) in enumerate(gone):
            steps, details = answers[2 * position : 2 * position + 2]
            if isinstance(steps, StoreError) or isinstance(details, StoreError):
                _log.error("step records of shard %d can't be read, will retry: %s %s", shard.number, steps, details)
                continue
            [value], [reported] = steps, details
            if shard.dropped:
                continue
            if reported:
                created, details_now = decode_details(reported)
                if created in (0, record.created):
                    record.details = details_now
            if value is not None and _is_reported(value, record):
                record.reported = True
            else:
                self._owner.lose_step(shard, run_id, seq, record, notes[record.host])

    def _details_of(self, lent: _Lent) -> Raw:
        is_current = self._executor.runs(lent.run_id, lent.seq, lent.attempt)
        return self._executor.details_of(lent.run_id, lent.seq) if is_current else NOTHING

    def _new_details(self, lent: _Lent) -> bytes:
        details = bytes(self._details_of(lent))
        if details in (lent.stored, bytes(NOTHING)):
            return b""
        lent.stored = details
        return details


def _portions(items: list[T], size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """In lists of about `BYTES`."""
    portion, size = list[T](), 0
    for item in items:
        portion.append(item)
        size += size_of(item)
        if size >= BYTES:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def _is_reported(value: bytes, record: StepRecord) -> bool:
    """Whether the server has `record` by now as that of an attempt whose outcome is in the inbox."""
    try:
        now = decode_step_record(value)
    except ValueError:
        return False
    return now.reported and (now.created, now.attempt) == (record.created, record.attempt)
