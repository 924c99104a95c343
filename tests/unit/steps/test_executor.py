"""Running attempts: limits, order, timeouts, cancelling, holding, threads."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from msgspec import Raw

import streamflow as sf
from streamflow.machine.transition import Outcome
from streamflow.model.codec import DECLINED
from streamflow.steps.executor import ALONE_FOR, PACE, TURN, StepExecutor
from streamflow.workflow.actions import StepJob
from streamflow.workflow.app import Step
from tests.support.hostile_errors import HOSTILE
from tests.support.machine_driver import plain, raw

pytestmark = pytest.mark.anyio

app = sf.App()


@app.step
async def echo(value: str) -> str:
    return value


@app.step(retry=sf.Retry(never=(KeyError,)))
async def fail(kind: str) -> None:
    raise {"KeyError": KeyError, "ValueError": ValueError}[kind]("no")


class Bench:
    """An executor and what comes out of it."""

    def __init__(self, concurrency: int = 10, threads: int = 4) -> None:
        self.inward, self.outcomes = anyio.create_memory_object_stream[tuple[int, str, Outcome]](math.inf)
        self.executor = StepExecutor(concurrency, threads, lambda *outcome: self.inward.send_nowait(outcome))

    def submit(
        self, step: Step[..., Any], *args: Any, run: str = "r", seq: int = 1, attempt: int = 1, shard: int = 0
    ) -> None:
        self.executor.submit(shard, run, StepJob(seq, attempt, step, raw(args), timeout=step.timeout))

    async def next(self) -> Outcome:
        with anyio.fail_after(10):
            _, _, outcome = await self.outcomes.receive()
        return outcome

    async def quiet(self) -> None:
        """Nothing comes any more from what was cancelled."""
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.WouldBlock):
            self.outcomes.receive_nowait()


@asynccontextmanager
async def bench(concurrency: int = 10, threads: int = 4) -> AsyncGenerator[Bench]:
    made = Bench(concurrency, threads)
    try:
        yield made
    finally:
        made.executor.close()
        made.outcomes.close()
        made.inward.close()


class Gate:
    """Async and thread steps that wait until they are let go; `begun` says who has started."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.cancelled: list[str] = []
        self.go = anyio.Event()
        self.thread_go = threading.Event()
        self.thread_begun = threading.Semaphore(0)

        async def wait(name: str) -> str:
            self.begun.append(name)
            try:
                await self.go.wait()
            except BaseException:
                self.cancelled.append(name)
                raise
            return name

        def wait_in_thread(name: str) -> str:
            self.begun.append(name)
            self.thread_begun.release()
            assert self.thread_go.wait(10)
            return name

        local = sf.App()
        self.wait: Step[..., Any] = local.step(wait)
        self.wait_in_thread: Step[..., Any] = local.step(wait_in_thread)


async def test_a_failed_attempt_carries_the_newest_heartbeat_details() -> None:
    """Its own, or else those of an earlier attempt."""
    local = sf.App()

    @local.step
    async def tells(value: int | None) -> None:
        if value is not None:
            sf.heartbeat({"at": value})
        sf.heartbeat()
        raise ValueError

    async with bench() as it:
        for seq, value in ((1, 7), (2, None)):
            it.executor.submit(0, "r", StepJob(seq, 2, tells, raw([value]), raw("before")))
            assert plain((await it.next()).details) == ({"at": 7} if value else "before")


async def test_the_heartbeat_details_of_a_running_attempt_can_be_read() -> None:
    gate, reported = Gate(), anyio.Event()
    local = sf.App()

    @local.step
    async def tells() -> None:
        sf.heartbeat("so far")
        reported.set()
        await gate.go.wait()

    async with bench() as it:
        it.submit(tells)
        await reported.wait()
        assert plain(it.executor.details_of("r", 1)) == "so far"
        assert plain(it.executor.details_of("r", 2)) is None


async def test_a_thread_learns_that_its_attempt_is_over() -> None:
    local = sf.App()
    begun, ended = threading.Event(), threading.Event()

    @local.step
    def asks() -> None:
        assert not sf.cancelled()
        begun.set()
        while not sf.cancelled():
            ended.wait(0.001)
        ended.set()

    async with bench() as it:
        it.submit(asks)
        assert await anyio.to_thread.run_sync(begun.wait, 10)
        it.executor.cancel("r", 1)
        assert await anyio.to_thread.run_sync(ended.wait, 10)


