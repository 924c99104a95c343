"""checkpoint_views: store a shard's part of the views with the log entry that it counts up to; trim the log."""

from __future__ import annotations

import pytest

from streamflow.store.kernel import Checkpointed, Reply
from tests.kernel.support import NOW, Shard

pytestmark = pytest.mark.anyio


async def entries(shard: Shard, count: int) -> list[str]:
    """Commit `count` transitions of `r1`; the ids of their log entries."""
    return [(await shard.advance("r1")).entry for _ in range(count)]


async def ready(shard: Shard) -> None:
    await shard.acquire()
    await shard.start("r1")


async def checkpoint(shard: Shard, offset: str, partial: bytes = b"partial", keep: int = 100) -> Checkpointed:
    return await shard.do(shard.kernel.checkpoint_views(0, shard.token, offset, partial, keep, ["flow"]))


async def views(shard: Shard) -> dict[str, str]:
    fields = await shard.plain("HGETALL", shard.keys.views)
    return {name.decode(): value.decode() for name, value in fields.items()}


async def log(shard: Shard) -> list[str]:
    return [entry for entry, _ in await shard.stream(shard.keys.log)]


async def test_the_partial_is_stored_with_the_offset_that_it_covers(shard: Shard) -> None:
    await ready(shard)
    first, second, _ = await entries(shard, 3)
    assert await checkpoint(shard, first, b"one") == Checkpointed(Reply.OK, 3)
    assert await checkpoint(shard, second, b"two") == Checkpointed(Reply.OK, 3)
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
        call = shard.kernel.checkpoint_views(0, shard.token, ids[-1], ids[-1].encode(), 3, ["flow"])
        first = await shard.do(call)
        assert await shard.assert_changes_nothing(call) == first


async def test_an_offset_behind_the_stored_one_is_stale_and_changes_nothing(shard: Shard) -> None:
    await ready(shard)
    first, second = await entries(shard, 2)
    await checkpoint(shard, second)
    answer = await shard.assert_changes_nothing(shard.kernel.checkpoint_views(0, shard.token, first, b"old", 100, []))
    assert answer.code is Reply.STALE


@pytest.mark.parametrize(("older", "newer"), [("9-0", "10-0"), ("5-9", "5-10")])
async def test_offsets_are_compared_as_numbers(shard: Shard, older: str, newer: str) -> None:
    await shard.acquire()
    assert (await checkpoint(shard, older)).code is Reply.OK
    assert (await checkpoint(shard, newer)).code is Reply.OK
    assert (await checkpoint(shard, older)).code is Reply.STALE


async def test_a_stale_owner_is_fenced_and_changes_nothing(shard: Shard) -> None:
    await ready(shard)
    old = shard.token
    (first,) = await entries(shard, 1)
    await shard.acquire("two")
    answer = await shard.assert_changes_nothing(shard.kernel.checkpoint_views(0, old, first, b"x", 100, ["flow"]))
    assert answer.code is Reply.FENCED


async def test_base_and_the_log_behind_it_always_make_the_partial(shard: Shard) -> None:
    """The partial here is the number of entries counted, so what a rebuild would find can be checked at each step."""
    await ready(shard)
    counted, keep, lengths = 0, 5, []
    for size in (1, 3, 2, 7, 1, 1, 1, 4, 12, 1, 1, 6, 3, 2):
        ids = await entries(shard, size)
        counted += size
        folded = await checkpoint(shard, ids[-1], str(counted).encode(), keep)
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
    await checkpoint(shard, ids[0], keep=1)
    await checkpoint(shard, ids[1], keep=1)
    await checkpoint(shard, ids[2], keep=1)
    assert await log(shard) == ids[-len(await log(shard)) :]
    assert ids[3] in await log(shard)


async def test_entries_of_one_millisecond_are_trimmed_up_to_the_base_only(shard: Shard) -> None:
    await shard.acquire()
    for number in range(1, 6):
        await shard.plain("XADD", shard.keys.log, f"5-{number}", "r1", "transition")
    await checkpoint(shard, "5-2", keep=3)
    for number in range(6, 9):
        await shard.plain("XADD", shard.keys.log, f"5-{number}", "r1", "transition")
    assert await checkpoint(shard, "5-7", keep=3) == Checkpointed(Reply.OK, 6)
    assert await log(shard) == ["5-3", "5-4", "5-5", "5-6", "5-7", "5-8"]


async def test_the_oldest_open_runs_of_each_workflow_are_kept_with_their_start(shard: Shard) -> None:
    await shard.acquire()
    for age, run in enumerate(("first", "second", "third")):
        await shard.start(run, now=NOW + age)
    await shard.start("other", now=NOW + 9, workflow="slow")
    await shard.do(shard.kernel.checkpoint_views(0, shard.token, "1-1", b"", 10, ["flow", "slow", "none"], oldest=2))
    lines = (await views(shard))["oldest"].split("\n")
    assert lines == [f"first {NOW} flow", f"second {NOW + 1} flow", f"other {NOW + 9} slow"]


async def test_without_open_runs_the_oldest_are_none(shard: Shard) -> None:
    await shard.acquire()
    await checkpoint(shard, "1-1")
    assert (await views(shard))["oldest"] == ""


async def test_wrong_key_types_leave_nothing_half_written(shard: Shard) -> None:
    await ready(shard)
    ids = await entries(shard, 3)
    await checkpoint(shard, ids[0], keep=1)
    fold_call = shard.kernel.checkpoint_views(0, shard.token, ids[-1], b"x", 1, ["flow", "other"])
    await shard.assert_wrong_types_leave_nothing_half_written(fold_call)
