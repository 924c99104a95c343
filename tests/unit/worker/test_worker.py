"""A worker's parts: how many entries are taken, what unreadable ones become, and the order in which claims end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec
import pytest
from msgspec import Raw

import streamflow as sf
from streamflow.errors import StoreError, StoreUnavailable
from streamflow.events import NOTHING
from streamflow.machine.transition import Outcome
from streamflow.model.codec import DECLINED
from streamflow.settings import Settings
from streamflow.steps.executor import StepExecutor
from streamflow.steps.suspects import Note, Suspect, Suspects, encode_note
from streamflow.store.blocking_reads import Entry, GroupGone
from streamflow.store.connection import Call
from streamflow.store.kernel import ExpiredClaim, ExpiredClaims
from streamflow.wire import QueuedStep, encode_job
from streamflow.worker.claims import Claim, Claims
from streamflow.worker.reader import QueueReader
from streamflow.worker.worker import Worker
from streamflow.workflow.actions import StepJob
from tests.support.fakes import KERNEL, FakeStore, pack
from tests.support.machine_driver import raw

pytestmark = pytest.mark.anyio

CREATED = 1000
"""When the runs here were created, in ms."""

app = sf.App()


@app.step(queue="gpu")
async def forever(value: int) -> int:
    await anyio.sleep_forever()
    return value


class Clock:
    """A monotonic clock that only a test moves."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class FakeConnection:
    """Gives what is planned for each read; `reads` has (streams, count, pending, wait) of each."""

    def __init__(self) -> None:
        self.plan: list[list[Entry] | Exception] = []
        self.reads: list[tuple[int, int, bool, bool]] = []
        self.streams: list[list[str]] = []

    async def read(self, streams: Sequence[str], count: int, *, pending: bool, wait: bool = True) -> list[Entry]:
        await anyio.lowlevel.checkpoint()  # as a real read does: a loop over it must not starve the test
        self.reads.append((len(streams), count, pending, wait))
        self.streams.append(list(streams))
        answer = self.plan.pop(0) if self.plan else []
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def interrupt(self) -> None: ...


