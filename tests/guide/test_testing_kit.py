"""The testing kit: workflows in memory, with a virtual clock. No test here needs a server."""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import msgspec
import pytest

import streamflow as sf
import streamflow.testing as sft
from streamflow.events import ChildStarted, SignalReceived, StepRetrying

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def no_unknown_keys_are_left() -> None:
    """In place of the fixture that looks at the server."""


app = sf.App()


class Page(msgspec.Struct):
    url: str
    words: int


@app.step(retry=sf.Retry(attempts=3, initial=10.0, factor=2.0, jitter=0.0), timeout=30)
async def fetch(url: str) -> Page:
    return Page(url, len(url))


@app.step
def count(page: Page, *, double: bool = False) -> int:
    return page.words * (2 if double else 1)


@app.step(queue="gpu")
def embed(words: int) -> str:
    return f"{words} of {sf.step_info().key}, attempt {sf.step_info().attempt}"


@app.workflow
async def digest(urls: list[str]) -> int:
    pages = await sf.gather(*(fetch(url) for url in urls))
    return sum([await count(page, double=True) for page in pages])


@app.workflow
async def monthly(months: int) -> datetime:
    for _ in range(months):
        await sf.sleep(30 * 86400)
    return sf.now()


@app.workflow
async def approval(timeout: float | None = None) -> str:
    try:
        return f"approved by {await sf.signal('approve', str, timeout=timeout)}"
    except TimeoutError:
        return "forgotten"


@app.workflow
async def careful(url: str) -> str:
    try:
        return (await fetch(url)).url
    except sf.StepFailed as error:
        return f"{error.attempt} attempts: {error.failure}"


@app.workflow
async def family(children: list[str]) -> list[str]:
    return list(await sf.gather(*(approval.options(id=child)(None) for child in children)))


@app.workflow
async def approver(run_id: str) -> None:
    await sf.send_signal(run_id, "approve", sf.info().run_id)


@app.workflow
async def embedded(words: int) -> str:
    return await embed(words)


@app.reducer
def tally(state: dict[str, int], event: sf.Event) -> sf.Decision:
    match event:
        case sf.Signal(name="add", value=value):
            state["sum"] = state.get("sum", 0) + value
        case sf.Signal(name="stop"):
            return sf.Decision(state, [sf.Complete(state["sum"])])
        case _:
            pass
    return sf.Decision(state)


@pytest.fixture
async def sandbox() -> AsyncIterator[sft.Sandbox]:
    async with sft.Sandbox(app) as sandbox:
        yield sandbox


# --- as production code reads ---------------------------------------------------------------------------------------


async def test_a_run_goes_through_its_real_steps_and_gives_its_typed_result(sandbox: sft.Sandbox) -> None:
    run = await sandbox.start(digest, ["abc", "de"])
    assert await run.result() == 10


async def test_one_line_is_enough_for_a_plain_test() -> None:
    def plain() -> None:
        assert sft.run(digest, ["abc"], app=app) == 6
        assert sft.run(digest, ["abc"], app=app, stubs={fetch: Page("x", 50), count: lambda page, double: 7}) == 7
        assert sft.run(approval, None, app=app, signals={"approve": "ada"}) == "approved by ada"
        assert sft.run(careful, "abc", app=app, stubs={fetch: OSError("down")}) == "3 attempts: OSError: down"
        with pytest.raises(sft.Stalled):
            sft.run(approval, None, app=app)

    await anyio.to_thread.run_sync(plain)


async def test_a_signal_is_taken_at_once_and_kept_if_it_is_early(sandbox: sft.Sandbox) -> None:
    run = await sandbox.start(approval, None)
    assert (await run.describe()).status is sf.Status.RUNNING
    await run.signal("approve", "ada")
    assert (await run.describe()).result == "approved by ada"
    with pytest.raises(sf.RunEnded):
        await run.signal("approve", "bob")


async def test_a_cancelled_run_and_a_failed_one_raise_as_they_do_in_production(sandbox: sft.Sandbox) -> None:
    run = await sandbox.start(approval, None)
    await run.cancel("not needed")
    with pytest.raises(sf.RunCancelled, match="not needed"):
        await run.result()
    sandbox.stub(fetch, raises=LookupError("nothing"))
    with pytest.raises(sf.RunFailed, match="LookupError: nothing"):
        await (await sandbox.start(digest, ["abc"])).result()


