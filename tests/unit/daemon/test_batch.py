"""One batch of one shard: what a commit gets from messages, outcomes and due times."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

import streamflow as sf
from streamflow.daemon import batch as batch_module
from streamflow.daemon.batch import IN_FLIGHT, ShardBatch
from streamflow.daemon.shard import LiveRun, OwnedShard, PutOffRun, RunWork, first_outbox
from streamflow.errors import Failure
from streamflow.events import (
    NOTHING,
    AskAnswered,
    MessageQuarantined,
    RunCompleted,
    RunFailed,
    SignalReceived,
    decode_transition,
)
from streamflow.machine.factory import new_machine
from streamflow.machine.transition import Due, Effects, FailedChild, Outcome
from streamflow.model.record import Status, decode_header
from streamflow.model.references import MARK
from streamflow.model.sharding import Partition, shard_of
from streamflow.store.kernel import FRESH, Attempt, Batch, Put
from streamflow.store.namespace import Namespace
from streamflow.watch.blocker import RunNote
from streamflow.wire import InboxMessage, decode_job, origin_of, published_name
from tests.support.fakes import owned, pack, put, signal, start
from tests.support.machine_driver import plain, raw

app = sf.App()
SHARDS = 8
NOW = 1_000_000


@app.step
async def act(x: int) -> int:
    return x


@app.workflow
async def quick(x: int) -> int:
    return x


@app.workflow
async def stepping(x: int) -> int:
    return await act(x)


@app.workflow
async def queueing(x: int) -> int:
    return await act.options(queue="gpu", timeout=3)(x)


@app.workflow
async def collecting(count: int) -> list[Any]:
    return [await sf.signal("item") for _ in range(count)]


@app.workflow
async def sleeping(seconds: int) -> None:
    await sf.sleep(seconds)


@app.workflow
async def family(count: int) -> None:
    await sf.gather(*(quick(n) for n in range(count)), sf.send_signal("friend", "hello"))


@app.workflow
async def publishing(count: int, waits: bool) -> None:
    for n in range(count):
        sf.publish(f"n{n}", None)
    if waits:
        await sf.signal("item")


@app.workflow
async def republishing(count: int) -> None:
    for _ in range(count):
        n = await sf.signal("item", int)
        sf.publish(f"n{n}", n)


@app.step
async def swallow(data: bytes) -> None: ...


@app.workflow
async def passing_on(size: int) -> None:
    await swallow(b"x" * size)


@app.workflow
async def spreading(width: int) -> None:
    await sf.gather(*(swallow(b"x" * 1000) for _ in range(width)))


class Noted(RunNote):
    def __init__(self) -> None:
        super().__init__()
        self.runs: list[str] = []

    def code_of(self, run_id: str, shard: int) -> None:
        self.runs.append(run_id)


def numbered(number: int) -> str:
    """A number in the outbox of the fakes' owner."""
    return f"7-{first_outbox('7:nonce') + number}"


def test_two_owners_number_their_messages_differently_with_the_same_epoch() -> None:
    firsts = [first_outbox(f"7:{nonce:032x}") for nonce in range(1000)]
    assert len(set(firsts)) > 990
    assert all(first and first % (1 << 32) == 0 and first < 1 << 52 for first in firsts)


def collected(shard: OwnedShard) -> ShardBatch:
    batch = ShardBatch(shard, Batch(shard.next_commit("session")))
    batch.collect()
    return batch


def batch_of(shard: OwnedShard, at: int = NOW, watched: list[str] | None = None) -> ShardBatch:
    """Collect what waits at the shard and reduce it."""
    batch = collected(shard)
    note = Noted()
    batch.reduce(app, Namespace(SHARDS, Partition.RUN, "of the data"), at, note)
    if watched is not None:
        watched += note.runs
    batch.finish()
    return batch


def applied(batch: ShardBatch) -> ShardBatch:
    """As if the commit was accepted, as far as the next batch needs it."""
    for done in batch.reduced:
        done.live.header, done.live.header_bytes, done.live.plan = done.header, done.header_bytes, done.plan
    return batch


def kinds_in(batch: ShardBatch, number: int = 0) -> list[str]:
    return [type(event).__name__ for event in decode_transition(batch.batch.runs[number].transition).events]


def test_a_start_that_has_waited_is_before_what_came_for_its_run_meanwhile() -> None:
    """Its messages go past it in the inbox, and may be read before it has its turn."""
    shard = owned()
    late = msgspec.structs.replace(start("1-0", "r", "collecting", 2), id=shard.next_waited())
    put(shard, signal("1-1", "r", "item", 1), signal("1-2", "r", "item", 2), late)
    batch = batch_of(shard)
    assert kinds_in(batch) == ["RunStarted", "SignalReceived", "SignalReceived", "RunCompleted"]
    assert batch.batch.acks == ["1-1", "1-2"]


