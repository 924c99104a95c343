"""post_once: a signal or question that its run gets once, behind its start if none is open."""

from __future__ import annotations

import msgspec
import pytest

from streamflow.model.attributes import value_text
from streamflow.model.record import Header, Status, decode_header
from streamflow.store.kernel import Message, OnceMessage, Start
from tests.kernel.support import FUTURE, NOW, Shard

pytestmark = pytest.mark.anyio

DAY = 86_400_000


def once(digest: str = "0a", *, replaces: bytes = b"", tenant: str = "", body: bytes = b"input") -> OnceMessage:
    start = Start("r1", "flow", tenant, body, "", f"i{digest}", replaces)
    return OnceMessage(Message("signal", "r1", b"value"), digest, DAY, start)


def alone(digest: str = "0a", created: int = 0) -> OnceMessage:
    return OnceMessage(Message("signal", "r1", b"value", created), digest, DAY)


async def ended(shard: Shard, status: str = "completed", ended_at: int = NOW + 5) -> bytes:
    header = Header(status, 3, "c", NOW, ended_at, "flow", "acme", "", {"customer": "x"})
    keys = shard.keys
    await shard.plain("RPUSH", keys.run("r1"), header.encode(), "", "one")
    await shard.plain("HSET", keys.published("r1"), "progress", "x")
    await shard.plain("ZADD", keys.index(header.status, "flow"), ended_at, "r1")
    await shard.plain("ZADD", keys.tenant("acme"), NOW, "r1")
    await shard.plain("ZADD", keys.attribute("customer", value_text("x")), NOW, "r1")
    return header.encode()


def signal(digest: str = "0a") -> dict[str, bytes]:
    return {"kind": b"signal", "run": b"r1", "body": b"value", "from": b"m:" + digest.encode()}


async def test_a_run_that_does_not_exist_begins_with_the_signal_behind_its_start(shard: Shard) -> None:
    answer = await shard.do(shard.kernel.post_once(0, once(), NOW))
    header = await shard.header("r1")
    assert answer == ("+", NOW, header)
    found = decode_header(header)
    assert (found.status, found.workflow, found.created, found.start) == ("pending", "flow", NOW, "i0a")
    start = {"kind": b"start", "run": b"r1", "header": header, "body": b"input"}
    assert await shard.inbox() == [start, signal()]
    assert await shard.listed(shard.keys.index(Status.RUNNING, "flow")) == {"r1": NOW}
    assert await shard.plain("GET", shard.keys.known("0a")) == str(NOW).encode()
    assert 0 < await shard.plain("PTTL", shard.keys.known("0a")) <= DAY


async def test_the_same_call_again_does_nothing_whatever_became_of_the_run(shard: Shard) -> None:
    call = shard.kernel.post_once(0, once(), NOW)
    await shard.do(call)
    assert (await shard.assert_changes_nothing(call)).letter == "d"
    line = await shard.header("r1")
    over = msgspec.structs.replace(decode_header(line), status="completed", version=4, ended=NOW + 300).encode()
    await shard.plain("LSET", shard.keys.run("r1"), 0, over)
    assert await shard.assert_changes_nothing(call) == ("d", NOW, over)
    await shard.plain("DEL", shard.keys.run("r1"))
    assert await shard.assert_changes_nothing(call) == ("d", NOW, b"")


async def test_an_open_run_gets_the_signal_and_no_second_start(shard: Shard) -> None:
    [header] = await shard.start("r1")
    answer = await shard.do(shard.kernel.post_once(0, once(), NOW + 9))
    assert answer == ("a", NOW, header[1:])
    assert [message["kind"] for message in await shard.inbox()] == [b"start", b"signal"]


async def test_another_id_is_another_signal(shard: Shard) -> None:
    await shard.do(shard.kernel.post_once(0, once("0a"), NOW))
    assert (await shard.do(shard.kernel.post_once(0, once("0b"), NOW))).letter == "a"
    assert [message["kind"] for message in await shard.inbox()] == [b"start", b"signal", b"signal"]


