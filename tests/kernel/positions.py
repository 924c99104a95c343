"""What the tests of groups share: a group in shard 0, a consumer of it, and a log with something in it."""

from __future__ import annotations

from streamflow.store.kernel import Acknowledged, Checkpointed, Claimed, GroupPosition, LogLimits, Reply
from tests.kernel.support import NOW, Shard

IDENTITY = "id-1"
FOREVER = 10**12
"""Bytes or ms that nothing reaches."""


class Group:
    def __init__(self, shard: Shard, name: str = "billing", identity: str = IDENTITY) -> None:
        self.shard = shard
        self.name = name
        self.identity = identity
        self.token = ""

    async def place(self, to: str = "now", *, over: bool = False) -> str:
        return await self.shard.do(self.shard.kernel.place_position(0, self.name, self.identity, to, over=over))

    async def claim(self, holder: str = "one", nonce: str = "n1") -> Claimed:
        """From whoever has it."""
        position = await self.position()
        expected = "" if position is None else position.token
        call = self.shard.kernel.claim_position(0, self.name, self.identity, expected, nonce, holder)
        claimed = await self.shard.do(call)
        if claimed.code is Reply.OK:
            self.token = claimed.token
        return claimed

    async def acknowledge(
        self, offset: str, entries: int = 1, *, token: str = "", release: bool = False
    ) -> Acknowledged:
        token = token or self.token
        call = self.shard.kernel.acknowledge_events(0, self.name, token, offset, entries, release=release)
        return await self.shard.do(call)

    async def position(self) -> GroupPosition | None:
        found = await self.shard.do(self.shard.kernel.peek_positions(0, self.name))
        return found[0] if found else None

    async def waiting(self) -> int:
        position = await self.position()
        assert position is not None
        return position.waiting


async def committed(shard: Shard, count: int) -> list[str]:
    """Commit `count` transitions of `r1`; the ids of their log entries."""
    if not shard.token:
        await shard.acquire()
        await shard.start("r1")
    return [(await shard.advance("r1")).entry for _ in range(count)]


async def log(shard: Shard) -> list[str]:
    return [entry for entry, _ in await shard.stream(shard.keys.log)]


async def trim(
    shard: Shard, offset: str, *, held: int = FOREVER, held_age: int = FOREVER, now: int = NOW
) -> Checkpointed:
    """Two checkpoints: what the first counts is to be trimmed by the second, but for what groups hold."""
    limits = LogLimits(1, FOREVER, held, held_age)
    answer = None
    for _ in range(2):
        answer = await shard.do(
            shard.kernel.checkpoint_views(0, shard.token, offset, b"partial", now, 1, limits, ["flow"])
        )
        await shard.plain("HSET", shard.keys.views, "since", 1)  # as if more had been logged
    assert answer is not None
    return answer