# --- steps of queues --------------------------------------------------------------------------------------------------


def test_an_attempt_for_a_queue_is_in_its_commit() -> None:
    shard = owned()
    put(shard, start("1-0", "r", "queueing", 5))
    batch = batch_of(shard)
    [attempt] = batch.batch.attempts
    created = shard.live["r"].header.created
    assert attempt == Attempt("gpu", "r/1", f"{created} 1", attempt.body)
    job = decode_job(attempt.body)
    assert (job.queue, job.seq, job.attempt, job.name, job.timeout, plain(job.args)) == ("gpu", 1, 1, "act", 3, [5])
    assert batch.outbox == []
    assert batch.batch.plans == []  # nothing of the run is in flight at the owner


def test_a_retry_of_a_queued_step_carries_the_earlier_heartbeat_details() -> None:
    shard = owned()
    put(shard, start("1-0", "r", "queueing", 5))
    applied(batch_of(shard))
    shard.add_input("r", Outcome(1, 1, 0.0, None, Failure("ValueError", "no"), details=raw("half")))
    due = applied(batch_of(shard)).batch.plans
    shard.add_input("r", Due())
    [attempt] = batch_of(shard, at=due[0][1] or 0).batch.attempts
    assert (decode_job(attempt.body).attempt, attempt.details) == (2, pack("half"))


def test_a_run_that_ends_revokes_its_attempts_in_queues_behind_them() -> None:
    shard = owned()
    put(shard, start("1-0", "r", "queueing", 5))
    applied(batch_of(shard))
    put(shard, InboxMessage("2-0", "cancel", "r", pack("enough")))
    batch = batch_of(shard)
    [attempt] = batch.batch.attempts
    assert attempt == Attempt("gpu", "r/1", attempt.attempt, b"")
    assert attempt.attempt.endswith(" 1")


# --- what is written ------------------------------------------------------------------------------------------------


def test_a_start_is_one_write_that_expects_the_header_of_its_message() -> None:
    shard = owned()
    message = start("1-0", "r", "stepping", 5, tenant="acme")
    put(shard, message)
    batch = batch_of(shard)
    [write] = batch.batch.runs
    assert (write.run_id, write.expected, write.state) == ("r", message.header, b"")
    header = decode_header(write.header)
    assert (header.status, header.version, header.commit, header.created) == ("running", 1, "session.1", 900)
    assert (header.workflow, header.tenant) == ("stepping", "acme")
    assert kinds_in(batch) == ["RunStarted", "StepScheduled"]
    assert batch.batch.acks == ["1-0"]


@pytest.mark.parametrize(
    ("created", "at"),
    [(NOW - 5, NOW), (NOW + 900, NOW + 900), (NOW + 3_600_000, NOW), (NOW - 3_600_000, NOW)],
)
def test_no_run_follows_a_server_whose_clock_was_ahead_when_it_was_created(created: int, at: int) -> None:
    """But none begins before it was created, as far as that is only how far clocks may differ."""
    shard = owned()
    message = start("1-0", "r", "sleeping", 5)
    put(shard, msgspec.structs.replace(message, header=message.header.replace(b" 900 ", b" %d " % created)))
    batch = batch_of(shard)
    assert decode_transition(batch.batch.runs[0].transition).at == at
    assert batch.batch.plans == [("r", NOW + 5000)]


def test_messages_of_one_run_fold_into_one_transition_in_order() -> None:
    shard = owned()
    put(shard, start("1-0", "r", "collecting", 3), *(signal(f"2-{n}", "r", "item", n) for n in range(3)))
    batch = batch_of(shard)
    assert kinds_in(batch) == ["RunStarted", *["SignalReceived"] * 3, "RunCompleted"]
    ending = decode_transition(batch.batch.runs[0].transition).events[-1]
    assert isinstance(ending, RunCompleted)
    assert plain(ending.result) == [0, 1, 2]
    assert batch.batch.acks == ["1-0", "2-0", "2-1", "2-2"]


def test_what_came_for_an_earlier_run_of_the_id_is_dropped() -> None:
    """It is in the inbox before the start. What is not a message is quarantined all the same."""
    shard = owned()
    shard.add_input("r", Outcome(1, 1, 0.5, raw(1)))
    joke = InboxMessage("1-1", "joke", "r", b"")
    put(shard, signal("1-0", "r", "item", "old"), joke, start("1-2", "r", "collecting", 1))
    put(shard, signal("1-3", "r", "item", "new"))
    batch = batch_of(shard)
    assert kinds_in(batch) == ["RunStarted", "SignalReceived", "RunCompleted"]
    ending = decode_transition(batch.batch.runs[0].transition).events[-1]
    assert isinstance(ending, RunCompleted)
    assert plain(ending.result) == ["new"]
    assert batch.batch.acks == ["1-0", "1-2", "1-3"]
    assert [poison.message_id for poison in batch.batch.poisons] == ["1-1"]