async def test_an_outcome_says_which_attempt_of_which_call_it_is() -> None:
    async with bench() as it:
        it.submit(echo, "hello", run="r", seq=3, attempt=2, shard=5)
        with anyio.fail_after(10):
            shard, run_id, outcome = await it.outcomes.receive()
        assert (shard, run_id, outcome.seq, outcome.attempt) == (5, "r", 3, 2)
        assert isinstance(outcome.result, Raw)
        assert plain(outcome.result) == "hello"
        assert outcome.failure is None


async def test_a_failure_is_permanent_only_by_payload_and_names_its_classes() -> None:
    async with bench() as it:
        it.submit(fail, "ValueError", seq=1)
        it.submit(fail, "KeyError", seq=2)
        it.submit(echo, 5, seq=3)
        kinds: dict[str, Any] = {}
        for _ in range(3):
            outcome = await it.next()
            assert outcome.failure is not None
            kinds[outcome.failure.kind] = (outcome.permanent, outcome.kinds)
        assert kinds["ValueError"] == (False, ("ValueError", "Exception", "BaseException"))
        assert kinds["KeyError"] == (False, ("KeyError", "LookupError", "Exception", "BaseException"))
        assert kinds["UnfitArguments"][1][:3] == ("UnfitArguments", "PayloadInvalid", "UsageError")
        assert DECLINED in kinds["UnfitArguments"][1], "the run decides whose fault it is"


async def test_no_more_than_the_limit_run_and_the_rest_start_in_order() -> None:
    gate = Gate()
    async with bench(concurrency=2) as it:
        for number in range(5):
            it.submit(gate.wait, str(number), seq=number)
        await anyio.wait_all_tasks_blocked()
        assert gate.begun == ["0", "1"]
        assert (it.executor.running, it.executor.waiting) == (2, 3)
        it.executor.cancel("r", 0)
        await anyio.wait_all_tasks_blocked()
        assert gate.begun == ["0", "1", "2"]
        gate.go.set()
        assert [plain((await it.next()).result or b"") for _ in range(4)] == ["1", "2", "3", "4"]
        assert (it.executor.running, it.executor.waiting, it.executor.by_shard()[0]) == (0, 0, 0)


async def test_threads_have_a_limit_of_their_own_and_do_not_hold_up_tasks() -> None:
    gate = Gate()
    async with bench(threads=1) as it:
        it.submit(gate.wait_in_thread, "first", seq=1)
        it.submit(gate.wait_in_thread, "second", seq=2)
        it.submit(echo, "beside", seq=3)
        assert plain((await it.next()).result or b"") == "beside"
        assert gate.begun == ["first"]
        gate.thread_go.set()
        assert [(await it.next()).seq, (await it.next()).seq] == [1, 2]


async def test_the_timeout_of_a_step_does_not_run_while_it_waits_for_its_turn() -> None:
    gate = Gate()
    async with bench(concurrency=1, threads=1) as it:
        it.submit(gate.wait, "first", seq=1)
        it.submit(gate.wait_in_thread, "first", seq=2)
        it.submit(gate.wait.options(timeout=0.001), "second", seq=3)
        it.submit(gate.wait_in_thread.options(timeout=0.001), "second", seq=4)
        it.submit(gate.wait_in_thread.options(timeout=0.02), "other", seq=2, attempt=2)  # takes a thread later, too
        with anyio.move_on_after(0.05):
            await it.outcomes.receive()
            raise AssertionError("nothing that waits can time out")
        gate.go.set()
        gate.thread_go.set()
        assert (await it.next()).seq == 1


async def test_a_step_that_takes_too_long_is_over_and_cancelled() -> None:
    gate = Gate()
    async with bench() as it:
        it.submit(gate.wait.options(timeout=0.01), "late")
        outcome = await it.next()
        assert outcome.failure == sf.Failure("TimeoutError", "step wait took longer than 0.01 s")
        assert not outcome.permanent
        await it.quiet()
        assert gate.cancelled == ["late"]


