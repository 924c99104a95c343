"""acquire_shard: become a shard's owner, if its owner is still the one that the caller saw."""

from __future__ import annotations

import pytest

from streamflow.store.kernel import Batch, Reply
from tests.kernel.support import FUTURE, NOW, Shard

pytestmark = pytest.mark.anyio


async def read_new(shard: Shard) -> list[bytes]:
    """Ids of the runs whose messages the present owner reads."""
    page = await shard.do(shard.kernel.read_inbox(0, shard.token, "0-0", 100, 1_000_000))
    return [fields[b"run"] for _, fields in page.entries]


async def test_a_shard_that_nobody_had_gets_an_owner_with_the_clock_as_epoch(shard: Shard) -> None:
    taken = await shard.do(shard.kernel.acquire_shard(0, "", "nonce", "member", NOW))
    assert (taken.code, taken.token, taken.clock) == (Reply.OK, f"{NOW}:nonce", NOW)
    owner = {
        "token": f"{NOW}:nonce",
        "holder": "member",
        "clock": str(NOW),
        "delivered": "",
        "final": "",
    }
    assert await shard.owner() == owner


async def test_the_next_owner_learns_what_the_last_one_had_read(shard: Shard) -> None:
    assert (await shard.acquire("one")).delivered == ""
    await shard.start("r1", "r2")
    await shard.read()
    entries = [entry_id for entry_id, _ in await shard.stream(shard.keys.inbox)]
    await shard.start("r3")
    take = shard.kernel.acquire_shard(0, shard.token, "two", "member-two", NOW)
    assert [(await shard.do(take)).delivered for _ in range(2)] == [entries[-1]] * 2


async def test_what_was_in_hand_stays_known_until_an_owner_is_through(shard: Shard) -> None:
    """Whatever the owners between have read: one that died before it read anything, and one that handed over."""
    await shard.acquire("one")
    await shard.start("r1", "r2")
    await shard.read()
    last = [entry_id for entry_id, _ in await shard.stream(shard.keys.inbox)][-1]
    assert (await shard.acquire("two")).delivered == last
    assert (await shard.acquire("three")).delivered == last
    await shard.do(shard.kernel.release_shard(0, shard.token, delivered=last))
    assert (await shard.acquire("four")).delivered == last
    await shard.do(shard.kernel.release_shard(0, shard.token))
    assert (await shard.acquire("five")).delivered == ""
    await shard.read()
    await shard.do(shard.kernel.release_shard(0, shard.token))
    assert (await shard.acquire("six")).delivered == "", "read, and handed over"


@pytest.mark.parametrize(
    ("told", "read", "delivered"), [("99-1", "9-9", "99-1"), ("9-10", "9-9", "9-10"), ("9-9", "10-0", "10-0")]
)
async def test_the_later_one_of_two_messages_counts(shard: Shard, told: str, read: str, delivered: str) -> None:
    await shard.acquire("one")
    await shard.do(shard.kernel.release_shard(0, shard.token, delivered=told))
    assert (await shard.acquire("two")).delivered == told
    await shard.plain("SET", shard.keys.kept, f"0 {read}")
    assert (await shard.acquire("three")).delivered == delivered


async def test_the_next_owner_learns_which_commit_was_the_last(shard: Shard) -> None:
    assert (await shard.acquire("one")).final == ""
    await shard.do(shard.commit(Batch("c7", plans=[("r1", NOW)])))
    take = shard.kernel.acquire_shard(0, shard.token, "two", "member-two", NOW)
    assert [(await shard.do(take)).final for _ in range(2)] == ["c7"] * 2


async def test_an_acquire_that_is_sent_again_has_the_same_answer(shard: Shard) -> None:
    await shard.start("r1")
    take = shard.kernel.acquire_shard(0, "", "nonce", "member", NOW)
    first = await shard.do(take)
    shard.token = first.token
    await read_new(shard)
    assert await shard.assert_changes_nothing(take) == first


async def test_an_owner_that_the_caller_did_not_see_is_a_conflict_that_names_it(shard: Shard) -> None:
    await shard.acquire("one")
    answer = await shard.assert_changes_nothing(shard.kernel.acquire_shard(0, "", "two", "member-two", NOW))
    assert (answer.code, answer.token, answer.holder) == (Reply.CONFLICT, f"{NOW}:one", "member-one")


async def test_an_expected_owner_of_a_shard_that_has_none_is_a_conflict(shard: Shard) -> None:
    answer = await shard.assert_changes_nothing(shard.kernel.acquire_shard(0, "5:gone", "two", "member", NOW))
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
    assert await read_new(shard) == [b"r1", b"r2"]
    await shard.start("r3")
    await shard.acquire("two")
    assert await read_new(shard) == [b"r1", b"r2", b"r3"]


async def test_what_the_old_owner_had_committed_does_not_come_again(shard: Shard) -> None:
    await shard.acquire("one")
    await shard.start("r1", "r2")
    (first, _), _ = await shard.stream(shard.keys.inbox)
    await shard.do(shard.commit(Batch("c", acks=[first])))
    await shard.acquire("two")
    assert await read_new(shard) == [b"r2"]


async def test_the_old_owner_reads_nothing_more(shard: Shard) -> None:
    await shard.acquire("one")
    old = shard.token
    await shard.start("r1")
    await shard.acquire("two")
    page = await shard.assert_changes_nothing(shard.kernel.read_inbox(0, old, "0-0", 100, 1_000_000))
    assert (page.code, page.entries) == (Reply.FENCED, [])
    assert await read_new(shard) == [b"r1"]


async def test_an_owner_that_acquires_its_shard_again_reads_uncommitted_entries(shard: Shard) -> None:
    await shard.acquire("one")
    await shard.start("r1")
    assert await read_new(shard) == [b"r1"]
    await shard.acquire("two")
    assert await shard.kept() == "", "nothing counts as read"
    assert await read_new(shard) == [b"r1"]


async def test_the_last_commit_of_the_old_owner_is_no_duplicate_for_the_next(shard: Shard) -> None:
    await shard.acquire("one")
    await shard.do(shard.commit(Batch("same id")))
    await shard.acquire("two")
    assert (await shard.do(shard.commit(Batch("same id")))).code is Reply.OK


async def test_wrong_key_types_leave_nothing_half_written(shard: Shard) -> None:
    await shard.acquire("one")
    take = shard.kernel.acquire_shard(0, shard.token, "two", "member", NOW)
    await shard.assert_wrong_types_leave_nothing_half_written(take)


async def test_the_last_outbox_numbers_of_eight_owners_are_noted(shard: Shard) -> None:
    await shard.acquire("zero")
    assert "sent" not in await shard.owner()
    for epoch in range(10):
        await shard.plain("XADD", shard.keys.outbox, f"{epoch}-5", "messages", "x")
        await shard.plain("XADD", shard.keys.outbox, f"{epoch}-7", "messages", "x")
        await shard.plain("XTRIM", shard.keys.outbox, "MAXLEN", 0)
        for again in range(2):  # an owner that sends nothing takes no place
            await shard.acquire(f"{epoch}-{again}")
    assert (await shard.owner())["sent"] == "9-7 8-7 7-7 6-7 5-7 4-7 3-7 2-7"
