"""What an owner commits again when a server has lost it, against the scripts on a server in memory."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from streamflow.daemon import recent_commits as module
from streamflow.daemon.batch import ShardBatch
from streamflow.daemon.recent_commits import RecentCommits, to_commit_again
from streamflow.daemon.shard import OwnedShard, RunWork
from streamflow.daemon.starts import HeldStart
from streamflow.events import NOTHING, SignalReceived, encode_transition
from streamflow.machine.transition import Outcome
from streamflow.model.record import Header, decode_header
from streamflow.store.connection import Call
from streamflow.store.kernel import Attempt, Batch, Delivery, Message, Put, Reply, RunWrite, Send, Settlement, Start
from streamflow.wire import InboxMessage, encode_outcome
from tests.support.fakes import KERNEL, FakeClock, context
from tests.support.losing_server import LosingServer
from tests.support.machine_driver import raw

pytestmark = pytest.mark.anyio

NOW = 1_700_000_000_000
NOTE = encode_transition(NOW, [SignalReceived("note", NOTHING)])
SOURCE = "client:x"


class Bench(LosingServer):
    """Shard 0, its server, and a daemon of which only the commits exist."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[str, HeldStart] = {}
        self.forgotten: list[int] = []
        self.commits = self._commits()
        self.keys = KERNEL.keys.shard(0)
        self.shard = OwnedShard(0, self.keys, "")
        self.failed: list[tuple[int, Exception]] = []
        self._nonces = 0
        self.posts = 0

    def _commits(self) -> RecentCommits:
        clock = FakeClock()
        return RecentCommits(context(self.store, shards=1, clock=clock), self.held, self.forgotten.append)  # type: ignore[arg-type]

    # --- what happens -------------------------------------------------------------------------------------------------

    async def acquire(self, *, other: bool = False) -> list[OwnedShard]:
        """Acquire the shard, and mend it. `other`: by another daemon, which doesn't mend."""
        self._nonces += 1
        nonce, seen = f"nonce{self._nonces}", (await self.plain("HGET", self.keys.owner, "token") or b"").decode()
        if not other:
            self.commits.acquiring(0, seen, nonce)
        taken = await self.store.one(KERNEL.acquire_shard(0, seen, nonce, "other" if other else "m", NOW))
        assert taken.code is Reply.OK
        shard = OwnedShard(0, self.keys, taken.token)
        if other:
            return [shard]
        self.shard = shard
        shard.history = self.store.server_generation
        return await self.commits.mend([(shard, seen, taken.final)], lambda *what: self.failed.append(what))

    async def start(self, *run_ids: str, created: int = NOW, tenant: str = "") -> None:
        starts = [Start(run_id, "flow", tenant, b"input of " + run_id.encode()) for run_id in run_ids]
        await self.store.one(KERNEL.start_runs(0, starts, created=created))

    async def signal(self, run_id: str, body: bytes) -> None:
        self.posts += 1
        message = Message("signal", run_id, body)
        assert await self.store.one(KERNEL.post_messages(0, SOURCE, self.posts, [message], NOW)) == "a"

    async def signal_again(self, run_id: str, number: int, body: bytes) -> str:
        message = Message("signal", run_id, body, identity=f"m:{SOURCE}.{number}.1", number=number)
        return await self.store.one(KERNEL.post_messages(0, SOURCE, number, [message], NOW, again=True))

    async def inbox(self) -> list[InboxMessage]:
        entries = await self.plain("XRANGE", self.keys.inbox, "-", "+")
        return [
            InboxMessage(
                entry.decode(),
                fields[b"kind"].decode(),
                fields[b"run"].decode(),
                fields[b"body"],
                fields.get(b"header", b""),
                fields.get(b"from", b""),
            )
            for entry, fields in entries
        ]

    async def batch_of(self, *run_ids: str, status: str = "running", **parts: Any) -> ShardBatch:
        """One more transition of each run, that takes all of its messages."""
        commit = f"s.{self.shard.commits + 1}"
        batch = ShardBatch(self.shard, Batch(commit))
        inbox = await self.inbox()
        for run_id in run_ids:
            messages = [message for message in inbox if message.run_id == run_id]
            batch.work[run_id] = RunWork(messages)
            batch.batch.acks += [message.id for message in messages]
            expected = await self.header(run_id)
            old = decode_header(expected)
            header = Header(status, old.version + 1, commit, old.created, 0, old.workflow, old.tenant, old.parent)
            batch.batch.runs.append(RunWrite(run_id, expected, header.encode(), b"", NOTE))
            batch.batch.plans.append((run_id, -1))
        for name, value in parts.items():
            setattr(batch.batch, name, value)
        return batch

    async def commit(self, *run_ids: str, **parts: Any) -> ShardBatch:
        batch = await self.batch_of(*run_ids, **parts)
        await self.send(batch)
        self.shard.commit_accepted()
        self.commits.accepted(self.shard, self.shard.commits, batch)
        return batch

    async def send(self, batch: ShardBatch) -> None:
        committed = await self.store.one(KERNEL.commit(0, self.shard.token, batch.batch, NOW))
        assert committed.code is Reply.OK

    def lose_shard(self, saved: Any, under_way: ShardBatch | None = None) -> None:
        """The server has what it had then, and the daemon has dropped the shard."""
        self.shard.dropped = True
        self.commits.dropped([self.shard], {} if under_way is None else {self.shard: under_way})
        self.lose(saved, self.keys.owner)

    def before_a_commit(self, monkeypatch: pytest.MonkeyPatch, happens: Callable[[], Awaitable[None]]) -> None:
        """Once, between the look at what is there and the commit."""
        send = self.store.send

        async def late(calls: Any, *args: Any, **named: Any) -> Any:
            if any(call.script == "commit" for call in calls):
                monkeypatch.setattr(self.store, "send", send)
                await happens()
            return await send(calls, *args, **named)

        monkeypatch.setattr(self.store, "send", late)

    # --- what is there ------------------------------------------------------------------------------------------------

    async def header(self, run_id: str) -> bytes:
        return await self.plain("LINDEX", self.keys.run(run_id), 0)

    async def state(self) -> dict[str, Any]:
        """All that can be seen of runs."""
        runs = {
            key.decode(): await self.plain("LRANGE", key, 0, -1) for key in sorted(await self.plain("KEYS", "*:run:*"))
        }
        return {
            **runs,
            "agenda": await self.plain("ZRANGE", self.keys.agenda, 0, -1, "WITHSCORES"),
            "running": await self.plain("ZRANGE", self.keys.index("running", "flow"), 0, -1, "WITHSCORES"),
            "completed": await self.plain("ZRANGE", self.keys.index("completed", "flow"), 0, -1, "WITHSCORES"),
            "tenant": await self.plain("ZRANGE", self.keys.tenant("acme"), 0, -1, "WITHSCORES"),
            "outbox": await self.plain("XRANGE", self.keys.outbox, "-", "+"),
            "published": await self.plain("HGETALL", self.keys.published("a")),
            "log": [fields for _, fields in await self.plain("XRANGE", self.keys.log, "-", "+")],
            "inbox": [(message.kind, message.run_id, message.body) for message in await self.inbox()],
        }


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    await bench.acquire(other=True)
    await bench.acquire()
    yield bench
    await bench.store.close()