async def test_the_same_id_is_the_same_run_and_belongs_to_one_workflow(sandbox: sft.Sandbox) -> None:
    first = await sandbox.start(approval, None, id="a")
    again = await sandbox.start(approval, None, id="a")
    assert (first.created, again.created) == (True, False)
    with pytest.raises(sf.RunConflict, match="belongs to a run of workflow approval"):
        await sandbox.start(monthly, 1, id="a")
    with pytest.raises(sf.RunNotFound):
        await sandbox.run("b").describe()


async def test_ids_are_counted_so_that_every_run_of_a_test_is_the_same(sandbox: sft.Sandbox) -> None:
    await sandbox.start(approval, None, id="approval-1")
    assert (await sandbox.start(approval, None)).id == "approval-2"
    assert (await sandbox.start(monthly, 1)).id == "monthly-1"


async def test_a_sandbox_can_be_partitioned_as_the_namespace_is() -> None:
    async with sft.Sandbox(app, partition="tenant") as sandbox:
        run = await sandbox.start(family, ["a"], tenant="acme")
        assert run.id == "acme/family-1"
        await sandbox.run("acme/a").signal("approve", "ada")
        assert await run.result() == ["approved by ada"]


async def test_runs_are_listed_newest_change_first(sandbox: sft.Sandbox) -> None:
    first = await sandbox.start(approval, None, tenant="acme")
    await sandbox.start(approval, None)
    await first.signal("approve", "ada")
    assert [run.id for run in await sandbox.runs()] == ["approval-1", "approval-2"]
    assert [run.id for run in await sandbox.runs(status="running")] == ["approval-2"]
    assert [run.id for run in await sandbox.runs(tenant="acme")] == ["approval-1"]
    assert await sandbox.runs(workflow="monthly") == []
    assert len(await sandbox.runs(limit=1)) == 1


async def test_events_can_be_followed_to_the_end(sandbox: sft.Sandbox) -> None:
    run = await sandbox.start(monthly, 2)
    seen = [(at, type(event).__name__) async for at, event in run.events(follow=True)]
    assert [name for _, name in seen] == [
        "RunStarted",
        "TimerSet",
        "TimerFired",
        "TimerSet",
        "TimerFired",
        "RunCompleted",
    ]
    assert seen[-1][0] - seen[0][0] == timedelta(days=60)


# --- time -----------------------------------------------------------------------------------------------------------


async def test_time_passes_only_while_the_test_waits_for_a_result(sandbox: sft.Sandbox) -> None:
    run = await sandbox.start(monthly, 12)
    assert sandbox.now == datetime(2026, 1, 1, tzinfo=UTC)
    assert await run.result() == datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=360)
    assert sandbox.now == datetime(2026, 12, 27, tzinfo=UTC)


async def test_during_a_sleep_everything_happens_at_its_own_time(sandbox: sft.Sandbox) -> None:
    run = await sandbox.start(monthly, 3)
    await sandbox.sleep(timedelta(days=70))
    times = [datetime.fromtimestamp(one.at / 1000, UTC) - timedelta(days=70) for one in await run.history()]
    assert [sandbox.now - time - timedelta(days=70) for time in times] == [
        timedelta(days=70),
        timedelta(days=40),
        timedelta(days=10),
    ]
    with pytest.raises(sf.UsageError, match="must be >= 0 seconds, got -1"):
        await sandbox.sleep(-1)


async def test_a_timeout_is_virtual_and_the_run_goes_on(sandbox: sft.Sandbox) -> None:
    run = await sandbox.start(monthly, 1)
    with pytest.raises(TimeoutError, match="has not ended within 86400 s; it goes on"):
        await run.result(timeout=timedelta(days=1))
    assert sandbox.now == datetime(2026, 1, 2, tzinfo=UTC)
    await run.result(timeout=timedelta(days=29))


async def test_a_wait_that_can_never_end_is_stalled_at_once_and_says_for_what(sandbox: sft.Sandbox) -> None:
    run = await sandbox.start(family, ["a", "b"])
    await sandbox.run("a").signal("approve", "ada")
    with pytest.raises(sft.Stalled, match=r"run family-1 .* waits for child run b, which waits for signal approve"):
        await run.result()
    reducer = await sandbox.start(tally, None)
    with pytest.raises(sft.Stalled, match="it waits for a signal"):
        await reducer.result()
    with pytest.raises(sft.Stalled, match=r"it is stuck \(workflow odd is not registered"):
        await (await sandbox.start("odd")).result()