def test_what_came_before_the_start_of_a_run_read_again_is_dropped() -> None:
    """A run is read that isn't trusted to be new: it is in memory before its start message comes."""
    shard = owned()
    begin = start("1-1", "r", "collecting", 1)
    machine = new_machine(app, Partition.RUN, "r", "collecting")
    shard.live["r"] = LiveRun(machine, decode_header(begin.header), begin.header, None)
    put(shard, signal("1-0", "r", "item", "old"), begin)
    batch = batch_of(shard)
    assert kinds_in(batch) == ["RunStarted"]
    assert batch.batch.acks == ["1-0", "1-1"]


def test_many_runs_are_one_commit_and_each_is_watched_while_it_is_reduced() -> None:
    shard = owned()
    put(shard, *(start(f"1-{n}", f"r{n}", "quick", n) for n in range(5)))
    watched: list[str] = []
    batch = batch_of(shard, watched=watched)
    assert [write.run_id for write in batch.batch.runs] == [f"r{n}" for n in range(5)]
    assert watched == ["r0", "r1", "r2", "r3", "r4", ""]


def test_the_agenda_says_in_flight_or_when_due_or_nothing() -> None:
    shard = owned()
    put(
        shard,
        start("1-0", "in-step", "stepping", 1),
        start("1-1", "asleep", "sleeping", 5),
        start("1-2", "listening", "collecting", 1),
        start("1-3", "done", "quick", 1),
    )
    assert batch_of(shard).batch.plans == [("in-step", IN_FLIGHT), ("asleep", NOW + 5000)]


def test_an_unchanged_plan_is_not_written_again() -> None:
    """An ended run leaves the agenda."""
    shard = owned()
    put(shard, start("1-0", "r", "sleeping", 5))
    applied(batch_of(shard))
    put(shard, signal("2-0", "r", "whatever"))
    assert applied(batch_of(shard)).batch.plans == []
    shard.add_input("r", Due())
    batch = batch_of(shard, NOW + 5000)
    assert batch.batch.plans == [("r", None)]
    assert kinds_in(batch) == ["TimerFired", "RunCompleted"]


def test_a_run_moves_between_listings_only_when_its_status_changes() -> None:
    shard = owned()
    put(shard, start("1-0", "r", "collecting", 2))
    assert applied(batch_of(shard)).batch.moves == [], "pending and running are listed together"
    put(shard, signal("2-0", "r", "item"))
    assert applied(batch_of(shard)).batch.moves == []
    put(shard, signal("2-1", "r", "item"))
    keys = shard.keys
    expected = ("r", keys.index("running", "collecting"), keys.index("completed", "collecting"), NOW)
    assert batch_of(shard).batch.moves == [expected]
    assert shard.workflows == {"collecting"}


def test_messages_for_others_are_numbered_in_order_and_say_their_shard() -> None:
    shard = owned()
    put(shard, start("1-0", "r", "family", 3))
    batch = batch_of(shard)
    assert [(send.kind, send.run_id.partition("~")[0]) for send in batch.sends] == [
        ("start", "r.1"),
        ("start", "r.2"),
        ("start", "r.3"),
        ("signal", "friend"),
    ]
    assert all(send.target == shard_of(send.run_id, SHARDS, Partition.RUN) for send in batch.sends)
    assert [(entry.number, entry.messages) for entry in batch.outbox] == [(numbered(4), batch.sends)]
    put(shard, start("1-1", "s", "family", 2))
    assert [entry.number for entry in batch_of(shard).outbox] == [numbered(7)]


@pytest.mark.parametrize(("limit", "value"), [("ENTRY", 2), ("ENTRY_BYTES", 1)])
def test_entries_of_the_outbox_have_limits(limit: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, limit, value)
    shard = owned()
    put(shard, start("1-0", "r", "family", 4))
    batch = batch_of(shard)
    sizes = [2, 2, 1] if limit == "ENTRY" else [1] * 5
    assert [len(entry.messages) for entry in batch.outbox] == sizes
    assert [sent for entry in batch.outbox for sent in entry.messages] == batch.sends
    assert [send.number for send in batch.batch.sends] == [entry.number for entry in batch.outbox]
    assert batch.outbox[-1].number == numbered(5)


