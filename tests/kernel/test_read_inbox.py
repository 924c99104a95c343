"""read_inbox: read the messages behind the last one that the owner has read. And who rings (`lua/shared/inbox.lua`).

`tests/unit/daemon/test_doorbell_model.py` shows why the rule is as it is.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from streamflow.store.connection import Call
from streamflow.store.kernel import Batch, Delivery, LentStep, Message, Reply
from tests.kernel.support import NOW, Shard

pytestmark = pytest.mark.anyio


def posted(shard: Shard, number: int, size: int = 1, count: int = 1) -> Call[str]:
    """Signals for the run `r`."""
    messages = [Message("signal", "r", b"x" * size)] * count
    return shard.kernel.post_messages(0, "client", number, messages, NOW)


async def prepared(shard: Shard) -> None:
    """An owner, and a run whose start it has read and committed."""
    await shard.acquire()
    await shard.start("r")
    await shard.advance("r", acks=await shard.read())


async def test_messages_are_read_in_their_order_and_stay_until_a_commit(shard: Shard) -> None:
    await shard.acquire()
    await shard.start("r1", "r2")
    page = await shard.do(shard.kernel.read_inbox(0, shard.token, "0-0", 100, 1_000_000))
    assert (page.code, page.more) == (Reply.OK, False)
    assert [(fields[b"kind"], fields[b"run"]) for _, fields in page.entries] == [(b"start", b"r1"), (b"start", b"r2")]
    assert len(await shard.inbox()) == 2
    assert await shard.read(page.entries[-1][0].decode()) == [], "what was read doesn't come again"


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 80, 99])
async def test_a_reply_has_at_most_as_many_messages_as_were_asked_for(shard: Shard, count: int) -> None:
    await prepared(shard)
    await shard.do(posted(shard, 1, count=100))
    page = await shard.do(shard.kernel.read_inbox(0, shard.token, "0-0", count, 1_000_000))
    assert (len(page.entries), page.more) == (count, True)


async def test_a_reply_has_about_as_many_bytes_as_were_asked_for(shard: Shard) -> None:
    await prepared(shard)
    await shard.do(posted(shard, 1, size=10_000, count=40))
    sizes: list[int] = []
    after = "0-0"
    while True:
        page = await shard.do(shard.kernel.read_inbox(0, shard.token, after, 100, 50_000))
        sizes.append(len(page.entries))
        if not page.more:
            break
        after = page.entries[-1][0].decode()
    assert sum(sizes) == 40
    assert max(sizes) <= 5
    one = await shard.do(shard.kernel.read_inbox(0, shard.token, "0-0", 100, 1))
    assert (len(one.entries), one.more) == (1, True), "one message in any case"


async def test_the_note_says_how_many_messages_were_read_once_all_were(shard: Shard) -> None:
    await prepared(shard)
    await shard.do(posted(shard, 1, count=3))
    first, second, third = [entry for entry, _ in await shard.stream(shard.keys.inbox)]
    assert await shard.read(count=2) == [first, second]
    assert await shard.kept() == f"0 {second}"
    for _ in range(2):  # the second time because the reply was lost
        assert await shard.read(second) == [third]
        assert await shard.kept() == f"3 {third}"


async def test_an_inbox_without_messages_gets_no_note(shard: Shard) -> None:
    await shard.acquire()
    await shard.assert_changes_nothing(shard.kernel.read_inbox(0, shard.token, "0-0", 100, 1_000_000))
    assert await shard.kept() == ""


async def test_a_former_owner_reads_nothing_and_changes_nothing(shard: Shard) -> None:
    await shard.start("r")
    await shard.acquire("one")
    read = shard.kernel.read_inbox(0, shard.token, "0-0", 100, 1_000_000)
    await shard.acquire("two")
    page = await shard.assert_changes_nothing(read)
    assert (page.code, page.entries) == (Reply.FENCED, [])


async def test_wrong_key_types_leave_nothing_half_written(shard: Shard) -> None:
    await prepared(shard)
    await shard.do(posted(shard, 1))
    call = shard.kernel.read_inbox(0, shard.token, "0-0", 100, 1_000_000)
    await shard.assert_wrong_types_leave_nothing_half_written(call)


# --- who rings --------------------------------------------------------------------------------------------------------


class Bell:
    """Hears the rings of the shard."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._link = shard.store.link()

    async def subscribe(self) -> None:
        [reply] = await self._link.exchange([("SSUBSCRIBE", self._shard.keys.inbox)])
        assert reply[0] == b"ssubscribe"

    async def rings(self, call: Call[Any] | None = None) -> int:
        """How often it has rung since it was asked last, after this call."""
        if call is not None:
            await self._shard.do(call)
        self._link.post([("PING",)])
        count = 0
        with anyio.fail_after(10):
            while (reply := await self._link.next_reply(10))[0] == b"smessage":
                assert reply[1] == self._shard.keys.inbox.encode()
                count += 1
        return count


