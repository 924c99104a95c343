"""start_runs: create runs that don't exist yet, each with its first message."""

from __future__ import annotations

import time

import pytest

from streamflow.model.record import Status, decode_header
from streamflow.store.kernel import Start
from tests.kernel.support import FUTURE, NOW, Shard

pytestmark = pytest.mark.anyio


async def test_a_new_run_gets_a_pending_record_two_listings_and_a_message(shard: Shard) -> None:
    [answer] = await shard.do(shard.kernel.start_runs(0, [Start("r1", "flow", "acme", b"\x00input")], NOW))
    header, state = await shard.record("r1")
    assert answer == b"+" + header
    decoded = decode_header(header)
    assert (decoded.status, decoded.version, decoded.commit) == (Status.PENDING, 0, "-")
    assert (decoded.created, decoded.ended) == (NOW, 0)
    assert (decoded.workflow, decoded.tenant, decoded.parent) == ("flow", "acme", "")
    assert state == b""
    assert await shard.listed(shard.keys.index(Status.RUNNING, "flow")) == {"r1": NOW}
    assert await shard.listed(shard.keys.tenant("acme")) == {"r1": NOW}
    assert await shard.inbox() == [{"kind": b"start", "run": b"r1", "header": header, "body": b"\x00input"}]


@pytest.mark.parametrize("tenant", ["acme", ""])
async def test_the_first_header_is_what_python_encodes(shard: Shard, tenant: str) -> None:
    await shard.start("r1", tenant=tenant)
    header = await shard.header("r1")
    assert decode_header(header).encode() == header


async def test_a_run_without_tenant_is_in_no_tenant_listing(shard: Shard) -> None:
    await shard.start("r1")
    assert decode_header(await shard.header("r1")).tenant == ""
    assert not [key for key in await shard.key_names() if ":index:tenant:" in key]


async def test_a_start_that_is_sent_again_answers_with_the_header(shard: Shard) -> None:
    await shard.start("r1")
    again = shard.kernel.start_runs(0, [Start("r1", "other", "globex", b"other input")], NOW + 5)
    assert await shard.assert_changes_nothing(again) == [await shard.header("r1")]


async def test_existing_runs_in_a_batch_stop_no_other_run(shard: Shard) -> None:
    await shard.start("r2")
    known = await shard.header("r2")
    answers = await shard.start("r1", "r2", "r3")
    assert answers == [b"+" + await shard.header("r1"), known, b"+" + await shard.header("r3")]
    assert [message["run"] for message in await shard.inbox()] == [b"r2", b"r1", b"r3"]


async def test_an_id_that_is_twice_in_one_batch_makes_one_run(shard: Shard) -> None:
    first, second = await shard.start("r1", "r1")
    assert (first, second) == (b"+" + second, await shard.header("r1"))
    assert len(await shard.inbox()) == 1


async def test_no_starts_at_all_are_an_empty_answer(shard: Shard) -> None:
    assert await shard.assert_changes_nothing(shard.kernel.start_runs(0, [], NOW)) == []


async def test_without_an_override_the_clock_is_the_servers(shard: Shard) -> None:
    before = int(time.time() * 1000)
    await shard.do(shard.kernel.start_runs(0, [Start("r1", "flow", "", b"")]))
    assert before <= decode_header(await shard.header("r1")).created <= int(time.time() * 1000)


async def test_the_clock_never_goes_behind_what_the_shard_has_stored(shard: Shard) -> None:
    await shard.acquire(now=FUTURE)
    await shard.start("r1", now=NOW)
    await shard.do(shard.kernel.start_runs(0, [Start("r2", "flow", "", b"")]))
    assert [decode_header(await shard.header(run)).created for run in ("r1", "r2")] == [FUTURE, FUTURE]


async def test_wrong_key_types_leave_nothing_half_written(shard: Shard) -> None:
    await shard.acquire()
    starts = [Start("r1", "flow", "acme", b"1"), Start("r2", "other", "globex", b"2")]
    await shard.assert_wrong_types_leave_nothing_half_written(shard.kernel.start_runs(0, starts, NOW))


async def test_a_run_that_was_lost_is_the_same_one_again_whatever_the_time_is(shard: Shard) -> None:
    await shard.plain("HSET", shard.keys.owner, "clock", FUTURE)
    lost = shard.kernel.start_runs(0, [Start("r1", "flow", "", b"")], created=NOW)
    [answer] = await shard.do(lost)
    assert answer[:1] == b"+"
    assert decode_header(await shard.header("r1")).created == NOW
    assert await shard.assert_changes_nothing(lost) == [await shard.header("r1")]


async def test_what_a_start_asks_for_is_the_last_word_of_its_header(shard: Shard) -> None:
    starts = [
        Start("r1", "flow", "", b"input", "", "t5"),
        Start("r2", "flow", "acme", b"input", "trace", "b7,t5"),
        Start("r3", "flow", "", b"input", "trace", ""),
    ]
    await shard.do(shard.kernel.start_runs(0, starts, NOW))
    found = [decode_header(await shard.header(run_id)) for run_id in ("r1", "r2", "r3")]
    assert [(header.trace, header.start) for header in found] == [("", "t5"), ("trace", "b7,t5"), ("trace", "")]
    assert [header.encode() for header in found] == [await shard.header(run_id) for run_id in ("r1", "r2", "r3")]


async def test_a_delay_counts_by_the_servers_clock(shard: Shard) -> None:
    before = time.time() * 1000
    [answer] = await shard.do(shard.kernel.start_runs(0, [Start("r1", "flow", "", b"input", "", "d60000,t5")]))
    header = decode_header(answer[1:])
    assert header.start == f"b{header.created + 60_000},t5"
    assert header.created >= before - 1000
    assert await shard.listed(shard.keys.index(Status.RUNNING, "flow")) == {"r1": header.created}


async def test_a_start_that_was_lost_begins_when_it_would_have_begun(shard: Shard) -> None:
    start = Start("r1", "flow", "", b"input", "", "d60000")
    [answer] = await shard.do(shard.kernel.start_runs(0, [start], FUTURE, created=NOW))
    assert decode_header(answer[1:]).start == f"b{NOW + 60_000}"


async def test_a_large_start_that_waits_keeps_what_it_asks_for(shard: Shard) -> None:
    await shard.do(shard.kernel.start_runs(0, [Start("r1", "flow", "", b"x" * 10_000, "", "d1000")], NOW))
    header, body = await shard.record("r1")
    assert decode_header(header).start == f"b{NOW + 1000}"
    assert body == b"x" * 10_000
    assert await shard.listed(shard.keys.waiting) == {"r1": 1}


async def test_a_start_with_an_identity_knows_its_own_run(shard: Shard) -> None:
    mine, other = (Start("r1", "flow", "", b"input", "", f"i{name}") for name in ("0a", "00a"))
    [first] = await shard.do(shard.kernel.start_runs(0, [mine], NOW))
    header = await shard.header("r1")
    assert first == b"+" + header
    assert await shard.assert_changes_nothing(shard.kernel.start_runs(0, [mine], NOW + 5)) == [b"=" + header]
    assert await shard.assert_changes_nothing(shard.kernel.start_runs(0, [other], NOW + 5)) == [header]
    assert await shard.assert_changes_nothing(shard.kernel.start_runs(0, [Start("r1", "flow", "", b"")])) == [header]
