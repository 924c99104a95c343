"""checkpoint_views: store a shard's part of the views with the log entry that it counts up to; trim the log."""

from __future__ import annotations

from itertools import pairwise

import pytest

from streamflow.store.connection import Call
from streamflow.store.kernel import Checkpointed, LogLimits, Reply
from tests.kernel.support import NOW, Shard

pytestmark = pytest.mark.anyio


async def entries(shard: Shard, count: int) -> list[str]:
    """Commit `count` transitions of `r1`; the ids of their log entries."""
    return [(await shard.advance("r1")).entry for _ in range(count)]


async def ready(shard: Shard) -> None:
    await shard.acquire()
    await shard.start("r1")


NEVER = 10**12
"""An age that no entry gets."""
TRANSITION = 10
"""What each transition counts for here."""


def call(
    shard: Shard,
    offset: str,
    partial: bytes = b"partial",
    *,
    logged: int = 0,
    keep: int = 100,
    age: int = NEVER,
    now: int = NOW,
) -> Call[Checkpointed]:
    """`keep`: how many transitions of `TRANSITION` bytes stay at least; so many times that are twice as many bytes."""
    limits = LogLimits(2 * keep * TRANSITION, age)
    return shard.kernel.checkpoint_views(0, shard.token, offset, partial, now, logged * TRANSITION, limits, ["flow"])


async def checkpoint(shard: Shard, offset: str, partial: bytes = b"partial", **more: int) -> Checkpointed:
    return await shard.do(call(shard, offset, partial, **more))


async def views(shard: Shard) -> dict[str, str]:
    fields = await shard.plain("HGETALL", shard.keys.views)
    return {name.decode(): value.decode() for name, value in fields.items()}


async def log(shard: Shard) -> list[str]:
    return [entry for entry, _ in await shard.stream(shard.keys.log)]


