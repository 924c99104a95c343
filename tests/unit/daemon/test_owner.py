"""The owner's cycle: nothing starts before its commit is accepted, and every answer of the server has its reaction."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pytest

import streamflow as sf
from streamflow.daemon.batch import BYTES, ShardBatch
from streamflow.daemon.owner import Owner
from streamflow.daemon.relay import OutboxEntry
from streamflow.daemon.shard import OwnedShard
from streamflow.daemon.timers import SLACK
from streamflow.errors import StoreError, StoreUnavailable
from streamflow.events import SignalSent, decode_history
from streamflow.machine.replay import PIECE
from streamflow.machine.transition import Due, Outcome
from streamflow.model.record import decode_header
from streamflow.store.connection import Call
from streamflow.store.kernel import Committed, DueRuns, Reply
from streamflow.wire import InboxMessage
from streamflow.workflow.actions import StepJob
from tests.support.fakes import OK, FakeClock, FakeStore, context, counts_of, owned, pack, put, runs_of, signal, start
from tests.support.machine_driver import raw

pytestmark = pytest.mark.anyio

app = sf.App()


@app.step
async def act(x: int) -> int:
    return x


@app.workflow
async def quick(x: int) -> int:
    return x


@app.workflow
async def stepping(x: int) -> int:
    return await act(x)


@app.step
async def take(data: str) -> None: ...


@app.workflow
async def stepping_with(data: str) -> None:
    await take(data)


@app.workflow
async def sleeping(seconds: int) -> str:
    await sf.sleep(seconds)
    return "slept"


@app.workflow
async def listening() -> int:
    return await sf.signal("go", int)


@app.workflow
async def step_with_limit() -> str:
    async def limit() -> None:
        await sf.sleep(5)

    await sf.gather(act(1), limit())
    return "both"


@app.workflow
async def hurried(x: int) -> int:
    with sf.timeout(86_400):
        return await act(x)


@app.workflow
async def hurried_then_not() -> int:
    with sf.timeout(86_400):
        await act(1)
    return await act(2)


@app.workflow
async def relaying(count: int) -> None:
    """Each item is sent on, so an input of some size decides as much again."""
    for _ in range(count):
        await sf.send_signal("friend", "item", await sf.signal("item"))


@app.workflow
async def parent() -> int:
    return await quick(1)


class Steps:
    """In place of the executor: notes what is started and cancelled."""

    def __init__(self) -> None:
        self.crowded = False
        self.started: list[tuple[int, str, int, int]] = []
        self.jobs: list[StepJob] = []
        self.cancelled: list[tuple[str, int]] = []
        self.conditions: list[Any] = []

    def submit(self, shard: int, run_id: str, job: StepJob) -> None:
        self.started.append((shard, run_id, job.seq, job.attempt))
        self.jobs.append(job)

    def cancel(self, run_id: str, seq: int) -> None:
        self.cancelled.append((run_id, seq))

    def cancel_where(self, wanted: Any) -> None:
        self.conditions.append(wanted)


class Sends:
    def __init__(self) -> None:
        self.handed_over: list[tuple[int, str, str]] = []
        self.on_sent: Callable[[OwnedShard], None] = lambda _: None

    def hand_over(self, source: OwnedShard, entries: list[OutboxEntry]) -> None:
        self.handed_over += [(source.number, sent.kind, sent.run_id) for entry in entries for sent in entry.messages]


class Bench:
    """An owner with a store in memory: committed records can be read again."""

    def __init__(self, cache: int = 100, **answers: Any) -> None:
        self.records: dict[str, list[bytes]] = {}
        self.answers: list[Any] = []
        self.page = 1000
        self.store = FakeStore(**{"commit": self._commit, "read_runs": self._read, **answers})
        self.steps, self.sends, self.clock = Steps(), Sends(), FakeClock()
        self.lost = 0
        self.owner = Owner(
            context(self.store, app, clock=self.clock, shards=8, cache=cache),
            self.steps,  # type: ignore[arg-type]
            self.sends,  # type: ignore[arg-type]
        )
        self.owner.on_lost = self._note_lost
        self.shard = owned()
        self.owner.add(self.shard)

    def _note_lost(self) -> None:
        self.lost += 1

    def _commit(self, call: Call[Any]) -> Any:
        answer = self.answers.pop(0) if self.answers else OK
        if isinstance(answer, Committed) and answer.code is Reply.OK:
            for run_id, (header, state, transition) in runs_of(call).items():
                self.records.setdefault(run_id, [b"", b""])[:2] = [header, state]
                self.records[run_id].append(transition)
        return answer

    def _read(self, call: Call[Any]) -> Any:
        """Of each record one page of at most `page` elements."""
        firsts = zip(call.keys, call.args[1:], strict=True)
        found = [(first, self.records.get(key.rpartition(":")[2], [])) for key, first in firsts]
        return [
            (None if first + self.page >= len(record) else first + self.page, record[first : first + self.page])
            for first, record in found
        ]

    @property
    def commits(self) -> list[Call[Any]]:
        return self.store.sent("commit")

    def status(self, run_id: str) -> str:
        return decode_header(self.records[run_id][0]).status

    async def turn(self) -> None:
        """Everything that is ready is reduced and committed."""
        self.owner.wake(self.shard)
        with anyio.fail_after(10):
            await self.owner.process(await self.owner.run_once())

    async def owner_has_nothing_to_do(self) -> None:
        """Everything that was ready is looked at."""

        async def loop() -> None:
            while True:
                await self.owner.process(await self.owner.run_once())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(loop)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()

    async def take_in(self, *messages: Any) -> None:
        put(self.shard, *messages)
        await self.turn()


async def test_a_step_starts_when_the_commit_that_decided_it_is_accepted() -> None:
    bench = Bench()
    started_at_commit: list[int] = []
    commit = bench.store.answers["commit"]
    bench.store.answers["commit"] = lambda call: started_at_commit.append(len(bench.steps.started)) or commit(call)
    await bench.take_in(start("1-0", "r", "stepping", 5))
    assert started_at_commit == [0]
    assert bench.steps.started == [(0, "r", 1, 1)]


async def test_a_message_for_another_shard_leaves_when_the_commit_is_accepted() -> None:
    bench = Bench()
    bench.answers = [Committed(Reply.FENCED, 0, "", [])]
    await bench.take_in(start("1-0", "p", "parent"))
    assert bench.sends.handed_over == []
    bench = Bench()
    await bench.take_in(start("1-0", "p", "parent"))
    [(shard, kind, run_id)] = bench.sends.handed_over
    assert (shard, kind, run_id.partition("~")[0]) == (0, "start", "p.1")


async def test_an_outcome_is_processed_in_the_next_batch_from_memory() -> None:
    bench = Bench()
    await bench.take_in(start("1-0", "r", "stepping", 5))
    bench.owner.outcome(0, "r", Outcome(1, 1, 2.0, raw(5)))
    await bench.turn()
    assert bench.status("r") == "completed"
    assert bench.store.sent("read_runs") == []
    assert bench.owner.live == 0


async def test_an_outcome_for_a_shard_that_was_lost_is_dropped() -> None:
    bench = Bench()
    bench.owner.outcome(5, "r", Outcome(1, 1, 2.0, raw(5)))
    assert not bench.shard.has_work


async def test_a_run_that_is_not_in_memory_is_read_and_its_steps_start_again() -> None:
    before = Bench()
    await before.take_in(start("1-0", "r", "stepping", 5))
    bench = Bench()
    bench.records = before.records
    bench.shard.add_input("r", Due())
    await bench.turn()
    assert bench.steps.started == [(0, "r", 1, 1)]
    (commit,) = bench.commits
    assert not [key for key in commit.keys if ":run:" in key], "reading it again adds no event; only the agenda is set"


async def test_a_long_record_is_read_in_pages_and_replayed_once() -> None:
    bench = Bench(cache=1)
    await bench.take_in(start("1-0", "r", "relaying", 9), start("1-1", "s", "listening"))
    for number in range(8):
        await bench.take_in(signal(f"2-{number}", "r", "item", number))
    await bench.take_in(signal("3-0", "s", "other"))
    assert set(bench.shard.live) == {"s"}
    bench.page = 3
    calls = len(bench.store.sent("read_runs"))
    await bench.take_in(signal("4-0", "r", "item", 8))
    assert bench.status("r") == "completed"
    firsts = [call.args[1] for call in bench.store.sent("read_runs")[calls:]]
    assert firsts == [0, 3, 6, 9]


async def test_a_long_replay_lets_the_event_loop_have_its_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamflow.daemon.owner.LONGEST_TURN", 0.0)
    bench = Bench(cache=1)
    await bench.take_in(start("1-0", "r", "relaying", 500), start("1-1", "s", "listening"))
    for first in (0, 200):
        await bench.take_in(*(signal(f"2-{number}", "r", "item", number) for number in range(first, first + 200)))
    await bench.take_in(signal("3-0", "s", "other"))
    assert set(bench.shard.live) == {"s"}
    turns, watched = 0, list[str]()

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            watched.append(bench.owner.watch.run_id)
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        await bench.take_in(signal("4-0", "r", "item", 400))
        tasks.cancel_scope.cancel()
    assert turns > 400 // PIECE
    assert set(watched) == {""}, "in its pauses it blocks nobody"
    assert bench.shard.live["r"].header.version == 4


async def test_a_shard_that_is_lost_during_a_replay_keeps_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamflow.daemon.owner.LONGEST_TURN", 0.0)
    bench = Bench(cache=1)
    await bench.take_in(start("1-0", "r", "relaying", 500), start("1-1", "s", "listening"))
    await bench.take_in(*(signal(f"2-{number}", "r", "item", number) for number in range(400)))
    await bench.turn()  # one batch doesn't take them all
    await bench.take_in(signal("3-0", "s", "other"))
    assert list(bench.shard.live) == ["s"], "there is room for one run"
    commits = len(bench.commits)

    async def lose() -> None:
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        bench.owner.drop(bench.shard)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lose)
        await bench.take_in(signal("4-0", "r", "item", 400))
    assert bench.shard.live == {}
    assert len(bench.commits) == commits


def seven_shards(bench: Bench) -> list[OwnedShard]:
    """In each a start waits, of a run with a step."""
    shards = [bench.shard, *(owned(number) for number in range(1, 7))]
    for shard in shards[1:]:
        bench.owner.add(shard)
    for shard in shards:
        put(shard, start(f"1-{shard.number}", f"r{shard.number}", "stepping", 1))
        bench.owner.wake(shard)
    return shards


async def test_between_the_decisions_of_shards_others_have_their_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """And between those of what follows. A shard that is lost then commits nothing."""
    monkeypatch.setattr("streamflow.daemon.owner.LONGEST_TURN", 0.0)
    bench = Bench()
    shards = seven_shards(bench)
    decided: list[int] = []
    started: list[int] = []

    async def other() -> None:
        while True:
            decided.append(sum(bool(shard.live) for shard in shards))
            started.append(len(bench.steps.started))
            if decided[-1] == 3:
                bench.owner.drop(shards[0])
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        await bench.turn()
        tasks.cancel_scope.cancel()
    assert set(decided) >= set(range(2, 7))
    assert set(started) >= set(range(1, 6))
    assert {call.keys[0] for call in bench.commits} == {shard.keys.owner for shard in shards[1:]}
    assert len(bench.steps.started) == 6


async def test_records_of_many_shards_share_the_limit_of_a_pipeline() -> None:
    bench = Bench(cache=100)
    shards = [owned(number) for number in range(1, 7)]
    for shard in shards:
        bench.owner.add(shard)
        shard.add_input(f"r{shard.number}", Due())
    await bench.turn()
    limits = [call.args[0] for call in bench.store.sent("read_runs")]
    assert limits == [BYTES // 6] * 6


async def test_inputs_that_are_too_much_together_are_taken_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamflow.daemon.batch.LARGEST", 5000)
    bench = Bench()
    await bench.take_in(start("1-0", "r", "relaying", 12))
    put(bench.shard, *(signal(f"2-{n}", "r", "item", [n, "x" * 900]) for n in range(12)))
    turns = 0
    while bench.shard.has_work:
        await bench.turn()
        turns += 1
    assert bench.status("r") == "completed"
    history = [event for transition in decode_history(bench.records["r"][2:]) for event in transition.events]
    sent = [msgspec.msgpack.decode(event.value)[0] for event in history if isinstance(event, SignalSent)]
    assert sent == list(range(12))
    assert turns <= 14, "one that was too large, then one for each"
    assert max(map(len, bench.records["r"])) < 5000
    assert (bench.shard.portions, bench.shard.oversize) == ({}, {})


async def test_commits_of_several_shards_are_divided_among_pipelines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamflow.daemon.owner.BYTES", 1500)
    bench = Bench()
    for number in range(1, 6):
        shard = owned(number)
        bench.owner.add(shard)
        put(shard, start("1-0", f"r{number}", "stepping_with", "x" * 1000))
    while bench.owner._ready:
        await bench.turn()
    pipelines = [len(calls) for calls in bench.store.calls if calls[0].script == "commit"]
    assert sum(pipelines) == 5
    assert max(pipelines) <= 2


async def test_a_record_that_makes_no_sense_harms_its_run_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(cache=1)
    await bench.take_in(start("1-0", "bad", "listening"), start("1-1", "r", "listening"))
    bench.shard.live.clear()
    made = bench.owner._machine

    def machine(shard: OwnedShard, run_id: str, *rest: Any) -> Any:
        if run_id == "bad":
            raise KeyError("a fact about nothing")
        return made(shard, run_id, *rest)

    monkeypatch.setattr(bench.owner, "_machine", machine)
    await bench.take_in(signal("2-0", "bad", "go", 1), signal("2-1", "r", "go", 2))
    assert bench.status("r") == "completed"
    assert "the record of run bad in shard 0 can't be read; its 1 messages are quarantined: KeyError" in caplog.text


async def test_views_count_what_was_committed_and_the_checkpoint_moves() -> None:
    bench = Bench()
    await bench.take_in(start("1-0", "r", "quick", 5))
    shard = bench.shard
    assert (shard.offset, shard.unfolded) == ("5-0", 1)
    assert shard.views.render(0)["runs"]["status"]["completed"] == 1


async def test_the_same_answer_again_is_as_good_as_the_first() -> None:
    bench = Bench()
    bench.answers = [Committed(Reply.DUP, 1_000_000, "5-0", [])]
    await bench.take_in(start("1-0", "r", "stepping", 5))
    assert bench.steps.started == [(0, "r", 1, 1)]
    assert bench.shard.offset == "5-0"


async def test_a_fenced_commit_means_that_the_shard_is_lost() -> None:
    bench = Bench()
    bench.answers = [Committed(Reply.FENCED, 0, "", [])]
    await bench.take_in(start("1-0", "r", "stepping", 5))
    assert bench.shard.dropped
    assert bench.owner.shards == {}
    assert bench.lost == 1
    assert bench.steps.started == []
    assert bench.shard.views.render(0)["runs"]["status"]["running"] == 0, "nothing of it is counted"


async def test_when_the_server_has_lost_commits_everything_is_dropped_at_once() -> None:
    bench = Bench()
    dropped: list[bool] = []
    bench.owner.on_other_history = lambda: dropped.append(bench.shard.dropped)
    bench.answers = [Committed(Reply.BEHIND, 0, "", [""])]
    await bench.take_in(start("1-0", "r", "stepping", 5))
    assert dropped == [True]
    assert bench.owner.shards == {}
    assert bench.steps.started == []


async def test_commits_that_were_decided_before_the_history_changed_are_not_sent() -> None:
    bench = Bench()
    bench.store.answers["commit"] = _other_history
    await bench.take_in(start("1-0", "r", "stepping", 5))
    assert bench.shard.dropped
    assert bench.steps.started == []


def _other_history(_: Any) -> Any:
    raise StoreUnavailable("another history")


async def test_the_numbers_of_commits_have_no_gaps() -> None:
    """A batch that was refused, or had nothing to commit, has not used up its number."""
    bench = Bench()
    await bench.take_in(start("1-0", "r", "listening"))
    bench.answers = [Committed(Reply.CONFLICT, 0, "", ["r"])]
    await bench.take_in(signal("2-0", "r", "other", 7))
    await bench.turn()
    bench.shard.add_input("r", Due())
    await bench.turn()
    await bench.take_in(signal("3-0", "r", "go", 7))
    ids = [call.args[1].partition(".")[2] for call in bench.commits]
    assert [number.partition(".")[0] for number in ids] == ["1", "2", "2", "3"]
    assert len(set(ids)) == 4, "a copy of the one that was refused is not taken for the one after it"


async def test_after_a_conflict_the_run_is_read_again_and_nothing_is_lost() -> None:
    bench = Bench()
    await bench.take_in(start("1-0", "r", "listening"), start("1-1", "other", "listening"))
    bench.answers = [Committed(Reply.CONFLICT, 0, "", ["r"])]
    await bench.take_in(signal("2-0", "r", "go", 7), signal("2-1", "other", "go", 8))
    assert [bench.status("r"), bench.status("other")] == ["running", "running"]
    await bench.turn()
    assert [bench.status("r"), bench.status("other")] == ["completed", "completed"]
    assert {key.rpartition(":")[2] for call in bench.store.sent("read_runs") for key in call.keys} == {"r", "other"}
    [condition] = bench.steps.conditions
    assert condition(type("Running", (), {"run_id": "r"}))
    assert not condition(type("Running", (), {"run_id": "other"}))


async def test_a_forged_start_costs_one_conflict_and_not_an_endless_loop() -> None:
    bench = Bench()
    await bench.take_in(start("1-0", "r", "listening"))
    bench.shard.live.clear()
    bench.answers = [Committed(Reply.CONFLICT, 0, "", ["r"])]
    await bench.take_in(start("2-0", "r", "quick", 1))
    await bench.turn()
    assert len(bench.commits) == 3
    assert not bench.shard.has_work
    assert counts_of(bench.commits[-1]).poisons == 1, "it is quarantined"
    await bench.take_in(signal("3-0", "r", "go", 7))
    assert bench.status("r") == "completed"


async def test_a_refused_commit_stops_the_shard_and_is_retried_later(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.answers = [StoreError("commit: WRONGTYPE log")]
    await bench.take_in(start("1-0", "r", "quick", 5))
    assert "shard 0 is stopped, will retry in" in caplog.text
    assert bench.owner._troubles.current(stops=True) == {"shard 0": "is stopped: commit: WRONGTYPE log"}
    assert bench.shard.broken == "commit: WRONGTYPE log"
    bench.owner.retry_broken()
    assert bench.shard.broken, "not at once"
    bench.shard.retry_at = 0.0
    bench.owner.retry_broken()
    bench.clock.ms -= 1  # nothing is due
    await bench.turn()
    assert bench.status("r") == "completed"


async def test_a_defect_in_a_batch_costs_its_shards_and_not_the_daemon(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()

    def explode(call: Call[Any]) -> Any:
        raise AssertionError("a defect")

    bench.store.answers["commit"] = explode
    await bench.take_in(start("1-0", "r", "quick", 5))
    assert bench.shard.dropped
    assert "shard 0 is stopped by an unexpected error" in caplog.text
    assert "in explode" in caplog.text, "with its traceback"


@pytest.mark.parametrize("where", ["reduce", "apply", "load"])
async def test_a_defect_in_one_shard_costs_none_that_is_in_the_same_pipeline(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    bench, other = Bench(), owned(3)
    bench.owner.add(other)
    if where == "load":  # a run that isn't live, and whose steps ran at the former owner
        await bench.take_in(start("1-0", "r", "stepping", 5))
        bench.shard.live.clear()
        put(bench.shard, signal("2-0", "r", "go", 1))
    else:
        put(bench.shard, start("1-0", "r", "quick", 5))

    owner, method = {
        "reduce": (ShardBatch, "reduce"),
        "apply": (Owner, "_apply"),
        "load": (Owner, "_restart_running_steps"),
    }[where]
    real = getattr(owner, method)

    def explode(self: Any, first: Any, *rest: Any) -> Any:
        shard = next(
            one.shard if isinstance(one, ShardBatch) else one for one in (self, first) if one is not bench.owner
        )
        if shard is bench.shard:
            raise ZeroDivisionError("a defect")
        return real(self, first, *rest)

    monkeypatch.setattr(owner, method, explode)
    put(other, start("1-0", "r3", "quick", 6))
    bench.owner.wake(other)
    await bench.turn()
    assert bench.shard.dropped
    assert not other.dropped
    assert bench.status("r3") == "completed"
    assert list(bench.owner._troubles.current(stops=True)) == ["shard 0"]


async def test_runs_beyond_the_cache_are_evicted_the_longest_idle_first() -> None:
    bench = Bench(cache=2)
    await bench.take_in(*(start(f"1-{n}", f"r{n}", "listening") for n in range(3)))
    assert set(bench.shard.live) == {"r1", "r2"}
    await bench.take_in(signal("2-0", "r1", "other"))
    await bench.take_in(start("3-0", "r3", "listening"))
    assert set(bench.shard.live) == {"r1", "r3"}
    await bench.take_in(signal("4-0", "r0", "go", 1))
    assert bench.status("r0") == "completed"


async def test_a_run_with_steps_in_flight_stays_in_memory() -> None:
    bench = Bench(cache=1)
    await bench.take_in(*(start(f"1-{n}", f"r{n}", "stepping", n) for n in range(5)))
    assert len(bench.shard.live) == 5


async def test_when_a_time_is_due_the_shard_is_asked_which_runs_are() -> None:
    bench = Bench(due_runs=DueRuns(Reply.OK, None, ["r"]))
    await bench.take_in(start("1-0", "r", "sleeping", 5))
    assert bench.store.sent("due_runs") == []
    bench.clock.ms += 5000
    await bench.turn()
    assert bench.status("r") == "completed"
    assert len(bench.store.sent("due_runs")) == 1


async def test_a_timer_beside_a_running_step_needs_no_question() -> None:
    bench = Bench()
    await bench.take_in(start("1-0", "r", "step_with_limit"))
    bench.clock.ms += 5000
    await bench.turn()
    assert bench.store.sent("due_runs") == []
    assert len(bench.records["r"]) == 4, "header, state, and a transition for the start and one for the timer"
    bench.owner.outcome(0, "r", Outcome(1, 1, 2.0, raw(1)))
    await bench.turn()
    assert bench.status("r") == "completed"


async def test_what_is_due_and_when_a_commit_is_made_is_said_by_the_owners_clock() -> None:
    bench = Bench(due_runs=DueRuns(Reply.OK, None, ["r"]))
    bench.answers = [Committed(Reply.OK, 9_999_999, "5-0", [])]  # what the shard has stored is no news for the owner
    await bench.take_in(start("1-0", "r", "sleeping", 5))
    bench.clock.ms += 5000
    await bench.turn()
    assert [call.args[1] for call in bench.store.sent("due_runs")] == [1_005_000]
    assert [call.args[2] for call in bench.commits] == [1_000_000, 1_005_000]


async def test_a_timer_beside_a_running_step_survives_a_clock_that_goes_back() -> None:
    bench = Bench()
    await bench.take_in(start("1-0", "r", "step_with_limit"))
    bench.clock.ms += 5000
    batches = await bench.owner.run_once()
    bench.clock.ms -= 1
    await bench.owner.process(batches)
    assert len(bench.records["r"]) == 3, "it isn't due yet"
    bench.clock.ms += 1
    await bench.turn()
    assert len(bench.records["r"]) == 4


async def test_a_look_at_the_clock_ends_a_wait_that_became_too_long() -> None:
    """The host was suspended, or the daemon's clock was moved."""
    bench = Bench(due_runs=DueRuns(Reply.OK, None, ["r"]))
    await bench.take_in(start("1-0", "r", "sleeping", 5))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.owner.run_once)
        await anyio.wait_all_tasks_blocked()
        bench.owner.look_at_clock()
        await anyio.wait_all_tasks_blocked()
        assert bench.store.sent("due_runs") == []
        bench.clock.ms += 5000
        bench.owner.look_at_clock()
        await anyio.wait_all_tasks_blocked()
        assert len(bench.store.sent("due_runs")) == 1


