"""After an owner's unclean end its successor runs what was in hand one run at a time, and counts what was lost."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import anyio
import msgspec
import pytest

from streamflow.daemon import batch as batch_module
from streamflow.daemon import careful_turns
from streamflow.daemon.batch import ShardBatch
from streamflow.daemon.shard import (
    CODE,
    NOBODY,
    TRY_AGAIN,
    OwnedShard,
    StepRecord,
    decode_step_record,
    parked_by,
)
from streamflow.daemon.step_records import StepRecords
from streamflow.daemon.takeover import Takeover
from streamflow.errors import StoreError
from streamflow.events import NOTHING, SignalReceived, StepFailed, StepRetrying, decode_history
from streamflow.machine.transition import Due, Outcome
from streamflow.model.reports import decode_details, reported_at, stored_details
from streamflow.steps.suspects import Note, Suspect, Suspects, decode_note
from streamflow.store.connection import Call
from streamflow.store.kernel import Batch, DueRuns, Reply
from tests.support.fakes import NOTHING_DUE, FakeStore, context, owned, put, signal, start
from tests.support.machine_driver import raw
from tests.unit.daemon.test_owner import Bench as OwnerBench
from tests.unit.daemon.test_owner import Sends, app

UNUSED: Any = None

pytestmark = pytest.mark.anyio


class Bench(OwnerBench):
    """An owner that has acquired its shard from one that died, with what its note said."""

    def __init__(self, before: OwnerBench | None = None, note: Note | None = None) -> None:
        super().__init__(mark_suspects=b"OK", due_runs=NOTHING_DUE)
        if before is not None:
            self.records = before.records
        self.shard.lost_with, self.shard.has_suspects = "dead", True
        self.shard.note = note or Note()

    def orphan(self, *run_ids: str) -> None:
        """Steps of these runs were in flight."""
        for run_id in run_ids:
            self.shard.orphans.add(run_id)
            self.shard.careful[run_id] = set()
            self.shard.add_input(run_id, Due())

    async def turns(self) -> None:
        """Until nothing is ready."""
        while self.shard.has_work:
            await self.turn()

    @property
    def notes(self) -> list[Note]:
        return [decode_note(call.args[1]) for call in self.store.sent("mark_suspects")]

    def events(self, run_id: str) -> list[Any]:
        return [event for transition in decode_history(self.records[run_id][2:]) for event in transition.events]


async def in_flight(*run_ids: str) -> OwnerBench:
    before = OwnerBench()
    for number, run_id in enumerate(run_ids):
        await before.take_in(start(f"1-{number}", run_id, "stepping", number))
    return before


async def test_each_run_that_was_in_hand_has_a_commit_of_its_own_behind_a_note() -> None:
    bench = Bench(await in_flight("a", "b", "c"))
    bench.orphan("a", "b", "c")
    order: list[str] = []
    for name in ("mark_suspects", "read_runs", "commit"):
        answer = bench.store.answers[name]

        def called(call: Call[Any], name: str = name, answer: Any = answer) -> Any:
            order.append(name)
            return answer(call) if callable(answer) else answer

        bench.store.answers[name] = called
    await bench.turns()
    assert order[:9] == ["mark_suspects", "read_runs", "commit"] * 3
    assert [note.code.run_id for note in bench.notes if note.code] == ["a", "b", "c"]


async def test_steps_that_were_in_flight_are_lost_and_run_again_later() -> None:
    bench = Bench(await in_flight("a"))
    bench.orphan("a")
    await bench.turns()
    [retrying] = [event for event in bench.events("a") if isinstance(event, StepRetrying)]
    assert (retrying.attempt, retrying.failure.kind) == (1, "WorkerLost")
    assert "daemon dead died" in retrying.failure.message
    assert bench.steps.started == [], "not before its trial"


@pytest.mark.parametrize("record", [[], [b"garbage", b""]])
async def test_a_run_that_is_no_longer_there_does_not_keep_the_shard(record: list[bytes]) -> None:
    """A shard whose lost steps aren't recorded yet isn't handed over."""
    bench = Bench()
    bench.records["gone"] = record
    bench.orphan("gone")
    await bench.turns()
    assert bench.shard.orphans == set()


async def test_the_third_loss_of_a_step_that_is_to_blame_fails_it() -> None:
    history = await in_flight("a")
    bench = Bench(history)
    for attempt, last in ((1, None), (2, Suspect(0, "a", 1, 1)), (3, Suspect(0, "a", 1, 2))):
        note = Note(last=last, running=(last,)) if last else Note()
        bench = Bench(history, note)
        bench.clock.ms += attempt
        bench.orphan("a")
        await bench.turns()
        history = bench
    assert isinstance(bench.events("a")[-2], StepFailed)
    assert bench.status("a") == "failed"


async def test_a_step_that_is_not_to_blame_is_never_failed_for_it() -> None:
    bench = Bench(await in_flight("a"))
    for attempt in range(1, 6):
        note = Note(running=(Suspect(0, "a", 1), Suspect(0, "other", 1))) if attempt > 1 else Note()
        bench = Bench(bench, note)
        bench.clock.ms += attempt
        bench.orphan("a")
        await bench.turns()
    assert sum(isinstance(event, StepRetrying) for event in bench.events("a")) == 5


async def test_a_step_that_had_not_begun_again_has_lost_nothing() -> None:
    first = Bench(await in_flight("a"))
    first.orphan("a")
    await first.turns()
    second = Bench(first, Note(running=(Suspect(0, "other", 1),)))
    second.clock.ms += 1
    second.orphan("a")
    await second.turns()
    assert sum(isinstance(event, StepRetrying) for event in second.events("a")) == 1


async def test_messages_of_runs_that_the_dead_owner_had_in_hand_take_turns() -> None:
    bench = Bench()
    bench.shard.careful = {"r0": set(), "r1": set()}
    put(bench.shard, *(start(f"1-{n}", f"r{n}", "listening") for n in range(4)))
    await bench.turns()
    assert {note.code.run_id for note in bench.notes if note.code} == {"r0", "r1"}
    assert bench.shard.careful == {}
    await bench.take_in(signal("2-0", "r0", "go", 1))
    assert bench.status("r0") == "completed"


async def test_what_comes_for_a_run_waits_behind_what_its_dead_owner_had_in_hand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch_module, "RUN_INPUTS", 10)
    bench = Bench()
    bench.shard.careful = {"a": set()}
    put(bench.shard, start("1-0", "a", "relaying", 40), *(signal(f"2-{n}", "a", "item", n) for n in range(24)))
    while not bench.notes:
        await bench.turn()
    assert bench.shard.aside, "one batch doesn't take them all"
    assert bench.shard.careful
    put(bench.shard, *(signal(f"3-{n}", "a", "item", 24 + n) for n in range(6)))
    await bench.turns()
    received = [event for event in bench.events("a") if isinstance(event, SignalReceived)]
    assert [msgspec.msgpack.decode(event.value) for event in received] == list(range(30))
    assert bench.shard.careful == {}


async def test_a_run_stays_careful_until_its_lost_steps_have_ended() -> None:
    bench = Bench(await in_flight("a"))
    bench.orphan("a")
    await bench.turns()
    assert bench.shard.careful == {"a": {1}}
    bench.store.answers["due_runs"] = DueRuns(Reply.OK, None, ["a"])
    await bench.turn()  # its trial begins
    bench.owner.outcome(0, "a", Outcome(1, 2, 1.0, raw(5)))
    await bench.turns()
    assert bench.status("a") == "completed"
    assert {note.code.run_id for note in bench.notes if note.code} == {"a"}
    assert bench.shard.careful == {}


async def test_known_culprits_come_last_and_are_named_until_then() -> None:
    bench = Bench()
    bench.owner.suspects.learn(Suspect(0, "bad", 0, 2))
    put(bench.shard, start("1-0", "bad", "listening"), start("1-1", "good", "listening"))
    bench.shard.careful = {"bad": set(), "good": set()}
    await bench.turns()
    first, second = bench.notes[:2]
    assert first.code == Suspect(0, "good", 0, 1, commit=bench.commits[0].args[1], created=900)
    assert first.waiting == (Suspect(0, "bad", 0, 2),)
    assert second.code == Suspect(0, "bad", 0, 2, commit=bench.commits[1].args[1], created=900)


@pytest.mark.parametrize(("created", "status", "deaths"), [(900, "stuck", 3), (0, "stuck", 3), (800, "running", 1)])
async def test_a_run_is_not_suspected_for_an_earlier_one_of_its_id(created: int, status: str, deaths: int) -> None:
    """Its predecessor, created at 800, has ended three processes, and was forgotten before the takeover."""
    bench = Bench()
    suspects = bench.owner.suspects
    takeover = Takeover(context(bench.store, shards=8), Sends(), suspects, UNUSED)  # type: ignore[arg-type]
    takeover._blame(bench.shard, Note(waiting=(Suspect(0, "bad", 0, 3, created=created),)), "")  # pyright: ignore[reportPrivateUsage]
    assert "bad" in bench.shard.parked
    put(bench.shard, start("1-0", "bad", "listening"))
    await bench.turns()
    assert bench.status("bad") == status
    assert [note.code.deaths for note in bench.notes if note.code] == [deaths]
    assert suspects.deaths(0, "bad") == 0


async def test_a_server_that_confirms_nothing_does_not_keep_such_code_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(careful_turns, "LOOK_AGAIN", 0.01)
    bench, late = Bench(await in_flight("a")), {0, 1}
    bench.orphan("a")
    bench.store.confirmation = SimpleNamespace(is_late=late.__contains__)
    bench.owner._slots.take(1)
    await bench.turn()  # it is set aside
    with anyio.move_on_after(0.05) as scope:
        await bench.owner.run_once()
    assert scope.cancelled_caught, "nothing of a server that is late itself begins, and the loop waits meanwhile"
    assert not bench.notes
    late.discard(0)
    with anyio.fail_after(10):
        while not bench.notes:
            await bench.owner.process(await bench.owner.run_once())
    assert [note.code.run_id for note in bench.notes if note.code] == ["a"]


async def test_such_code_that_has_run_and_is_not_confirmed_keeps_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(careful_turns, "LOOK_AGAIN", 0.01)
    bench, late, confirmed = Bench(await in_flight("a")), set[int](), anyio.Event()
    bench.orphan("a")
    bench.store.is_single = False
    bench.store.server_of = lambda key: 0 if "/0}" in key else 1  # type: ignore[method-assign]
    bench.store.confirmation = SimpleNamespace(is_late=late.__contains__)
    send = bench.store.send

    async def confirming(calls: Any, patience: float | None = None, **how: bool) -> list[Any]:
        answers = await send(calls, patience, **how)
        if any(call.script == "commit" for call in calls) and bench.owner.careful.is_running:
            late.add(0)
            await confirmed.wait()
        return answers

    bench.store.send = confirming  # type: ignore[method-assign]
    async with anyio.create_task_group() as tasks:
        while not late:
            tasks.start_soon(bench.owner.process, await bench.owner.run_once())
            await anyio.wait_all_tasks_blocked()
        other = owned(1)
        bench.owner.add(other)
        put(other, start("1-0", "new", "listening"))
        bench.owner.wake(other)
        with anyio.fail_after(5):
            [batch] = await bench.owner.run_once()
        assert set(batch.work) == {"new"}
        confirmed.set()


async def test_no_such_code_is_run_in_the_first_moment_of_a_trial() -> None:
    bench = Bench()
    bench.shard.careful = {"in hand": set()}
    put(bench.shard, start("1-0", "in hand", "listening"), start("1-1", "new", "listening"))
    suspects = bench.owner.suspects
    suspects.trying = True
    assert not suspects.code_waits()
    await bench.turn()
    assert set(bench.records) == {"new"}
    with anyio.move_on_after(0.03) as scope:
        await bench.owner.run_once()
    assert scope.cancelled_caught, "it doesn't turn in circles meanwhile"
    assert suspects.code_waits()
    suspects.trying = False
    suspects.on_tried()
    with anyio.fail_after(10):
        while "in hand" not in bench.records:
            await bench.owner.process(await bench.owner.run_once())
    assert not suspects.code_waits()


@pytest.mark.parametrize(
    ("final", "deaths"), [("s.7", 0), ("s.8", 0), ("s.6", 2), ("", 2), ("t.9", 2), ("s.x", 2), ("s.10", 0)]
)
def test_code_whose_commit_arrived_is_not_blamed(final: str, deaths: int) -> None:
    """Nor when the shard has committed more since."""
    suspects = Suspects(UNUSED, UNUSED, UNUSED, "me")
    takeover = Takeover(context(FakeStore(), shards=8), Sends(), suspects, UNUSED)  # type: ignore[arg-type]
    shard = owned()
    takeover._blame(shard, Note(code=Suspect(0, "r", 0, 1, commit="s.7")), final)  # pyright: ignore[reportPrivateUsage]
    assert suspects.deaths(0, "r") == deaths


async def test_parked_code_that_ended_processes_is_recorded_for_the_next_owner() -> None:
    bench = Bench(await in_flight("a"))
    bench.orphan("a")
    bench.shard.parked["a"] = "its code has ended the process"
    bench.shard.killers.add("a")
    await bench.turns()
    assert bench.status("a") == "stuck"
    puts = [call for call in bench.commits if bench.shard.keys.steps in call.keys]
    field, value = puts[0].args[-2:]
    record = decode_step_record(value)
    assert (field, record.attempt, record.created) == ("a/0", 2, 900)
    assert record.host.startswith(NOBODY)
    again = Bench(bench)
    again.shard.parked["a"] = "the same code"
    again.shard.records["a"] = {CODE: record}
    again.shard.add_input("a", Due())
    await again.turns()
    assert again.shard.records["a"] == {CODE: record}, "as long as the run is stuck"
    other = Bench(bench)
    other.orphan("a")
    other.shard.parked["a"] = "other code has done it, too"
    other.shard.killers.add("a")
    other.shard.code = "other"
    await other.turns()
    assert decode_step_record(other.commits[-1].args[-1]).host.endswith("-other")


@pytest.mark.parametrize(
    ("host", "parked"),
    [
        (parked_by("mine", 1000), True),
        (parked_by("mine", 1000 - TRY_AGAIN), False),
        (parked_by("other", 1000), False),
        (parked_by("", 1000), False),
        (NOBODY, False),
    ],
)
def test_parked_code_that_ended_processes_is_tried_when_it_changed(host: str, parked: bool) -> None:
    """Or an hour later: not at each hand-over, which would end the new owner."""
    suspects = Suspects(UNUSED, UNUSED, UNUSED, "me")
    takeover = Takeover(context(FakeStore(), shards=8), Sends(), suspects, UNUSED)  # type: ignore[arg-type]
    shard = owned()
    shard.code, shard.acquired = "mine", 1001
    record = StepRecord(2, 900, host)
    takeover._restore_steps(shard, [(b"a/0", record.encode())])  # pyright: ignore[reportPrivateUsage]
    assert ("a" in shard.parked, "a" in shard.careful) == (parked, not parked)
    assert suspects.deaths(0, "a") == (0 if parked else 2)


def test_a_record_is_read_as_it_is_written() -> None:
    record = decode_step_record(StepRecord(3, 12345, "host-1", reported=True).encode())
    assert (record.host, record.created, record.attempt, record.reported) == ("host-1", 12345, 3, True)
    for garbage in (b"", b"host 1 2", b"host x 2 wanted", b"\xff 1 2 wanted"):
        with pytest.raises(ValueError):  # noqa: PT011
            decode_step_record(garbage)


# --- steps that a former owner still runs -----------------------------------------------------------------------------


def lent(shard: OwnedShard, run_id: str, *, reported: bool = False, details: bytes = b"") -> None:
    record = StepRecord(1, 900, "host", reported=reported)
    record.details = details
    shard.records.setdefault(run_id, {})[1] = record


async def released(before: OwnerBench, *, alive: bool) -> Bench:
    bench = Bench(before)
    bench.shard.lost_with = ""
    bench.owner.is_alive = lambda member: alive and member == "host"
    bench.shard.add_input("a", Due())
    return bench


async def test_a_step_that_its_host_still_runs_is_not_started() -> None:
    bench = await released(await in_flight("a"), alive=True)
    lent(bench.shard, "a")
    await bench.turns()
    assert bench.steps.started == []
    assert bench.owner.gone_records() == []
    await bench.take_in(message("2-0", "a", "outcome", {"seq": 1, "attempt": 1, "ms": 1.0, "result": 5}))
    assert bench.status("a") == "completed"
    assert bench.commits[-1].args[-2:] == ["a/1", b""], "its record is deleted with the outcome"
    assert bench.shard.records == {}


async def test_a_step_whose_outcome_is_in_the_inbox_is_not_started_either() -> None:
    bench = await released(await in_flight("a"), alive=False)
    lent(bench.shard, "a", reported=True)
    await bench.turns()
    assert bench.steps.started == []


async def test_a_step_that_comes_back_starts_under_its_number_with_its_details() -> None:
    bench = await released(await in_flight("a"), alive=True)
    lent(bench.shard, "a")
    await bench.turns()
    await bench.take_in(message("2-0", "a", "returned", (1, 1, "half")))
    assert bench.steps.started == [(0, "a", 1, 1)]
    assert bench.commits[-1].args[-2:] == ["a/1", b""]


@pytest.mark.parametrize("alive_at_first", [False, True])
async def test_when_its_host_is_gone_the_step_is_lost_with_what_it_reported(alive_at_first: bool) -> None:
    """Also with what it reported after the takeover."""
    bench = await released(await in_flight("a"), alive=alive_at_first)
    lent(bench.shard, "a", details=msgspec.msgpack.encode("a quarter"))
    await bench.turns()
    assert bench.steps.started == []
    bench.owner.is_alive = lambda _: False
    [(_, _, _, record)] = bench.owner.gone_records()
    await lose_gone(bench, record.encode(), stored_details(900, msgspec.msgpack.encode("half"), 1000))
    await bench.turns()
    [retrying] = [event for event in bench.events("a") if isinstance(event, StepRetrying)]
    assert retrying.failure.kind == "WorkerLost"
    assert msgspec.msgpack.decode(retrying.details) == "half"
    assert bench.owner.gone_records() == []
    deleted = [call.args[-4:] for call in bench.commits if bench.shard.keys.details in call.keys]
    assert deleted == [["a/1", b"", "a/1", b""]]


async def test_a_step_that_its_host_reported_before_it_went_is_not_lost() -> None:
    """Its outcome waits in the inbox: it mustn't run again."""
    bench = await released(await in_flight("a"), alive=False)
    lent(bench.shard, "a")
    await bench.turns()
    await lose_gone(bench, StepRecord(1, 900, "host", reported=True).encode(), None)
    assert not bench.shard.has_work
    assert bench.owner.gone_records() == [], "it isn't asked about again"
    await bench.take_in(message("2-0", "a", "outcome", {"seq": 1, "attempt": 1, "ms": 1.0, "result": 5}))
    assert bench.status("a") == "completed"


