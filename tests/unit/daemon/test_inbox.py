"""Reading inboxes: what is new, what is pending after an error, and whose group is gone."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import pytest

from streamflow.daemon import inbox
from streamflow.daemon.inbox import InboxReader
from streamflow.daemon.shard import OwnedShard
from streamflow.daemon.starts import Starts
from streamflow.errors import StoreUnavailable
from streamflow.store.blocking_reads import Entry, GroupGone
from tests.support.fakes import owned

pytestmark = pytest.mark.anyio


class FakeConnection:
    """Answers reads from a list, then waits; notes what was asked for."""

    def __init__(self) -> None:
        self.answers: list[list[Entry] | Exception] = []
        self.asked: list[tuple[list[str], bool]] = []
        self.counts: list[int] = []
        self.gone: set[str] = set()
        self.interrupted = 0
        self.during = lambda: None

    async def read(self, streams: Sequence[str], count: int, *, pending: bool) -> list[Entry]:
        self.asked.append((list(streams), pending))
        self.counts.append(count)
        self.during()
        if self.gone & set(streams):
            raise GroupGone("NOGROUP")
        if not self.answers:
            return []
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def interrupt(self) -> None:
        self.interrupted += 1


class Bench:
    def __init__(self, *shards: OwnedShard) -> None:
        self.shards = {shard.number: shard for shard in shards}
        self.connection = FakeConnection()
        self.notified: list[int] = []
        self.gone: list[int] = []
        self.starts = Starts(16)
        self.reader = InboxReader(
            [self.connection],  # type: ignore[list-item]
            self.shards,
            self.starts,
            lambda shard: self.notified.append(shard.number),
            lambda shard: self.gone.append(shard.number),
        )
        [self.lane] = self.reader._lanes


def entry(shard: OwnedShard, entry_id: str, run: str = "r") -> Entry:
    return shard.keys.inbox, entry_id, {b"kind": b"signal", b"run": run.encode(), b"body": b"x"}


def ids(shard: OwnedShard) -> list[str]:
    return [message.id for message in shard.inbox]


async def test_what_is_read_goes_to_its_shard_and_the_owner_is_notified() -> None:
    one, two = owned(1), owned(2)
    it = Bench(one, two)
    await it.reader.shards_changed()
    await it.lane.run_once()
    it.connection.answers.append([entry(one, "1-0", "a"), entry(two, "2-0", "b"), entry(one, "1-1", "a")])
    await it.lane.run_once()
    assert (ids(one), ids(two)) == (["1-0", "1-1"], ["2-0"])
    assert set(it.notified) == {1, 2}
    both = [one.keys.inbox, two.keys.inbox]
    assert it.connection.asked == [(both, True), (both, False)], "what is pending comes first"
    message = one.inbox[0]
    assert (message.kind, message.run_id, message.body, message.header) == ("signal", "a", b"x", b"")


async def test_bytes_that_are_not_utf_8_do_not_stop_the_reading() -> None:
    shard = owned()
    it = Bench(shard)
    await it.reader.shards_changed()
    bad: Entry = (shard.keys.inbox, "1-0", {b"kind": b"\xff", b"run": b"\xfe"})
    it.connection.answers.append([bad, (shard.keys.inbox, "1-1", None)])
    await it.lane.run_once()
    assert [(message.kind, message.run_id) for message in shard.inbox] == [("\ufffd", "\ufffd"), ("", "")]


async def test_after_an_error_pending_entries_are_read_and_none_is_taken_twice() -> None:
    shard = owned()
    it = Bench(shard)
    await it.reader.shards_changed()
    it.connection.answers.append([])
    await it.lane.run_once()
    it.connection.answers.append([entry(shard, "1-0")])
    await it.lane.run_once()
    it.connection.answers.append(StoreUnavailable("cut"))
    with pytest.raises(StoreUnavailable):
        await it.lane.run_once()
    it.lane._check_pending = True  # as `run` does
    it.connection.answers.append([entry(shard, "1-0"), entry(shard, "1-1")])
    await it.lane.run_once()
    assert ids(shard) == ["1-0", "1-1"]
    assert it.connection.asked[-1][1] is True
    await it.lane.run_once()
    assert it.connection.asked[-1][1] is False, "and then what is new again"


async def test_entries_committed_during_a_pending_read_are_not_taken_again() -> None:
    shard = owned()
    it = Bench(shard)
    await it.reader.shards_changed()
    shard.known.add("1-0")
    # The server answered before the commit, and the answer is seen after it.
    it.connection.during = lambda: shard.acknowledged(["1-0"])
    it.connection.answers.append([entry(shard, "1-0"), entry(shard, "1-1")])
    await it.lane.run_once()
    assert ids(shard) == ["1-1"]
    assert shard.known == {"1-1"}, "what was committed is forgotten afterwards"


async def test_a_dropped_shard_is_not_read_for() -> None:
    one, two = owned(1), owned(2)
    it = Bench(one, two)
    await it.reader.shards_changed()
    one.dropped = True
    await it.lane.run_once()
    assert it.connection.asked == [([two.keys.inbox], True)]


async def test_only_the_shard_whose_group_is_gone_is_given_up() -> None:
    shards = [owned(number) for number in range(4)]
    it = Bench(*shards)
    await it.reader.shards_changed()
    it.connection.gone = {shards[2].keys.inbox}
    await it.lane._find_gone()
    assert it.gone == [2]
    assert [streams for streams, _ in it.connection.asked] == [[shard.keys.inbox] for shard in shards]


async def test_draining_and_broken_shards_are_not_read() -> None:
    shards = [owned(number) for number in range(3)]
    shards[0].draining = True
    shards[1].broken = "refused"
    it = Bench(*shards)
    await it.reader.shards_changed()
    await it.lane.run_once()
    assert it.connection.asked[0][0] == [shards[2].keys.inbox]


async def test_a_change_of_shards_interrupts_the_read_and_no_change_does_not() -> None:
    it = Bench(owned(0))
    await it.reader.shards_changed()
    await it.lane.run_once()
    before = it.connection.interrupted
    await it.reader.shards_changed()
    assert it.connection.interrupted == before
    it.shards[1] = owned(1)
    await it.reader.shards_changed()
    assert it.connection.interrupted == before + 1
    await it.lane.run_once()
    assert len(it.connection.asked[-1][0]) == 2


async def test_shards_are_dealt_to_lanes_by_number() -> None:
    shards = {number: owned(number) for number in range(8)}
    connections = [FakeConnection() for _ in range(4)]
    reader = InboxReader(connections, shards, Starts(16), lambda _: None, lambda _: None)  # type: ignore[arg-type]
    await reader.shards_changed()
    for lane in reader._lanes:
        await lane.run_once()
    expected = [[shards[n].keys.inbox, shards[n + 4].keys.inbox] for n in range(4)]
    assert [connection.asked[0][0] for connection in connections] == expected


async def test_reading_pauses_while_too_much_waits_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "HIGH_WATER", 2)
    shard = owned()
    it = Bench(shard)
    await it.reader.shards_changed()
    it.connection.answers.append([entry(shard, f"1-{n}") for n in range(3)])
    await it.lane.run_once()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(it.lane.run_once)
            await anyio.wait_all_tasks_blocked()
            assert len(it.connection.asked) == 1
            shard.inbox.clear()
            it.reader.caught_up()
    assert len(it.connection.asked) == 2


async def test_a_hot_shard_is_read_in_larger_answers_until_it_has_cooled() -> None:
    one, two = owned(1), owned(2)
    it = Bench(one, two)
    await it.reader.shards_changed()
    await it.lane.run_once()
    numbers = iter(range(100_000))

    def many(shard: OwnedShard, count: int, size: int = 1) -> list[Entry]:
        fields = {b"kind": b"signal", b"run": b"r", b"body": b"x" * size}
        return [(shard.keys.inbox, f"1-{next(numbers)}", fields) for _ in range(count)]

    usual, hot = inbox.COUNT, inbox.HOT_COUNT
    it.connection.answers += [
        many(one, usual),
        many(one, hot),
        many(one, usual) + many(two, usual),
        many(one, usual - 1) + many(two, usual - 1),
        many(one, usual, size=inbox.HOT_BYTES // usual),
        [],
    ]
    for _ in range(6):
        await it.lane.run_once()
    assert it.connection.counts[1:] == [usual, hot, hot, hot // 2, usual, usual]


async def test_reading_pauses_while_too_many_bytes_wait_in_memory() -> None:
    shard = owned(1)
    it = Bench(shard)
    await it.reader.shards_changed()
    await it.lane.run_once()
    fields = {b"kind": b"signal", b"run": b"r", b"body": b"x" * (inbox.HIGH_WATER_BYTES // 4)}
    it.connection.answers.append([(shard.keys.inbox, f"1-{number}", fields) for number in range(5)])
    await it.lane.run_once()
    with anyio.move_on_after(0.05) as paused:
        await it.lane.run_once()
    assert paused.cancelled_caught
    shard.inbox.clear()
    it.reader.caught_up()
    await it.lane.run_once()


async def test_large_messages_are_read_in_smaller_answers_until_they_are_through() -> None:
    shard = owned(1)
    it = Bench(shard)
    await it.reader.shards_changed()
    await it.lane.run_once()
    numbers = iter(range(100_000))
    usual = inbox.COUNT

    def of(size: int, count: int) -> list[Entry]:
        fields = {b"kind": b"signal", b"run": b"r", b"body": b"x" * size}
        return [(shard.keys.inbox, f"1-{next(numbers)}", fields) for _ in range(count)]

    it.connection.answers += [
        of(inbox.ANSWER_BYTES // 8, usual),
        of(inbox.ANSWER_BYTES // 8, usual // 8),
        [],
        [],
        [],
        [],
    ]
    for _ in range(6):
        await it.lane.run_once()
        shard.inbox.clear()
    assert it.connection.counts[1:] == [usual, usual // 8, usual // 4, usual // 2, usual, usual]
