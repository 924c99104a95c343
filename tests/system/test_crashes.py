"""Whatever a workflow uses: its owner dies after every single commit, before anything that follows from it, and the run
ends as it would have ended without that.

Each daemon here forgets what it commits: it starts no step and sends no message for it, and is killed as soon as the
first commit is made, so the next one has only the record. There is a death between any two transitions of every run.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import anyio
import pytest

import streamflow as sf
from streamflow.daemon.daemon import Daemon
from tests.support.waiting import DEADLINE, names_of, until
from tests.system.conftest import Serve, Work

pytestmark = pytest.mark.anyio

QUICK: dict[str, Any] = {"beat": 0.02, "dead_after": 0.1}

app = sf.App()


@pytest.fixture(autouse=True)
def no_step_is_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    """Daemons die here whenever they have committed, so whatever they try at that time looks like the reason."""
    monkeypatch.setattr("streamflow.machine.run.MAX_WORKER_LOSSES", 1000)


@app.step(retry=sf.Retry(attempts=3, initial=0.01))
async def double(n: int) -> int:
    return 2 * n


@app.step(retry=sf.NO_RETRY)
async def refuse(why: str) -> None:
    raise ValueError(why)


log: Counter[str] = Counter()


@app.step
async def note(text: str) -> str:
    log[text] += 1
    return text


@app.step
async def hang() -> None:
    await anyio.sleep(3600)


@app.workflow
async def leaf(n: int) -> int:
    return await double(n)


@app.workflow
async def doomed() -> None:
    await refuse("no way")


@app.workflow
async def patient() -> str:
    try:
        return await sf.signal("go", str)
    finally:
        await note("patient cleaned up")


@app.workflow
async def concurrency() -> list[Any]:
    both = await sf.gather(double(1), double(2))
    mapped = await sf.map(double, range(5), concurrency=2)
    first = await sf.race(hang(), double(10), sf.sleep(3600))
    try:
        with sf.timeout(0.05):
            await hang()
    except TimeoutError:
        late = "late"
    else:
        late = "in time"
    async with sf.task_group() as group:
        a = group.start_soon(double, 100)
        b = group.start_soon(leaf, 200)
    return [both, mapped, first, late, await a, await b]


@app.workflow
async def trip() -> str:
    async with sf.saga() as saga:
        saga.compensate(note, "flight cancelled")
        await note("flight booked")
        saga.compensate(note, "hotel cancelled")
        await note("hotel booked")
        await refuse("no money")
    return "booked"


@app.workflow
async def cleans_up() -> None:
    try:
        await sf.gather(hang(), patient())
    finally:
        with sf.shield():
            await note("clean 1")
            await note("clean 2")


@app.workflow
async def family() -> list[Any]:
    one = await sf.start(leaf, 1)
    await sf.start(patient, id="abandoned", on_parent_end="abandon")
    await sf.start(leaf, 3, id="waited-for", on_parent_end="wait")
    failure = ""
    try:
        await doomed()
    except sf.ChildFailed as error:
        failure = f"{error.run_id}: {error.failure.message}"
    return [await one.result(), failure]


@app.workflow
async def entity(total: int) -> int:
    """Continues as new after every two deposits, and answers what it has."""
    sf.set_attributes(level=total)
    sf.publish("total", total)
    for _ in range(2):
        amount = await sf.signal("deposit", int)
        if amount == 0:
            question = await sf.question("total")
            question.answer(total)
            return total
        total += await double(amount)
        sf.publish("total", total)
    raise sf.ContinueAs(total)


@app.reducer
def machine(state: int, event: sf.Event) -> sf.Decision:
    match event:
        case sf.Started(input=count):
            return sf.Decision(count, [double.options(tag="first")(count)])
        case sf.StepDone(result=result) if state:
            return sf.Decision(state - 1, [double(result), sf.sleep(0.01)])
        case sf.StepDone(result=result):
            return sf.Decision(0, [sf.Complete(result)])
    return sf.Decision(state)


@app.step(queue="gpu", retry=sf.Retry(attempts=3, initial=0.01))
async def resume(pages: int) -> list[int]:
    """Fails once, and goes on from its heartbeat details."""
    done: list[int] = sf.step_info().details or []
    for page in range(len(done), pages):
        if page == 2 and sf.step_info().details is None:
            sf.heartbeat(done)
            raise ConnectionError("page 2")
        done.append(page)
    return [*done, sf.step_info().attempt]


@app.workflow
async def through_a_queue() -> list[Any]:
    first = await resume(4)
    echoes = await sf.map(double.options(queue="gpu"), range(3), concurrency=2)
    winner = await sf.race(hang.options(queue="gpu")(), double.options(queue="gpu")(5))
    return [first, echoes, winner]


async def live_on(serve: Serve, app: sf.App, run: sf.Run[Any], settings: dict[str, Any] | None = None) -> int:
    """Daemon after daemon, each killed after its first commit, until the run has ended. Gives how many died."""
    deaths = 0
    while True:
        async with serve(app, crash=True, **(QUICK | (settings or {}))) as (_, daemon):
            died = dies_after_a_commit(daemon)
            with anyio.fail_after(DEADLINE):
                await died.wait()
        deaths += 1
        assert deaths < 100, "nothing moves any more"
        if (await run.describe()).ended is not None:
            return deaths


def dies_after_a_commit(daemon: Daemon) -> anyio.Event:
    """From its next commit on the daemon does nothing more; the event says that it was made."""
    died = anyio.Event()
    owner = daemon.owner

    apply = owner._apply

    def nothing_follows(batch: Any, committed: Any) -> None:
        # The next attempt of a step begins with a commit that has no event of its run; in a queue it has a message.
        if committed is not None and (batch.batch.runs or batch.batch.sends):
            died.set()
        elif not died.is_set():
            apply(batch, committed)

    owner._apply = nothing_follows
    return died


async def test_concurrency_inside_a_run(serve: Serve) -> None:
    run = await started(serve, "concurrency")
    deaths = await live_on(serve, app, run)
    assert deaths >= 8, "the owner died between the transitions"
    expected = [[2, 4], [0, 2, 4, 6, 8], 20, "late", 200, 400]
    assert await run.result(DEADLINE) == expected


async def test_a_saga_is_undone_once_and_in_reverse(serve: Serve) -> None:
    log.clear()
    run = await started(serve, "trip")
    assert await live_on(serve, app, run) >= 5
    with pytest.raises(sf.RunFailed, match="no money"):
        await run.result(DEADLINE)
    assert list(log) == ["flight booked", "hotel booked", "hotel cancelled", "flight cancelled"]


async def test_a_cancelled_run_cleans_up(serve: Serve) -> None:
    log.clear()
    run = await started(serve, "cleans_up")
    async with serve(app, crash=True, **QUICK) as (_, daemon):
        await dies_after_a_commit(daemon).wait()
    await run.cancel("enough")
    assert await live_on(serve, app, run) >= 3
    with pytest.raises(sf.RunCancelled, match="enough"):
        await run.result(DEADLINE)
    assert log["clean 1"] >= 1
    assert log["clean 2"] >= 1
    assert (await names_of(run))[-1] == "RunCancelled"


async def test_children_and_what_happens_to_them_at_the_end(serve: Serve, client: sf.Client) -> None:
    run = await started(serve, "family")
    await live_on(serve, app, run)
    result, failure = await run.result(DEADLINE)
    assert result == 2
    assert failure.endswith("ValueError: no way")
    assert (await client.run("waited-for", int).result(DEADLINE)) == 6
    abandoned = client.run("abandoned")
    await abandoned.signal("go", "still here")
    async with serve(app):
        assert await abandoned.result(10) == "still here"


async def test_a_run_that_continues_as_new(serve: Serve, client: sf.Client) -> None:
    run = await started(serve, "entity", 0)
    for amount in (1, 2, 3, 4, 5, 0):
        await run.signal("deposit", amount)
    answers: list[Any] = []
    async with anyio.create_task_group() as asking:

        async def ask() -> None:
            answers.append(await run.ask("total", timeout=DEADLINE))

        asking.start_soon(ask)
        assert await live_on(serve, app, run) >= 6
    assert await run.result(DEADLINE) == 30
    assert answers == [30]
    assert await run.read("total") == 30
    assert [found.id for found in await client.runs(attributes={"level": 20})] == [run.id]
    assert await client.runs(attributes={"level": 0}) == []


async def test_steps_of_a_queue(serve: Serve, work: Work) -> None:
    run = await started(serve, "through_a_queue")
    async with work(app, "gpu") as worker:
        assert await live_on(serve, app, run) >= 4, "outcomes that come while nobody owns the shard are one transition"
        assert await run.result(DEADLINE) == [[0, 1, 2, 3, 2], [0, 2, 4], 10]

        async def stopped() -> bool:
            return worker.claims.running == 0

        async with serve(app):  # that the loser isn't wanted any more is still in the outbox
            await until(stopped)


async def test_a_reducer(serve: Serve) -> None:
    run = await started(serve, "machine", 3)
    assert await live_on(serve, app, run) >= 4
    assert await run.result(DEADLINE) == 3 * 2**4


async def started(serve: Serve, workflow: str, *args: Any) -> sf.Run[Any]:
    """A run that no daemon has seen yet."""
    async with serve(app, **QUICK) as (client, _):
        pass
    return await client.start(workflow, *args)
