"""release_shard: give a shard back, so that the next owner does not have to wait until this one is considered dead."""

from __future__ import annotations

import pytest

from streamflow.store.kernel import Batch, LentStep, Reply
from tests.kernel.support import NOW, Shard

pytestmark = pytest.mark.anyio


async def test_a_released_shard_has_an_epoch_but_no_holder(shard: Shard) -> None:
    await shard.acquire("one")
    assert await shard.do(shard.kernel.release_shard(0, shard.token)) is Reply.OK
    owner = await shard.owner()
    assert (owner["token"], owner["holder"]) == (f"{NOW}:", "")


async def test_released_twice_is_fenced_and_changes_nothing(shard: Shard) -> None:
    await shard.acquire("one")
    release = shard.kernel.release_shard(0, shard.token)
    await shard.do(release)
    assert await shard.assert_changes_nothing(release) is Reply.FENCED


async def test_the_shard_of_another_owner_stays_with_it(shard: Shard) -> None:
    old = await shard.acquire("one")
    await shard.acquire("two")
    assert await shard.assert_changes_nothing(shard.kernel.release_shard(0, old.token)) is Reply.FENCED


async def test_a_shard_that_nobody_ever_had_can_not_be_released(shard: Shard) -> None:
    assert await shard.assert_changes_nothing(shard.kernel.release_shard(0, f"{NOW}:one")) is Reply.FENCED


async def test_after_the_release_the_old_token_commits_nothing(shard: Shard) -> None:
    await shard.acquire("one")
    await shard.do(shard.kernel.release_shard(0, shard.token))
    answer = await shard.assert_changes_nothing(shard.commit(Batch("late")))
    assert answer.code is Reply.FENCED


async def test_the_next_owner_takes_the_released_shard_with_a_higher_epoch(shard: Shard) -> None:
    await shard.acquire("one")
    await shard.do(shard.kernel.release_shard(0, shard.token))
    taken = await shard.do(shard.kernel.acquire_shard(0, f"{NOW}:", "two", "member", NOW))
    assert (taken.code, taken.token) == (Reply.OK, f"{NOW + 1}:two")


async def test_steps_that_go_on_are_recorded_with_their_host(shard: Shard) -> None:
    await shard.acquire("one")
    lent = [LentStep("r1/1", "one", NOW, 2), LentStep("r2/0", "-", 0, 1)]
    assert await shard.do(shard.kernel.release_shard(0, shard.token, lent)) is Reply.OK
    recorded = {b"r1/1": f"one {NOW} 2 wanted".encode(), b"r2/0": b"- 0 1 wanted"}
    assert await shard.plain("HGETALL", shard.keys.steps) == recorded


async def test_many_of_them_are_recorded_before(shard: Shard) -> None:
    await shard.acquire("one")
    first = shard.kernel.release_shard(0, shard.token, [LentStep("r1/1", "one", NOW, 2)], last=False)
    assert await shard.do(first) is Reply.OK
    assert (await shard.owner())["token"] == shard.token
    assert await shard.do(shard.kernel.release_shard(0, shard.token, [LentStep("r1/2", "one", NOW, 2)])) is Reply.OK
    assert set(await shard.plain("HGETALL", shard.keys.steps)) == {b"r1/1", b"r1/2"}
    assert await shard.assert_changes_nothing(first) is Reply.FENCED


async def test_wrong_key_types_leave_nothing_half_written(shard: Shard) -> None:
    await shard.acquire("one")
    await shard.assert_wrong_types_leave_nothing_half_written(shard.kernel.release_shard(0, shard.token))
