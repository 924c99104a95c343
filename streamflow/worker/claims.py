"""What a worker has taken from its queues: claims, from the read to the outcome.

Owns: the table of claims, handing in outcomes, proving life for what runs, and giving dead workers' attempts up.
Must not: read queues (the reader does), run steps (the executor does), decide about retries (the run does).
Called by: the worker (composes and runs the loops), the reader (adds claims).

A claim is one entry, which is one attempt. It ends in one of four ways:

    outcome    the step ended: `report_outcome` hands its outcome to the run, then `ack_attempts` takes the entry off
    revoked    nobody wants it: the step is cancelled, the entry taken off
    lost       the entry isn't ours any more (we were silent for too long): the step is cancelled, its outcome dropped
    requeued   this worker leaves: the entry waits for another one, under the same attempt

Everything may be sent twice: an outcome carries its attempt, and the run drops those of attempts that aren't current.
Runs that followed each other under one id have steps of the same numbers; `created` tells them apart.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import anyio
import msgspec

from streamflow.errors import Failure, StoreError
from streamflow.events import NOTHING
from streamflow.loops import retry_forever
from streamflow.machine.open_work import WORKER_LOST
from streamflow.machine.transition import Outcome
from streamflow.model.sharding import QUEUE_PARTITIONS
from streamflow.steps.executor import StepExecutor
from streamflow.store.connection import Call, Store
from streamflow.store.kernel import ClaimRef, Kernel

_log = logging.getLogger("streamflow.worker")
_encode = msgspec.msgpack.Encoder().encode

REPORTS = 200
BYTES = 1024 * 1024
"""Limits of one pipeline of outcomes."""
CLAIMS = 500
"""Claims in one `extend_claims` or `requeue_attempts`."""
REAPED = 100
"""Dead entries of a partition that are given up at once."""
LONGEST_SILENCE = 1.0
"""Seconds between two signs of life at most: also how long a cancelled run's step may go on here."""
FORGET_AFTER = 60.0
"""Seconds without a read after which a consumer with nothing pending is forgotten; workers read every few seconds."""
COME_BACK = 2.0
"""Seconds that other workers may need to notice that the server is back: clients pause up to a second."""
RETRY_PAUSE = 1.0

Place = tuple[str, int]
"""A queue and its partition."""


class Claim(msgspec.Struct):
    """An entry that this worker has, and whose attempt it runs."""

    place: Place
    entry: str
    run_id: str
    created: int
    seq: int
    attempt: int
    ended: bool = False
    """Its step doesn't run any more; it stays in the table until the server knows."""

    @property
    def step(self) -> str:
        return f"{self.run_id}/{self.seq}"

    def on_server(self, told: bytes = b"") -> ClaimRef:
        return ClaimRef(self.entry, self.step, told)


