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
from streamflow.store.connection import Call
from streamflow.store.kernel import ExpiredClaim, ExpiredClaims, QueuePeek
from streamflow.store.queue_reads import Entry, GroupGone, QueuePage
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


class ListeningStore(FakeStore):
    """Its connections are never opened."""

    def link(self) -> Any:
        return None


class FakeReads:
    """Gives what is planned for each read; `reads` has (streams, count, pending) of each."""

    is_waiting = False

    def __init__(self) -> None:
        self.plan: list[list[Entry] | QueuePage | Exception] = []
        self.reads: list[tuple[int, int, bool]] = []
        self.streams: list[list[str]] = []
        self.on_read: Callable[[], None] = lambda: None

    async def read(self, streams: Sequence[str], count: int, *, pending: bool = False) -> QueuePage:
        await anyio.lowlevel.checkpoint()  # as a real read does: a loop over it must not starve the test
        self.reads.append((len(streams), count, pending))
        self.streams.append(list(streams))
        self.on_read()
        answer = self.plan.pop(0) if self.plan else []
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, QueuePage) else QueuePage(answer)


class Bench:
    """A reader and its claims, with a store that answers from a table."""

    def __init__(self, slots: int = 4, **answers: Any) -> None:
        letters = lambda call: "k" * (len(call.args) // 3)  # noqa: E731
        self.store = ListeningStore(
            **{
                "report_outcome": "a",
                "settle_attempts": lambda call: "a" * (len(call.args) // 3),
                "extend_claims": letters,
                "create_group": b"OK",
                "XINFO": [],
                **answers,
            }
        )
        self.reads = FakeReads()
        self.claims = Claims(
            self.store,  # type: ignore[arg-type]
            KERNEL,
            consumer="me",
            queues=["gpu"],
            timeout=8.0,
            shards=8,
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
            self.reads,  # type: ignore[arg-type]
            self.claims,
            self.executor,
            suspects,
            slots=slots,
        )

    def ring(self, *partitions: int) -> None:
        for number in partitions:
            self.reader._rung(stream_of(number).encode(), b"")

    async def take(self, *entries: Entry) -> None:
        self.reads.plan = [list(entries)]
        self.reader._rung(entries[0][0].encode(), b"")
        await self.reader.run_once()

    def settled(self) -> list[tuple[str, str]]:
        """Entry and step of each."""
        return [
            (call.args[at], call.args[at + 1])
            for call in self.store.sent("settle_attempts")
            for at in range(1, len(call.args), 3)
        ]

    def completed(self) -> list[Any]:
        bodies: list[bytes] = []
        for call in [call for calls in self.store.calls for call in calls]:
            if call.script == "settle_attempts":
                bodies += [body for body in call.args[3::3] if body]
            elif call.script == "report_outcome":
                bodies.append(call.args[-1])
        return [msgspec.msgpack.decode(body) for body in bodies]


@pytest.fixture
async def it() -> Any:
    bench = Bench()
    yield bench
    bench.executor.close()


def entry(
    seq: int = 1, *, attempt: int = 1, partition: int = 0, details: bytes = b"", body: bytes | None = None
) -> Entry:
    body = encode_job(StepJob(seq, attempt, forever, raw([seq])), CREATED) if body is None else body
    fields = {b"step": b"r/%d" % seq, b"attempt": b"%d %d" % (CREATED, attempt), b"details": details}
    return stream_of(partition), f"{seq}-0", {**fields, b"body": body}


def stream_of(partition: int) -> str:
    return KERNEL.keys.queue("gpu", partition).stream


# --- taking -----------------------------------------------------------------------------------------------------------


async def test_reads_ask_for_no_more_than_the_capacity(it: Bench) -> None:
    it.ring(*range(8))
    await it.reader.run_once()
    assert it.reads.reads == [(4, 1, False)]
    it.ring(*range(2))
    big = Bench(slots=20)
    big.ring(1, 2)
    await big.reader.run_once()
    assert big.reads.reads == [(2, 10, False)]
    big.executor.close()


async def test_more_partitions_are_read_at_once_when_those_before_were_empty(it: Bench) -> None:
    """Others are quicker: what is left of their rings costs few reads. What is too much then is for others."""
    it.store.answers["requeue_attempts"] = 1
    it.reader._partitions |= {f"stream {n}": ("gpu", n) for n in range(40)}
    it.reader._add(f"stream {n}" for n in range(40))
    it.reads.plan = [[], [], [("stream 12", "1-0", entry(1)[2]), *(entry(seq) for seq in (2, 3, 4, 5))]]
    for _ in range(3):
        await it.reader.run_once()
    assert it.reads.reads == [(4, 1, False), (8, 1, False), (16, 1, False)]
    assert it.claims.running == 4
    assert [call.args[2] for call in it.store.sent("requeue_attempts")] == ["5-0"]


async def test_a_partition_is_read_on_while_it_gives_all_that_is_asked_for(it: Bench) -> None:
    """Behind the others that have rung."""
    it.ring(3)
    it.ring(5)
    it.reads.plan = [[entry(1, partition=3), entry(2, partition=3)], []]
    await it.reader.run_once()
    assert (it.reads.reads, it.reads.streams) == ([(2, 2, False)], [[stream_of(3), stream_of(5)]])
    it.ring(6)
    await it.reader.run_once()
    assert it.reads.streams[1:] == [[stream_of(3), stream_of(6)]]
    assert list(it.reader._ready) == []


async def test_a_ring_during_a_read_is_not_forgotten(it: Bench) -> None:
    it.ring(3)
    it.reads.on_read = lambda: it.ring(3)
    await it.reader.run_once()
    assert list(it.reader._ready) == [stream_of(3)]


async def test_nothing_is_read_without_capacity_until_a_step_ends(it: Bench) -> None:
    await it.take(*[entry(seq) for seq in range(1, 5)])
    it.ring(1)
    reads = len(it.reads.reads)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(it.reader.run_once)
        await anyio.wait_all_tasks_blocked()
        assert len(it.reads.reads) == reads
        it.claims.outcome(0, "r", Outcome(2, 1, 0.0, Raw(b"\xc0")))
    assert it.claims.running == 3
    assert stream_of(1) in it.reader._ready


async def test_after_an_error_pending_entries_are_read_again(it: Bench) -> None:
    """Where this worker has some. Those that it has already are not taken twice, and the partition is read again."""
    it.store.answers["XINFO"] = lambda call: (
        [[b"name", b"me", b"pending", 2], [b"name", b"other", b"pending", 1]] if call.args[2] == stream_of(0) else []
    )
    await it.take(entry(1))
    it.ring(7)
    it.reads.plan = [[], StoreUnavailable("cut"), [entry(1), entry(2)]]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(it.reader.run)
        while it.claims.running < 2 or len(it.reads.reads) < 5:
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert it.reads.reads[1] == (1, 10_000, True), "the loop begins so"
    assert it.reads.reads[2:4] == [(1, 4, False), (1, 10_000, True)] or it.reads.reads[2][2] is False
    assert it.executor.running == 2


async def test_a_missing_group_is_created_where_it_was_missed(it: Bench) -> None:
    it.ring(2, 3)
    it.reads.plan = [GroupGone("NOGROUP", [stream_of(2), stream_of(3)])]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(it.reader.run)
        while len(it.reads.reads) < 2:
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert [call.keys for call in it.store.sent("create_group")] == [[stream_of(2)], [stream_of(3)]]
    assert it.reads.streams[1] == [stream_of(2), stream_of(3)]


async def test_a_partition_that_cannot_be_read_holds_up_no_other(it: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    it.store.answers["create_group"] = lambda call: StoreError("WRONGTYPE") if call.keys == [stream_of(2)] else b"OK"
    it.ring(2, 3)
    it.reads.plan = [GroupGone("WRONGTYPE", [stream_of(2), stream_of(3)])]
    await it.reader._read_or_create_groups()
    assert it.reader.broken == {"partition 2 of queue gpu": "WRONGTYPE"}
    it.ring(2)
    assert list(it.reader._ready) == [stream_of(3)]
    monkeypatch.setattr("streamflow.worker.reader.RETRY_BROKEN", -1.0)
    it.store.answers["create_group"] = b"OK"
    await it.reader.run_once()
    assert it.reader.broken == {}
    assert stream_of(2) in it.reader._ready


async def test_what_a_silent_server_has_is_asked_for_again(it: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamflow.worker.reader.ASK_AGAIN", 0.0)
    it.ring(2, 3)
    it.reads.plan = [QueuePage([entry(1, partition=3)], [stream_of(2)])]
    await it.reader.run_once()
    assert list(it.reader._ready) == [stream_of(2)]
    it.reads.plan = [QueuePage([], [stream_of(2)], True)]
    await it.reader.run_once()
    assert list(it.reader._ready) == [stream_of(2)]
    assert it.reader._check_pending, "its answer was lost"


async def test_partitions_where_attempts_wait_are_found_without_a_ring(it: Bench) -> None:
    it.store.answers["peek_queues"] = lambda call: [QueuePeek(int("/5}" in call.keys[0]), 0, "")]
    it.reader.look_everywhere()
    await it.reader.look_once()
    assert len(it.store.sent("peek_queues")) == 8
    assert list(it.reader._ready) == [stream_of(5)]


async def test_what_cannot_be_looked_at_is_looked_at_again(it: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamflow.worker.reader.ASK_AGAIN", 0.0)
    answers = iter([StoreUnavailable("away")])
    it.store.answers["peek_queues"] = lambda call: (
        next(answers, [QueuePeek(1, 0, "")]) if "/5}" in call.keys[0] else [QueuePeek(0, 0, "")]
    )
    it.reader.look_everywhere()
    await it.reader.look_once()
    assert not it.reader._ready
    await it.reader.look_once()
    assert len(it.store.sent("peek_queues")) == 9
    assert list(it.reader._ready) == [stream_of(5)]


class Confirmation:
    """By server the event that what it has is safe; none is late until `late` says so."""

    def __init__(self, server_of: Callable[[str], int] = lambda _: 0) -> None:
        self.safe = anyio.Event()
        self.others = anyio.Event()
        self.late: set[int] = set()
        self._server_of = server_of

    def is_late(self, server: int) -> bool:
        return server in self.late

    async def wait(self, patience: float, *keys: str) -> None:
        [server] = {self._server_of(key) for key in keys}
        await (self.others if server else self.safe).wait()


async def test_a_worker_that_stops_does_not_wait_until_decisions_are_safe(it: Bench) -> None:
    """What it has not begun is for others."""
    it.store.confirmation = Confirmation()
    it.store.answers["requeue_attempts"] = lambda call: (len(call.args) - 2) // 3
    async with anyio.create_task_group() as tasks:
        it.ring(0)
        it.reads.plan = [[entry(1)]]
        tasks.start_soon(it.reader.run)
        await anyio.wait_all_tasks_blocked()
        assert (it.claims.running, it.executor.running) == (1, 0)
        with anyio.fail_after(5):
            await it.reader.stop()
    assert (it.claims.running, it.executor.running) == (1, 0)
    assert await it.claims.requeue_running() == 1


@pytest.mark.parametrize("is_lost", [False, True])
async def test_a_step_begins_when_its_decision_is_safe(it: Bench, is_lost: bool) -> None:
    """Its claim is extended meanwhile. What a server may have lost is not begun, but asked for again."""
    it.store.confirmation = confirmation = Confirmation()
    await it.take(entry(1))
    await anyio.wait_all_tasks_blocked()
    assert (it.claims.running, it.executor.running) == (1, 0)
    if is_lost:
        it.store.history_lost("")
    confirmation.safe.set()
    await anyio.wait_all_tasks_blocked()
    assert (it.claims.running, it.executor.running) == ((0, 0) if is_lost else (1, 1))
    assert it.reader._check_pending is is_lost


async def test_a_server_that_confirms_nothing_holds_up_no_step_of_another_one(it: Bench) -> None:
    """Nor does it take the slots: when it is known to be late, nothing more of it is read."""
    it.store.server_of = lambda key: int("/1}" in key)
    it.store.confirmation = confirmation = Confirmation(it.store.server_of)
    there, other = entry(1), entry(2)
    it.reads.plan = [[there, (stream_of(1), *other[1:])]]
    it.ring(0, 1)
    await it.reader.run_once()
    confirmation.others.set()
    await anyio.wait_all_tasks_blocked()
    assert (it.claims.running, it.executor.running) == (2, 1)
    confirmation.late = {0}
    it.reads.streams.clear()
    it.ring(0, 1)
    await it.reader.run_once()
    assert it.reads.streams == [[stream_of(1)]]
    assert list(it.reader._ready) == [stream_of(0)]


async def test_an_entry_whose_body_cannot_be_read_fails_its_attempt_permanently(it: Bench) -> None:
    await it.take(entry(3, attempt=2, body=b"\xc1"))
    assert await it.claims.report_once()
    [outcome] = it.completed()
    assert (outcome["seq"], outcome["attempt"], outcome["permanent"]) == (3, 2, True)
    assert outcome["failure"][0] == "PayloadInvalid"
    assert it.settled() == [("3-0", "r/3")]


@pytest.mark.parametrize("fields", [None, {}, {b"step": b"r/x", b"attempt": b"7 1"}])
async def test_an_entry_that_names_no_attempt_is_only_acknowledged(it: Bench, fields: Any) -> None:
    stream, entry_id, _ = entry(1)
    await it.take((stream, entry_id, fields))
    assert await it.claims.report_once()
    assert it.completed() == []
    assert len(it.settled()) == 1


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


async def test_an_outcome_that_is_refused_is_kept_until_it_is_accepted(it: Bench) -> None:
    await it.take(entry(1))
    it.claims.outcome(0, "r", Outcome(1, 1, 0.0, Raw(b"\xc0")))
    it.store.answers["settle_attempts"] = StoreError("WRONGTYPE inbox")
    assert not await it.claims.report_once()
    assert it.claims.has(("gpu", 0), "1-0")  # so it isn't taken again
    it.store.answers["settle_attempts"] = "a"
    it.claims.retry_refused()
    assert await it.claims.report_once()
    assert it.settled() == [("1-0", "r/1")] * 2
    assert not it.claims.has(("gpu", 0), "1-0")


async def test_one_refused_outcome_holds_back_no_other(it: Bench) -> None:
    await it.take(entry(1), entry(2, partition=3))
    answers = iter([StoreError("no"), "a", "a"])
    it.store.answers["settle_attempts"] = lambda _: next(answers)
    for seq in (1, 2):
        it.claims.outcome(0, "r", Outcome(seq, 1, 0.0, Raw(b"\xc0")))
    assert not await it.claims.report_once()
    assert it.claims.has(("gpu", 0), "1-0")
    assert not it.claims.has(("gpu", 3), "2-0")
    it.claims.retry_refused()
    assert await it.claims.report_once()
    assert it.settled() == [("1-0", "r/1"), ("2-0", "r/2"), ("1-0", "r/1")]


async def test_outcomes_of_a_partition_are_settled_by_one_call(it: Bench) -> None:
    await it.take(entry(1), entry(2, partition=3), entry(3))
    for seq in (1, 2, 3):
        it.claims.outcome(0, "r", Outcome(seq, 1, 0.0, Raw(b"\xc0")))
    await it.claims.report_once()
    assert [call.args[1::3] for call in it.store.sent("settle_attempts")] == [["1-0", "3-0"], ["2-0"]]
    assert it.claims.running == 0


async def test_an_outcome_that_did_not_count_is_not_kept(it: Bench) -> None:
    """A server that has lost it has lost nothing."""
    await it.take(entry(1))
    it.claims.outcome(0, "r", Outcome(1, 1, 0.0, Raw(b"\xc0")))
    it.store.answers["settle_attempts"] = "l"
    await it.claims.report_once()
    it.store.history_lost("")
    await it.claims._recent.send_again()
    assert it.store.sent("report_outcome") == []
    assert not it.claims.has(("gpu", 0), "1-0")


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
    assert it.settled() == [("2-0", "r/2")]


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
    assert it.settled() == [("9-0", "a/4")]


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
        return ExpiredClaims("", expired if call.keys[0] == stream_of(6) else [], round((clock.now + ahead) * 1000))

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

    it.store.answers["settle_attempts"] = report
    await it.claims.expire_once()
    assert (most, it.claims.unreported) == (1, 1)
    await it.claims.report_once()
    assert [outcome["seq"] for outcome in it.completed()] == [1, 2, 3]


async def test_large_details_are_stored_in_calls_of_bounded_size(it: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    it.reader._slots = 7
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


async def test_a_cancelled_execution_emits_no_more_once_its_entry_came_again(it: Bench) -> None:
    await it.take(entry(1))
    [first] = it.executor._attempts.values()
    assert it.claims.holder_of(first) is not None
    it.executor.cancel("r", 1)
    it.claims.add(Claim(("gpu", 0), "9-0", "r", CREATED, 1, 1))
    job = StepJob(1, 1, forever, raw([1]))
    job.created = CREATED
    it.executor.submit(0, "r", job)
    [second] = it.executor._attempts.values()
    assert second is not first
    assert it.claims.holder_of(first) is None
    assert it.claims.holder_of(second) is not None


async def test_a_large_outcome_travels_alone(it: Bench) -> None:
    for seq in (1, 2, 3):
        claim = Claim(("gpu", 0), f"{seq}-0", "r", CREATED, seq, 1)
        it.claims.add(claim)
        it.claims.report(claim, Outcome(seq, 1, 0.0, Raw(pack(b"x" * 700_000))))
    await it.claims.report_once()
    assert (len(it.settled()), it.claims.unreported) == (1, 2)


def test_a_worker_needs_a_queue() -> None:
    with pytest.raises(sf.UsageError, match="name at least one"):
        Worker(app, Settings(), [])
