"""Reading inboxes: what rang, what a lost reply carried, and whose shard is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import anyio
import pytest

from streamflow.daemon import inbox
from streamflow.daemon.inbox import InboxReader
from streamflow.daemon.shard import OwnedShard
from streamflow.daemon.starts import Starts
from streamflow.errors import StoreError, StoreUnavailable
from streamflow.store.connection import Call
from streamflow.store.kernel import InboxPage, Reply, StreamEntry
from tests.support.fakes import KERNEL, owned

pytestmark = pytest.mark.anyio

FENCED = InboxPage(Reply.FENCED)


class FakeStore:
    """Answers reads from a list for each inbox, then with nothing; notes what was asked for."""

    def __init__(self) -> None:
        self.pages: dict[str, list[InboxPage | StoreError]] = {}
        self.asked: list[list[str]] = []
        self.after: list[list[str]] = []
        self.limits: list[tuple[int, int]] = []
        self.cut = False
        self.during: Callable[[], object] = lambda: None

    async def send(self, calls: Sequence[Call[Any]]) -> list[Any]:
        self.asked.append([call.keys[1] for call in calls])
        self.after.append([call.args[1] for call in calls])
        self.limits.append((calls[0].args[2], calls[0].args[3]))
        self.during()
        if self.cut:
            raise StoreUnavailable("cut")
        return [self.pages[key].pop(0) if self.pages.get(key) else InboxPage(Reply.OK) for key in self.asked[-1]]

    is_single = True

    def link(self) -> Any:
        return None


class FakeBell:
    """A subscription that is confirmed at once."""

    def __init__(self) -> None:
        self.channels: list[str] = []
        self.refusal: StoreError | None = None
        self.refused: set[str] = set()

    def is_confirmed(self, channel: str) -> bool:
        return channel not in self.refused

    async def add_all(self, channels: list[str]) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.channels += [channel for channel in channels if channel not in self.channels]

    async def remove(self, channel: str) -> None:
        self.channels.remove(channel)


class Bench:
    def __init__(self, *shards: OwnedShard) -> None:
        self.shards = {shard.number: shard for shard in shards}
        self.store = FakeStore()
        self.bell = FakeBell()
        self.notified: list[int] = []
        self.lost: list[int] = []
        self.starts = Starts(16)
        self.reader = InboxReader(
            self.store,  # type: ignore[arg-type]
            KERNEL,
            self.shards,
            self.shards,
            self.starts,
            lambda shard: self.notified.append(shard.number),
            lambda shard: self.lost.append(shard.number),
        )
        self.reader._bell = self.bell  # type: ignore[assignment]

    async def subscribed(self) -> None:
        self.reader.shards_changed()
        await self.reader.subscribe_once()

    def ring(self, shard: OwnedShard) -> None:
        self.reader._rung(shard.keys.inbox.encode(), b"")

    def answer(self, shard: OwnedShard, *entries: StreamEntry, more: bool = False) -> None:
        self.store.pages.setdefault(shard.keys.inbox, []).append(InboxPage(Reply.OK, more, list(entries)))

    async def read(self) -> None:
        with anyio.fail_after(10):
            await self.reader.run_once()

    async def is_idle(self) -> bool:
        with anyio.move_on_after(0.02) as waiting:
            await self.reader.run_once()
        return waiting.cancelled_caught


def entry(entry_id: str, run: str = "r", body: bytes = b"x") -> StreamEntry:
    return entry_id.encode(), {b"kind": b"signal", b"run": run.encode(), b"body": body}


def ids(shard: OwnedShard) -> list[str]:
    return [message.id for message in shard.inbox]


async def ready(*shards: OwnedShard) -> Bench:
    """All channels are subscribed, and all inboxes were read once."""
    it = Bench(*shards)
    await it.subscribed()
    await it.read()
    it.store.asked.clear()
    it.store.after.clear()
    it.store.limits.clear()
    return it


async def test_a_shard_is_read_for_the_first_time_once_its_channel_is_subscribed() -> None:
    one, two = owned(1), owned(2)
    it = Bench(one, two)
    it.reader.shards_changed()
    assert await it.is_idle()
    await it.reader.subscribe_once()
    assert it.bell.channels == [one.keys.inbox, two.keys.inbox]
    await it.read()
    assert it.store.asked == [[one.keys.inbox, two.keys.inbox]]
    assert it.store.after == [["0-0", "0-0"]]
    assert await it.is_idle()


async def test_what_is_read_goes_to_its_shard_and_the_owner_is_notified() -> None:
    one, two = owned(1), owned(2)
    it = await ready(one, two, owned(3))
    it.ring(one)
    it.ring(two)
    it.answer(one, entry("1-0", "a"), entry("1-1", "a"))
    it.answer(two, entry("2-0", "b"))
    await it.read()
    assert it.store.asked == [[one.keys.inbox, two.keys.inbox]], "only those that rang"
    assert (ids(one), ids(two)) == (["1-0", "1-1"], ["2-0"])
    assert set(it.notified) == {1, 2}
    message = one.inbox[0]
    assert (message.kind, message.run_id, message.body, message.header) == ("signal", "a", b"x", b"")
    it.ring(one)
    await it.read()
    assert it.store.after[-1] == ["1-1"], "behind what it has"


async def test_bytes_that_are_not_utf_8_do_not_stop_the_reading() -> None:
    shard = owned()
    it = await ready(shard)
    it.ring(shard)
    it.answer(shard, (b"1-0", {b"kind": b"\xff", b"run": b"\xfe"}), (b"1-1", {}))
    await it.read()
    assert [(message.kind, message.run_id) for message in shard.inbox] == [("\ufffd", "\ufffd"), ("", "")]


async def test_an_inbox_with_more_is_read_on_without_a_ring() -> None:
    shard = owned()
    it = await ready(shard)
    it.ring(shard)
    it.answer(shard, entry("1-0"), more=True)
    it.answer(shard, entry("1-1"))
    await it.read()
    await it.read()
    assert ids(shard) == ["1-0", "1-1"]
    assert await it.is_idle()


async def test_after_a_lost_reply_the_same_messages_are_asked_for_again() -> None:
    shard = owned()
    it = await ready(shard)
    it.ring(shard)
    it.store.cut = True
    with pytest.raises(StoreUnavailable):
        await it.read()
    it.store.cut = False
    it.answer(shard, entry("1-0"))
    await it.read()
    assert it.store.after == [["0-0"], ["0-0"]]
    assert ids(shard) == ["1-0"]


async def test_a_ring_during_a_read_makes_another_one() -> None:
    shard = owned()
    it = await ready(shard)
    it.ring(shard)
    it.store.during = lambda: it.ring(shard)
    await it.read()
    it.store.during = lambda: None
    await it.read()
    assert len(it.store.asked) == 2
    assert await it.is_idle()


async def test_all_inboxes_are_looked_at_when_the_channels_are_subscribed_again() -> None:
    shards = [owned(number) for number in range(3)]
    it = await ready(*shards)
    it.reader.look_everywhere()
    await it.read()
    assert it.store.asked == [[shard.keys.inbox for shard in shards]]


async def test_channels_that_are_refused_after_a_cut_are_subscribed_again() -> None:
    """Rules of the user have changed meanwhile: until they are changed back, the round finds messages."""
    one, two = owned(1), owned(2)
    it = await ready(one, two)
    it.bell.refused = {two.keys.inbox}
    it.bell.channels.remove(two.keys.inbox)
    it.reader.look_everywhere()
    await it.read()
    assert it.store.asked == [[one.keys.inbox, two.keys.inbox]]
    with anyio.fail_after(10):
        await it.reader.subscribe_once()
    assert it.bell.channels == [one.keys.inbox, two.keys.inbox]
    await it.read()
    assert it.store.asked[1:] == [[two.keys.inbox]]


async def test_a_shard_that_was_acquired_again_is_read_from_its_beginning() -> None:
    shard, again = owned(1), owned(1)
    it = await ready(shard)
    shard.dropped = True
    it.shards[1] = again
    it.ring(shard)
    await it.subscribed()
    await it.read()
    assert it.store.after == [["0-0"]]
    del it.shards[1]
    await it.subscribed()
    assert shard.keys.inbox not in it.bell.channels
    it.ring(again)
    assert await it.is_idle()


async def test_a_reply_for_a_shard_that_was_dropped_meanwhile_is_not_taken() -> None:
    shard = owned(1)
    it = await ready(shard)
    it.ring(shard)
    it.answer(shard, entry("1-0"))

    def drop() -> None:
        shard.dropped = True

    it.store.during = drop
    await it.read()
    assert ids(shard) == []
    assert it.lost == []


async def test_only_the_shards_that_cannot_be_read_are_given_up() -> None:
    shards = [owned(number) for number in range(4)]
    it = await ready(*shards)
    for shard in shards:
        it.ring(shard)
    it.store.pages[shards[1].keys.inbox] = [FENCED]
    it.store.pages[shards[2].keys.inbox] = [StoreError("WRONGTYPE")]
    it.answer(shards[3], entry("1-0"))
    await it.read()
    assert it.lost == [1, 2]
    assert ids(shards[3]) == ["1-0"]


async def test_draining_and_broken_shards_are_not_read_until_they_serve_again() -> None:
    shards = [owned(number) for number in range(3)]
    it = await ready(*shards)
    shards[0].draining = True
    shards[1].broken = "refused"
    for shard in shards:
        it.ring(shard)
    await it.read()
    assert it.store.asked == [[shards[2].keys.inbox]]
    assert await it.is_idle()
    shards[1].broken = ""
    await it.subscribed()
    await it.read()
    assert it.store.asked[-1] == [shards[1].keys.inbox]


async def test_after_a_refused_subscription_it_is_tried_again() -> None:
    it = Bench(owned(1))
    it.bell.refusal = StoreError("NOPERM")
    with pytest.raises(StoreError):
        await it.subscribed()
    assert await it.is_idle()
    it.bell.refusal = None
    await it.subscribed()
    await it.read()
    assert len(it.store.asked) == 1


async def test_many_inboxes_are_read_in_several_pipelines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "SHARDS", 2)
    shards = [owned(number) for number in range(5)]
    it = Bench(*shards)
    await it.subscribed()
    for _ in range(3):
        await it.read()
    assert [len(asked) for asked in it.store.asked] == [2, 2, 1]


async def test_fewer_inboxes_are_read_in_one_pipeline_after_a_large_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "REPLY_BYTES", 1000)
    shards = [owned(number) for number in range(8)]
    it = await ready(*shards)
    for shard in shards:
        it.ring(shard)
        it.answer(shard, entry("1-1", body=b"x" * 500), more=True)
    for _ in range(4):
        await it.read()
    assert [len(asked) for asked in it.store.asked] == [8, 2, 4, 2]


async def test_few_inboxes_are_read_in_larger_replies_than_many() -> None:
    shards = [owned(number) for number in range(64)]
    it = await ready(*shards)
    it.ring(shards[0])
    await it.read()
    for shard in shards:
        it.ring(shard)
    await it.read()
    assert it.store.limits == [(inbox.HOT_COUNT, inbox.REPLY_BYTES), (inbox.COUNT, inbox.REPLY_BYTES // 64)]


async def test_reading_pauses_while_too_much_waits_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "HIGH_WATER", 2)
    shard = owned()
    it = await ready(shard)
    it.ring(shard)
    it.answer(shard, *(entry(f"1-{n}") for n in range(3)))
    await it.read()
    it.ring(shard)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(it.reader.run_once)
            await anyio.wait_all_tasks_blocked()
            assert len(it.store.asked) == 1
            shard.inbox.clear()
            it.reader.caught_up()
    assert len(it.store.asked) == 2


async def test_reading_pauses_while_too_many_bytes_wait_in_memory() -> None:
    shard = owned(1)
    it = await ready(shard)
    it.ring(shard)
    it.answer(shard, *(entry(f"1-{n}", body=b"x" * (inbox.HIGH_WATER_BYTES // 4)) for n in range(5)))
    await it.read()
    it.ring(shard)
    assert await it.is_idle()
    shard.inbox.clear()
    it.reader.caught_up()
    await it.read()


async def test_messages_that_no_ring_has_announced_are_found_and_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(inbox, "ROUNDS", 2)
    shards = [owned(number) for number in range(4)]
    it = await ready(*shards)
    it.answer(shards[3], entry("1-0"))
    for _ in range(2):
        it.reader.begin_round()
        await it.read()
    assert it.store.asked == [[shards[n].keys.inbox for n in part] for part in ((1, 3), (0, 2))]
    assert ids(shards[3]) == ["1-0"]
    [record] = [record for record in caplog.records if "no ring" in record.message]
    assert "shard 3" in record.message


@pytest.mark.parametrize("comes", ["its ring", "a reconnection"])
async def test_a_message_that_the_round_finds_before_its_ring_comes_is_not_late(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, comes: str
) -> None:
    monkeypatch.setattr(inbox, "ROUNDS", 1)
    shard = owned()
    it = await ready(shard)
    it.answer(shard, entry("1-0"))
    it.reader.begin_round()
    await it.read()
    if comes == "its ring":
        it.ring(shard)
    else:
        it.reader.look_everywhere()
    it.reader.begin_round()
    assert ids(shard) == ["1-0"]
    assert "no ring" not in caplog.text


class FakeCluster(FakeStore):
    """Two servers; replies wait until they are let go."""

    is_single = False

    def __init__(self) -> None:
        super().__init__()
        self.server = 1
        self.replies = anyio.Event()

    def server_of(self, key: str) -> int:
        return self.server

    async def send(self, calls: Sequence[Call[Any]]) -> list[Any]:
        self.asked.append([call.keys[1] for call in calls])
        await self.replies.wait()
        return [InboxPage(Reply.OK, False, [entry("1-0")]) for _ in calls]


async def test_a_shard_that_moves_while_it_is_read_is_not_read_twice() -> None:
    shard = owned()
    it = await ready(shard)
    it.reader._store = store = FakeCluster()  # type: ignore[assignment]
    it.ring(shard)
    await it.read()
    await anyio.wait_all_tasks_blocked()
    store.server = 2
    it.ring(shard)
    await it.read()
    await anyio.wait_all_tasks_blocked()
    assert store.asked == [[shard.keys.inbox]], "its reply is not there yet"
    store.replies.set()
    await anyio.wait_all_tasks_blocked()
    assert ids(shard) == ["1-0"], "each message once"
    await it.read()
    await anyio.wait_all_tasks_blocked()
    assert len(store.asked) == 2, "what rang is read afterwards"


async def test_what_the_dead_owner_had_read_is_suspect_and_nothing_behind_it() -> None:
    shard = owned(1)
    shard.delivered = (1, 1)
    it = Bench(shard)
    news = b"1-0", {b"kind": b"taken", b"run": b"child"}
    it.answer(shard, news, entry("1-1", "in hand"), more=True)
    it.answer(shard, entry("2-0", "new"), more=True)
    await it.subscribed()
    await it.read()
    assert (shard.delivered, shard.careful) == ((1, 1), {"in hand": set()})
    await it.read()
    assert (shard.delivered, shard.careful) == (None, {"in hand": set()})


async def test_an_inbox_that_was_read_to_its_end_has_no_more_suspects() -> None:
    shard = owned(1)
    shard.delivered = (5, 0)
    it = Bench(shard)
    it.answer(shard, entry("1-1", "in hand"))
    await it.subscribed()
    await it.read()
    assert (shard.delivered, shard.careful) == (None, {"in hand": set()})