async def test_a_step_is_lost_once_while_its_run_waits_for_its_turn() -> None:
    bench = await released(await in_flight("a"), alive=False)
    lent(bench.shard, "a")
    await bench.turns()
    for _ in range(3):
        await lose_gone(bench, StepRecord(1, 900, "host").encode(), None)
    assert [type(item).__name__ for item in bench.shard.inputs["a"]] == ["Outcome"]


async def test_many_lost_steps_are_read_in_pipelines_of_bounded_size() -> None:
    """How large their details are is known from the answers only."""
    bench = await released(await in_flight("a"), alive=False)
    lent(bench.shard, "a")
    await bench.turns()
    bench.shard.records["a"] = {seq: StepRecord(1, 900, "host") for seq in range(1, 1001)}
    for size, most in ((0, 2 * 256), (1_000_000, 2 * 4)):
        bench.store.calls.clear()
        await lose_gone(bench, StepRecord(2, 900, "other").encode(), b"900 " + b"x" * size)
        bench.shard.inputs.clear()
        assert max(map(len, bench.store.calls)) == most
        assert len(bench.store.sent("HMGET")) == 2 * 1000


async def test_a_record_that_cannot_be_read_is_asked_for_again(caplog: pytest.LogCaptureFixture) -> None:
    """And stops nothing else: a heartbeat doesn't depend on it."""
    bench = await released(await in_flight("a"), alive=False)
    lent(bench.shard, "a")
    await bench.turns()
    await lose_gone(bench, StoreError("WRONGTYPE steps"), None)
    assert not bench.shard.has_work
    assert "shard 0 has step records that can't be read" in caplog.text
    await lose_gone(bench, StepRecord(1, 900, "host").encode(), None)
    assert bench.shard.has_work


