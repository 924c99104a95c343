"""Pipelining: many callers share few pipelines, and nobody suffers from a neighbour."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from streamflow.client.pipelines import RUNS_PER_SCRIPT, ServerBatcher, settled
from streamflow.client.recent_starts import RecentStarts
from streamflow.errors import StoreError, StoreFull, StoreUnavailable, Unconfirmed
from streamflow.store.connection import Call, Store
from streamflow.store.kernel import Kernel, Message, Start
from streamflow.store.keys import NamespaceKeys

pytestmark = pytest.mark.anyio


class FakeStore:
    """Answers each call by `answer`; keeps the pipelines; holds them back while `gate` is closed."""

    confirmation: Any = None
    server_generation = 0
    is_single = True

    def history_of(self, key: str) -> int:
        return self.server_generation

    def __init__(self) -> None:
        self.pipelines: list[list[Call[Any]]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def send(
        self, calls: Sequence[Call[Any]], *, confirmed: bool = False, same_history: bool = False
    ) -> list[Any]:
        self.pipelines.append(list(calls))
        await self.gate.wait()
        return [self.answer(call) for call in calls]

    def answer(self, call: Call[Any]) -> Any:
        if call.script == "start_runs":
            return [b""] * ((len(call.keys) - 5) // 3)
        if call.script == "peek_runs":
            return [(key.encode(), b"") for key in call.keys]
        if call.script == "post_messages":
            return "a" * (len(call.keys) - 4)
        return call.args[0]

    @property
    def scripts(self) -> list[str]:
        return [call.script for pipeline in self.pipelines for call in pipeline]


def batcher_on(store: FakeStore) -> ServerBatcher:
    kernel = Kernel(NamespaceKeys("test"))
    return ServerBatcher(cast("Store", store), kernel, RecentStarts(cast("Store", store), kernel))


def start(name: str, body: bytes = b"\x90") -> Start:
    return Start(name, "flow", "", body)


async def test_calls_of_one_moment_travel_in_one_pipeline_grouped_by_shard() -> None:
    store = FakeStore()
    batcher = batcher_on(store)
    starts = [batcher.start(number % 4, start(f"r{number}")) for number in range(100)]
    peeks = [batcher.peek(number % 4, f"r{number}") for number in range(100)]
    posts = [batcher.post(number % 4, Message("signal", f"r{number}", b"")) for number in range(100)]
    everything: list[asyncio.Future[Any]] = [*starts, *peeks, *posts]
    await settled(everything)
    assert len(store.pipelines) == 1
    assert sorted(store.scripts) == ["peek_runs"] * 4 + ["post_messages"] * 4 + ["start_runs"] * 4
    assert peeks[7].result()[0].decode() == "sf:{test/3}:run:r7"


async def test_a_lone_call_leaves_at_once() -> None:
    store = FakeStore()
    future = batcher_on(store).start(0, start("r"))
    for _ in range(2):  # the turn in which it was called, and the one that makes the flight
        await asyncio.sleep(0)
    assert len(store.pipelines) == 1
    assert await future == b""


async def test_at_most_four_pipelines_are_in_flight_and_the_rest_waits() -> None:
    store = FakeStore()
    store.gate.clear()
    batcher = batcher_on(store)
    futures: list[asyncio.Future[bytes]] = []
    for number in range(50):
        futures.append(batcher.start(0, start(f"r{number}")))
        for _ in range(3):
            await asyncio.sleep(0)
    assert len(store.pipelines) == 4
    store.gate.set()
    await settled(futures)
    assert len(store.pipelines) == 5


async def test_a_script_gets_a_bounded_number_of_runs_and_bytes() -> None:
    store = FakeStore()
    batcher = batcher_on(store)
    await settled([batcher.start(0, start(f"r{number}")) for number in range(2 * RUNS_PER_SCRIPT + 1)])
    assert len(store.scripts) == 3
    await settled([batcher.start(0, start(f"large{number}", bytes(600_000))) for number in range(3)])
    assert len(store.scripts) == 6


async def test_posts_to_a_shard_are_numbered_in_order_one_call_at_a_time() -> None:
    store = FakeStore()
    store.gate.clear()
    batcher = batcher_on(store)
    futures: list[asyncio.Future[str]] = []
    for number in range(6):
        futures.append(batcher.post(0, Message("signal", f"r{number}", b"")))
        for _ in range(3):
            await asyncio.sleep(0)
    assert len(store.pipelines) == 1  # four could fly, but the shard's next post waits for its last one
    store.gate.set()
    assert await settled(futures) == ["a"] * 6
    calls = [call for pipeline in store.pipelines for call in pipeline]
    assert [call.args[1] for call in calls] == [1, 2]
    assert len({call.args[0] for call in calls}) == 1
    posted = [argument for call in calls for argument in call.args if str(argument).startswith("r")]
    assert posted == [f"r{number}" for number in range(6)]


async def test_a_refused_call_fails_only_its_own_callers() -> None:
    class Refusing(FakeStore):
        def answer(self, call: Call[Any]) -> Any:
            return (
                StoreFull("no memory")
                if call.script == "start_runs" and "/1}" in call.keys[0]
                else super().answer(call)
            )

    batcher = batcher_on(Refusing())
    answers = await settled([batcher.start(number % 2, start(f"r{number}")) for number in range(4)])
    assert answers[0] == answers[2] == b""
    assert isinstance(answers[1], StoreFull)
    assert isinstance(answers[3], StoreFull)
    assert answers[1] is not answers[3]  # or the tracebacks of all callers would pile up in one


@pytest.mark.parametrize("verb", ["start_runs", "peek_runs", "post_messages"])
async def test_a_run_that_fails_a_shared_call_is_separated_from_the_others(verb: str) -> None:
    class Spoiled(FakeStore):
        def answer(self, call: Call[Any]) -> Any:
            return StoreError("WRONGTYPE") if any("bad" in key for key in call.keys) else super().answer(call)

    store = Spoiled()
    batcher = batcher_on(store)
    names = ["a", "b", "bad", "c"]
    if verb == "start_runs":
        answers: list[Any] = await settled([batcher.start(0, start(name)) for name in names])
    elif verb == "peek_runs":
        answers = await settled([batcher.peek(0, name) for name in names])
    else:
        answers = await settled([batcher.post(0, Message("signal", name, b"")) for name in names])
    assert [isinstance(answer, StoreError) for answer in answers] == [False, False, True, False]
    assert len(store.scripts) == 5


async def test_without_a_server_all_callers_get_the_error() -> None:
    class Gone(FakeStore):
        async def send(
            self, calls: Sequence[Call[Any]], *, confirmed: bool = False, same_history: bool = False
        ) -> list[Any]:
            raise StoreUnavailable("no answer")

    batcher = batcher_on(Gone())
    answers = await settled([batcher.peek(number, "r") for number in range(3)])
    assert [type(answer) for answer in answers] == [StoreUnavailable] * 3


async def test_reads_do_not_fail_with_writes_that_are_not_safe() -> None:
    class Unsafe(FakeStore):
        confirmation = "of the namespace's durability"

        async def send(
            self, calls: Sequence[Call[Any]], *, confirmed: bool = False, same_history: bool = False
        ) -> list[Any]:
            if confirmed:
                raise Unconfirmed("no replica has confirmed it")
            return await super().send(calls)

    batcher = batcher_on(Unsafe())
    futures: list[asyncio.Future[Any]] = [
        batcher.start(0, start("r")),
        batcher.post(0, Message("signal", "r", b"")),
        batcher.peek(0, "r"),
    ]
    started, posted, seen = await settled(futures)
    assert [type(started), type(posted)] == [Unconfirmed] * 2
    assert not isinstance(seen, StoreError)


async def test_reads_do_not_wait_for_writes_that_wait_to_be_safe() -> None:
    class Slow(FakeStore):
        confirmation = "of the namespace's durability"

        async def send(
            self, calls: Sequence[Call[Any]], *, confirmed: bool = False, same_history: bool = False
        ) -> list[Any]:
            if confirmed:
                writing.append(len(calls))
                await asyncio.Event().wait()
            return await super().send(calls)

    writing: list[int] = []
    store = Slow()
    batcher = batcher_on(store)
    starts: list[asyncio.Future[bytes]] = []
    for name in range(6):
        starts.append(batcher.start(0, start(f"w{name}")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert len(writing) == 4
    async with asyncio.timeout(5):
        for name in range(6):  # each alone: none of them keeps a pipeline from the others
            assert b"r" in (await batcher.peek(1, f"r{name}"))[0]
        assert await batcher.call(Call[str].plain("PING")) == "PING"
    assert len(writing) == 4, "the others wait for one of these to return"
    late = batcher.peek(2, "late")
    await batcher.close()
    answers = await settled([*starts, late])  # type: ignore[list-item]
    assert [str(answer) for answer in answers] == ["the client was closed"] * 7


async def test_a_cancelled_caller_affects_no_other() -> None:
    """If its call still waited, it is not sent."""
    store = FakeStore()
    batcher = batcher_on(store)
    gone, stays = batcher.start(0, start("gone")), batcher.start(0, start("stays"))
    gone.cancel()
    assert await stays == b""
    assert store.pipelines[0][0].args.count("gone") == 0

    store.gate.clear()
    flown, other = batcher.start(0, start("flown")), batcher.start(0, start("other"))
    for _ in range(3):
        await asyncio.sleep(0)
    flown.cancel()
    store.gate.set()
    assert await other == b""


async def test_closing_fails_what_waits_and_refuses_what_comes() -> None:
    store = FakeStore()
    store.gate.clear()
    batcher = batcher_on(store)
    flying = batcher.start(0, start("flying"))
    for _ in range(3):
        await asyncio.sleep(0)
    queued = batcher.post(0, Message("signal", "queued", b""))
    await batcher.close()
    both: list[asyncio.Future[Any]] = [flying, queued]
    assert [type(answer) for answer in await settled(both)] == [StoreError, StoreError]
    with pytest.raises(StoreError, match="closed"):
        batcher.peek(0, "late")
