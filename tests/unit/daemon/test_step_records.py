"""Steps that go on at a former owner: what it reports, what it asks, what it returns."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import anyio
import msgspec
import pytest

import streamflow as sf
from streamflow.daemon import step_records
from streamflow.daemon.step_records import StepRecords
from streamflow.errors import StoreError
from streamflow.events import NOTHING
from streamflow.loops import wait_until
from streamflow.machine.transition import Outcome
from streamflow.model.record import Header
from streamflow.model.reports import decode_details, reported_at
from streamflow.steps.executor import StepExecutor
from streamflow.store.kernel import LentStep, Reply
from streamflow.wire import encode_returned
from streamflow.workflow.actions import StepJob
from tests.support.fakes import FakeOwner, FakeStore, context, owned
from tests.support.machine_driver import raw

pytestmark = pytest.mark.anyio

app = sf.App()
HEADERS = {"r": Header("running", 1, "c", 900, 0, "flow", "", "")}


@app.step
async def hang(details: int) -> None:
    if details:
        sf.heartbeat(None if details < 0 else details)
    await asyncio.sleep(3600)


class Stored:
    """Equal to what the server gets of these details, whenever they were reported."""

    def __init__(self, details: int) -> None:
        self.details = details

    def __eq__(self, stored: object) -> bool:
        assert isinstance(stored, bytes)
        age = 1_000_000 - reported_at(stored)
        return decode_details(stored) == (900, msgspec.msgpack.encode(self.details)) and 0 <= age < 60_000


class Bench:
    def __init__(self, concurrency: int = 1) -> None:
        self.store = FakeStore(report_step="a", extend_steps="k", store_details=Reply.OK)
        self.executor = StepExecutor(concurrency, 1, self._outcome)
        self.shard = owned()
        any_owner: Any = FakeOwner(self.shard)
        self.records = StepRecords(context(self.store, app, shards=8, member="me"), any_owner, self.executor)

    def _outcome(self, _shard: int, run_id: str, outcome: Outcome) -> None:
        self.records.outcome(run_id, outcome)

    async def begin(self, seq: int = 1, attempt: int = 1, details: int = 0) -> None:
        job = StepJob(seq, attempt, app.steps["hang"], raw([details]))
        job.created = 900
        self.executor.submit(0, "r", job)
        await anyio.wait_all_tasks_blocked()

    def lend(self, **ended: list[Outcome]) -> list[LentStep]:
        lent = self.records.lend(0, self.executor.lend([0]).get(0, ()), HEADERS, ended)
        self.records.released([0])
        return lent

    @property
    def reported(self) -> list[tuple[Any, ...]]:
        return [tuple(call.args) for call in self.store.sent("report_step")]


@pytest.fixture
async def it() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    bench.executor.close()


async def test_large_details_are_stored_in_calls_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of steps of owned shards, and those of lent steps."""
    it = Bench(concurrency=8)
    for seq in range(1, 6):
        await it.begin(seq, details=100_000)  # five bytes, with what is stored before them 29
    monkeypatch.setattr(step_records, "BYTES", 45)
    await it.records.run_once()
    stored = [call.args[1::2] for call in it.store.sent("store_details")]
    assert stored == [["r/1", "r/2"], ["r/3", "r/4"], ["r/5"]]
    it.lend()
    monkeypatch.setattr(step_records, "BYTES", 10)
    it.store.answers["extend_steps"] = lambda call: "k" * (len(call.args) // 5)
    await it.records.run_once()
    asked = [call.args[::5] for call in it.store.sent("extend_steps")]
    assert asked == [["r/1", "r/2"], ["r/3", "r/4"], ["r/5"]]
    assert it.records.running == 5
    it.executor.close()


async def test_what_runs_is_lent_and_what_waits_is_left_to_the_new_owner(it: Bench) -> None:
    await it.begin(1)
    await it.begin(2)  # waits: there is one slot
    assert it.lend() == [LentStep("r/1", "me", 900, 1)]
    assert it.records.running == 1
    assert not it.executor.has("r", 2)
    assert it.executor.by_shard()[0] == 0
    it.executor.cancel_where(lambda running: running.shard == 0)
    assert it.executor.has("r", 1), "dropping the shard doesn't stop it"


async def test_a_cancelled_execution_emits_no_more_once_the_step_is_run_again(it: Bench) -> None:
    await it.begin()
    [first] = it.executor._attempts.values()
    assert it.records.holder_of(first) is not None
    it.executor.cancel_where(lambda running: running.shard == 0)
    assert it.records.holder_of(first) is not None, "what it has emitted until then may be stored"
    await it.begin()
    [second] = it.executor._attempts.values()
    assert second is not first
    assert it.records.holder_of(first) is None
    assert it.records.holder_of(second) is not None


async def test_nothing_is_asked_or_reported_before_the_release_is_answered(it: Bench) -> None:
    """There is no record before: the server would call the attempt lost, or leave it unmarked, and the release would
    name a host then that doesn't run it, for which the run would wait forever."""
    it.store.answers["extend_steps"] = "l"
    await it.begin()
    ended = it.records.lend(0, it.executor.lend([0]).get(0, ()), HEADERS, {"r": [Outcome(3, 1, 2.0, raw(7))]})
    assert [lent.step for lent in ended] == ["r/1", "r/3"]
    await it.records.run_once()
    assert await it.records.report_once()
    assert it.executor.runs("r", 1, 1)
    assert it.store.calls == []
    it.records.released([0])
    assert await it.records.report_once()
    await it.records.run_once()
    assert [report[3] for report in it.reported] == ["r/3"]
    assert not it.executor.runs("r", 1, 1)


async def test_a_daemon_that_leaves_waits_for_the_answer_to_a_release(it: Bench) -> None:
    """In turns: the release is another task's."""
    await it.begin()
    it.records.lend(0, it.executor.lend([0]).get(0, ()), HEADERS, {"r": [Outcome(3, 1, 2.0, raw(7))]})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(it.records.return_rest)
        await anyio.sleep(0.05)
        assert it.reported == []
        it.records.released([0])
    assert [report[3] for report in it.reported] == ["r/1", "r/3"]


async def test_a_step_of_a_run_that_is_not_there_any_more_is_not_lent(it: Bench) -> None:
    await it.begin()
    assert it.records.lend(0, it.executor.lend([0]).get(0, ()), {}, {}) == []
    assert not it.executor.has("r", 1)


@pytest.mark.parametrize("attempt", [1, 2])
async def test_a_lent_attempt_that_comes_back_goes_on_as_an_owned_one(attempt: int) -> None:
    """The server has lost the release, and the attempts behind it: the shard's owner starts what its history says."""
    it = Bench()
    await it.begin(attempt=attempt)
    it.lend()
    await it.begin(attempt=1)
    it.store.answers["extend_steps"] = "l"
    await it.records.run_once()
    assert it.executor.runs("r", 1, 1)
    assert it.executor.started == attempt, "the same one goes on"
    assert it.executor.by_shard()[0] == 1
    assert it.records.running == 0
    it.executor.close()


async def test_reports_go_in_pipelines_of_bounded_size(it: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_records, "PIPELINE_BYTES", 2500)
    it.lend(r=[Outcome(seq, 1, 2.0, raw("x" * 1000)) for seq in range(1, 8)])
    while it.records.unreported:
        assert await it.records.report_once()
    assert [len(calls) for calls in it.store.calls] == [3, 3, 1]


async def test_thousands_of_lent_steps_are_asked_for_in_portions(it: Bench) -> None:
    await it.begin()
    it.lend()
    [one] = it.records.lends.values()
    it.records.lends = {("r", seq): msgspec.structs.replace(one, seq=seq) for seq in range(1, 20_001)}
    it.store.answers["extend_steps"] = lambda call: "k" * (len(call.args) // 5)
    await it.records.run_once()
    assert {len(call.args) // 5 for call in it.store.sent("extend_steps")} == {step_records.STEPS}
    assert max(map(len, it.store.calls)) == step_records.PIPELINE_CALLS


async def test_its_outcome_is_reported_to_the_run(it: Bench) -> None:
    await it.begin()
    it.lend()
    assert it.records.outcome("r", Outcome(1, 1, 2.0, raw(7)))
    assert not it.records.outcome("r", Outcome(1, 1, 2.0, raw(7))), "once"
    assert it.records.unreported == 1
    assert await it.records.report_once()
    [(*words, body)] = it.reported
    assert words == ["r", 900, "outcome", "r/1", "me", 1]
    assert msgspec.msgpack.decode(body)["result"] == 7
    assert it.records.unreported == 0


async def test_a_refused_report_is_sent_again(it: Bench) -> None:
    await it.begin()
    it.lend()
    it.records.outcome("r", Outcome(1, 1, 2.0, raw(7)))
    it.store.answers["report_step"] = StoreError("WRONGTYPE inbox")
    assert not await it.records.report_once()
    it.store.answers["report_step"] = "a"
    assert await it.records.report_once()
    assert len(it.reported) == 2


async def test_outcomes_that_no_commit_has_recorded_go_to_the_new_owner(it: Bench) -> None:
    assert it.lend(r=[Outcome(3, 1, 2.0, raw(7))]) == [LentStep("r/3", "me", 900, 1)]
    assert await it.records.report_once()
    assert [report[3] for report in it.reported] == ["r/3"]


async def test_an_outcome_of_another_attempt_is_not_a_lent_one(it: Bench) -> None:
    await it.begin()
    it.lend()
    assert not it.records.outcome("r", Outcome(1, 2, 2.0, raw(7)))
    assert not it.records.outcome("r", Outcome(2, 1, 2.0, raw(7)))


async def test_a_step_that_nobody_needs_is_stopped(it: Bench) -> None:
    await it.begin()
    it.lend()
    await it.records.run_once()
    assert it.executor.has("r", 1)
    it.store.answers["extend_steps"] = "l"
    await it.records.run_once()
    assert not it.executor.has("r", 1)
    assert it.records.running == 0


async def test_but_not_a_newer_attempt_that_runs_here_since(it: Bench) -> None:
    """The shard came back to this daemon, which counts the former attempt as lost."""
    await it.begin()
    it.lend()
    await it.begin(attempt=2)
    it.store.answers["extend_steps"] = "l"
    await it.records.run_once()
    assert it.executor.runs("r", 1, 2)
    await it.records.return_rest()
    assert it.executor.runs("r", 1, 2)
    assert it.reported == []


async def test_the_outcome_of_a_later_run_of_the_id_is_not_that_of_a_lent_step(it: Bench) -> None:
    await it.begin()
    it.lend()
    job = StepJob(1, 1, app.steps["hang"], raw([0]))
    job.created = 901
    it.executor.submit(0, "r", job)  # the shard came back, and its run was forgotten and started again
    assert not it.records.outcome("r", Outcome(1, 1, 2.0, raw(7)))
    assert it.records.lends == {}


async def test_what_still_runs_at_the_end_is_returned_with_its_details(it: Bench) -> None:
    await it.begin(details=5)
    it.lend()
    await it.records.return_rest()
    [(_, _, kind, step, _, _, body)] = it.reported
    assert (kind, step, msgspec.msgpack.decode(body)) == ("returned", "r/1", [1, 1, 5])
    assert not it.executor.has("r", 1)


async def test_new_details_are_stored_once(it: Bench) -> None:
    await it.begin(details=5)
    for _ in range(3):
        await it.records.run_once()
    [call] = it.store.sent("store_details")
    assert call.args == ["7:nonce", "r/1", Stored(5)]
    assert it.shard.records["r"][1].created == 900
    assert it.shard.records["r"][1].details == msgspec.msgpack.encode(5), "the outcome's commit deletes them"
    it.lend()
    for _ in range(2):
        await it.records.run_once()
    assert [call.args[-1] for call in it.store.sent("extend_steps")] == [msgspec.msgpack.encode(5), b""]


async def test_a_heartbeat_with_the_same_details_is_stored_again_for_its_time(it: Bench) -> None:
    """Not each: `show` says when a step has last sent one, and is late by seconds."""
    await it.begin(details=5)
    await it.records.run_once()
    [running] = it.executor.reporting()
    for after in (step_records.SAY_AGAIN / 2, step_records.SAY_AGAIN / 2, step_records.SAY_AGAIN / 2):
        running.beat += after
        await it.records.run_once()
    first, again = (call.args[-1] for call in it.store.sent("store_details"))
    assert decode_details(first) == decode_details(again) == (900, msgspec.msgpack.encode(5))
    assert reported_at(again) - reported_at(first) == pytest.approx(1000 * step_records.SAY_AGAIN, abs=2000)


async def test_a_heartbeat_without_details_is_stored_for_its_time(it: Bench) -> None:
    await it.begin(details=-1)
    await it.records.run_once()
    [call] = it.store.sent("store_details")
    assert decode_details(call.args[-1]) == (900, bytes(NOTHING))
    assert reported_at(call.args[-1])


async def test_details_that_arrive_behind_the_outcomes_commit_are_deleted(it: Bench) -> None:
    """The commit can't delete them: it was there before, and nobody would ever ask for them again."""

    def late(_: object) -> Reply:
        it.executor.cancel("r", 1)
        return Reply.OK

    await it.begin(details=5)
    it.store.answers["store_details"] = late
    for _ in range(3):
        await it.records.run_once()
    sent = [call.args[1:] for call in it.store.sent("store_details")]
    assert sent == [["r/1", Stored(5)], ["r/1", b""]]


@pytest.mark.parametrize("verb", ["store_details", "extend_steps"])
async def test_details_that_were_refused_are_stored_again(it: Bench, verb: str) -> None:
    """Also if the step reports nothing new: the next attempt would begin from the start."""
    await it.begin(details=5)
    if verb == "extend_steps":
        it.lend()
    answer = it.store.answers[verb]
    it.store.answers[verb] = StoreError("WRONGTYPE details")
    await it.records.run_once()
    it.store.answers[verb] = answer
    for _ in range(2):
        await it.records.run_once()
    half = msgspec.msgpack.encode(5)
    sent = [call.args[-1] for call in it.store.sent(verb)]
    assert sent == ([half, half, b""] if verb == "extend_steps" else [Stored(5)] * 2)


async def test_attempts_are_returned_whose_reports_the_server_has_lost(it: Bench) -> None:
    """Its records name this daemon again, which doesn't run them any more: their runs would wait forever."""
    await it.begin(1)
    it.lend(r=[Outcome(2, 1, 2.0, raw(7))])
    assert await it.records.report_once()
    records = {
        b"r/1": b"me 900 1 wanted",  # runs here
        b"r/2": b"me 900 1 wanted",
        b"r/3": b"me 900 2 reported",
        b"r/4": b"other 900 1 wanted",
        b"r/5": b"me 900 3 wanted",
        b"r": b"me",
    }
    pages = [([], list(records.items())), *[([], [])] * 7]
    details = {"r/2": b"800 " + raw(1), "r/5": b"900 " + raw([50])}
    it.store.answers |= {"read_hash": lambda _: pages.pop(0), "HGET": lambda call: details.get(call.args[2])}
    it.records.look_for_forgotten()
    for _ in range(2):
        await it.records.run_once()
    returned = [call.args for call in it.store.sent("report_step")[1:]]
    assert [args[2:6] for args in returned] == [["returned", "r/2", "me", 1], ["returned", "r/5", "me", 3]]
    assert [args[6] for args in returned] == [encode_returned(2, 1, NOTHING), encode_returned(5, 3, raw([50]))]
    assert len(it.store.sent("read_hash")) == 8, "once"


async def test_a_change_that_a_host_does_not_notice_is_found_by_looking_again(
    it: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the shards to which it has lent something are looked through, each time."""
    await it.records.run_once()
    await it.begin(1)
    it.lend(r=[Outcome(2, 1, 2.0, raw(7))])
    assert await it.records.report_once()
    it.store.answers |= {"read_hash": ([], []), "HGET": None}
    await it.records.run_once()
    assert it.store.sent("read_hash") == [], "not all the time"
    clock = SimpleNamespace(now=time.monotonic())
    monkeypatch.setattr(
        step_records, "time", SimpleNamespace(monotonic=lambda: clock.now, perf_counter=time.perf_counter)
    )
    for looks, fields in enumerate(([], [(b"r/1", b"me 900 1 wanted"), (b"r/2", b"me 900 1 wanted")]), 1):
        it.store.answers["read_hash"] = ([], fields)
        clock.now += step_records.LOOK_AGAIN
        await it.records.run_once()
        assert ["/0}" in call.keys[0] for call in it.store.sent("read_hash")] == [True] * looks
    returned = [call.args[2:6] for call in it.store.sent("report_step")[1:]]
    assert returned == [["returned", "r/2", "me", 1]]


async def test_records_that_cannot_be_read_are_looked_through_again(it: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those, after a pause; other shards have been looked through."""
    it.store.answers["read_hash"] = lambda call: StoreError("WRONGTYPE") if "/3}" in call.keys[0] else ([], [])
    it.records.look_for_forgotten()
    for _ in range(2):
        await it.records.run_once()
    assert len(it.store.sent("read_hash")) == 8
    monkeypatch.setattr(it.records._troubles, "waits", lambda *_: False)
    it.store.answers["read_hash"] = ([], [(b"r/2", b"me 900 1 wanted")])
    it.store.answers |= {"HGET": None, "report_step": StoreError("WRONGTYPE")}
    await it.records.run_once()
    it.store.answers["report_step"] = "a"
    for _ in range(2):
        await it.records.run_once()
    assert ["/3}" in call.keys[0] for call in it.store.sent("read_hash")[8:]] == [True, True]
    assert len(it.reported) == 2


async def test_reports_are_sent_by_the_loop(it: Bench) -> None:
    loop = asyncio.create_task(it.records.run_reports())
    await it.begin()
    it.lend()
    it.records.outcome("r", Outcome(1, 1, 2.0, raw(7)))
    with anyio.fail_after(10):
        await wait_until(lambda: it.reported != [], 0.001)
    loop.cancel()
