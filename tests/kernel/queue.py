"""One partition of a queue, for the tests of its verbs: attempts, reads as a worker does them, and what is there.

Owns: no test. The partition is that of shard 0 of the fixture's namespace; `enqueue` commits as the shard's owner.
"""

from __future__ import annotations

from typing import Any

from streamflow.store.kernel import (
    WORKERS,
    Attempt,
    Batch,
    ClaimRef,
    ExpiredClaim,
    ExpiredClaims,
    QueuePeek,
    Reply,
    Settlement,
)
from tests.kernel.support import Shard

OF_QUEUES = (
    "create_group",
    "extend_claims",
    "expired_claims",
    "restart_claims",
    "requeue_attempts",
)
"""The verbs whose keys are all a queue partition's."""


class QueuePartition:
    def __init__(self, shard: Shard, queue: str = "gpu") -> None:
        self.shard = shard
        self.kernel = shard.kernel
        self.keys = shard.namespace.queue(queue, 0)
        self.at = (queue, 0)
        self.last = ""

    def step(
        self,
        run: str = "r1",
        seq: int = 1,
        attempt: int = 1,
        details: bytes = b"",
        body: bytes = b"body",
        created: int = 7,
    ) -> Attempt:
        return Attempt(self.at[0], f"{run}/{seq}", f"{created} {attempt}", body, details)

    def revoke(self, run: str = "r1", seq: int = 1, attempt: int = 1, created: int = 7) -> Attempt:
        return self.step(run, seq, attempt, created=created, body=b"")

    async def enqueue(self, *attempts: Attempt) -> None:
        if not self.shard.token:
            await self.shard.acquire()
        committed = await self.shard.do(self.shard.commit(Batch(self.shard.commit_id(), attempts=list(attempts))))
        assert committed.code is Reply.OK

    async def read(self, consumer: str = "one", count: int = 10) -> list[str]:
        """Take new entries as a worker; gives their ids."""
        words = ("XREADGROUP", "GROUP", WORKERS, consumer, "COUNT", count, "STREAMS", self.keys.stream, ">")
        reply: Any = await self.shard.plain(*words)
        return [entry.decode() for _, entries in reply or [] for entry, _ in entries]

    async def taken(self, *attempts: Attempt, consumer: str = "one") -> list[ClaimRef]:
        """Enqueue attempts and read them as a worker: the claims on them."""
        await self.enqueue(*attempts)
        entries = await self.read(consumer)
        return [ClaimRef(entry, one.step) for entry, one in zip(entries, attempts, strict=True)]

    async def extend(self, *claims: ClaimRef, consumer: str = "one") -> str:
        return await self.shard.do(self.kernel.extend_claims(*self.at, consumer, claims))

    async def expired(
        self, idle_ms: int = 0, quiet_ms: int = 3_600_000, limit: int = 100, after: str = ""
    ) -> list[ExpiredClaim]:
        """Also gives in `last` behind which entry there are more."""
        found = await self.look(idle_ms, quiet_ms, limit, after)
        self.last = found.last
        return found.claims

    async def look(
        self, idle_ms: int = 0, quiet_ms: int = 3_600_000, limit: int = 100, after: str = ""
    ) -> ExpiredClaims:
        return await self.shard.do(self.kernel.expired_claims(*self.at, idle_ms, quiet_ms, limit, after))

    async def settle(self, *claims: ClaimRef, body: bytes = b"") -> str:
        """Remove entries; with a `body` it is the outcome of each."""
        ended = [Settlement(claim.entry, claim.step, body) for claim in claims]
        return await self.shard.do(self.kernel.settle_attempts(*self.at, ended))

    async def peek(self) -> QueuePeek:
        [found] = await self.shard.do(self.kernel.peek_queues(0, [self.at[0]]))
        return found

    async def requeue(self, *claims: ClaimRef, consumer: str = "one") -> int:
        return await self.shard.do(self.kernel.requeue_attempts(*self.at, consumer, claims))

    async def entries(self) -> list[dict[str, bytes]]:
        return [fields for _, fields in await self.shard.stream(self.keys.stream)]

    async def places(self) -> dict[str, str]:
        fields: dict[bytes, bytes] = await self.shard.plain("HGETALL", self.keys.steps)
        return {step.decode(): place.decode() for step, place in fields.items()}

    async def details(self) -> dict[str, bytes]:
        fields: dict[bytes, bytes] = await self.shard.plain("HGETALL", self.keys.details)
        return {entry.decode(): told for entry, told in fields.items()}

    async def pending(self) -> list[tuple[str, str]]:
        """(entry, consumer) of all that is pending."""
        # In a script, because redis-py takes the answer of XPENDING for its other form.
        ask = "return redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 100)"
        reply: Any = await self.shard.plain("EVAL", ask, 1, self.keys.stream, WORKERS)
        return [(entry.decode(), consumer.decode()) for entry, consumer, *_ in reply]

    async def is_empty(self) -> bool:
        return not (await self.entries() or await self.places() or await self.details() or await self.pending())