def test_what_was_delivered_is_deleted_with_the_next_commit() -> None:
    shard = owned()
    shard.sent = ["7-1", "7-2"]
    batch = batch_of(shard)
    assert batch.batch.sent == ["7-1", "7-2"]
    assert not batch.is_empty
    assert shard.sent == ["7-1", "7-2"], "until the commit is accepted"


def test_notifications_are_of_ended_runs_without_large_results() -> None:
    shard = owned()
    put(
        shard,
        start("1-0", "small", "quick", 1),
        start("1-1", "open", "collecting", 1),
        start("1-2", "large", "collecting", 1),
        signal("1-3", "large", "item", b"x" * 5000),
    )
    batch = batch_of(shard)
    notifications = dict(msgspec.msgpack.decode(batch.batch.notification))
    small = notifications["small"]
    assert decode_transition(small) == decode_transition(batch.batch.runs[0].transition), "as earlier releases read it"
    assert origin_of(small) == (900, "of the data")
    assert notifications["large"] == b""


def test_nothing_at_all_is_an_empty_batch() -> None:
    assert batch_of(owned()).is_empty


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_a_message_for_a_run_that_does_not_exist_is_dropped() -> None:
    shard = owned()
    put(shard, signal("1-0", "gone", "item"))
    batch = batch_of(shard)
    assert batch.batch.acks == ["1-0"]
    assert batch.batch.plans == [("gone", None)]
    assert batch.batch.runs == []


def test_a_bad_message_is_quarantined_and_its_run_and_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    shard = owned()
    put(
        shard,
        start("1-0", "r", "collecting", 1),
        InboxMessage("1-1", "signal", "r", b"\xc1"),
        signal("1-2", "r", "item"),
        start("1-3", "other", "quick", 1),
    )
    batch = batch_of(shard)
    [poison] = batch.batch.poisons
    assert (poison.message_id, poison.run_id, poison.body) == ("1-1", "r", b"\xc1")
    assert "message 1-1 of shard 0 for run r is quarantined: " in caplog.text
    [event] = decode_transition(poison.event).events
    assert isinstance(event, MessageQuarantined)
    assert event.reason == poison.reason
    assert batch.batch.acks == ["1-0", "1-2", "1-3"]
    assert [decode_header(write.header).status for write in batch.batch.runs] == ["completed", "completed"]


def test_a_start_of_a_run_that_has_started_is_quarantined() -> None:
    shard = owned()
    put(shard, start("1-0", "r", "collecting", 1))
    applied(batch_of(shard))
    put(shard, start("2-0", "r", "collecting", 9), signal("2-1", "r", "item", "well"))
    batch = batch_of(shard)
    assert [poison.message_id for poison in batch.batch.poisons] == ["2-0"]
    assert kinds_in(batch) == ["SignalReceived", "RunCompleted"]


def test_a_start_is_trusted_only_until_its_run_proves_to_be_another() -> None:
    shard = owned()
    put(shard, start("1-0", "r", "quick", 1), InboxMessage("1-1", "start", "forged", b"\x90", b"rubbish"))
    batch = ShardBatch(shard, Batch("c"))
    batch.collect()
    assert batch.missing() == ["forged"]
    batch.put_back()
    shard.suspect.add("r")
    batch = ShardBatch(shard, Batch("c"))
    batch.collect()
    assert batch.missing() == ["r", "forged"]
    batch.work["r"].loaded = True  # and nothing was found
    batch.reduce(app, Namespace(SHARDS, Partition.RUN), NOW, RunNote())
    assert [poison.message_id for poison in batch.batch.poisons] == ["1-0", "1-1"]
    assert batch.batch.runs == []


class Broken:
    """Stands in for the machine of a run whose code raises what no run may."""

    closed = 0
    ended = is_cancelling = False
    retrying = pause = None

    def advance(self, inputs: Any, clock: int, not_before: int, **_: Any) -> Any:
        raise SystemExit("a defect")

    def close(self) -> None:
        self.closed += 1


def test_a_run_whose_code_raises_anything_is_left_out_with_its_messages() -> None:
    shard = owned()
    put(shard, start("1-0", "broken", "collecting", 1), start("1-1", "fine", "collecting", 1))
    applied(batch_of(shard))
    shard.live["broken"].machine = broken = Broken()  # type: ignore[assignment]
    put(shard, signal("2-0", "broken", "item"), signal("2-1", "fine", "item"))
    batch = batch_of(shard)
    assert batch.batch.acks == ["2-1"], "the others are committed"
    assert [run.run_id for run in batch.batch.runs] == ["fine"]
    assert batch.batch.poisons == []
    assert [message.id for message in shard.inbox] == ["2-0"], "for the next batch, which records it without the code"
    assert shard.parked["broken"].startswith("SystemExit: a defect")
    assert "broken" not in shard.live, "it is read again"
    assert broken.closed == 1