async def test_the_late_result_of_a_thread_is_dropped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Only then is its slot free."""
    gate = Gate()
    async with bench(threads=1) as it:
        it.submit(gate.wait_in_thread.options(timeout=0.01), "late", seq=1)
        assert (await it.next()).failure is not None
        it.submit(gate.wait_in_thread, "next", seq=2)
        assert it.executor.waiting == 1
        assert "its thread can't be stopped" in caplog.text
        gate.thread_go.set()
        outcome = await it.next()
        assert (outcome.seq, plain(outcome.result or b"")) == (2, "next")


async def test_a_cancelled_attempt_gives_no_outcome() -> None:
    gate = Gate()
    async with bench() as it:
        it.submit(gate.wait, "one", seq=1)
        it.submit(gate.wait_in_thread, "two", seq=2)
        await anyio.to_thread.run_sync(gate.thread_begun.acquire)
        await anyio.wait_all_tasks_blocked()
        it.executor.cancel("r", 1)
        it.executor.cancel("r", 2)
        it.executor.cancel("r", 99)
        gate.thread_go.set()
        it.submit(echo, "after", seq=3)
        assert (await it.next()).seq == 3
        await it.quiet()
        assert gate.cancelled == ["one"]


async def test_cancelling_by_a_condition_leaves_the_others() -> None:
    gate = Gate()
    async with bench() as it:
        for shard in (1, 2):
            it.submit(gate.wait, str(shard), run=f"r{shard}", shard=shard)
        await anyio.wait_all_tasks_blocked()
        it.executor.cancel_where(lambda running: running.shard == 1)
        assert it.executor.by_shard() == {2: 1}
        gate.go.set()
        assert plain((await it.next()).result or b"") == "2"
        assert gate.cancelled == ["1"]


async def test_the_same_attempt_again_is_ignored_and_a_newer_one_replaces_it() -> None:
    gate = Gate()
    async with bench() as it:
        it.submit(gate.wait, "first")
        it.submit(gate.wait, "first")
        await anyio.wait_all_tasks_blocked()
        assert gate.begun == ["first"]
        it.submit(gate.wait, "second", attempt=2)
        it.submit(gate.wait, "first", attempt=1)
        await anyio.wait_all_tasks_blocked()
        assert (gate.begun, gate.cancelled) == (["first", "second"], ["first"])
        gate.go.set()
        assert (await it.next()).attempt == 2
        await it.quiet()


async def test_while_held_nothing_starts_and_what_runs_goes_on() -> None:
    gate = Gate()
    async with bench() as it:
        it.submit(gate.wait, "before", seq=1)
        await anyio.wait_all_tasks_blocked()
        it.executor.hold()
        it.submit(gate.wait, "while", seq=2)
        gate.go.set()
        assert (await it.next()).seq == 1
        await anyio.wait_all_tasks_blocked()
        assert gate.begun == ["before"]
        it.executor.resume()
        assert (await it.next()).seq == 2


async def test_while_crowded_nothing_starts_whether_or_not_it_is_held_too() -> None:
    gate = Gate()
    gate.go.set()
    async with bench() as it:
        it.executor.crowded = True
        it.submit(gate.wait, "waits", seq=1)
        it.executor.hold()
        it.executor.resume()
        await anyio.wait_all_tasks_blocked()
        assert gate.begun == []
        it.executor.hold()
        it.executor.crowded = False
        await anyio.wait_all_tasks_blocked()
        assert gate.begun == []
        it.executor.resume()
        assert (await it.next()).seq == 1


async def test_a_step_that_waits_can_be_cancelled_and_its_turn_goes_to_the_next() -> None:
    gate = Gate()
    async with bench(concurrency=1) as it:
        for number in range(3):
            it.submit(gate.wait, str(number), seq=number)
        it.executor.cancel("r", 1)
        assert it.executor.waiting == 1
        gate.go.set()
        assert [(await it.next()).seq, (await it.next()).seq] == [0, 2]
        assert "1" not in gate.begun


async def test_closing_cancels_everything() -> None:
    gate = Gate()
    async with bench(concurrency=1) as it:
        for number in range(3):
            it.submit(gate.wait, str(number), seq=number)
        await anyio.wait_all_tasks_blocked()
        it.executor.close()
        await it.quiet()
        assert gate.cancelled == ["0"]
        assert (it.executor.running, it.executor.waiting) == (0, 0)


async def test_ten_thousand_attempts_that_wait_are_cancelled_in_a_moment() -> None:
    gate = Gate()
    async with bench(concurrency=1) as it:
        for number in range(10_000):
            it.submit(gate.wait, "", seq=number)
        began = time.thread_time()  # not the time of a machine that does something else
        it.executor.cancel_where(lambda running: running.job.seq > 0)
        await anyio.lowlevel.checkpoint()
        assert time.thread_time() - began < 2
        assert (it.executor.running, it.executor.waiting) == (1, 0)


def _raising(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


class Abort(BaseException):
    """What some libraries do: an error that is no `Exception`."""


@pytest.mark.parametrize("error", [SystemExit(1), GeneratorExit(), Abort()], ids=lambda e: type(e).__name__)
async def test_an_async_step_that_raises_anything_is_a_failure(error: BaseException) -> None:
    async def act() -> None:
        raise error

    step: Step[..., Any] = sf.App().step(name="act")(act)
    async with bench() as it:
        it.submit(step)
        outcome = await it.next()
        assert outcome.failure is not None
        assert outcome.failure.kind == type(error).__name__


@pytest.mark.parametrize("error", [SystemExit(1), GeneratorExit(), KeyboardInterrupt()], ids=lambda e: type(e).__name__)
async def test_a_thread_that_raises_anything_is_a_failure(error: BaseException) -> None:
    step: Step[..., Any] = sf.App().step(name="act")(_raising(error))
    async with bench() as it:
        it.submit(step)
        outcome = await it.next()
        assert outcome.failure is not None
        assert outcome.failure.kind == type(error).__name__


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "plain"])
@pytest.mark.parametrize("kind", HOSTILE)
async def test_an_error_that_raises_when_it_is_looked_at_is_a_failure(kind: str, is_async: bool) -> None:
    def act() -> None:
        error = HOSTILE[kind]()
        raise error

    async def act_async() -> None:
        act()

    step: Step[..., Any] = sf.App().step(name="act")(act_async if is_async else act)
    async with bench() as it:
        it.submit(step)
        outcome = await it.next()
        assert outcome.failure is not None
        assert outcome.failure.kind == outcome.kinds[0] == "Hostile"


class Hangs:
    """A plain step that hangs until it is let go, with more hanging threads than one executor may have."""

    def __init__(self) -> None:
        self.go, self.begun = threading.Event(), threading.Semaphore(0)
        self.exhausted = anyio.Event()
        self.freed = 0

        def hang() -> None:
            self.begun.release()
            assert self.go.wait(30)

        self.step: Step[..., Any] = sf.App().step(hang)

    def free(self) -> None:
        self.freed += 1


@pytest.mark.parametrize("most_hung", [1, 2])
async def test_threads_that_hang_are_replaced_up_to_a_bound(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, most_hung: int
) -> None:
    monkeypatch.setattr("streamflow.steps.executor.LEAST_HUNG", most_hung)
    monkeypatch.setattr("streamflow.steps.executor.HUNG_PER_THREAD", 1)
    hangs = Hangs()
    outcomes: list[Outcome] = []
    executor = StepExecutor(
        10,
        1,
        lambda _, __, outcome: outcomes.append(outcome),
        replace_after=0.0,
        on_free=hangs.free,
        on_exhausted=hangs.exhausted.set,
    )
    try:
        for seq in range(most_hung + 1):
            executor.submit(0, "r", StepJob(seq, 1, hangs.step, raw([])))
            await anyio.to_thread.run_sync(hangs.begun.acquire)
            assert (executor.hung, executor.exhausted) == (seq, False)
            executor.cancel("r", seq)
            assert executor.lingering == 1
            while executor.hung == seq and not executor.exhausted:
                await anyio.lowlevel.checkpoint()
        await hangs.exhausted.wait()
        assert (executor.hung, executor.lingering, hangs.freed) == (most_hung, 1, most_hung)
        [named, *_] = caplog.messages
        assert "step hang of run r has not returned since its attempt ended" in named
        assert "(assert self.go.wait(30))" in named
        assert caplog.messages[-1].startswith(f"{most_hung + 1} threads hang")
        assert len(caplog.messages) == most_hung + 1, "the bound is logged once"

        executor.submit(0, "r", StepJob(9, 1, echo_plain, raw(["waits"])))
        assert executor.waiting == 1
        hangs.go.set()
        while not outcomes or executor.hung:
            await anyio.lowlevel.checkpoint()
        assert (executor.exhausted, executor.lingering) == (False, 0)
        assert plain(outcomes[0].result or b"") == "waits"
    finally:
        hangs.go.set()
        executor.close()


@sf.App().step
def echo_plain(value: str) -> str:
    return value


async def test_a_thread_that_returns_in_time_is_not_replaced(caplog: pytest.LogCaptureFixture) -> None:
    hangs = Hangs()
    executor = StepExecutor(10, 1, lambda *_: None, replace_after=3600, on_free=hangs.free)
    try:
        executor.submit(0, "r", StepJob(1, 1, hangs.step, raw([])))
        await anyio.to_thread.run_sync(hangs.begun.acquire)
        executor.cancel("r", 1)
        hangs.go.set()
        while executor.lingering:
            await anyio.lowlevel.checkpoint()
        assert (executor.hung, executor.running, caplog.messages) == (0, 0, [])
    finally:
        executor.close()


# --- fairness ---------------------------------------------------------------------------------------------------------


async def test_runs_take_turns_when_slots_are_short() -> None:
    async with bench(concurrency=1) as it:
        gate = Gate()
        for seq in (1, 2, 3):
            it.submit(gate.wait, f"a{seq}", run="a", seq=seq)
        it.submit(gate.wait, "b1", run="b")
        await anyio.wait_all_tasks_blocked()
        gate.go.set()
        for _ in range(4):
            await it.next()
        assert gate.begun == ["a1", "b1", "a2", "a3"]


async def test_a_turn_lasts_for_some_steps_that_end_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outcomes of one run that come together make one transition: steps by turns would make one each."""
    monkeypatch.setattr("streamflow.steps.executor.TURN_SECONDS", 60.0)  # of a machine of any speed
    begun: list[str] = []
    local = sf.App()

    @local.step
    async def short(name: str) -> str:
        begun.append(name)
        return name

    async with bench(concurrency=16) as it:
        gate = Gate()
        for seq in range(16):  # a run that has slots, and two that have none
            it.submit(gate.wait, f"a{seq}", run=f"a{seq}")
        for run in ("b", "c"):
            for seq in range(5):
                it.submit(short, run, run=run, seq=seq)
        await anyio.wait_all_tasks_blocked()
        gate.go.set()
        for _ in range(26):
            await it.next()
        assert begun == ["b"] * 5 + ["c"] * 5