async def test_a_step_of_a_run_with_the_same_id_is_not_lost_with_the_old_one() -> None:
    bench = await released(await in_flight("a"), alive=False)
    bench.shard.records["a"] = {1: StepRecord(1, 500, "host")}
    await bench.turns()
    assert bench.steps.started == [(0, "a", 1, 1)]
    bench.owner.lose_step(bench.shard, "a", 1, StepRecord(1, 500, "host"), Note())
    assert not bench.shard.has_work


async def test_a_parked_run_that_ends_leaves_no_mark_for_a_later_one_of_its_id() -> None:
    bench = Bench(await in_flight("a"))
    bench.shard.lost_with = ""
    bench.shard.parked["a"] = "its code has ended the process of its daemon 3 times"
    bench.shard.killers.add("a")
    await bench.take_in(message("2-0", "a", "terminate", "enough"))
    assert bench.status("a") == "cancelled"
    del bench.records["a"]
    await bench.take_in(start("3-0", "a", "stepping", 1))
    assert bench.status("a") == "running"
    assert bench.shard.killers == set()
    assert bench.shard.records == {}


@pytest.mark.parametrize("created", [900, 500])
async def test_a_step_begins_with_details_of_its_own_run_only(created: int) -> None:
    """An earlier run of the id may have left some, that were stored behind the commit of its end."""
    bench = await released(await in_flight("a"), alive=False)
    takeover = Takeover(context(FakeStore(), shards=8), Sends(), UNUSED, UNUSED)  # type: ignore[arg-type]
    half = bytes(raw("half"))
    stored = [(b"a/1", stored_details(created, half, 1000))]
    takeover._restore_details(bench.shard, stored)  # pyright: ignore[reportPrivateUsage]
    bench.store.answers["read_hash"] = ([], stored)
    await bench.turns()
    [job] = bench.steps.jobs
    assert bytes(job.details) == (half if created == 900 else bytes(NOTHING))