@pytest.fixture
async def bell(real_shard: Shard) -> Bell:
    bell = Bell(real_shard)
    await bell.subscribe()
    return bell


async def test_every_verb_that_adds_messages_rings_once_until_all_are_read(real_shard: Shard, bell: Bell) -> None:
    shard = real_shard
    await prepared(shard)
    assert await bell.rings() == 1, "the start"
    kernel = shard.kernel
    created = int((await shard.header("r")).split()[3])
    calls: list[Callable[[int], Call[Any]]] = [
        lambda n: posted(shard, n, count=3),
        lambda n: kernel.post_requests(0, "other", n, [Message("cancel", "r", b"x")], NOW),
        lambda _: kernel.report_outcome(0, "r", created, b"x"),
        lambda n: kernel.report_step(0, "r", "outcome", LentStep(f"r/{n}", "h", created, 1), b"x"),
        lambda n: kernel.deliver_messages(0, 3, [Delivery(f"5-{n}", "signal", "r", b"x", "flow")] * 2, NOW),
        lambda n: kernel.deliver_messages(0, 3, [Delivery(f"6-{n}", "start", f"c{n}", b"x", "flow", "", "p#1")], NOW),
    ]
    for position, call in enumerate(calls):
        assert await bell.rings(call(10 * position + 1)) == 1
        assert await bell.rings(call(10 * position + 2)) == 0, "one ring is enough until it is read"
        await shard.read()  # the messages stay


async def test_whether_a_message_rings_is_the_models_rule_in_any_order(real_shard: Shard, bell: Bell) -> None:
    """Messages stay in the inbox after they were read, replies are lost, pages are small, commits are sent twice."""
    shard = real_shard
    await prepared(shard)
    await bell.rings()
    chance = random.Random(7)
    position, number, commits, rang = "0-0", 0, 0, 0
    unread: list[str] = []
    in_hand: list[str] = []

    async def add() -> None:
        nonlocal number, rang
        number += 1
        count = chance.randint(1, 4)
        expected = 0 if unread else 1
        assert await bell.rings(posted(shard, number, count=count)) == expected
        rang += expected
        unread.extend([entry for entry, _ in await shard.stream(shard.keys.inbox)][-count:])

    async def read() -> None:
        nonlocal position
        page = await shard.do(shard.kernel.read_inbox(0, shard.token, position, 3, 1_000_000))
        if chance.random() < 0.2:
            await read()  # the reply was lost: the owner asks again before anything else
            return
        got = [entry.decode() for entry, _ in page.entries]
        assert got == unread[:3]
        del unread[:3]
        in_hand.extend(got)
        position = got[-1] if got else position
        if page.more:
            await read()

    async def commit() -> None:
        nonlocal commits
        chance.shuffle(in_hand)
        acks, in_hand[:] = in_hand[:2], in_hand[2:]
        commits += 1
        call = shard.commit(Batch(f"s.{commits}", acks=acks))
        assert (await shard.do(call)).code is Reply.OK
        if chance.random() < 0.3:
            await shard.do(call)

    steps: list[Callable[[], Awaitable[None]]] = [add, add, read, commit]
    for _ in range(300):
        await chance.choice(steps)()
    assert 30 < rang < number