async def test_another_task_of_the_test_may_send_what_is_waited_for(sandbox: sft.Sandbox) -> None:
    run = await sandbox.start(approval, 60.0)
    results: list[str] = []

    async def wait() -> None:
        results.append(await run.result())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.lowlevel.checkpoint()
        await run.signal("approve", "ada")
    assert results == ["approved by ada"]


# --- steps ----------------------------------------------------------------------------------------------------------


async def test_a_stub_returns_raises_or_is_a_function(sandbox: sft.Sandbox) -> None:
    async def async_fake(url: str) -> Page:
        return Page(url, 1)

    sandbox.stub(fetch, returns=Page("", 100))
    assert await (await sandbox.start(digest, ["abc"])).result() == 200
    sandbox.stub(fetch, async_fake)
    sandbox.stub("count", lambda page, double: page.words + double)
    assert await (await sandbox.start(digest, ["abc"])).result() == 2


async def test_the_calls_of_a_step_are_there_with_their_times(sandbox: sft.Sandbox) -> None:
    sandbox.stub(fetch, raises=ConnectionError, times=2)
    run = await sandbox.start(digest, ["abc"])
    assert await run.result() == 6
    calls = sandbox.calls(fetch)
    assert [(call.args, call.attempt, call.run_id) for call in calls] == [(("abc",), n, run.id) for n in (1, 2, 3)]
    assert [(call.at - calls[0].at).total_seconds() for call in calls] == [0, 10, 30]
    assert [(call.args, call.kwargs) for call in sandbox.calls(count)] == [((Page("abc", 3),), {"double": True})]


async def test_a_slow_step_runs_into_its_timeout_on_the_virtual_clock(sandbox: sft.Sandbox) -> None:
    sandbox.stub(fetch, takes=31)
    run = await sandbox.start(careful, "abc")
    assert await run.result() == "3 attempts: TimeoutError: step fetch took longer than 30 s"
    assert (sandbox.now - datetime(2026, 1, 1, tzinfo=UTC)).total_seconds() == 30 + 10 + 30 + 20 + 30


async def test_a_step_that_takes_time_is_in_flight_meanwhile(sandbox: sft.Sandbox) -> None:
    sandbox.stub(fetch, takes=timedelta(seconds=29))
    run = await sandbox.start(careful, "abc")
    await sandbox.sleep(28)
    assert (await run.describe()).status is sf.Status.RUNNING
    await run.cancel()
    assert (await run.describe()).status is sf.Status.CANCELLED
    await sandbox.sleep(5)
    assert (await run.describe()).version == 2


async def test_a_real_step_that_hangs_is_stopped_by_its_timeout(sandbox: sft.Sandbox) -> None:
    hanging = sf.App()

    @hanging.step(timeout=0.01, retry=sf.NO_RETRY)
    async def hang() -> None:
        await anyio.sleep_forever()

    @hanging.workflow
    async def hangs() -> str:
        try:
            await hang()
        except sf.StepFailed as error:
            return error.failure.message
        return ""

    async with sft.Sandbox(hanging) as own:
        assert await (await own.start(hangs)).result() == "step hang took longer than 0.01 s"


async def test_steps_of_a_queue_run_too_with_their_step_info(sandbox: sft.Sandbox) -> None:
    assert await (await sandbox.start(embedded, 5)).result() == "5 of embedded-1/1, attempt 1"


async def test_what_a_stub_gives_must_fit_the_step(sandbox: sft.Sandbox) -> None:
    with pytest.raises(sf.PayloadInvalid, match="result of step fetch is not a Page"):
        sandbox.stub(fetch, returns=7)  # pyright: ignore[reportArgumentType]
    with pytest.raises(sf.UsageError, match="must have exactly one of"):
        sandbox.stub(fetch, returns=Page("", 1), raises=OSError)
    with pytest.raises(sf.UsageError, match="must have exactly one of"):
        sandbox.stub(fetch)
    with pytest.raises(sf.UsageError, match="step fetsch is not registered"):
        sandbox.stub("fetsch", returns=1)
    sandbox.stub(fetch, lambda url: "no page")  # pyright: ignore[reportArgumentType]
    assert "PayloadInvalid" in await (await sandbox.start(careful, "abc")).result()


