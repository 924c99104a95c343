"""next_starts: which starts wait, and whose turn is next."""

from __future__ import annotations

import pytest

from streamflow.model.record import decode_header
from streamflow.store.kernel import FRESH, Batch, Delivery, Reply, RunWrite, Start
from tests.kernel.support import NOW, Shard, next_header

pytestmark = pytest.mark.anyio

STRAIGHT, SHARE, LARGE = 64, 16, 4096
"""As `lua/shared/open_run.lua` has them."""


async def fill(shard: Shard, tenant: str = "busy", count: int = STRAIGHT) -> None:
    """So many starts that the next of this tenant waits, unless it is one of its share."""
    await shard.start(*(f"{tenant}-{number}" for number in range(count)), tenant=tenant)


async def waiting(shard: Shard) -> dict[str, int]:
    return await shard.listed(shard.keys.waiting)


async def in_inbox(shard: Shard, kind: bytes = b"start") -> list[str]:
    return [message["run"].decode() for message in await shard.inbox() if message["kind"] == kind]


async def test_starts_join_the_inbox_while_it_is_short(shard: Shard) -> None:
    await fill(shard)
    assert await waiting(shard) == {}
    assert len(await in_inbox(shard)) == STRAIGHT


async def test_beyond_that_a_tenant_has_a_share_and_the_rest_waits(shard: Shard) -> None:
    await fill(shard, count=STRAIGHT + SHARE + 3)
    assert list(await waiting(shard)) == [f"busy-{STRAIGHT + SHARE + n}" for n in range(3)]
    assert len(await in_inbox(shard)) == STRAIGHT + SHARE


async def test_the_first_that_waits_puts_one_message_into_the_inbox(shard: Shard) -> None:
    await fill(shard, count=STRAIGHT + SHARE + 3)
    assert await in_inbox(shard, b"waiting") == [""]
    await shard.start("one-more", tenant="busy")
    assert await in_inbox(shard, b"waiting") == [""]


async def test_a_start_that_waits_has_its_input_in_its_record(shard: Shard) -> None:
    await fill(shard, count=STRAIGHT + SHARE)
    [answer] = await shard.start("late", tenant="busy")
    header, state = await shard.record("late")
    assert answer == b"+" + header
    assert decode_header(header).version == 0
    assert state == b"input of late"
    assert await shard.start("late", tenant="busy") == [header]


async def test_a_burst_of_one_tenant_does_not_make_another_wait(shard: Shard) -> None:
    await fill(shard, count=STRAIGHT + 200)
    await shard.start(*(f"small-{n}" for n in range(SHARE)), tenant="small")
    assert [run for run in await in_inbox(shard) if run.startswith("small")] == [f"small-{n}" for n in range(SHARE)]


async def test_workflows_take_turns_where_runs_have_no_tenant(shard: Shard) -> None:
    await shard.start(*(f"a-{n}" for n in range(STRAIGHT + 200)), workflow="a")
    await shard.start("b-1", workflow="b")
    assert "b-1" in await in_inbox(shard)


async def test_those_that_wait_come_by_turns(shard: Shard) -> None:
    await shard.acquire()
    await fill(shard, count=STRAIGHT + SHARE + 4)
    await shard.start(*(f"other-{n}" for n in range(SHARE + 3)), tenant="other")
    answer = await shard.do(shard.kernel.next_starts(0, shard.token, 4))
    assert (answer.code, answer.left, answer.reached) == (Reply.OK, 7, 0)
    first = SHARE + 1
    assert answer.runs == [
        (f"busy-{STRAIGHT + SHARE}", first),
        (f"other-{SHARE}", first),
        (f"busy-{STRAIGHT + SHARE + 1}", first + 1),
        (f"other-{SHARE + 1}", first + 1),
    ]