async def test_details_are_read_in_portions_with_the_runs_of_their_steps() -> None:
    bench = await released(await in_flight("a", "b"), alive=False)
    takeover = Takeover(context(FakeStore(), shards=8), Sends(), UNUSED, UNUSED)  # type: ignore[arg-type]
    on_server = {f"{run_id}/1".encode(): stored_details(900, bytes(raw(run_id)), 1000) for run_id in "ab"}
    takeover._restore_details(bench.shard, list(on_server.items()))  # pyright: ignore[reportPrivateUsage]
    assert [record[1].details for record in bench.shard.records.values()] == [b"", b""]

    def one_at_a_time(call: Call[Any]) -> Any:
        _, _, cursor, field, *others = call.args
        assert cursor == b"", "only these fields"
        return ([b"", *others] if others else []), [(field, on_server.pop(field))]

    bench.store.answers["read_hash"] = one_at_a_time
    await bench.owner._read_details([(bench.shard, "a"), (bench.shard, "b")])  # pyright: ignore[reportPrivateUsage]
    assert on_server == {}
    read = {run_id: records[1].details for run_id, records in bench.shard.records.items()}
    assert read == {run_id: bytes(raw(run_id)) for run_id in "ab"}


def test_details_are_read_as_they_are_stored_and_as_they_were_before() -> None:
    for value in (None, 7, 5.5, "9 lives", b"1 2", [1], {"1 ": 2}):
        data = msgspec.msgpack.encode(value)
        for created in (1, 900, 1_764_000_000_000):
            stored = stored_details(created, data, 1_764_000_000_123)
            assert (decode_details(stored), reported_at(stored)) == ((created, data), 1_764_000_000_123)
            before = b"%d %b" % (created, data)
            assert (decode_details(before), reported_at(before)) == ((created, data), 0)
        assert (decode_details(data), reported_at(data)) == ((0, data), 0)