async def test_a_step_may_signal_but_not_wait_for_a_run_of_its_own_sandbox(sandbox: sft.Sandbox) -> None:
    waiting = await sandbox.start(approval, None)

    async def signals(url: str) -> Page:
        await waiting.signal("approve", "a step")
        return Page(url, 1)

    async def waits(url: str) -> Page:
        await waiting.result()
        return Page(url, 1)

    sandbox.stub(fetch, signals)
    await (await sandbox.start(digest, ["abc"])).result()
    assert await waiting.result() == "approved by a step"
    sandbox.stub(fetch, waits)
    assert "a step can't wait for run approval-1" in await (await sandbox.start(careful, "abc")).result()


# --- several runs ---------------------------------------------------------------------------------------------------


async def test_children_and_signals_between_runs(sandbox: sft.Sandbox) -> None:
    run = await sandbox.start(family, ["a", "b"])
    for child in ("a", "b"):
        await sandbox.start(approver, child)
    assert await run.result() == ["approved by approver-1", "approved by approver-2"]
    assert (await sandbox.run("a").describe()).parent == run.id


async def test_a_child_id_that_is_taken_fails_the_child(sandbox: sft.Sandbox) -> None:
    await sandbox.start(approval, None, id="a")
    with pytest.raises(sf.RunFailed, match="the run id a belongs to another run"):
        await (await sandbox.start(family, ["a"])).result()


async def test_children_are_cancelled_with_their_parent(sandbox: sft.Sandbox) -> None:
    run = await sandbox.start(family, ["a"])
    await run.cancel()
    assert (await sandbox.run("a").describe()).status is sf.Status.CANCELLED


async def test_reducers_run_as_workflows_do(sandbox: sft.Sandbox) -> None:
    run = await sandbox.start(tally, None)
    for value in (1, 2, 3):
        await run.signal("add", value)
        sandbox.crash()
    await run.signal("stop")
    assert await run.result() == 6


# --- crashes --------------------------------------------------------------------------------------------------------


async def test_a_crash_forgets_nothing_that_was_recorded(sandbox: sft.Sandbox) -> None:
    sandbox.stub(fetch, takes=10)
    run = await sandbox.start(digest, ["abc", "de"])
    await sandbox.sleep(5)
    sandbox.crash()
    assert await run.result() == 10
    assert [call.args for call in sandbox.calls(fetch)] == [("abc",), ("de",), ("abc",), ("de",)]
    assert sandbox.now == datetime(2026, 1, 1, 0, 0, 10, tzinfo=UTC)


async def test_a_scenario_is_crashed_after_each_of_its_transitions() -> None:
    async def scenario(sandbox: sft.Sandbox) -> list[Any]:
        sandbox.stub(fetch, takes=20)
        sandbox.stub(fetch, raises=OSError, times=1)
        pages = await sandbox.start(digest, ["abc", "de"])
        children = await sandbox.start(family, ["a", "b"])
        await sandbox.start(approver, "a")
        await sandbox.run("b").signal("approve", "ada")
        sums = await sandbox.start(tally, None)
        await sums.signal("add", 5)
        await sums.signal("stop")
        queued = await sandbox.start(embedded, 1)
        return [await pages.result(), await children.result(), await sums.result(), await queued.result()]

    survived = await sft.survives_crashes(app, scenario)
    assert survived.result == [10, ["approved by approver-1", "approved by ada"], 5, "1 of embedded-1/1, attempt 1"]
    # digest: start, failure, two pages, two counts; family: start, two children; each child: start and signal;
    # approver: start; tally: start, two signals; embedded: start, result.
    assert survived.points == 6 + 3 + 4 + 1 + 3 + 2


async def test_a_race_is_decided_as_without_a_crash() -> None:
    async def scenario(sandbox: sft.Sandbox) -> str:
        sandbox.stub(fetch, takes=29)
        slow = await sandbox.start(careful, "abc")
        timed = await sandbox.start(approval, 28.0)
        assert await slow.result() == "abc"
        return await timed.result()

    assert (await sft.survives_crashes(app, scenario)).result == "forgotten"