def test_a_message_that_nobody_has_thought_of_harms_its_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = batch_module.decode_message

    def decoded(message: InboxMessage, header: Any) -> Any:
        if message.id == "1-2":
            raise KeyError("a defect")
        return decode(message, header)

    monkeypatch.setattr(batch_module, "decode_message", decoded)
    shard = owned()
    put(shard, start("1-0", "a", "collecting", 1), signal("1-1", "a", "item"), signal("1-2", "a", "item"))
    put(shard, start("1-3", "b", "collecting", 1))
    batch = batch_of(shard)
    assert [poison.message_id for poison in batch.batch.poisons] == ["1-0", "1-1", "1-2"]
    assert "KeyError: 'a defect'" in batch.batch.poisons[0].reason
    assert ([write.run_id for write in batch.batch.runs], batch.batch.acks) == (["b"], ["1-3"])
    assert set(shard.live) == {"b"}


def test_a_run_that_cannot_even_be_parked_is_quarantined() -> None:
    shard = owned()
    put(shard, start("1-0", "broken", "collecting", 1), start("1-1", "fine", "collecting", 1))
    applied(batch_of(shard))
    shard.parked["broken"] = "it failed before"
    shard.live["broken"].machine = Broken()  # type: ignore[assignment]
    put(shard, signal("2-0", "broken", "item"), signal("2-1", "fine", "item"))
    batch = batch_of(shard)
    [poison] = batch.batch.poisons
    assert poison.message_id == "2-0"
    assert poison.reason.startswith("reducing failed: SystemExit: a defect")
    assert batch.batch.acks == ["2-1"]


def test_a_new_run_that_is_parked_starts_as_stuck() -> None:
    shard = owned()
    shard.parked["new"] = "its code did not give way for 5 s"
    put(shard, start("1-0", "new", "collecting", 1))
    batch = batch_of(shard)
    assert kinds_in(batch) == ["RunStarted", "RunStuck"]
    assert batch.batch.acks == ["1-0"]


def test_a_child_whose_id_is_taken_is_refused_to_its_parent() -> None:
    shard = owned()
    put(shard, InboxMessage("1-0", "taken", "theirs", b"", b"parent#4@900"))
    batch = batch_of(shard)
    [send] = batch.sends
    assert (send.kind, send.run_id, send.target) == ("child", "parent", shard_of("parent", SHARDS, Partition.RUN))
    failure = Failure("RunConflict", "the run id theirs belongs to another run")
    expected = FailedChild(4, "", failure, created=900, run_id="theirs")
    assert msgspec.msgpack.decode(send.body, type=FailedChild) == expected
    assert batch.batch.acks == ["1-0"]


# --- attributes, published values, answers, fresh histories -----------------------------------------------------------


class Deciding:
    """In place of a machine: one transition with the effects that a test wants."""

    def __init__(self, **effects: Any) -> None:
        self.at = NOW
        self.in_flight, self.next_due = False, None
        self.decided = Effects()
        self.decided.events = [SignalReceived("item", NOTHING)]
        for name, value in effects.items():
            setattr(self.decided if name in Effects.__struct_fields__ else self.decided.own_besides(), name, value)

    def advance(self, inputs: list[Any], clock: int, not_before: int, *, in_seal: bool) -> Effects:
        return self.decided

    def snapshot(self) -> bytes:
        return b""


def decide(shard: OwnedShard, **effects: Any) -> ShardBatch:
    """A batch in which the run `r` (begun, if need be) has these effects."""
    if "r" not in shard.live:
        put(shard, start("1-0", "r", "collecting", 1))
        applied(batch_of(shard))
    shard.live["r"].machine = Deciding(**effects)  # pyright: ignore
    shard.add_input("r", Due())
    return applied(batch_of(shard))


def test_attributes_are_in_the_header_and_move_between_listings() -> None:
    shard = owned()
    acme, globex = shard.keys.attribute("customer", "acme"), shard.keys.attribute("customer", "globex")
    two = shard.keys.attribute("priority", "2")
    first = decide(shard, attributes={"customer": "acme", "priority": 2})
    assert decode_header(first.batch.runs[0].header).attributes == {"customer": "acme", "priority": 2}
    assert first.batch.moves == [("r", "", acme, 900), ("r", "", two, 900)], "by the start of the run"
    second = decide(shard, attributes={"customer": "globex", "priority": None, "other": None})
    assert second.batch.moves == [("r", acme, globex, 900), ("r", two, "", 900)]
    assert decode_header(second.batch.runs[0].header).attributes == {"customer": "globex"}
    third = decide(shard, attributes={"customer": "globex"})
    assert third.batch.moves == [], "nothing has changed"
    assert decode_header(decide(shard).batch.runs[0].header).attributes == {"customer": "globex"}