async def test_the_turn_of_slow_steps_is_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamflow.steps.executor.TURN_SECONDS", 0.0)
    async with bench(concurrency=1) as it:
        gate = Gate()
        for seq in range(3):
            for run in ("a", "b"):
                it.submit(gate.wait, run, run=run, seq=seq)
        await anyio.wait_all_tasks_blocked()
        gate.go.set()
        for _ in range(6):
            await it.next()
        assert gate.begun == ["a", "b"] * 3


async def test_the_last_slot_is_kept_for_a_run_that_has_none() -> None:
    async with bench(concurrency=16) as it:
        gate = Gate()
        for seq in range(20):
            it.submit(gate.wait, f"a{seq}", run="a", seq=seq)
        await anyio.wait_all_tasks_blocked()
        assert len(gate.begun) == 15
        it.submit(gate.wait, "b", run="b")
        it.submit(gate.wait, "c", run="c")
        await anyio.wait_all_tasks_blocked()
        assert gate.begun[15:] == ["b"]
        assert (it.executor.running, it.executor.waiting) == (16, 6)
        gate.go.set()
        for _ in range(22):
            await it.next()
        assert gate.begun.index("c") < 18, "its turn comes before the last of the other run"
        assert (it.executor.running, it.executor.waiting) == (0, 0)


