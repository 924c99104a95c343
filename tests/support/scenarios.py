"""Scenarios that are played in the sandbox and on a server: what users do, with what comes out of it.

Each is a function that gets a `Stage` and returns plain data: results, and errors as text (`caught`). What else is
compared, its runs and their histories, is read by the players (`tests/system/test_sandbox_and_server.py`).

So that both give the same, every run has an id of its own, decisions don't depend on which of two steps is quicker, and
a scenario observes a run by waiting for it (`result`, `ask`, `stage.until`), never by guessing that it has come so far.
What has to happen in an order is a quarter of a second apart or more.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import anyio
import anyio.lowlevel
import msgspec

import streamflow as sf

T = 0.3
"""Seconds between two things that happen one after the other."""


class Stage(Protocol):
    """What a scenario is played on. `client` is a `sf.Client` or a `sft.Sandbox`."""

    client: Any

    async def pause(self, seconds: float) -> None:
        """Let that much time pass."""
        ...

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        """Wait until it is so, without letting virtual time pass."""
        ...

    async def deploy(self, app: sf.App) -> None:
        """Replace the app."""
        ...

    async def knows(self, *paused: str) -> None:
        """Wait until the owner of the runs has heard that these workflows are paused, and no others."""
        ...


Play = Callable[[Stage], Awaitable[Any]]

SCENARIOS: dict[str, Play] = {}

app = sf.App()


def scenario(play: Play) -> Play:
    SCENARIOS[play.__name__] = play
    return play


async def caught(awaitable: Awaitable[Any]) -> Any:
    """The result (of a start the run's id), or the error as text."""
    try:
        result = await awaitable
    except Exception as error:
        failure = getattr(error, "failure", None)
        kinds = [type(error).__name__, *([failure.kind] if isinstance(failure, sf.Failure) else [])]
        # What a wait has not got: only the sandbox knows what the run waits for.
        return f"{'/'.join(kinds)}: {str(error).partition(', and waits for')[0]}"
    return result.id if isinstance(result, sf.Run) else result


# --- steps ----------------------------------------------------------------------------------------------------------


@app.step(retry=sf.Retry(attempts=3, initial=T, factor=2, jitter=0))
async def double(n: int) -> int:
    return 2 * n


@app.step
def plain_double(n: int) -> int:
    return 2 * n


@app.step(retry=sf.Retry(attempts=3, initial=T, factor=2, jitter=0))
async def flaky(failures: int) -> int:
    """Fails that many times."""
    attempt = sf.step_info().attempt
    if attempt <= failures:
        raise ConnectionError(f"attempt {attempt}")
    return attempt


@app.step(retry=sf.Retry(attempts=5, initial=3600, jitter=0))
def told(what: str) -> int:
    """The first attempt's error says when the next one begins, whose error says that there is none."""
    attempt = sf.step_info().attempt
    if attempt == 1:
        raise sf.RetryLater("busy", retry_after=T)
    if what == "fatal":
        raise sf.Fatal("declined", data={"code": 51, "tries": [1, 2]})
    if attempt == 2:
        raise ExceptionGroup("both", [sf.RetryLater("busy", retry_after=T / 2), OSError("down")])
    return attempt


@app.step(retry=sf.Retry(attempts=5, initial=T, jitter=0, never=[LookupError]))
async def missing(kind: str) -> None:
    raise {"key": KeyError, "value": ValueError}[kind](kind)


@app.step(retry=sf.NO_RETRY)
async def refuse(why: str) -> None:
    raise ValueError(why)


@app.step
async def hang() -> None:
    await asyncio.Event().wait()


@app.step
def plain_hang() -> None:
    while not sf.cancelled():
        time.sleep(0.005)


@app.step(timeout=T, retry=sf.Retry(attempts=2, initial=T, jitter=0))
async def limited() -> None:
    await asyncio.Event().wait()


@app.step(timeout=T, retry=sf.NO_RETRY)
def plain_limited() -> None:
    while not sf.cancelled():
        time.sleep(0.005)


@app.step
async def note(text: str) -> str:
    return text


class Declined(Exception):
    def __init__(self, code: str) -> None:
        super().__init__(f"declined: {code}")
        self.code = code


@app.step(retry=sf.NO_RETRY)
async def charge(how: str) -> int:
    match how:
        case "cause":
            try:
                {}["card"]
            except KeyError as error:
                raise Declined("no card") from error
        case "context":
            try:
                {}["card"]
            except KeyError:
                raise Declined("no card")  # noqa: B904
        case "note":
            error = Declined("expired")
            error.add_note("it was valid until May")
            raise error
        case "group":
            raise ExceptionGroup("two reasons", [Declined("one"), OSError(5, "two")])
        case "exit":
            raise SystemExit(3)
        case "cancelled":
            raise asyncio.CancelledError
        case "stop":
            raise StopIteration("over")
        case "usage":
            raise sf.UsageError("never again")
        case "type":
            return "a text"  # type: ignore[return-value]
    return 1


@app.step(retry=sf.NO_RETRY)
def plain_charge(how: str) -> None:
    if how == "stop":
        raise StopIteration("over")
    if how == "generator":
        raise GeneratorExit
    raise OSError(5, how)


# --- time -----------------------------------------------------------------------------------------------------------


@app.workflow
async def nap(seconds: float) -> float:
    await sf.sleep(seconds)
    return seconds


@app.workflow
async def three_signals() -> str:
    await sf.signal("a", timeout=T)  # given up when it comes
    await sf.signal("b")
    try:
        await sf.signal("c", timeout=T)
    except TimeoutError as error:
        return f"timed out: {error}"
    return "c"


@scenario
async def a_timer_like_one_that_was_given_up(stage: Stage) -> Any:
    run = await stage.client.start(three_signals, id="r")
    await run.signal("a")
    await run.signal("b")
    return await run.result()


@scenario
async def results_at_the_same_time(stage: Stage) -> Any:
    runs = [await stage.client.start(nap, seconds, id=f"r{n}") for n, seconds in enumerate((T, T, 2 * T))]
    return await asyncio.gather(*(run.result() for run in (*runs, runs[0])))


@app.workflow
async def equal_times() -> list[Any]:
    before = sf.now()
    await sf.gather(*(sf.sleep(T) for _ in range(3)), nap(T))
    winner = await sf.race(note_after(T, "first"), note_after(T, "second"))
    waits = await sf.gather(sf.signal("x", timeout=T), sf.signal("y", timeout=T), sf.sleep(T), return_exceptions=True)
    took = (sf.now() - before).total_seconds()
    return [winner, [str(wait) for wait in waits], took >= 3 * T]


async def note_after(seconds: float, text: str) -> str:
    await sf.sleep(seconds)
    return text


@scenario
async def equal_due_times(stage: Stage) -> Any:
    return await (await stage.client.start(equal_times, id="r")).result()


@app.workflow
async def limits_beside() -> list[Any]:
    found: list[Any] = []
    try:
        with sf.timeout(T):
            await sf.gather(sf.sleep(60), sf.signal("never"), hang())
    except TimeoutError as error:
        found.append(str(error))
    with sf.timeout(60):
        with contextlib.suppress(TimeoutError), sf.timeout(T):
            await sf.sleep(60)
        found.append(await double(1))
    found.append(await sf.race(sf.sleep(60), note_after(T, "in time")))
    return found


@scenario
async def time_outs_beside_other_waits(stage: Stage) -> Any:
    client = stage.client
    run, long = await client.start(limits_beside, id="r"), await client.start(nap, 60, id="long")
    return await asyncio.gather(
        caught(long.result(timeout=2 * T)),
        run.result(),
        caught(long.result(timeout=T)),
        caught(long.ask("q", timeout=T)),
    )


# --- steps that take long, and retries ------------------------------------------------------------------------------


@app.workflow
async def beside_endless_steps() -> list[Any]:
    found: list[Any] = [await sf.race(hang(), double(1)), await sf.race(plain_hang(), double(2))]
    try:
        with sf.timeout(T):
            await sf.gather(hang(), plain_hang())
    except TimeoutError as error:
        found.append(str(error))
    for step in (limited, plain_limited):
        try:
            await step()
        except sf.StepFailed as error:
            found.append(str(error))
    return found


@scenario
async def endless_steps(stage: Stage) -> Any:
    return await (await stage.client.start(beside_endless_steps, id="r")).result()


@app.workflow
async def endless() -> None:
    await hang()


@scenario
async def an_endless_step_of_a_cancelled_run(stage: Stage) -> Any:
    runs = [await stage.client.start(endless, id=f"r{n}") for n in range(2)]
    late = await caught(runs[0].result(timeout=T))
    await runs[0].cancel("enough")
    await runs[1].terminate("enough")
    return [late, *[await caught(run.result()) for run in runs]]


@app.workflow
async def tries() -> list[Any]:
    found: list[Any] = [await flaky(2), await told("later")]
    calls = [
        lambda: flaky(3),
        lambda: told("fatal"),
        lambda: missing("key"),
        lambda: missing.options(retry=sf.Retry(attempts=2, initial=T, jitter=0))("value"),
    ]
    for call in calls:
        try:
            await call()
        except sf.StepFailed as error:
            found.append([error.attempt, str(error), error.failure.data(dict[str, Any])])
    return found


@scenario
async def retries(stage: Stage) -> Any:
    return await (await stage.client.start(tries, id="r")).result()


# --- several things at once -----------------------------------------------------------------------------------------


@app.workflow
async def combined() -> list[Any]:
    found: list[Any] = [
        await sf.gather(double(1), plain_double(2), nap(T), note("x")),
        await sf.map(double, range(5), concurrency=2),
        [str(one) for one in await sf.gather(double(1), refuse("no"), nap(T), return_exceptions=True)],
        await sf.race(sf.signal("never"), hang(), note_after(T, "won")),
    ]
    for together in (
        lambda: sf.gather(hang(), refuse("gathered")),
        lambda: sf.race(hang(), refuse("raced")),
        lambda: sf.map(refuse, ["mapped"], concurrency=1),
    ):
        try:
            await together()
        except sf.StepFailed as error:
            found.append(str(error))
    try:
        async with sf.task_group() as group:
            group.start_soon(hang)
            group.start_soon(refuse, "grouped")
    except* sf.StepFailed as errors:
        found.append([str(error) for error in errors.exceptions])
    async with sf.task_group() as group:
        one, two = group.start_soon(double, 4), group.start_soon(nap, T)
    found += [await one, await two]
    return found


@scenario
async def gather_race_map_and_groups(stage: Stage) -> Any:
    return await (await stage.client.start(combined, id="r")).result()


# --- children -------------------------------------------------------------------------------------------------------


@app.workflow
async def doomed(why: str) -> None:
    await refuse(why)


@app.workflow
async def patient() -> str:
    try:
        return await sf.signal("go", str)
    finally:
        await note("cleaned up")


@app.workflow
async def family() -> list[Any]:
    found: list[Any] = [await sf.gather(nap(T), nap.options(id="named")(T))]
    for child in (doomed("no"), nap.options(id="taken")(1.0)):
        try:
            await child
        except sf.ChildFailed as error:
            found.append(str(error))
    started = await sf.start(nap, T)
    await sf.start(patient, id="abandoned", on_parent_end="abandon")
    await sf.start(nap, 2 * T, id="awaited", on_parent_end="wait")
    await sf.start(patient, id="cancelled")
    await sf.send_signal("nobody", "go")
    found.append(await started.result())
    return found


@scenario
async def children(stage: Stage) -> Any:
    client = stage.client
    await client.start(patient, id="taken")
    run = await client.start(family, id="r")
    found = [await run.result(), await client.run("named").result(), await client.run("awaited").result()]
    for name in ("abandoned", "taken"):
        await client.run(name).signal("go", name)
        found.append(await client.run(name).result())
    found.append(await caught(client.run("cancelled").result()))
    parents = {found.id: found.parent for found in await client.runs(limit=50)}
    return [*found, sorted((key, value) for key, value in parents.items() if not key.startswith("r/"))]


@app.step(retry=sf.Retry(attempts=3, initial=0))
async def refusing(card: int) -> None:
    raise ConnectionError(f"card {card} refused {sf.step_info().attempt} times")


@app.workflow
async def paying(card: int) -> None:
    await refusing(card)


@app.workflow
async def ordering(card: int) -> None:
    try:
        await paying.options(id=f"pay-{card}")(card)
    except sf.ChildFailed as error:
        raise ValueError("no order without money") from error


@app.workflow
async def mistaken() -> None:
    raise KeyError("price")


@scenario
async def why_runs_failed(stage: Stage) -> Any:
    client = stage.client
    runs = [await client.start(ordering, 7, id="order"), await client.start(mistaken, id="mistake")]
    found: list[Any] = [await caught(run.result()) for run in runs]
    for run_id in ("order", "pay-7", "mistake"):
        why = await client.run(run_id).describe()
        assert why.traceback.rstrip().endswith(('times")', 'KeyError("price")')), why.traceback
        found += [run_id, why.error, why.cause, [(one.attempt, str(one.failure)) for one in why.attempts]]
    for error in ("connectionerror: CARD 7", "KeyError", "nothing like it"):
        found.append(sorted(run.id for run in await client.runs(error=error)))
    return found


# --- signals and questions ------------------------------------------------------------------------------------------


class Order(msgspec.Struct):
    number: int


@app.workflow
async def receiver() -> list[Any]:
    found: list[Any] = [await sf.signal("early", str), await sf.signal("n", int), await sf.signal("n", int)]
    await sf.sleep(T)
    found.append((await sf.signal("order", Order)).number)
    found.append(await sf.signal("late", str, timeout=60))
    try:
        await sf.signal("never", timeout=T)
    except TimeoutError as error:
        found.append(str(error))
    return found


@scenario
async def signals_early_and_late(stage: Stage) -> Any:
    client = stage.client
    run = await client.start(receiver, id="r")
    await run.signal("order", {"number": 7})
    for name, value in (("n", 1), ("early", "bird"), ("n", 2), ("unknown", None)):
        await run.signal(name, value)
    await stage.pause(2 * T)
    await run.signal("late", "riser")
    found = [await run.result(), await caught(run.signal("late", "again"))]
    return [*found, await caught(client.run("nobody").signal("n")), await caught(client.run("nobody").result())]


@app.workflow
async def picky() -> int:
    return await sf.signal("n", int)


@scenario
async def a_signal_of_another_type(stage: Stage) -> Any:
    run = await stage.client.start(picky, id="r")
    await run.signal("n", "not a number")
    return await caught(run.result(timeout=T))


@app.workflow
async def office(left: int) -> list[Any]:
    order: list[Any] = []
    while True:
        question = await sf.question("reserve", int)
        order.append(question.value)
        if question.value == 0:
            question.answer(order)
            return order
        if question.value > left:
            question.refuse(f"only {left} left")
        else:
            left -= question.value
            question.answer(left)
            await sf.sleep(T)


@scenario
async def asks_in_order(stage: Stage) -> Any:
    client = stage.client
    run = await client.start(office, 3, id="r")
    answers = await asyncio.gather(*(caught(run.ask("reserve", n)) for n in (1, 5, 2, 3, 0)))
    return [answers, await run.result(), await caught(run.ask("reserve", 1))]


@app.workflow
async def silent() -> str:
    return await sf.signal("end", str)


@scenario
async def asks_without_an_answer(stage: Stage) -> Any:
    run = await stage.client.start(silent, id="r")
    late = await caught(run.ask("anything", timeout=T))
    answers = asyncio.gather(caught(run.ask("anything")), caught(run.result()), run.signal("end", "now"))
    return [late, await answers]


# --- cancelling -----------------------------------------------------------------------------------------------------


@app.workflow
async def tidy() -> list[str]:
    try:
        await sf.gather(hang(), sf.sleep(60), patient.options(id="child")())
    finally:
        with sf.shield():
            await sf.sleep(T)
            await note("one")
            await flaky(1)
            await note("two")
    return []


@scenario
async def a_cancel_and_a_finally(stage: Stage) -> Any:
    run = await stage.client.start(tidy, id="r")
    await stage.until(lambda: is_open(stage.client.run("child")))
    await run.cancel("enough")
    return [await caught(run.result()), await caught(stage.client.run("child").result()), await caught(run.cancel())]


@app.workflow
async def stubborn() -> str:
    try:
        await sf.signal("never")
    except sf.Cancelled as error:
        return f"no: {error}"
    return ""


@app.workflow
async def fails_while_cancelled() -> None:
    try:
        await sf.sleep(60)
    finally:
        await refuse("in the finally")


@scenario
async def a_cancel_that_is_handled(stage: Stage) -> Any:
    runs = [await stage.client.start(flow, id=flow.name) for flow in (stubborn, fails_while_cancelled)]
    found: list[Any] = []
    for run in runs:
        await run.cancel("please")
        found.append(await caught(run.result()))
    return found


@scenario
async def terminate(stage: Stage) -> Any:
    run = await stage.client.start(tidy, id="r")
    await stage.until(lambda: is_open(stage.client.run("child")))
    await run.terminate("at once")
    found = [await caught(run.result()), await caught(stage.client.run("child").result())]
    return [*found, await caught(run.terminate()), (await run.describe()).reason]


@app.workflow
async def trip(wait: bool) -> str:
    async with sf.saga() as saga:
        saga.compensate(note, "flight cancelled")
        await note("flight booked")
        saga.compensate(flaky, 1)
        await note("hotel booked")
        if wait:
            await sf.signal("pay")
        await refuse("no money")
    return "booked"


@scenario
async def sagas(stage: Stage) -> Any:
    failed, cancelled = await stage.client.start(trip, False, id="f"), await stage.client.start(trip, True, id="c")
    found = [await caught(failed.result())]

    async def both_booked() -> bool:
        events = [event for transition in await cancelled.history() for event in transition.events]
        return [event for event in events if isinstance(event, sf.events.StepCompleted)][1:] != []

    await stage.until(both_booked)
    await cancelled.cancel("changed my mind")
    return [*found, await caught(cancelled.result())]


@app.workflow
async def half_undone() -> str:
    async with sf.saga() as saga:
        saga.compensate(note, "undone")
        saga.compensate(refuse, "can't be undone")
        await refuse("no money")
    return "booked"


@scenario
async def a_saga_that_can_t_be_undone(stage: Stage) -> Any:
    return await caught((await stage.client.start(half_undone, id="r")).result())


@scenario
async def following_the_events(stage: Stage) -> Any:
    run = await stage.client.start(account, 0, id="r")
    found: list[str] = []

    async def follow() -> None:
        async for _, event in run.events(follow=True):
            found.append(event.describe())

    following = asyncio.create_task(follow())
    await stage.pause(T)
    for amount in (1, 2, 0):
        await run.signal("deposit", amount)
        await stage.pause(2 * T)
    await asyncio.gather(following, run.ask("total"), run.result())
    return found


# --- what is kept ---------------------------------------------------------------------------------------------------


@app.workflow
async def account(total: int) -> int:
    sf.set_attributes(level=total)
    sf.publish("total", total)
    for _ in range(2):
        amount = await sf.signal("deposit", int)
        if amount == 0:
            (await sf.question("total")).answer(total)
            return total
        total += await double(amount)
        await sf.sleep(T)
    raise sf.ContinueAs(total)


@scenario
async def continue_as_new(stage: Stage) -> Any:
    run = await stage.client.start(account, 0, id="r")
    for amount in (1, 2, 3, 4, 5, 0):
        await run.signal("deposit", amount)
    answer, result = await asyncio.gather(run.ask("total"), run.result())
    return [answer, result, await run.read("total"), (await run.describe()).attributes]


@app.workflow
async def publisher() -> None:
    for n in range(3):
        sf.publish("done", n)
        sf.set_attributes(phase=f"p{n}", odd=n % 2 == 1)
        await sf.sleep(T)
    sf.publish("name", Order(7))
    sf.set_attributes(odd=None)
    await sf.signal("end")


@scenario
async def published_and_attributes(stage: Stage) -> Any:
    client = stage.client
    runs = [await client.start(publisher, id=f"r{n}", tenant="acme" if n else "") for n in range(2)]
    found: list[Any] = [await runs[0].read("nothing", int, default=5)]

    async def published() -> bool:
        return await runs[1].read("name", Order) is not None and await runs[0].read("name") is not None

    await stage.pause(4 * T)
    await stage.until(published)
    found += [await runs[0].published(), await runs[0].read("name", Order)]
    for filters in (
        {"attributes": {"phase": "p2"}},
        {"attributes": {"odd": True}},
        {"tenant": "acme"},
        {"status": "running"},
    ):
        found.append([run.id for run in await client.runs(**filters)])
    for filters in ({"status": "odd"}, {"limit": 0}, {"attributes": {"phase": None}}):
        found.append(await caught(client.runs(**filters)))
    for run in runs:
        await run.signal("end")
        await run.result()
    return [*found, [run.id for run in await client.runs(tenant="acme")], await runs[0].read("done", int)]


@app.workflow(parks=())
async def failing(how: str) -> Any:
    match how:
        case "code":
            try:
                {}["key"]
            except KeyError as error:
                raise Declined("code") from error
        case "result":
            return {1j}
        case "foreign":
            await anyio.lowlevel.checkpoint()
        case "continue":
            return sf.ContinueAs("x")
        case "plain":
            await plain_charge("plain")
        case "stop" | "generator":
            await plain_charge(how)
        case "child":
            await failing.options(id="failing-child")("code")
        case _:
            return await charge(how)
    return None


KINDS = "code result foreign continue plain generator child cause context note group exit cancelled stop usage type"


@scenario
async def errors(stage: Stage) -> Any:
    client = stage.client
    found: list[Any] = []
    for how in KINDS.split():
        run = await client.start(failing, how, id=f"r-{how}")
        found.append([how, await caught(run.result())])
    found.append(await caught(client.start(nap, id="r", tenant="")))
    found.append(await caught(client.start(nap, "text", id="wrong-type")))
    found.append(await caught(client.start("failing", 1, id="r-code")))
    found.append(await caught(client.start(nap, 1.0, id="r-code")))
    found.append(await caught(client.start(nap, 1.0, id="not an id")))
    found.append((await client.start(failing, "x", id="r-code")).created)
    return found


@app.workflow
async def wrong_input(number: int) -> int:
    return number


@scenario
async def input_that_does_not_fit(stage: Stage) -> Any:
    run = await stage.client.start("wrong_input", "text", id="r")
    short = await stage.client.start("wrong_input", id="short")
    return [await caught(run.result()), await caught(short.result())]


class Fatal(BaseException):
    pass


class Picky(msgspec.Struct):
    number: int

    def __post_init__(self) -> None:
        if self.number < 0:
            raise Fatal("a negative number")


class Opaque:
    def __str__(self) -> str:
        raise Fatal("it has no text")


@app.step(retry=sf.Retry(attempts=1))
async def make(number: int) -> Picky:
    return Picky(number) if number >= 0 else {"number": number}  # type: ignore[return-value]


def recursive(n: int) -> int:
    return recursive(n + 1)


@app.workflow
async def poisonous(how: str) -> Any:
    match how:
        case "fatal":
            raise Fatal("of the run")
        case "late":
            await sf.sleep(T)
            raise Fatal("after a sleep")
        case "exit":
            raise SystemExit(3)
        case "generator":
            raise GeneratorExit
        case "stop":
            raise StopIteration("over")
        case "recursion":
            return recursive(0)
        case "argument":
            await note(Opaque())  # type: ignore[arg-type]
        case "nan":
            sf.publish("nan", float("nan"))
            await note("nan")
        case "half":
            raise ValueError("half an emoji: \ud83d")
        case "shown":
            raise ValueError(Opaque())
        case "signal":
            await sf.signal("n", Picky)
        case "step":
            await make(-1)
        case "large":
            await note("x" * 3_000_000)
        case _:
            pass
    return None


POISONS = "fatal late exit generator stop recursion argument nan half shown signal step large"


@scenario
async def code_that_no_run_may_have(stage: Stage) -> Any:
    client = stage.client
    found: list[Any] = []
    for how in POISONS.split():
        run = await client.start(poisonous, how, id=f"r-{how}")
        if how == "signal":
            await run.signal("n", {"number": -1})
        found.append([how, await caught(run.result(timeout=3 * T)), (await run.describe()).status])
        if found[-1][-1] == "stuck":
            await run.terminate("it is stuck")
            found.append(await caught(run.result()))
    return [*found, await (await client.start(nap, 0.0, id="innocent")).result()]


# --- queues ---------------------------------------------------------------------------------------------------------


@app.step(queue="gpu", retry=sf.Retry(attempts=2, initial=T, jitter=0))
async def resumed(pages: int) -> list[Any]:
    done: list[int] = sf.step_info().details or []
    for page in range(len(done), pages):
        if page == 2 and sf.step_info().attempt == 1:
            sf.heartbeat(done)
            raise ConnectionError("page 2")
        done.append(page)
    return [*done, sf.step_info().attempt]


@app.workflow
async def queued() -> list[Any]:
    found = [await resumed(4), await sf.map(double.options(queue="gpu"), range(3), concurrency=2)]
    return [*found, await sf.race(hang.options(queue="gpu")(), double.options(queue="gpu")(5))]


@scenario
async def steps_of_queues(stage: Stage) -> Any:
    return await (await stage.client.start(queued, id="r")).result()


# --- reducers -------------------------------------------------------------------------------------------------------


@app.reducer
def machine(state: list[Any], event: sf.Event) -> sf.Decision:
    match event:
        case sf.Started():
            return sf.Decision([], [double.options(tag="first")(1), sf.sleep(T, tag="nap"), refuse("no")])
        case sf.StepDone(result=result):
            return sf.Decision([*state, result])
        case sf.StepFailure(failure=failure):
            return sf.Decision([*state, str(failure)])
        case sf.TimerDone(tag=tag):
            return sf.Decision([*state, tag])
        case sf.Asked(id=id, value=value):
            return sf.Decision(state, [sf.Answer(id, len(state)) if value else sf.Refuse(id, "no value")])
        case sf.Signal(name="end"):
            return sf.Decision(state, [sf.Complete(sorted(map(str, state)))])
        case sf.Signal(name="fail"):
            return sf.Decision(state, [sf.Fail("asked to")])
        case _:
            return sf.Decision(state)


@scenario
async def reducers(stage: Stage) -> Any:
    found: list[Any] = []
    for end in ("end", "fail", "cancel"):
        run = await stage.client.start(machine, id=f"r-{end}")

        async def settled(run: Any = run) -> bool:
            return await run.ask("count", 1) == 3

        await stage.pause(2 * T)
        await stage.until(settled)
        found.append(await caught(run.ask("count", 0)))
        await (run.cancel("by hand") if end == "cancel" else run.signal(end))
        found.append(await caught(run.result(timeout=T)))
    return found


# --- deploys --------------------------------------------------------------------------------------------------------


def release(first: str, *, drop: bool = False) -> sf.App:
    release = sf.App()

    async def act() -> str:
        return sf.step_info().step

    steps = {name: release.step(name=name)(act) for name in ("pack", "weigh", "bill")}

    @release.workflow(name="other" if drop else "flow")
    async def flow() -> list[str]:
        done = [await steps[first]()]
        done += [await sf.signal("go", str), await sf.signal("go", str)]
        return [*done, await steps["bill"]()]

    return release


def pricing(fix: str) -> sf.App:
    release = sf.App()

    @release.step
    async def price(item: str) -> dict[str, int]:
        return {"amount": len(item)}

    @release.workflow
    async def order(item: str) -> list[int]:
        got = await price(item)
        return [got["amont" if not fix else "amunt" if fix == "half" else "amount"], await sf.signal("tip", int)]

    @release.workflow
    async def shop(item: str) -> list[int]:
        return await order.options(id=f"order-{item}")(item)

    return release


@scenario
async def bugs_and_their_fix(stage: Stage) -> Any:
    client = stage.client
    await stage.deploy(pricing(""))
    found: list[Any] = []
    runs = [await client.start("shop", item, id=f"shop-{item}") for item in ("tea", "rice")]

    def says(error: str) -> Callable[[], Awaitable[bool]]:
        async def all_say_it() -> bool:
            return len(await client.runs(status="stuck", error=error)) == 2

        return all_say_it

    await stage.until(says("'amont'"))
    await client.run("order-tea").signal("tip", 1)
    await stage.deploy(pricing("half"))
    await stage.until(says("'amunt'"))
    found += [(run.id, run.status, run.reason, run.error) for run in await client.runs()]
    await client.run("order-rice").terminate("enough")
    await stage.deploy(pricing("all"))
    found += [await runs[0].result(), await caught(runs[1].result())]
    return sorted(map(str, found))


@scenario
async def stuck_runs(stage: Stage) -> Any:
    client = stage.client
    await stage.deploy(release("pack"))
    runs = [await client.start("flow", id=f"r{n}") for n in range(3)]

    async def packed() -> bool:
        return all([(await run.describe()).version >= 2 for run in runs])

    def have(status: str) -> Callable[[], Awaitable[bool]]:
        async def reached() -> bool:
            return len(await client.runs(status=status)) == len(runs)

        return reached

    await stage.until(packed)
    found: list[Any] = []
    for other in (release("weigh"), release("pack", drop=True)):
        await stage.deploy(other)
        await stage.until(have("stuck"))
        found += [(run.id, run.status, run.reason) for run in await client.runs(status="stuck")]
        await stage.deploy(release("pack"))
        await stage.until(have("running"))
    await stage.deploy(release("weigh"))
    await stage.until(have("stuck"))
    await runs[0].signal("go", "while it was stuck")
    found.append(await caught(runs[0].result(timeout=T)))
    await runs[1].cancel("give up")
    await runs[2].terminate("give up")
    found += [await caught(run.result()) for run in runs[1:]]
    await stage.deploy(release("pack"))
    await runs[0].signal("go", "later")
    return sorted(map(str, [*found, await runs[0].result()]))


@app.workflow
async def stands_still(n: int) -> list[int]:
    try:
        first = await double(n)
        got = await sf.signal("go", int)
        await sf.sleep(T)
        return [first, got, await flaky(1), await double(got)]
    finally:
        await double(100)


@scenario
async def paused_runs(stage: Stage) -> Any:
    """One that waits, one whose next attempt is due meanwhile, one that is cancelled, and one that is forced to end."""
    client = stage.client
    runs = [await client.start(stands_still, n, id=f"p{n}") for n in range(4)]

    def all_are(status: str, count: int = 4) -> Callable[[], Awaitable[bool]]:
        async def reached() -> bool:
            return len(await client.runs(status=status)) == count

        return reached

    async def waiting() -> bool:
        return all([(await run.describe()).version >= 2 for run in runs])

    await stage.until(waiting)
    await stage.pause(T)
    for run in runs:
        await run.pause(reason="call back", by="kim")
    await stage.until(all_are("paused"))
    for run in runs:
        await run.signal("go", 7)
    await stage.pause(2 * T)
    found: list[Any] = [(run.id, run.reason) for run in await client.runs(status="paused")]
    described = await runs[0].describe()
    found.append(next((wait.kind, wait.name, wait.why) for wait in described.waits_for))
    found.append(await caught(runs[0].result(timeout=T)))
    await runs[2].cancel("enough")
    await runs[3].terminate("now")
    found += [await caught(run.result()) for run in runs[2:]]
    for run in runs[:2]:
        await run.resume(by="lee")
    return sorted(map(str, [*found, *[await caught(run.result()) for run in runs[:2]]]))


@scenario
async def paused_workflows(stage: Stage) -> Any:
    client = stage.client
    await client.pause_workflow("stands_still", reason="429", by="kim")
    await stage.knows("stands_still")
    runs = [await client.start(stands_still, n, id=f"w{n}") for n in range(3)]

    async def all_wait() -> bool:
        return len(await client.runs(status="paused")) == 3

    await stage.until(all_wait)
    await runs[0].signal("go", 1)
    await runs[2].cancel("enough")
    found: list[Any] = [await caught(runs[2].result())]
    found += [(run.id, run.status, run.reason) for run in await client.runs(workflow="stands_still")]
    await stage.pause(T)
    before = await client.resume_workflow("stands_still")
    found.append((before.by, before.reason))
    await runs[1].signal("go", 2)
    return sorted(map(str, [*found, *[await caught(run.result()) for run in runs[:2]]]))


@app.step(retry=sf.Retry(attempts=2, initial=T, jitter=0))
async def counted(n: int) -> int:
    attempt = sf.step_info().attempt
    sf.record("tries", attempt, step="async")
    sf.emit(f"try {attempt}")
    if attempt == 1:
        raise ConnectionError("again")
    return n


@app.step
def plain_counted(n: int) -> int:
    sf.record("tries", 0.5, step="plain")
    sf.emit({"n": n})
    return n


@app.workflow
async def counts(n: int) -> int:
    sf.record("begun", 1, kind="first")
    sf.publish("stage", "counting")
    total = await counted(n) + await plain_counted(n)
    sf.publish("stage", "waiting")
    total += await sf.signal("more", int)
    sf.record("total", total)
    sf.publish("stage", "over")
    return total


@scenario
async def records_chunks_and_published_values(stage: Stage) -> Any:
    run = await stage.client.start(counts, 2, id="r")
    found: list[Any] = []
    async for value in run.watch("stage", str):
        if value == "waiting":
            await run.signal("more", 3)
        found = [*found, value][-1:]  # one that changes at once may be left out
    found.append(await run.result())
    found += [(chunk.value, chunk.step, chunk.attempt, chunk.restarted) async for chunk in run.stream()]
    fork = await run.fork(len([one async for one in run.events()]) - 2, id="f")  # from the signal on
    await fork.signal("more", 4)
    return [*found, await fork.result()]


@scenario
async def signals_that_start_their_runs(stage: Stage) -> Any:
    client = stage.client
    found: list[Any] = []
    for number, key in ((1, "one"), (1, "one"), (2, "two")):
        run = await client.signal_with_start(counts, 1, id="r", signal="more", value=number, idempotency_id=key)
        found.append(await run.result())
    again = client.signal_with_start(counts, 1, id="r", signal="more", value=3, on_ended="reject")
    found.append(await caught(again))
    await client.pause_workflow("counts", reason="429", by="kim")
    await stage.knows("counts")
    paused = await client.signal_with_start(counts, 1, id="p", signal="more", value=5)

    async def waits() -> bool:
        return [run.id for run in await client.runs(status="paused")] == ["p"]

    await stage.until(waits)
    await client.resume_workflow("counts")
    return [*found, await paused.result()]


async def is_open(run: Any) -> bool:
    try:
        return (await run.describe()).version > 0
    except sf.RunNotFound:
        return False


# --- the archive ----------------------------------------------------------------------------------------------------


@app.workflow
async def billed(why: str) -> None:
    sf.publish("stage", "billing")
    sf.set_attributes(customer="kim")
    await refuse(why)


def without_place(found: Any) -> Any:
    """Each archive has a place of its own."""
    return found.partition(" in the archive")[0] if isinstance(found, str) else found


@scenario
async def runs_in_the_archive(stage: Stage) -> Any:
    client, found = stage.client, list[Any]()

    async def listed() -> list[Any]:
        page = await client.archived_runs(workflow="billed", attributes={"customer": "kim"})
        return [(run.id, run.status, run.error, run.archived) for run in page]

    run = await client.start(billed, "no card", id="a")
    found.append(await caught(run.result()))
    found += [await caught(client.purge("a")), await caught(client.purge("a")), await listed()]
    described = await run.describe()
    found += [described.archived, described.status, described.error, described.attributes, described.attempts]
    found += [await caught(run.result()), await run.published(), await run.read("stage")]
    found += [[type(event).__name__ for _, event in [one async for one in run.events()]]]
    found += [await caught(run.signal("go", 1)), await caught(run.retry()), await caught(run.cancel())]
    found += [await caught((await run.fork(id="b")).result()), (await client.run("b").describe()).status]

    found.append(without_place(await caught(client.restore("missing"))))
    await client.restore("a")
    found += [(await run.describe()).archived, await listed(), await caught(run.retry()), await caught(run.result())]
    found.append(await caught(client.purge("a")))

    again = await client.start(billed, "no money", id="a")  # another run of this id
    found += [await caught(again.result()), len(await client.archived_runs(workflow="billed"))]
    found.append(await caught(client.restore("a")))
    [older] = await client.archived_runs(workflow="billed")
    found.append((await client.archived_run("a", created=older.created).describe()).error)
    found += [await caught(client.forget("a")), await caught(client.forget("a")), await listed()]
    found.append(await caught(run.describe()))
    return found