def test_attributes_that_are_too_many_together_stay_as_they_were(caplog: pytest.LogCaptureFixture) -> None:
    shard = owned()
    decide(shard, attributes={f"a{number}": number for number in range(32)})
    batch = decide(shard, attributes={"b": 1})
    assert batch.batch.moves == []
    assert len(decode_header(batch.batch.runs[0].header).attributes) == 32
    assert "run r keeps its attributes" in caplog.text


def test_published_values_are_put_with_the_transition() -> None:
    shard = owned()
    batch = decide(shard, published={"progress": pack(3), "last": pack("x")})
    key = shard.keys.published("r")
    assert batch.batch.puts == [Put(key, "progress", pack(3)), Put(key, "last", pack("x"))]
    assert msgspec.msgpack.decode(batch.batch.notification) == [[published_name("r"), b""]], "for who watches them"
    later = decide(shard).batch
    assert (later.puts, later.notification) == ([], b"")


def test_answers_are_stored_and_notified_beside_the_runs_that_end() -> None:
    shard = owned()
    answers = [AskAnswered("0" * 32, "may I", raw(True)), AskAnswered("1" * 32, "what", raw("x" * 5000))]
    put(shard, start("1-1", "q", "quick", 1))
    batch = decide(shard, answers=answers)
    assert [(put.key, put.field) for put in batch.batch.puts] == [
        (shard.keys.answer("0" * 32), ""),
        (shard.keys.answer("1" * 32), ""),
    ]
    assert [msgspec.msgpack.decode(put.value, type=AskAnswered) for put in batch.batch.puts] == answers
    notifications = msgspec.msgpack.decode(batch.batch.notification, type=list[tuple[str, bytes]])
    assert notifications == [(f"?{'0' * 32}", pack(answers[0])), (f"?{'1' * 32}", b"")], "a large one is fetched"


def test_an_answer_is_notified_before_the_end_of_its_run() -> None:
    batch = decide(owned(), answers=[AskAnswered("0" * 32, "may I")], ended=True, status=Status.COMPLETED)
    notifications = msgspec.msgpack.decode(batch.batch.notification, type=list[tuple[str, bytes]])
    assert [name for name, _ in notifications] == [f"?{'0' * 32}", "r"]


def test_a_fresh_history_is_marked_before_the_state() -> None:
    assert decide(owned(), fresh=True).batch.runs[0].state == FRESH


# --- collecting and putting back ------------------------------------------------------------------------------------


def test_a_batch_says_whether_its_messages_may_refer_to_storage() -> None:
    shard = owned()
    shard.add_input("r", Due())
    put(shard, signal("1-0", "r", "item", 1))
    batch = collected(shard)
    assert not batch.may_have_references
    assert batch.begin_waiting("r", [b"pending 0 - 900 0 collecting - -", b"body"])
    assert batch.may_have_references, "the start that has waited"
    put(shard, signal("2-0", "r", "item", 1), signal("3-0", "r", "item", MARK), signal("4-0", "r", "item", 1))
    assert collected(shard).may_have_references


@pytest.mark.parametrize("kind", ["pause", "resume", "cancel"])
def test_a_batch_says_whether_its_messages_may_pause_a_run(kind: str) -> None:
    shard = owned()
    put(shard, signal("1-0", "r", "item", 1))
    assert not collected(shard).may_pause
    put(shard, signal("2-0", "r", "item", 1), InboxMessage("3-0", kind, "r", b""), signal("4-0", "s", "item", 1))
    assert collected(shard).may_pause


@pytest.mark.parametrize("way", ["returned", "careful"])
def test_what_comes_back_into_a_batch_may_be_anything(way: str) -> None:
    shard = owned()
    work = RunWork([signal("1-0", "r", "item", 1)])
    if way == "returned":
        shard.returned["r"] = PutOffRun(work, "its box", 0.0)
        batch = collected(shard)
    else:
        shard.aside["r"] = work
        batch = ShardBatch(shard, Batch("c"))
        batch.collect_careful("r")
    assert batch.work["r"].messages
    assert batch.may_have_references
    assert batch.may_pause


def test_a_batch_has_limits_and_the_rest_stays_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "RUNS", 3)
    shard = owned()
    put(shard, *(start(f"1-{n}", f"r{n}", "quick", n) for n in range(7)))
    taken = [[write.run_id for write in batch_of(shard).batch.runs] for _ in range(3)]
    assert taken == [["r0", "r1", "r2"], ["r3", "r4", "r5"], ["r6"]]


