"""A worker's claims: the attempts that it has taken from its queues, from the read to the outcome.

Owns: the table of claims, reporting outcomes, extending the claims of running steps, and expiring those of dead
workers. Must not: read queues (the reader does), run steps (the executor does), decide about retries (the run does).
Called by: the worker (composes and runs the loops), the reader (adds claims).

A claim is one entry, which is one attempt. It ends in one of four ways:

    outcome    the step ended: `settle_attempts` puts its outcome into the run's inbox, and deletes the entry
    revoked    the run no longer needs the step: the step is cancelled and the entry deleted
    lost       the entry is no longer this worker's, because it did not extend its claim in time: the step is cancelled,
               its outcome dropped
    requeued   this worker shuts down: the entry waits for another one, under the same attempt

Everything may be sent twice: an outcome counts only while its entry is the step's current one, and the run drops
outcomes of attempts that are not current. Consecutive runs of one id have steps with the same numbers; `created` tells
them apart.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import anyio
import msgspec

from streamflow.errors import Failure, StoreError, StoreUnavailable
from streamflow.events import NOTHING
from streamflow.loops import TURN, retry_forever
from streamflow.machine.open_work import WORKER_LOST
from streamflow.machine.transition import Outcome
from streamflow.steps.context import Running
from streamflow.steps.executor import STEP_BLOCKED, StepExecutor
from streamflow.steps.suspects import Note, Suspects, read_notes
from streamflow.store.connection import Call, Store
from streamflow.store.from_thread import ThreadStore
from streamflow.store.kernel import ClaimRef, ExpiredClaim, ExpiredClaims, Holder, Kernel, Settlement
from streamflow.store.queues import partitions_claimed_by
from streamflow.store.workers import decode_worker
from streamflow.worker.heartbeats import WorkerHeartbeats
from streamflow.worker.recent_outcomes import RecentOutcomes

_log = logging.getLogger("streamflow.worker")
_encode = msgspec.msgpack.Encoder().encode

REPORTS = 200
BYTES = 1024 * 1024
"""Limits of one pipeline of outcomes."""
CLAIMS = 500
"""Claims in one `extend_claims` or `requeue_attempts`, and about `BYTES` of new details."""
EXPIRED = 100
"""Expired claims of a partition that are read at once."""
MAX_EXTEND_INTERVAL = 1.0
"""Maximum seconds between two extensions: also how long the step of a cancelled run may continue here."""
FORGET_CONSUMER_AFTER = 60.0
"""Seconds without a read after which a consumer with nothing pending is deleted; workers read every few seconds."""
LONGEST_BLOCK = 60.0
"""Seconds for which a blocked event loop still counts as alive, or three times the time-out if that is longer. The
watch gives up long before on a step that can't be interrupted."""
JUMP = 1.0
"""Seconds by which the server's clock may differ from this process's between two looks, at most a quarter of the
time-out."""
RECONNECT_GRACE = 2.0
"""Seconds that other workers may need to notice that the server is back: clients pause up to a second."""
RETRY_PAUSE = 1.0
"""Seconds until outcomes that a shard refused are reported again."""

Partition = tuple[str, int]
"""A queue and the number of one of its partitions, which is that of a shard."""


class Claim(msgspec.Struct):
    """An entry that this worker has, and whose attempt it runs."""

    partition: Partition
    entry: str
    run_id: str
    created: int
    seq: int
    attempt: int
    mark: bytes = b""
    """What its outcome names."""
    ended: bool = False
    """Its step no longer runs; the claim stays in the table until the server knows."""

    @property
    def step(self) -> str:
        return f"{self.run_id}/{self.seq}"

    def ref(self, details: bytes = b"") -> ClaimRef:
        """How calls of the kernel name this claim. `details`: new ones to store with it."""
        return ClaimRef(self.entry, self.step, details)


