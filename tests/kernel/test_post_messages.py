"""post_messages: messages for runs that exist and are open."""

from __future__ import annotations

import pytest

from streamflow.store.kernel import Message, post_identity
from tests.kernel.support import FUTURE, NOW, Shard

pytestmark = pytest.mark.anyio


async def inbox_of_posts(shard: Shard) -> list[tuple[bytes, bytes, bytes]]:
    return [(m["kind"], m["run"], m["body"]) for m in await shard.inbox() if m["kind"] != b"start"]


async def test_a_letter_for_each_message_says_what_became_of_it(shard: Shard) -> None:
    await shard.acquire()
    await shard.start("pending", "running", "stuck", "completed", "failed", "cancelled")
    for status in ("running", "stuck", "completed", "failed", "cancelled"):
        await shard.advance(status, status)

    order = ("pending", "completed", "running", "failed", "stuck", "cancelled", "missing")
    messages = [Message("signal", run, run.encode()) for run in order]
    assert await shard.do(shard.kernel.post_messages(0, "client", 1, messages, NOW)) == "aeaeaem"
    assert await inbox_of_posts(shard) == [
        (b"signal", b"pending", b"pending"),
        (b"signal", b"running", b"running"),
        (b"signal", b"stuck", b"stuck"),
    ]


async def test_a_retry_also_reaches_a_run_that_has_failed(shard: Shard) -> None:
    """What has completed or was cancelled can't go on; an open run's owner says that it hasn't failed."""
    await shard.acquire()
    await shard.start("pending", "running", "stuck", "completed", "failed", "cancelled")
    for status in ("running", "stuck", "completed", "failed", "cancelled"):
        await shard.advance(status, status)

    order = ("pending", "completed", "running", "failed", "stuck", "cancelled", "missing")
    messages = [Message("retry", run, run.encode(), NOW if run == "failed" else 0) for run in order]
    assert await shard.do(shard.kernel.post_messages(0, "client", 1, messages, NOW)) == "aeaaaem"
    assert [run for _, run, _ in await inbox_of_posts(shard)] == [b"pending", b"running", b"failed", b"stuck"]
    for late in (Message("retry", "failed", b"", NOW + 1), Message("retries", "failed", b"")):
        assert await shard.do(shard.kernel.post_messages(0, "late", 1, [late], NOW)) in "me"
        assert len(await inbox_of_posts(shard)) == 4


async def test_a_message_for_another_run_of_the_id_finds_no_run(shard: Shard) -> None:
    await shard.start("r1", "r2")
    messages = [Message("signal", "r1", b"1", NOW), Message("signal", "r1", b"2", NOW - 1)]
    messages += [Message("signal", "r2", b"3", NOW + 1), Message("signal", "none", b"4", NOW)]
    assert await shard.do(shard.kernel.post_messages(0, "client", 1, messages, NOW)) == "ammm"
    assert await inbox_of_posts(shard) == [(b"signal", b"r1", b"1")]


async def test_the_kind_of_a_message_reaches_the_inbox(shard: Shard) -> None:
    await shard.start("r1")
    await shard.do(shard.kernel.post_messages(0, "client", 1, [Message("cancel", "r1", b"why")], NOW))
    assert await inbox_of_posts(shard) == [(b"cancel", b"r1", b"why")]


async def test_a_post_that_is_sent_again_adds_nothing_and_has_the_same_answers(shard: Shard) -> None:
    await shard.start("r1")
    post = shard.kernel.post_messages(
        0, "client", 7, [Message("signal", "r1", b"1"), Message("signal", "none", b"2")], NOW
    )
    assert await shard.do(post) == "am"
    assert await shard.assert_changes_nothing(post) == "am"


async def test_the_answers_are_kept_even_when_the_run_has_ended_since(shard: Shard) -> None:
    await shard.acquire()
    await shard.start("r1")
    post = shard.kernel.post_messages(0, "client", 1, [Message("signal", "r1", b"1")], NOW)
    assert await shard.do(post) == "a"
    await shard.advance("r1", "completed")
    assert await shard.assert_changes_nothing(post) == "a"


async def test_the_next_number_and_other_clients_are_new_posts(shard: Shard) -> None:
    await shard.start("r1")
    for client, number in (("one", 1), ("one", 2), ("two", 1)):
        message = Message("signal", "r1", f"{client} {number}".encode())
        assert await shard.do(shard.kernel.post_messages(0, client, number, [message], NOW)) == "a"
    assert [body for _, _, body in await inbox_of_posts(shard)] == [b"one 1", b"one 2", b"two 1"]


async def test_numbers_are_exact_up_to_2_to_the_53(shard: Shard) -> None:
    """Lua's numbers are doubles."""
    await shard.start("r1")
    message = Message("signal", "r1", b"")
    for number in (2**53 - 2, 2**53 - 1):
        assert await shard.do(shard.kernel.post_messages(0, "client", number, [message], NOW)) == "a"
    assert len(await inbox_of_posts(shard)) == 2