async def test_a_timer_of_a_run_that_has_ended_is_not_in_memory() -> None:
    bench = Bench()
    for number in range(500):
        await bench.take_in(start(f"1-{number}", f"r{number}", "hurried", number))
        bench.owner.outcome(0, f"r{number}", Outcome(2, 1, 2.0, raw(number)))
        await bench.turn()
        assert bench.status(f"r{number}") == "completed"
    assert len(bench.owner._run_timers) <= SLACK


async def test_a_timer_that_is_not_due_any_more_while_a_step_runs_is_dropped() -> None:
    bench = Bench()
    await bench.take_in(start("1-0", "r", "hurried_then_not"))
    assert bench.owner._run_timers.next == 1_000_000 + 86_400_000
    bench.owner.outcome(0, "r", Outcome(2, 1, 2.0, raw(1)))
    await bench.turn()
    assert bench.steps.started == [(0, "r", 2, 1), (0, "r", 3, 1)]
    assert bench.owner._run_timers.next == math.inf


async def test_shards_that_are_dropped_together_are_one_look_at_all_attempts() -> None:
    bench = Bench()
    shards = seven_shards(bench)
    await bench.turn()
    bench.owner.drop(*shards[:5], shards[0])
    [is_cancelled] = bench.steps.conditions
    assert [is_cancelled(SimpleNamespace(shard=shard.number)) for shard in shards] == [True] * 5 + [False] * 2
    assert list(bench.owner.shards) == list(bench.owner.active) == [5, 6]
    assert [len(shard.live) for shard in shards] == [0] * 5 + [1] * 2
    bench.owner.drop(*shards[:5])
    assert len(bench.steps.conditions) == 1, "they are gone already"


