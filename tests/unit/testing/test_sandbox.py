"""Time and waiting in the sandbox, steps that take real time, and its limits."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta

import pytest

import streamflow as sf
import streamflow.testing as sft

pytestmark = pytest.mark.anyio

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)

app = sf.App()


@app.workflow
async def monthly(months: int) -> None:
    for _ in range(months):
        await sf.sleep(30 * 86400)


async def test_a_workflow_that_never_ends_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamflow.testing.sandbox.LIMIT", 50)
    async with sft.Sandbox(app) as sandbox:
        endless = await sandbox.start(monthly, 1_000)
        with pytest.raises(sft.Stalled, match="has not ended after 50 transitions, at virtual time 2030-"):
            await endless.result()


waiting = sf.App()


@waiting.workflow
async def nap(seconds: float) -> float:
    await sf.sleep(seconds)
    return seconds


@waiting.workflow
async def three_signals() -> str:
    await sf.signal("a", timeout=1)  # given up when it comes
    await sf.signal("b")
    try:
        await sf.signal("c", timeout=1)  # due at the same instant
    except TimeoutError:
        return "timed out"
    return "c"


async def test_a_timer_is_due_at_the_instant_of_one_that_was_given_up() -> None:
    async with sft.Sandbox(waiting) as sandbox:
        run = await sandbox.start(three_signals)
        await run.signal("a")
        await run.signal("b")
        assert await run.result() == "timed out"


async def test_results_are_awaited_at_the_same_time() -> None:
    async with sft.Sandbox(waiting) as sandbox:
        runs = [await sandbox.start(nap, seconds) for seconds in (1, 1, 3, 2)]
        assert await asyncio.gather(*(run.result() for run in (*runs, runs[0]))) == [1, 1, 3, 2, 1]
        assert sandbox.now == BEGIN + timedelta(seconds=3)


async def test_each_of_several_waits_ends_at_its_own_time() -> None:
    """Whatever the order in which they began; the clock goes past none, and never back."""
    async with sft.Sandbox(waiting) as sandbox:
        run = await sandbox.start(nap, 30)
        ended: list[tuple[str, datetime]] = []

        async def wait(name: str, seconds: float) -> None:
            if name == "sleep":
                await sandbox.sleep(seconds)
            else:
                with pytest.raises(TimeoutError, match=f"within {seconds} s; it goes on, and waits for a timer"):
                    await run.result(timeout=seconds)
            ended.append((name, sandbox.now))

        await asyncio.gather(wait("late", 10), wait("early", 5), wait("sleep", 7), wait("early", 5))
        assert ended == [
            ("early", BEGIN + timedelta(seconds=5)),
            ("early", BEGIN + timedelta(seconds=5)),
            ("sleep", BEGIN + timedelta(seconds=7)),
            ("late", BEGIN + timedelta(seconds=10)),
        ]


slow = sf.App()
cleaned: list[str] = []


@slow.step
async def forever() -> None:
    try:
        await asyncio.Event().wait()
    finally:
        cleaned.append("forever")


@slow.step
def hangs() -> None:
    threading.Event().wait()


@slow.step(retry=sf.Retry(attempts=2, initial=60, jitter=0), timeout=30)
async def limited() -> None:
    await asyncio.Event().wait()


@slow.step
async def quick() -> int:
    return 1


@slow.step
async def takes_real_time(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "done"


@slow.workflow
async def raced(plain: bool) -> int | None:
    return await sf.race(hangs() if plain else forever(), quick())


@slow.workflow
async def given_up() -> str:
    try:
        with sf.timeout(3600):
            await sf.gather(forever(), hangs())
    except TimeoutError:
        return "given up"
    return ""


@slow.workflow
async def retried() -> str:
    try:
        await limited()
    except sf.StepFailed as error:
        return str(error.failure)
    return ""


@slow.workflow
async def paced(real: float, virtual: float) -> str | None:
    return await sf.race(takes_real_time(real), sf.sleep(virtual))


@pytest.mark.parametrize("plain", [False, True])
async def test_a_step_that_never_ends_holds_up_nothing_else(plain: bool) -> None:
    cleaned.clear()
    async with sft.Sandbox(slow, patience=0.05) as sandbox:
        run = await sandbox.start(raced, plain)
        assert await run.result() == 1
        assert cleaned == ([] if plain else ["forever"]), "it was cancelled, and has ended"
        other = await sandbox.start(given_up)
        assert await other.result() == "given up"
        assert sandbox.now == BEGIN + timedelta(hours=1)


async def test_the_time_out_of_an_endless_step_is_virtual() -> None:
    async with sft.Sandbox(slow, patience=0.05) as sandbox:
        run = await sandbox.start(retried)
        assert await run.result() == "TimeoutError: step limited took longer than 30 s"
        assert sandbox.now == BEGIN + timedelta(seconds=30 + 60 + 30)


async def test_while_a_step_takes_real_time_the_clock_does_not_run_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamflow.testing.world.AT_ONCE", 0.0)
    async with sft.Sandbox(slow) as sandbox:
        assert await (await sandbox.start(paced, 0.1, 3600)).result() == "done"
        assert sandbox.now == BEGIN
        assert await (await sandbox.start(paced, 30, 0.001)).result() is None
        assert sandbox.now == BEGIN + timedelta(milliseconds=1)


async def test_a_wait_for_an_endless_step_says_how_long_it_runs() -> None:
    async with sft.Sandbox(slow, patience=0.05) as sandbox:
        run = await sandbox.start(given_up)
        with pytest.raises(
            TimeoutError, match=r"step forever \(number \d, whose function has been running for \d+\.\d s"
        ):
            await run.result(timeout=60)


async def test_steps_that_never_end_are_started_again_after_a_crash() -> None:
    async def scenario(sandbox: sft.Sandbox) -> list[object]:
        runs = [await sandbox.start(raced, False), await sandbox.start(given_up), await sandbox.start(retried)]
        return [await run.result() for run in runs]

    survived = await sft.survives_crashes(slow, scenario, patience=0.05)
    assert survived.result == [1, "given up", "TimeoutError: step limited took longer than 30 s"]
    assert survived.points == 7


asked = sf.App()


@asked.step(retry=sf.Retry(initial=600, jitter=0))
async def fetch() -> None:
    raise ConnectionError("no route")


@asked.workflow
async def both() -> None:
    await sf.gather(fetch(), sf.signal("approve", bool, timeout=60), sf.signal("ever"))


@asked.reducer
def counter(state: int, event: sf.Event) -> sf.Decision:
    return sf.Decision(state, [sf.sleep(3600)] if isinstance(event, sf.Started) else [])


async def test_a_description_says_what_a_run_waits_for_and_until_when() -> None:
    async with sft.Sandbox(asked) as sandbox:
        run = await sandbox.start(both)
        await sandbox.sleep(1)
        described = await run.describe()
        ever, approve, step = sorted(described.waits_for, key=lambda wait: (wait.kind, wait.until is not None))
        assert (ever.kind, ever.name, ever.type, ever.until) == ("signal", "ever", "", None)
        assert (approve.name, approve.type, approve.until) == ("approve", "bool", BEGIN + timedelta(seconds=60))
        assert (step.kind, step.name, step.attempt, step.why) == ("step", "fetch", 2, "ConnectionError: no route")
        assert step.until is not None
        assert step.until > sandbox.now
        assert step.holder is None
        assert described.owner is not None
        [listed] = await sandbox.runs(waits=True)
        assert [wait.kind for wait in listed.waits_for] == ["signal", "signal", "step"]
        [plain] = await sandbox.runs()
        assert plain.waits_for == (await run.describe(waits=False)).waits_for == []


async def test_a_reducer_waits_for_what_is_open_and_for_any_message() -> None:
    async with sft.Sandbox(asked) as sandbox:
        run = await sandbox.start(counter)
        await sandbox.sleep(1)
        found = (await run.describe()).waits_for
        assert [wait.kind for wait in found] == ["timer", "message"]
        assert found[0].until == BEGIN + timedelta(seconds=3600)


async def test_signals_that_no_code_took_are_described() -> None:
    untaken = sf.App()

    @untaken.workflow
    async def takes_one() -> str:
        await sf.sleep(1)
        return await sf.signal("approve", str)

    async with sft.Sandbox(untaken) as sandbox:
        run = await sandbox.start(takes_one)
        for value in ("yes", "no"):
            await run.signal("approve", value)
        assert await run.result() == "yes"
        assert (await run.describe()).untaken == {"approve": 1}