@pytest.mark.parametrize("alone", [True, False])
async def test_many_quick_steps_of_one_run_do_not_fill_a_turn_of_the_loop(alone: bool) -> None:
    turn = 0
    begun: dict[int, int] = {}
    local = sf.App()

    @local.step
    async def quick() -> None:
        begun[turn] = begun.get(turn, 0) + 1

    async def count_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    count = PACE * (ALONE_FOR + 1) * 2
    gate = Gate()
    async with bench(concurrency=1000) as it:
        counting = asyncio.create_task(count_turns())
        if not alone:
            it.submit(gate.wait, "b", run="b")
        for seq in range(count):
            it.submit(quick, run="a", seq=seq)
        for _ in range(count):
            await it.next()
        counting.cancel()
        gate.go.set()
    assert sum(begun.values()) == count
    most = max(begun.values())
    assert PACE < most <= 2 * TURN if alone else PACE <= most <= 2 * PACE, "those that have few slots are not counted"


async def test_few_slots_are_all_for_everybody() -> None:
    async with bench(concurrency=3) as it:
        gate = Gate()
        for seq in range(3):
            it.submit(gate.wait, f"a{seq}", run="a", seq=seq)
        await anyio.wait_all_tasks_blocked()
        assert len(gate.begun) == 3
        gate.go.set()
        for _ in range(3):
            await it.next()