def test_a_batch_has_a_limit_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "BYTES", 1000)
    shard = owned()
    put(shard, *(signal(f"1-{n}", "r", "item", b"x" * 600) for n in range(3)))
    batch = ShardBatch(shard, Batch("c"))
    batch.collect()
    assert [message.id for message in batch.work["r"].messages] == ["1-0", "1-1"]
    assert [message.id for message in shard.inbox] == ["1-2"]


def test_outcomes_and_messages_of_a_run_come_together() -> None:
    shard = owned()
    put(shard, start("1-0", "r", "stepping", 5))
    applied(batch_of(shard))
    shard.add_input("r", Outcome(1, 1, 2.5, raw(5)))
    put(shard, signal("2-0", "r", "late"))
    assert kinds_in(batch_of(shard)) == ["StepCompleted", "RunCompleted"]


def test_messages_that_are_put_back_come_again_first_and_in_order() -> None:
    shard = owned()
    put(shard, start("9-0", "r", "collecting", 2), signal("9-1", "r", "item", 1), start("10-0", "s", "quick", 1))
    shard.add_input("t", Due())
    batch = batch_of(shard)
    put(shard, signal("11-0", "r", "item", 2))
    shard.add_input("t", Outcome(1, 1, 0.0))
    batch.put_back()
    assert [message.id for message in shard.inbox] == ["9-0", "9-1", "10-0", "11-0"]
    assert [type(one).__name__ for one in shard.inputs["t"]] == ["Due", "Outcome"]
    assert shard.live == {}, "what was reduced didn't happen"
    again = batch_of(shard)
    assert kinds_in(again) == ["RunStarted", "SignalReceived", "SignalReceived", "RunCompleted"]


def test_bad_messages_and_refusals_are_put_back_too() -> None:
    shard = owned()
    put(shard, InboxMessage("1-0", "joke", "r", b""), InboxMessage("1-1", "taken", "x", b"", b"p#1"))
    batch_of(shard).put_back()
    assert [message.id for message in shard.inbox] == ["1-0", "1-1"]


# --- what a commit may write ------------------------------------------------------------------------------------------


def committed(batch: ShardBatch) -> ShardBatch:
    """As `applied`, with what ends with a run."""
    for done in batch.reduced:
        if done.effects.ended:
            batch.shard.live.pop(done.run_id)
            batch.shard.forget(done.run_id)
    return applied(batch)


def all_batches(shard: OwnedShard) -> list[ShardBatch]:
    batches: list[ShardBatch] = []
    while shard.has_work:
        batches.append(committed(batch_of(shard)))
        assert len(batches) < 100
    return batches


def test_runs_that_decide_much_together_are_divided_among_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "WRITES", 20)
    shard = owned()
    put(shard, *(start(f"1-{n}", f"r{n}", "family", 9) for n in range(6)), signal("1-9", "r0", "item", 1))
    shard.add_input("r5", Due())
    batches = all_batches(shard)
    assert [len(batch.sends) for batch in batches] == [20, 20, 20]
    assert [[write.run_id for write in batch.batch.runs] for batch in batches] == [
        ["r5", "r0"],
        ["r1", "r2"],
        ["r3", "r4"],
    ]
    acks = [ack for batch in batches for ack in batch.batch.acks]
    assert sorted(acks) == sorted({*acks}) == [*(f"1-{n}" for n in range(6)), "1-9"]
    numbers = [int(send.number.partition("-")[2]) for batch in batches for send in batch.batch.sends]
    assert numbers == sorted(numbers)


def test_bytes_that_runs_write_together_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "BYTES", 3000)
    shard = owned()
    put(shard, *(start(f"1-{n}", f"r{n}", "passing_on", 1000) for n in range(5)))
    sizes = [sum(len(write.transition) for write in batch.batch.runs) for batch in all_batches(shard)]
    assert len(sizes) == 2
    assert max(sizes) < 3000 + 1100, "one run more"


def test_what_was_not_reduced_is_reduced_once_and_stays_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "WRITES", 1)
    shard = owned()
    put(shard, start("1-0", "a", "family", 3), start("1-1", "b", "collecting", 1))
    committed(batch_of(shard))
    assert [message.id for message in shard.inbox] == ["1-1"]
    put(shard, signal("2-0", "b", "item", 5))
    assert kinds_in(committed(batch_of(shard))) == ["RunStarted", "SignalReceived", "RunCompleted"]
    assert not shard.has_work