class Bench:
    """A reader and its claims, with a store that answers from a table."""

    def __init__(self, slots: int = 4, **answers: Any) -> None:
        letters = lambda call: "k" * (len(call.args) // 3)  # noqa: E731
        self.store = FakeStore(
            **{"report_outcome": "a", "ack_attempts": b"OK", "extend_claims": letters, "create_group": b"OK", **answers}
        )
        self.connection = FakeConnection()
        self.claims = Claims(
            self.store,  # type: ignore[arg-type]
            KERNEL,
            consumer="me",
            queues=["gpu"],
            timeout=8.0,
            shard_of=lambda _: 5,
            on_capacity=lambda: self.reader.slot_freed(),
        )
        self.executor = StepExecutor(slots, slots, self.claims.outcome)
        self.claims.executor = self.executor
        self.claims.suspects = suspects = Suspects(
            self.executor,
            self.store,  # type: ignore[arg-type]
            KERNEL,
            "me",
        )
        self.reader = QueueReader(
            app,
            self.store,  # type: ignore[arg-type]
            KERNEL,
            self.connection,  # type: ignore[arg-type]
            self.claims,
            self.executor,
            suspects,
            slots=slots,
        )

    async def take(self, *entries: Entry) -> None:
        self.connection.plan = [list(entries)]
        await self.reader.run_once()

    def completed(self) -> list[Any]:
        return [msgspec.msgpack.decode(call.args[-1]) for call in self.store.sent("report_outcome")]


@pytest.fixture
async def it() -> Any:
    bench = Bench()
    yield bench
    bench.executor.close()


def entry(
    seq: int = 1, *, attempt: int = 1, partition: int = 0, details: bytes = b"", body: bytes | None = None
) -> Entry:
    body = encode_job(StepJob(seq, attempt, forever, raw([seq])), CREATED) if body is None else body
    fields = {
        b"run": b"r",
        b"created": str(CREATED).encode(),
        b"seq": str(seq).encode(),
        b"attempt": str(attempt).encode(),
        b"details": details,
    }
    return KERNEL.keys.queue("gpu", partition).stream, f"{seq}-0", {**fields, b"body": body}


# --- taking -----------------------------------------------------------------------------------------------------------


async def test_reads_ask_for_no_more_than_the_capacity(it: Bench) -> None:
    """Only the last one blocks."""
    await it.reader.run_once()
    assert it.connection.reads == [(4, 1, False, False), (4, 1, False, False), (8, 1, False, True)]
    big = Bench(slots=20)
    await big.reader.run_once()
    assert big.connection.reads == [(8, 2, False, False), (8, 1, False, True)]
    big.executor.close()


async def test_partitions_take_turns(it: Bench) -> None:
    it.connection.plan = [[entry(1)], [], [], []]
    await it.reader.run_once()
    first = it.connection.streams[0]
    it.connection.streams.clear()
    await it.reader.run_once()
    assert not set(first) & set(it.connection.streams[0])


async def test_nothing_is_read_without_capacity_until_a_step_ends(it: Bench) -> None:
    await it.take(*[entry(seq) for seq in range(1, 5)])
    reads = len(it.connection.reads)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(it.reader.run_once)
        await anyio.wait_all_tasks_blocked()
        assert len(it.connection.reads) == reads
        it.claims.outcome(0, "r", Outcome(2, 1, 0.0, Raw(b"\xc0")))
    assert it.claims.running == 3


async def test_after_an_error_pending_entries_are_read_again(it: Bench) -> None:
    """Those that the worker has already are not taken twice."""
    await it.take(entry(1))
    it.connection.plan = [StoreUnavailable("cut"), [entry(1), entry(2)]]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(it.reader.run)
        while it.claims.running < 2:
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert (8, 10_000, True, True) in it.connection.reads
    assert it.executor.running == 2


async def test_a_missing_group_is_created_in_every_partition(it: Bench) -> None:
    it.connection.plan = [GroupGone("NOGROUP")]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(it.reader.run)
        while not it.store.sent("create_group"):
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert len(it.store.sent("create_group")) == 8


async def test_an_entry_whose_body_cannot_be_read_fails_its_attempt_permanently(it: Bench) -> None:
    await it.take(entry(3, attempt=2, body=b"\xc1"))
    assert await it.claims.report_once()
    [outcome] = it.completed()
    assert (outcome["seq"], outcome["attempt"], outcome["permanent"]) == (3, 2, True)
    assert outcome["failure"][0] == "PayloadInvalid"
    assert it.store.sent("ack_attempts")[0].args[1:] == ["3-0", "r/3"]


@pytest.mark.parametrize("fields", [None, {}, {b"run": b"r", b"seq": b"x", b"attempt": b"1"}])
async def test_an_entry_that_names_no_attempt_is_only_acknowledged(it: Bench, fields: Any) -> None:
    stream, entry_id, _ = entry(1)
    await it.take((stream, entry_id, fields))
    assert await it.claims.report_once()
    assert it.completed() == []
    assert len(it.store.sent("ack_attempts")) == 1


async def test_a_step_that_the_app_does_not_have_is_declined(it: Bench) -> None:
    body = pack(QueuedStep("gpu", 1, 1, "other", None, raw([]), NOTHING, CREATED))
    await it.take(entry(1, body=body))
    await it.claims.report_once()
    [outcome] = it.completed()
    assert outcome["failure"][0] == "UnknownStep"
    assert "step other is not registered" in outcome["failure"][1]
    assert "permanent" not in outcome
    assert DECLINED in outcome["kinds"], "it counts for nothing"


@pytest.mark.parametrize(
    ("signature", "args", "is_declined"),
    [
        ("", [1], False),
        ("value", [1], False),
        ("other", [1], True),
        ("other,value", [1, 2], True),
        ("other,value", {"value": 1}, False),
    ],
)
async def test_an_attempt_for_other_parameters_is_declined(
    it: Bench, signature: str, args: Any, is_declined: bool
) -> None:
    body = pack(QueuedStep("gpu", 1, 1, "forever", None, raw(args), NOTHING, CREATED, signature=signature))
    await it.take(entry(1, body=body))
    await it.claims.report_once()
    assert [outcome["failure"][0] for outcome in it.completed()] == ["UnfitArguments"] * is_declined
    assert all(DECLINED in outcome["kinds"] and f"({signature})" in outcome["failure"][1] for outcome in it.completed())


# --- the ends of claims -----------------------------------------------------------------------------------------------


async def test_the_entry_is_acknowledged_only_after_the_run_has_its_outcome(it: Bench) -> None:
    await it.take(entry(1))
    it.claims.outcome(0, "r", Outcome(1, 1, 0.0, Raw(b"\xc0")))
    it.store.answers["report_outcome"] = StoreError("WRONGTYPE inbox")
    assert not await it.claims.report_once()
    assert it.store.sent("ack_attempts") == []
    assert it.claims.has(("gpu", 0), "1-0")  # so it isn't taken again
    it.store.answers["report_outcome"] = "a"
    it.claims.retry_refused()
    assert await it.claims.report_once()
    assert len(it.store.sent("ack_attempts")) == 1
    assert not it.claims.has(("gpu", 0), "1-0")


async def test_one_refused_outcome_holds_back_no_other(it: Bench) -> None:
    await it.take(entry(1), entry(2))
    answers = iter([StoreError("no"), "a", "a"])
    it.store.answers["report_outcome"] = lambda _: next(answers)
    for seq in (1, 2):
        it.claims.outcome(0, "r", Outcome(seq, 1, 0.0, Raw(b"\xc0")))
    assert not await it.claims.report_once()
    assert it.store.sent("ack_attempts")[0].args[1:] == ["2-0", "r/2"]
    it.claims.retry_refused()
    assert await it.claims.report_once()
    assert it.store.sent("ack_attempts")[1].args[1:] == ["1-0", "r/1"]


async def test_an_outcome_of_an_older_attempt_ends_no_newer_claim(it: Bench) -> None:
    await it.take(entry(1, attempt=2))
    it.claims.outcome(0, "r", Outcome(1, 1, 0.0, Raw(b"\xc0")))
    assert (it.claims.running, it.claims.unreported) == (1, 0)


async def test_revoked_and_lost_claims_are_stopped(it: Bench) -> None:
    """Only the entry of the revoked one is acknowledged."""
    await it.take(entry(1), entry(2), entry(3))
    it.store.answers["extend_claims"] = "krl"
    await it.claims.extend_once()
    assert (it.claims.running, it.executor.running) == (1, 1)
    await it.claims.report_once()
    assert it.completed() == []
    assert [call.args[1:] for call in it.store.sent("ack_attempts")] == [["2-0", "r/2"]]


async def test_heartbeat_details_are_sent_once_with_the_next_heartbeat(it: Bench) -> None:
    await it.take(entry(1, details=pack("before")))
    await it.claims.extend_once()
    await it.claims.extend_once()
    assert [call.args[2:] for call in it.store.sent("extend_claims")] == [
        ["1-0", "r/1", pack("before")],
        ["1-0", "r/1", b""],
    ]


async def test_claims_are_extended_in_the_place_of_a_blocked_loop(
    it: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """From a quarter of the time-out on, and not without end: a loop that is stuck reports no outcome."""
    sent: list[list[Call[str]]] = []

    monkeypatch.setattr(it.claims, "_send_late", sent.append)
    monkeypatch.setattr("streamflow.worker.claims.time", clock := Clock())

    async def late(seconds: float) -> int:
        await anyio.to_thread.run_sync(it.claims.extend_late, seconds)
        return len(sent)

    assert await late(3.0) == 0, "there are no claims"
    await it.take(entry(1), entry(2, partition=1))
    clock.now += 10
    assert await late(1.9) == 0
    assert await late(2.1) == 1
    assert [(call.script, call.args[2]) for call in sent[0]] == [("extend_claims", "1-0"), ("extend_claims", "2-0")]
    clock.now += 1.9
    assert await late(4.0) == 1, "a quarter of the time-out between two"
    clock.now += 0.2
    assert await late(4.2) == 2
    clock.now += 60
    assert await late(60.1) == 2
    assert await late(70.0) == 2
    [line] = [line for line in caplog.messages if "no longer extended" in line]
    assert "blocked for 60 s" in line
    await it.claims.extend_once()  # it runs again
    assert await late(3.0) == 3


async def test_a_worker_that_gives_up_on_a_step_gives_all_others_back(
    it: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the claim of that step is left to expire, which its run counts as a death."""
    sent: list[list[Call[Any]]] = []
    monkeypatch.setattr(it.claims, "_send_late", sent.append)
    await it.take(entry(1), entry(2, partition=1), entry(3))
    record = Call.plain("SET", "suspect", b"[]")
    it.claims.give_up("r", 1, record)
    [calls] = sent
    assert calls[0] is record
    assert sorted((call.script, call.args[2]) for call in calls[1:]) == [
        ("requeue_attempts", "2-0"),
        ("requeue_attempts", "3-0"),
    ]
    it.claims.extend_late(11.0)
    assert len(sent) == 1


def in_partition_6(*answers: ExpiredClaims) -> Callable[[Call[Any]], ExpiredClaims]:
    """Gives these expired claims for one partition, each behind the last of the one before, and none for the others."""
    by_position = dict(zip(("", *(answer.last for answer in answers)), answers, strict=False))
    stream = KERNEL.keys.queue("gpu", 6).stream
    return lambda call: by_position[call.args[4]] if call.keys[0] == stream else ExpiredClaims()


async def test_an_attempt_of_a_dead_worker_ends_as_lost_with_its_details(it: Bench) -> None:
    it.store.answers["GET"] = None
    dead = ExpiredClaim("9-0", "gone", "a", CREATED, 4, 2, pack("half"))
    found = ExpiredClaims("", [dead, ExpiredClaim("8-0", "me", "b", CREATED, 1, 1, b"")])
    it.store.answers["expired_claims"] = in_partition_6(found)
    await it.claims.expire_once()
    await it.claims.expire_once()  # before it is reported: not reported twice
    await it.claims.report_once()
    [outcome] = it.completed()
    assert (outcome["seq"], outcome["attempt"], outcome["failure"][0]) == (4, 2, "WorkerLost")
    assert outcome["details"] == "half"
    assert "worker gone died or sent no heartbeat for 8 s" in outcome["failure"][1]
    assert it.store.sent("ack_attempts")[0].args[1:] == ["9-0", "a/4"]


@pytest.mark.parametrize("back", [3_600_000, 100, -3_600_000])
async def test_the_first_look_notices_that_the_servers_clock_was_set_back(
    it: Bench, monkeypatch: pytest.MonkeyPatch, back: int
) -> None:
    """No worker was there then: claims of dead ones would not expire for as long as it was set back."""
    monkeypatch.setattr("streamflow.worker.claims.time", Clock())
    now = 1_700_000_000_000
    it.store.answers |= {
        "restart_claims": lambda _: "",
        "expired_claims": lambda call: ExpiredClaims("", [], now, now + back if "/2}" in call.keys[0] else 0),
    }
    for _ in range(2):
        await it.claims.expire_once()
    assert len(it.store.sent("restart_claims")) == (8 if back > 1000 else 0)


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
async def test_a_jump_of_the_servers_clock_makes_no_worker_dead(
    it: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, jump: float
) -> None:
    """Those that live extend their claims first. Set back, the claims of dead ones have to begin a new time-out."""
    clock = Clock()
    monkeypatch.setattr("streamflow.worker.claims.time", clock)
    it.store.answers |= {"GET": None, "restart_claims": lambda _: ""}
    ahead = 1_700_000_000.0
    dead = [ExpiredClaim("9-0", "gone", "a", CREATED, 4, 2, b"")]
    expired: list[ExpiredClaim] = []

    def answer(call: Call[Any]) -> ExpiredClaims:
        return ExpiredClaims(
            "", expired if call.keys[0].endswith("/6}:stream") else [], round((clock.now + ahead) * 1000)
        )

    it.store.answers["expired_claims"] = answer
    it.claims._checked_at = it.claims._expires_from = clock.now

    async def look() -> int:
        clock.now += 4
        await it.claims.expire_once()
        return it.claims.unreported

    assert await look() == 0
    ahead += jump
    expired = dead
    assert await look() == 0
    assert len(it.store.sent("restart_claims")) == (8 if jump < 0 else 0), "one for each partition"
    assert await look() == 0
    assert await look() == 0
    assert await look() == 1, "a time-out later it is dead"
    [line] = [line for line in caplog.messages if "clock was set" in line]
    assert f"{jump:+.0f} s" in line


async def test_claims_with_large_details_are_read_and_reported_in_portions(it: Bench) -> None:
    it.store.answers["GET"] = None
    portions = [
        ExpiredClaims(
            f"{n}-0" if n < 3 else "", [ExpiredClaim(f"{n}-0", "gone", "a", CREATED, n, 1, pack(b"x" * 900_000))]
        )
        for n in (1, 2, 3)
    ]
    it.store.answers["expired_claims"] = in_partition_6(*portions)
    most = 0

    def report(_: Call[Any]) -> str:
        nonlocal most
        most = max(most, it.claims.unreported)
        return "a"

    it.store.answers["report_outcome"] = report
    await it.claims.expire_once()
    assert (most, it.claims.unreported) == (1, 1)
    await it.claims.report_once()
    assert [outcome["seq"] for outcome in it.completed()] == [1, 2, 3]


async def test_large_details_are_stored_in_calls_of_bounded_size(it: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await it.take(*(entry(seq) for seq in range(1, 8)))
    monkeypatch.setattr(it.executor, "details_of", lambda run_id, seq: Raw(pack(b"x" * 400_000)))
    it.store.answers["extend_claims"] = lambda call: "k" * (len(call.args) // 3)
    await it.claims.extend_once()
    assert [len(call.args) // 3 for call in it.store.sent("extend_claims")] == [3, 3, 1]


async def test_the_note_of_a_dead_worker_says_what_was_to_blame(it: Bench) -> None:
    culprit, innocent, next_one = (Suspect(0, "a", seq, 1) for seq in (1, 2, 3))
    note = Note(last=culprit, running=(innocent, culprit), waiting=(next_one,))
    it.store.answers["GET"] = encode_note(note)
    it.store.answers["requeue_attempts"] = 1
    dead = [ExpiredClaim(f"{seq}-0", "gone", "a", CREATED, seq, 2, b"") for seq in (1, 2, 3)]
    it.store.answers["expired_claims"] = in_partition_6(ExpiredClaims("", dead))
    await it.claims.expire_once()
    await it.claims.report_once()
    assert [(outcome["seq"], outcome.get("to_blame", False)) for outcome in it.completed()] == [(1, True), (2, False)]
    [requeued] = it.store.sent("requeue_attempts")
    assert requeued.args[1:] == ["gone", "3-0", "a/3", b""]


async def test_a_returned_attempt_is_stopped_first_and_has_no_outcome(it: Bench) -> None:
    await it.take(entry(1, details=pack("details")), entry(2))

    def requeue(call: Call[Any]) -> int:
        assert it.executor.running == 0
        return len(call.args) // 3

    it.store.answers["requeue_attempts"] = requeue
    assert await it.claims.requeue_running() == 2
    [call] = it.store.sent("requeue_attempts")
    assert call.args[1:] == ["me", "1-0", "r/1", pack("details"), "2-0", "r/2", b""]
    assert (it.claims.running, it.claims.unreported) == (0, 0)


async def test_a_large_outcome_travels_alone(it: Bench) -> None:
    for seq in (1, 2, 3):
        claim = Claim(("gpu", 0), f"{seq}-0", "r", CREATED, seq, 1)
        it.claims.add(claim)
        it.claims.report(claim, Outcome(seq, 1, 0.0, Raw(pack(b"x" * 700_000))))
    await it.claims.report_once()
    assert (len(it.store.sent("report_outcome")), it.claims.unreported) == (1, 2)


def test_a_worker_needs_a_queue() -> None:
    with pytest.raises(sf.UsageError, match="name at least one"):
        Worker(app, Settings(), [])