def test_of_a_commit_all_is_kept_that_another_one_needs() -> None:
    fields: dict[str, Any] = {name: ["one"] for name in Batch.__struct_fields__}
    fields |= {"commit": "c", "notification": b"n"}
    batch = Batch(**fields)
    kept = to_commit_again(batch)
    lost = {name for name in Batch.__struct_fields__ if getattr(kept, name) != getattr(batch, name)}
    assert lost == {"commit", "acks", "sent", "poisons", "repeats"}


async def test_all_that_commits_have_written_is_there_again(bench: Bench) -> None:
    await bench.start("before")
    await bench.commit("before")
    saved = bench.saved()
    await bench.start("a", "b", tenant="acme")
    await bench.commit("a", "b", cuts=[(1, b"short")])
    await bench.signal("a", b"taken")
    epoch = bench.shard.epoch
    await bench.commit(
        "a",
        sends=[Send(f"{epoch}-7", b"to others")],
        puts=[Put(bench.keys.published("a"), "progress", b"half")],
    )
    moves = [("b", bench.keys.index("running", "flow"), bench.keys.index("completed", "flow"), NOW + 5)]
    await bench.commit("b", status="completed", moves=moves)
    expected = await bench.state()
    bench.lose_shard(saved)
    assert await bench.acquire() == [bench.shard]
    assert await bench.state() == expected
    assert (bench.commits.transitions, bench.commits.runs) == (4, 2)
    assert not bench.failed
    await bench.commit("a")  # the shard's next commit has the next number


