"""What is between `sf.emit` and the server: bounds, order, what is sent again, and how long an outcome waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import anyio
import anyio.lowlevel
import msgspec
import pytest
from msgspec import Raw

from streamflow.errors import StoreFull, StoreUnavailable
from streamflow.steps import emitting
from streamflow.steps.context import Running
from streamflow.steps.emitting import ChunkSender
from streamflow.store.connection import Call, Store
from streamflow.store.kernel import Holder, Kernel
from streamflow.store.keys import NamespaceKeys
from streamflow.workflow.actions import StepJob
from streamflow.workflow.app import App
from tests.support.waiting import DEADLINE

pytestmark = pytest.mark.anyio

HOLDER = Holder("sf:{ns/0}:owner", "token", "t")


class Server:
    """Takes calls as a store does. `answer` says what comes back; `numbers` and `values` are what has arrived."""

    def __init__(self) -> None:
        self.answer: Callable[[int], Any] = lambda _: "a"
        self.sent: list[tuple[int, int, int, list[Any]]] = []
        """Number of the batch, whether it is the last, how many are missed, values."""
        self.arrived = anyio.Event()

    def renewed(self) -> Store:
        return cast("Store", self)

    def server_of(self, key: str) -> int:
        return 0

    async def close(self) -> None:
        pass

    async def send(self, calls: Sequence[Call[Any]], patience: float | None = None) -> list[Any]:
        answers: list[Any] = []
        for call in calls:
            chunks = msgspec.msgpack.decode(call.args[13])
            self.sent.append((call.args[6], call.args[7], call.args[8], [value for _, value in chunks]))
            answers.append(self.answer(len(self.sent)))
        self.arrived.set()
        if any(isinstance(answer, StoreUnavailable) for answer in answers):
            raise StoreUnavailable("away")
        return answers


def attempt() -> Running:
    app = App()

    @app.step
    async def write() -> None: ...

    return Running(0, "r1", StepJob(1, 1, write, Raw(b"\x90"), Raw(b"\xc0"), None, created=5))


def data(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


class Sending:
    """A sender of one attempt, and what its server gets."""

    def __init__(self) -> None:
        self.server = Server()
        self.holder: Holder | None = HOLDER
        kernel = Kernel(NamespaceKeys("ns"))
        self.sender = ChunkSender(cast("Store", self.server), kernel, lambda _: self.holder, 1000, 60)
        self.running = attempt()
        self.stored = anyio.Event()

    def emit(self, *values: Any) -> None:
        for value in values:
            self.sender.emit(self.running, data(value))

    async def ends(self) -> None:
        """Send all, end the attempt, and wait until its outcome may be recorded."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.sender.run)
            self.sender.end(self.running, self.stored.set)
            with anyio.fail_after(DEADLINE):
                await self.stored.wait()
            tasks.cancel_scope.cancel()


@pytest.fixture
def sending(monkeypatch: pytest.MonkeyPatch) -> Sending:
    monkeypatch.setattr(emitting, "LOOK_AGAIN", 0.001)
    return Sending()


async def test_what_is_emitted_together_is_one_batch_and_the_last_one_says_so(sending: Sending) -> None:
    sending.emit("a", "b", "c")
    await sending.ends()
    assert sending.server.sent == [(1, 1, 0, ["a", "b", "c"])]


async def test_batches_are_bounded_in_bytes_and_in_order(sending: Sending) -> None:
    values = [f"{number} {'x' * 1000}" for number in range(150)]
    sending.emit(*values)
    await sending.ends()
    assert [batch for batch, _, _, _ in sending.server.sent] == [1, 2, 3]
    assert [over for _, over, _, _ in sending.server.sent] == [0, 0, 1]
    assert sum([values for _, _, _, values in sending.server.sent], list[Any]()) == values


async def test_above_a_megabyte_the_oldest_go_and_the_next_batch_says_how_many(sending: Sending) -> None:
    sending.emit(*("x" * 60_000 for _ in range(40)))
    await sending.ends()
    missed = sending.server.sent[0][2]
    assert missed == sending.sender.missed == 40 - sending.sender.stored
    assert missed == 40 - sum(len(values) for _, _, _, values in sending.server.sent)
    assert 20 < missed < 30


async def test_a_batch_whose_fate_is_unknown_is_sent_again_as_it_was(sending: Sending) -> None:
    sending.server.answer = lambda number: StoreUnavailable("away") if number < 3 else "a"
    sending.emit("a")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sending.sender.run)
        await sending.server.arrived.wait()
        sending.emit("b")  # of another batch, however long that takes
        sending.sender.end(sending.running, sending.stored.set)
        with anyio.fail_after(DEADLINE):
            await sending.stored.wait()
        tasks.cancel_scope.cancel()
    assert [(batch, values) for batch, _, _, values in sending.server.sent] == [(1, ["a"])] * 3 + [(2, ["b"])]


async def test_what_the_server_refuses_is_counted_as_missed(sending: Sending) -> None:
    sending.server.answer = lambda number: StoreFull("memory is short") if number == 1 else "a"
    sending.emit("a", "b")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sending.sender.run)
        await sending.server.arrived.wait()
        sending.emit("c")
        sending.sender.end(sending.running, sending.stored.set)
        with anyio.fail_after(DEADLINE):
            await sending.stored.wait()
        tasks.cancel_scope.cancel()
    assert [(batch, missed, values) for batch, _, missed, values in sending.server.sent] == [
        (1, 0, ["a", "b"]),
        (2, 2, ["c"]),
    ]


@pytest.mark.parametrize("answer", ["l", "e", "m"])
async def test_an_attempt_that_is_not_run_here_any_more_sends_nothing_more(sending: Sending, answer: str) -> None:
    sending.server.answer = lambda _: answer
    sending.emit("a")
    await sending.ends()
    sending.emit("b")
    assert len(sending.server.sent) == 1
    assert not sending.sender._known  # pyright: ignore[reportPrivateUsage]


async def test_a_batch_that_met_a_hand_over_is_sent_again_with_the_new_proof(sending: Sending) -> None:
    lent = Holder("sf:{ns/0}:steps", "r1/1", "host 5 1 wanted")

    def answer(number: int) -> str:
        sending.holder = lent  # the shard was released while the call was under way
        return "l" if number == 1 else "a"

    sending.server.answer = answer
    sending.emit("a")
    await sending.ends()
    assert [(batch, values) for batch, _, _, values in sending.server.sent] == [(1, ["a"]), (1, ["a"])]


async def test_an_outcome_waits_no_longer_than_it_may(sending: Sending, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emitting, "LONGEST_HOLD", 0.01)
    sending.server.answer = lambda _: StoreUnavailable("away")
    sending.emit("a")
    await sending.ends()
    assert {batch for batch, _, _, _ in sending.server.sent} <= {1}, "it was never stored"


async def test_an_attempt_that_was_cancelled_leaves_nothing_behind(sending: Sending) -> None:
    sending.holder = None
    sending.emit("a")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sending.sender.run)
        sending.running.over = True
        sending.sender.end(sending.running, None)
        with anyio.fail_after(DEADLINE):
            while sending.sender._known:  # pyright: ignore[reportPrivateUsage]
                await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert sending.server.sent == []