async def test_timers_of_a_shard_that_is_lost_are_dropped() -> None:
    bench = Bench()
    await bench.take_in(start("1-0", "r", "hurried", 1), start("1-1", "s", "sleeping", 5))
    bench.owner.drop(bench.shard)
    assert bench.owner._run_timers.next == bench.owner._shard_timers.next == math.inf


async def test_what_is_known_of_a_run_ends_with_it() -> None:
    bench = Bench()
    await bench.take_in(start("1-0", "r", "listening"), start("1-1", "other", "listening"))
    shard = bench.shard
    for run_id in ("r", "gone"):
        shard.parked[run_id] = "a reason"
        shard.suspect.add(run_id)
        shard.killers.add(run_id)
    shard.suspect.add("other")
    await bench.take_in(InboxMessage("2-0", "terminate", "r", pack("")), signal("2-1", "gone", "go"))
    await bench.take_in(signal("2-2", "other", "unknown"))
    assert (shard.parked, shard.suspect, shard.killers) == ({}, set(), set())


async def test_the_earliest_of_what_is_due_later_is_waited_for_next() -> None:
    bench = Bench(due_runs=DueRuns(Reply.OK, 1_009_000, []))
    await bench.take_in(start("1-0", "r", "sleeping", 5))
    bench.clock.ms += 5000
    await bench.turn()
    bench.clock.ms += 3999
    await bench.turn()
    assert len(bench.store.sent("due_runs")) == 1
    bench.clock.ms += 1
    await bench.turn()
    assert len(bench.store.sent("due_runs")) == 2


