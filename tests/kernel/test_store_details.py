"""store_details: what running steps have reported last, kept for the attempts after them."""

from __future__ import annotations

import pytest

from streamflow.store.kernel import Batch, Put, Reply
from tests.kernel.support import Shard

pytestmark = pytest.mark.anyio


async def test_the_newest_details_of_each_step_are_kept(shard: Shard) -> None:
    await shard.acquire()
    for value in (b"half", b"more"):
        call = shard.kernel.store_details(0, shard.token, [("r1/1", value), ("r2/7", b"x")])
        assert await shard.do(call) is Reply.OK
    assert await shard.plain("HGETALL", shard.keys.details) == {b"r1/1": b"more", b"r2/7": b"x"}


async def test_empty_details_are_deleted_before_newer_ones_are_stored(shard: Shard) -> None:
    await shard.acquire()
    await shard.do(shard.kernel.store_details(0, shard.token, [("r1/1", b"late"), ("r1/2", b"late")]))
    call = shard.kernel.store_details(0, shard.token, [("r1/1", b""), ("r1/2", b""), ("r1/3", b""), ("r1/2", b"new")])
    for _ in range(2):
        assert await shard.do(call) is Reply.OK
    assert await shard.plain("HGETALL", shard.keys.details) == {b"r1/2": b"new"}


async def test_a_former_owner_stores_nothing(shard: Shard) -> None:
    old = await shard.acquire("one")
    await shard.acquire("two")
    call = shard.kernel.store_details(0, old.token, [("r1/1", b"half")])
    assert await shard.assert_changes_nothing(call) is Reply.FENCED


async def test_a_commit_deletes_them_with_an_empty_put(shard: Shard) -> None:
    await shard.acquire()
    await shard.do(shard.kernel.store_details(0, shard.token, [("r1/1", b"half"), ("r1/2", b"x")]))
    await shard.do(shard.commit(Batch("c1", puts=[Put(shard.keys.details, "r1/1", b"")])))
    assert await shard.plain("HGETALL", shard.keys.details) == {b"r1/2": b"x"}


async def test_wrong_key_types_leave_nothing_half_written(shard: Shard) -> None:
    await shard.acquire()
    call = shard.kernel.store_details(0, shard.token, [("r1/1", b"half")])
    await shard.assert_wrong_types_leave_nothing_half_written(call)