async def test_after_a_crash_retries_of_the_same_instant_all_run_again() -> None:
    async def scenario(sandbox: sft.Sandbox) -> int:
        sandbox.stub(fetch, takes=20)
        sandbox.stub(fetch, raises=OSError, times=2)
        return await (await sandbox.start(digest, ["abc", "de"])).result()

    assert (await sft.survives_crashes(app, scenario)).result == 10


async def test_a_workflow_that_tosses_coins_is_caught_at_the_event_that_differs() -> None:
    unfit = sf.App()
    coin = itertools.cycle([True, False])

    @unfit.step
    async def heads() -> None: ...

    @unfit.step
    async def tails() -> None: ...

    @unfit.workflow
    async def toss() -> None:
        await (heads() if next(coin) else tails())

    async def scenario(sandbox: sft.Sandbox) -> None:
        await (await sandbox.start(toss)).result()

    says = r"run toss-1 diverged at event 2: the history has StepScheduled\(1, tails\), the code did .*heads"
    with pytest.raises(AssertionError, match=says):
        await sft.survives_crashes(unfit, scenario)


async def test_a_divergence_can_t_be_hidden_by_the_scenario() -> None:
    unfit = sf.App()
    coin = itertools.cycle([True, False])

    @unfit.workflow
    async def toss() -> None:
        await (sf.sleep(1) if next(coin) else sf.signal("go", timeout=1))

    async def scenario(sandbox: sft.Sandbox) -> None:
        try:
            await (await sandbox.start(toss)).result()
        except Exception:
            return

    with pytest.raises(AssertionError, match="diverged at event 2"):
        await sft.survives_crashes(unfit, scenario)


async def test_arguments_and_times_that_are_not_the_same_each_time_are_caught() -> None:
    unfit = sf.App()

    @unfit.step
    async def take(value: float) -> None: ...

    @unfit.workflow
    async def argues() -> None:
        await take(random.random())

    @unfit.workflow
    async def dawdles() -> None:
        await sf.sleep(random.random() * 1e6)

    def scenario(workflow: Any) -> Any:
        async def play(sandbox: sft.Sandbox) -> None:
            await (await sandbox.start(workflow)).result()

        return play

    with pytest.raises(AssertionError, match=r"the code did StepScheduled\(1, take\) with \[0\."):
        await sft.survives_crashes(unfit, scenario(argues))
    with pytest.raises(AssertionError, match=r"run dawdles-1 decided TimerSet\(1\) with due "):
        await sft.survives_crashes(unfit, scenario(dawdles))


async def test_state_that_lives_in_memory_only_is_caught() -> None:
    unfit = sf.App()
    seen: list[str] = []

    @unfit.step
    async def name() -> str:
        return "ada"

    @unfit.workflow
    async def remembers() -> int:
        seen.append(await name())
        await sf.sleep(1)
        return len(seen)

    async def scenario(sandbox: sft.Sandbox) -> int:
        seen.clear()
        return await (await sandbox.start(remembers)).result()

    with pytest.raises(AssertionError, match=r"RunCompleted with result 2, and without a crash 1"):
        await sft.survives_crashes(unfit, scenario)


async def test_a_scenario_that_fails_without_crashes_fails_as_it_is() -> None:
    """A scenario without a transition is refused."""

    async def fails(sandbox: sft.Sandbox) -> None:
        await (await sandbox.start(approval, None)).result()

    async def empty(sandbox: sft.Sandbox) -> None:
        await sandbox.sleep(1)

    with pytest.raises(sft.Stalled):
        await sft.survives_crashes(app, fails)
    with pytest.raises(AssertionError, match="no transition"):
        await sft.survives_crashes(app, empty)


# --- everything that a workflow can do --------------------------------------------------------------------------------


@app.workflow
async def box_office(seats: int) -> int:
    sf.set_attributes(sold_out=False)
    while seats:
        sf.publish("left", seats)
        request = await sf.question("reserve", int)
        if request.value > seats:
            request.refuse(f"only {seats} left")
        else:
            seats -= request.value
            await count(Page("", 1))
            request.answer(seats)
    sf.set_attributes(sold_out=True)
    return seats