def test_a_transition_that_is_too_large_fails_its_run_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(batch_module, "LARGEST", 5000)
    shard = owned()
    put(shard, start("1-0", "huge", "spreading", 10, parent="p#1", tenant="t"), start("1-1", "r", "quick", 1))
    first, second = all_batches(shard)
    assert [write.run_id for write in first.batch.runs] == ["r"]
    assert first.batch.acks == ["1-1"]
    assert kinds_in(second) == ["RunStarted", "RunFailed"]
    assert second.batch.acks == ["1-0"]
    failed = decode_transition(second.batch.runs[0].transition).events[-1]
    assert isinstance(failed, RunFailed)
    failure = failed.failure
    assert failure.kind == "TransitionTooLarge"
    assert "start fewer steps or children" in failure.message
    assert decode_header(second.batch.runs[0].header).status == Status.FAILED
    assert [(send.kind, send.run_id) for send in second.sends] == [("child", "p")]
    assert "run huge of shard 0 fails, other runs continue" in caplog.text
    assert (shard.portions, shard.oversize, shard.live) == ({}, {}, {})


def test_a_fan_out_that_is_too_wide_fails_but_an_end_never_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "MOST_WRITES", 15)
    shard = owned()
    put(shard, start("1-0", "r", "family", 10))
    committed(batch_of(shard))
    put(shard, signal("2-0", "r", "item"), start("2-1", "wide", "family", 20))
    all_batches(shard)
    monkeypatch.setattr(batch_module, "MOST_WRITES", 5)
    put(shard, InboxMessage("3-0", "cancel", "r", pack("enough")))
    [batch] = all_batches(shard)
    assert kinds_in(batch)[-1] == "RunCancelled"
    assert len(batch.sends) == 10


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize(("waits", "end"), [(True, "RunStarted"), (False, "RunCompleted")])
def test_a_run_that_publishes_too_many_values_at_once_fails(
    more: int, waits: bool, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    """However small they are: each is a write of its own for the server. Also if the run ends with them."""
    shard = owned()
    put(shard, start("1-0", "r", "publishing", batch_module.MOST_PUBLISHED + more, waits))
    batches = all_batches(shard)
    assert [kinds_in(batch)[-1] for batch in batches if batch.batch.runs] == ["RunFailed" if more else end]
    assert sum(len(batch.batch.puts) for batch in batches) == (0 if more else batch_module.MOST_PUBLISHED)
    if more:
        failed = decode_transition(batches[-1].batch.runs[0].transition).events[-1]
        assert isinstance(failed, RunFailed)
        assert failed.failure.kind == "TransitionTooLarge"
        assert "published 2,001 values at once, and the limit is 2,000" in failed.failure.message
        assert "under fewer keys" in failed.failure.message
        assert "run r of shard 0 fails, other runs continue" in caplog.text


def test_values_published_because_of_many_inputs_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "MOST_PUBLISHED", 5)
    monkeypatch.setattr(batch_module, "SMALL", 5)
    shard = owned()
    put(shard, start("1-0", "r", "republishing", 12), *(signal(f"2-{n}", "r", "item", n) for n in range(12)))
    batches = [batch for batch in all_batches(shard) if batch.batch.runs]
    assert max(len(batch.batch.puts) for batch in batches) <= 5
    assert [put.field for batch in batches for put in batch.batch.puts] == [f"n{n}" for n in range(12)]
    assert kinds_in(batches[-1])[-1] == "RunCompleted"


def test_one_run_with_thousands_of_inputs_delays_others_by_no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "RUN_INPUTS", 10)
    shard = owned()
    put(shard, start("1-0", "hot", "collecting", 100), *(signal(f"2-{n}", "hot", "item", n) for n in range(35)))
    for seq in range(12):
        shard.add_input("hot", Outcome(seq + 50, 1, 0.0))
    put(shard, start("3-0", "r", "quick", 1))
    batches = all_batches(shard)
    assert "r" in [write.run_id for write in batches[0].batch.runs]
    signals = [ack for batch in batches for ack in batch.batch.acks if ack.startswith("2-")]
    assert signals == [f"2-{n}" for n in range(35)], "its own stay in order"
    assert len(batches) == 4


def test_large_outcomes_of_one_run_are_divided_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "BYTES", 1000)
    shard = owned()
    for seq in range(5):
        shard.add_input("r", Outcome(seq, 1, 0.0, raw(b"x" * 400)))
    taken: list[int] = []
    while shard.inputs:
        batch = ShardBatch(shard, Batch("c"))
        batch.collect()
        taken += [len(batch.work["r"].inputs)]
    assert taken == [3, 2]


def test_delivered_entries_are_deleted_a_thousand_at_a_time() -> None:
    shard = owned()
    shard.sent = [f"7-{n}" for n in range(2500)]
    batch = ShardBatch(shard, Batch("c"))
    batch.collect()
    assert batch.batch.sent == [f"7-{n}" for n in range(1000)]
    assert batch.sent == 1000