async def test_the_partial_is_stored_with_the_offset_that_it_covers(shard: Shard) -> None:
    await ready(shard)
    first, second, _ = await entries(shard, 3)
    assert await checkpoint(shard, first, b"one") == Checkpointed(Reply.OK, 3, NOW + NEVER // 2)
    assert await checkpoint(shard, second, b"two") == Checkpointed(Reply.OK, 3, NOW + NEVER // 2)
    stored = await views(shard)
    assert (stored["offset"], stored["partial"]) == (second, "two")


async def test_the_first_fold_is_the_first_base(shard: Shard) -> None:
    await ready(shard)
    (first,) = await entries(shard, 1)
    await checkpoint(shard, first, b"one")
    (second,) = await entries(shard, 1)
    await checkpoint(shard, second, b"two")
    stored = await views(shard)
    assert (stored["base_offset"], stored["base"]) == (first, "one")


async def test_a_fold_that_is_sent_again_changes_nothing(shard: Shard) -> None:
    await ready(shard)
    for _ in range(6):
        ids = await entries(shard, 2)
        again = call(shard, ids[-1], ids[-1].encode(), logged=2, keep=3)
        first = await shard.do(again)
        assert await shard.assert_changes_nothing(again) == first


async def test_an_offset_behind_the_stored_one_is_stale_and_changes_nothing(shard: Shard) -> None:
    await ready(shard)
    first, second = await entries(shard, 2)
    await checkpoint(shard, second)
    answer = await shard.assert_changes_nothing(call(shard, first, b"old"))
    assert answer.code is Reply.STALE


@pytest.mark.parametrize(("older", "newer"), [("9-0", "10-0"), ("5-9", "5-10")])
async def test_offsets_are_compared_as_numbers(shard: Shard, older: str, newer: str) -> None:
    await shard.acquire()
    for entry in (older, newer):
        await shard.plain("XADD", shard.keys.log, entry, "r1", "transition")
    assert (await checkpoint(shard, older)).code is Reply.OK
    assert (await checkpoint(shard, newer)).code is Reply.OK
    assert (await checkpoint(shard, older)).code is Reply.STALE


async def test_a_part_that_counts_what_the_server_has_lost_is_refused(shard: Shard) -> None:
    await ready(shard)
    first, second = await entries(shard, 2)
    await shard.plain("XDEL", shard.keys.log, second)
    answer = await shard.assert_changes_nothing(call(shard, second, b"counts too much"))
    assert answer.code is Reply.BEHIND
    assert (await checkpoint(shard, first)).code is Reply.OK
    await shard.plain("XTRIM", shard.keys.log, "MAXLEN", 0)
    assert (await checkpoint(shard, first)).code is Reply.OK, "what is stored already was trimmed, not lost"


async def test_a_stale_owner_is_fenced_and_changes_nothing(shard: Shard) -> None:
    await ready(shard)
    old = shard.token
    (first,) = await entries(shard, 1)
    await shard.acquire("two")
    new, shard.token = shard.token, old
    answer = await shard.assert_changes_nothing(call(shard, first))
    shard.token = new
    assert answer.code is Reply.FENCED


async def test_base_and_the_log_behind_it_always_make_the_partial(shard: Shard) -> None:
    """The partial here is the number of entries counted, so what a rebuild would find can be checked at each step."""
    await ready(shard)
    counted, keep, lengths = 0, 5, []
    for size in (1, 3, 2, 7, 1, 1, 1, 4, 12, 1, 1, 6, 3, 2):
        ids = await entries(shard, size)
        counted += size
        folded = await checkpoint(shard, ids[-1], str(counted).encode(), logged=size, keep=keep)
        left, stored = await log(shard), await views(shard)
        assert folded.entries == len(left)
        behind = [
            entry
            for entry in left
            if tuple(map(int, entry.split("-"))) > tuple(map(int, stored["base_offset"].split("-")))
        ]
        assert int(stored["base"]) + len(behind) == counted
        lengths.append(len(left))
        assert len(left) >= min(counted, keep)
    assert max(lengths) < 4 * keep
    assert lengths != sorted(lengths), "nothing was trimmed"


async def test_what_is_trimmed_is_never_ahead_of_the_offset(shard: Shard) -> None:
    await ready(shard)
    ids = await entries(shard, 4)
    for entry in ids[:3]:
        await checkpoint(shard, entry, logged=1, keep=1)
    assert await log(shard) == ids[-len(await log(shard)) :]
    assert ids[3] in await log(shard)


async def test_many_small_and_few_large_entries_take_as_much(shard: Shard) -> None:
    """The log is bounded by what was logged, not by the number of entries."""
    await ready(shard)
    counts: list[int] = []
    for size in (1, 50):
        (first,) = await entries(shard, 1)
        await checkpoint(shard, first, logged=10_000, keep=100)
        for _ in range(400 // size):
            (entry,) = await entries(shard, 1)
            await checkpoint(shard, entry, logged=size, keep=100)
        counts.append(len(await log(shard)))
    many, few = counts
    assert 100 <= many <= 202
    assert 2 <= few <= 6


async def test_an_old_log_goes_although_nothing_is_committed(shard: Shard) -> None:
    await ready(shard)
    (entry,) = await entries(shard, 1)
    age = 1000
    first = await checkpoint(shard, entry, logged=1, age=age)
    assert first == Checkpointed(Reply.OK, 1, NOW + age // 2)
    early = await checkpoint(shard, entry, age=age, now=NOW + age // 2 - 1)
    assert early == first, "not before its time"
    late = await checkpoint(shard, entry, age=age, now=NOW + age // 2)
    assert late == Checkpointed(Reply.OK, 0, None), "the log is empty, so there is nothing to come back for"
    assert (await views(shard))["base"] == "partial"


async def test_no_entry_gets_older_than_the_limit(shard: Shard) -> None:
    """Entry and checkpoint in turns, and the clock in small steps: each entry is gone in time, and not too early."""
    await ready(shard)
    age, now, written = 1000, NOW, dict[str, int]()
    for _ in range(40):
        now += 100
        (entry,) = await entries(shard, 1)
        written[entry] = now
        await checkpoint(shard, entry, logged=1, age=age, now=now)
        left = await log(shard)
        assert all(written[known] > now - age for known in left)
        assert {known for known, at in written.items() if at > now - age // 2} <= set(left)


async def test_a_clock_that_was_set_back_trims_too(shard: Shard) -> None:
    await ready(shard)
    ids = await entries(shard, 2)
    await checkpoint(shard, ids[0], logged=1, age=1000)
    answer = await checkpoint(shard, ids[1], logged=1, age=1000, now=NOW - 5000)
    assert answer == Checkpointed(Reply.OK, 1, NOW - 5000 + 500)


async def test_one_call_removes_a_bounded_number_of_entries(real_shard: Shard) -> None:
    shard = real_shard
    await shard.acquire()
    count = 12_000
    for first in range(1, count + 1, 1000):
        adds = [Call.plain("XADD", shard.keys.log, f"5-{first + n}", "r", "x" * 30) for n in range(1000)]
        await shard.store.send(adds)
    await checkpoint(shard, "5-11999")
    await shard.plain("XADD", shard.keys.log, "6-1", "r", "x")
    lengths, again = [count + 1], 0
    while again == 0:
        answer = await checkpoint(shard, "6-1", logged=1000)
        assert answer.again is not None
        again = answer.again
        lengths.append(answer.entries)
    assert len(lengths) == 4
    assert max(before - after for before, after in pairwise(lengths)) <= 5_000
    assert await log(shard) == ["5-12000", "6-1"]
    assert again == NOW + NEVER // 2


async def test_a_damaged_mark_stops_no_checkpoint(shard: Shard) -> None:
    await ready(shard)
    (entry,) = await entries(shard, 1)
    await checkpoint(shard, entry)
    await shard.plain("HSET", shard.keys.views, "trim", "x", "trimming", "1", "forget", "?")
    assert (await checkpoint(shard, entry)).code is Reply.OK


async def test_entries_of_one_millisecond_are_trimmed_up_to_the_base_only(shard: Shard) -> None:
    await shard.acquire()
    for number in range(1, 6):
        await shard.plain("XADD", shard.keys.log, f"5-{number}", "r1", "transition")
    await checkpoint(shard, "5-2", keep=3)
    for number in range(6, 9):
        await shard.plain("XADD", shard.keys.log, f"5-{number}", "r1", "transition")
    assert (await checkpoint(shard, "5-7", logged=3, keep=3)).entries == 6
    assert await log(shard) == ["5-3", "5-4", "5-5", "5-6", "5-7", "5-8"]


async def test_the_oldest_open_runs_of_each_workflow_are_kept_with_their_start(shard: Shard) -> None:
    await shard.acquire()
    for age, run in enumerate(("first", "second", "third")):
        await shard.start(run, now=NOW + age)
    await shard.plain("XADD", shard.keys.log, "1-1", "first", "transition")
    await shard.start("other", now=NOW + 9, workflow="slow")
    limits = LogLimits(1000, NEVER)
    names = ["flow", "slow", "none"]
    await shard.do(shard.kernel.checkpoint_views(0, shard.token, "1-1", b"", NOW, 0, limits, names, oldest=2))
    lines = (await views(shard))["oldest"].split("\n")
    assert lines == [f"first {NOW} flow", f"second {NOW + 1} flow", f"other {NOW + 9} slow"]


async def test_without_open_runs_the_oldest_are_none(shard: Shard) -> None:
    await shard.acquire()
    await shard.plain("XADD", shard.keys.log, "1-1", "first", "transition")
    await checkpoint(shard, "1-1")
    assert (await views(shard))["oldest"] == ""


async def test_wrong_key_types_leave_nothing_half_written(shard: Shard) -> None:
    await ready(shard)
    ids = await entries(shard, 3)
    await checkpoint(shard, ids[0], keep=1)
    await shard.assert_wrong_types_leave_nothing_half_written(call(shard, ids[-1], logged=2, keep=1))