async def test_an_ended_run_is_replaced_only_if_its_header_is_given(shard: Shard) -> None:
    before = await ended(shard, ended_at=NOW + 500)
    assert await shard.assert_changes_nothing(shard.kernel.post_once(0, once(), NOW + 9)) == ("e", NOW, before)
    answer = await shard.do(shard.kernel.post_once(0, once(replaces=before), NOW + 9))
    assert (answer.letter, answer.created) == ("+", NOW + 501), "created later than all of the one that has gone"
    keys = shard.keys
    for key in (keys.index("completed", "flow"), keys.tenant("acme"), keys.attribute("customer", value_text("x"))):
        assert await shard.listed(key) == {}
    assert await shard.plain("EXISTS", keys.published("r1")) == 0
    assert [message["kind"] for message in await shard.inbox()] == [b"start", b"signal"]


async def test_a_run_that_was_opened_meanwhile_is_not_replaced(shard: Shard) -> None:
    before = await ended(shard)
    await shard.plain("DEL", shard.keys.run("r1"))
    await shard.start("r1", now=NOW + 7)
    answer = await shard.do(shard.kernel.post_once(0, once(replaces=before), NOW + 9))
    assert (answer.letter, answer.created) == ("a", NOW + 7)


async def test_a_run_of_another_workflow_gets_nothing(shard: Shard) -> None:
    await shard.start("r1", workflow="other")
    assert (await shard.assert_changes_nothing(shard.kernel.post_once(0, once(), NOW))).letter == "c"


async def test_without_a_start_only_an_open_run_gets_it(shard: Shard) -> None:
    assert await shard.assert_changes_nothing(shard.kernel.post_once(0, alone(), NOW)) == ("m", 0, b"")
    await shard.start("r1")
    call = shard.kernel.post_once(0, alone(created=NOW - 1), NOW)
    assert (await shard.assert_changes_nothing(call)).letter == "m", "meant for an earlier run of the id"
    assert (await shard.do(shard.kernel.post_once(0, alone(created=NOW), NOW))).letter == "a"
    assert await shard.inbox() == [(await shard.inbox())[0], signal()]
    await shard.plain("DEL", shard.keys.run("r1"))
    await ended(shard, "failed")
    assert (await shard.assert_changes_nothing(shard.kernel.post_once(0, alone("0b"), NOW))).letter == "e"


async def test_a_signal_does_not_overtake_a_start_that_waits_for_its_turn(shard: Shard) -> None:
    """The owner begins a run whose start waits when something comes for it: decision 24."""
    answer = await shard.do(shard.kernel.post_once(0, once(tenant="acme", body=b"x" * 10_000), NOW))
    assert answer.letter == "+"
    assert await shard.listed(shard.keys.waiting) == {"r1": 1}
    assert [message["kind"] for message in await shard.inbox()] == [b"waiting", b"signal"]


async def test_what_the_run_has_taken_is_known_from_the_owner(shard: Shard) -> None:
    """After a failover the shard's owner notes the identities of what it commits again: decision 40."""
    [header] = await shard.start("r1")
    await shard.plain("HSET", shard.keys.seen, "m:0a", f"0-0 {NOW} shard:-1")
    answer = await shard.do(shard.kernel.post_once(0, once(), NOW))
    assert answer == ("d", NOW, header[1:])
    assert [message["kind"] for message in await shard.inbox()] == [b"start"]
    assert await shard.plain("GET", shard.keys.known("0a")) == str(NOW).encode(), "also when the owner's note is gone"


async def test_a_lost_run_is_the_same_again_with_its_signal(shard: Shard) -> None:
    answer = await shard.do(shard.kernel.post_once(0, once(), FUTURE, created=NOW + 50))
    assert (answer.letter, answer.created) == ("+", NOW + 50)
    assert [message["kind"] for message in await shard.inbox()] == [b"start", b"signal"]


async def test_a_foreign_key_leaves_all_as_it_was(shard: Shard) -> None:
    call = shard.kernel.post_once(0, once(replaces=await ended(shard)), NOW + 9)
    await shard.assert_wrong_types_leave_nothing_half_written(call)
