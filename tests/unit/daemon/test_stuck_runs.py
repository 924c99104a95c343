"""Stuck runs are tried again after a takeover in portions: few of a shard are in memory at once, none is left out."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from streamflow.daemon import stuck_runs as module
from streamflow.daemon.shard import OwnedShard
from streamflow.daemon.stuck_runs import StuckRuns
from streamflow.errors import StoreError
from streamflow.model.record import Status
from streamflow.store.connection import Call
from tests.support.fakes import FakeOwner, FakeStore, context, owned
from tests.support.waiting import until

pytestmark = pytest.mark.anyio


class Owner(FakeOwner):
    """Takes what waits when it is woken, but for shards that the server refuses."""

    def __init__(self, *shards: OwnedShard) -> None:
        super().__init__(*shards)
        self.tried: list[str] = []
        self.most = 0

    def wake(self, shard: OwnedShard) -> None:
        self.most = max(self.most, len(shard.inputs))
        if not shard.broken:
            asyncio.get_running_loop().call_later(0.001, self._take, shard)

    def _take(self, shard: OwnedShard) -> None:
        self.tried += shard.inputs
        shard.inputs.clear()


def listed(call: Call[Any], count: int = 1000) -> tuple[bytes, list[tuple[bytes, float]]]:
    first, size = int(call.args[2]), int(call.args[-1])
    following = first + size if first + size < count else 0
    return b"%d" % following, [(b"%d" % n, 1.0) for n in range(first, min(first + size, count))]


class Bench:
    def __init__(self) -> None:
        self.shard, self.other = owned(1), owned(2)
        self.shard.stuck[Status.STUCK, "flow"], self.other.stuck[Status.STUCK, "flow"] = 32, 960
        self.owner: Any = Owner(self.shard, self.other)
        self.store = FakeStore(ZSCAN=listed)
        self.stuck = StuckRuns(context(self.store, shards=8), self.owner)

    async def turn(self) -> None:
        with anyio.fail_after(10):
            await self.stuck.run_once()
            while any(shard.inputs and not shard.broken for shard in (self.shard, self.other)):
                await anyio.lowlevel.checkpoint()  # the last ones are taken


FIRST = [str(n) for n in range(32, 1000)]
SECOND = [str(n) for n in range(960, 1000)]


async def test_each_is_tried_and_few_wait_in_memory() -> None:
    it = Bench()
    await it.turn()
    assert it.owner.tried == FIRST + SECOND
    assert it.owner.most <= module.PAGE
    assert it.shard.stuck == it.other.stuck == {}


async def test_a_shard_that_is_refused_delays_no_other() -> None:
    """It goes on when the server takes it again."""
    it = Bench()
    it.shard.broken = "WRONGTYPE"
    await it.turn()
    assert it.owner.tried == SECOND
    it.shard.broken = ""
    await it.turn()
    assert it.owner.tried == SECOND + FIRST


async def test_a_shard_that_is_lost_meanwhile_is_left() -> None:
    it = Bench()

    def lost(call: Call[Any]) -> Any:
        it.shard.dropped = True
        return listed(call)

    it.store.answers["ZSCAN"] = lost
    await it.turn()
    assert len(it.store.sent("ZSCAN")) == 2, "a page of each"


async def test_a_listing_that_cannot_be_read_delays_no_other_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read again after a pause."""
    it = Bench()
    it.store.answers["ZSCAN"] = lambda call: StoreError("WRONGTYPE") if "/1}" in call.args[1] else listed(call)
    for _ in range(2):
        await it.turn()
    assert it.owner.tried == SECOND
    assert sum("/1}" in call.args[1] for call in it.store.sent("ZSCAN")) == 1
    it.store.answers["ZSCAN"] = listed
    monkeypatch.setattr(it.stuck._troubles, "waits", lambda *_: False)
    await it.turn()
    assert it.owner.tried == SECOND + FIRST


async def test_the_loop_has_a_turn_as_soon_as_a_heartbeat_finds_something() -> None:
    it = Bench()

    async def all_tried() -> bool:
        return it.owner.tried == FIRST + SECOND

    async with anyio.create_task_group() as loops:
        loops.start_soon(it.stuck.run)
        await anyio.wait_all_tasks_blocked()
        assert it.store.calls == [], "nobody has looked"
        it.stuck.look()
        await until(all_tried)
        reads = len(it.store.calls)
        it.stuck.look()
        await anyio.wait_all_tasks_blocked()
        assert len(it.store.calls) == reads, "there is nothing left to read"
        loops.cancel_scope.cancel()


@pytest.mark.parametrize("what", ["broken", "dropped"])
async def test_a_shard_for_which_nothing_begins_gives_the_loop_no_turn(what: str) -> None:
    it = Bench()
    for shard in (it.shard, it.other):
        setattr(shard, what, True)
    it.stuck.look()
    assert not it.stuck._wanted.is_set()
