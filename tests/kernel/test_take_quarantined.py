"""take_quarantined: messages out of the quarantine, back into the inbox once, or away."""

from __future__ import annotations

import pytest

from streamflow.errors import StoreError
from streamflow.store.connection import Call
from streamflow.store.kernel import Batch, Message, Poison
from tests.kernel.support import FUTURE, NOW, Shard

pytestmark = pytest.mark.anyio


def signal(run_id: str, body: bytes = b"body", identity: bytes = b"", kind: str = "signal") -> Poison:
    return Poison("1-1", run_id, "why", b"event", body, kind, b"", identity)


async def aside(shard: Shard, *poisons: Poison) -> list[tuple[str, str]]:
    """Put them into the quarantine: their entries and runs."""
    await shard.do(shard.commit(Batch(shard.commit_id(), poisons=list(poisons))))
    return [(entry, fields["run"].decode()) for entry, fields in await shard.stream(shard.keys.poison)]


def take(
    shard: Shard, messages: list[tuple[str, str]], number: int = 1, action: str = "redrive", source: str = "client:q"
) -> Call[str]:
    return shard.kernel.take_quarantined(0, source, number, action, messages, NOW)


async def running(shard: Shard, *run_ids: str) -> None:
    """Runs that have begun, and an empty inbox."""
    await shard.acquire()
    await shard.start(*run_ids)
    for run_id in run_ids:
        await shard.advance(run_id)
    await shard.plain("DEL", shard.keys.inbox)


async def test_messages_are_put_back_as_they_were_in_their_order(shard: Shard) -> None:
    await running(shard, "r1", "r2")
    messages = await aside(
        shard,
        signal("r1", b"one", b"m:client.1.1"),
        signal("r2", b"\xfftwo", kind="outcome"),
        signal("r1", b"three", kind="cancel"),
    )
    call = take(shard, messages)
    assert await shard.do(call) == "aaa"
    assert await shard.inbox() == [
        {"kind": b"signal", "run": b"r1", "body": b"one", "from": b"m:client.1.1"},
        {"kind": b"outcome", "run": b"r2", "body": b"\xfftwo"},
        {"kind": b"cancel", "run": b"r1", "body": b"three", "from": b"m:quarantine." + messages[2][0].encode()},
    ]
    assert await shard.stream(shard.keys.poison) == []
    assert await shard.assert_changes_nothing(call) == "aaa", "a lost answer"
    assert await shard.do(take(shard, messages, 2)) == "ggg", "another call"
    assert len(await shard.inbox()) == 3
    await shard.assert_only_known_keys()


async def test_a_run_whose_start_is_delayed_takes_messages(shard: Shard) -> None:
    """It is pending, and keeps them, but has a history already."""
    await shard.acquire()
    await shard.start("r1")
    await shard.advance("r1", "pending")
    assert await shard.do(take(shard, await aside(shard, signal("r1")))) == "a"


async def test_a_message_that_is_named_twice_is_put_back_once(shard: Shard) -> None:
    await running(shard, "r1")
    [message] = await aside(shard, signal("r1"))
    assert await shard.do(take(shard, [message, message])) == "ag"
    assert len(await shard.inbox()) == 1


async def test_a_drop_removes_whatever_it_is(shard: Shard) -> None:
    await shard.acquire()
    messages = await aside(shard, signal("gone"), signal("-", kind=""))
    assert await shard.do(take(shard, messages, action="drop")) == "aa"
    assert (await shard.stream(shard.keys.poison), await shard.inbox()) == ([], [])
    assert await shard.do(take(shard, messages, 2, "drop")) == "gg"


async def test_what_nobody_can_take_stays(shard: Shard) -> None:
    await running(shard, "r1", "done")
    await shard.advance("done", "completed")
    await shard.start("later", now=FUTURE)
    messages = await aside(
        shard, signal("r1", kind="joke"), signal("r1", kind=""), signal("none"), signal("done"), signal("later")
    )
    before = await shard.stream(shard.keys.poison)
    assert await shard.do(take(shard, messages)) == "kkmem"
    assert await shard.stream(shard.keys.poison) == before


@pytest.mark.parametrize("waited", [False, True], ids=["in the inbox", "waited"])
async def test_a_start_is_put_back_if_its_run_has_not_begun(shard: Shard, waited: bool) -> None:
    await shard.acquire()
    await shard.start("r1")
    header = await shard.header("r1")
    await shard.plain("DEL", shard.keys.inbox)
    if waited:
        await shard.plain("LSET", shard.keys.run("r1"), 1, b"input")
    start = Poison("1-1", "r1", "why", b"event", b"input", "start", header)
    messages = await aside(shard, signal("r1", b"before"), start, signal("r1", b"behind"))
    assert await shard.do(take(shard, messages)) == "baa", "what comes before its start is lost to a run"
    assert await shard.inbox() == [
        {"kind": b"start", "run": b"r1", "body": b"input", "header": header},
        {"kind": b"signal", "run": b"r1", "body": b"behind", "from": b"m:quarantine." + messages[2][0].encode()},
    ]
    assert await shard.record("r1") == [header, b""]
    await shard.advance("r1")
    messages = await aside(shard, start)
    assert await shard.do(take(shard, messages, 2)) == "ae", "it has begun now: the signal can come, its start can't"


async def test_what_its_run_has_taken_is_not_put_back_again(shard: Shard) -> None:
    """A failover has lost that it was put back, and the owner has committed again that its run has taken it."""
    await running(shard, "r1")
    messages = await aside(
        shard, signal("r1", identity=b"m:client.1.1"), signal("r1"), signal("r1", identity=b"m:3/r1.1.1")
    )
    for identity in ("m:client.1.1", f"m:quarantine.{messages[1][0]}"):
        await shard.plain("HSET", shard.keys.seen, identity, f"0-0 {NOW} shard:-1")
    await shard.plain("HSET", shard.keys.seen, "m:3/r1.1.1", f"7-9 {NOW} shard:3")  # it was delivered, not more
    assert await shard.do(take(shard, messages)) == "dda"
    assert [message["from"] for message in await shard.inbox()] == [b"m:3/r1.1.1"]
    assert await shard.stream(shard.keys.poison) == []


async def test_posts_of_others_count_apart(shard: Shard) -> None:
    await running(shard, "r1")
    messages = await aside(shard, signal("r1"))
    post = shard.kernel.post_messages(0, "client:a", 5, [Message("signal", "r1", b"x")], NOW)
    assert (await shard.do(post), await shard.do(take(shard, messages, 1))) == ("a", "a")
    assert await shard.assert_changes_nothing(post) == "a"


async def test_it_rings_and_runs_when_memory_is_short(real_shard: Shard) -> None:
    shard = real_shard
    await running(shard, "r1")
    messages = await aside(shard, signal("r1"))
    await shard.plain("CONFIG", "SET", "maxmemory", "1mb")
    try:
        assert await shard.do(take(shard, messages)) == "a"
    finally:
        await shard.plain("CONFIG", "SET", "maxmemory", "0")


async def test_wrong_key_types_leave_nothing_half_written(shard: Shard) -> None:
    await running(shard, "r1")
    messages = await aside(shard, signal("r1"))
    await shard.assert_wrong_types_leave_nothing_half_written(take(shard, messages))
    await shard.plain("SET", shard.keys.run("r9"), "text")
    with pytest.raises(StoreError, match="WRONGTYPE"):
        await shard.do(take(shard, [(messages[0][0], "r9")], 9))
    await shard.plain("DEL", shard.keys.run("r9"))
