"""acquire_shard: become a shard's owner, if its owner is still the one that the caller saw."""

from __future__ import annotations

import anyio
import pytest

from streamflow.store.kernel import Batch, Reply
from tests.kernel.support import FUTURE, NOW, Shard, until

pytestmark = pytest.mark.anyio


async def read_new(shard: Shard, group: str) -> list[bytes]:
    """Ids of the runs whose messages `>` gives to the group."""
    return [fields["run"] for _, fields in await shard.read(group)]


async def test_a_shard_that_nobody_had_gets_an_owner_with_the_clock_as_epoch(shard: Shard) -> None:
    taken = await shard.do(shard.kernel.acquire_shard(0, "", "nonce", "member", "group", NOW))
    assert (taken.code, taken.token, taken.clock) == (Reply.OK, f"{NOW}:nonce", NOW)
    owner = {
        "token": f"{NOW}:nonce",
        "holder": "member",
        "group": "group",
        "clock": str(NOW),
        "delivered": "",
        "final": "",
    }
    assert await shard.owner() == owner


async def test_the_next_owner_learns_what_the_last_one_had_read(shard: Shard) -> None:
    assert (await shard.acquire("one")).delivered == ""
    await shard.start("r1", "r2")
    await shard.read("group-one")
    entries = [entry_id for entry_id, _ in await shard.stream(shard.keys.inbox)]
    await shard.start("r3")
    take = shard.kernel.acquire_shard(0, shard.token, "two", "member-two", "group-two", NOW)
    assert [(await shard.do(take)).delivered for _ in range(2)] == [entries[-1]] * 2


async def test_the_next_owner_learns_which_commit_was_the_last(shard: Shard) -> None:
    assert (await shard.acquire("one")).final == ""
    await shard.do(shard.commit(Batch("c7", plans=[("r1", NOW)])))
    take = shard.kernel.acquire_shard(0, shard.token, "two", "member-two", "group-two", NOW)
    assert [(await shard.do(take)).final for _ in range(2)] == ["c7"] * 2


async def test_an_acquire_that_is_sent_again_has_the_same_answer(shard: Shard) -> None:
    await shard.start("r1")
    take = shard.kernel.acquire_shard(0, "", "nonce", "member", "group", NOW)
    first = await shard.do(take)
    await read_new(shard, "group")
    assert await shard.assert_changes_nothing(take) == first


async def test_an_owner_that_the_caller_did_not_see_is_a_conflict_that_names_it(shard: Shard) -> None:
    await shard.acquire("one")
    answer = await shard.assert_changes_nothing(
        shard.kernel.acquire_shard(0, "", "two", "member-two", "group-two", NOW)
    )
    assert (answer.code, answer.token, answer.holder) == (Reply.CONFLICT, f"{NOW}:one", "member-one")


async def test_an_expected_owner_of_a_shard_that_has_none_is_a_conflict(shard: Shard) -> None:
    answer = await shard.assert_changes_nothing(shard.kernel.acquire_shard(0, "5:gone", "two", "member", "group", NOW))
    assert (answer.code, answer.token, answer.holder) == (Reply.CONFLICT, "", "")


async def test_the_epoch_grows_even_when_the_clock_stands_still(shard: Shard) -> None:
    tokens = [(await shard.acquire(nonce)).token for nonce in ("one", "two", "three")]
    assert tokens == [f"{NOW}:one", f"{NOW + 1}:two", f"{NOW + 2}:three"]


async def test_the_epoch_grows_with_the_clock_even_if_the_stored_owner_was_lost(shard: Shard) -> None:
    await shard.acquire("one", now=NOW)
    await shard.plain("DEL", shard.keys.owner)
    taken = await shard.acquire("two", now=NOW + 1000)
    assert taken.token == f"{NOW + 1000}:two"


async def test_the_clock_never_goes_behind_what_the_last_owner_stored(shard: Shard) -> None:
    await shard.acquire("one", now=FUTURE)
    assert (await shard.acquire("two", now=NOW)).clock == FUTURE
    assert (await shard.owner())["clock"] == str(FUTURE)


async def test_what_the_old_owner_had_read_is_new_for_the_next_one(shard: Shard) -> None:
    await shard.acquire("one")
    await shard.start("r1", "r2")
    assert await read_new(shard, "group-one") == [b"r1", b"r2"]
    await shard.start("r3")
    await shard.acquire("two")
    assert await read_new(shard, "group-two") == [b"r1", b"r2", b"r3"]


async def test_what_the_old_owner_had_committed_does_not_come_again(shard: Shard) -> None:
    await shard.acquire("one")
    await shard.start("r1", "r2")
    (first, _), _ = await shard.stream(shard.keys.inbox)
    await shard.do(shard.commit(Batch("c", acks=[first])))
    await shard.acquire("two")
    assert await read_new(shard, "group-two") == [b"r2"]


async def test_the_old_owners_group_is_deleted_so_it_reads_nothing_more(shard: Shard) -> None:
    await shard.acquire("one")
    await shard.acquire("two")
    assert await shard.groups(shard.keys.inbox) == ["group-two"]


async def test_an_owner_that_acquires_its_shard_again_reads_uncommitted_entries(shard: Shard) -> None:
    await shard.do(shard.kernel.acquire_shard(0, "", "one", "member", "group", NOW))
    await shard.start("r1")
    await read_new(shard, "group")
    again = await shard.do(shard.kernel.acquire_shard(0, f"{NOW}:one", "two", "member", "group", NOW))
    assert again.code is Reply.OK
    assert await read_new(shard, "group") == [b"r1"]


async def test_a_group_that_outlived_the_owner_record_is_no_obstacle(shard: Shard) -> None:
    await shard.acquire("one")
    await shard.start("r1")
    await read_new(shard, "group-one")
    await shard.plain("DEL", shard.keys.owner)
    taken = await shard.do(shard.kernel.acquire_shard(0, "", "next", "member", "group-one", NOW))
    assert taken.code is Reply.OK
    assert await read_new(shard, "group-one") == [b"r1"]


async def test_the_last_commit_of_the_old_owner_is_no_duplicate_for_the_next(shard: Shard) -> None:
    await shard.acquire("one")
    await shard.do(shard.commit(Batch("same id")))
    await shard.acquire("two")
    assert (await shard.do(shard.commit(Batch("same id")))).code is Reply.OK


async def test_a_blocked_read_of_the_old_owner_ends_and_swallows_nothing(real_shard: Shard) -> None:
    shard = real_shard
    await shard.acquire("one")
    old = shard.store.link()
    refusals: list[str] = []

    async def read_as_a_paused_owner() -> None:
        command = ("XREADGROUP", "GROUP", "group-one", "me", "BLOCK", 20_000, "STREAMS", shard.keys.inbox, ">")
        refusals.extend(str(reply) for reply in await old.exchange([command], wait=20))

    async def blocked() -> bool:
        return b"cmd=xreadgroup" in await shard.plain("CLIENT", "LIST")

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read_as_a_paused_owner)
            await until(blocked, "the old owner's read is blocked")
            await shard.acquire("two")
    assert len(refusals) == 1
    assert "NOGROUP" in refusals[0]
    await shard.start("r1")
    assert await read_new(shard, "group-two") == [b"r1"]


async def test_wrong_key_types_leave_nothing_half_written(shard: Shard) -> None:
    await shard.acquire("one")
    take = shard.kernel.acquire_shard(0, shard.token, "two", "member", "group-two", NOW)
    await shard.assert_wrong_types_leave_nothing_half_written(take)