@app.workflow
async def account(balance: int) -> int:
    for _ in range(2):
        amount = await sf.signal("deposit", int)
        if not amount:
            return balance
        balance += await count(Page("", amount))
    raise sf.ContinueAs(balance)


@app.workflow
async def hurry() -> str:
    try:
        async with sf.timeout(10):
            await fetch("slow")
    except TimeoutError:
        pass
    page = await sf.race(fetch("slow"), sf.sleep(5))
    return "late" if page is None else "in time"


async def test_a_run_answers_publishes_and_is_found_by_its_attributes(sandbox: sft.Sandbox) -> None:
    run = await sandbox.start(box_office, 3)
    assert await run.read("left", int) == 3
    assert await run.ask("reserve", 1, type=int) == 2
    with pytest.raises(sf.AskRefused, match="only 2 left"):
        await run.ask("reserve", 5)
    assert await run.published() == {"left": 2}
    assert [found.id for found in await sandbox.runs(attributes={"sold_out": False})] == [run.id]
    assert await run.ask("reserve", 2) == 0
    assert await sandbox.runs(attributes={"sold_out": False}) == []
    assert (await run.describe()).attributes == {"sold_out": True}


async def test_a_question_that_nobody_takes_is_late_or_stalls(sandbox: sft.Sandbox) -> None:
    run = await sandbox.start(approval, None)
    with pytest.raises(TimeoutError, match="has not answered reserve within 60 s"):
        await run.ask("reserve", timeout=60)
    assert sandbox.now == datetime(2026, 1, 1, 0, 1, tzinfo=UTC)
    with pytest.raises(sft.Stalled, match=r"has not answered, and never will: .* waits for signal approve"):
        await run.ask("reserve")


async def test_a_run_continues_as_new_and_can_be_terminated(sandbox: sft.Sandbox) -> None:
    run = await sandbox.start(account, 0)
    for amount in (1, 2, 3):
        await run.signal("deposit", amount)
    kinds = [[type(event).__name__ for event in transition.events] for transition in await run.history()]
    assert [names[-1] for names in kinds] == ["RunContinued", "StepScheduled", "StepCompleted"]
    names = [type(event).__name__ async for _, event in run.events()]
    assert names == [name for transition in kinds for name in transition], "of the current generation"
    sft.replay(app, await run.export())
    await run.terminate("enough")
    with pytest.raises(sf.RunCancelled, match="enough"):
        await run.result()


async def test_asks_signals_timeouts_and_races_survive_crashes() -> None:
    async def scenario(sandbox: sft.Sandbox) -> list[Any]:
        sandbox.stub(fetch, takes=20)
        quick = await sandbox.start(hurry)
        seats = await sandbox.start(box_office, 3)
        money = await sandbox.start(account, 0)
        answers = [await seats.ask("reserve", 1), await seats.ask("reserve", 2)]
        for amount in (1, 2, 3, 4, 0):
            await money.signal("deposit", amount)
        return [answers, await money.result(), await quick.result(), await seats.result()]

    survived = await sft.survives_crashes(app, scenario)
    assert survived.result == [[2, 0], 10, "late", 0]
    assert survived.points > 15


# --- what is recorded -----------------------------------------------------------------------------------------------


async def test_histories_have_the_same_events_as_in_production(sandbox: sft.Sandbox) -> None:
    sandbox.stub(fetch, raises=OSError("down"), times=1)
    run = await sandbox.start(digest, ["abc"])
    await run.result()
    events = [event for transition in await run.history() for event in transition.events]
    (retrying,) = [event for event in events if isinstance(event, StepRetrying)]
    assert (retrying.attempt, str(retrying.failure)) == (1, "OSError: down")
    assert "streamflow/testing" not in retrying.failure.traceback


async def test_every_input_is_a_transition_of_its_own(sandbox: sft.Sandbox) -> None:
    run = await sandbox.start(family, ["a", "b", "c"])
    for child in ("a", "b", "c"):
        await sandbox.run(child).signal("approve", child)
    kinds = [[type(event) for event in transition.events] for transition in await run.history()]
    assert kinds[0].count(ChildStarted) == 3
    assert [len(events) for events in kinds[1:]] == [1, 1, 2]
    (signalled,) = (await sandbox.run("a").history())[1:]
    assert isinstance(signalled.events[0], SignalReceived)