async def test_details_that_a_host_stored_unseen_are_deleted_with_the_record() -> None:
    bench = await released(await in_flight("a"), alive=True)
    lent(bench.shard, "a")
    await bench.turns()
    await bench.take_in(message("2-0", "a", "outcome", {"seq": 1, "attempt": 1, "ms": 1.0, "result": 5}))
    last = bench.commits[-1]
    assert bench.shard.keys.details in last.keys
    assert last.args[-4:] == ["a/1", b"", "a/1", b""]


async def lose_gone(bench: Bench, steps: bytes | StoreError, details: bytes | None) -> None:
    executor: Any = SimpleNamespace()
    answer = steps if isinstance(steps, StoreError) else [steps]
    bench.store.answers["HMGET"] = lambda call: answer if call.args[1].endswith("steps") else [details]
    bench.store.answers["GET"] = None
    records = StepRecords(context(bench.store, app, shards=8), bench.owner, executor)
    await records.lose_gone()


def message(entry_id: str, run_id: str, kind: str, body: object) -> Any:
    return msgspec.structs.replace(signal(entry_id, run_id, "x"), kind=kind, body=msgspec.msgpack.encode(body))


def test_a_careful_batch_takes_only_what_belongs_to_its_run() -> None:
    shard = owned()
    shard.careful["a"] = set()
    put(shard, signal("1-0", "a", "go"), signal("1-1", "b", "go"), signal("1-2", "a", "go"))
    batch = ShardBatch(shard, Batch("c1"))
    batch.collect()
    assert set(batch.work) == {"b"}
    careful = ShardBatch(shard, Batch("c2"))
    careful.collect_careful("a")
    assert [entry.id for entry in careful.work["a"].messages] == ["1-0", "1-2"]
    assert not shard.has_work
    assert CODE == 0


@pytest.mark.parametrize("gives_back", [ShardBatch.put_back, lambda batch: batch._give_back("a", batch.work["a"])])
def test_what_a_careful_batch_gives_back_comes_before_the_rest(
    gives_back: Callable[[ShardBatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_module, "RUN_INPUTS", 10)
    shard = owned()
    shard.careful["a"] = set()
    shard.live["a"] = SimpleNamespace(machine=SimpleNamespace(close=lambda: None))  # pyright: ignore[reportArgumentType]
    put(shard, *(signal(f"1-{n}", "a", "go") for n in range(25)))
    ShardBatch(shard, Batch("c1")).collect()
    careful = ShardBatch(shard, Batch("c2"))
    careful.collect_careful("a")
    gives_back(careful)
    put(shard, signal("2-0", "a", "go"))
    ShardBatch(shard, Batch("c3")).collect()
    assert [entry.id for entry in shard.aside["a"].messages] == [*(f"1-{n}" for n in range(25)), "2-0"]