async def test_a_turn_that_was_reached_gives_each_tenant_a_new_share(shard: Shard) -> None:
    await shard.acquire()
    await fill(shard, count=STRAIGHT + SHARE + 50)
    await shard.start(*(f"small-{n}" for n in range(SHARE + 1)), tenant="small")
    assert f"small-{SHARE}" in await waiting(shard)
    await shard.do(shard.kernel.next_starts(0, shard.token, 5))
    await shard.start("small-again", tenant="small")
    assert "small-again" in await in_inbox(shard)
    await shard.start("busy-again", tenant="busy")
    assert "busy-again" in await waiting(shard)


async def test_reading_again_gives_the_same_and_says_what_was_reached(shard: Shard) -> None:
    await shard.acquire()
    await fill(shard, count=STRAIGHT + SHARE + 5)
    call = shard.kernel.next_starts(0, shard.token, 3)
    first = await shard.do(call)
    again = await shard.assert_changes_nothing(call)
    assert (again.runs, again.reached) == (first.runs, SHARE + 3)


async def test_tenants_that_have_caught_up_are_not_remembered(shard: Shard) -> None:
    await shard.acquire()
    await fill(shard, count=STRAIGHT)
    for number in range(20):
        await shard.start(f"r{number}", tenant=f"tenant-{number}")
    await fill(shard, "big", count=SHARE + 30)
    assert len(await shard.listed(shard.keys.turns)) == 21
    await shard.do(shard.kernel.next_starts(0, shard.token, 30))
    assert set(await shard.listed(shard.keys.turns)) == {"", "t/big"}


async def test_a_large_input_waits_and_is_not_in_the_inbox(shard: Shard) -> None:
    body = b"x" * (LARGE + 1)
    await shard.do(
        shard.kernel.start_runs(0, [Start("large", "flow", "", body), Start("small", "flow", "", b"x")], NOW)
    )
    assert list(await waiting(shard)) == ["large"]
    assert (await shard.record("large"))[1] == body
    assert await in_inbox(shard) == ["small"]


async def test_children_wait_like_other_runs(shard: Shard) -> None:
    await fill(shard)
    deliveries = [
        Delivery(f"1-{n}", "start", f"child-{n}", b"input", "leaf", "", f"parent#{n}@5") for n in range(1, SHARE + 3)
    ]
    await shard.do(shard.kernel.deliver_messages(0, 7, deliveries, NOW))
    assert list(await waiting(shard)) == [f"child-{n}" for n in (SHARE + 1, SHARE + 2)]
    assert decode_header(await shard.header("child-18")).parent == "parent#18@5"


async def test_the_commit_of_its_first_transition_ends_the_wait(shard: Shard) -> None:
    await shard.acquire()
    await fill(shard, count=STRAIGHT + SHARE + 1)
    [run_id] = await waiting(shard)
    header = await shard.header(run_id)
    write = RunWrite(run_id, header, next_header(header, "running", "c"), FRESH, b"transition")
    moves = [(run_id, shard.keys.waiting, "", 0)]
    committed = await shard.do(shard.commit(Batch("c", runs=[write], moves=moves)))
    assert committed.code is Reply.OK
    assert await waiting(shard) == {}
    assert await shard.record(run_id) == [write.header, b"", b"transition"], "the input is in the transition only"
    answer = await shard.do(shard.kernel.next_starts(0, shard.token, 10))
    assert (answer.left, answer.runs) == (0, [])


async def test_a_stale_owner_is_fenced(shard: Shard) -> None:
    old = await shard.acquire("one")
    await fill(shard, count=STRAIGHT + SHARE + 1)
    await shard.acquire("two")
    answer = await shard.assert_changes_nothing(shard.kernel.next_starts(0, old.token, 10))
    assert (answer.code, answer.runs) == (Reply.FENCED, [])


async def test_wrong_types_leave_nothing_half_written(shard: Shard) -> None:
    await shard.acquire()
    await fill(shard, count=STRAIGHT + SHARE + 1)
    await shard.assert_wrong_types_leave_nothing_half_written(shard.kernel.next_starts(0, shard.token, 10))