async def test_a_shard_that_is_handed_over_commits_outcomes_and_starts_nothing() -> None:
    bench = Bench()
    await bench.take_in(start("1-0", "r", "stepping", 5))
    bench.shard.draining = True
    await bench.take_in(start("1-1", "s", "stepping", 5))
    assert len(bench.steps.started) == 1
    bench.owner.outcome(0, "r", Outcome(1, 1, 2.0, raw(5)))
    await bench.turn()
    assert bench.status("r") == "completed"


async def test_all_shards_with_work_share_one_pipeline() -> None:
    bench = Bench()
    other = owned(3)
    bench.owner.add(other)
    put(other, start("1-0", "s", "quick", 1))
    await bench.take_in(start("1-0", "r", "quick", 1))
    assert [len(calls) for calls in bench.store.calls] == [2]


async def test_a_run_whose_record_cannot_be_read_does_not_hold_up_the_others() -> None:
    bench = Bench()
    bench.records["bad"] = [b"what is this", b""]
    bench.records["worse"] = [b"running 1 c 900 0 listening - -", b"", b"\x91" * 5000]
    await bench.take_in(signal("1-0", "bad", "go"), signal("1-1", "worse", "go"), start("1-2", "r", "quick", 1))
    assert bench.status("r") == "completed"
    assert counts_of(bench.commits[0]).poisons == 2