class Claims:
    """`on_room()` is called when a claim has ended; `shard_of(run id)` finds the run's inbox."""

    def __init__(
        self,
        store: Store,
        kernel: Kernel,
        *,
        consumer: str,
        queues: Iterable[str],
        timeout: float,
        shard_of: Callable[[str], int],
        on_room: Callable[[], None],
    ) -> None:
        self.executor: StepExecutor | None = None
        self.consumer = consumer
        self.places: list[Place] = [(queue, number) for queue in queues for number in range(QUEUE_PARTITIONS)]
        self.reaped = 0
        self._store = store
        self._kernel = kernel
        self._timeout = timeout
        self._shard_of = shard_of
        self._on_room = on_room
        self._claims: dict[tuple[Place, str], Claim] = {}
        self._by_step: dict[tuple[str, int], Claim] = {}
        self._reports: list[tuple[Claim, bytes | None]] = []
        """Claims that are over, with the encoded outcome; None: only to be taken off."""
        self._refused: list[tuple[Claim, bytes | None]] = []
        """Those whose runs' shards are broken: they wait apart, so that the others needn't."""
        self._some = anyio.Event()
        self._ended = anyio.Event()
        self._reporting = anyio.Lock()
        self._looked = time.monotonic()
        self._reaps_from = self._looked
        """Until then nobody is taken for dead: the server was away, and the living have yet to say so."""
        self._told: dict[tuple[Place, str], bytes] = {}
        """Details that the server has already, by claim."""

    @property
    def running(self) -> int:
        return sum(not claim.ended for claim in self._claims.values())

    @property
    def unreported(self) -> int:
        return len(self._reports)

    async def ended(self) -> None:
        """Wait until another claim has ended."""
        self._ended = anyio.Event()
        await self._ended.wait()

    def has(self, place: Place, entry: str) -> bool:
        return (place, entry) in self._claims

    def add(self, claim: Claim) -> None:
        self._claims[claim.place, claim.entry] = claim
        self._by_step[claim.run_id, claim.seq] = claim

    def outcome(self, _: int, run_id: str, outcome: Outcome) -> None:
        """An attempt is over (the executor's `on_outcome`)."""
        claim = self._by_step.get((run_id, outcome.seq))
        if claim is not None and claim.attempt == outcome.attempt:
            self.report(claim, outcome)

    def report(self, claim: Claim, outcome: Outcome | None) -> None:
        """Hand an outcome in and take the entry off; without one, only that."""
        claim.ended = True
        if self._by_step.get((claim.run_id, claim.seq)) is claim:
            del self._by_step[claim.run_id, claim.seq]
        self._reports.append((claim, None if outcome is None else _encode(outcome)))
        self._some.set()
        self._left()

    def _forget(self, claim: Claim) -> None:
        claim.ended = True
        self._claims.pop((claim.place, claim.entry), None)
        self._told.pop((claim.place, claim.entry), None)
        if self._by_step.get((claim.run_id, claim.seq)) is claim:
            del self._by_step[claim.run_id, claim.seq]
        self._left()

    def _left(self) -> None:
        self._ended.set()
        self._on_room()

    def _stop(self, claim: Claim) -> None:
        if self.executor is not None and self._by_step.get((claim.run_id, claim.seq)) is claim:
            self.executor.cancel(claim.run_id, claim.seq)

    # --- outcomes -----------------------------------------------------------------------------------------------------

    async def run_reports(self) -> None:
        again = math.inf
        while True:
            with anyio.move_on_after(max(0.0, again - time.monotonic())):
                await self._some.wait()
            self._some = anyio.Event()
            if again <= time.monotonic():
                self.report_refused()
                again = math.inf
            if not await self.report_once():
                again = min(again, time.monotonic() + RETRY_PAUSE)

    def report_refused(self) -> None:
        """Let those be handed in again that their runs' shards refused."""
        self._reports += self._refused
        self._refused.clear()

    async def report_once(self) -> bool:
        """Hand in what is over: first the outcomes, then take off those that were accepted. False when some weren't."""
        async with self._reporting:
            return await self._report_once()

    async def _report_once(self) -> bool:
        chunk = self._next_reports()
        if not chunk:
            return True
        completing = [(claim, body) for claim, body in chunk if body is not None]
        refused: set[int] = set()
        if completing:
            answers = await self._store.send(
                [
                    self._kernel.report_outcome(self._shard_of(claim.run_id), claim.run_id, claim.created, body)
                    for claim, body in completing
                ],
                patience=math.inf,
            )
            for (claim, _), answer in zip(completing, answers, strict=True):
                if isinstance(answer, StoreError):  # the run's shard is broken: the outcome waits here
                    _log.error("run %s doesn't take the outcome of step %d: %s", claim.run_id, claim.seq, answer)
                    refused.add(id(claim))
        done = [claim for claim, _ in chunk if id(claim) not in refused]
        await self._finish(done)
        for claim in done:
            self._forget(claim)
        self._refused += [(claim, body) for claim, body in chunk if id(claim) in refused]
        del self._reports[: len(chunk)]
        if self._reports:
            self._some.set()
        return not refused

    def _next_reports(self) -> list[tuple[Claim, bytes | None]]:
        size = 0
        for count, (_, body) in enumerate(self._reports[:REPORTS]):
            size += len(body or b"")
            if count and size > BYTES:
                return self._reports[:count]
        return self._reports[:REPORTS]

    async def _finish(self, claims: list[Claim]) -> None:
        by_place: dict[Place, list[ClaimRef]] = {}
        for claim in claims:
            by_place.setdefault(claim.place, []).append(claim.on_server())
        calls = [self._kernel.ack_attempts(*place, mine) for place, mine in by_place.items()]
        if calls:
            for answer in await self._store.send(calls, patience=math.inf):
                if isinstance(answer, StoreError):  # its worker is taken for dead later, and the run drops that
                    _log.error("entries can't be taken off a queue: %s", answer)

    # --- signs of life ------------------------------------------------------------------------------------------------

    async def run_signs_of_life(self) -> None:
        interval = min(self._timeout / 4, LONGEST_SILENCE)
        await retry_forever(self.keep_once, _log, "could not extend claims", every=interval)

    async def keep_once(self) -> None:
        """Prove life for all that runs, and stop what is revoked or lost."""
        going = [(place, claims, tolds) for place, claims, tolds in self._chunks(ended=False)]
        if not going:
            return
        calls = [
            self._kernel.extend_claims(
                *place, self.consumer, [claim.on_server(told) for claim, told in zip(claims, tolds, strict=True)]
            )
            for place, claims, tolds in going
        ]
        answers = await self._store.send(calls)
        for (place, claims, tolds), answer in zip(going, answers, strict=True):
            if isinstance(answer, StoreError):
                _log.error("partition %d of queue %s takes no sign of life: %s", place[1], place[0], answer)
                continue
            for claim, told, letter in zip(claims, tolds, answer, strict=True):
                if claim.ended:  # meanwhile
                    continue
                if letter == "k":
                    if told:
                        self._told[place, claim.entry] = told
                elif letter == "r":
                    _log.info("step %s is not wanted any more", claim.step)
                    self._stop(claim)
                    self.report(claim, None)
                else:
                    _log.warning("step %s was given up by others; it is stopped here", claim.step)
                    self._stop(claim)
                    self._forget(claim)

    def _chunks(self, *, ended: bool) -> Iterable[tuple[Place, list[Claim], list[bytes]]]:
        by_place: dict[Place, list[Claim]] = {}
        for claim in self._claims.values():
            if claim.ended == ended:
                by_place.setdefault(claim.place, []).append(claim)
        for place, claims in by_place.items():
            for first in range(0, len(claims), CLAIMS):
                chunk = claims[first : first + CLAIMS]
                yield place, chunk, [self._news(claim) for claim in chunk]

    def _news(self, claim: Claim) -> bytes:
        """What the step told since the server heard of it last."""
        if self.executor is None:
            return b""
        told = bytes(self.executor.details_of(claim.run_id, claim.seq))
        return b"" if told in (self._told.get((claim.place, claim.entry), b""), bytes(NOTHING)) else told

    # --- the dead -----------------------------------------------------------------------------------------------------

    async def run_reaping(self) -> None:
        await retry_forever(self.reap_once, _log, "could not look for dead workers", every=self._timeout / 2)

    async def reap_once(self) -> None:
        """Tell the runs whose workers fell silent that those attempts are over.

        Not while the silence may be the server's: a look that comes late, because the server was away or this process
        stood still, says nothing about the others. They get a time-out to prove life first.
        """
        idle, quiet = round(self._timeout * 1000), round(max(FORGET_AFTER, 3 * self._timeout) * 1000)
        calls: list[Call[Any]] = [self._kernel.expired_claims(*place, idle, quiet, REAPED) for place in self.places]
        answers = await self._store.send(calls)
        now = time.monotonic()
        if now - self._looked > max(0.75 * self._timeout, 0.5 * self._timeout + 1.0):
            self._reaps_from = now + self._timeout + COME_BACK
        self._looked = now
        if now < self._reaps_from:
            return
        for place, answer in zip(self.places, answers, strict=True):
            if isinstance(answer, StoreError):
                _log.error("partition %d of queue %s can't be looked at: %s", place[1], place[0], answer)
                continue
            for dead in answer:
                if dead.consumer == self.consumer or self.has(place, dead.entry):
                    continue  # ours: it was this process that stood still, and its next sign of life says so
                text = f"worker {dead.consumer} died or fell silent for {self._timeout:g} s while it ran the step"
                _log.warning("step %s/%d, attempt %d: %s", dead.run_id, dead.seq, dead.attempt, text)
                claim = Claim(place, dead.entry, dead.run_id, dead.created, dead.seq, dead.attempt, ended=True)
                self._claims[place, dead.entry] = claim
                details = msgspec.Raw(dead.details) if dead.details else NOTHING
                self.reaped += 1
                self.report(
                    claim, Outcome(dead.seq, dead.attempt, 0.0, None, Failure(WORKER_LOST, text), details=details)
                )

    # --- leaving ------------------------------------------------------------------------------------------------------

    async def hand_back(self) -> int:
        """Stop all that runs, and let it begin again elsewhere at once. Gives the number."""
        going = list(self._chunks(ended=False))
        calls: list[Call[Any]] = []
        for place, claims, tolds in going:
            for claim in claims:
                self._stop(claim)
                self._forget(claim)
            mine = [claim.on_server(told) for claim, told in zip(claims, tolds, strict=True)]
            calls.append(self._kernel.requeue_attempts(*place, self.consumer, mine))
        answers = await self._store.send(calls) if calls else []
        return sum(answer for answer in answers if not isinstance(answer, StoreError))