async def test_nothing_happens_where_nothing_is_missing(bench: Bench) -> None:
    await bench.start("a")
    await bench.commit("a")
    saved, expected = bench.saved(), await bench.state()
    bench.lose_shard(saved)
    await bench.acquire()
    assert await bench.state() == expected
    assert bench.commits.transitions == 0


async def test_the_acquisition_itself_may_be_lost(bench: Bench) -> None:
    saved = bench.saved()
    await bench.acquire()
    await bench.start("a")
    await bench.commit("a")
    bench.lose_shard(saved)
    await bench.acquire()
    assert bench.commits.transitions == 1


async def test_a_second_failover_may_lose_what_was_committed_again(bench: Bench) -> None:
    await bench.start("a")
    saved = bench.saved()
    await bench.commit("a")
    await bench.commit("a")
    bench.lose_shard(saved)
    await bench.acquire()
    between = bench.saved()
    await bench.commit("a")
    expected = await bench.state()
    for lost in (saved, between, saved):
        bench.lose_shard(lost)
        await bench.acquire()
        assert await bench.state() == expected


async def test_an_owner_that_dies_in_between_leaves_a_beginning(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.start("a")
    saved = bench.saved()
    for _ in range(3):
        await bench.commit("a")
    bench.lose_shard(saved)
    monkeypatch.setattr(module, "TOGETHER", 1)
    sent: list[Any] = []
    send = bench.store.send

    async def dies(calls: Any, *args: Any, **named: Any) -> Any:
        if any(call.script == "commit" for call in calls):
            sent.append(calls)
            if len(sent) == 3:
                raise ConnectionError
        return await send(calls, *args, **named)

    monkeypatch.setattr(bench.store, "send", dies)
    with pytest.raises(ConnectionError):
        await bench.acquire()
    assert decode_header(await bench.header("a")).version == 2, "what is there is consistent"
    monkeypatch.undo()
    await bench.acquire()
    assert decode_header(await bench.header("a")).version == 3, "and the same daemon goes on"


async def test_another_owner_in_between_is_not_overruled(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    await bench.start("a", "b")
    saved = bench.saved()
    await bench.commit("a", "b")
    bench.lose_shard(saved)
    [bench.shard] = await bench.acquire(other=True)
    batch = await bench.batch_of("a")
    await bench.send(batch)
    expected = await bench.state()
    assert await bench.acquire() == [bench.shard]
    assert await bench.state() == expected
    assert "had another owner" in caplog.text


async def test_a_run_that_is_another_one_now_is_left_as_it_is(bench: Bench) -> None:
    """Somebody has started one under the same id; the others of its commits are there again."""
    saved = bench.saved()
    await bench.start("a", "b")
    await bench.commit("a", "b", puts=[Put(bench.keys.published("a"), "progress", b"half")])
    await bench.commit("a")
    await bench.commit("b")
    bench.lose_shard(saved)
    await bench.start("a", created=NOW + 7)
    await bench.acquire()
    assert decode_header(await bench.header("a")).version == 0
    assert decode_header(await bench.header("b")).version == 2
    assert await bench.plain("HGETALL", bench.keys.published("a")) == {}
    assert [(message.kind, message.run_id) for message in await bench.inbox()] == [("start", "a")]
    await bench.commit("a")
    bench.lose_shard(bench.saved())
    await bench.acquire()
    assert not bench.failed


@pytest.mark.parametrize("when", ["before", "behind"])
async def test_a_start_that_its_client_sends_again_is_the_same_run(bench: Bench, when: str) -> None:
    saved = bench.saved()
    await bench.start("a")
    await bench.commit("a")
    expected = await bench.state()
    bench.lose_shard(saved)
    if when == "before":
        await bench.start("a")
    await bench.acquire()
    await bench.start("a")
    assert await bench.state() == expected


async def test_a_child_whose_start_came_again_is_the_one_that_was_lost(bench: Bench) -> None:
    """Its source delivers it again, at another time."""

    def deliver(at: int) -> Call[str]:
        start = Delivery("9-1", "start", "a", b"input", workflow="flow", parent="p#1@5")
        return KERNEL.deliver_messages(0, 3, [start], at)

    saved = bench.saved()
    await bench.store.one(deliver(NOW))
    await bench.commit("a")
    expected = await bench.state()
    bench.lose_shard(saved)
    await bench.store.one(deliver(NOW + 9))
    await bench.acquire()
    assert await bench.state() == expected


async def test_no_message_is_taken_twice(bench: Bench) -> None:
    await bench.start("a")
    await bench.commit("a")
    await bench.signal("a", b"is there still")
    saved = bench.saved()
    await bench.signal("a", b"comes before")
    await bench.signal("a", b"comes behind")
    await bench.commit("a")
    expected = await bench.state()
    bench.lose_shard(saved)
    assert await bench.signal_again("a", 2, b"comes before") == "a"
    await bench.acquire()
    assert await bench.signal_again("a", 3, b"comes behind") == "d"
    assert await bench.state() == expected
    assert expected["inbox"] == []


async def test_what_was_taken_leaves_the_inbox_also_without_identity(bench: Bench) -> None:
    """The outcome of a step, say."""
    await bench.start("a")
    await bench.commit("a")
    await bench.plain("XADD", bench.keys.inbox, "*", "kind", "outcome", "run", "a", "body", "x")
    saved = bench.saved()
    await bench.commit("a")
    bench.lose_shard(saved)
    await bench.acquire()
    assert await bench.inbox() == []


async def test_a_start_that_waits_again_is_through(bench: Bench) -> None:
    saved = bench.saved()
    large = Start("a", "flow", "", b"x" * 5000)
    await bench.store.one(KERNEL.start_runs(0, [large], created=NOW))
    await bench.plain("ZREM", bench.keys.waiting, "a")  # it didn't wait then
    await bench.commit("a")
    bench.lose_shard(saved)
    await bench.store.one(KERNEL.start_runs(0, [large], created=NOW))
    assert await bench.plain("ZRANGE", bench.keys.waiting, 0, -1) == [b"a"]
    await bench.acquire()
    assert await bench.plain("ZRANGE", bench.keys.waiting, 0, -1) == []
    assert (await bench.state())["sf:{ns/0}:run:a"][1:] == [b"", NOTE], "its input is not taken for a state"


async def test_a_message_that_comes_during_the_look_is_not_taken_twice(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.start("a")
    await bench.commit("a")
    saved = bench.saved()
    await bench.signal("a", b"lost")
    await bench.commit("a")
    expected = await bench.state()
    bench.lose_shard(saved)

    async def comes() -> None:
        assert await bench.signal_again("a", 1, b"lost") == "a"

    bench.before_a_commit(monkeypatch, comes)
    await bench.acquire()
    assert await bench.state() == expected


async def test_a_start_that_comes_during_the_look_is_no_reason_to_stop(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = bench.saved()
    await bench.start("a", "b")
    await bench.commit("b")
    await bench.commit("a")
    expected = await bench.state()
    bench.lose_shard(saved)

    async def comes() -> None:
        await bench.start("a")

    bench.before_a_commit(monkeypatch, comes)
    await bench.acquire()
    assert not bench.failed
    assert await bench.state() == expected


async def test_a_new_message_with_the_id_of_a_lost_one_stays(bench: Bench) -> None:
    await bench.start("a")
    await bench.commit("a")
    saved = bench.saved()
    await bench.signal("a", b"lost")
    (lost,) = await bench.inbox()
    await bench.commit("a")
    bench.lose_shard(saved)
    await bench.plain("XADD", bench.keys.inbox, lost.id, "kind", "signal", "run", "a", "body", "new")
    await bench.acquire()
    assert [message.body for message in await bench.inbox()] == [b"new"]


async def test_a_commit_under_way_is_made_although_nobody_has_learned_of_it(bench: Bench) -> None:
    """What it was decided from, such as the outcome of a step, would be gone."""
    await bench.start("a")
    await bench.commit("a")
    saved = bench.saved()
    batch = await bench.batch_of("a")
    batch.is_sent = True
    bench.lose_shard(saved, batch)
    await bench.acquire()
    assert decode_header(await bench.header("a")).version == 2
    bench.lose_shard(bench.saved())
    await bench.acquire()
    assert bench.commits.transitions == 1


async def test_starts_that_were_read_and_not_committed_are_there_again(bench: Bench) -> None:
    saved = bench.saved()
    await bench.start("a", "b", "c")
    bench.shard.inbox.extend(await bench.inbox())
    held = bench.shard.inbox.pop()
    bench.held["c"] = HeldStart(bench.shard, held)
    bench.lose_shard(saved)
    await bench.acquire()
    headers = [await bench.header(run_id) for run_id in ("a", "b", "c")]
    assert [decode_header(header).created for header in headers] == [NOW] * 3
    assert [message.body for message in await bench.inbox()] == [b"input of a", b"input of b", b"input of c"]
    assert bench.commits.runs == 3


async def test_a_start_that_is_there_again_keeps_what_it_asks_for(bench: Bench) -> None:
    saved = bench.saved()
    start = Start("a", "flow", "", b"input", "trace", "d5000,t7,i0a")
    await bench.store.one(KERNEL.start_runs(0, [start], created=NOW))
    before = await bench.header("a")
    bench.shard.inbox.extend(await bench.inbox())
    bench.lose_shard(saved)
    await bench.acquire()
    assert await bench.header("a") == before
    assert decode_header(before).start == f"b{NOW + 5000},t7,i0a"


@pytest.mark.parametrize(
    ("there", "is_replaced"),
    [
        (Header("failed", 3, "c", 5, 9, "flow", "", ""), True),
        (Header("running", 3, "c", 5, 0, "flow", "", ""), False),
        (Header("failed", 3, "c", NOW + 1, NOW + 2, "flow", "", ""), False),
    ],
    ids=["ended", "open", "later"],
)
async def test_a_start_takes_the_place_again_of_the_run_it_had_replaced(
    bench: Bench, there: Header, is_replaced: bool
) -> None:
    """Its client may be gone."""
    await bench.plain("RPUSH", bench.keys.run("a"), there.encode(), "", "transition")
    saved = bench.saved()
    await bench.plain("DEL", bench.keys.run("a"))
    await bench.store.one(KERNEL.start_runs(0, [Start("a", "flow", "", b"input", "", "i0a")], created=NOW))
    before = await bench.header("a")
    bench.shard.inbox.extend(await bench.inbox())
    bench.lose_shard(saved)
    await bench.acquire()
    assert await bench.header("a") == (before if is_replaced else there.encode())


async def test_what_was_given_up_or_deleted_does_not_come_back(bench: Bench) -> None:
    for forget in (lambda: bench.commits.given_up(0), bench.commits.forget_all):
        saved = bench.saved()
        await bench.start("a")
        await bench.commit("a")
        forget()
        bench.lose_shard(saved)
        await bench.acquire()
        assert await bench.header("a") is None
    saved = bench.saved()
    await bench.start("a")
    await bench.commit("a")
    bench.lose_shard(saved)
    await bench.plain("FLUSHALL")
    await bench.acquire()
    assert await bench.header("a") is None, "the data are other ones"


async def test_little_is_kept_and_not_for_long(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = bench.saved()
    await bench.start("a", "b")
    await bench.commit("a")
    monkeypatch.setattr(module, "KEEP_BYTES", 1600)
    await bench.commit("b")
    bench.lose_shard(saved)
    await bench.acquire()
    assert await bench.header("a") is None
    assert decode_header(await bench.header("b")).version == 1
    assert bench.forgotten == [0], "and that is said"
    later = time.monotonic() + module.KEEP_SECONDS + 1
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: later))
    await bench.start("c")
    await bench.commit("c")
    assert len(bench.commits._all) == 1
    bench.lose_shard(bench.saved())
    await bench.acquire()
    assert bench.forgotten == [0], "what is old is there"


def owned(number: int) -> OwnedShard:
    return OwnedShard(number, KERNEL.keys.shard(number), f"1:nonce{number}")


def small_batch(shard: OwnedShard) -> ShardBatch:
    return ShardBatch(shard, Batch("s.1", [RunWrite("a", b"", b"", b"", NOTE)]))


async def test_giving_up_shard_after_shard_goes_through_all_commits_few_times(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drained daemon gives up all of its shards at once, and has kept thousands of commits."""
    examined = 0

    class Watched(deque[Any]):
        def __iter__(self) -> Iterator[Any]:
            nonlocal examined
            examined += len(self)
            return super().__iter__()

    shards = [owned(number) for number in range(64)]
    commits = bench.commits
    commits._all = Watched()
    for number in range(1, 11):
        for shard in shards:
            commits.accepted(shard, number, small_batch(shard))
    kept = len(commits._all)
    assert kept == 640
    size = commits._bytes // kept
    monkeypatch.setattr(module, "deque", Watched)
    for count, shard in enumerate(shards, start=1):
        commits.given_up(shard.number)
        assert commits._bytes == size * (kept - 10 * count)
        assert len(commits._all) <= 2 * (kept - 10 * count), "what is gone takes no more than what is kept"
    assert examined < 3 * kept


async def test_large_commits_that_are_gone_do_not_stay_behind_many_small_ones(bench: Bench) -> None:
    commits = bench.commits
    for number in range(1, 1001):
        commits.accepted(owned(0), number, small_batch(owned(0)))
    for number in range(1, 300):
        large = small_batch(owned(1))
        large.size = module.KEEP_BYTES // 100
        commits.accepted(owned(1), number, large)
        commits.given_up(1)
        assert (
            commits._gone_bytes == sum(entry.size for entry in commits._all if entry.is_gone) <= module.KEEP_BYTES // 8
        )
    assert len(commits._by_shard[0]) == 1000


async def test_what_is_gone_is_not_what_was_forgotten_last(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given up, and too old afterwards: the next commits of the shard are another owner's."""
    commits = bench.commits
    for number in (0, 1, 1, 1):
        commits.accepted(owned(number), 1, small_batch(owned(number)))
    commits.given_up(0)
    later = time.monotonic() + module.KEEP_SECONDS + 1
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: later))
    commits.accepted(owned(2), 1, small_batch(owned(2)))
    assert set(commits._forgotten) == {1}
    assert (len(commits._all), commits._gone) == (1, 0)


async def test_a_shard_that_cannot_be_mended_is_acquired_without(bench: Bench) -> None:
    saved = bench.saved()
    await bench.start("a")
    await bench.commit("a", plans=[("a", -1)])
    bench.lose_shard(saved)
    await bench.plain("SET", bench.keys.agenda, "somebody's")
    assert await bench.acquire() == []
    assert [number for number, _ in bench.failed] == [0]
    await bench.plain("DEL", bench.keys.agenda)
    assert await bench.acquire() == [bench.shard]


@pytest.mark.parametrize("lost", [True, False])
async def test_attempts_that_have_ended_do_not_come_back_to_their_queue(bench: Bench, lost: bool) -> None:
    """Whether the server has lost that they were added, or only that they have ended."""
    queue = KERNEL.keys.queue("gpu", 0)
    await bench.start("a", "b")
    await bench.commit("a", "b")
    before = bench.saved()
    attempts = [Attempt("gpu", f"{run_id}/1", f"{NOW} 1", b"job") for run_id in ("a", "b")]
    await bench.commit("a", "b", attempts=attempts)
    added = bench.saved()
    entry = (await bench.plain("HGET", queue.steps, "a/1")).decode().split()[0]
    outcome = encode_outcome(Outcome(1, 1, 2.0, raw(5)))
    assert await bench.store.one(KERNEL.settle_attempts("gpu", 0, [Settlement(entry, "a/1", outcome)])) == "a"
    await bench.commit("a")
    bench.lose_shard(before if lost else added)
    await bench.acquire()
    assert await bench.plain("HKEYS", queue.steps) == [b"b/1"]
    [(_, left)] = await bench.plain("XRANGE", queue.stream, "-", "+")
    assert left[b"step"] == b"b/1"
    assert bench.commits.transitions == (3 if lost else 1)


async def test_a_message_that_was_delivered_goes_out_again(bench: Bench) -> None:
    """Its target may be on the same server, and have lost it before it took it. If it has it, it knows the number."""
    await bench.start("a")
    saved = bench.saved()
    number = f"{bench.shard.epoch}-7"
    await bench.commit("a", sends=[Send(number, b"to others")])
    await bench.commit("a", sent=[number])
    assert await bench.plain("XLEN", bench.keys.outbox) == 0
    bench.lose_shard(saved)
    await bench.acquire()
    assert [entry for entry, _ in await bench.plain("XRANGE", bench.keys.outbox, "-", "+")] == [number.encode()]