async def test_delivered_messages_are_deleted_when_the_rollup_asks() -> None:
    bench = Bench()
    await bench.turn()
    assert bench.commits == []
    bench.shard.sent = ["7-1"]
    bench.owner.flush()
    await bench.turn()
    assert counts_of(bench.commits[0]).sent == 1
    assert bench.shard.sent == []


# --- shards at rest -------------------------------------------------------------------------------------------------


async def test_a_shard_of_which_nothing_is_in_memory_is_at_rest() -> None:
    bench = Bench()
    bench.shard.is_checked = True
    bench.owner.let_rest()
    assert bench.owner.active, "it waits for its first batch"
    await bench.owner_has_nothing_to_do()
    bench.owner.let_rest()
    assert not bench.owner.active


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("live", {"r": None}),
        ("inputs", {"r": []}),
        ("aside", {"r": None}),
        ("sent", ["7-1"]),
        ("offset", "5-0"),
        ("trim_again", 0),
        ("records", {"r": {}}),
        ("stuck", {"flow": 0}),
        ("left", 1),
        ("fetched", {"r"}),
        ("broken", "refused"),
        ("draining", True),
        ("busy", True),
        ("is_checked", False),
    ],
)
async def test_a_shard_with_this_is_not_at_rest(name: str, value: Any) -> None:
    bench = Bench()
    bench.shard.is_checked = True
    await bench.owner_has_nothing_to_do()
    setattr(bench.shard, name, value)
    bench.owner.let_rest()
    assert bench.owner.active


async def test_what_happens_to_a_shard_at_rest_makes_it_active() -> None:
    bench = Bench()
    owner, shard = bench.owner, bench.shard

    async def at_rest() -> None:
        shard.is_checked, shard.broken, shard.sent = True, "", []
        await bench.owner_has_nothing_to_do()
        owner.let_rest()
        assert not owner.active

    await at_rest()
    shard.forget_at = math.inf
    put(shard, start("1-0", "r", "quick", 1))
    owner.wake(shard)
    assert owner.active == {0: shard}
    await bench.turn()
    owner.let_rest()
    assert owner.active, "its views are not stored yet"
    shard.folded = shard.offset
    assert shard.forget_at == 0.0, "the run has ended, so retention has to look"
    await at_rest()
    owner.refused(shard, StoreError("WRONGTYPE"))
    assert owner.active == {0: shard}
    await at_rest()
    bench.sends.on_sent(shard)
    assert owner.active == {0: shard}
    await at_rest()
    owner.drop(shard)
    owner.touch(shard)
    assert not owner.active, "this daemon doesn't own it any more"