class Claims:
    """`shards`: how many the namespace has. `on_capacity()` is called when a claim has ended. `timeout`: seconds
    without an extension after which a claim is expired. `longest_block`: seconds for which they are extended while the
    event loop is blocked."""

    def __init__(
        self,
        store: Store,
        kernel: Kernel,
        *,
        consumer: str,
        queues: Iterable[str],
        timeout: float,
        shards: int,
        on_capacity: Callable[[], None],
        longest_block: float = LONGEST_BLOCK,
    ) -> None:
        self.executor: StepExecutor | None = None
        self.suspects: Suspects | None = None
        self.heartbeats: WorkerHeartbeats | None = None
        self.on_refused: Callable[[Partition], None] = lambda _: None
        """Called when the server refuses a look at the claims of a partition: it may be broken."""
        self.consumer = consumer
        self.partitions: list[Partition] = [(queue, number) for queue in queues for number in range(shards)]
        self.expired = 0
        """Claims of dead workers that this one has reported as lost."""
        self._store = store
        self._kernel = kernel
        self._timeout = timeout
        self._on_capacity = on_capacity
        self._claims: dict[tuple[Partition, str], Claim] = {}
        self._by_step: dict[tuple[str, int], Claim] = {}
        self._reports: list[tuple[Claim, bytes | None]] = []
        """Ended claims, with the encoded outcome; None: only the entry is to be deleted."""
        self._refused: list[tuple[Claim, bytes | None]] = []
        """Those whose partitions or shards are broken: kept apart, so that the others don't have to wait for them."""
        self._recent = RecentOutcomes(store, kernel)
        self._has_reports = anyio.Event()
        self._ended = anyio.Event()
        self._reporting = anyio.Lock()
        self._checked_at = time.monotonic()
        """When expired claims were looked for last (monotonic s)."""
        self._expires_from = self._checked_at
        """No worker is considered dead before (monotonic s): after an outage, live workers have to extend first."""
        self._server_clock: tuple[float, float] | None = None
        """The server's clock at the last look for expired claims, and when that was (monotonic): seconds."""
        self._extended_late = 0.0
        """When claims were extended last in the place of the blocked loop (monotonic s)."""
        self._longest_block = longest_block
        self._given_up = False
        self._kept: set[str] = set()
        """Workers that extend nothing, and whose claims are kept all the same."""
        self._late_store = ThreadStore(store.url)
        self._details_sent: dict[tuple[Partition, str], bytes] = {}
        """Details that the server has already, by claim."""

    @property
    def interval(self) -> float:
        """Seconds between two extensions, which are heartbeats, too."""
        return min(self._timeout / 4, MAX_EXTEND_INTERVAL)

    @property
    def running(self) -> int:
        return sum(not claim.ended for claim in list(self._claims.values()))  # also called in the HTTP server's thread

    @property
    def unfinished(self) -> bool:
        """Whether a step still runs, or waits for its turn."""
        executor = self.executor
        return any(
            not claim.ended and (executor is None or executor.has(claim.run_id, claim.seq))
            for claim in self._claims.values()
        )

    @property
    def unreported(self) -> int:
        return len(self._reports)

    async def ended(self) -> None:
        """Wait until another claim has ended."""
        self._ended = anyio.Event()
        await self._ended.wait()

    def has(self, partition: Partition, entry: str) -> bool:
        return (partition, entry) in self._claims

    def add(self, claim: Claim) -> None:
        self._claims[claim.partition, claim.entry] = claim
        self._by_step[claim.run_id, claim.seq] = claim

    def holder_of(self, running: Running) -> Holder | None:
        """By what the server knows that an attempt runs here; None if it isn't this worker's any more."""
        claim = self._by_step.get((running.run_id, running.job.seq))
        if claim is None or claim.ended or claim.attempt != running.job.attempt:
            return None
        if self.executor is not None and self.executor.is_replaced(running):  # the claim is another one
            return None
        queue, shard = claim.partition
        value = f"{claim.entry} {claim.created} {claim.attempt} wanted"
        return Holder(self._kernel.keys.queue(queue, shard).steps, claim.step, value)

    def outcome(self, _: int, run_id: str, outcome: Outcome) -> None:
        """An attempt has ended (the executor's `on_outcome`)."""
        claim = self._by_step.get((run_id, outcome.seq))
        if claim is not None and claim.attempt == outcome.attempt:
            self.report(claim, outcome)

    def report(self, claim: Claim, outcome: Outcome | None) -> None:
        """End a claim: report the outcome and delete the entry; without an outcome, only delete it."""
        claim.ended = True
        if self._by_step.get((claim.run_id, claim.seq)) is claim:
            del self._by_step[claim.run_id, claim.seq]
        if outcome is not None and claim.mark:
            outcome = msgspec.structs.replace(outcome, mark=claim.mark)
        self._reports.append((claim, None if outcome is None else _encode(outcome)))
        self._has_reports.set()
        self._signal_end()

    def attempt_left(self) -> None:
        """A thread is free again, or an attempt has left the executor without an outcome (its `on_free`)."""
        self._signal_end()

    def forget(self, claim: Claim) -> None:
        """It is not this worker's any more, or the server has settled it."""
        claim.ended = True
        self._claims.pop((claim.partition, claim.entry), None)
        self._details_sent.pop((claim.partition, claim.entry), None)
        if self._by_step.get((claim.run_id, claim.seq)) is claim:
            del self._by_step[claim.run_id, claim.seq]
        self._signal_end()

    def _signal_end(self) -> None:
        self._ended.set()
        self._on_capacity()

    def _stop(self, claim: Claim) -> None:
        if self.suspects is not None and self._by_step.get((claim.run_id, claim.seq)) is claim:
            self.suspects.cancel(claim.run_id, claim.seq)

    # --- outcomes -----------------------------------------------------------------------------------------------------

    async def run_reports(self) -> None:
        retry_at = math.inf
        self._has_reports.set()  # there may be some from before an error
        while True:
            with anyio.move_on_after(max(0.0, retry_at - time.monotonic())):
                await self._has_reports.wait()
            self._has_reports = anyio.Event()
            if self._recent.is_needed:
                await self._recent.send_again()
            if retry_at <= time.monotonic():
                self.retry_refused()
                retry_at = math.inf
            if not await self.report_once():
                retry_at = min(retry_at, time.monotonic() + RETRY_PAUSE)

    def history_changed(self) -> None:
        """A server has another history: it may have lost outcomes."""
        self._has_reports.set()

    def retry_refused(self) -> None:
        """Put outcomes that their runs' shards refused back among the reports."""
        self._reports += self._refused
        self._refused.clear()

    async def report_once(self) -> bool:
        """Settle ended claims: their outcomes are put into the inboxes, and their entries deleted. False when some were
        refused."""
        async with self._reporting:
            return await self._report_once()

    async def _report_once(self) -> bool:
        chunk = self._next_reports()
        if not chunk:
            return True
        by_partition: dict[Partition, list[tuple[Claim, bytes | None]]] = {}
        for report in chunk:
            by_partition.setdefault(report[0].partition, []).append(report)
        histories = {number: self._recent.history_of(number) for _, number in by_partition}
        calls = [
            self._kernel.settle_attempts(
                *partition, [Settlement(claim.entry, claim.step, body or b"") for claim, body in reports]
            )
            for partition, reports in by_partition.items()
        ]
        answers: list[str | StoreError] = await self._store.send(calls, patience=math.inf)
        all_accepted = True
        for (partition, reports), answer in zip(by_partition.items(), answers, strict=True):
            queue, number = partition
            if isinstance(answer, StoreError):  # the partition or the shard is broken: the outcomes wait here
                _log.error(
                    "the outcomes of %d attempts could not be reported in partition %d of queue %s, will retry in %g "
                    "s; the first is of step %s: %s",
                    len(reports),
                    number,
                    queue,
                    RETRY_PAUSE,
                    reports[0][0].step,
                    answer,
                )
                self._refused += reports
                all_accepted = False
                continue
            for (claim, body), letter in zip(reports, answer, strict=True):
                if letter == "a" and body is not None:
                    self._recent.accepted(claim.run_id, number, claim.created, body, histories[number])
                self.forget(claim)
        if self._recent.is_needed:
            self._has_reports.set()
        del self._reports[: len(chunk)]
        if self._reports:
            self._has_reports.set()
        return all_accepted

    def _next_reports(self) -> list[tuple[Claim, bytes | None]]:
        size = 0
        for count, (_, body) in enumerate(self._reports[:REPORTS]):
            size += len(body or b"")
            if count and size > BYTES:
                return self._reports[:count]
        return self._reports[:REPORTS]

    # --- extending claims ---------------------------------------------------------------------------------------------

    async def run_extending(self) -> None:
        await retry_forever(self.extend_once, _log, "could not extend claims", every=self.interval, within=TURN)

    async def extend_once(self) -> None:
        """Extend the claims of all running steps, and stop those that are revoked or lost; behind that, a heartbeat:
        where it is new, the claims are."""
        self._given_up = False
        chunks = list(self._chunks(ended=False))
        calls: list[Call[Any]] = [*self._extensions(chunks)]
        if self.heartbeats is not None:
            calls += self.heartbeats.calls()
        if not calls:
            return
        answers = await self._store.send(calls, urgent=True)
        if self.heartbeats is not None:
            self.heartbeats.answered(answers[len(chunks) :])
        for (partition, claims, details), answer in zip(chunks, answers[: len(chunks)], strict=True):
            if isinstance(answer, StoreError):
                queue, number = partition
                _log.error(
                    "%d claims in partition %d of queue %s could not be extended, will retry: %s",
                    len(claims),
                    number,
                    queue,
                    answer,
                )
                continue
            for claim, sent, letter in zip(claims, details, answer, strict=True):
                if claim.ended:  # meanwhile
                    continue
                if letter == "k":
                    if sent:
                        self._details_sent[partition, claim.entry] = sent
                elif letter == "r":
                    _log.info("step %s, attempt %d, was revoked by its run and is stopped", claim.step, claim.attempt)
                    self._stop(claim)
                    self.report(claim, None)
                else:
                    _log.warning(
                        "step %s, attempt %d, was given up by others, who considered this worker dead: it is stopped "
                        "here and its outcome dropped",
                        claim.step,
                        claim.attempt,
                    )
                    self._stop(claim)
                    self.forget(claim)

    def _extensions(self, chunks: list[tuple[Partition, list[Claim], list[bytes]]]) -> list[Call[str]]:
        return [
            self._kernel.extend_claims(*partition, self.consumer, _refs(claims, details))
            for partition, claims, details in chunks
        ]

    @property
    def unanswered(self) -> float:
        """Seconds since the server has answered the last look for expired claims, which comes twice a time-out."""
        return time.monotonic() - self._checked_at

    def extend_late(self, late: float) -> None:
        """The event loop has been blocked for `late` seconds, probably by a step: extend the claims in its place, from
        another thread. What is revoked or lost is stopped when the loop runs again.

        Not without end: a loop that never runs again reports no outcome, so its claims have to expire.
        """
        now = time.monotonic()
        if late < self._timeout / 4 or now - self._extended_late < self._timeout / 4 or self._given_up:
            return
        longest = max(self._longest_block, 3 * self._timeout)
        if late > longest:
            self._given_up = True
            _log.error(
                "the event loop of this worker has been blocked for %.0f s: its claims are no longer extended, so "
                "other workers run its steps again after %g s (worker_timeout)",
                late,
                self._timeout,
            )
            return
        self._extended_late = now
        calls: list[Call[Any]] = [*self._extensions(list(self._chunks(ended=False)))]
        if self.heartbeats is not None:
            calls += self.heartbeats.repeat()
        if not calls:
            return
        try:
            self._send_late(calls)
        except StoreError as error:
            _log.warning("could not extend claims while the event loop is blocked, will retry: %s", error)

    def on_answer(self) -> None:
        """The loop turns again."""
        self._late_store.close()

    def give_up(self, run_id: str, seq: int, record: Call[Any] | None) -> None:
        """The loop will never turn again because of this step, and the process exits: give all other attempts back, so
        that other workers run them at once. That step's claim is left to expire: its run counts that as a death.
        Called in another thread, like `extend_late`."""
        self._given_up = True
        calls = [] if record is None else [record]
        for partition, claims, details in self._chunks(ended=False):
            pairs = zip(claims, details, strict=True)
            others = [claim.ref(new) for claim, new in pairs if (claim.run_id, claim.seq) != (run_id, seq)]
            if others:
                calls.append(self._kernel.requeue_attempts(*partition, self.consumer, others))
        if calls:
            self._send_late(calls)

    def _send_late(self, calls: list[Call[Any]]) -> None:
        """On a connection of its own: that of the loop belongs to the loop."""
        self._late_store.call(lambda store: store.send(calls), min(1.0, self._timeout / 4))

    def _chunks(self, *, ended: bool) -> Iterable[tuple[Partition, list[Claim], list[bytes]]]:
        """Claims by partition, with the new details of their steps."""
        by_partition: dict[Partition, list[Claim]] = {}
        for claim in list(self._claims.values()):  # another thread may add some
            if claim.ended == ended:
                by_partition.setdefault(claim.partition, []).append(claim)
        for partition, claims in by_partition.items():
            chunk, details, size = list[Claim](), list[bytes](), 0
            for claim in claims:
                chunk.append(claim)
                details.append(self._new_details(claim))
                size += len(details[-1])
                if len(chunk) >= CLAIMS or size >= BYTES:
                    yield partition, chunk, details
                    chunk, details, size = [], [], 0
            if chunk:
                yield partition, chunk, details

    def _new_details(self, claim: Claim) -> bytes:
        """The newest details that the step has reported, if the server doesn't have them yet."""
        if self.executor is None:
            return b""
        details = bytes(self.executor.details_of(claim.run_id, claim.seq))
        sent = self._details_sent.get((claim.partition, claim.entry), b"")
        return b"" if details in (sent, bytes(NOTHING)) else details

    # --- expired claims -----------------------------------------------------------------------------------------------

    async def run_expiring(self) -> None:
        await retry_forever(
            self.expire_once, _log, "could not look for expired claims", every=self._timeout / 2, within=TURN
        )

    async def expire_once(self) -> None:
        """Report the attempts of dead workers to their runs as lost.

        Not while the server may have been the reason: a check that comes late, because the server was away or this
        process was paused, says nothing about other workers. They get one time-out to extend their claims first.
        """
        after = dict.fromkeys(self.partitions, "")
        while after:
            answers = await self._read_expired(after, self._timeout)
            if time.monotonic() < self._expires_from:
                return
            consumers = {dead.consumer for expired in answers.values() for dead in expired.claims}
            kept = await self._kept_by_their_processes(consumers)
            for partition, expired in answers.items():
                text = f"died or sent no heartbeat for {self._timeout:g} s"
                await self._lose(partition, [dead for dead in expired.claims if dead.consumer not in kept], text)
            after = {partition: expired.last for partition, expired in answers.items() if expired.last}
            while after and self._reports and await self.report_once():  # else all of them would be in memory
                pass

    async def run_losing(self) -> None:
        await retry_forever(self._lose_died, _log, "could not report what workers that died had claimed")

    async def _lose_died(self) -> None:
        if self.heartbeats is not None:
            await self.heartbeats.death()
            await self.lose_died()

    async def lose_died(self) -> None:
        """Report the attempts of workers of which it is known that their processes have died, without waiting until
        their claims expire."""
        assert self.heartbeats is not None
        for name in list(self.heartbeats.died):
            _log.warning("worker %s has died: what it had claimed is reported to its runs as lost", name)
            claimed, is_complete = await partitions_claimed_by(self._store, self._kernel.keys, self.partitions, name)
            after = dict.fromkeys(claimed, "")
            while after:
                found = await self._read_expired(after, 0.0)
                for partition, claims in found.items():
                    await self._lose(partition, [dead for dead in claims.claims if dead.consumer == name], "died")
                after = {partition: claims.last for partition, claims in found.items() if claims.last}
                while after and self._reports and await self.report_once():
                    pass
            if not is_complete:
                raise StoreUnavailable(f"a server has not answered what worker {name} had claimed")
            self.heartbeats.died.discard(name)

    async def _kept_by_their_processes(self, consumers: set[str]) -> set[str]:
        """Workers that don't extend their claims because code in C holds their interpreters: the process beside each
        says that it lives, for a minute at most. One that sends its heartbeats itself has dropped what it doesn't
        extend."""
        names = sorted(consumers - {self.consumer})
        if not names or self.heartbeats is None:
            self._kept = set()
            return set()
        [records] = await self._store.send([Call.plain("HMGET", self._kernel.keys.workers, *names)])
        if isinstance(records, StoreError):
            return set()
        clock = self.heartbeats.clock()
        workers = {name: decode_worker(raw) for name, raw in zip(names, records, strict=True) if raw}
        kept = {name for name, worker in workers.items() if worker.is_repeated and worker.is_fresh(clock)}
        for name in kept - self._kept:
            _log.warning(
                "worker %s extends no claims, and its process lives: code in C holds its interpreter; others wait", name
            )
        self._kept = kept
        return kept

    async def _read_expired(self, after: dict[Partition, str], idle_s: float) -> dict[Partition, ExpiredClaims]:
        """The next claims of each partition that have not been extended for so long, behind the entry that is given for
        it."""
        idle, quiet = round(idle_s * 1000), round(max(FORGET_CONSUMER_AFTER, 3 * self._timeout) * 1000)
        calls: list[Call[Any]] = [
            self._kernel.expired_claims(*partition, idle, quiet, EXPIRED, last) for partition, last in after.items()
        ]
        asked = time.monotonic()
        answers: list[ExpiredClaims | StoreError] = await self._store.send(calls)
        now = time.monotonic()
        clocks = [(answer.clock, answer.before) for answer in answers if not isinstance(answer, StoreError)]
        if clocks and clocks[-1][0]:
            server = clocks[-1][0] / 1000
            if self._server_clock is None:  # the first look: another worker may have looked before
                self._server_clock = max(server, *(before / 1000 for _, before in clocks)), now
            await self._compare_clocks(server, asked, now)
        if now - self._checked_at > max(0.75 * self._timeout, 0.5 * self._timeout + 1.0):
            self._expires_from = now + self._timeout + RECONNECT_GRACE
        self._checked_at = now
        found: dict[Partition, ExpiredClaims] = {}
        for partition, answer in zip(after, answers, strict=True):
            if isinstance(answer, StoreError):
                queue, number = partition
                _log.error(
                    "could not look for expired claims in partition %d of queue %s, will retry: %s",
                    number,
                    queue,
                    answer,
                )
                self.on_refused(partition)
            else:
                found[partition] = answer
        return found

    async def _compare_clocks(self, server: float, asked: float, now: float) -> None:
        """Claims are timed by the server's clock: if it was set, its times say nothing until live workers have extended
        theirs. If it was set back, the claims of dead workers begin a new time-out: else they would not expire for as
        long."""
        before, self._server_clock = self._server_clock, (server, now)
        if before is None:
            return
        jump = server - before[0] - (now - before[1])
        if abs(jump) < min(JUMP, self._timeout / 4) + now - asked:
            return
        _log.warning(
            "the server's clock was set by %+.0f s: for %g s no worker is considered dead", jump, self._timeout
        )
        self._expires_from = now + self._timeout + RECONNECT_GRACE
        if jump > 0:
            return
        after = dict.fromkeys(self.partitions, "")
        while after:
            calls = [self._kernel.restart_claims(*partition, EXPIRED, last) for partition, last in after.items()]
            lasts: list[str | StoreError] = await self._store.send(calls)
            after = {
                partition: last
                for partition, last in zip(after, lasts, strict=True)
                if last and not isinstance(last, StoreError)
            }

    async def _lose(self, partition: Partition, expired: list[ExpiredClaim], reason: str) -> None:
        """Report these attempts as lost; those that had not begun are returned to the queue. `reason`: what happened to
        their workers."""
        notes = await read_notes(self._store, self._kernel, (dead.consumer for dead in expired))
        not_begun: dict[str, list[ClaimRef]] = {}
        for dead in expired:
            if dead.consumer == self.consumer or self.has(partition, dead.entry):
                continue  # ours: this process was paused, and extends the claim next
            note = notes.get(dead.consumer, Note())
            if note.is_waiting(dead.run_id, dead.seq):
                not_begun.setdefault(dead.consumer, []).append(ClaimRef(dead.entry, f"{dead.run_id}/{dead.seq}"))
                continue
            text = f"worker {dead.consumer} {reason} while it ran the step"
            _log.warning(
                "step %s/%d, attempt %d, is reported to its run as lost: %s",
                dead.run_id,
                dead.seq,
                dead.attempt,
                text,
            )
            claim = Claim(partition, dead.entry, dead.run_id, dead.created, dead.seq, dead.attempt, ended=True)
            self._claims[partition, dead.entry] = claim
            details = msgspec.Raw(dead.details) if dead.details else NOTHING
            self.expired += 1
            to_blame = note.blames(dead.run_id, dead.seq)
            proof = note.proof(dead.run_id, dead.seq)
            failure = Failure(STEP_BLOCKED, proof) if proof else Failure(WORKER_LOST, text)
            self.report(
                claim,
                Outcome(dead.seq, dead.attempt, 0.0, None, failure, bool(proof), details=details, to_blame=to_blame),
            )
        if not_begun:
            await self._store.send(
                [self._kernel.requeue_attempts(*partition, name, refs) for name, refs in not_begun.items()]
            )

    # --- shutting down ------------------------------------------------------------------------------------------------

    async def requeue_running(self) -> int:
        """Stop all running steps, and put their attempts back so that other workers run them at once. Returns the
        number of attempts put back."""
        chunks = list(self._chunks(ended=False))
        calls: list[Call[Any]] = []
        for partition, claims, details in chunks:
            for claim in claims:
                self._stop(claim)
                self.forget(claim)
            calls.append(self._kernel.requeue_attempts(*partition, self.consumer, _refs(claims, details)))
        answers = await self._store.send(calls) if calls else []
        return sum(answer for answer in answers if not isinstance(answer, StoreError))


def _refs(claims: list[Claim], details: list[bytes]) -> list[ClaimRef]:
    return [claim.ref(new) for claim, new in zip(claims, details, strict=True)]