async def test_what_is_kept_of_a_client_has_the_shards_clock(shard: Shard) -> None:
    await shard.start("r1")
    await shard.do(shard.kernel.post_messages(0, "client", 1, [Message("signal", "r1", b"")], NOW))
    assert await shard.plain("HGET", shard.keys.seen, "client") == f"1 {NOW} a".encode()
    await shard.acquire(now=FUTURE)
    await shard.do(shard.kernel.post_messages(0, "client", 2, [Message("signal", "r1", b"")], NOW))
    assert await shard.plain("HGET", shard.keys.seen, "client") == f"2 {FUTURE} a".encode()


async def test_wrong_key_types_leave_nothing_half_written(shard: Shard) -> None:
    await shard.acquire()
    await shard.start("r1", "r2")
    messages = [Message("signal", "r1", b"1"), Message("signal", "r2", b"2")]
    await shard.assert_wrong_types_leave_nothing_half_written(shard.kernel.post_messages(0, "client", 1, messages, NOW))


# --- what a server may have lost is posted again ----------------------------------------------------------------------


def again(*posts: tuple[str, int, bytes]) -> list[Message]:
    """Of each message its identity, the number of its post, its body."""
    return [Message("signal", "r1", body, identity=identity, number=number) for identity, number, body in posts]


async def test_each_message_has_its_identity(shard: Shard) -> None:
    await shard.start("r1")
    posts = [Message("signal", "r1", b"1"), Message("signal", "none", b"2"), Message("signal", "r1", b"3")]
    await shard.do(shard.kernel.post_messages(0, "client", 7, posts, NOW))
    assert [m.get("from") for m in await shard.inbox()] == [None, b"m:client.7.1", b"m:client.7.3"]
    assert post_identity("client", 7, 3) == "m:client.7.3"


async def test_only_posts_behind_the_last_number_are_missing(shard: Shard) -> None:
    await shard.start("r1")
    await shard.do(shard.kernel.post_messages(0, "client", 4, [Message("signal", "r1", b"there")], NOW))
    lost = again(("m:client.4.1", 4, b"there"), ("m:client.5.1", 5, b"a"), ("m:client.5.2", 5, b"b"))
    post = shard.kernel.post_messages(0, "client", 6, [*lost, *again(("m:client.6.1", 6, b"c"))], NOW, again=True)
    assert await shard.do(post) == "daaa"
    assert [m["body"] for m in await shard.inbox()] == [b"input of r1", b"there", b"a", b"b", b"c"]
    assert [m.get("from") for m in await shard.inbox()][2:] == [b"m:client.5.1", b"m:client.5.2", b"m:client.6.1"]
    assert await shard.assert_changes_nothing(post) == "daaa", "after a lost reply"
    alone = shard.kernel.post_messages(0, "client", 6, again(("m:client.6.1", 6, b"c")), NOW, again=True)
    assert await shard.assert_changes_nothing(alone) == "d", "after another failover that has lost nothing"


async def test_what_a_run_has_taken_is_not_accepted_again(shard: Shard) -> None:
    await shard.start("r1")
    await shard.plain("HSET", shard.keys.seen, "m:client.5.1", f"0-0 {NOW} shard:-1")
    lost = again(("m:client.5.1", 5, b"taken"), ("m:client.5.2", 5, b"not taken"))
    assert await shard.do(shard.kernel.post_messages(0, "client", 5, lost, NOW, again=True)) == "da"
    assert [m["body"] for m in await shard.inbox()] == [b"input of r1", b"not taken"]


async def test_a_message_whose_run_was_missing_keeps_its_identity(shard: Shard) -> None:
    lost = again(("m:client.5.1", 5, b"x"))
    assert await shard.do(shard.kernel.post_messages(0, "client", 5, lost, NOW, again=True)) == "m"
    await shard.start("r1")
    later = again(("m:client.5.1", 0, b"x"))
    assert await shard.do(shard.kernel.post_messages(0, "client", 6, later, NOW)) == "a"
    assert [m.get("from") for m in await shard.inbox()] == [None, b"m:client.5.1"]
    await shard.plain("HSET", shard.keys.seen, "m:client.5.1", f"0-0 {NOW} shard:-1")
    assert await shard.do(shard.kernel.post_messages(0, "client", 7, later, NOW)) == "d"


async def test_a_post_of_the_present_is_not_hidden_by_one_of_the_past(shard: Shard) -> None:
    """The number of the last post only grows."""
    await shard.start("r1")
    await shard.do(shard.kernel.post_messages(0, "client", 9, [Message("signal", "r1", b"9")], NOW))
    late = shard.kernel.post_messages(0, "client", 8, again(("m:client.8.1", 8, b"8")), NOW, again=True)
    assert await shard.assert_changes_nothing(late) == "d"
